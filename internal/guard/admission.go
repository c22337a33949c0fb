package guard

import (
	"slices"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/forecast"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/verdict"
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
	if length == 0 && s.Kept() == 0 && told == budget.Counted && g.admitPresumed(now, s) {
		return Verdict{Action: verdict.Admit}
	}
	g.foresee(now, s, told)
	w.traceOpen(s)
	if s.exempt != notExempt {
		w.account.Ask(now, s.asks(), budget.Forced)
		return g.admit(now, s, 0)
	}
	if s.expects.Cold() > 0 && w.mayProbe(now, s) {
		w.probe(now, s)
	}
	if g.observesAlone() && s.takeDoomed() {
		s.reject(now)
		return Verdict{Action: verdict.Pass}
	}
	v := g.judge(now, s)
	switch {
	case v.Action == verdict.Admit:
		return g.admit(now, s, 0)
	case g.observesAlone():
		return Verdict{Action: verdict.Pass}
	}
	return v
}

// foresee sets what the request and its response are expected to bring.
func (g *Guard) foresee(now Time, s *Stream, told budget.Visibility) {
	w := g.worker
	// A request without a body says nothing yet of its size: below soft, and as long as no key's
	// responses are large, whose it is does not matter, and is not asked.
	if s.length != 0 || w.heavyKeys > 0 || told != budget.Counted || w.account.Table().Level >= budget.Soft {
		g.keyOf(now, s)
	}
	g.limitAsBefore(now, s)
	n := s.length
	if n == budget.Unknown {
		n = s.key.Value.Bodies[budget.Request].Bytes()
	}
	s.wants = min(n, s.Cap(budget.Request))
	s.expects = g.predict(now, s, told)
	if small := int64(w.budget.Small); s.exempt == whileSmall {
		s.wants = min(s.wants, small) // with more it is judged
		if told == budget.Counted {
			s.expects.Bytes = min(s.expects.Bytes, small)
		}
	}
}

// limitAsBefore takes the request for one that is kept as those of its key before it.
func (g *Guard) limitAsBefore(now Time, s *Stream) {
	if n := s.key.Value.kept.At(now); n > s.bodyLimit && s.length != 0 && s.capped() != nil {
		s.bodyLimit = n
		g.worker.account.SetCap(now, &s.Stream, budget.Request, g.requestCap(s))
	}
}

// LimitBody notes, as the first bytes of a request's body pass, how much of it filters may hold:
// those that keep bodies have said so by then.
func (g *Guard) LimitBody(now Time, s *Stream, n int64) {
	if s.capped() == nil || !s.admitted() || s.length == 0 {
		return
	}
	if n > s.host.BodyLimit() {
		g.keyOf(now, s).Value.kept.Learn(now, n)
	}
	if n <= s.bodyLimit {
		return
	}
	s.bodyLimit = n
	limit := g.requestCap(s)
	if limit <= s.Cap(budget.Request) {
		return
	}
	more := int64(0) // of an unknown length it is seen as it grows
	if s.length != budget.Unknown {
		more = max(min(s.length, limit)-s.wants, 0)
	}
	// Without room for all of it, it is judged as it grows.
	if more > 0 && g.worker.account.Ask(now, more, budget.UpToHard) != budget.Granted {
		more = 0
	}
	s.wants += more
	g.worker.account.Raise(now, &s.Stream, budget.Request, limit, more)
	g.worker.account.Cover(now)
}

