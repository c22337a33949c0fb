package guard

import "github.com/highwater-envoy/highwater/internal/budget"

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
	w.answered(s)
	s.untold = false
	if s.Hidden(budget.Request) {
		w.account.End(now, &s.Stream, budget.Request) // who is answered has most likely sent all
	}
	return g.expect(now, s, length, false)
}

// expect is Expect of one that is not presumed. Who is entitled to its response is not rejected for
// it.
func (g *Guard) expect(now Time, s *Stream, length int64, entitled bool) Verdict {
	w, a := g.worker, g.worker.account
	if length == 0 {
		w.teach(now, s, 0)
		a.End(now, &s.Stream, budget.Response)
		return Verdict{}
	}
	limit := g.mayHold(s, length)
	if limit != s.Cap(budget.Response) {
		a.SetCap(now, &s.Stream, budget.Response, limit)
	}
	if s.host.Hides(budget.Response) {
		a.Hide(&s.Stream, budget.Response)
	} else {
		a.Tell(&s.Stream, budget.Response)
	}
	n := length
	if length == budget.Unknown {
		n = g.keyOf(now, s).Value.forecasts[budget.Response].Bytes()
	}
	n = min(n, limit)
	if length == budget.Unknown && s.exempt == whileSmall && !s.Hidden(budget.Response) {
		n = min(n, int64(w.budget.Small)) // with more it is judged
	}
	claim := budget.Forced // a small response always passes
	if n > int64(w.budget.Small) {
		w.noteLarge(now, g.keyOf(now, s))
		a.Enlarge(now, &s.Stream)
		s.outgrows()
		if s.exempt == judged && !s.untold && !entitled {
			// Its upstream has done the work: it may have what lies under hard even if its key has
			// more than its share.
			claim = max(w.largeClaim(s.key, 0), budget.Large)
		}
	}
	if length != budget.Unknown && !s.untold {
		w.teach(now, s, n)
	}
	// What was reserved for it at the request's headers, and has not lapsed, it has already.
	more := max(n-s.Reserved(budget.Response), 0)
	if more > 0 && a.Ask(now, more, claim) == budget.Denied && !w.letInFutile(now, s, more) {
		w.count(ResponseSize)
		w.counts[CountRejectedResponses]++
		if !g.lets() {
			v := Verdict{Action: Answer, Reason: ResponseSize, RetryAfter: g.retryAfter(now, n)}
			if shadow := s.reject(now); shadow {
				w.account.Supposes(now, &s.Stream, budget.Response, n)
				return Verdict{}
			}
			a.End(now, &s.Stream, budget.Response)
			return v
		}
		a.Ask(now, more, budget.Forced)
	}
	a.Expect(now, &s.Stream, budget.Response, length, n, 0)
	if left := s.ahead - n; length == budget.Unknown && left > 0 && !s.Hidden(budget.Response) {
		// So much may be there already, behind the headers: it stays reserved until it has passed,
		// or does not come.
		a.Ask(now, left, budget.Forced)
		a.Anticipate(now, &s.Stream, left)
	}
	a.Cover(now)
	return Verdict{}
}

// Grow counts n more body bytes of a message, and judges it if it has outgrown what was reserved
// for it. Who has asked Free itself, for a response, need not call it where that says yes.
func (g *Guard) Grow(now Time, s *Stream, d budget.Direction, n int64) Verdict {
	if !s.admitted() || n == 0 || d == budget.Response && s.Free(n) {
		if s.Shadow() {
			g.worker.account.PassShadow(now, &s.Stream, d, n)
		}
		return Verdict{}
	}
	return g.pass(now, s, d, n, false)
}

// pass is Grow with what there is to book. Who is entitled to what passes is not rejected for it.
func (g *Guard) pass(now Time, s *Stream, d budget.Direction, n int64, entitled bool) Verdict {
	v := g.grow(now, s, d, n, entitled)
	if d == budget.Response && s.ahead > 0 && v.Action == Admit {
		g.firstPiece(now, s)
	}
	return v
}

func (g *Guard) grow(now Time, s *Stream, d budget.Direction, n int64, entitled bool) Verdict {
	w, a := g.worker, g.worker.account
	beyond := a.Pass(now, &s.Stream, d, n)
	large := s.Seen(d) > int64(w.budget.Small)
	if large && s.Small() && !s.letIn.is(inFloor) {
		a.Enlarge(now, &s.Stream)
	}
	lost := large && s.outgrows()
	if beyond == 0 && !s.Beyond(d) && !lost {
		return Verdict{}
	}
	v, free := Verdict{}, entitled || s.exempt != judged
	switch {
	case s.Beyond(d):
		more := max(min(2*s.Seen(d), s.Cap(d))-min(s.Seen(d), s.Cap(d))-s.Reserved(d), 0)
		if d == budget.Response || s.length == budget.Unknown {
			// Who passes his forecast teaches it at once: slow readers never complete.
			w.learn(now, g.keyOf(now, s), d, min(2*s.Seen(d), s.Cap(d)))
		}
		if free || more == 0 && beyond == 0 || a.Ask(now, more, budget.Full) != budget.Denied {
			a.Reserve(now, &s.Stream, d, more)
		} else if beyond > 0 { // else all that has passed was reserved
			v = g.outgrown(now, s, d)
		}
	case (lost || d == budget.Request && s.Lapsed(d)) && !free && a.Ask(now, 0, budget.Full) == budget.Denied:
		v = g.outgrown(now, s, d)
	}
	a.Cover(now)
	return v
}

// firstPiece notes that the first piece of a response has passed that was held at its headers. It
// has brought all that was there: more is not waited for, and where nothing is known of the key yet
// it tells something.
func (g *Guard) firstPiece(now Time, s *Stream) {
	s.ahead = 0
	g.worker.account.Trim(now, &s.Stream)
	if !s.key.Value.responses.Learned() {
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
