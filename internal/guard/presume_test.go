package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/forecast"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// presumed opens n requests without a body on a route after one that is judged.
func (p *process) presumed(route string, n int) (all []*request) {
	p.t.Helper()
	notExempt, v := p.from(0, route, 0)
	require.Equal(p.t, verdict.Admit, v.Action)
	require.False(p.t, notExempt.Presumed(), "of those between two ticks the first is judged")
	p.guards[0].Close(p.now, &notExempt.Stream)
	for range n {
		r, v := p.from(0, route, 0)
		require.Equal(p.t, verdict.Admit, v.Action)
		require.True(p.t, r.Presumed())
		all = append(all, r)
	}
	return all
}

// While memory is calm all that a response can hold is reserved for it, and nothing is asked of
// anybody.
func TestARequestIsPresumedWhileMemoryIsCalm(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	p.now += 25 * ms
	g, w := p.guards[0], p.workers[0]
	w.Tick(p.now)
	coming := w.Account().Own().Coming
	admitted := w.Counts()[metric.CountAdmitted]
	r := p.presumed("download", 1)[0]
	require.Equal(t, admitted+2, w.Counts()[metric.CountAdmitted])
	require.Equal(t, 1, r.hostCalls, "its connection, which is new")
	require.Equal(t, coming+128*kib, w.Account().Own().Coming)
	require.Zero(t, w.Account().Own().Small, "the floor is for those that may be small")

	fresh := w.Account().Own().Fresh
	require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, 16*mib).Action)
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, mib).Action)
	require.Equal(t, coming+128*kib, w.Account().Own().Coming)
	require.Equal(t, fresh, w.Account().Own().Fresh)
	require.Equal(t, 128*kib, r.Held(budget.Response))
	p.now += 25 * ms
	w.Tick(p.now) // every other one passes
	w.Tick(p.now)
	require.True(t, r.Presumed())
	require.Equal(t, fresh+128*kib, w.Account().Own().Fresh, "a tick books what has passed")
	require.Equal(t, coming+128*kib, w.Account().Own().Coming, "and what it can hold stays reserved")
	require.Equal(t, 128*kib, w.Account().Own().Likely)
	require.Zero(t, w.Account().Own().Small)
	require.Equal(t, 1, r.hostCalls)
	for range 30 { // longer than anything else stays reserved
		p.now += 100 * ms
		p.read(40 * mib)
	}
	require.Equal(t, coming+128*kib, w.Account().Own().Coming)

	fresh = w.Account().Own().Fresh
	g.Grow(p.now, &r.Stream, budget.Response, 50*kib)
	g.End(p.now, &r.Stream, budget.Response)
	g.Close(p.now, &r.Stream)
	require.Equal(t, fresh+50*kib, w.Account().Own().Fresh, "what passed since the last tick")
	require.Equal(t, coming, w.Account().Own().Coming)
	require.Zero(t, w.Account().Own().Presumed.Streams)
	require.Zero(t, w.Account().Own().Exposure)
	require.Equal(t, 2, r.hostCalls, "what it leaves on its connection is its route's")
	require.Positive(t, w.Account().Own().Likely)
}

// Once its headers have come no more is reserved than is announced.
func TestAPresumedResponseReservesWhatItAnnounces(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Buffers.HTTP2Window, c.Fairness.By = unit.MiB, config.ByNone })
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	all := p.presumed("any", 5)
	const most = 64*kib + mib
	require.Equal(t, 5*most, w.Account().Own().Coming, "which protocol it has is not asked: a window is more than the listener's buffer")
	all[4].http2 = true
	for i, c := range []struct{ length, reserved int64 }{
		{0, 0},
		{1000, 1000},
		{mib, 128 * kib},               // HTTP/1
		{budget.Unknown, 128 * kib},    // HTTP/1
		{budget.Unknown, 64*kib + mib}, // HTTP/2
	} {
		require.Equal(t, verdict.Admit, g.Expect(p.now, &all[i].Stream, c.length).Action)
		require.Equal(t, c.reserved, all[i].Reserved(budget.Response), i)
	}
	g.Grow(p.now, &all[4].Stream, budget.Response, 3*mib)
	require.Equal(t, 64*kib+mib, all[4].Held(budget.Response))
	for _, r := range all {
		g.End(p.now, &r.Stream, budget.Response)
		g.Close(p.now, &r.Stream)
	}
	require.Zero(t, w.Account().Own().Coming)
	next := p.burst(50)[49] // the first go to see
	require.Equal(t, 2*128*kib, next.Reserved(budget.Response), "whose it is was not asked: it teaches nobody")
}

