package guard

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/httptext"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// TLS notes that the connection turned out to be a TLS one.
func (g *Guard) TLS(now Time, c *Connection) {
	g.worker.account.RaiseConnection(&c.Connection, int64(g.config.Costs.TLSConnection))
	g.worker.account.Cover(now)
}

// Data notes n bytes that came on the connection. The HTTP filter does not see what a paused
// request's client sends. Where it says refused, they are to be thrown away, and the connection
// closed: see burdens.
func (w *Worker) Data(now Time, c *Connection, n int64) (refused bool) {
	if (c.silent != nil || c.onTrial) && w.refuses(now, c, n) || w.refusesHeaders(now, c, n) {
		return true
	}
	c.last = n
	c.since += n
	w.idle.Touch(now, &c.use)
	if c.unread {
		// The next request: on HTTP/1 the response before it has been read.
		w.account.Leave(now, &c.Connection, 0, nil)
	}
	switch {
	case c.paused != nil:
		s := c.paused
		if s.Shadow() {
			n = max(min(n, s.pauseCost-c.arrived), 0) // it is not paused, and the rest passes
		} else if s.state == queued && s.total() > int64(w.budget.Small) && w.overflows(now, n) {
			w.refuseWaiting(now, s)
			return true
		}
		c.arrived += n
		c.paused.sends(n)
		w.account.PassPaused(&c.paused.Stream, n)
		w.account.Cover(now)
	case c.costs > 0 && !c.observed:
		w.account.PassShared(&c.Connection, n, c.costs)
		w.account.Cover(now)
	}
	return false
}

// CloseConnection ends a connection: its cost, its place in its source's count, its trial.
func (w *Worker) CloseConnection(now Time, c *Connection) {
	c.IsClosed = true
	w.endTrial(c)
	if c.carries != nil {
		w.closeRaw(now, c)
	}
	c.paused = nil
	c.use.Leave()
	if c.source != nil {
		c.source.Value.Open--
		w.sources--
		c.source.Refs--
		c.source = nil
	}
	w.account.CloseConnection(&c.Connection)
}

// OpenConnection says whether a new connection is admitted, and counts it if so. One that is not is
// to be closed, and is none of ours any more.
func (g *Guard) OpenConnection(now Time, c *Connection, p Peer) (admitted bool) {
	w := g.worker
	cost := int64(g.config.Costs.Connection)
	var source *key // if that is what connections are told apart by, and there is a limit to share out
	if g.config.Fairness.By == config.BySource && w.limits.Connections > 0 {
		source = g.named(now, fairness.Name{By: config.BySource, Value: p.Source()})
	}
	if !g.letIn(now, c, p, source, cost) {
		w.counts[metric.CountRefused]++
		if g.config.Mode != config.Observe {
			return false
		}
	}
	if source != nil {
		c.source = source
		source.Refs++
		source.Value.Open++
		w.sources++
	}
	c.observed = g.config.Mode == config.Observe
	if !g.observesBeside() && !g.mayExempt(burden) { // whose requests are never rejected is not known at their first bytes
		c.silent, c.peer, c.from, c.most = p, p, burden, 2*int64(g.config.Buffers.Downstream)
		if c.Read > 0 {
			c.most = c.Read
		}
		if !g.mayExempt(modest) {
			c.from = modest
		}
	}
	c.came = now
	w.account.OpenConnection(&c.Connection, cost)
	w.account.Cover(now)
	if c.price > 0 {
		g.carry(now, c, p)
	}
	return true
}

// admitConnection asks for a connection by number. The last eighth of all is for sources that have
// less than their part, so that one that takes what it gets does not lock the others out.
func (w *Worker) admitConnection(now Time, source *key) bool {
	if source != nil && w.scarce() {
		w.countConnections(now)
		if w.lastConnections() && source.Value.HasItsPart() {
			return false
		}
	}
	return w.account.AskConnection(now) == budget.Granted
}

