package guard

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// trials are the connections that had no room when they came. What they bring is not known yet: a
// bystander's small request, or what fills the memory. Refused at once, one bystander in eight was
// lost among clients that upload 60 KiB each; let in, each of those was judged when its bytes were
// there. So a connection is on trial until its first request has begun:
//
//	it brings more than modest   closed if that has no room, and what came is thrown away; more
//	                             than c.from, where a request so large may be exempt
//	it brings nothing for long   closed
//	its request begins           over: that is judged as any
//	it is answered before that   over: its requests are none of ours, or it is raw
//
// All that are on trial have as much as the floor at most. Beyond that a connection is refused.
type trials struct {
	tried []*Connection // in the order in which they came; those whose trial is over too
	onTry int64         // those whose trial is not

	triedFor int64 // what the last costs, bytes
}

const (
	modest   = 4 << 10         // TestAConnectionWithoutRoomIsOnTrial
	trialFor = 2 * time.Second // TestAConnectionWithoutRoomIsOnTrial
)

// letIn says whether a new connection is let in, be it on trial.
func (g *Guard) letIn(now Time, c *Connection, p Peer, source *key, cost int64) bool {
	w := g.worker
	if !w.admitConnection(now, source) {
		return false
	}
	fits := w.fits(now, cost)
	if !fits && !w.tries(cost) || !g.admitRaw(now, c, p) {
		return false
	}
	if fits {
		return true
	}
	if c.price > 0 {
		return false // raw ones are never on trial: it would say nothing
	}
	w.try(c, cost)
	return true
}

// tries says whether there is room for one more on trial. Where another filter holds requests back,
// it can't be told when one begins.
func (w *Worker) tries(cost int64) bool {
	workers := int64(max(len(w.account.Table().Entries), 1))
	return (w.onTry+1)*cost*workers <= w.account.Floor() && !w.idle.Mistaken()
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
		if w.burdens(now, p, n, c.from) {
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
	if c.from == 0 || c.since+n <= c.from || w.account.Ask(now, n, budget.Full) != budget.Denied {
		return false
	}
	w.endTrial(c)
	w.counts[metric.CountRefused]++
	return !c.observed
}

// closeTried picks the connections to close that have brought nothing for long. Where there is room
// again, all have passed.
func (w *Worker) closeTried(now Time, least Time, a *Actions) {
	fits := w.fits(now, w.triedFor) || w.idle.Mistaken()
	kept := w.tried[:0]
	for _, c := range w.tried {
		switch {
		case fits:
			w.endTrial(c)
		case c.onTrial && c.last == 0 && now-c.came >= max(trialFor, least) && len(a.Idle) < maxIdle && w.claimCut(c):
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
// that its connection can be closed at once.
func (w *Worker) burdens(now Time, p Peer, n, from int64) bool {
	if len(w.closing) < manyClosing {
		from = burden
	}
	return n >= from && len(w.closing) > 0 && w.account.Ask(now, n, budget.Full) == budget.Denied && p.Uploads()
}
