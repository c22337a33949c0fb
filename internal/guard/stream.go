package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Host is whom the stream asks.
func (s *Stream) Host() Host { return s.host }

// Waiting says whether the stream is in the queue, and not as a shadow.
func (s *Stream) Waiting() bool { return s.state == queued && !s.Shadow() }

func (s *Stream) conn() *Connection {
	if s.connection == nil {
		s.connection = s.host.Connection()
		s.guard.worker.compare(s.connection, s.host.Arrived())
	}
	return s.connection
}

// sends notes n bytes that came of it while it waits.
func (s *Stream) sends(n int64) {
	if s.state == queued {
		n = min(n, s.pauseCost+s.Kept()-s.come)
		s.come += n
		s.guard.worker.come += n
	}
}

// credit is what a paused request's pause cost has become: bytes that were seen to come, and are
// counted. On HTTP/2 it can't be told of which request they are.
func (s *Stream) credit() int64 {
	if !s.seen() || s.http2 {
		return 0
	}
	return min(s.connection.arrived, s.pauseCost, s.wants)
}

// begin opens the stream: done → live.
func (s *Stream) begin(now Time, g *Guard, h Host, length int64) {
	w, b := g.worker, &g.config.Buffers
	*s = Stream{}
	s.guard, s.host, s.state, s.length, s.key, s.opened, s.waiter.Value = g, h, live, length, &w.keys.Other, now, s
	s.key.Refs++
	kept := g.keptHeaders(s)
	w.busy(now, s)
	s.askLimit()
	requestCap := 2 * g.downstream(s)
	switch {
	case length == 0:
		requestCap = 0
	case length == budget.Unknown || length > requestCap:
		requestCap = g.requestCap(s)
	}
	w.account.Open(now, &s.Stream, s, &s.key.Value.Sum, int64(g.config.Costs.Stream), kept, requestCap, int64(b.Upstream)+g.downstream(s))
}

// presume lets it go unjudged, with n bytes reserved for its response: live → presumed.
func (s *Stream) presume(n int64) {
	s.state = presumed
	s.guard.worker.account.Presume(&s.Stream, n)
}

// unpresume begins to count what its response holds, of which so much has passed, and which may be
// over: presumed → live.
func (s *Stream) unpresume(now Time) (passed int64, over bool) {
	s.state = live
	return s.guard.worker.account.Doubt(now, &s.Stream)
}

// joinLine pauses it, at a cost, among the small ones in the queue or the large: live → queued.
func (s *Stream) joinLine(now Time, small bool, cost, window int64) {
	g, w := s.guard, s.guard.worker
	s.state, s.pauseCost, s.window = queued, cost, window
	g.shade(now, s)
	s.come = cost + s.Kept()
	w.held += s.come
	soon := cost // so much comes within a round trip
	if s.seesItsOwn() {
		last := min(s.connection.last, cost)
		s.come = last + s.Kept()
		w.come += s.come
		if w.account.Table().Drains() {
			soon = last // by then others have gone on
		}
	}
	if s.seen() {
		w.account.Pause(now, &s.Stream, cost, soon)
	} else {
		w.account.PauseUnseen(&s.Stream, cost)
	}
	if c := s.connection; c != nil {
		c.Waiting++
		c.window += window
		if s.isHTTP2() {
			c.costs += cost
		} else {
			c.paused, c.arrived = s, c.last
		}
	}
	s.waiter.Size = s.total()
	if small {
		s.waiter.Size = s.wants // what it expects is a guess, by which others must not be told how long the line takes
	}
	w.line.Join(now, &s.key.Value.queue, &s.waiter, small)
	w.publish()
}

// leaveLine ends that: queued → live. What the pause costs stays in the account: it goes with
// budget.Account.Unpause or Drop.
func (s *Stream) leaveLine() {
	w := s.guard.worker
	w.line.Leave(&s.waiter)
	w.held -= s.pauseCost + s.Kept()
	if s.seesItsOwn() {
		w.come -= s.come
	}
	if c := s.connection; c != nil {
		c.Waiting--
		c.window -= s.window
		if s.http2 {
			c.costs -= s.pauseCost
		}
		if c.paused == s {
			c.paused = nil
		}
	}
	s.state = live
	w.publish()
}

