// Package wasmhost runs the compiled plugin without Envoy: a Proxy-Wasm (ABI 0.2) host on wazero,
// for tests and for the simulator, which load the very build/highwater.wasm that Envoy does.
//
// A Module is compiled once. A Process is what one Envoy is: shared data, metrics and a clock; its
// VMs are the workers. In a VM, Start makes a Plugin (one root_id and configuration), and a Plugin
// makes Connections (network filter) and Streams (HTTP filter), whose methods are Envoy's
// callbacks. Bodies pass as sizes alone. Who calls plays the rest of Envoy: it ticks, answers the
// plugin's HTTP calls, holds back what is paused and ends what is to end.
//
// What the plugin does reaches the caller through the Handler. As in Envoy, which defers all that
// ends or resumes something until it is out of the VM, the Handler hears of it after the call into
// the VM has returned, in the order of the host calls, and before the method that made the call
// returns its Action. A Handler may call into the VM again; what that call leads to, and what was
// still queued before it, is delivered inside it: so does Envoy, and that several resumes nest is
// how it crashes. Log and Clock are called from within the VM and must not call into it.
//
// As in Envoy, too:
//   - request headers can be read in their callback, while it has paused them, and in on_log; not
//     in the callbacks of bodies and responses, where an answer can be given all the same. Names
//     are compared as they are: in lower case.
//   - a context that SetEffectiveContext chose holds until the call into the VM ends.
//   - OnVMStart comes once for each Plugin.
//   - the tick timer starts again whenever the period is set.
//   - a trap ends the VM, and nothing more is called in it, not even for streams that end. The
//     shared data stay.
//
// Only the host calls that the plugin imports exist here; Compile refuses a plugin with others.
// Nothing here is safe for concurrent use within one Process, and nothing reads a clock or draws
// random numbers of the machine: what happens depends on the calls alone.
package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// Module is a compiled plugin.
type Module struct {
	runtime  wazero.Runtime
	compiled wazero.CompiledModule
}

// Compile compiles a plugin, which takes seconds. The error says what is wrong with it: that it is
// no Wasm, or that it imports what there is not here.
func Compile(ctx context.Context, wasm []byte) (*Module, error) {
	m := &Module{runtime: wazero.NewRuntime(ctx)}
	if err := m.compile(ctx, wasm); err != nil {
		_ = m.runtime.Close(ctx)
		return nil, fmt.Errorf("compile the plugin: %w", err)
	}
	return m, nil
}

func (m *Module) compile(ctx context.Context, wasm []byte) (err error) {
	if _, err = wasi_snapshot_preview1.Instantiate(ctx, m.runtime); err != nil {
		return err
	}
	if err = instantiateHost(ctx, m.runtime); err != nil {
		return err
	}
	if m.compiled, err = m.runtime.CompileModule(experimental.WithCompilationWorkers(ctx, runtime.GOMAXPROCS(0)), wasm); err != nil {
		return err
	}
	for _, f := range m.compiled.ImportedFunctions() {
		if module, name, _ := f.Import(); module == hostModule && !hasHostCall(name) {
			return fmt.Errorf("it imports %s, which this host does not have", name)
		}
	}
	return nil
}

// Close frees the code and all VMs.
func (m *Module) Close(ctx context.Context) error { return m.runtime.Close(ctx) }

// Handler hears what a plugin does. See the package's documentation for when.
type Handler interface {
	// Resume continues a request that was paused, or was not, which is harmless.
	Resume(s *Stream)
	// Answer ends the stream with a response that the plugin made. Envoy passes it to the plugin's
	// own callbacks for responses.
	Answer(s *Stream, r LocalResponse)
	// CloseDownstream closes the connection.
	CloseDownstream(c *Connection)
	// HTTPCall wants an HTTP request made; p.HTTPResponse takes the answer. After the timeout there
	// must be one, a failed one. A zero timeout is none.
	HTTPCall(p *Plugin, token uint32, cluster string, headers [][2]string, timeout time.Duration)
}

