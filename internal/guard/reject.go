package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/retryafter"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// rejectFor rejects a request, in the queue or not, or one that grew. A reject costs memory too:
// until its connection is closed, which takes Envoy's delayed_close_timeout, what an unfinished
// HTTP/1 request has sent lies unread. Where that has no room there is no answer, and the
// connection is closed instead.
func (g *Guard) rejectFor(now Time, s *Stream, reason verdict.Reason) Verdict {
	w := g.worker
	if g.observesBeside() && !s.Shadow() { // a shadow has been let go, and is to leave the queue
		w.count(reason)
		w.account.Ask(now, s.asks(), budget.Forced)
		return Verdict{Action: verdict.Admit}
	}
	if s.length == budget.Unknown && s.Seen(budget.Request) > 0 { // else the next ones grow beyond what has room too: scenario growth, TestForecastsLearn
		s.key.Value.Bodies[budget.Request].Learn(s.Held(budget.Request))
	}
	if reason == verdict.QueueFull || reason == verdict.Timeout {
		s.key.Value.rejected += s.total()
	}
	alreadyFresh := false // what it may leave unread was booked as fresh while it waited
	if s.state == queued {
		alreadyFresh = s.Awaited() == 0
		s.leaveLine()
		if !alreadyFresh {
			w.account.Unpause(&s.Stream)
		}
	}
	cost := g.cost(s)
	if g.mustClose(now, s, cost, alreadyFresh) {
		w.counts[metric.CountClosedConnections]++
		w.count(verdict.Closed) // in place of the reason: each is counted once
		s.rejectClosing(now, cost, alreadyFresh)
		return Verdict{Action: verdict.Close, Reason: reason}
	}
	w.count(reason)
	s.rejectUnread(now, cost, alreadyFresh)
	v := Verdict{Action: verdict.Answer, Reason: reason}
	if reason != verdict.TooLarge {
		v.RetryAfter = g.retryAfter(now, max(s.wants, s.Held(budget.Request)))
	}
	return v
}

// leftShare: what rejected requests leave unread may hold 1/8 of what traffic can have.
const leftShare = 8 // TestLeftoversOfAllWorkers

// mustClose says that what a rejected request leaves unread has no room until its client has read
// an answer: its connection is to be closed instead, which it can be where there is a network
// filter.
func (g *Guard) mustClose(now Time, s *Stream, cost int64, alreadyFresh bool) bool {
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
	if alreadyFresh {
		fresh = 0
	}
	if cost > w.account.Room()/leftShare-w.rejectedUnread.Bytes()-w.account.Others().Left {
		return true
	}
	return s.capped() == nil && fresh > w.account.Share(limit)-w.account.Estimate(now)+s.Held(budget.Request)
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

// dismiss rejects one who waits.
func (w *Worker) dismiss(now Time, a *Actions, c *fairness.Waiter[Stream], reason verdict.Reason) {
	s, waited := c.Value, unit.Duration(now-c.Since)
	v := s.guard.rejectFor(now, s, reason)
	if s.Shadow() {
		return
	}
	v.Waited = waited
	if v.Action == verdict.Answer {
		w.end(s.connection)
	}
	a.Rejected = append(a.Rejected, Decision{s, v}) // if it is to be closed, close does that
}

// overflows says that the limit has no room for n more bytes of those who wait, by what was
// measured.
func (w *Worker) overflows(now Time, n int64) bool {
	return !w.account.Stale(now) && n > w.account.Share(1)-w.account.Measured()
}

// queues says that there is a queue, in which so many may wait, and one more place in it.
func (w *Worker) queues(most int64) bool {
	return w.throttle.Timeout > 0 && int64(w.line.Len())+w.account.Others().Queue.Waiting < most
}

// heldShare: the queue's pause costs may hold 1/4 of what traffic can have.
const heldShare = 4 // TestLineIsBounded

// foresees says that by what can be foreseen there is room for one more who waits, and may send so
// much beside its headers. held is what all who wait may hold, however much is idle.
func (w *Worker) foresees(cost, kept, held int64) bool {
	waits := w.account.Others().Queue
	missing := int64(0) // of those who wait: it may still come, and is not counted yet
	if w.account.Table().Drains() {
		missing = w.held + waits.Held - w.come - waits.Come
	}
	return kept+cost <= w.patience(held)-w.held-waits.Held && cost+missing <= w.spare()-w.account.Foreseen()
}

// patience is how much those who wait may hold, where the network filter sees what comes of them.
// What lies between soft and all that others hold, by the reading, is idle: uploads that the
// upstream reads at once hold a quarter of what they may, and up to hard where it is known that it
// does. Where it does not read, what is let in fills memory up to soft, and who waits has held of
// the room, as elsewhere.
func (w *Worker) patience(held int64) int64 {
	t := w.account.Table()
	if t.Stays() {
		return held
	}
	idle := w.account.Share(w.limits.Soft)
	if t.Drains() {
		idle = w.account.Share(w.limits.Hard)
	}
	waiting := w.come + w.account.Others().Queue.Come
	return max(held, min(patientShare*held, idle-t.Reading+waiting))
}

// overShare: a sixteenth of the room more may be foreseen, for who waits is rejected as soon as it
// comes.
const overShare = 16 // cases stock-upload, and streams-65k with a larger share

// spare is up to where may be foreseen what those who wait will hold.
func (w *Worker) spare() int64 {
	if !w.account.Table().Drains() {
		return w.account.Share(1)
	}
	return w.account.Share(1) + w.account.Room()/overShare
}

// patientShare: three times as much may be held at most.
const patientShare = 3 // case stock-upload

// refuseWaiting has the connection closed of one who waits, on which more has come than has room.
func (w *Worker) refuseWaiting(now Time, s *Stream) {
	w.count(verdict.Closed)
	w.counts[metric.CountClosedConnections]++
	w.account.Free(now, s.come)
	s.leaveLine()
	s.rejectClosing(now, s.pauseCost, true)
}

// rejectResponse rejects a request for its response, of n bytes.
func (g *Guard) rejectResponse(now Time, s *Stream, n int64) Verdict {
	a := g.worker.account
	v := Verdict{Action: verdict.Answer, Reason: verdict.ResponseSize, RetryAfter: g.retryAfter(now, n)}
	if shadow := s.reject(now); shadow {
		a.Supposes(now, &s.Stream, budget.Response, n)
		return Verdict{}
	}
	a.End(now, &s.Stream, budget.Response)
	return v
}

// outgrown rejects a request whose growth has no room, and resets a large response.
func (g *Guard) outgrown(now Time, s *Stream, d budget.Direction) Verdict {
	w := g.worker
	if d == budget.Request {
		if v := g.rejectFor(now, s, verdict.Growth); !s.Shadow() {
			return v
		}
		return Verdict{Action: verdict.Pass}
	}
	if s.Seen(d) <= int64(w.budget.Small) {
		return Verdict{}
	}
	w.count(verdict.Growth)
	w.counts[metric.CountRejectedResponses]++
	if g.observesBeside() {
		return Verdict{}
	}
	if shadow := s.reject(now); shadow {
		return Verdict{}
	}
	w.account.End(now, &s.Stream, d)
	return Verdict{Action: verdict.Reset, Reason: verdict.Growth}
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
