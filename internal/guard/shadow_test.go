package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// Mode observe lets everybody go, and counts what mode enforce does with the same requests: here
// who has no room, who waits, and who is admitted afterwards.
func TestObserveDecidesAndDoesNothing(t *testing.T) {
	const uploads = 100
	run := func(mode Mode) (counts [metric.NumCounters]uint64, let int) {
		p := newProcess(t, 1, func(c *Config) {
			c.Mode, c.Buffers.WholeRequest = mode, 0
			c.Buffers.Downstream, c.Buffers.Upstream, c.Buffers.Linger = unit.MiB, unit.MiB, unit.Duration(time.Second)
		})
		p.settle(40 * mib)
		w, g := p.workers[0], p.guards[0]
		var all []*request
		for range uploads {
			r, v := p.open(0, 4*mib)
			all = append(all, r)
			w.Data(p.now, r.connected, 64*kib)
			if v.Action != verdict.Admit && v.Action != verdict.Pass {
				continue
			}
			let++
			require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Request, mib).Action)
		}
		tick := func(n int, inUse int64) {
			for range n {
				p.now += 2 * ms
				a := w.Tick(p.now)
				if mode == Observe {
					require.Nil(t, a.Resume)
					require.Empty(t, a.Rejected)
					require.Empty(t, a.Close)
				}
				for _, s := range a.Close {
					g.Close(p.now, s)
				}
				if a.Ask {
					w.Observe(p.now, memory.Reading{InUse: inUse}, nil)
				}
			}
		}
		tick(100, 190*mib)
		for _, r := range all[:20] { // they were admitted, and have ended
			g.Close(p.now, &r.Stream)
		}
		tick(100, 60*mib)
		return *w.Counts(), let
	}
	enforced, _ := run(Enforce)
	observed, let := run(Observe)
	require.Equal(t, uploads, let, "nobody is held back")
	require.Greater(t, enforced[metric.CountRejected+int(verdict.Closed)-1], uint64(20))
	require.Greater(t, enforced[metric.CountThrottled], uint64(3))
	for _, i := range []int{metric.CountThrottled, metric.CountClosedConnections, metric.CountRejected + int(verdict.Closed) - 1, metric.CountRejected + int(verdict.QueueFull) - 1, metric.CountAdmitted} {
		require.Equal(t, enforced[i], observed[i], metric.Counters()[i].Name)
	}
}

// Where another listener enforces, what this one lets go is memory that the other's requests can't
// have.
func TestObserveBesideEnforceCountsWhatItLetsGo(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Mode = Observe })
	w := p.workers[0]
	w.SetEnforcing(true)
	p.settle(40 * mib)
	for range 100 {
		r, v := p.open(0, 4*mib)
		require.Equal(t, verdict.Admit, v.Action)
		require.False(t, r.Shadow())
	}
	require.Greater(t, w.Account().Own().Coming, 300*mib)
	require.EqualValues(t, 100, w.Counts()[metric.CountAdmitted])
	require.Greater(t, w.Counts()[metric.CountThrottled], uint64(50))
}

func observing(c *Config) { c.Mode = Observe }

// A shadow is counted under one reason, once: it would be gone after the first.
func TestAShadowIsCountedOnce(t *testing.T) {
	p := newProcess(t, 1, observing)
	p.settle(40 * mib)
	w, g := p.workers[0], p.guards[0]
	r, _ := p.open(0, 0)
	p.settle(199 * mib)
	require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, 24*mib).Action)
	require.EqualValues(t, 1, w.Counts()[metric.CountRejected+int(verdict.ResponseSize)-1])
	require.True(t, r.Shadow())
	g.Grow(p.now, &r.Stream, budget.Response, 24*mib)
	require.Equal(t, r.Cap(budget.Response), w.Account().Own().Shadows.Likely, "what it holds is known")
	require.Zero(t, w.Account().Own().Bounds)
	for range 20 {
		p.read(230 * mib)
	}
	sum := uint64(0)
	for _, n := range w.Counts()[metric.CountRejected:] {
		sum += n
	}
	require.EqualValues(t, 1, sum, "it is not evicted too")
	g.Close(p.now, &r.Stream)
	require.Zero(t, w.Account().Own().Shadows.Likely)
}

