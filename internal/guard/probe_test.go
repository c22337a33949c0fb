package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/forecast"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// A burst of requests of a key of which nothing is known: the first few are let see. Where their
// responses are small, all go on; where they are large, the others wait for room, at once.
func TestHiddenBurst(t *testing.T) {
	for _, c := range []struct {
		length int64
		next   verdict.Action
	}{{5000, verdict.Admit}, {16 * mib, verdict.Wait}} {
		p := newProcess(t, 1, func(c *Config) { c.Buffers.Downstream, c.Buffers.Upstream = unit.MiB, unit.MiB })
		p.settle(40 * mib)
		g := p.guards[0]
		var admitted []*request
		waiting := 0
		for range 200 {
			r := hidden()
			switch v := g.Open(p.now, &r.Stream, r, 0); v.Action {
			case verdict.Admit:
				admitted = append(admitted, r)
			case verdict.Wait:
				waiting++
			default:
				require.Fail(t, "a verdict", "%v", v)
			}
		}
		require.Positive(t, waiting)
		require.Less(t, int64(len(admitted))*4*mib, 160*mib, "all of them can come at once, and be there twice on their way to us")
		require.Greater(t, len(admitted), 35)
		late := 0
		for _, r := range admitted {
			if g.Expect(p.now, &r.Stream, c.length).Action != verdict.Admit {
				late++
			}
			if c.length < mib {
				g.Close(p.now, &r.Stream)
			}
		}
		require.LessOrEqual(t, late, 5, "only of those few that were let see")
		next := map[verdict.Action]int{}
		for range 20 {
			r := hidden()
			next[g.Open(p.now, &r.Stream, r, 0).Action]++
		}
		require.Equal(t, map[verdict.Action]int{c.next: 20}, next, "what has come is known")
	}
}

// One large response says little of the next: the forecast takes half of it for its deviation. 90
// requests came in for nothing between the first response and the third, and 300 slow readers made
// 1.6 times the limit.
func TestHiddenBurstGoesOnBehindTheFirstResponse(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	first := p.burst(2)
	require.Equal(t, verdict.Admit, p.guards[0].Expect(p.now, &first[0].Stream, 16*mib).Action)
	require.Less(t, int64(len(p.burst(200)))*2*mib, 160*mib)
}

// Where small responses come too, a request says nothing of its size. While large ones fill the
// memory a few at a time go to see, and so the small ones among them get through.
func TestHiddenBurstOfAMixedKey(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	answer := func(r *request, n int64) Verdict {
		v := g.Expect(p.now, &r.Stream, n)
		g.Close(p.now, &r.Stream)
		return v
	}
	for _, n := range []int64{16 * mib, 5000, 5000, 5000} {
		require.Equal(t, verdict.Admit, answer(p.burst(1)[0], n).Action)
	}
	p.read(190 * mib) // and there is no room
	probes := p.burst(200)
	require.Len(t, probes, 5, "what these bring is within the floor")
	require.Equal(t, verdict.ResponseSize, answer(probes[0], 16*mib).Reason, "known to be large, it is refused")
	for _, r := range probes[1:] {
		require.Equal(t, verdict.Admit, answer(r, 5000).Action)
	}
	require.Empty(t, p.burst(1), "nobody goes before those who wait")
	for range 300 {
		p.now += FastTick
		if r := w.Tick(p.now).Resume; r != nil {
			answer(r.Host().(*request), 5000)
		}
	}
	require.Zero(t, p.queue(0).Waiting, "each has had its turn, at its time")
	require.Zero(t, w.Account().Own().Coming)
}

