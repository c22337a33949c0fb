package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

func TestRequestGrowth(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g := p.guards[0]
	r, v := p.open(0, budget.Unknown)
	require.Equal(t, verdict.Admit, v.Action, "64 KiB are forecast at first: that is small")
	require.Equal(t, 64*kib, r.Reserved(budget.Request))
	// It passes its forecast, reserves twice what it has sent, and teaches the next one.
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Request, 100*kib).Action)
	require.Equal(t, 100*kib, r.Reserved(budget.Request))
	require.Greater(t, p.forecast(0, "", budget.Request), 100*kib)
	p.settle(199 * mib)
	v = g.Grow(p.now, &r.Stream, budget.Request, 4*mib)
	require.Equal(t, verdict.Growth, v.Reason)
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Request, 4*mib).Action, "one verdict, not two")
	g.Close(p.now, &r.Stream)
	require.Zero(t, p.workers[0].Account().Own().Coming)
}

func TestLapsedRequestNeedsRoom(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	r, v := p.open(0, 4*mib)
	require.Equal(t, verdict.Admit, v.Action)
	p.now += 3 * time.Second
	p.settle(210 * mib)
	require.Zero(t, r.Reserved(budget.Request))
	require.Equal(t, verdict.Growth, p.guards[0].Grow(p.now, &r.Stream, budget.Request, mib).Reason)
}

func TestForecastsLearn(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Throttle.Timeout, c.Evict = 0, false })
	p.settle(40 * mib)
	forecast := func() int64 { return p.forecast(0, "", budget.Request) }
	r, _ := p.open(0, budget.Unknown)
	p.guards[0].Grow(p.now, &r.Stream, budget.Request, 20*kib)
	before := forecast()
	p.guards[0].End(p.now, &r.Stream, budget.Request)
	require.NotEqual(t, before, forecast(), "from who has ended")

	r, _ = p.open(0, budget.Unknown)
	p.guards[0].Grow(p.now, &r.Stream, budget.Request, 10*kib)
	p.now += 3 * time.Second // what is reserved for it lapses
	p.settle(40 * mib)
	before = forecast()
	p.settle(210 * mib)
	require.Equal(t, verdict.Growth, p.guards[0].Grow(p.now, &r.Stream, budget.Request, kib).Reason)
	p.settle(40 * mib)
	require.NotEqual(t, before, forecast(), "and from who is rejected")
}

func TestResponses(t *testing.T) {
	big := func(c *Config) { c.Buffers.Upstream, c.Buffers.Downstream = unit.MiB, unit.MiB }
	t.Run("a large one without room is rejected at its headers, a small one passes", func(t *testing.T) {
		p := newProcess(t, 1, big)
		p.settle(40 * mib)
		r, _ := p.open(0, 0)
		p.settle(199 * mib)
		v := p.guards[0].Expect(p.now, &r.Stream, 16*mib)
		require.Equal(t, verdict.Answer, v.Action)
		require.Equal(t, verdict.ResponseSize, v.Reason)
		require.Equal(t, uint64(1), p.workers[0].Counts()[metric.CountRejectedResponses])
		r, _ = p.open(0, 0)
		require.Equal(t, verdict.Admit, p.guards[0].Expect(p.now, &r.Stream, 64*kib).Action)
	})
	t.Run("one that outgrows its forecast is reset only when large and without room", func(t *testing.T) {
		p := newProcess(t, 1, big)
		p.settle(40 * mib)
		r, _ := p.open(0, 0)
		require.Equal(t, verdict.Admit, p.guards[0].Expect(p.now, &r.Stream, budget.Unknown).Action)
		p.settle(201 * mib)
		require.Equal(t, verdict.Admit, p.guards[0].Grow(p.now, &r.Stream, budget.Response, 64*kib).Action)
		v := p.guards[0].Grow(p.now, &r.Stream, budget.Response, 64*kib)
		require.Equal(t, Verdict{Action: verdict.Reset, Reason: verdict.Growth}, v)
	})
	// Testing a lapsed response's bytes against the estimate cut 994 of 1,000 slow readers at 0.8
	// of the budget.
	t.Run("what was once reserved is never a reason to cut it", func(t *testing.T) {
		p := newProcess(t, 1, big)
		p.settle(40 * mib)
		r, _ := p.open(0, 0)
		require.Equal(t, verdict.Admit, p.guards[0].Expect(p.now, &r.Stream, 16*mib).Action)
		p.settle(230 * mib)
		p.now += time.Second
		p.workers[0].Tick(p.now)
		require.Zero(t, r.Reserved(budget.Response), "it lapsed")
		for range 64 {
			require.Equal(t, verdict.Admit, p.guards[0].Grow(p.now, &r.Stream, budget.Response, 64*kib).Action)
		}
	})
	t.Run("slow readers teach the forecast though they never complete", func(t *testing.T) {
		p := newProcess(t, 1, big)
		p.settle(40 * mib)
		r, _ := p.open(0, 0)
		p.guards[0].Expect(p.now, &r.Stream, budget.Unknown)
		for range 20 {
			p.guards[0].Grow(p.now, &r.Stream, budget.Response, 64*kib)
		}
		r2, _ := p.open(0, 0)
		p.guards[0].Expect(p.now, &r2.Stream, budget.Unknown)
		require.Greater(t, r2.Reserved(budget.Response), mib)
	})
}

// What a large response left unread stays in the books with its connection, until the next request
// comes there.
func TestUnreadResponseStaysWithItsConnection(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	r, _ := p.open(0, 0)
	p.guards[0].Expect(p.now, &r.Stream, mib)
	p.guards[0].Grow(p.now, &r.Stream, budget.Response, mib)
	p.guards[0].End(p.now, &r.Stream, budget.Response)
	p.guards[0].Close(p.now, &r.Stream)
	require.Equal(t, 128*kib, p.workers[0].Account().Own().Bounds)
	p.workers[0].Data(p.now, r.connected, 100)
	require.Zero(t, p.workers[0].Account().Own().Bounds)
}