// With half of the room in use nobody is presumed, and those who are have to tell what they are.
// None of them is broken.
func TestPresumedRequestsAreDoubtedWhenMemoryIsCalmNoMore(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	all := p.presumed("download", 5)
	large, small, unknown, ended := all[0], all[1], all[2], all[3]
	g.Expect(p.now, &large.Stream, 16*mib)
	g.Grow(p.now, &large.Stream, budget.Response, mib)
	g.End(p.now, &large.Stream, budget.Request)
	g.Expect(p.now, &small.Stream, 10*kib)
	g.Grow(p.now, &small.Stream, budget.Response, kib)
	g.Expect(p.now, &unknown.Stream, budget.Unknown)
	g.Grow(p.now, &unknown.Stream, budget.Response, mib)
	g.Expect(p.now, &ended.Stream, 20*kib)
	g.Grow(p.now, &ended.Stream, budget.Response, 20*kib)
	g.End(p.now, &ended.Stream, budget.Response)
	for range 7 {
		p.from(0, "upload", 12*mib)
	}
	require.False(t, w.Account().Calm(p.now))
	notExempt, v := p.from(0, "download", 0)
	require.Equal(t, verdict.Admit, v.Action)
	require.False(t, notExempt.Presumed())
	g.Close(p.now, &notExempt.Stream)
	require.EqualValues(t, 5, w.Account().Own().Presumed.Streams)

	p.now += 25 * ms
	p.workers[0].Tick(p.now)
	require.Zero(t, w.Account().Own().Presumed.Streams)
	require.GreaterOrEqual(t, p.has(0, "download").Likely, 128*kib, "who has it is asked for in a tick")
	require.False(t, large.Small())
	require.False(t, large.Ended(budget.Response))
	require.Zero(t, large.Reserved(budget.Response), "all that it can hold has passed")
	require.Equal(t, 128*kib, large.Held(budget.Response))
	require.Equal(t, mib, large.Seen(budget.Response))
	require.True(t, small.Small())
	require.Equal(t, 9*kib, small.Reserved(budget.Response))
	require.Equal(t, mib, unknown.Seen(budget.Response))
	require.False(t, unknown.Small())
	require.True(t, ended.Ended(budget.Response))
	require.Zero(t, ended.Reserved(budget.Response))
	require.Zero(t, all[4].Reserved(budget.Response), "its response has not come, and may be small")
	require.Equal(t, 1, all[4].hostCalls, "no route's are large: whose it is does not matter yet")
	require.False(t, all[4].PassesUnbooked(1), "what comes of it is booked at once")
	require.Equal(t, 10*kib+20*kib, w.Account().Own().Small, "what is still to come of the one, and what the other has ended with")

	p.settle(200*mib - kib) // no room is left
	require.Equal(t, verdict.Admit, g.Grow(p.now, &large.Stream, budget.Response, mib).Action, "it goes on")
	require.Equal(t, verdict.Admit, g.Grow(p.now, &unknown.Stream, budget.Response, mib).Action)
	require.Equal(t, verdict.Answer, g.Expect(p.now, &all[4].Stream, 16*mib).Action, "a response that comes now is judged")
	for _, r := range all {
		g.Close(p.now, &r.Stream)
	}
}

