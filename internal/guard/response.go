package guard

import (
	"math"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// Expect judges a response at its headers. length is its Content-Length or budget.Unknown; without
// a body it is 0.
func (g *Guard) Expect(now Time, s *Stream, length int64) Verdict {
	w := g.worker
	switch {
	case s.Shadow():
		g.expectShadow(now, s, length)
		return Verdict{}
	case !s.admitted():
		return Verdict{}
	case s.state == presumed && w.account.Calm(now):
		w.account.Foretell(&s.Stream, length, g.mayHold(s, length))
		return Verdict{}
	case s.state == presumed:
		g.doubt(now, s)
	}
	w.proven(s)
	if s.expects.evidence == silent {
		s.expects.evidence = none // it is told of after all
	}
	if !s.Counted(budget.Request) {
		w.account.End(now, &s.Stream, budget.Request) // who is answered has most likely sent all
	}
	return g.expect(now, s, length, false)
}

// expect is Expect of one that is not presumed. Where its response was promised it is not rejected
// for it.
func (g *Guard) expect(now Time, s *Stream, length int64, promised bool) Verdict {
	w, a := g.worker, g.worker.account
	if length == 0 {
		w.teach(now, s, 0)
		a.End(now, &s.Stream, budget.Response)
		return Verdict{}
	}
	g.setLimits(now, s, length)
	n := min(length, s.Cap(budget.Response))
	if length == budget.Unknown {
		n = g.forecastResponse(now, s)
	}
	claim := budget.Forced // a small response always passes
	if n > int64(w.budget.Small) {
		claim = g.enlargeResponse(now, s)
		if promised {
			claim = budget.Forced
		}
	}
	if length != budget.Unknown {
		w.teach(now, s, n)
	}
	// What was reserved for it at the request's headers, and has not lapsed, it has already.
	more := max(n-s.Reserved(budget.Response), 0)
	if more > 0 && a.Ask(now, more, claim) == budget.Denied && !w.letInFutile(now, s, more) {
		w.count(ResponseSize)
		w.counts[CountRejectedResponses]++
		if !g.lets() {
			return g.rejectResponse(now, s, n)
		}
		a.Ask(now, more, budget.Forced)
	}
	a.Expect(now, &s.Stream, budget.Response, length, n, 0)
	if left := s.expects.ahead - n; length == budget.Unknown && left > 0 && s.Counted(budget.Response) {
		// So much may be there already, behind the headers: it stays reserved until it has passed,
		// or does not come.
		a.Ask(now, left, budget.Forced)
		a.Anticipate(now, &s.Stream, left)
	}
	a.Cover(now)
	return Verdict{}
}

// endless is the length of a response that is taken for more than any buffer holds.
const endless int64 = math.MaxInt64

// assume takes the response of which nothing at all will be told for as much as the buffers hold.
func (g *Guard) assume(now Time, s *Stream) {
	a := g.worker.account
	g.setLimits(now, s, endless)
	n := s.Cap(budget.Response)
	if n > int64(g.worker.budget.Small) {
		g.enlargeResponse(now, s)
	}
	if more := n - s.Reserved(budget.Response); more > 0 {
		a.Ask(now, more, budget.Forced)
	}
	a.Expect(now, &s.Stream, budget.Response, endless, n, 0)
	a.Cover(now)
}

// setLimits notes what Envoy may hold of a response, and what will be told of it.
func (g *Guard) setLimits(now Time, s *Stream, length int64) {
	a := g.worker.account
	if limit := g.mayHold(s, length); limit != s.Cap(budget.Response) {
		a.SetCap(now, &s.Stream, budget.Response, limit)
	}
	a.SetVisibility(&s.Stream, budget.Response, s.host.Visibility(budget.Response))
}

// forecastResponse is what a response comes to that has announced no length, at most what Envoy may
// hold of it.
func (g *Guard) forecastResponse(now Time, s *Stream) int64 {
	n := min(g.keyOf(now, s).Value.Bodies[budget.Response].Bytes(), s.Cap(budget.Response))
	if s.exempt == whileSmall && s.Counted(budget.Response) {
		n = min(n, int64(g.worker.budget.Small)) // with more it is judged
	}
	return n
}

// enlargeResponse notes that a response is large, and says what it may have: its upstream has done
// the work, so that it is what lies under hard even if its key has more than its share.
func (g *Guard) enlargeResponse(now Time, s *Stream) budget.Claim {
	w := g.worker
	w.noteLarge(now, g.keyOf(now, s))
	w.account.Enlarge(now, &s.Stream)
	s.endSmallExemption()
	if s.exempt != judged {
		return budget.Forced
	}
	return max(w.largeClaim(s.key, 0), budget.Large)
}

// rejectResponse rejects a request for its response, of n bytes.
func (g *Guard) rejectResponse(now Time, s *Stream, n int64) Verdict {
	a := g.worker.account
	v := Verdict{Action: Answer, Reason: ResponseSize, RetryAfter: g.retryAfter(now, n)}
	if shadow := s.reject(now); shadow {
		a.Supposes(now, &s.Stream, budget.Response, n)
		return Verdict{}
	}
	a.End(now, &s.Stream, budget.Response)
	return v
}

// Grow counts n more body bytes of a message, and judges it if it has outgrown what was reserved
// for it. Who has asked PassesUnbooked itself, for a response, need not call it where that says yes.
func (g *Guard) Grow(now Time, s *Stream, d budget.Direction, n int64) Verdict {
	if !s.admitted() || n == 0 || d == budget.Response && s.PassesUnbooked(n) {
		if s.Shadow() {
			g.worker.account.PassShadow(now, &s.Stream, d, n)
		}
		return Verdict{}
	}
	return g.pass(now, s, d, n, false)
}

// pass is Grow with what there is to book. Where what passes was promised it is not rejected for it.
func (g *Guard) pass(now Time, s *Stream, d budget.Direction, n int64, promised bool) Verdict {
	v := g.grow(now, s, d, n, promised)
	if d == budget.Response && s.expects.ahead > 0 && v.Action == Admit {
		g.firstPiece(now, s)
	}
	return v
}

func (g *Guard) grow(now Time, s *Stream, d budget.Direction, n int64, promised bool) (v Verdict) {
	w, a := g.worker, g.worker.account
	beyond := a.Pass(now, &s.Stream, d, n)
	lost := s.Seen(d) > int64(w.budget.Small) && s.outgrowSmall(now)
	if beyond == 0 && !s.Beyond(d) && !lost {
		return v
	}
	free := promised || s.exempt != judged
	switch {
	case s.Beyond(d):
		v = g.extend(now, s, d, beyond, free)
	case free:
	case (lost || d == budget.Request && s.Lapsed(d)) && a.Ask(now, 0, budget.Full) == budget.Denied:
		v = g.outgrown(now, s, d)
	}
	a.Cover(now)
	return v
}

// outgrowSmall ends what a stream has as a small one, and says whether it was exempt as such.
func (s *Stream) outgrowSmall(now Time) (wasExempt bool) {
	if s.Small() && !s.letIn.is(inFloor) {
		s.guard.worker.account.Enlarge(now, &s.Stream)
	}
	return s.endSmallExemption()
}

// extend asks for more for a message that has passed what was ever reserved for it, and reserves it:
// twice of what has passed. So many bytes of it were beyond what was coming. One that is free is not
// rejected.
func (g *Guard) extend(now Time, s *Stream, d budget.Direction, beyond int64, free bool) Verdict {
	w, a := g.worker, g.worker.account
	more := max(min(2*s.Seen(d), s.Cap(d))-min(s.Seen(d), s.Cap(d))-s.Reserved(d), 0)
	if d == budget.Response || s.length == budget.Unknown {
		// Who passes his forecast teaches it at once: slow readers never complete.
		w.learn(now, g.keyOf(now, s), d, min(2*s.Seen(d), s.Cap(d)))
	}
	switch {
	case free, more == 0 && beyond == 0, a.Ask(now, more, budget.Full) != budget.Denied:
		a.Reserve(now, &s.Stream, d, more)
	case beyond > 0: // else all that has passed was reserved
		return g.outgrown(now, s, d)
	}
	return Verdict{}
}

// firstPiece notes that the first piece of a response has passed that was held at its headers. It
// has brought all that was there: more is not waited for, and where nothing is known of the key yet
// it tells something.
func (g *Guard) firstPiece(now Time, s *Stream) {
	s.expects.ahead = 0
	g.worker.account.Trim(now, &s.Stream)
	if !s.key.Value.Responses.Learned() {
		g.worker.learn(now, s.key, budget.Response, s.Held(budget.Response))
	}
}

// outgrown rejects a request whose growth has no room, and resets a large response.
func (g *Guard) outgrown(now Time, s *Stream, d budget.Direction) Verdict {
	w := g.worker
	if d == budget.Request {
		if v := g.turnAway(now, s, Growth); !s.Shadow() {
			return v
		}
		return Verdict{Action: Pass}
	}
	if s.Seen(d) <= int64(w.budget.Small) {
		return Verdict{}
	}
	w.count(Growth)
	w.counts[CountRejectedResponses]++
	if g.lets() {
		return Verdict{}
	}
	if shadow := s.reject(now); shadow {
		return Verdict{}
	}
	w.account.End(now, &s.Stream, d)
	return Verdict{Action: Reset, Reason: Growth}
}
