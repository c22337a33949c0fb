package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// queue is where a worker's requests wait, in one line: the small ones first, and of each the one
// whose key has least. Others wait on other workers, and all count as one line.
type queue struct {
	line     fairness.Line[Stream]
	held     int64   // pause cost of those in it
	resumed  bool    // the last tick that served them resumed one
	credited *Stream // the one resumed since the last tick
}

// uncredit ends what counts in favour of the one that was resumed in the last tick.
func (w *Worker) uncredit(now Time) {
	if s := w.credited; s != nil {
		w.credited = nil
		w.account.Uncredit(now, &s.Stream)
	}
}

const (
	heldShare = 4 // the line's pause costs may hold 1/4 of what traffic can have
	// Of the line a key that has more than its share leaves 1/8 to the others.
	othersShare = 8
)

// wait puts the request in line, among the small ones or the large, or rejects it if the line has
// no room for it.
func (g *Guard) wait(now Time, s *Stream, small bool) Verdict {
	w := g.worker
	if g.lets() {
		w.counts[CountThrottled]++
		w.account.Ask(now, s.total(), budget.Forced)
		return Verdict{Action: Admit}
	}
	w.unprobe(s)
	cost := g.cost(s)
	s.conn()
	window := g.windowOf(s)
	if !g.claimPlace(now, s, small, cost, window) {
		return g.turnAway(now, s, QueueFull)
	}
	w.counts[CountThrottled]++
	s.joinLine(now, small, cost, window)
	w.account.Cover(now)
	return Verdict{Action: Wait}
}

// windowOf is what a request can take of its HTTP/2 connection's window while it waits.
func (g *Guard) windowOf(s *Stream) int64 {
	if s.connection == nil || s.length == 0 || !s.isHTTP2() {
		return 0
	}
	window := int64(g.config.Buffers.HTTP2Window)
	if s.length != budget.Unknown {
		window = min(window, s.length)
	}
	return window
}

// claimPlace asks for a place in line, and room for what it costs. One whose key has more than its
// share leaves something of the line, and of what lies under the limit, to the others.
func (g *Guard) claimPlace(now Time, s *Stream, small bool, cost, window int64) bool {
	w, others := g.worker, g.worker.account.Others()
	queue, held, claim := int64(w.throttle.Queue), w.account.Room()/heldShare, budget.Full
	if w.greedy(s.key) {
		queue, held, claim = queue-queue/othersShare, held-held/othersShare, budget.Large
	}
	switch {
	case w.throttle.Timeout == 0,
		int64(w.line.Len())+others.Queue.Waiting >= queue,
		cost > held-w.held-others.Queue.Held,
		!small && cost > 0 && w.largeClaim(s.key, s.total()) != budget.Full && w.drawEarlyReject(now), // to wait costs a GET nothing
		window > 0 && window > int64(g.config.Buffers.HTTP2ConnectionWindow)/2-s.connection.window,
		cost > 0 && w.account.Ask(now, cost, claim) == budget.Denied:
		return false
	}
	return true
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
	g.worker.account.Ask(now, max(s.total()-s.credit(), 0), budget.Forced)
	g.resume(now, s)
	g.worker.publish()
}

// serve resumes one of those who wait, or rejects those who have waited too long, by turns where
// both is due. One call of the host must not do both: Envoy, which runs what the resumed request
// has sent nested in that call, crashed where it rejected others of the same HTTP/2 connection.
func (w *Worker) serve(now Time, a *Actions) {
	if w.line.Len() == 0 {
		return
	}
	if !w.resumed || w.line.Overdue(now, Time(w.throttle.Timeout)) == nil {
		if a.Resume, a.Waited = w.Resume(now); a.Resume != nil {
			w.resumed = true
			return
		}
	}
	w.resumed = false
	for {
		next := w.line.Overdue(now, Time(w.throttle.Timeout))
		if next == nil {
			break
		}
		s := next.Value
		waited := unit.Duration(now - next.Since)
		v := s.guard.turnAway(now, s, Timeout)
		if s.Shadow() {
			continue
		}
		v.Waited = waited
		if v.Action == Answer {
			w.end(s.connection)
		}
		a.Rejected = append(a.Rejected, Decision{s, v}) // if it is to be closed, close does that
	}
	w.publish()
}

// Resume takes the next who fits out of the line, and tells what it has waited; nil = there is
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

// claimFor asks for the room of a waiting request. One that is cold may be none any more, by what is
// known of its key now, or go as a probe.
func (w *Worker) claimFor(now Time, s *Stream) bool {
	if s.expects.cold() > 0 {
		w.foreseeAgain(now, s)
	}
	if s.expects.cold() == 0 || !w.mayProbe(now, s) {
		return w.claimRest(now, s, s.total())
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
	before := s.expects.bytes
	s.expects = s.guard.predict(now, s, max(s.host.Visibility(budget.Response), budget.Announced))
	s.expects.bytes = min(s.expects.bytes, before)
}

// claimRest asks for n bytes without what is counted of them already: what was seen to come of the
// request, or may come unseen.
func (w *Worker) claimRest(now Time, s *Stream, n int64) bool {
	rest := n - s.credit()
	if n <= int64(w.budget.Small) {
		return w.claimSmall(now, s.key, rest) != budget.Denied // what is awaited is not in the floor
	}
	rest = max(rest-s.Awaited(), 0)
	switch w.claim(now, s.key, rest) {
	case budget.Granted:
		return true
	case budget.Denied:
		return w.letInFutile(now, s, rest)
	default:
		return false
	}
}