// LocalResponse is an answer that comes from the plugin.
type LocalResponse struct {
	Status     int
	Headers    [][2]string
	Body       string
	GRPCStatus int32 // for gRPC requests; −1 = from Status
}

// Header returns the value of a header, empty where there is none.
func (r *LocalResponse) Header(name string) string {
	value, _ := lookup(r.Headers, name)
	return value
}

// Level is that of a log line.
type Level uint32

// The levels of Proxy-Wasm.
const (
	Trace Level = iota
	Debug
	Info
	Warn
	Error
	Critical
)

func (l Level) String() string {
	names := [...]string{"trace", "debug", "info", "warn", "error", "critical"}
	if int(l) < len(names) {
		return names[l]
	}
	return fmt.Sprintf("level %d", uint32(l))
}

// Options of a process.
type Options struct {
	// Clock is the process's CLOCK_MONOTONIC. It may be virtual, and stand still while a VM runs.
	Clock func() time.Duration
	// Log takes what the plugin logs, and what its runtime prints (as Error). Nil: it is dropped.
	Log func(Level, string)
	// Handler hears what the plugin does.
	Handler Handler
}

// Process is what one Envoy is to its workers: shared data of one vm_id, metrics, a clock.
type Process struct {
	module  *Module
	options Options
	shared  SharedData
	metrics []Metric
	byName  map[string]uint32 // index of metrics
}

var errOptions = errors.New("wasmhost: Clock and Handler must be set")

// NewProcess makes a process that has no VM yet. It fails only where an option is missing.
func (m *Module) NewProcess(o Options) (*Process, error) {
	if o.Clock == nil || o.Handler == nil {
		return nil, errOptions
	}
	if o.Log == nil {
		o.Log = func(Level, string) {}
	}
	return &Process{module: m, options: o, byName: map[string]uint32{}}, nil
}

// Shared is the process's shared data.
func (p *Process) Shared() *SharedData { return &p.shared }

// SharedData is Envoy's: values by key, each with the number of the write that it comes from. The
// zero value is empty.
type SharedData struct {
	values map[string]*sharedValue
	writes uint32 // of all keys
}

type sharedValue struct {
	value []byte
	cas   uint32
}

// Get returns a value and its cas. The value may be read until the next Set.
func (d *SharedData) Get(key string) (value []byte, cas uint32, ok bool) {
	v := d.values[key]
	if v == nil {
		return nil, 0, false
	}
	return v.value, v.cas, true
}

// Set stores a copy of the value. With cas 0 it overwrites; another one must be that of the stored
// value, or Set returns false and nothing changes. A key that is missing is made whatever the cas.
func (d *SharedData) Set(key string, value []byte, cas uint32) (ok bool) {
	v := d.values[key]
	if v == nil {
		if d.values == nil {
			d.values = map[string]*sharedValue{}
		}
		v = &sharedValue{}
		d.values[key] = v
	} else if cas != 0 && cas != v.cas {
		return false
	}
	v.value = append(v.value[:0], value...)
	if d.writes++; d.writes == 0 {
		d.writes++ // 0 would overwrite
	}
	v.cas = d.writes
	return true
}

// MetricKind is what a metric counts like.
type MetricKind uint32

// The kinds of Proxy-Wasm.
const (
	Counter MetricKind = iota
	Gauge
	Histogram
)

// Metric is one of the process's metrics, which all VMs share.
type Metric struct {
	Name     string
	Kind     MetricKind
	Value    uint64   // of a counter or a gauge
	Recorded []uint64 // what was recorded in a histogram, oldest first
}

// Metric returns a metric by its name; ok is false if no VM has defined it.
func (p *Process) Metric(name string) (m Metric, ok bool) {
	i, ok := p.byName[name]
	if !ok {
		return Metric{}, false
	}
	return p.metrics[i], true
}

func lookup(headers [][2]string, name string) (string, bool) {
	for _, h := range headers {
		if h[0] == name {
			return h[1], true
		}
	}
	return "", false
}
