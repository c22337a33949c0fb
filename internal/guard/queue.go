package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// wait puts the request in the queue, among the small ones or the large, or rejects it if the queue
// has no room for it.
func (g *Guard) wait(now Time, s *Stream, small bool) Verdict {
	w := g.worker
	if g.observesBeside() {
		w.counts[metric.CountThrottled]++
		w.account.Ask(now, s.asks(), budget.Forced)
		return Verdict{Action: verdict.Admit}
	}
	w.unprobe(s)
	cost := g.cost(s)
	s.conn()
	window := g.windowOf(s)
	if !g.claimPlace(now, s, small, cost, window) {
		return g.rejectFor(now, s, verdict.QueueFull)
	}
	w.counts[metric.CountThrottled]++
	s.joinLine(now, small, cost, window)
	w.account.Cover(now)
	return Verdict{Action: verdict.Wait}
}

// claimPlace asks for a place in the queue, and room for what it costs. One whose key has more than
// its share leaves something of the queue, and of what lies under the limit, to the others.
func (g *Guard) claimPlace(now Time, s *Stream, small bool, cost, window int64) bool {
	w := g.worker
	queue, held, claim := int64(w.throttle.Queue), w.account.Room()/heldShare, budget.UpToLimit
	if w.greedy(s.key) {
		queue, held, claim = queue-queue/othersShare, held-held/othersShare, budget.UpToHard
	}
	switch {
	case !w.queues(queue),
		!small && cost > 0 && w.largeClaim(s.key, s.total()) != budget.UpToLimit && w.drawEarlyReject(now), // to wait costs a GET nothing
		window > 0 && window > int64(g.config.Buffers.HTTP2ConnectionWindow)/2-s.connection.window,
		cost+s.Kept() > 0 && !w.bears(now, s, cost, held, claim):
		return false
	}
	return true
}

// bears says that what it costs to let the request wait has room. Where the network filter sees
// what comes, it is judged by what can be foreseen: if more comes than has room, those who came
// last are rejected (refuseWaiting, shed). Else it is the most that may come.
func (w *Worker) bears(now Time, s *Stream, cost, held int64, claim budget.Claim) bool {
	if s.seesItsOwn() && !w.account.Stale(now) {
		return w.foresees(cost, s.Kept(), held)
	}
	return s.Kept()+cost <= held-w.held-w.account.Others().Queue.Held && w.account.Ask(now, cost, claim) != budget.Denied
}

// serve resumes one of those who wait, or rejects those who have waited too long. While one can be
// resumed in each tick there is room, and who is late may be the next: a worker that was busy with
// one pass of its event loop for a second finds all of them late. So they have a quarter more, and
// then it is by turns. One call of the host must not do both: Envoy, which runs what the resumed
// request has sent nested in that call, crashed where it rejected others of the same HTTP/2
// connection.
func (w *Worker) serve(now Time, a *Actions) {
	if w.line.Len() == 0 {
		return
	}
	if w.shed(now, a) {
		w.resumed = false
		w.publish()
		return
	}
	timeout := Time(w.throttle.Timeout)
	late := timeout + timeout/lateShare
	if !w.resumed || w.line.Overdue(now, late) == nil {
		if a.Resume, a.Waited = w.Resume(now); a.Resume != nil {
			w.resumed = true
			return
		}
		late = timeout
	}
	w.resumed = false
	for {
		next := w.line.Overdue(now, late)
		if next == nil {
			break
		}
		w.dismiss(now, a, next, verdict.Timeout)
	}
	w.publish()
}

// lateShare: a timeout is 1/4 longer as long as one after the other is resumed.
const lateShare = 4 // TestWhoIsLateGoesOnWhereThereIsRoom

// shed rejects those who wait and came last, where what they have sent has no room any more, by
// what was measured. It says whether there were any.
func (w *Worker) shed(now Time, a *Actions) bool {
	if w.come == 0 || w.account.Stale(now) {
		return false
	}
	all := w.come + w.account.Others().Queue.Come
	excess := w.account.Measured() - w.account.InForce()
	excess = int64(float64(excess) * float64(w.come) / float64(all))
	shed := false
	for excess > 0 {
		next := w.line.Last(rank, func(c *fairness.Waiter[Stream]) bool { return c.Value.come > 0 && !c.Value.waitsForLittle(all) })
		if next == nil {
			break
		}
		excess -= next.Value.come
		w.account.Free(now, next.Value.come)
		w.dismiss(now, a, next, verdict.QueueFull)
		shed = true
	}
	return shed
}