// reject ends what it was let in for, with nothing left unread: live → rejected. It says whether
// that is so in the books alone.
func (s *Stream) reject(now Time) (shadow bool) {
	s.state = rejected
	s.guard.shade(now, s)
	return s.Shadow()
}

// rejectUnread has it answered, though so much of it may lie unread until its client has read the
// answer: live → rejected.
func (s *Stream) rejectUnread(now Time, cost int64, alreadyFresh bool) {
	g, w := s.guard, s.guard.worker
	s.pauseCost = cost
	if !s.Ended(budget.Request) && !s.isHTTP2() {
		w.rejectedUnread.Add(now, Time(g.config.Buffers.Linger), cost)
	}
	shadow := s.reject(now)
	if !alreadyFresh {
		w.account.Pause(now, &s.Stream, cost, cost)
	}
	if !shadow {
		w.account.End(now, &s.Stream, budget.Request)
	}
	w.publish()
	w.account.Cover(now)
}

// rejectClosing has its connection closed, where so much of it may lie unread until then:
// live → closing.
func (s *Stream) rejectClosing(now Time, cost int64, alreadyFresh bool) {
	w, c := s.guard.worker, s.connection
	s.state, s.pauseCost = closing, cost
	c.paused, c.arrived = s, c.last
	w.closing = append(w.closing, s)
	s.guard.shade(now, s)
	if !alreadyFresh {
		w.account.Pause(now, &s.Stream, cost, c.arrived)
	}
	w.publish()
	w.account.Cover(now)
}

// vanish takes its connection for closed, where it is a shadow: closing → rejected. The list of
// those that are to be closed is Worker.close's.
func (s *Stream) vanish() {
	s.state = rejected
	s.unpause()
	s.guard.worker.account.Drop(&s.Stream)
}

// unpause has what comes on its connection no longer be taken for its own.
func (s *Stream) unpause() {
	if c := s.connection; c.paused == s {
		c.paused = nil
	}
}

// End notes that a message has ended, with its body or with its trailers.
func (g *Guard) End(now Time, s *Stream, d budget.Direction) {
	if s.state == done || d == budget.Response && s.EndsUnbooked() || s.Ended(d) {
		return
	}
	if s.admitted() && s.Lengthless(d) {
		g.worker.learn(now, s.key, d, s.Held(d))
	}
	g.worker.account.End(now, &s.Stream, d)
}

// Close ends the stream, however it came to that: any state → done. It returns what a waiting one
// had waited, else 0.
func (g *Guard) Close(now Time, s *Stream) (waited unit.Duration) {
	switch s.state {
	case done:
		return 0
	case presumed, live:
		if n := s.Held(budget.Response); n > int64(g.worker.budget.Small) {
			s.leaveResponse(now, n)
		}
	case queued:
		waited = s.abandon(now)
	case rejected:
		s.linger()
	case closing:
		s.isClosed()
	}
	s.finish(now)
	return waited
}

// leaveResponse hands n bytes, which a large response may have left unread, to its connection.
func (s *Stream) leaveResponse(now Time, n int64) {
	g, w := s.guard, s.guard.worker
	if c := s.host.Arrived(); c != nil && !c.IsClosed {
		g.keyOf(now, s)
		w.leave(now, c, n, s.key)
		w.traceLeave(s, c)
	}
}

// abandon takes it out of the line, with what it has sent, and says how long it waited: a shadow
// has not.
func (s *Stream) abandon(now Time) (waited unit.Duration) {
	if !s.Shadow() {
		waited = unit.Duration(now - s.waiter.Since)
	}
	s.leaveLine()
	s.guard.worker.account.Drop(&s.Stream)
	return waited
}