// Where the upstream takes its time, it is no burst: other probes need not wait for the answer.
func TestHiddenProbesOfASlowUpstream(t *testing.T) {
	for seen, probes := range map[string]int{"nothing": 2, "small and large ones": 5} {
		p := newProcess(t, 1, bigBuffers)
		p.settle(40 * mib)
		g := p.guards[0]
		if probes == 5 {
			for _, n := range []int64{16 * mib, 5000} {
				r := p.burst(1)[0]
				require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, n).Action)
				g.Close(p.now, &r.Stream)
			}
		}
		p.read(190 * mib)
		slow := p.burst(probes)
		require.Len(t, slow, probes, seen)
		for begun := p.now; p.now < begun+1900*ms; {
			p.read(190 * mib)
		}
		waiting, opened := hidden(), p.now
		require.Equal(t, verdict.Wait, g.Open(p.now, &waiting.Stream, waiting, 0).Action, seen)
		for waiting.Waiting() {
			p.read(190 * mib)
		}
		require.Less(t, p.now-opened, 300*ms, seen)
		for _, r := range append(slow, waiting) {
			g.Close(p.now, &r.Stream)
		}
		requireNothingLeft(t, p.workers[0])
		require.Len(t, p.burst(probes+1), probes, seen)
	}
}

// A burst at the start of a key, with small ones among it: those are answered first, and say
// nothing of the others.
func TestHiddenBurstWhoseSmallOnesAreAnsweredFirst(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	g := p.guards[0]
	first := p.burst(20)
	for _, r := range first[:5] {
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, 5000).Action)
		g.Close(p.now, &r.Stream)
	}
	require.Less(t, int64(len(p.burst(200)))*4*mib, 160*mib, "15 may be large")
	for _, r := range first[5:] {
		g.Close(p.now, &r.Stream)
	}
}

// But when those of the beginning are answered it is known, however many are under way.
func TestHiddenKeyIsKnownForGood(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	g := p.guards[0]
	under := p.burst(20)
	for range 100 {
		r := under[0]
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, 5000).Action)
		g.Close(p.now, &r.Stream)
		under = append(under[1:], p.burst(1)...)
		require.Len(t, under, 20)
	}
	require.Zero(t, p.workers[0].Account().Own().Coming, "nothing large is expected of those under way")
	require.Len(t, p.burst(300), 300)
}

// A probe that has to wait for room of its own is none until it is let in. Here one probe takes all
// that those of all tenants may bring.
func TestHiddenProbeThatWaits(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Buffers.Upstream, c.Fairness.By = 32*unit.MiB, "header:x-tenant" })
	p.settle(40 * mib)
	p.read(190 * mib)
	g, w := p.guards[0], p.workers[0]
	probe := func(tenant string) verdict.Action {
		r := hidden()
		r.tenant = tenant
		defer g.Close(p.now, &r.Stream)
		return g.Open(p.now, &r.Stream, r, 0).Action
	}
	r := hidden()
	require.Equal(t, verdict.Wait, g.Open(p.now, &r.Stream, r, 4*mib).Action)
	require.Equal(t, verdict.Admit, probe("a"), "it takes nobody's place")
	for r.Waiting() {
		p.read(40 * mib)
	}
	require.Zero(t, r.Reserved(budget.Response), "it goes to see")
	p.read(190 * mib)
	require.Equal(t, verdict.Wait, probe("b"))
	g.Close(p.now, &r.Stream)
	require.Equal(t, verdict.Admit, probe("c"))
	requireNothingLeft(t, w)
}

// One goes to see, however much its response may be: it may be a small one. And of many keys no
// more together than a quarter of what traffic can have.
func TestHiddenProbesAreBounded(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Buffers.Upstream = 32 * unit.MiB })
	p.settle(40 * mib)
	p.read(190 * mib)
	require.Len(t, p.burst(200), 1)

	// What would never fit is taken for what could, alone.
	p = newProcess(t, 1, func(c *Config) { c.Buffers.Upstream = 80 * unit.MiB })
	p.settle(40 * mib)
	p.read(190 * mib)
	require.Len(t, p.burst(2), 1)
	p.read(40 * mib)
	p.read(40 * mib)
	require.Zero(t, p.queue(0).Waiting)
	require.Equal(t, int64(1), p.workers[0].Account().Own().Coming/(100*mib))

	p = newProcess(t, 1, func(c *Config) { bigBuffers(c); c.Fairness.By = "header:x-tenant" })
	p.settle(40 * mib)
	p.read(190 * mib)
	probes := 0
	for i := range 64 {
		r := hidden()
		r.tenant = string(rune('0' + i))
		if p.guards[0].Open(p.now, &r.Stream, r, 0).Action == verdict.Admit {
			probes++
		}
	}
	require.Equal(t, int(p.workers[0].Account().Room()/4/(4*mib)), probes)
}

