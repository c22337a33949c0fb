package sim

import (
	"cmp"
	queue "container/heap"
	"container/list"
	"slices"
	"time"
)

// Source is a load that is too long to be held as a list.
type Source interface {
	// Next is the next client, in the order of their Start; nil = there is none any more. One whose
	// Start has passed begins at once.
	Next() *Client
	// Tell says what became of a try.
	Tell(o Outcome)
	// See shows how much is in use at a moment since the beginning, and which streams hold it, no
	// more often than once in 20 ms.
	See(at Time, m Memory, held func(visit func(c *Client, bytes int64)))
	// Enough says that nothing more is wanted: the load ends.
	Enough() bool
}

// What became of a try.
type What uint8

// Admitted comes before the others.
const (
	Admitted What = iota
	Done
	Rejected
	Cut     // rejected, or evicted, when its response had begun
	Closed  // with its connection, by the filter
	Refused // its connection was
	GaveUp  // by its client
)

// Outcome is what became of a try.
type Outcome struct {
	Client *Client
	What   What
	Reason string // of Rejected and Cut: the filter's
	Waited Time   // in the filter's queue so far
	Since  Time   // the call was made first
	Bytes  int64  // of bodies, of Done
}

const (
	// keepAlive is how long a client of a Source keeps a connection that has an id and no call.
	keepAlive = 10 * time.Second
	// mostWaiting is how many clients of a Source may have a call to make. While there are more,
	// nobody asks it for others: they come later than they would.
	mostWaiting = 100_000
)

// sourced is what a load with a Source has more.
type sourced struct {
	source Source
	ahead  *client // of the source, not yet due
	due    dueHeap
	closed bool       // nobody makes a call any more
	under  int        // calls under way
	parked *list.List // connections on which nothing is under way: the one that was used least lately first
	shown  Time
	used   map[*Conn]Time // parked since
}

func (e *Envoy) from(s Source) {
	if s != nil {
		e.sourced = &sourced{source: s, parked: list.New(), used: map[*Conn]Time{}, shown: -time.Hour}
		e.pull()
	}
}

// close is the end of the load's duration.
func (e *Envoy) close() {
	if e.sourced != nil {
		e.closed, e.ahead, e.due = true, nil, nil
	}
}

func (e *Envoy) pull() {
	e.ahead = nil
	if len(e.due) >= mostWaiting {
		return
	}
	if c := e.source.Next(); c != nil {
		e.ahead = &client{Client: c, next: e.start + c.Start}
	}
}

// arrive lets those make their calls for whom it is time.
func (e *Envoy) arrive() {
	if e.sourced == nil {
		return
	}
	if e.ahead == nil {
		e.pull()
	}
	for e.ahead != nil && e.ahead.next <= e.now {
		c := e.ahead
		e.enchain(c)
		e.pull()
	}
	for len(e.due) > 0 && e.due[0].next <= e.now {
		c := queue.Pop(&e.due).(*client)
		c.queued = false
		if c.Stop > 0 && e.now >= e.start+c.Stop {
			continue // it has made its last call
		}
		if e.make(c); c.busy {
			c.under = true
			e.under++
		} else if !c.queued && !spent(c) {
			c.next = e.now + step // its connection is not free
			e.enqueue(c)
		}
	}
}

// enchain gives a client its place behind the call before it.
func (e *Envoy) enchain(c *client) {
	if c.Chain == nil {
		e.enqueue(c)
		return
	}
	if c.Chain.busy {
		c.Chain.waiting = append(c.Chain.waiting, c)
		return
	}
	c.Chain.busy = true
	if c.Chain.ended > 0 {
		c.next = max(c.next, c.Chain.ended+c.Gap)
	}
	e.enqueue(c)
}

func (e *Envoy) enqueue(c *client) {
	if e.closed {
		return
	}
	c.queued = true
	queue.Push(&e.due, c)
}

// reach takes a connection to the upstream, or has one made: until that is there Envoy reads the
// request and passes nothing on. It is when the worker has been at all else that is ready, twice.
func (e *Envoy) reach(s *Stream) {
	if e.sourced == nil {
		return
	}
	w := &e.workers[s.Conn.Worker]
	if w.pool > 0 {
		w.pool--
		return
	}
	s.ready = w.round + 2
}

