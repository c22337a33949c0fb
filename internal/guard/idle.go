package guard

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// How long a connection must have been idle to be closed, and how many are in a tick.
const (
	idleAtSoft = time.Second
	idleAtHard = 250 * time.Millisecond
	maxIdle    = 64
)

// busy counts a request on its connection, which Host.Arrived tells without a call of the host.
func (w *Worker) busy(now Time, s *Stream) {
	c := s.host.Arrived()
	if c == nil || w.idle.Mistaken() || w.idle.Verifies(&c.use) && s.conn() != c {
		return
	}
	c.use.Begin(now, c)
	s.counted = c
}

// unbusy takes it away again.
func (w *Worker) unbusy(now Time, s *Stream) {
	c := s.counted
	if c == nil {
		return
	}
	s.counted = nil
	// After a request that was not all sent Envoy closes an HTTP/1 connection by itself, and not
	// before delayed_close_timeout, so that the client reads its answer.
	unfinished := !s.http2 && (!s.Ended(budget.Request) || s.state == rejected && s.pauseCost > 0 && !s.Shadow())
	w.idle.End(now, &c.use, !c.IsClosed && !unfinished)
}

// compare holds the connection that a request is on against the one that was taken for it.
func (w *Worker) compare(exact, arrived *Connection) {
	if exact == nil || exact.Context == 0 || exact == arrived || w.idle.Mistaken() {
		return // without the network filter nothing is counted on it
	}
	w.idle.Mistake()
	w.telling.later("another filter holds requests back before they come to highwater: which connections are idle can't be told, and this worker closes none any more; put highwater first of http_filters")
}

// closeIdle picks connections to close, where memory is short. What a large response has left in
// one may be unread for 10 s.
func (w *Worker) closeIdle(now Time, a *Actions) {
	level, least := w.account.Table().Level, idleAtSoft
	if level >= budget.Hard {
		least = idleAtHard
	}
	least = w.idle.Tick(now, least)
	if level < budget.Soft || w.idle.Mistaken() || w.account.Stale(now) {
		return
	}
	for range maxIdle {
		c := w.idle.First(now, least)
		if c == nil {
			return
		}
		if c.unread || c.use.Pauses(now) {
			w.idle.Postpone(&c.use)
			continue
		}
		c.use.Leave()
		w.counts[CountClosedIdle]++
		if !c.observed && w.claimCut(c) {
			a.Idle = append(a.Idle, c)
		}
	}
}