// A shadow that has waited goes on as what it has become meanwhile: with its bytes, and its
// response.
func TestAShadowGoesOn(t *testing.T) {
	p := newProcess(t, 1, observing)
	p.settle(40 * mib)
	p.settle(176 * mib)
	w, g := p.workers[0], p.guards[0]
	r := &request{connected: p.connection(0), http2: true}
	require.Equal(t, verdict.Pass, g.Open(p.now, &r.Stream, r, 8*mib).Action)
	require.False(t, r.Waiting(), "Envoy does not hold it")
	require.EqualValues(t, 1, p.queue(0).Waiting)
	require.Zero(t, w.Counts()[metric.CountAdmitted])
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Request, 8*mib).Action)
	g.End(p.now, &r.Stream, budget.Request)
	require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, mib).Action)
	p.settle(40 * mib)
	require.Zero(t, p.queue(0).Waiting)
	require.False(t, r.Shadow())
	require.EqualValues(t, 1, w.Counts()[metric.CountAdmitted])
	require.True(t, r.Expected(budget.Response))
	require.Equal(t, r.Cap(budget.Response), r.Reserved(budget.Response), "of what its response can hold nothing has passed yet")
	require.Zero(t, r.Reserved(budget.Request), "all of it has")
	require.Positive(t, w.Account().Own().Likely)
	require.Zero(t, g.Close(p.now, &r.Stream), "nobody has waited")
	require.Zero(t, w.Account().Own().Coming)
}

// Who would have been closed at the first bytes of his connection is counted there, and not again
// with his request. The next one would have come on another connection.
func TestAShadowOfWhoIsClosedAtItsFirstBytes(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { nobodyWaits(c); observing(c) })
	p.settle(40 * mib)
	w, g := p.workers[0], p.guards[0]
	for range 35 {
		p.open(0, 4*mib)
	}
	p.read(200*mib - 512*kib)
	for w.Counts()[metric.CountClosedConnections] == 0 {
		p.open(0, 4*mib)
	}
	c, counts := p.connection(0), *w.Counts()
	require.False(t, w.Data(p.now, c, mib), "it is let go")
	counted := func(closed int) {
		t.Helper()
		require.EqualValues(t, closed, w.Counts()[metric.CountRejected+int(verdict.Closed)-1]-counts[metric.CountRejected+int(verdict.Closed)-1])
		require.EqualValues(t, closed, w.Counts()[metric.CountClosedConnections]-counts[metric.CountClosedConnections])
	}
	counted(1)
	first := &request{connected: c}
	require.Equal(t, verdict.Pass, g.Open(p.now, &first.Stream, first, 4*mib).Action)
	require.True(t, first.Shadow())
	counted(1)
	g.Close(p.now, &first.Stream)
	next := &request{connected: c}
	require.Equal(t, verdict.Pass, g.Open(p.now, &next.Stream, next, 4*mib).Action)
	counted(2)
}

// What waits holds its client's bytes back, and a shadow does not: only what would have come
// counts.
func TestWhatAShadowBringsBeyondWhatWouldHaveCome(t *testing.T) {
	p := newProcess(t, 1, observing)
	p.settle(40 * mib)
	p.settle(180 * mib)
	w := p.workers[0]
	r, v := p.open(0, 8*mib)
	require.Equal(t, verdict.Pass, v.Action)
	require.EqualValues(t, 1, p.queue(0).Waiting)
	for range 4 {
		w.Data(p.now, r.connected, mib)
		p.read(180 * mib)
	}
	require.Zero(t, w.Account().Own().Fresh)
	require.EqualValues(t, 1, p.queue(0).Waiting)
}

// A configuration that turns from observe to enforce finds shadows in the queue. They leave it
// after their timeout, as before.
func TestShadowsInLineWhenAnotherListenerEnforces(t *testing.T) {
	p := newProcess(t, 1, observing)
	w := p.workers[0]
	p.settle(40 * mib)
	for range 100 {
		_, v := p.open(0, 4*mib)
		require.NotEqual(t, verdict.Wait, v.Action)
	}
	require.Positive(t, w.Account().Own().Queue.Waiting)
	w.SetEnforcing(true)
	for range 200 {
		p.read(199 * mib)
	}
	require.Zero(t, w.Account().Own().Queue.Waiting)
	require.Positive(t, w.Counts()[metric.CountRejected+int(verdict.Timeout)-1]+w.Counts()[metric.CountRejected+int(verdict.Closed)-1])
}