// One who asks for something on a route of large responses would have got room for that at his
// request's headers. He keeps it.
func TestAPresumedRequestOnALargeRouteKeepsItsRoom(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	for range 10 {
		r, _ := p.from(0, "download", 0)
		g.Expect(p.now, &r.Stream, 16*mib)
		g.Close(p.now, &r.Stream)
		p.now += 25 * ms
		w.Tick(p.now)
	}
	p.now += forecast.HeavyFor
	p.settle(40 * mib)
	large := p.presumed("download", 3)
	small, _ := p.from(0, "small", 0)
	require.True(t, small.Presumed())
	for range 8 {
		p.from(0, "upload", 12*mib)
	}
	p.now += 25 * ms
	w.Tick(p.now)
	require.Zero(t, w.Account().Own().Presumed.Streams)
	for _, r := range large {
		require.Equal(t, 128*kib, r.Reserved(budget.Response))
		require.False(t, r.Small())
	}
	require.Equal(t, 3*128*kib, p.has(0, "download").Coming)
	require.Zero(t, small.Reserved(budget.Response))
	require.True(t, small.Small())
}

// As long as somebody waits, on whatever worker, memory is not calm.
func TestNobodyIsPresumedWhileOthersWait(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(40 * mib)
	var admitted []*request
	waiting := 0
	for waiting < 20 {
		if r, v := p.from(1, "upload", 12*mib); v.Action == verdict.Admit {
			admitted = append(admitted, r)
		} else {
			require.Equal(t, verdict.Wait, v.Action)
			waiting++
		}
	}
	for _, r := range admitted {
		p.guards[1].Close(p.now, &r.Stream)
	}
	p.now += FastTick
	for _, i := range []int{1, 0} { // it tells the other
		p.workers[i].Tick(p.now)
		for range 2 {
			r, v := p.from(i, "any", 0)
			require.Equal(t, verdict.Admit, v.Action)
			require.False(t, r.Presumed(), i)
		}
	}
}

// A response whose headers come when memory is calm no more is judged there, before a tick has
// looked.
func TestAPresumedResponseIsJudgedAtItsHeaders(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	r := p.presumed("download", 1)[0]
	for range 8 {
		p.from(0, "upload", 12*mib)
	}
	require.False(t, w.Account().Calm(p.now))
	require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, 16*mib).Action)
	require.False(t, r.Presumed())
	require.Equal(t, 128*kib, r.Reserved(budget.Response))
	require.Equal(t, 128*kib, p.has(0, "download").Coming)
}

// What can't be asked for later is asked at the request's headers.
func TestWhatAPresumedRequestIsAskedFor(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) {
		c.Fairness.By = "header:x-tenant"
		c.Exempt = []Exempt{{PathPrefix: "/health"}}
	})
	p.settle(40 * mib)
	g := p.guards[0]
	open := func() *request {
		r := &request{tenant: "acme", path: "/health"}
		require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		return r
	}
	open()
	r := open()
	require.True(t, r.Presumed())
	require.Positive(t, p.has(0, "acme").Coming)
	require.Equal(t, 2, r.hostCalls, "its tenant and its path")
}

// Where the next peak may come all are judged, so that their methods are known.
func TestWhoMayBeInAPeakIsNotPresumed(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Trace.Floor = unit.MiB })
	p.settle(40 * mib)
	p.presumed("any", 1)
	p.settle(60 * mib)
	require.True(t, p.workers[0].Account().Calm(p.now))
	for range 3 {
		r, v := p.from(0, "any", 0)
		require.Equal(t, verdict.Admit, v.Action)
		require.False(t, r.Presumed())
	}
}

// A body of the request, hidden responses: what is not known to hold no more than that is not
// presumed.
func TestWhoIsNotPresumed(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	p.presumed("any", 1)
	for name, r := range map[string]*request{
		"hidden":           {hides: [2]bool{budget.Response: true}},
		"request's hidden": {hides: [2]bool{true, true}},
	} {
		p.guards[0].Open(p.now, &r.Stream, r, 0)
		require.False(t, r.Presumed(), name)
	}
	upload, _ := p.open(0, kib)
	require.False(t, upload.Presumed())
	chunked, _ := p.open(0, budget.Unknown)
	require.False(t, chunked.Presumed())
	p.now += 1500 * ms
	p.workers[0].Tick(p.now)
	p.open(0, 0)
	r, _ := p.open(0, 0)
	require.False(t, r.Presumed(), "there is no reading")
}