// fits says whether one more connection has room.
func (w *Worker) fits(now Time, cost int64) bool {
	// There is none only above hard, and only where it does not fit under the limit, and only where
	// all connections together cost more than the floor: refused above hard by itself, a fifth of
	// the bystanders that reconnect were lost, and in the same floor with small requests, a crowd
	// of those kept others from connecting. Without a recent reading the level is that of another
	// time.
	t := w.account.Table()
	open := w.account.Own().Connections.Open + w.account.Others().Connections.Open
	return t.Level < budget.Hard || t.Futile || w.account.Stale(now) || !w.measuresSoft(now) ||
		(open+1)*cost <= w.account.Floor() || w.account.Ask(now, cost, budget.UpToLimit) != budget.Denied
}

// countConnections learns how many connections the other workers have, and, where the last are
// given out, who has them.
func (w *Worker) countConnections(now Time) {
	if w.account.Refresh(now) != nil {
		w.HostError()
	}
	if w.lastConnections() && now-w.shares.at >= sharesEvery {
		w.exchangeShares(now)
	}
}

// lastConnections says that no more are left than are kept for others.
func (w *Worker) lastConnections() bool {
	return w.account.FreeConnections() <= w.limits.Connections/othersShare
}

// How long a connection must have been idle to be closed, and how many are in a tick.
const (
	idleAtSoft = time.Second            // TestIdleConnectionsAreClosed
	idleAtHard = 250 * time.Millisecond // TestIdleConnectionsAreClosed
	maxIdle    = 64                     // TestIdleConnectionsAreClosed
)

// busy counts a request on its connection, which Host.Arrived tells without a call of the host.
func (w *Worker) busy(now Time, s *Stream) {
	if w.onTry > 0 {
		if c := s.conn(); c != nil {
			w.endTrial(c)
		}
	}
	c := s.host.Arrived()
	if c == nil || w.idle.Mistaken() || w.idle.Verifies(&c.use) && s.conn() != c {
		return
	}
	c.use.Begin(now, c)
	s.busyOn = c
	if c.kind != speaksHTTP {
		w.speaks(now, c)
	}
}

// unbusy ends that: from here on the connection may be idle.
func (w *Worker) unbusy(now Time, s *Stream) {
	c := s.busyOn
	if c == nil {
		return
	}
	s.busyOn = nil
	c.since = 0
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
	w.telling.Later("another filter holds requests back before they come to highwater: which connections are idle can't be told, and this worker closes none any more; put highwater first of http_filters")
}

// closeIdle picks connections to close, where memory is short. What a large response has left in
// one may be unread for 10 s.
func (w *Worker) closeIdle(now Time, a *Actions) {
	level, least := w.account.Table().Level, idleAtSoft
	if level >= budget.Hard {
		least = idleAtHard
	}
	least = w.idle.Tick(now, least)
	if len(w.tried) > 0 {
		w.closeTried(now, least, a)
	}
	if level < budget.Soft || w.idle.Mistaken() || w.account.Stale(now) {
		return
	}
	for range maxIdle - len(a.Idle) {
		c := w.idle.First(now, least)
		if c == nil {
			return
		}
		if c.unread || c.use.Pauses(now) {
			w.idle.Postpone(&c.use)
			continue
		}
		c.use.Leave()
		w.counts[metric.CountClosedIdle]++
		if !c.observed && w.claimCut(c) {
			a.Idle = append(a.Idle, c)
		}
	}
}

// leave notes what an ended response may still hold, unread, on its connection.
func (w *Worker) leave(now Time, c *Connection, n int64, k *key) {
	w.account.Leave(now, &c.Connection, n, &k.Value.Sum)
	if c.key != nil {
		c.key.Refs--
	}
	c.key, c.evictedOnce = k, false
	k.Refs++
	if !c.unread {
		c.unread = true
		w.residual = append(w.residual, c)
	}
}

// settle lets what ended responses left become less likely with time.
func (w *Worker) settle(now Time) {
	if now-w.settled < 500*time.Millisecond {
		return
	}
	w.settled = now
	kept := w.residual[:0]
	for _, c := range w.residual {
		if !c.IsClosed && w.account.Settle(now, &c.Connection) {
			kept = append(kept, c)
		} else {
			c.unread = false
			c.key.Refs--
			c.key = nil
			c.traced = traced{}
		}
	}
	clear(w.residual[len(kept):])
	w.residual = kept
}

