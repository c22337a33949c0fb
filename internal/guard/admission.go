package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
)

// Open judges a request at its headers. length is its Content-Length or budget.Unknown; without a
// body it is 0. The stream must not be open.
func (g *Guard) Open(now Time, s *Stream, h Host, length int64) Verdict {
	w := g.worker
	s.begin(now, g, h, length)
	if length != 0 {
		w.account.SetVisibility(&s.Stream, budget.Request, h.Visibility(budget.Request))
	}
	s.exempt = g.exempts(h, length)
	told := h.Visibility(budget.Response)
	if length == 0 && told == budget.Counted && g.admitPresumed(now, s) {
		return Verdict{Action: Admit}
	}
	g.foresee(now, s, told)
	w.traceOpen(s)
	if s.exempt != judged {
		w.account.Ask(now, s.total(), budget.Forced)
		return g.admit(now, s, 0)
	}
	if s.expects.cold() > 0 && w.mayProbe(now, s) {
		w.probe(now, s)
	}
	if g.shadows() && s.takeDoomed() {
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

// foresee sets what the request and its response are expected to bring.
func (g *Guard) foresee(now Time, s *Stream, told budget.Visibility) {
	w := g.worker
	// A request without a body says nothing yet of its size: as long as nobody is held back and no
	// key's responses are large, whose it is does not matter, and is not asked.
	if s.length != 0 || w.heavyKeys > 0 || told != budget.Counted || w.pressed() {
		g.keyOf(now, s)
	}
	n := s.length
	if n == budget.Unknown {
		n = s.key.Value.Bodies[budget.Request].Bytes()
	}
	s.wants = min(n, s.Cap(budget.Request))
	s.expects = g.predict(now, s, told)
	if small := int64(w.budget.Small); s.exempt == whileSmall {
		s.wants = min(s.wants, small) // with more it is judged
		if told == budget.Counted {
			s.expects.bytes = min(s.expects.bytes, small)
		}
	}
}

// judge decides on a request that is not exempt: admit it, let it wait or reject it.
func (g *Guard) judge(now Time, s *Stream) Verdict {
	w := g.worker
	if w.limits.OnStale == budget.StaleReject && w.account.Stale(now) {
		return g.turnAway(now, s, NoReading)
	}
	if s.total() <= int64(w.budget.Small) {
		if w.claimSmall(now, s.key, s.wants) != budget.Denied {
			return Verdict{Action: Admit}
		}
		return g.wait(now, s, true)
	}
	cold := s.expects.cold() > 0 && s.wants <= int64(w.budget.Small) // it waits among the small ones: it may be one
	if most, known := w.mostAlone(now); known && s.total() > most {
		if s.length != budget.Unknown && s.wants > most {
			return g.turnAway(now, s, TooLarge)
		}
		// It is a forecast: what others have brought is no reason to tell this one that it can
		// never fit.
		s.expects.bytes = max(min(s.expects.bytes, most-s.wants), 0)
		s.wants = min(s.wants, max(most, int64(w.budget.Small)+1))
	}
	w.noteLarge(now, s.key)
	if !w.standsBehind(s) && (w.claim(now, s.key, s.total()) == budget.Granted || w.letInFutile(now, s, s.total())) {
		return Verdict{Action: Admit}
	}
	return g.wait(now, s, cold)
}

// mostAlone is what a request can have that has all to itself, where that is known.
func (w *Worker) mostAlone(now Time) (most int64, known bool) {
	t := w.account.Table()
	return w.account.Share(w.limits.Hard) - t.Low, !t.Futile && t.Sequence > 0 && !w.account.Stale(now)
}

// standsBehind says that a large request has to wait because others do: else who has no line takes
// what others wait for. But one whose key has less than its share does not stand behind those that
// have more.
func (w *Worker) standsBehind(s *Stream) bool {
	return (w.line.Len() > 0 || w.account.Others().Queue.Waiting > 0) &&
		(w.largeClaim(s.key, s.total()) != budget.Full || s.key.Value.queue.Len() > 0)
}

// admit reserves what the request wants.
func (g *Guard) admit(now Time, s *Stream, credit int64) Verdict {
	w, a := g.worker, g.worker.account
	w.counts[CountAdmitted]++
	if s.expects.cold() > 0 {
		w.admitCold(now, s)
	}
	if s.total() > int64(w.budget.Small) && !s.letIn.is(inFloor) {
		a.Enlarge(now, &s.Stream)
	}
	if s.expects.bytes > 0 {
		a.Anticipate(now, &s.Stream, s.expects.bytes)
	}
	if s.length != 0 {
		a.Expect(now, &s.Stream, budget.Request, s.length, s.wants-credit, credit)
	}
	if s.expects.evidence == silent {
		g.assume(now, s)
	}
	a.Cover(now)
	if w.line.Len() > 0 || a.Others().Queue.Waiting > 0 {
		w.back.Admitted.Add(s.total())
	}
	return Verdict{Action: Admit}
}
