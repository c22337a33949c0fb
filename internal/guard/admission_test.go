package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

func TestAdmitsWhatFitsAndLetsTheRestWait(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	var admitted, waiting []*request
	for range 100 {
		r, v := p.open(0, 4*mib)
		switch v.Action {
		case verdict.Admit:
			admitted = append(admitted, r)
		case verdict.Wait:
			waiting = append(waiting, r)
		default:
			t.Fatalf("%v", v)
		}
		require.LessOrEqual(t, p.estimate(), 200*mib)
	}
	// T(hard) = 40 + 0.9 × 160 = 184 MiB: 144 for uploads of 4 MiB, less the connections and
	// streams themselves.
	require.InDelta(t, 35, len(admitted), 1)
	require.Len(t, waiting, 100-len(admitted))

	small, v := p.open(0, 0)
	require.Equal(t, verdict.Admit, v.Action, "a GET passes those who wait")
	g.Close(p.now, &small.Stream)

	// As admitted ones end, the first in the queue go on, one per tick.
	p.settle(40 * mib)
	for i := range 10 {
		g.Close(p.now, &admitted[i].Stream)
	}
	var resumed []*Stream
	for range 20 {
		p.now += 5 * ms
		if a := w.Tick(p.now); a.Resume != nil {
			require.Equal(t, FastTick, a.Next)
			resumed = append(resumed, a.Resume)
		}
	}
	require.InDelta(t, 10, len(resumed), 1)
	all := append(admitted, waiting...)
	for i, s := range resumed {
		if i == 0 { // what was fresh of those who wait is in the readings now, so that the first may have gone already
			for &waiting[0].Stream != s {
				require.False(t, waiting[0].Waiting(), "first come, first served")
				waiting = waiting[1:]
			}
		}
		require.Same(t, &waiting[i].Stream, s, "first come, first served")
	}
	for _, r := range all {
		g.Close(p.now, &r.Stream)
	}
	require.Zero(t, w.Account().Own().Coming)
	require.Zero(t, w.Account().Own().Streams)
	require.Zero(t, p.queue(0).Waiting)
}

func TestTooLargeIsRejectedAtOnce(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Buffers.WholeRequest = unit.GiB })
	p.settle(40 * mib)
	_, v := p.open(0, 150*mib)
	require.Equal(t, Verdict{Action: verdict.Answer, Reason: verdict.TooLarge}, v, "no retry-after: it will never fit")
	_, v = p.open(0, 140*mib)
	require.Equal(t, verdict.Admit, v.Action)
}

// What Envoy may hold of a message, by its own settings: docs/envoy-facts.md has each.
func TestCaps(t *testing.T) {
	const down, up, window = 256 * kib, 512 * kib, 4 * mib
	for _, c := range []struct {
		name                     string
		http2                    bool
		whole                    int64
		request, pause, response int64
	}{
		{"HTTP/1", false, 0, 2 * down, 2 * down, up + down},
		{"HTTP/1, buffered", false, 16 * mib, 16 * mib, 2 * down, up + down},
		{"HTTP/2", true, 0, 2 * window, 2 * window, up + window},
		{"HTTP/2, buffered", true, 16 * mib, 16 * mib, 2 * window, up + window},
	} {
		for _, length := range []int64{budget.Unknown, 20 * mib} {
			p := newProcess(t, 1, func(g *Config) {
				g.Buffers.Downstream, g.Buffers.Upstream, g.Buffers.HTTP2Window = unit.Bytes(down), unit.Bytes(up), unit.Bytes(window)
				g.Buffers.WholeRequest, g.Budget.Limit.Bytes = unit.Bytes(c.whole), unit.GiB
			})
			p.settle(40 * mib)
			r := &request{connected: p.connection(0), http2: c.http2}
			p.guards[0].Open(p.now, &r.Stream, r, length)
			require.Equal(t, c.request, r.Cap(budget.Request), c.name)
			p.guards[0].Expect(p.now, &r.Stream, length)
			require.Equal(t, c.response, r.Cap(budget.Response), c.name)
			p.settle(925*mib + 500*kib)
			waiting := &request{connected: p.connection(0), http2: c.http2}
			v := p.guards[0].Open(p.now, &waiting.Stream, waiting, length)
			if length == budget.Unknown {
				continue // it is small
			}
			require.Equal(t, verdict.Wait, v.Action, c.name)
			require.Equal(t, c.pause, p.queue(0).Held, c.name)
		}
	}
}

