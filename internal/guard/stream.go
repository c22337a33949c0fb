package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// state is where a request is in its life. Each arrow is one method of Stream, which begins the
// books that the new state keeps and ends those of the old one:
//
//	done ── begin ──▶ live ◀── unpresume ────── presumed
//	                  live ─── presume ───────▶ presumed
//
//	                  live ◀── leaveLine ────── queued
//	                  live ─── joinLine ──────▶ queued
//
//	                  live ─── reject ────────▶ rejected   nothing of it is left unread
//	                  live ─── rejectUnread ──▶ rejected   until its client has read the answer
//	                  live ─── rejectClosing ─▶ closing    until its connection is closed
//	                                            closing ── vanish ──▶ rejected
//
//	any of them ───── Close ──▶ done
//
// In mode observe queued, rejected and closing are in the books alone: Envoy lets such a request
// go, and the account calls it a shadow. It is in the same state, by the same transitions; it alone
// vanishes, for its connection is not closed.
type state uint8

const (
	done     state = iota
	presumed       // let in unjudged: its response may hold all that is reserved for it
	live           // let in, and what it brings is counted
	queued         // paused at its headers, in the queue
	rejected       // answered, reset or evicted
	closing        // rejected without an answer: paused until its connection is closed
)

// Stream is one request and its response. The zero value is ready for Open, and after Close it may
// be used again.
//
// What Envoy can hold of it, at any moment, is
//
//	request    min(passed, cap) + what is reserved for it and has not come
//	response   min(passed, cap) + what is reserved for it and has not come
//	pause      what it leaves unread in Envoy's codec, where no HTTP filter counts it
//
// The account keeps the first two, in budget.Stream. The policy decides what is reserved: before
// anything has come what the two are expected to bring (wants, expects), for which there has to be
// room, and from then on twice of what each has brought. The pause lasts as long as Envoy does not
// read: in the queue until the request goes on, and rejected until its connection is closed.
//
// What only a call of the host can tell is asked once, and only where something depends on it: the
// key, the connection, the protocol.
type Stream struct {
	budget.Stream
	guard      *Guard
	host       Host
	connection *Connection // known only if it was asked for: it waited, was rejected or was the one to verify
	busyOn     *Connection // the one that is not idle because of it; nil = none, or there is no network filter
	key        *key        // the other, if not keyed
	length     int64
	wants      int64      // what the request brings, announced or forecast, at most its cap
	expects    prediction // and what its response will
	unproven
	pause
	meanwhile meanwhile // where it is a shadow
	state     state
	exempt    exemption
	letIn     letIn
	http2     bool
	asked     bool // http2 is known
	keyed     bool // key is known
	spared    bool // mode observe beside one that enforces: it would have been evicted, and stays
	traced
}

// pause is what a paused request costs: one in the queue, or one that was rejected unfinished.
type pause struct {
	waiter    fairness.Waiter[Stream]
	pauseCost int64 // what it can leave unread
	come      int64 // what it holds while it is in the queue: its headers and what has come, as far as that is seen, else its pause cost
	window    int64 // of its HTTP/2 connection's window, while it waits
}

// Host is whom the stream asks.
func (s *Stream) Host() Host { return s.host }

// Waiting says whether the stream is in the queue, and not as a shadow.
func (s *Stream) Waiting() bool { return s.state == queued && !s.Shadow() }

// admitted says that the request was let in, and goes on.
func (s *Stream) admitted() bool { return s.state == presumed || s.state == live }

// total is what the request is expected to come to, with its headers and its response.
func (s *Stream) total() int64 { return s.Kept() + s.asks() }

// asks is what it asks room for: its headers are there.
func (s *Stream) asks() int64 { return s.wants + s.expects.bytes }

// hasOwnKey says whether it is told apart from others, as far as it was asked for.
func (s *Stream) hasOwnKey() bool { return s.keyed && s.key != &s.guard.worker.keys.Other }

func (s *Stream) isHTTP2() bool {
	if !s.asked {
		s.http2, s.asked = s.host.HTTP2(), true
	}
	return s.http2
}

func (s *Stream) conn() *Connection {
	if s.connection == nil {
		s.connection = s.host.Connection()
		s.guard.worker.compare(s.connection, s.host.Arrived())
	}
	return s.connection
}

// seen says whether the network filter sees what comes while the request is paused.
func (s *Stream) seen() bool { return s.connection != nil && s.connection.Context != 0 }