// linger leaves what it has sent to its HTTP/1 connection: it is gone when that is closed. On
// HTTP/2 it is gone now.
func (s *Stream) linger() {
	a := s.guard.worker.account
	switch c := s.connection; {
	case s.pauseCost == 0, s.Shadow():
	case s.isHTTP2():
		a.Drop(&s.Stream)
	case c != nil && c.Context != 0 && !c.IsClosed:
		a.Linger(&s.Stream, &c.Connection)
	}
}

// isClosed takes it off the list of those whose connections are to be closed: what it has sent has
// gone with its own.
func (s *Stream) isClosed() {
	w := s.guard.worker
	w.account.Drop(&s.Stream)
	for i, c := range w.closing {
		if c == s {
			w.closing = append(w.closing[:i], w.closing[i+1:]...)
			break
		}
	}
	s.unpause()
}

// proven notes that the response of a request has come, or will not.
func (w *Worker) proven(s *Stream) {
	if s.unknown+s.probing == 0 {
		return
	}
	k := &s.key.Value
	k.unknown -= s.unknown
	k.probing -= s.probing
	w.probing -= s.probing
	s.unknown, s.probing = 0, 0
}

// finish gives back what a stream has in every state.
func (s *Stream) finish(now Time) {
	w := s.guard.worker
	if w.credited == s {
		w.credited = nil
	}
	w.futile.leaves(now, s.letIn)
	w.unbusy(now, s)
	w.proven(s)
	if s.sampled {
		s.key.Value.sampled--
		s.sampled = false
	}
	s.state = done
	w.account.Close(now, &s.Stream)
	s.key.Refs--
}

// Envoy keeps a request's headers for as long as it lives, and more than once: as they came, in the
// map, and as they were sent. 56 kB of them held 167 KiB (case headers-60k).
const (
	headersFrom = 4 << 10 // less is in costs.stream; TestLargeHeadersAreKept
	headersKept = 3       // TestLargeHeadersAreKept
)

// keptHeaders is what its request's headers hold, where they are large. The network filter tells by
// what has come on the connection whether they may be, and only then Envoy is asked.
func (g *Guard) keptHeaders(s *Stream) int64 {
	c := s.host.Arrived()
	if c != nil {
		came := c.since
		if c.since = 0; came < headersFrom {
			return 0
		}
	}
	n := s.host.HeaderBytes()
	if n < headersFrom {
		return 0
	}
	return headersKept * min(n, budget.Unlimited/headersKept)
}

// capped is the request's connection where its face has set caps on it; nil = it has not.
func (s *Stream) capped() *Connection {
	if c := s.host.Arrived(); c != nil && c.Read > 0 {
		return c
	}
	return nil
}

// askLimit asks how much of the request is held by what its headers have told.
func (s *Stream) askLimit() {
	c := s.capped()
	if c == nil {
		return
	}
	s.bodyLimit = s.host.BodyLimit()
	switch {
	case s.bodyLimit > 0:
	case c.Own > 0:
		s.bodyLimit = c.Own
	default:
		s.bodyLimit = budget.Unlimited
	}
}

// downstream is the buffer limit of the request's connection.
func (g *Guard) downstream(s *Stream) int64 {
	if c := s.capped(); c != nil {
		return c.Read
	}
	return int64(g.config.Buffers.Downstream)
}

// requestCap is what Envoy may hold of a request: on HTTP/1 twice the listener's buffer limit, on
// HTTP/2 twice the larger of that and the stream's window, behind a buffering filter the whole of
// it instead.
func (g *Guard) requestCap(s *Stream) int64 {
	if whole := int64(g.config.Buffers.WholeRequest); whole > 0 {
		return whole
	}
	if c := s.capped(); c != nil && !s.isHTTP2() {
		return c.Read + max(s.bodyLimit, int64(g.config.Buffers.Upstream))
	}
	return g.pauseCap(s)
}

