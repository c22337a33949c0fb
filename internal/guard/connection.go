package guard

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
)

// Peer tells whose a connection is.
type Peer interface {
	Source() string // address of the client, without its port
	// Uploads says that what comes first is an upload over HTTP/1. It is asked while it comes, and
	// seldom.
	Uploads() bool
}

// OpenConnection says whether a new connection is admitted, and counts it if so. One that is not is
// to be closed, and is none of ours any more.
func (g *Guard) OpenConnection(now Time, c *Connection, p Peer) (admitted bool) {
	w := g.worker
	cost := int64(g.config.Costs.Connection)
	var source *key // if that is what connections are told apart by, and there is a limit to share out
	if g.config.Fairness.By == bySource && w.limits.Connections > 0 {
		source = g.named(now, fairness.Name{By: bySource, Value: p.Source()})
	}
	if !w.admits(now, source, cost) {
		w.counts[CountRefused]++
		if g.config.Mode != Observe {
			return false
		}
	}
	if source != nil {
		c.source = source
		source.Refs++
		source.Value.open++
		w.sources++
		w.stirred = true
	}
	c.observed = g.config.Mode == Observe
	if !g.lets() && !g.mayExempt(burden) { // whose requests are never turned away is not known at their first bytes
		c.silent = p
	}
	w.account.OpenConnection(&c.Connection, cost)
	w.account.Cover(now)
	return true
}

// admits asks for a connection, first by number, then by what it costs.
func (w *Worker) admits(now Time, source *key, cost int64) bool {
	if source != nil && w.crowds(now, source) || w.account.AskConnection(now) != budget.Granted {
		return false
	}
	// Only above hard, and only what does not fit under the limit, and only where all connections
	// together cost more than the floor: refused above hard by itself, a fifth of the bystanders
	// that reconnect were lost, and in the same floor with small requests, a crowd of those kept
	// others from connecting. Without a recent reading the level is that of another time.
	t := w.account.Table()
	open := w.account.Own().Connections + w.account.Others().Connections
	return t.Level < budget.Hard || t.Futile || w.account.Stale(now) || (open+1)*cost <= w.account.Floor() || w.account.Ask(now, cost, budget.Full) != budget.Denied
}

// crowds says that the last eighth of the connections is for others: of sources that have less than
// their part of all, so that one that takes what it gets does not lock them out.
func (w *Worker) crowds(now Time, source *key) bool {
	if !w.scarce() {
		return false
	}
	if w.account.Refresh(now) != nil {
		w.HostError()
	}
	if w.account.FreeConnections() > w.limits.Connections/spareShare {
		return false
	}
	if now-w.shares.at >= sharesEvery {
		w.exchangeShares(now)
	}
	v := &source.Value
	return v.open+v.elsewhere >= v.part
}

// scarce says that connections may soon be short: it is worth to know who has how many.
func (w *Worker) scarce() bool {
	return w.account.FreeConnections() <= 2*w.limits.Connections/spareShare
}

// inUse is whether there are requests on a connection. The zero value is one that has had none.
type inUse struct {
	live           int  // requests
	http           bool // there has been one: a raw connection is never idle
	observed       bool // mode observe: it is never closed
	since          Time // without a request and without bytes of its client
	ended          Time // its last request
	pause          Time // the longest without a request of late
	before, behind *Connection
}

// idle are a worker's connections that have had requests and have none now, those without for
// longest first, but for those that had to be passed over.
type idle struct {
	ring     Connection // no connection: the ends of the list
	requests uint       // counts them, to verify some
	ticked   Time
	mistaken bool   // Host.Arrived was wrong once: who is idle can't be told
	event    string // to be logged; empty = nothing
}

const (
	idleAtSoft = time.Second
	idleAtHard = 250 * time.Millisecond
	maxIdle    = 64 // closed in a tick
	// Who asks for something every now and then is not idle between: to be closed he must have
	// paused for pauses times as long as he did before, or for maxPause. Else a worker that is
	// behind closes a connection whose next request has come, and is lost with it.
	pauses   = 4
	maxPause = 10 * time.Second
	// idleTicks: a worker whose ticks come late is behind with what it reads too.
	idleTicks = 10
	// verifyEvery: of so many requests one is asked for its connection, which is a call of the
	// host.
	verifyEvery = 256
)

// busy counts a request on its connection, which Host.Arrived tells without a call. That can be
// wrong: of a listener without the network filter it is a connection of another one, and where a
// filter before ours held the request back it is the one whose bytes came meanwhile. So a
// connection is asked for once, before it counts as one of HTTP, and now and then.
func (w *Worker) busy(now Time, s *Stream) {
	c := s.host.Arrived()
	if c == nil || w.idle.mistaken {
		return
	}
	w.idle.requests++
	if (!c.http || w.idle.requests%verifyEvery == 0) && s.conn() != c {
		return
	}
	if c.http && c.live == 0 {
		c.pause = max(now-c.ended, c.pause-c.pause/8)
	}
	c.http = true
	c.live++
	c.leaveIdle()
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
	unfinished := !s.http2 && (!s.Ended(budget.Request) || s.phase == rejected && s.pauseCost > 0 && !s.shadow)
	c.ended = now
	if c.live--; c.live == 0 && !c.IsClosed && !unfinished {
		c.since = now
		w.idle.join(c)
	}
}

// compare holds the connection that a request is on against the one that was taken for it.
func (w *Worker) compare(exact, arrived *Connection) {
	if exact == nil || exact.Context == 0 || exact == arrived || w.idle.mistaken {
		return // without the network filter nothing is counted on it
	}
	w.idle.mistaken = true
	w.idle.event = "another filter holds requests back before they come to highwater: which connections are idle can't be told, and this worker closes none any more; put highwater first of http_filters"
}

// closeIdle picks connections to close, where memory is short. What a large response has left in
// one may be unread for 10 s.
func (w *Worker) closeIdle(now Time, a *Actions) {
	level, behind := w.account.Table().Level, now-w.idle.ticked
	w.idle.ticked = now
	if level < budget.Soft || w.idle.mistaken || w.account.Stale(now) {
		return
	}
	least := idleAtSoft
	if level >= budget.Hard {
		least = idleAtHard
	}
	least = max(least, idleTicks*behind)
	for range maxIdle {
		c := w.idle.ring.behind
		if c == &w.idle.ring || now-c.since < least {
			return
		}
		c.leaveIdle()
		if c.unread || now-c.since < min(pauses*c.pause, maxPause) {
			w.idle.join(c)
			continue
		}
		w.counts[CountClosedIdle]++
		if !c.observed && w.mayCut(c) {
			a.Idle = append(a.Idle, c)
		}
	}
}

func (i *idle) join(c *Connection) {
	c.before, c.behind = i.ring.before, &i.ring
	c.before.behind, c.behind.before = c, c
}

// touch puts a connection that is idle behind all others.
func (i *idle) touch(now Time, c *Connection) {
	if c.behind != nil {
		c.since = now
		c.leaveIdle()
		i.join(c)
	}
}

func (c *Connection) leaveIdle() {
	if c.behind != nil {
		c.before.behind, c.behind.before = c.behind, c.before
		c.before, c.behind = nil, nil
	}
}