// Envoy keeps a request's headers about three times, for as long as it lives.
func TestLargeHeadersAreKept(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	c := p.connection(0)
	open := func(came, headers int64) (*request, Verdict) {
		w.Data(p.now, c, came)
		r := &request{connected: c, headers: headers}
		return r, g.Open(p.now, &r.Stream, r, 0)
	}
	ordinary, _ := open(4*kib-1, 56*kib)
	require.Zero(t, ordinary.Kept(), "so little has come that nobody is asked")

	r, v := open(56*kib, 56*kib)
	require.Equal(t, verdict.Admit, v.Action)
	require.Equal(t, 168*kib, r.Kept())
	require.NotEqual(t, presumed, r.state, "it is judged")
	require.Equal(t, 168*kib, w.Account().Own().Likely)
	p.now += 20 * time.Second
	p.settle(40 * mib)
	require.Equal(t, 168*kib, w.Account().Own().Likely, "they don't become less likely")

	next, _ := open(100, 56*kib)
	require.Zero(t, next.Kept(), "what has come is for the request before")
	upload, _ := open(mib, 2*kib)
	require.Zero(t, upload.Kept(), "much has come, but it is the body")

	p.settle(230 * mib)
	late, v := open(56*kib, 56*kib)
	require.NotEqual(t, verdict.Admit, v.Action, "with its headers it is no small request, and there is no room")
	for _, r := range []*request{ordinary, r, next, upload, late} {
		g.Close(p.now, &r.Stream)
	}
	p.settle(40 * mib)
	require.Zero(t, w.Account().Own().Likely)
	require.Zero(t, w.held)
}

// Without the floor a lasting overload locks every bystander out: rejecting what costs nothing
// frees nothing.
func TestFloorIsAStock(t *testing.T) {
	p := newProcess(t, 2, func(c *Config) { c.Throttle.Timeout = 0 })
	p.settle(230 * mib)
	_, v := p.open(0, 0)
	require.Equal(t, verdict.Admit, v.Action)
	admitted := 0
	for i := range 6000 {
		if _, v := p.open(i%2, 40*kib); v.Action == verdict.Admit {
			admitted++
		}
	}
	// 5 % of 200 MiB are 256 requests of 40 KiB, of all workers together.
	require.InDelta(t, 256, admitted, 1)
	_, v = p.open(1, 0)
	require.Equal(t, verdict.Admit, v.Action, "what brings nothing is let in all the same")
}

func TestSmallStreamLeavesTheSmallSumWhenItGrows(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	r, v := p.open(0, 0)
	require.Equal(t, verdict.Admit, v.Action)
	require.Equal(t, verdict.Admit, p.guards[0].Expect(p.now, &r.Stream, 60*kib).Action)
	require.Equal(t, 60*kib, p.workers[0].Account().Own().Small)
	p.workers[0].Tick(p.now) // the first of each is judged
	r2, _ := p.open(0, 0)
	p.guards[0].Expect(p.now, &r2.Stream, 65*kib)
	require.Equal(t, 60*kib, p.workers[0].Account().Own().Small, "a response of more than small makes it large")
	p.workers[0].Tick(p.now)
	r3, _ := p.open(0, 0)
	p.guards[0].Expect(p.now, &r3.Stream, budget.Unknown)
	for range 5 {
		p.guards[0].Grow(p.now, &r3.Stream, budget.Response, 16*kib)
	}
	require.False(t, r3.Small())
	require.Equal(t, 60*kib, p.workers[0].Account().Own().Small)
}

func TestStale(t *testing.T) {
	for _, c := range []struct {
		on    string
		large verdict.Action
	}{{"estimate", verdict.Admit}, {"admit", verdict.Admit}, {"reject", verdict.Answer}} {
		t.Run(c.on, func(t *testing.T) {
			p := newProcess(t, 1, func(cfg *Config) { cfg.Memory.OnStale, cfg.Throttle.Timeout = c.on, 0 })
			p.settle(40 * mib)
			p.settle(199 * mib)
			_, v := p.open(0, 4*mib)
			require.NotEqual(t, verdict.Admit, v.Action, "with a reading of 199 there is no room")
			p.now += 1100 * ms
			p.workers[0].Tick(p.now)
			// A frozen reading of 199 must not lock everyone out for as long as the admin is down.
			r, v := p.open(0, 4*mib)
			require.Equal(t, c.large, v.Action)
			if c.on == "reject" {
				require.Equal(t, verdict.NoReading, v.Reason)
				_, v = p.open(0, 0)
				require.Equal(t, verdict.Answer, v.Action)
			}
			if c.on == "estimate" {
				p.guards[0].Grow(p.now, &r.Stream, budget.Request, 4*mib)
				n := 1
				for range 100 {
					if _, v := p.open(0, 4*mib); v.Action == verdict.Admit {
						n++
					}
				}
				require.InDelta(t, 35, n, 1, "base 40 + what live streams can hold stays under 184")
			}
		})
	}
}

func TestBeforeTheFirstReadingItEstimatesFromZero(t *testing.T) {
	p := newProcess(t, 1, nil)
	n := 0
	for range 100 {
		if _, v := p.open(0, 4*mib); v.Action == verdict.Admit {
			n++
		}
	}
	require.InDelta(t, 45, n, 1)
}
