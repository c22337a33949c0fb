package guard

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/memory"
)

// The hot path is every request of every user.
func TestNoAllocationAndFewHostCalls(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	r := &request{connected: p.connection(0)}
	g := p.guards[0]
	exchange := func() {
		g.Open(p.now, &r.Stream, r, 32*kib)
		g.Grow(p.now, &r.Stream, budget.Request, 32*kib)
		g.End(p.now, &r.Stream, budget.Request)
		g.Expect(p.now, &r.Stream, 5*kib)
		g.Grow(p.now, &r.Stream, budget.Response, 5*kib)
		g.End(p.now, &r.Stream, budget.Response)
		g.Close(p.now, &r.Stream)
	}
	exchange()
	require.Equal(t, 2, r.hostCalls, "the first request of a connection is asked on which it is, and each one by whom")
	r.hostCalls = 0
	before := p.workers[0].Account().Exchanges
	require.Zero(t, testing.AllocsPerRun(20, exchange))
	require.Equal(t, 21, r.hostCalls)
	require.Equal(t, before, p.workers[0].Account().Exchanges, "the lease is enough for twenty")

	c := *g.Config()
	c.Fairness.By = config.ByNone
	g, _ = New(c, p.workers[0])
	require.Zero(t, testing.AllocsPerRun(20, exchange))
	require.Equal(t, 21, r.hostCalls)
}

// BenchmarkRequest prints what a request costs without tracing, with it, and where memory is so
// high that a mark may come; and what a chunk of an upload does.
func BenchmarkRequest(b *testing.B) {
	for _, c := range []struct {
		name     string
		capacity int
		inUse    int64
	}{{"cold-untraced", 0, 40 * mib}, {"cold-traced", 512, 40 * mib}, {"warm-untraced", 0, 60 * mib}, {"warm-traced", 512, 60 * mib}} {
		b.Run(c.name, func(b *testing.B) {
			w, err := NewWorker(&budget.Memory{}, rand.New(rand.NewPCG(1, 2)).Float64)
			if err != nil {
				b.Fatal(err)
			}
			config := example()
			config.Trace.Capacity = c.capacity
			g, _ := New(config, w)
			r := &request{connected: &Connection{}}
			now, inUse := time.Hour, 40*mib
			read := func() {
				for {
					now += 25 * ms
					if w.Tick(now).Ask {
						w.Observe(now, memory.Reading{InUse: inUse}, nil)
						inUse = c.inUse
						return
					}
				}
			}
			read()
			read()
			b.Run("request", func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if i%500 == 0 {
						read() // 20,000 requests per second
					}
					g.Open(now, &r.Stream, r, 32*kib)
					g.Grow(now, &r.Stream, budget.Request, 32*kib)
					g.End(now, &r.Stream, budget.Request)
					g.Expect(now, &r.Stream, 5*kib)
					g.Grow(now, &r.Stream, budget.Response, 5*kib)
					g.End(now, &r.Stream, budget.Response)
					g.Close(now, &r.Stream)
				}
			})
			b.Run("chunk", func(b *testing.B) {
				b.ReportAllocs()
				g.Open(now, &r.Stream, r, budget.Unknown)
				g.Grow(now, &r.Stream, budget.Request, 16*kib)
				for b.Loop() {
					g.Grow(now, &r.Stream, budget.Request, 1)
				}
				g.Close(now, &r.Stream)
			})
		})
	}
}