// Where there was no small response yet, one request at a time goes to see whether there are any,
// by turns one in the queue and one that has just come: most likely its upstream does the work for
// nothing. When there was none for a while, none goes any more.
func TestHiddenProbesOfALargeKey(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	for range 5 {
		r := p.burst(1)[0]
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, 16*mib).Action)
		g.Close(p.now, &r.Stream)
	}
	p.read(190 * mib)
	tooLarge := func(r *request) {
		t.Helper()
		require.Equal(t, verdict.ResponseSize, g.Expect(p.now, &r.Stream, 16*mib).Reason)
		g.Close(p.now, &r.Stream)
	}
	lined := func() *request {
		t.Helper()
		r := w.Tick(p.now).Resume
		require.NotNil(t, r)
		require.Zero(t, r.Reserved(budget.Response), "it goes to see")
		again, _ := w.Resume(p.now)
		require.Nil(t, again, "one at a time")
		require.Empty(t, p.burst(1), "one at a time")
		return r.Host().(*request)
	}
	came := p.burst(200)
	require.Len(t, came, 1)
	for range 8 { // less than a second: there is no other reading
		tooLarge(came[0])
		p.now += FastTick
		require.Nil(t, w.Tick(p.now).Resume, "now and then")
		p.now += Tick
		require.Empty(t, p.burst(1), "it is the turn of the line")
		tooLarge(lined())
		p.now += Tick
		require.Nil(t, w.Tick(p.now).Resume, "it is the turn of who comes")
		came = p.burst(1)
		require.Len(t, came, 1)
	}
	tooLarge(came[0])
	for range 3 { // and when none comes
		p.now += 2 * Tick
		tooLarge(lined())
	}
	for begun := p.now; p.now < begun+forecast.HeavyFor+2*time.Second; {
		p.read(190 * mib)
	}
	require.Empty(t, p.burst(1))
}

// When its key has turned out to have small responses, all who wait for that reason go on, and need
// not see first.
func TestHiddenBurstIsKnown(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	p.read(190 * mib)
	g, w := p.guards[0], p.workers[0]
	for _, r := range p.burst(200) {
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, 5000).Action)
		g.Close(p.now, &r.Stream)
	}
	waiting := p.queue(0).Waiting
	require.EqualValues(t, 198, waiting)
	for range waiting {
		p.now += FastTick
		require.NotNil(t, w.Tick(p.now).Resume)
	}
	require.Zero(t, w.Account().Own().Coming, "nothing large is expected of them")
}

// Who is exempt goes in any case, and takes no probe's place.
func TestHiddenExempt(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { bigBuffers(c); c.Exempt = []Exempt{{PathPrefix: "/healthz"}} })
	p.settle(40 * mib)
	p.read(190 * mib)
	for range 20 {
		r := hidden()
		r.path = "/healthz"
		require.Equal(t, verdict.Admit, p.guards[0].Open(p.now, &r.Stream, r, 0).Action)
	}
	require.NotEmpty(t, p.burst(5))
}

// What cold requests wait for is a guess: others are not told that the line is so long.
func TestHiddenLineIsNotLong(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	p.read(190 * mib)
	p.burst(200)
	require.Positive(t, p.queue(0).Waiting)
	require.Zero(t, p.queue(0).Wanted)
}
