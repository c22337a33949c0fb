package wasmhost

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/sys"
)

// VM is one worker's virtual machine.
type VM struct {
	process *Process
	ctx     context.Context //nolint:containedctx // it carries the VM to host calls and nothing else
	module  api.Module
	memory  api.Memory
	exports [numExports]export

	contexts  map[uint32]*guestContext
	lastID    uint32
	lastToken uint32
	current   *guestContext // whose callback runs; nil = none does
	effective *guestContext // what the plugin chose instead; nil = current
	queue     []action      // of the plugin, not yet delivered
	head      int           // of queue

	calls   []uint64 // by index of hostCalls
	proxy   uint64   // their sum
	clock   uint64
	printed printer
	refusal string // last line logged as an error
	dead    error
	scratch [8]byte
}

type vmKey struct{}

// export is a function of the plugin. Its arguments and result have one place, because no function
// runs within itself.
type export struct {
	function api.Function
	stack    [5]uint64
}

const (
	initReactor = iota
	onMemoryAllocate
	onContextCreate
	onVMStart
	onConfigure
	onTick
	onHTTPCallResponse
	onNewConnection
	onDownstreamData
	onUpstreamData
	onDownstreamClose
	onRequestHeaders
	onRequestBody
	onRequestTrailers
	onResponseHeaders
	onResponseBody
	onResponseTrailers
	onDone
	onLog
	onDelete
	numExports
)

var exportNames = [numExports]string{
	initReactor:        "_initialize", //nolint:misspell // its name
	onMemoryAllocate:   "malloc",      // which Envoy looks for before it looks for proxy_on_memory_allocate
	onContextCreate:    "proxy_on_context_create",
	onVMStart:          "proxy_on_vm_start",
	onConfigure:        "proxy_on_configure",
	onTick:             "proxy_on_tick",
	onHTTPCallResponse: "proxy_on_http_call_response",
	onNewConnection:    "proxy_on_new_connection",
	onDownstreamData:   "proxy_on_downstream_data",
	onUpstreamData:     "proxy_on_upstream_data",
	onDownstreamClose:  "proxy_on_downstream_connection_close",
	onRequestHeaders:   "proxy_on_request_headers",
	onRequestBody:      "proxy_on_request_body",
	onRequestTrailers:  "proxy_on_request_trailers",
	onResponseHeaders:  "proxy_on_response_headers",
	onResponseBody:     "proxy_on_response_body",
	onResponseTrailers: "proxy_on_response_trailers",
	onDone:             "proxy_on_done",
	onLog:              "proxy_on_log",
	onDelete:           "proxy_on_delete",
}

// guestContext is what a context id of the plugin stands for; stream and connection are nil unless
// it is one.
type guestContext struct {
	vm         *VM
	id         uint32
	plugin     *Plugin
	stream     *Stream
	connection *Connection
}

// NewVM makes a virtual machine in which nothing is started. The error is that of the plugin's
// initialization.
func (p *Process) NewVM() (*VM, error) {
	vm := &VM{process: p, contexts: map[uint32]*guestContext{}, calls: make([]uint64, len(hostCalls))}
	vm.ctx = context.WithValue(context.Background(), vmKey{}, vm)
	vm.printed.log = p.options.Log
	config := wazero.NewModuleConfig().
		WithName(""). // else there could be but one
		WithStartFunctions().
		WithStdout(&vm.printed).WithStderr(&vm.printed).
		WithNanotime(vm.nanotime, sys.ClockResolution(1)).
		WithWalltime(vm.walltime, sys.ClockResolution(1))
	module, err := p.module.runtime.InstantiateModule(vm.ctx, p.module.compiled, config)
	if err != nil {
		return nil, fmt.Errorf("instantiate the plugin: %w", err)
	}
	vm.module, vm.memory = module, module.Memory()
	for i, name := range exportNames {
		if vm.exports[i].function = module.ExportedFunction(name); vm.exports[i].function == nil {
			return nil, errors.Join(fmt.Errorf("the plugin does not export %s", name), vm.Close())
		}
	}
	if _, err := vm.call(initReactor, &guestContext{vm: vm}); err != nil {
		return nil, err
	}
	return vm, nil
}

// nanotime is the monotonic clock of WASI: for the plugin, and for Go's runtime in it.
func (vm *VM) nanotime() int64 {
	vm.clock++
	return vm.process.options.Clock().Nanoseconds()
}

// walltime begins with Unix time: the simulated day does not matter, that it is the same in each
// run does.
func (vm *VM) walltime() (sec int64, nsec int32) {
	vm.clock++
	t := vm.process.options.Clock()
	return int64(t / time.Second), int32(t % time.Second)
}

// Start makes a plugin of a root_id and a configuration, with the callbacks that Envoy makes for
// it. The error says why the plugin refused, in the words that it logged; then there is no such
// plugin, and the VM lives on.
func (vm *VM) Start(rootID, configuration string) (*Plugin, error) {
	p := &Plugin{rootID: rootID, configuration: configuration}
	p.plugin = p
	if err := vm.create(&p.guestContext, 0); err != nil {
		return nil, err
	}
	vm.refusal = ""
	for _, callback := range [...]struct{ export, size int }{{onVMStart, 0}, {onConfigure, len(configuration)}} {
		ok, err := vm.call2(callback.export, &p.guestContext, uint64(callback.size))
		if err != nil {
			return nil, err
		}
		if ok == 0 {
			err := fmt.Errorf("%s is refused: %s", exportNames[callback.export], vm.refusal)
			return nil, errors.Join(err, p.Done())
		}
	}
	return p, nil
}