// readings is how many are asked for in a second whose ticks each come after do.
func (p *process) readings(do func()) (n int) {
	for range 40 {
		do()
		p.now += 25 * ms
		if a := p.workers[0].Tick(p.now); a.Ask {
			n++
			p.workers[0].Observe(p.now, memory.Reading{InUse: 40 * mib}, nil)
		}
	}
	return n
}

// What is reserved for those that wait for their upstream is nothing that a reading could tell more
// of: many that are quiet cost no more readings than none.
func TestPresumedRequestsAskForNoReadings(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	readings := func() int { return p.readings(func() {}) }
	idle := readings()
	for _, r := range p.presumed("quiet", 200) {
		require.Equal(t, 128*kib, r.Reserved(budget.Response))
	}
	readings() // their existence is fresh at first
	require.Equal(t, int64(200), p.workers[0].Account().Own().Streams)
	require.Equal(t, idle, readings())
	p.from(0, "upload", 12*mib)
	require.Greater(t, readings(), 4*idle)
}

// Nobody has to know what those are at once that are presumed: half of the ticks do. Where anybody
// else is in flight, or memory is calm no more, all do.
func TestEveryOtherTickPassesWhileAllArePresumed(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	all := p.presumed("any", 2)
	require.Equal(t, verdict.Admit, g.Expect(p.now, &all[0].Stream, mib).Action)
	ticks := func() (n int) { // that book what has passed
		for range 10 {
			p.now += 25 * ms
			before := w.Account().Own().Passed
			g.Grow(p.now, &all[0].Stream, budget.Response, 1)
			a := w.Tick(p.now)
			if w.Account().Own().Passed > before {
				n++
			}
			require.True(t, a.Polls)
			require.Equal(t, Tick, a.Next)
			if a.Ask {
				w.Observe(p.now, memory.Reading{InUse: 40 * mib}, nil)
			}
		}
		return n
	}
	require.Equal(t, 5, ticks())
	notExempt, _ := p.from(0, "any", 0)
	require.False(t, notExempt.Presumed())
	require.Equal(t, 10, ticks())
	g.Close(p.now, &notExempt.Stream)
	require.Equal(t, 5, ticks())
	for asks := false; !asks; asks = w.Tick(p.now).Ask {
		p.now += 25 * ms
	}
	w.Observe(p.now, memory.Reading{InUse: 120 * mib}, nil)
	require.True(t, all[0].Presumed())
	require.False(t, w.Account().Calm(p.now))
	p.now += 25 * ms
	w.Tick(p.now) // it would pass
	require.False(t, all[0].Presumed())
}

// What presumed responses bring is in no reading yet, but decides nothing as long as memory is
// calm: where hardly anybody else is in flight few readings do.
func TestDownloadsAskForFewReadings(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g := p.guards[0]
	readings := func(downloads int) int {
		return p.readings(func() {
			for range downloads {
				r, _ := p.from(0, "download", 0)
				g.Expect(p.now, &r.Stream, mib)
				g.Grow(p.now, &r.Stream, budget.Response, mib)
				g.End(p.now, &r.Stream, budget.Response)
				g.Close(p.now, &r.Stream)
			}
		})
	}
	lone, _ := p.from(0, "upload", 100*kib)
	require.InDelta(t, 20, readings(12), 1, "nobody in flight is presumed")
	g.Close(p.now, &lone.Stream)
	p.presumed("quiet", 1)
	// 1/32 of the limit is 6.25 MiB. Twelve downloads in each tick are 6 MiB from one reading to
	// the next, and those before it count too.
	require.InDelta(t, 10, readings(12), 1)
	require.InDelta(t, 10, readings(28), 1)
	one, _ := p.from(0, "upload", 100*kib) // may be the one that is judged
	require.InDelta(t, 10, readings(12), 1)
	two, _ := p.from(0, "upload", 100*kib)
	require.InDelta(t, 20, readings(12), 1)
	require.InDelta(t, 40, readings(80), 1, "an eighth of what is free")
	g.Close(p.now, &one.Stream)
	g.Close(p.now, &two.Stream)
	readings(1)
	require.InDelta(t, 10, readings(28), 1)
	require.Greater(t, readings(200), 22, "half of the room is in use")
}
