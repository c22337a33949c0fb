package main

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/introspect"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// vm is what all plugins of one worker share: Envoy runs them in one virtual machine.
type vm struct {
	types.DefaultVMContext
	worker      *guard.Worker
	stats       stats
	connections map[uint64]*guard.Connection // by Envoy's connection.id
	arrived     *guard.Connection            // on which bytes came last
	free        []*stream                    // to be used again
	done        []*stream                    // since the last tick: Envoy deletes a context a little later than it is done
	now         budget.Time                  // as of the last tick or reading
	ticked      budget.Time
	pacer       *plugin // whose ticks count: each plugin has its own, and one is enough
	ticking     *plugin // whose tick it is: host calls are for its context, until another is made the effective one
	gauged      budget.Time
	measured    budget.Time
	looking     introspect.Waiting[*stream] // who waits for an answer of all workers
	setup       setup
}

var machine = vm{connections: map[uint64]*guard.Connection{}, setup: setup{plugins: map[*plugin]struct{}{}}}

// start makes the worker when the first plugin of the virtual machine starts.
func (v *vm) start() error {
	if v.worker != nil {
		return nil
	}
	if err := v.stats.define(); err != nil {
		return err
	}
	v.now = now()
	worker, err := guard.NewWorker(table{}, rand.New(rand.NewPCG(uint64(v.now), 0)).Float64)
	if err != nil {
		return err
	}
	v.worker = worker
	if worker.Account().Refresh(v.now) != nil {
		v.hostError()
	}
	v.setup.late = v.now-worker.Account().Table().Begun > lateAfter
	return nil
}

// mark looks at the clock between two ticks, where it is worth the call of the host.
func (v *vm) mark() {
	if v.worker.Marks() {
		v.now = now()
		v.worker.Mark(v.now)
	}
}

// enforce tells the worker whether any of its plugins enforces. Like hostError it is not inlined:
// start-up is V8 compiling bytes.
//
//go:noinline
func (v *vm) enforce() { v.worker.SetEnforcing(v.setup.mode() == guard.Enforce) }

// hostError counts a call of the host that failed.
//
//go:noinline
func (v *vm) hostError() {
	if v.worker != nil {
		v.worker.HostError()
	}
}

// NewPluginContext implements types.VMContext.
func (v *vm) NewPluginContext(id uint32) types.PluginContext { return &plugin{id: id} }

// plugin is one configuration of ours on a listener.
type plugin struct {
	types.DefaultPluginContext
	id      uint32
	network bool // root_id: connections
	guard   *guard.Guard
	period  time.Duration // of its ticks
	looked  bool          // whether the network filter knows its connections
}

var _ types.PluginContext = (*plugin)(nil)

// OnPluginStart implements types.PluginContext. It fails closed: Envoy does not start with, or does
// not take over, a configuration that is wrong, and a running one stays.
func (p *plugin) OnPluginStart(int) types.OnPluginStartStatus {
	if err := p.start(); err != nil {
		proxywasm.LogCriticalf("highwater: the configuration is refused:\n%v", err)
		return types.OnPluginStartStatusFailed
	}
	return types.OnPluginStartStatusOK
}

func (p *plugin) start() error {
	switch root := property("plugin_root_id"); root {
	case "requests":
	case "connections":
		p.network = true
	default:
		return fmt.Errorf("root_id: %q must be requests (in http_filters) or connections (in the listener's filters)", root)
	}
	text, err := proxywasm.GetPluginConfiguration()
	if err != nil {
		return fmt.Errorf("configuration: none: it needs at least {\"budget\": {\"limit\": \"512MiB\"}} as a google.protobuf.StringValue (%w)", err)
	}
	config, err := guard.Parse(text)
	if err != nil {
		return err
	}
	if err := machine.start(); err != nil {
		return err
	}
	g, changed := guard.New(config, machine.worker)
	p.guard = g
	machine.now = now()
	machine.setup.join(p, changed)
	machine.enforce()
	machine.pacer = p // of the plugins that are there the newest is likely to stay longest
	return p.setTick(guard.Tick)
}