// create makes a context known to the plugin, as one of parent; 0 = it is a plugin's itself.
func (vm *VM) create(c *guestContext, parent uint32) error {
	vm.lastID++
	c.vm, c.id = vm, vm.lastID
	vm.contexts[c.id] = c
	_, err := vm.call2(onContextCreate, c, uint64(parent))
	return err
}

// finish ends a context.
func (vm *VM) finish(c *guestContext) error {
	_, err := vm.call(onDelete, c)
	delete(vm.contexts, c.id)
	return err
}

func (vm *VM) call2(export int, c *guestContext, a uint64) (uint64, error) {
	vm.exports[export].stack[1] = a
	return vm.call(export, c)
}

func (vm *VM) call3(export int, c *guestContext, a, b uint64) (uint64, error) {
	vm.exports[export].stack[2] = b
	return vm.call2(export, c, a)
}

var errNested = errors.New("wasmhost: a call into the VM from within it: Log and Clock must not make any")

// call calls a function of the plugin for a context, whose id is the first argument, and delivers
// what it did.
func (vm *VM) call(i int, c *guestContext) (result uint64, err error) {
	if vm.dead != nil {
		return 0, vm.dead
	}
	if vm.current != nil {
		return 0, errNested
	}
	e := &vm.exports[i]
	e.stack[0] = uint64(c.id)
	vm.current = c
	err = e.function.CallWithStack(vm.ctx, e.stack[:])
	vm.current, vm.effective = nil, nil
	if err != nil {
		vm.die(exportNames[i], err)
		err = vm.dead
	} else {
		result = uint64(uint32(e.stack[0]))
	}
	vm.deliver()
	return result, err
}

// ErrDead is what calls into a VM return after a trap, or after Close.
var ErrDead = errors.New("the virtual machine is dead")

func (vm *VM) die(in string, err error) {
	vm.printed.flush()
	if exit := (*sys.ExitError)(nil); errors.As(err, &exit) && vm.printed.first != "" {
		err = fmt.Errorf("%s (%w)", vm.printed.first, err)
	}
	vm.dead = fmt.Errorf("%w: trap in %s: %w", ErrDead, in, err)
	_ = vm.module.Close(vm.ctx) // its error is the exit code
}

// Dead says why nothing runs in this VM any more; nil while it lives.
func (vm *VM) Dead() error { return vm.dead }

// Close frees the VM without another callback. Shared data stay.
func (vm *VM) Close() error {
	if vm.dead == nil {
		vm.dead = fmt.Errorf("%w: it was closed", ErrDead)
	}
	return vm.module.Close(vm.ctx)
}

// MemoryBytes is the size of the linear memory. It never shrinks.
func (vm *VM) MemoryBytes() int64 { return int64(vm.memory.Size()) }

// Calls are the host calls so far by name, with those of WASI's clocks as clock_time_get: the
// plugin's own, and those of Go's runtime.
func (vm *VM) Calls() map[string]uint64 {
	calls := map[string]uint64{"clock_time_get": vm.clock}
	for i, n := range vm.calls {
		if n > 0 {
			calls[hostCalls[i].name] = n
		}
	}
	return calls
}

// NumCalls is the sum of the host calls so far, those of Proxy-Wasm and those of WASI's clocks.
func (vm *VM) NumCalls() (proxy, clock uint64) { return vm.proxy, vm.clock }

type actionKind uint8

const (
	resume actionKind = iota
	answer
	closeDownstream
	httpCall
)

// action is something that the plugin did and the Handler has not heard of yet.
type action struct {
	kind     actionKind
	on       *guestContext
	response LocalResponse // of answer
	token    uint32        // of httpCall, like the rest
	cluster  string
	headers  [][2]string
	timeout  time.Duration
}

func (vm *VM) deliver() {
	for vm.head < len(vm.queue) {
		a := vm.queue[vm.head]
		vm.head++
		switch h := vm.process.options.Handler; a.kind {
		case resume:
			h.Resume(a.on.stream)
		case answer:
			h.Answer(a.on.stream, a.response)
		case closeDownstream:
			h.CloseDownstream(a.on.connection)
		case httpCall:
			h.HTTPCall(a.on.plugin, a.token, a.cluster, a.headers, a.timeout)
		}
	}
	clear(vm.queue)
	vm.queue, vm.head = vm.queue[:0], 0
}

// printer logs what Go's runtime prints, line by line, and keeps the first line: of a panic, the
// one that says what.
type printer struct {
	log   func(Level, string)
	line  []byte
	first string
}

func (p *printer) Write(b []byte) (int, error) {
	p.line = append(p.line, b...)
	for {
		i := bytes.IndexByte(p.line, '\n')
		if i < 0 {
			return len(b), nil
		}
		p.print(string(p.line[:i]))
		p.line = append(p.line[:0], p.line[i+1:]...)
	}
}

func (p *printer) flush() {
	if len(p.line) > 0 {
		p.print(string(p.line))
		p.line = p.line[:0]
	}
}

func (p *printer) print(line string) {
	if p.first == "" {
		p.first = strings.TrimSpace(line)
	}
	p.log(Error, line)
}
