package guard

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/retryafter"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// full is a process without room for anything large and without a line, so that each upload is
// rejected at once.
func full(t *testing.T, workers int, edit func(*Config)) *process {
	t.Helper()
	p := newProcess(t, workers, func(c *Config) {
		c.Throttle.Queue = 0
		if edit != nil {
			edit(c)
		}
	})
	p.settle(40 * mib)
	p.settle(182 * mib)
	return p
}

func (p *process) told(worker int, n int64) Time {
	p.t.Helper()
	r, v := p.open(worker, n)
	require.Equal(p.t, verdict.Answer, v.Action, "%v", v)
	p.guards[worker].Close(p.now, &r.Stream)
	return Time(v.RetryAfter)
}

// tellMany is told over HTTP/2, where nothing of a rejected request stays: there is an answer,
// however many there were.
func (p *process) tellMany(worker int, n int64) Time {
	p.t.Helper()
	r := &request{connected: p.connection(worker), http2: true}
	v := p.guards[worker].Open(p.now, &r.Stream, r, n)
	require.Equal(p.t, verdict.Answer, v.Action, "%v", v)
	p.guards[worker].Close(p.now, &r.Stream)
	return Time(v.RetryAfter)
}

// admits has a worker admit so much a second, while somebody waited until now: it says so to what
// measures it, for to wait so long would take a minute of ticks.
func admits(w *Worker, now Time, perSecond int64) {
	r := &w.back.Admitted
	*r = retryafter.Rate{}
	r.Pass(now-time.Minute, true)
	for at := now - time.Minute; at < now; at += 100 * ms {
		r.Add(int64(float64(perSecond) / 10 * math.Exp(.02))) // of which as much as that is forgotten
		r.Pass(at+100*ms, true)
	}
}

// Each reject books the next place of one queue, as long as its size, whichever worker it is on.
func TestRejectsBookPlacesInOneQueue(t *testing.T) {
	p := full(t, 2, nil)
	// Nobody has been admitted while somebody waited: T(soft) − base in 30 s.
	w := p.workers[0]
	least := float64(w.Account().Share(.8)-w.Account().Table().Base) / 30
	place := float64(4*mib+int64(p.guards[0].Config().Costs.Stream)) / least
	require.Greater(t, place, .5)
	for i := range 20 {
		d := p.told(i%2, 4*mib)
		begin := 1 + float64(i)*place
		require.GreaterOrEqual(t, d.Seconds(), begin-1e-6, "reject %d", i)
		require.LessOrEqual(t, d.Seconds(), min(begin+place, math.Ceil(begin)), "not beyond its place, nor its second")
	}
	begin := p.told(0, 64*kib+1)
	require.InDelta(t, 1+20*place, begin.Seconds(), 1)
	require.Less(t, p.told(1, 64*kib+1)-begin, time.Second, "a short place for a small one")
}

// It drains at an eighth of what is admitted, of all workers together.
func TestTheQueueDrainsWithWhatIsAdmitted(t *testing.T) {
	p := full(t, 2, nil)
	for i, w := range p.workers {
		p.told(i, 4*mib) // it joins the table
		admits(w, p.now, 160*mib)
	}
	p.read(182 * mib)
	p.tellMany(0, 4*mib)
	before := p.workers[0].Account().Table().Booked
	for range 100 {
		p.tellMany(0, 4*mib) // 40 MiB/s
	}
	p.workers[1].Tick(p.now)
	require.InDelta(t, 100*4/40., (p.workers[1].Account().Table().Booked - before).Seconds(), .1, "the other worker knows")
}

// Who finds the queue full is told the longest delay, but a crowd is spread before it; nobody is
// told more, or less than the shortest.
func TestAFullQueue(t *testing.T) {
	for _, c := range []RetryAfter{
		{Min: unit.Duration(time.Second), Max: unit.Duration(30 * time.Second)},
		{Max: unit.Duration(time.Second)},
		{Min: unit.Duration(10 * time.Second), Max: unit.Duration(10 * time.Second)},
	} {
		p := full(t, 4, func(cfg *Config) { cfg.Reject.RetryAfter = c })
		for range 1000 {
			d := p.tellMany(0, 4*mib)
			require.GreaterOrEqual(t, d, Time(c.Min))
			require.LessOrEqual(t, d, Time(c.Max))
		}
		// Those who come one by one are no crowd.
		for other := 1; other < 4; other++ {
			require.Equal(t, Time(c.Max), p.told(other, 4*mib))
		}
	}
}

// While some have been told to come back, the longer the line, of what its timeout lets it be, the
// more are rejected at its end: evenly, not all who come at once.
func TestALineThatIsNearlyTooLongTurnsSomeAway(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	grows := &request{connected: p.connection(0), http2: true}
	require.Equal(t, verdict.Admit, p.guards[0].Open(p.now, &grows.Stream, grows, budget.Unknown).Action)
	p.settle(199 * mib)
	v := p.guards[0].Grow(p.now, &grows.Stream, budget.Request, 4*mib)
	require.Positive(t, v.RetryAfter, "somebody was told to come back")
	p.guards[0].Close(p.now, &grows.Stream)
	p.settle(182 * mib)
	w := p.workers[0]
	admits(w, p.now, 40*mib) // 80 MiB in 2 s
	var joined, first int
	for i := range 100 {
		if _, v := p.open(0, mib); v.Action == verdict.Wait {
			joined++
		} else if first == 0 {
			first = i
		}
	}
	require.InDelta(t, 64, first, 4, "from three quarters on")
	require.Less(t, joined, 80)
	require.Greater(t, joined, 65)
	_, v = p.open(0, 64*kib)
	require.NotEqual(t, verdict.Answer, v.Action, "small ones go ahead of the line")
}