// end and claimCut keep the rules by which Envoy survives (docs/envoy-facts.md has the crashes): in
// one call of the host, a stream is ended once, and who closes a connection has done nothing else
// to it. Whatever a tick ends goes through one of them. A stream that was ended is no longer live,
// and a connection that was closed is gone.
func (w *Worker) end(c *Connection) {
	if c != nil {
		c.endedIn = w.ticks
	}
}

// claimCut says whether the connection may be closed in this tick, and if so notes that it will be.
// Every close by a tick asks here first, and is then listed in Actions.Close (connections of
// rejected requests), Cut (evicted, and raw ones) or Idle (idle, or on trial for too long). What
// OpenConnection or Data refuses the face closes at once. Where Data refused one with a waiting
// request (refuseWaiting) it is in closing too, and IsClosed keeps it from being closed twice.
func (w *Worker) claimCut(c *Connection) bool {
	if c.IsClosed || c.endedIn == w.ticks || c.cut == w.ticks {
		return false
	}
	c.cut = w.ticks
	return true
}

const (
	modest   = 4 << 10         // TestAConnectionWithoutRoomIsOnTrial
	trialFor = 2 * time.Second // TestAConnectionWithoutRoomIsOnTrial
)

// A connection is on trial if it had no room when it came. What they bring is not known yet: a
// bystander's small request, or what fills the memory. Refused at once, one bystander in eight was
// lost among clients that upload 60 KiB each; let in, each of those was judged when its bytes were
// there. So a connection is on trial until its first request has begun:
//
//	it brings more than modest   closed if that has no room, and what came is thrown away; more
//	                             than c.from, where a request so large may be exempt
//	it brings nothing for long   closed
//	others come, and it is late  closed: who says nothing keeps no place from those who come
//	its request begins           over: that is judged as any
//	it is answered before that   over: its requests are none of ours, or it is raw
//
// All that are on trial have as much as the floor at most, and until the next tick a quarter more.
// Beyond that a connection is refused.
//
// letIn says whether a new connection is let in, be it on trial.
func (g *Guard) letIn(now Time, c *Connection, p Peer, source *key, cost int64) bool {
	w := g.worker
	if !w.admitConnection(now, source) {
		return false
	}
	fits := w.fits(now, cost)
	if !fits && !w.tries(cost) {
		return false
	}
	hasRoom := g.admitRaw(now, c, p)
	switch {
	case !hasRoom && !g.letsRaw(), !fits && c.price > 0: // raw ones are never on trial: it would say nothing
		return false
	case !hasRoom:
		w.counts[metric.CountRefused]++
	case !fits:
		w.try(c, cost)
	}
	return true
}

// tries says whether there is room for one more on trial. Where another filter holds requests back,
// it can't be told when one begins.
func (w *Worker) tries(cost int64) bool {
	n := w.places(cost)
	return w.onTry < n+n/untilTick && !w.idle.Mistaken()
}

// untilTick: 1/4 more than have a place come in until the next tick, which closes as many of those
// that came first.
const untilTick = 4 // TestAConnectionWithoutRoomIsOnTrial

// places is how many connections may be on trial.
func (w *Worker) places(cost int64) int64 {
	workers := int64(max(len(w.account.Table().Entries), 1))
	return w.account.Floor() / max(cost*workers, 1)
}

// try puts a connection on trial. Ask tries first.
func (w *Worker) try(c *Connection, cost int64) {
	c.onTrial = true
	w.onTry++
	w.triedFor = cost
	w.tried = append(w.tried, c)
}

// endTrial is when its request begins, or when it closes.
func (w *Worker) endTrial(c *Connection) {
	if c.onTrial {
		c.onTrial = false
		w.onTry--
	}
}

// refuses says that n bytes, the first or on trial, are too many.
func (w *Worker) refuses(now Time, c *Connection, n int64) bool {
	if p := c.silent; p != nil {
		c.silent = nil
		if w.burdens(now, p, n, c.from, c.most) {
			w.count(verdict.Closed)
			w.counts[metric.CountClosedConnections]++
			if !c.observed {
				return true
			}
			c.doomed = true
			w.endTrial(c) // it is counted once
		}
	}
	return c.onTrial && w.fails(now, c, n)
}

