package guard

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

const (
	kib = int64(unit.KiB)
	mib = int64(unit.MiB)
	ms  = time.Millisecond
)

// process is some workers over one table, with a clock that the test moves.
type process struct {
	t       *testing.T
	now     Time
	store   budget.Store
	workers []*Worker
	guards  []*Guard
	nextID  uint32
}

func newProcess(t *testing.T, workers int, edit func(*Config)) *process {
	t.Helper()
	return newProcessOn(t, &budget.Memory{}, workers, edit)
}

func newProcessOn(t *testing.T, store budget.Store, workers int, edit func(*Config)) *process {
	t.Helper()
	c := example()
	if edit != nil {
		edit(&c)
	}
	require.NoError(t, c.Validate())
	p := &process{t: t, now: time.Hour, store: store}
	for range workers {
		w, err := NewWorker(p.store, rand.New(rand.NewPCG(1, 2)).Float64)
		require.NoError(t, err)
		g, changed := New(c, w)
		require.Empty(t, changed)
		p.workers, p.guards = append(p.workers, w), append(p.guards, g)
	}
	return p
}

// example is the configuration of the shipped example: 200 MiB, 64 KiB buffers.
func example() Config {
	c := Default()
	c.Budget.Limit.Bytes = 200 * unit.MiB
	c.Buffers = Buffers{
		Downstream: 64 * unit.KiB, Upstream: 64 * unit.KiB, HTTP2Window: 64 * unit.KiB,
		HTTP2ConnectionWindow: 16 * unit.MiB, Linger: unit.Duration(100 * ms), WholeRequest: 16 * unit.MiB,
	}
	return c
}

// read gives the process a reading that is asked for and answered now, then ticks all workers, so
// that all know it.
func (p *process) read(inUse int64) {
	p.t.Helper()
	for i := 0; ; i++ {
		p.now += 25 * ms
		for _, w := range p.workers {
			if a := w.Tick(p.now); a.Ask {
				w.Observe(p.now, memory.Reading{InUse: inUse, Allocated: inUse}, nil)
				p.now += ms
				for _, w := range p.workers {
					w.Tick(p.now)
				}
				return
			}
		}
		require.Less(p.t, i, 100, "nobody asks for a reading")
	}
}

// settle gives so many readings that all that has passed is in one.
func (p *process) settle(inUse int64) {
	p.t.Helper()
	for range 3 {
		p.read(inUse)
	}
}

func (p *process) connection(worker int) *Connection {
	p.nextID++
	c := &Connection{Context: p.nextID}
	p.guards[worker].OpenConnection(p.now, c, peer("10.0.0.1"))
	return c
}

func (p *process) open(worker int, length int64) (*request, Verdict) {
	r := &request{connected: p.connection(worker)}
	return r, p.guards[worker].Open(p.now, &r.Stream, r, length)
}

func (p *process) estimate() int64 {
	t := p.workers[0].Account().Table()
	var sum int64
	for _, w := range p.workers {
		own := w.Account().Own()
		sum += own.Fresh + own.Coming
	}
	return t.Reading + sum
}

// nobodyWaits, and the buffers are Envoy's defaults.
func nobodyWaits(c *Config) {
	c.Throttle.Timeout = 0
	c.Buffers.Downstream, c.Buffers.HTTP2Window, c.Buffers.Linger = unit.MiB, 16*unit.MiB, unit.Duration(time.Second)
	c.Buffers.HTTP2ConnectionWindow = 24 * unit.MiB
}

func bigBuffers(c *Config) { c.Buffers.Downstream, c.Buffers.Upstream = unit.MiB, unit.MiB }

// request is a client's: what Envoy would tell of it.
type request struct {
	Stream
	http2     bool
	connected *Connection
	path      string
	hostCalls int
	headers   int64
	route     string
	cluster   string
	tenant    string
	bodyLimit int64
	hides     [2]bool
	untold    bool
}

func (r *request) HTTP2() bool             { r.hostCalls++; return r.http2 }
func (r *request) Connection() *Connection { r.hostCalls++; return r.connected }

func (r *request) HeaderBytes() int64 {
	if r.Arrived() != nil {
		r.hostCalls++
	}
	return r.headers
}

func (r *request) Arrived() *Connection {
	if r.connected == nil || r.connected.Context == 0 {
		return nil
	}
	return r.connected
}
func (r *request) BodyLimit() int64     { return r.bodyLimit }
func (r *request) Path() string         { r.hostCalls++; return r.path }
func (r *request) Route() string        { r.hostCalls++; return r.route }
func (r *request) Cluster() string      { r.hostCalls++; return r.cluster }
func (r *request) VirtualHost() string  { r.hostCalls++; return "" }
func (r *request) Source() string       { r.hostCalls++; return "" }
func (r *request) Header(string) string { r.hostCalls++; return r.tenant }

func (r *request) Describe(header string) reservoir.Labels {
	r.hostCalls++
	l := reservoir.Labels{VirtualHost: "all", Route: r.route, Cluster: r.cluster, Source: "10.0.0.1", Protocol: "HTTP/1.1"}
	if header != "" {
		l.Key = r.tenant
	}
	return l
}

func (r *request) Visibility(d budget.Direction) budget.Visibility {
	switch {
	case !r.hides[d]:
		return budget.Counted
	case d == budget.Response && r.untold:
		return budget.Silent
	}
	return budget.Announced
}

// hidden is a request of whose bodies nothing is told.
func hidden() *request { return &request{hides: [2]bool{true, true}} }

// burst opens requests of one key, all at once, and returns those that are admitted.
func (p *process) burst(n int) (admitted []*request) {
	for range n {
		r := &request{hides: [2]bool{true, true}}
		if p.guards[0].Open(p.now, &r.Stream, r, 0).Action == verdict.Admit {
			admitted = append(admitted, r)
		}
	}
	return admitted
}