// OnTick implements types.PluginContext.
func (p *plugin) OnTick() {
	defer survive()
	trapTick()
	t := now()
	machine.now = t
	if p.guard == nil {
		return
	}
	if !machine.paces(p, t) {
		_ = p.setTick(guard.SlowTick) // the other's ticks do it, as long as there are any
		return
	}
	machine.pacer, machine.ticked = p, t
	machine.ticking = p
	defer func() { machine.ticking = nil }()
	a := machine.worker.Tick(t)
	if a.Ask {
		p.ask()
	}
	logEvent(a.Event, a.Severity)
	if a.Resume != nil || len(a.Rejected) > 0 || len(a.Close) > 0 || len(a.Cut) > 0 || len(a.Idle) > 0 {
		p.carryOut(a)
	}
	machine.setup.introduce(t)
	if p.answerLooking(t) {
		a.Next = guard.FastTick
	}
	machine.free = append(machine.free, machine.done...)
	machine.done = machine.done[:0]
	p.publish(t, a.Polls)
	_ = p.setTick(a.Next)
}

// paces says whether this plugin's ticks are those that count.
func (v *vm) paces(p *plugin, now budget.Time) bool {
	return v.pacer == p || v.pacer == nil || now-v.ticked >= guard.SlowTick
}

// OnPluginDone implements types.PluginContext: its listener, or its configuration, is going.
func (p *plugin) OnPluginDone() bool {
	if machine.pacer == p {
		machine.pacer = nil
	}
	if p.guard != nil {
		p.guard.Retire()
		machine.setup.leave(p)
		machine.enforce()
	}
	return true
}

// carryOut does what the guard decided for those who wait. For each stream and each connection it
// is the only call of this tick that ends it, and one request is resumed at most: else Envoy
// crashes.
func (p *plugin) carryOut(a *guard.Actions) {
	if a.Resume != nil {
		s := streamOf(a.Resume)
		machine.stats.wait.Record(uint64(a.Waited.Milliseconds()))
		if p.on(s.id) {
			s.mark(verdict.Verdict{Waited: a.Waited})
			if err := proxywasm.ResumeHttpRequest(); err != nil {
				machine.hostError()
			}
		}
	}
	for _, d := range a.Rejected {
		if d.Verdict.Waited > 0 {
			machine.stats.wait.Record(uint64(d.Verdict.Waited.Milliseconds()))
		}
		s := streamOf(d.Stream)
		if p.on(s.id) {
			s.mark(d.Verdict)
			if d.Verdict.Action != verdict.Close {
				s.answer(d.Verdict) // Envoy resets one whose response has begun
			}
		}
	}
	p.closeConnections(a)
	p.on(p.id)
}

// closeConnections closes those of requests that were rejected, those that send too much, and those
// that are idle.
func (p *plugin) closeConnections(a *guard.Actions) {
	for _, c := range a.Close {
		s := streamOf(c)
		if p.on(s.network) && proxywasm.CloseDownstream() == nil {
			continue
		}
		machine.hostError()
		if p.on(s.id) { // it must not hang for ever
			s.answer(verdict.Verdict{Action: verdict.Answer, Reason: verdict.Closed})
		}
	}
	for _, list := range [...][]*guard.Connection{a.Cut, a.Idle} {
		for _, c := range list {
			if !p.on(c.Context) || proxywasm.CloseDownstream() != nil {
				machine.hostError()
			}
		}
	}
}

// on makes the context the one that host calls are for.
func (p *plugin) on(id uint32) bool {
	if id == 0 || proxywasm.SetEffectiveContext(id) != nil {
		machine.hostError()
		return false
	}
	return true
}