// fails notes n bytes of a connection that is on trial, and says whether they are too many. They
// are not where its request may be exempt, or where it is answered already: that is none of ours.
func (w *Worker) fails(now Time, c *Connection, n int64) bool {
	if c.passed[budget.Response] > 0 || w.idle.Mistaken() {
		w.endTrial(c)
		return false
	}
	if c.from == 0 || c.since+n <= c.from || w.account.Ask(now, n, budget.UpToLimit) != budget.Denied {
		return false
	}
	w.endTrial(c)
	w.counts[metric.CountRefused]++
	return !c.observed
}

// closeTried picks the connections to close that have brought nothing for long, and the first of
// more than have a place. Where there is room again, all have passed.
func (w *Worker) closeTried(now Time, least Time, a *Actions) {
	fits := w.fits(now, w.triedFor) || w.idle.Mistaken()
	late := func(c *Connection) bool {
		return w.onTry > w.places(w.triedFor) || c.last == 0 && now-c.came >= max(trialFor, least)
	}
	kept := w.tried[:0]
	for _, c := range w.tried {
		switch {
		case fits, c.passed[budget.Response] > 0:
			w.endTrial(c)
		case c.onTrial && late(c) && len(a.Idle) < maxIdle && w.claimCut(c):
			w.endTrial(c)
			w.counts[metric.CountRefused]++
			if !c.observed {
				a.Idle = append(a.Idle, c)
			}
		}
		if c.onTrial {
			kept = append(kept, c)
		}
	}
	clear(w.tried[len(kept):])
	w.tried = kept
}

const (
	// burden is how much a client has to send at first to be taken for one who uploads.
	burden = 256 << 10 // TestWhatComesFirstIsRefusedWhileOthersAreToBeClosed
	// Where so many are to be closed, it is more than modest. 4,000 clients of 60 KiB that came
	// back at once had a hundred MiB on connections that waited for the next tick.
	manyClosing = 32 // TestWhatComesFirstIsRefusedWhileOthersAreToBeClosed
)

// burdens says that what a client sends first is an upload, and has no room under the limit, while
// others are to be closed for that. Those have to wait for the next tick, and until then a pass of
// Envoy's event loop reads a buffer of each that comes. This one's request has not been begun, so
// that its connection can be closed at once. It is let in where it may wait, with all that may
// come of it then.
func (w *Worker) burdens(now Time, p Peer, n, from, most int64) bool {
	if len(w.closing) < manyClosing {
		from = burden
	}
	if n < from || len(w.closing) == 0 || w.account.Ask(now, n, budget.UpToLimit) != budget.Denied {
		return false
	}
	mayWait := w.queues(int64(w.throttle.Queue)) && !w.account.Stale(now) && w.foresees(most, 0, w.account.Room()/heldShare)
	return !mayWait && p.Uploads()
}

// crowds says that n bytes that came on a connection are large headers without room: they are to be
// thrown away, and the connection closed. To reject their request would free them late: Envoy
// deletes what has ended when it has been through all sockets that were ready, and where that takes
// a second 400 such requests hold 65 MiB. One whose method has a body, or can't be told, is judged
// as any, for an upload may wait; so is one that may be exempt.
func (w *Worker) crowds(now Time, c *Connection, n int64) bool {
	if c.from == 0 || c.use.Requests() > 0 || c.paused != nil || c.costs > 0 || c.kind == isRaw || w.idle.Mistaken() {
		return false
	}
	least := max(headersFrom, c.from)
	noRoom := func(n int64) bool {
		return n >= least && w.account.Ask(now, headersKept*n, budget.UpToLimit) == budget.Denied
	}
	if c.since == 0 {
		c.asks = (w.account.Table().Level >= budget.Hard || noRoom(n)) && httptext.HasNoBody(c.peer.Method())
	}
	return c.asks && noRoom(c.since+n)
}

// refusesHeaders counts such a connection, and says whether it is refused.
func (w *Worker) refusesHeaders(now Time, c *Connection, n int64) bool {
	if !w.crowds(now, c, n) {
		return false
	}
	w.count(verdict.Closed)
	w.counts[metric.CountClosedConnections]++
	w.endTrial(c)
	c.doomed = c.observed
	return !c.observed
}
