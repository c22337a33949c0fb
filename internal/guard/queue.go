package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/linger"
	"github.com/highwater-envoy/highwater/internal/retryafter"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// queue is where a worker's requests wait. Small ones go first, then large ones. Among
// either, the next is of the key that has least for its weight. Others wait on other workers, and
// all count as one queue.
type queue struct {
	line     fairness.Line[Stream]
	held     int64   // pause cost of those in it, and their headers
	come     int64   // what of it is there already, as far as that is seen
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

// heldShare: the queue's pause costs may hold 1/4 of what traffic can have.
const heldShare = 4 // TestLineIsBounded

// wait puts the request in the queue, among the small ones or the large, or rejects it if the queue
// has no room for it.
func (g *Guard) wait(now Time, s *Stream, small bool) Verdict {
	w := g.worker
	if g.lets() {
		w.counts[CountThrottled]++
		w.account.Ask(now, s.asks(), budget.Forced)
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

// claimPlace asks for a place in the queue, and room for what it costs. One whose key has more than
// its share leaves something of the queue, and of what lies under the limit, to the others.
func (g *Guard) claimPlace(now Time, s *Stream, small bool, cost, window int64) bool {
	w, others := g.worker, g.worker.account.Others()
	queue, held, claim := int64(w.throttle.Queue), w.account.Room()/heldShare, budget.Full
	if w.greedy(s.key) {
		queue, held, claim = queue-queue/othersShare, held-held/othersShare, budget.Large
	}
	switch {
	case w.throttle.Timeout == 0,
		int64(w.line.Len())+others.Queue.Waiting >= queue,
		!small && cost > 0 && w.largeClaim(s.key, s.total()) != budget.Full && w.drawEarlyReject(now), // to wait costs a GET nothing
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
		waits := w.account.Others().Queue
		missing := int64(0) // of those who wait: it may still come, and is not counted yet
		if w.account.Table().Drains() {
			missing = w.held + waits.Held - w.come - waits.Come
		}
		return s.Kept()+cost <= w.patience(held)-w.held-waits.Held && cost+missing <= w.spare()-w.account.Foreseen()
	}
	return s.Kept()+cost <= held-w.held-w.account.Others().Queue.Held && w.account.Ask(now, cost, claim) != budget.Denied
}

// patience is how much those who wait may hold, where the network filter sees what comes of them.
// What lies between soft and all that others hold, by the reading, is idle: uploads that the
// upstream reads at once hold a quarter of what they may. Where it does not read, what is let in
// fills memory up to soft, and who waits has held of the room, as elsewhere.
func (w *Worker) patience(held int64) int64 {
	t := w.account.Table()
	if t.Stays() {
		return held
	}
	waiting := w.come + w.account.Others().Queue.Come
	return max(held, min(patientShare*held, w.account.Share(w.limits.Soft)-t.Reading+waiting))
}

// overShare: an eighth of the room more may be foreseen, for who waits is rejected as soon as it
// comes.
const overShare = 8 // case stock-upload

// spare is up to where may be foreseen what those who wait will hold.
func (w *Worker) spare() int64 {
	if !w.account.Table().Drains() {
		return w.account.Share(1)
	}
	return w.account.Share(1) + w.account.Room()/overShare
}

// patientShare: three times as much may be held at most.
const patientShare = 3 // case stock-upload

// overflows says that the limit has no room for n more bytes of those who wait, by what was
// measured.
func (w *Worker) overflows(now Time, n int64) bool {
	return !w.account.Stale(now) && n > w.account.Share(1)-w.account.Measured()
}

// refuseWaiting has the connection closed of one who waits, on which more has come than has room.
func (w *Worker) refuseWaiting(now Time, s *Stream) {
	w.count(Closed)
	w.counts[CountClosedConnections]++
	w.account.Free(now, s.come)
	s.leaveLine()
	s.rejectClosing(now, s.pauseCost, true)
}

// shed turns those away who wait and came last, where what they have sent has no room any more, by
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
		w.dismiss(now, a, next, QueueFull)
		shed = true
	}
	return shed
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

// serve resumes one of those who wait, or rejects those who have waited too long, by turns where
// both is due. One call of the host must not do both: Envoy, which runs what the resumed request
// has sent nested in that call, crashed where it rejected others of the same HTTP/2 connection.
func (w *Worker) serve(now Time, a *Actions) {
	if w.line.Len() == 0 {
		return
	}
	if w.shed(now, a) {
		w.resumed = false
		w.publish()
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
		w.dismiss(now, a, next, Timeout)
	}
	w.publish()
}

// dismiss turns one away who waits.
func (w *Worker) dismiss(now Time, a *Actions, c *fairness.Waiter[Stream], reason Reason) {
	s, waited := c.Value, unit.Duration(now-c.Since)
	v := s.guard.turnAway(now, s, reason)
	if s.Shadow() {
		return
	}
	v.Waited = waited
	if v.Action == Answer {
		w.end(s.connection)
	}
	a.Rejected = append(a.Rejected, Decision{s, v}) // if it is to be closed, close does that
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
	if s.expects.cold() > 0 {
		w.foreseeAgain(now, s)
	}
	if s.expects.cold() == 0 || !w.mayProbe(now, s) {
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
	before := s.expects.bytes
	s.expects = s.guard.predict(now, s, max(s.host.Visibility(budget.Response), budget.Announced))
	s.expects.bytes = min(s.expects.bytes, before)
}

// claimRest asks for n bytes without what is counted of them already: what was seen to come of the
// request, or may come unseen.
func (w *Worker) claimRest(now Time, s *Stream, n int64) bool {
	rest := n - s.credit()
	if n+s.Kept() <= int64(w.budget.Small) {
		return w.claimSmall(now, s.key, rest) != budget.Denied // what is awaited is not in the floor
	}
	rest = max(rest-s.Awaited(), 0)
	if rest == 0 && s.Awaited() == 0 && w.account.Table().Drains() && w.account.Ask(now, 0, budget.Full) != budget.Denied {
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

// rejects is what is left of those that a worker rejected.
type rejects struct {
	closing []*Stream  // their connections are to be closed
	left    linger.Sum // what the others left unread, until their connections are closed
}

// turnAway rejects a request, in the queue or not, or one that grew. A reject costs memory too:
// until its connection is closed, which takes Envoy's delayed_close_timeout, what an unfinished
// HTTP/1 request has sent lies unread. Where that has no room there is no answer, and the
// connection is closed instead.
func (g *Guard) turnAway(now Time, s *Stream, reason Reason) Verdict {
	w := g.worker
	if g.lets() && !s.Shadow() { // a shadow has been let go, and is to leave the queue
		w.count(reason)
		w.account.Ask(now, s.asks(), budget.Forced)
		return Verdict{Action: Admit}
	}
	if s.length == budget.Unknown && s.Seen(budget.Request) > 0 { // else the next ones grow beyond what has room too: scenario growth, TestForecastsLearn
		s.key.Value.Bodies[budget.Request].Learn(s.Held(budget.Request))
	}
	if reason == QueueFull || reason == Timeout {
		s.key.Value.rejected += s.total()
	}
	counted := false // what it leaves unread
	if s.state == queued {
		counted = s.Awaited() == 0
		s.leaveLine()
		if !counted {
			w.account.Unpause(&s.Stream)
		}
	}
	cost := g.cost(s)
	if g.mustClose(now, s, cost, counted) {
		w.counts[CountClosedConnections]++
		w.count(Closed) // in place of the reason: each is counted once
		s.rejectClosing(now, cost, counted)
		return Verdict{Action: Close, Reason: reason}
	}
	w.count(reason)
	s.rejectUnread(now, cost, counted)
	v := Verdict{Action: Answer, Reason: reason}
	if reason != TooLarge {
		v.RetryAfter = g.retryAfter(now, max(s.wants, s.Held(budget.Request)))
	}
	return v
}

// leftShare: what rejected requests leave unread may hold 1/8 of what traffic can have.
const leftShare = 8 // TestLeftoversOfAllWorkers

// mustClose says that what a rejected request leaves unread has no room until its client has read
// an answer: its connection is to be closed instead, which it can be where there is a network
// filter.
func (g *Guard) mustClose(now Time, s *Stream, cost int64, counted bool) bool {
	w := g.worker
	if s.Ended(budget.Request) || s.isHTTP2() {
		return false
	}
	if c := s.conn(); c == nil || c.Context == 0 {
		return false
	}
	limit := 1.0
	if w.greedy(s.key) {
		limit = w.limits.Hard // as for its place in the queue: the rest is for the others
	}
	fresh := cost
	if counted {
		fresh = 0
	}
	if cost > w.account.Room()/leftShare-w.left.Bytes()-w.account.Others().Left {
		return true
	}
	return s.capped() == nil && fresh > w.account.Share(limit)-w.account.Estimate(now)+s.Held(budget.Request)
}

func (w *Worker) count(reason Reason) { w.counts[CountRejected+int(reason)-1]++ }

// end and claimCut keep the rules by which Envoy survives (ENVOY-FACTS: it crashes otherwise): in
// one call of the host, a stream is ended once, and who closes a connection has done nothing else
// to it. Whatever a tick ends goes through one of them. A stream that was ended is no longer live,
// and a connection that was closed is gone.
func (w *Worker) end(c *Connection) {
	if c != nil {
		c.endedIn = w.ticks
	}
}

// claimCut says whether the connection may be closed in this tick, and if so notes that it will be.
// Those of rejected requests are (Actions.Close), evicted and raw ones (Cut), and idle ones with
// those that were on trial for too long (Idle). What OpenConnection and Data refuse does not come
// here: nothing has begun on such a connection, and the face closes it at once.
func (w *Worker) claimCut(c *Connection) bool {
	if c.IsClosed || c.endedIn == w.ticks || c.cut == w.ticks {
		return false
	}
	c.cut = w.ticks
	return true
}

// close has the connections of those closed that get no answer. What may not be closed now is for
// the next tick.
func (w *Worker) close(a *Actions) {
	kept := w.closing[:0]
	for _, s := range w.closing {
		if s.Shadow() {
			s.vanish()
		} else if w.claimCut(s.connection) {
			a.Close = append(a.Close, s)
		} else if !s.connection.IsClosed {
			kept = append(kept, s)
		}
	}
	clear(w.closing[len(kept):])
	w.closing = kept
}

// retryAfter books a place for n bytes among those who are told to come back, and says when it
// begins: see package retryafter.
func (g *Guard) retryAfter(now Time, n int64) unit.Duration {
	w := g.worker
	f := w.retryFigures()
	// What its existence costs too: else a thousand requests without a body would have one place.
	p := w.back.Place(&f, n+int64(g.config.Costs.Stream))
	start, booked := w.account.Book(now, now+p.First, p.Span, now+p.Last)
	if !booked {
		return unit.Duration(w.back.Crowd(now, &f, &p, w.random))
	}
	return unit.Duration(start - now)
}

func (w *Worker) retryFigures() retryafter.Figures {
	others := w.account.Others()
	return retryafter.Figures{
		Others:  others.Queue.Rate,
		Room:    w.account.Share(w.limits.Soft) - w.account.Table().Base,
		Waits:   others.Queue.Waiting > 0 || w.line.Len() > 0,
		Queued:  others.Queue.Wanted + w.line.Bytes(),
		Timeout: Time(w.throttle.Timeout),
		Min:     Time(w.reject.Min),
		Max:     Time(w.reject.Max),
	}
}

// drawEarlyReject says whether the next request is not to join the queue, because that is so long
// that its timeout would reject one. It counts those that it is asked for, to spread the rejects.
func (w *Worker) drawEarlyReject(now Time) bool {
	f := w.retryFigures()
	return w.back.Draw(w.back.Early(&f, w.account.Table().Booked-now, w.line.Bytes()))
}
