// Highwater's face as a dynamic module of Envoy: a shared library that Envoy loads, for HTTP, for
// the network filter and the listener filter of the same listener, and as a bootstrap extension.
// All policy is in internal/guard; here it is asked, and what it says is done.
//
// Where is what:
//
//	abi.h, hooks.c  what is used of Envoy's ABI, and the hooks that Envoy calls
//	module.go       the process: what it starts with, and configurations
//	worker.go       a worker thread of Envoy: its lock and its ticks
//	clock.go        what has them come; clock.c when Go's threads wake
//	stream.go       a request: hooks of the HTTP filter; request.go what the policy asks about one
//	connection.go   hooks of the network filter
//	buffers.go      what Envoy may hold of either: limits, and reading that stops
//	accept.go       hooks of the listener filter
//	reading.go      readings of the allocator; metrics.go, tell.go, introspect.go what is told
//
// Threads. Hooks of a stream or a connection run on its worker's thread, those of configurations
// and answers to callouts on Envoy's main thread, and the clock is a goroutine. What a worker has
// is guarded by its lock, which its own thread takes but for a tick while it has no connection. It
// is not held while Envoy is told to do something: that may run other hooks of ours before it
// returns.
//
// Faults. A panic that nobody recovers ends Envoy. So each hook recovers, and the goroutine does:
// the fault is logged and counted, and the traffic goes on.
package main

// #cgo CFLAGS: -Wall -Wno-unused-function
// #cgo LDFLAGS: -ldl
// #include "abi.h"
import "C"

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
)

func main() {}

// started is the zero of this process's clock.
var started = time.Now()

func now() budget.Time { return time.Since(started) }

// module is what all workers share. Envoy loads the library once.
var module struct {
	store   budget.Memory
	workers []*worker
	plugins plugins
	metrics metrics
	setup   setup
	reader  reader
	faults  atomic.Uint64 // that no worker has counted yet
	pending atomic.Int64  // connections that were accepted and have no filter chain yet
	unfit   error         // why this Envoy can't have us; nil = it can
	polled  bool          // Go's sysmon wakes thousands of times a second: see yieldEvery
}

//export hwInit
func hwInit(workers C.uint32_t, polled C.bool) {
	defer survive()
	if name := C.hw_missing(); name != nil {
		module.unfit = fmt.Errorf("this Envoy lacks %s of the ABI of dynamic modules: the module needs Envoy 1.39 or newer", C.GoString(name))
		return
	}
	// More for the clock, for Envoy's main thread and for the collector: each keeps its place for
	// some ms after it has called in.
	runtime.GOMAXPROCS(int(workers) + 3)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50) // what lives is small
	}
	module.polled = bool(polled)
	module.reader.init()
	for i := range uint32(workers) {
		random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), uint64(i)))
		w, err := guard.NewWorker(&module.store, random.Float64)
		if err != nil {
			logf(C.HW_LOG_CRITICAL, "worker %d: %v", i, err)
			return
		}
		module.workers = append(module.workers, newWorker(i, w))
	}
	if !bool(C.envoy_dynamic_module_callback_is_validation_mode()) {
		go clock()
	}
}

// plugin is one configuration of ours, of a filter of a listener.
type plugin struct {
	id       uintptr
	kind     kind
	envoy    unsafe.Pointer // its configuration there
	asks     unsafe.Pointer // scheduler to the main thread; nil = it is none of the HTTP filter
	config   guard.Config
	guards   []*guard.Guard // by worker
	defined  defined
	reported atomic.Bool // that its listener lacks the network filter
}

// kind is which of Envoy's extension points a plugin is at.
type kind uint8

const (
	requests    kind = iota // http_filters
	connections             // filters of a filter chain
	accepts                 // listener_filters
)

// plugins are those that are there, by id: hooks of all threads read them, the main thread adds and
// removes.
type plugins struct {
	adding sync.Mutex
	list   atomic.Pointer[[]*plugin]
}

func (p *plugins) all() []*plugin {
	if list := p.list.Load(); list != nil {
		return *list
	}
	return nil
}

// of is the plugin with the id; nil = there is none.
func (p *plugins) of(id uintptr) *plugin {
	if list := p.all(); id > 0 && id <= uintptr(len(list)) {
		return list[id-1]
	}
	return nil
}

func (p *plugins) add(n *plugin) {
	p.adding.Lock()
	defer p.adding.Unlock()
	list := append([]*plugin(nil), p.all()...)
	place := len(list)
	for i, other := range list {
		if other == nil {
			place = i
			break
		}
	}
	if place == len(list) {
		list = append(list, nil)
	}
	n.id = uintptr(place + 1)
	list[place] = n
	p.list.Store(&list)
}