// setTick sets the period of this plugin's ticks. A failure is counted: the period stays, and the
// next tick tries again.
func (p *plugin) setTick(period time.Duration) error {
	if period == p.period {
		return nil
	}
	if err := proxywasm.SetTickPeriodMilliSeconds(uint32(period.Milliseconds())); err != nil {
		machine.hostError()
		return fmt.Errorf("ask for a tick each %v: %w", period, err)
	}
	p.period = period
	return nil
}

// hurry has the next tick come after so long at the latest.
func (p *plugin) hurry(period time.Duration) {
	if machine.pacer == nil || period < machine.pacer.period {
		machine.pacer = p
		_ = p.setTick(period)
	}
}

// wake is for callbacks of streams and connections: after a long time without either, ticks are
// rare.
func (p *plugin) wake() {
	if machine.worker.Sleeps {
		p.wakeUp()
	}
}

func (p *plugin) wakeUp() {
	machine.now = now()
	machine.worker.Wake(machine.now)
	p.hurry(guard.Tick)
}

func (p *plugin) publish(t budget.Time, polls bool) {
	machine.stats.count(machine.worker.Counts())
	if !polls {
		machine.stats.forget() // another virtual machine sets the gauges now
	} else if t-machine.gauged >= 200*time.Millisecond {
		machine.gauged = t
		machine.stats.gauge(machine.worker.Gauges(t))
	}
	if t-machine.measured >= 10*time.Second {
		machine.measured = t
		machine.worker.SetVM(vmBytes())
	}
}

// ask asks Envoy's admin interface for a reading.
func (p *plugin) ask() {
	m := machine.worker.Memory()
	_, err := proxywasm.DispatchHttpCall(m.Cluster, [][2]string{
		{":method", "GET"}, {":path", m.Path}, {":authority", "highwater"},
	}, nil, nil, uint32(machine.worker.AskTimeout().Milliseconds()), func(_, bodySize, _ int) {
		defer survive()
		r, err := reading(bodySize)
		p.observe(r, err)
	})
	if err != nil {
		p.observe(memory.Reading{}, &memory.Failure{
			Cause: memory.CauseNoCluster, Err: fmt.Errorf("the call is refused, most likely because there is no such cluster (%w)", err),
		})
	}
}

func (p *plugin) observe(r memory.Reading, err error) {
	machine.now = now()
	if event := machine.worker.Observe(machine.now, r, err); event != "" {
		proxywasm.LogWarn("highwater: " + event)
	}
}

const (
	maxReading = 64 << 10
	maxShown   = 160 // bytes of an answer that is another
)

func reading(size int) (memory.Reading, error) {
	headers, err := proxywasm.GetHttpCallResponseHeaders()
	if err != nil || len(headers) == 0 {
		return memory.Reading{}, &memory.Failure{Cause: memory.CauseSlow, Err: fmt.Errorf("no answer within %v", machine.worker.AskTimeout())}
	}
	for _, h := range headers {
		if h[0] == ":status" && h[1] != "200" {
			status, _ := strconv.Atoi(h[1])
			text, _ := proxywasm.GetHttpCallResponseBody(0, min(size, maxShown))
			return memory.Reading{}, memory.StatusFailure(status, string(text))
		}
	}
	if size > maxReading {
		return memory.Reading{}, fmt.Errorf("the answer has %d bytes, more than %d", size, maxReading)
	}
	body, err := proxywasm.GetHttpCallResponseBody(0, size)
	if err != nil {
		return memory.Reading{}, fmt.Errorf("the answer has no body: %w", err)
	}
	return memory.Parse(body)
}

// NewHttpContext implements types.PluginContext. The SDK asks it first, for connections too, which
// must be refused.
func (p *plugin) NewHttpContext(id uint32) types.HttpContext {
	if p.network {
		return nil
	}
	return newStream(p, id)
}

// NewTcpContext implements types.PluginContext.
func (p *plugin) NewTcpContext(id uint32) types.TcpContext { return &connection{plugin: p, id: id} }