// seesItsOwn says whether what the network filter sees come is the request's own: on HTTP/2 it
// can't be told of which request it is.
func (s *Stream) seesItsOwn() bool { return s.seen() && !s.isHTTP2() }

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
func (s *Stream) rejectUnread(now Time, cost int64, counted bool) {
	g, w := s.guard, s.guard.worker
	s.pauseCost = cost
	if !s.Ended(budget.Request) && !s.isHTTP2() {
		w.left.Add(now, Time(g.config.Buffers.Linger), cost)
	}
	shadow := s.reject(now)
	if !counted {
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
func (s *Stream) rejectClosing(now Time, cost int64, counted bool) {
	w, c := s.guard.worker, s.connection
	s.state, s.pauseCost = closing, cost
	c.paused, c.arrived = s, c.last
	w.closing = append(w.closing, s)
	s.guard.shade(now, s)
	if !counted {
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

// finish gives back what a stream has in every state.
func (s *Stream) finish(now Time) {
	w := s.guard.worker
	if w.credited == s {
		w.credited = nil
	}
	w.futile.leaves(now, s.letIn)
	w.unbusy(now, s)
	w.proven(s)
	s.state = done
	w.account.Close(now, &s.Stream)
	s.key.Refs--
}

// Shadows are how mode observe counts what mode enforce would have done. Who would have had to wait
// stands in the queue, and who would have been rejected is gone, but in the books alone: Envoy lets
// them go. What they hold all the same is in every reading, and would reject others that mode
// enforce lets in. So it is summed up apart, and taken out of the readings in proportion to what
// all traffic likely holds (budget.Account.Shade). It is a model, and not the truth: nobody knows
// what a client that was rejected would have done.
//
// There are shadows only where no verdict is carried out in the whole process. Where another
// listener is in mode enforce, what this one lets go is memory that the other one's requests can't
// have: then it is counted as what it is, and every request that is let go as admitted.

// SetEnforcing says whether verdicts are carried out on any listener of the process.
func (w *Worker) SetEnforcing(enforcing bool) {
	w.enforcing = enforcing
	w.account.SetReal(enforcing)
}

// Enforcing says whether they are.
func (w *Worker) Enforcing() bool { return w.enforcing }

// shadows says that this guard's verdicts are carried out in the books alone.
func (g *Guard) shadows() bool { return g.config.Mode == Observe && !g.worker.enforcing }

// lets says that this guard observes beside one that enforces. Its verdicts are counted alone, and
// requests that it would have rejected count as admitted.
func (g *Guard) lets() bool { return g.config.Mode == Observe && g.worker.enforcing }

// shade makes a shadow of a stream that was judged, where there are any.
func (g *Guard) shade(now Time, s *Stream) {
	if !g.shadows() {
		return
	}
	w := g.worker
	w.proven(s)
	w.account.Shade(now, &s.Stream)
	w.account.Supposes(now, &s.Stream, budget.Request, s.wants)
}

// unshade admits a shadow that has waited for as long as it would have had to. What has passed of
// it meanwhile passes now.
func (g *Guard) unshade(now Time, s *Stream, credit int64) {
	a := g.worker.account
	a.Unshade(now, &s.Stream)
	g.admit(now, s, credit)
	a.CatchUp(now, &s.Stream, budget.Request)
	if s.meanwhile.answered {
		g.Expect(now, s, s.meanwhile.length)
		a.CatchUp(now, &s.Stream, budget.Response)
	}
	a.Cover(now)
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

// meanwhile is what has come of a shadow's response. Where the shadow stands in the queue, it is
// judged when that has let it go.
type meanwhile struct {
	answered bool
	length   int64
}

// expectShadow notes the headers of a shadow's response.
func (g *Guard) expectShadow(now Time, s *Stream, length int64) {
	s.meanwhile = meanwhile{true, length}
	g.worker.account.Supposes(now, &s.Stream, budget.Response, g.supposes(now, s, length))
}

// supposes is what a response of so many bytes, or of Unknown, likely comes to.
func (g *Guard) supposes(now Time, s *Stream, length int64) int64 {
	if length == budget.Unknown {
		return g.keyOf(now, s).Value.Bodies[budget.Response].Bytes()
	}
	return length
}

// endSmallExemption ends an exemption that is for small ones alone, and says whether the stream had
// one.
func (s *Stream) endSmallExemption() (ended bool) {
	ended = s.exempt == whileSmall
	if ended {
		s.exempt = judged
	}
	return ended
}