// spent says that a client has made its calls.
func spent(c *client) bool { return !c.pending && c.Calls > 0 && c.made >= c.Calls }

// rests is told of a client whose call has come to an end, or is to be made again.
func (e *Envoy) rests(c *client) {
	if e.sourced == nil || c.queued {
		return
	}
	if c.under { // else it was refused a connection
		c.under = false
		e.under--
	}
	if !spent(c) {
		e.enqueue(c)
		return
	}
	if chain := c.Chain; chain != nil {
		chain.busy, chain.ended = false, e.now
		if len(chain.waiting) > 0 {
			next := chain.waiting[0]
			chain.waiting = chain.waiting[1:]
			e.enchain(next)
		}
	}
}

// tell tells the source what became of a try.
func (e *Envoy) tell(s *Stream, what What) {
	if e.sourced == nil {
		return
	}
	o := Outcome{Client: s.client.Client, What: what, Reason: s.Reason, Waited: s.waited, Since: e.now - s.client.begun}
	if s.paused {
		o.Waited = e.now - s.since
	}
	if what == Done {
		o.Bytes = s.Call.Body + s.Call.Response
	}
	e.source.Tell(o)
}

// show shows the source what is held.
func (e *Envoy) show() {
	if e.now-e.shown < e.report.Every || e.closed && e.under == 0 {
		return
	}
	e.shown = e.now
	e.source.See(e.now-e.start, Memory{InUse: e.heap.inUse(), Allocated: e.heap.live}, func(visit func(*Client, int64)) {
		for i := range e.workers {
			for _, c := range e.workers[i].conns {
				for _, s := range c.streams {
					if s.opened {
						visit(s.client.Client, s.held+s.answer+e.StreamCost)
					}
				}
			}
		}
	})
}

// sleep notes until when nothing moves on a connection, on which nothing has just now, and parks it
// where there is nothing at all.
func (e *Envoy) sleep(w *worker, c *Conn) {
	if e.sourced == nil || c.gone {
		return
	}
	if c.until > 0 {
		c.wake = c.until
		if s := c.sender; s != nil && !s.started && c.unread < e.Downstream && s.sent < s.Call.Body {
			c.wake = s.sending.at(e.now, s.Call.Body-s.sent)
		}
		return
	}
	if len(c.streams) > 0 || c.rest > 0 || c.kernel > 0 {
		c.wake = e.soonest(c)
		return
	}
	last := len(w.conns) - 1
	if i := slices.Index(w.conns, c); i >= 0 {
		w.conns[i] = w.conns[last]
		w.conns = w.conns[:last]
		w.next = min(i, last)
	}
	c.parked = e.parked.PushBack(c)
	e.used[c] = e.now
}

// unpark gives a connection back to its worker.
func (e *Envoy) unpark(c *Conn) {
	if e.sourced == nil || c.parked == nil {
		return
	}
	e.parked.Remove(c.parked)
	delete(e.used, c)
	c.parked = nil
	w := &e.workers[c.Worker]
	w.conns = append(w.conns, c)
}

// dropped forgets a connection that is gone. It says whether it was parked.
func (e *Envoy) dropped(c *Conn) bool {
	if c.owner != nil {
		if id := cmp.Or(c.owner.HTTP2, c.owner.Conn); id > 0 && e.shared[id] == c {
			delete(e.shared, id)
		}
	}
	if c.parked == nil {
		return false
	}
	e.parked.Remove(c.parked)
	delete(e.used, c)
	c.parked = nil
	return true
}

func (e *Envoy) stopped() bool { return e.sourced != nil && e.source.Enough() }

func (e *Envoy) parkedCount() int {
	if e.sourced == nil {
		return 0
	}
	return e.parked.Len()
}

func (e *Envoy) parkedConns() (all []*Conn) {
	if e.sourced == nil {
		return nil
	}
	for p := e.parked.Front(); p != nil; p = p.Next() {
		all = append(all, p.Value.(*Conn))
	}
	return all
}

// dueHeap is of clients by when they make their next call.
type dueHeap []*client

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].next < h[j].next }
func (h dueHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *dueHeap) Push(x any)        { *h = append(*h, x.(*client)) }
func (h *dueHeap) Pop() any {
	old := *h
	c := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return c
}