// pauseCap is what a request can leave unread while it is paused. Where its face stops to read an
// HTTP/1 connection, that is what the last read has brought.
func (g *Guard) pauseCap(s *Stream) int64 {
	window, downstream := int64(g.config.Buffers.HTTP2Window), g.downstream(s)
	if window > downstream && s.isHTTP2() {
		return 2 * window
	}
	if c := s.capped(); c != nil && !s.isHTTP2() {
		return min(c.last, c.Read)
	}
	return 2 * downstream
}

// cost is what the request leaves unread while it is paused, or when it is rejected unfinished: it
// comes within a round trip, unseen by the HTTP filter.
func (g *Guard) cost(s *Stream) int64 {
	if s.Ended(budget.Request) {
		return 0
	}
	limit := g.pauseCap(s)
	if s.length != budget.Unknown {
		limit = min(limit, s.length)
	}
	return limit
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

// responseCap is the cluster's buffer limit and the larger of the listener's and, on HTTP/2, the
// stream's window, where its face does not meter it.
func (g *Guard) responseCap(s *Stream) int64 {
	b, downstream := &g.config.Buffers, g.downstream(s)
	if c := s.capped(); c != nil && c.Metered {
		// What the upstream brings passes in pieces of its buffer: one is in the codec, one beyond
		// what may be in front of it, and one has not passed yet.
		return 3*int64(b.Upstream) + c.Read + c.Own
	}
	if int64(b.HTTP2Window) > downstream && s.isHTTP2() {
		return int64(b.Upstream + b.HTTP2Window)
	}
	return int64(b.Upstream) + downstream
}

// mayHold is what Envoy may hold of a response of so many bytes, or of Unknown. Which protocol it
// has is asked only where it matters.
func (g *Guard) mayHold(s *Stream, length int64) int64 {
	most := int64(g.config.Buffers.Upstream) + g.downstream(s)
	if length == budget.Unknown || length > most {
		return g.responseCap(s)
	}
	return most
}

// SetEnforcing says whether verdicts are carried out on any listener of the process.
func (w *Worker) SetEnforcing(enforcing bool) {
	w.enforcing = enforcing
	w.account.SetReal(enforcing)
}

// Enforcing says whether they are.
func (w *Worker) Enforcing() bool { return w.enforcing }

// shade makes a shadow of a stream that was judged, where there are any.
//
// Shadows are how mode observe counts what mode enforce would have done. Who would have had to wait
// stands in the queue, and who would have been rejected is gone, but in the books alone: Envoy lets
// them go. What they hold all the same is in every reading, and would reject others that mode
// enforce lets in. So it is summed up apart (budget.Account.Shade), and taken out of the readings
// in proportion to what all traffic likely holds (budget's withoutShadows). It is a model, and not
// the truth: nobody knows what a client that was rejected would have done.
//
// There are shadows only where no verdict is carried out in the whole process. Where another
// listener is in mode enforce, what this one lets go is memory that the other one's requests can't
// have: then it is counted as what it is, and every request that is let go as admitted.
//
// Verdicts are counted as in mode enforce (Worker.count).
func (g *Guard) shade(now Time, s *Stream) {
	if !g.observesAlone() {
		return
	}
	w := g.worker
	w.proven(s)
	w.account.Shade(now, &s.Stream)
	w.account.Supposes(now, &s.Stream, budget.Request, s.wants)
}

// takeDoomed says that the connection of a request that has just come would have been closed at its
// first bytes. The next one would have come on another connection.
func (s *Stream) takeDoomed() (was bool) {
	c := s.host.Arrived()
	if c != nil {
		was, c.doomed = c.doomed, false
	}
	return was
}

// streams is how many are let in.
func (k *keyed) streams() int64 { return k.Streams - int64(k.queue.Len()) }

// likelyPriced is what the key's streams likely hold: what one is known to hold, at least.
func (k *keyed) likelyPriced() int64 { return max(k.Likely, k.holds*k.streams()) }

// likely is what the stream likely holds, likewise.
func (s *Stream) likely() int64 {
	if !s.admitted() {
		return s.Likely()
	}
	return max(s.Likely(), s.key.Value.holds)
}