func (p *plugins) remove(n *plugin) {
	p.adding.Lock()
	defer p.adding.Unlock()
	list := append([]*plugin(nil), p.all()...)
	list[n.id-1] = nil
	p.list.Store(&list)
}

// mode says whether verdicts are carried out on any listener.
func (p *plugins) mode() guard.Mode {
	for _, n := range p.all() {
		if n != nil && n.config.Mode == guard.Enforce {
			return guard.Enforce
		}
	}
	return guard.Observe
}

// hwConfigNew takes a configuration. It fails closed: 0 has Envoy not start with it, or not take it
// over, and a running one stays.
//
//export hwConfigNew
func hwConfigNew(envoy unsafe.Pointer, at C.int, text *C.char, n C.size_t) (id C.uintptr_t) {
	defer survive()
	p, err := newPlugin(kind(at), envoy, C.GoBytes(unsafe.Pointer(text), C.int(n)))
	if err != nil {
		logf(C.HW_LOG_CRITICAL, "the configuration is refused:\n%v", err)
		return 0
	}
	return C.uintptr_t(p.id)
}

func newPlugin(at kind, envoy unsafe.Pointer, text []byte) (*plugin, error) {
	if module.unfit != nil {
		return nil, module.unfit
	}
	if len(module.workers) == 0 {
		return nil, fmt.Errorf("the module has no workers: it could not start")
	}
	if len(text) == 0 {
		return nil, fmt.Errorf("filter_config: none: it needs at least {\"budget\": {\"limit\": \"512MiB\"}} as a google.protobuf.StringValue")
	}
	config, err := guard.Parse(text)
	if err != nil {
		return nil, err
	}
	p := &plugin{kind: at, envoy: envoy, config: config}
	if err := module.metrics.define(p); err != nil {
		return nil, err
	}
	changed := ""
	for _, w := range module.workers {
		p.guards = append(p.guards, w.join(config, &changed))
	}
	module.plugins.add(p)
	module.reader.configure(p, text)
	module.metrics.publishBy(p)
	module.setup.join(p, changed)
	arm()
	return p, nil
}

//export hwConfigDestroy
func hwConfigDestroy(id C.uintptr_t) {
	defer survive()
	p := module.plugins.of(uintptr(id))
	if p == nil {
		return
	}
	module.plugins.remove(p)
	module.setup.leave(p)
	module.metrics.leave(p)
	module.reader.leave(p)
	for i, w := range module.workers {
		w.retire(p.guards[i])
	}
	arm()
}

// arm tells the workers whether any plugin enforces.
func arm() {
	enforcing := module.plugins.mode() == guard.Enforce
	for _, w := range module.workers {
		w.arm(enforcing)
	}
}

// survive ends a fault of ours where it began: it is logged and counted, and the traffic goes on.
func survive() {
	if fault := recover(); fault != nil {
		module.faults.Add(1)
		logf(C.HW_LOG_CRITICAL, "a fault, and the traffic goes on: %v\n%s", fault, debug.Stack())
	}
}

func logf(level C.int, format string, a ...any) {
	text := "highwater: " + fmt.Sprintf(format, a...)
	C.envoy_dynamic_module_callback_log(level, textOf(text))
	runtime.KeepAlive(text)
}

// textOf hands a string to a call of Envoy, for as long as that lasts.
func textOf(s string) C.hw_text {
	return C.hw_text{ptr: (*C.char)(unsafe.Pointer(unsafe.StringData(s))), length: C.size_t(len(s))}
}

// stringOf is Envoy's text, to be kept.
func stringOf(t C.hw_text) string { return strings.Clone(viewOf(t)) }

// viewOf is Envoy's text for as long as the hook lasts.
func viewOf(t C.hw_text) string {
	return unsafe.String((*byte)(unsafe.Pointer(t.ptr)), int(t.length))
}

// headersOf hands a list of headers to a call of Envoy; pin has to be let go after it.
func headersOf(pin *runtime.Pinner, list [][2]string) []C.hw_header {
	all := make([]C.hw_header, len(list))
	for i, l := range list {
		key, value := unsafe.StringData(l[0]), unsafe.StringData(l[1])
		pin.Pin(key)
		all[i].key, all[i].key_length = (*C.char)(unsafe.Pointer(key)), C.size_t(len(l[0]))
		if len(l[1]) > 0 {
			pin.Pin(value)
			all[i].value, all[i].value_length = (*C.char)(unsafe.Pointer(value)), C.size_t(len(l[1]))
		}
	}
	return all
}
