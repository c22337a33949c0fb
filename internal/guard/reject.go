package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/linger"
)

// rejects is what is left of those that a worker rejected.
type rejects struct {
	closing []*Stream  // their connections are to be closed
	left    linger.Sum // what the others left unread, until their connections are closed
}

// turnAway rejects a request, in line or not, or one that grew. A reject costs memory too: until
// its connection is closed, which takes Envoy's delayed_close_timeout, what an unfinished HTTP/1
// request has sent lies unread. Where that has no room there is no answer, and the connection is
// closed instead.
func (g *Guard) turnAway(now Time, s *Stream, reason Reason) Verdict {
	w := g.worker
	if g.lets() {
		w.count(reason)
		w.account.Ask(now, s.total(), budget.Forced)
		return Verdict{Action: Admit}
	}
	if s.length == budget.Unknown && s.Seen(budget.Request) > 0 {
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
const leftShare = 8

// mustClose says that what a rejected request leaves unread has no room until its client has read an
// answer: its connection is to be closed instead, which it can be where there is a network filter.
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
		limit = w.limits.Hard // as for its place in line: the rest is for the others
	}
	fresh := cost
	if counted {
		fresh = 0
	}
	return cost > w.account.Room()/leftShare-w.left.Bytes()-w.account.Others().Left ||
		fresh > w.account.Share(limit)-w.account.Estimate(now)+s.Held(budget.Request)
}

func (w *Worker) count(reason Reason) { w.counts[CountRejected+int(reason)-1]++ }

// end and claimCut keep the rules by which Envoy survives (ENVOY-FACTS: it crashes otherwise): in one
// call of the host, a stream is ended once, and who closes a connection has done nothing else to
// it. Whatever a tick ends goes through one of them. A stream that was ended is no longer live, and
// a connection that was closed is gone.
func (w *Worker) end(c *Connection) {
	if c != nil {
		c.endedIn = w.ticks
	}
}

// claimCut says whether the connection may be closed in this tick, and if so notes that it will be.
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
