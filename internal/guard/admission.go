package guard

import (
	"math"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// Open judges a request at its headers. length is its Content-Length or budget.Unknown; without a
// body it is 0. The stream must not be open.
func (g *Guard) Open(now Time, s *Stream, h Host, length int64) Verdict {
	w, a := g.worker, g.worker.account
	s.begin(now, g, h, length)
	if length != 0 && h.Hides(budget.Request) {
		a.Hide(&s.Stream, budget.Request)
	}
	s.exempt = g.exempts(h, length)
	hides := h.Hides(budget.Response)
	if length == 0 && !hides && g.presumes(now, s) {
		return Verdict{Action: Admit}
	}
	// A request without a body says nothing yet of its size: as long as nobody is held back and no
	// key's responses are large, whose it is does not matter, and is not asked.
	if length != 0 || w.largeKeys > 0 || hides || w.pressed() {
		g.keyOf(now, s)
	}
	n := length
	if n == budget.Unknown {
		n = s.key.Value.forecasts[budget.Request].Bytes()
	}
	s.wants = min(n, s.Cap(budget.Request))
	g.foresee(now, s, hides)
	if small := int64(w.budget.Small); s.exempt == whileSmall {
		s.wants = min(s.wants, small) // with more it is judged
		if !hides {
			s.expects = min(s.expects, small)
		}
	}
	w.traceOpen(s)
	if s.exempt != judged {
		a.Ask(now, s.total(), budget.Forced)
		return g.admit(now, s, 0)
	}
	if s.cold > 0 && w.mayProbe(now, s) {
		w.probe(now, s)
	}
	if g.shadows() && w.doomed(s) {
		s.reject(now)
		return Verdict{Action: Pass}
	}
	v := g.judge(now, s)
	switch {
	case v.Action == Admit:
		return g.admit(now, s, 0)
	case g.shadows():
		return Verdict{Action: Pass}
	}
	return v
}

// judge decides on a request that is not exempt: admit it, let it wait or reject it.
func (g *Guard) judge(now Time, s *Stream) Verdict {
	w, a := g.worker, g.worker.account
	if w.limits.OnStale == budget.StaleReject && a.Stale(now) {
		return g.turnAway(now, s, NoReading)
	}
	if s.total() <= int64(w.budget.Small) {
		if w.claimSmall(now, s.key, s.wants) != budget.Denied {
			return Verdict{Action: Admit}
		}
		return g.wait(now, s, true)
	}
	cold := s.cold > 0 && s.wants <= int64(w.budget.Small) // it waits among the small ones: it may be one
	t := a.Table()
	if alone := a.Share(w.limits.Hard) - t.Low; s.total() > alone && !t.Futile && t.Sequence > 0 && !a.Stale(now) {
		if s.length != budget.Unknown && s.wants > alone {
			return g.turnAway(now, s, TooLarge)
		}
		// It is a forecast: what others have brought is no reason to tell this one that it can
		// never fit.
		s.expects = max(min(s.expects, alone-s.wants), 0)
		s.wants = min(s.wants, max(alone, int64(w.budget.Small)+1))
	}
	w.noteLarge(now, s.key)
	claim := w.largeClaim(s.key, s.total())
	// Who comes while others wait waits too, else who has no line takes what others wait for. But
	// one whose key has less than its share does not stand behind those that have more.
	if (w.line.Len() > 0 || a.Others().Waiting > 0) && (claim != budget.Full || s.key.Value.queue.Len() > 0) {
		return g.wait(now, s, cold)
	}
	if w.claim(now, s.key, s.total()) == budget.Granted || w.letInFutile(now, s, s.total()) {
		return Verdict{Action: Admit}
	}
	return g.wait(now, s, cold)
}

// admit reserves what the request wants.
func (g *Guard) admit(now Time, s *Stream, credit int64) Verdict {
	w, a := g.worker, g.worker.account
	w.counts[CountAdmitted]++
	if s.cold > 0 {
		w.admitCold(now, s)
	}
	if s.total() > int64(w.budget.Small) && !s.letIn.is(inFloor) {
		a.Enlarge(now, &s.Stream)
	}
	if s.expects > 0 {
		a.Anticipate(now, &s.Stream, s.expects)
	}
	if s.length != 0 {
		a.Expect(now, &s.Stream, budget.Request, s.length, s.wants-credit, credit)
	}
	if s.untold {
		g.expect(now, s, math.MaxInt64, false) // it is taken for as much as the buffers hold
	}
	a.Cover(now)
	if w.line.Len() > 0 || a.Others().Waiting > 0 {
		w.drain.add(s.total())
	}
	return Verdict{Action: Admit}
}