// waitsForLittle says that nothing is won where the request is rejected: its face has stopped to
// read it, and all who wait hold next to nothing, all bytes together.
func (s *Stream) waitsForLittle(all int64) bool {
	return s.capped() != nil && all <= s.guard.worker.account.Room()/leftShare
}

// Resume takes the next who fits out of the queue, and tells what it has waited; nil = there is
// none. Tick does it once; where more than one may be resumed in a call of the host, and nothing is
// seen of what comes while they wait, it may be called again after that.
func (w *Worker) Resume(now Time) (s *Stream, waited unit.Duration) {
	for {
		next := w.line.Next(now, rank, func(c *fairness.Waiter[Stream]) bool { return w.claimFor(now, c.Value) })
		if next == nil {
			return nil, 0
		}
		s = next.Value
		shadow := s.Shadow()
		s.leaveLine()
		s.guard.resume(now, s)
		w.publish()
		if !shadow {
			w.credited = s
			return s, unit.Duration(now - next.Since)
		}
	}
}

// claimFor asks for the room of a waiting request. One that is cold may be none any more, by what
// is known of its key now, or go as a probe.
func (w *Worker) claimFor(now Time, s *Stream) bool {
	if s.expects.Cold() > 0 {
		w.foreseeAgain(now, s)
	}
	if s.expects.Cold() == 0 || !w.mayProbe(now, s) {
		return w.claimRest(now, s, s.asks())
	}
	if !w.claimRest(now, s, s.wants) {
		return false
	}
	w.probe(now, s)
	return true
}

// foreseeAgain sets what the response of a cold request is expected to bring, by what is known of
// its key now, but not more than could fit alone when it came.
func (w *Worker) foreseeAgain(now Time, s *Stream) {
	before := s.expects.Bytes
	s.expects = s.guard.predict(now, s, max(s.host.Visibility(budget.Response), budget.Announced))
	s.expects.Bytes = min(s.expects.Bytes, before)
}

// claimRest asks for n bytes without what is counted of them already: what was seen to come of the
// request, or may come unseen.
func (w *Worker) claimRest(now Time, s *Stream, n int64) bool {
	rest := n - s.credit()
	if n+s.Kept() <= int64(w.budget.Small) {
		return w.claimSmall(now, s.key, rest) != budget.Denied // what is awaited is not in the floor
	}
	rest = max(rest-s.Awaited(), 0)
	if rest == 0 && s.Awaited() == 0 && w.account.Table().Drains() && w.account.Ask(now, 0, budget.UpToLimit) != budget.Denied {
		return true // all that it can hold has come: to let it go on frees memory
	}
	switch w.claim(now, s.key, rest) {
	case budget.Granted:
		return true
	case budget.Denied:
		return w.letInFutile(now, s, rest)
	default:
		return false
	}
}

// resume admits a request that has waited; the room has been asked for.
func (g *Guard) resume(now Time, s *Stream) {
	credit := s.credit()
	g.worker.account.Unpause(&s.Stream)
	if !s.Shadow() {
		g.admit(now, s, credit)
		return
	}
	g.unshade(now, s, credit)
}

// Release lets a request go on that waits, whatever room there is. It has no effect on others.
func (g *Guard) Release(now Time, s *Stream) {
	if !s.Waiting() {
		return
	}
	s.leaveLine()
	g.worker.account.Ask(now, max(s.asks()-s.credit(), 0), budget.Forced)
	g.resume(now, s)
	g.worker.publish()
}

// unshade admits a shadow that has waited for as long as it would have had to. What has passed of
// it meanwhile passes now.
func (g *Guard) unshade(now Time, s *Stream, credit int64) {
	a := g.worker.account
	a.Unshade(now, &s.Stream)
	g.admit(now, s, credit)
	a.CatchUp(now, &s.Stream, budget.Request)
	if s.meanwhile.answered {
		g.Expect(now, s, s.meanwhile.length)
		a.CatchUp(now, &s.Stream, budget.Response)
	}
	a.Cover(now)
}

// uncredit ends what counts in favour of the one that was resumed in the last tick.
func (w *Worker) uncredit(now Time) {
	if s := w.credited; s != nil {
		w.credited = nil
		w.account.Uncredit(now, &s.Stream)
	}
}
