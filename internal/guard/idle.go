package guard

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
)

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
	mistaken bool // Host.Arrived was wrong once: who is idle can't be told
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
	unfinished := !s.http2 && (!s.Ended(budget.Request) || s.state == rejected && s.pauseCost > 0 && !s.Shadow())
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
	w.telling.later("another filter holds requests back before they come to highwater: which connections are idle can't be told, and this worker closes none any more; put highwater first of http_filters")
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
		if !c.observed && w.claimCut(c) {
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