// judge decides on a request that is not exempt: admit it, let it wait or reject it.
func (g *Guard) judge(now Time, s *Stream) Verdict {
	w := g.worker
	if w.limits.OnStale == budget.StaleReject && w.account.Stale(now) {
		return g.rejectFor(now, s, verdict.NoReading)
	}
	if s.total() <= int64(w.budget.Small) {
		if w.claimSmall(now, s.key, s.wants) != budget.Denied {
			return Verdict{Action: verdict.Admit}
		}
		return g.wait(now, s, true)
	}
	cold := s.expects.Cold() > 0 && s.wants <= int64(w.budget.Small) // it waits among the small ones: it may be one
	if most, known := w.mostAlone(now); known && s.total() > most {
		if s.length != budget.Unknown && s.wants > most {
			return g.rejectFor(now, s, verdict.TooLarge)
		}
		// It is a forecast: what others have brought is no reason to tell this one that it can
		// never fit.
		s.expects.Bytes = max(min(s.expects.Bytes, most-s.wants), 0)
		s.wants = min(s.wants, max(most, int64(w.budget.Small)+1))
	}
	w.noteLarge(now, s.key)
	if !w.standsBehind(s) && (w.claim(now, s.key, s.asks()) == budget.Granted || w.letInFutile(now, s, s.asks())) {
		return Verdict{Action: verdict.Admit}
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
		(w.largeClaim(s.key, s.total()) != budget.UpToLimit || s.key.Value.queue.Len() > 0)
}

// admit reserves what the request wants.
func (g *Guard) admit(now Time, s *Stream, credit int64) Verdict {
	w, a := g.worker, g.worker.account
	w.counts[metric.CountAdmitted]++
	if s.expects.Cold() > 0 {
		w.admitCold(s)
	}
	if s.total() > int64(w.budget.Small) && !s.letIn.is(inFloor) {
		a.Enlarge(now, &s.Stream)
	}
	if s.expects.Bytes+s.unknown+s.probing > 0 {
		a.Reserve(now, &s.Stream, budget.Response, s.expects.Bytes) // a probe with none
	}
	if s.length != 0 {
		a.Expect(now, &s.Stream, budget.Request, s.length, s.wants-credit, credit)
	}
	if s.expects.Evidence == forecast.Untold {
		g.assume(now, s)
	}
	a.Cover(now)
	if w.line.Len() > 0 || a.Others().Queue.Waiting > 0 {
		w.back.Admitted.Add(s.total())
	}
	return Verdict{Action: verdict.Admit}
}

// admitPresumed lets a request without a body in unjudged, where memory is calm, and says whether
// it did. All that its response can hold is reserved for it, so that it does not matter what it is
// and whose. To judge it takes code and figures that have to come from memory where large bodies
// have been through the caches since: of what a download of 1 MB costs Envoy that was 3 %, and of
// what Highwater adds to a GET of 1 kB a third. Of those that come between two ticks the first is
// judged, so that what is known of the keys stays true; and where a peak may come all are, so that
// it tells what they were. What can't be asked for later is asked now.
func (g *Guard) admitPresumed(now Time, s *Stream) bool {
	w, a, b := g.worker, g.worker.account, &g.config.Buffers
	n := int64(b.Upstream + max(b.Downstream, b.HTTP2Window))
	if w.judgedTick != w.ticks {
		w.judgedTick = w.ticks
		return false
	}
	if !a.Calm(now) || w.warm() || a.Ask(now, n, budget.UpToLimit) != budget.Granted {
		return false
	}
	if g.header != "" {
		g.keyOf(now, s)
	}
	s.presume(n)
	w.counts[metric.CountAdmitted]++
	return true
}

// doubtPresumed counts those that are presumed, where memory is calm no more.
func (w *Worker) doubtPresumed(now Time) {
	if w.account.Own().Presumed.Streams == 0 || w.account.Calm(now) {
		return
	}
	w.account.Owners(func(owner any) {
		if s := owner.(*Stream); s.state == presumed {
			s.guard.doubt(now, s)
		}
	})
}

// doubt begins to count what the stream's response holds. One that has begun has what it needs:
// that it was let in unjudged is no reason to break it.
func (g *Guard) doubt(now Time, s *Stream) {
	w, a, begun, length := g.worker, g.worker.account, s.Expected(budget.Response), s.Length(budget.Response)
	passed, over := s.unpresume(now)
	if !begun {
		if w.heavyKeys == 0 {
			return
		}
		// Whoever is judged at his request's headers asks for room there if his key's responses are
		// large. It has been promised it.
		g.keyOf(now, s)
		if s.expects = g.predict(now, s, budget.Counted); s.expects.Bytes > 0 {
			w.noteLarge(now, s.key)
			a.Enlarge(now, &s.Stream)
			a.Reserve(now, &s.Stream, budget.Response, s.expects.Bytes)
		}
		return
	}
	g.expect(now, s, length, true)
	if passed > 0 {
		g.pass(now, s, budget.Response, passed, true)
	}
	if over {
		g.End(now, s, budget.Response)
	}
}

// letInFutile lets large requests in while shedding is futile, since traffic is not what fills the
// memory (budget/level.go says when): into the floor, and one
// at a time beside.
func (w *Worker) letInFutile(now Time, s *Stream, n int64) bool {
	// What it left, unread in the codec, must be in the reading first: else one after the other
	// fills the memory.
	if t := w.account.Table(); !t.Futile || t.Asked <= w.futile.ended {
		return false
	}
	if w.account.Ask(now, n, budget.Floor) == budget.Granted {
		s.letIn |= inFloor
		return true
	}
	if w.futile.taken {
		return false
	}
	w.futile.taken = true
	s.letIn |= alone
	w.account.Ask(now, n, budget.Forced)
	return true
}

// exempts says how far a request is exempt that announces so many bytes. Each kind of rule costs
// one call of the host.
func (g *Guard) exempts(h Host, length int64) exemption {
	x := &g.exemptions
	switch {
	case len(x.routes) > 0 && slices.Contains(x.routes, h.Route()), len(x.clusters) > 0 && slices.Contains(x.clusters, h.Cluster()):
		return always
	case len(x.paths) == 0, length > int64(g.worker.budget.Small):
		return notExempt
	case length == budget.Unknown && h.Visibility(budget.Request) != budget.Counted: // when it has brought more than small, nobody would know
		return notExempt
	case config.AnyPrefix(x.paths, h.Path()):
		return whileSmall
	}
	return notExempt
}
