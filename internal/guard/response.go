package guard

import (
	"math"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/forecast"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/verdict"
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
	if s.expects.Evidence == forecast.Untold {
		s.expects.Evidence = forecast.NoEvidence // it is told of after all
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
		w.count(verdict.ResponseSize)
		w.counts[metric.CountRejectedResponses]++
		if !g.observesBeside() {
			return g.rejectResponse(now, s, n)
		}
		a.Ask(now, more, budget.Forced)
	}
	a.Expect(now, &s.Stream, budget.Response, length, n, 0)
	if left := s.expects.Ahead - n; length == budget.Unknown && left > 0 && s.Counted(budget.Response) {
		// So much may be there already, behind the headers: it stays reserved until it has passed,
		// or does not come.
		a.Ask(now, left, budget.Forced)
		a.Reserve(now, &s.Stream, budget.Response, left)
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
	k := g.keyOf(now, s)
	switch {
	case s.Counted(budget.Response):
	case s.isOpenEnded() && g.worker.openEnded.known:
		p := g.worker.predictOpenEnded(s, s.Cap(budget.Response))
		return p.Bytes
	case s.declined:
		return s.Cap(budget.Response)
	}
	n := min(k.Value.Bodies[budget.Response].Bytes(), s.Cap(budget.Response))
	if s.exempt == whileSmall && s.Counted(budget.Response) {
		n = min(n, int64(g.worker.budget.Small)) // with more it is judged
	}
	return n
}

// sampledMost: so many large responses of a key are counted at a time.
const sampledMost = 4 // TestFewLargeResponsesAreCounted

// mayAllBeLarge says that nothing small is known of the key's responses, or nearly none is.
func (k *keyed) mayAllBeLarge(small int64) bool {
	return k.Heavy() || !k.HasSmall() && (!k.Responses.Learned() || k.Responses.Known() > small)
}

// counts says that bodies of the key's responses are worth being sent to the face.
func (k *keyed) counts(small int64) bool { return k.sampled < sampledMost || !k.mayAllBeLarge(small) }

// WantsBody says, at the headers of a response without a length, whether its body is to be sent to
// the face. Each piece is in Envoy again on its way there, and a burst of them is more than the
// face can answer at once. So where all of a key's may be large, a few are counted, which show it
// if they are not. The others are taken for what the buffers hold: slow readers come to that.
func (g *Guard) WantsBody(now Time, s *Stream) bool {
	k, small := &g.keyOf(now, s).Value, int64(g.worker.budget.Small)
	if s.declined = !k.counts(small); s.declined {
		return false
	}
	if !s.sampled && k.mayAllBeLarge(small) {
		s.sampled = true
		k.sampled++
	}
	return true
}

// enlargeResponse notes that a response is large, and says what it may have: its upstream has done
// the work, so that it is what lies under hard even if its key has more than its share.
func (g *Guard) enlargeResponse(now Time, s *Stream) budget.Claim {
	w := g.worker
	w.noteLarge(now, g.keyOf(now, s))
	w.account.Enlarge(now, &s.Stream)
	s.endSmallExemption()
	if s.exempt != notExempt {
		return budget.Forced
	}
	return max(w.largeClaim(s.key, 0), budget.UpToHard)
}

// Grow counts n more body bytes of a message, and judges it if it has outgrown what was reserved
// for it. Who has asked PassesUnbooked itself, for a response, need not call it where that says
// yes.
func (g *Guard) Grow(now Time, s *Stream, d budget.Direction, n int64) Verdict {
	if !s.admitted() || n == 0 || d == budget.Response && s.PassesUnbooked(n) {
		if s.Shadow() {
			g.worker.account.PassShadow(now, &s.Stream, d, n)
		}
		return Verdict{}
	}
	return g.pass(now, s, d, n, false)
}

// pass is Grow with what there is to book. Where what passes was promised it is not rejected for
// it.
func (g *Guard) pass(now Time, s *Stream, d budget.Direction, n int64, promised bool) Verdict {
	v := g.grow(now, s, d, n, promised)
	if d == budget.Response && s.expects.Ahead > 0 && v.Action == verdict.Admit {
		g.firstPiece(now, s)
	}
	return v
}

// grow books bytes that pass. A stream ends for them where they are more than what was reserved for
// it, there is no room for more, and memory itself says so: see outgrows.
func (g *Guard) grow(now Time, s *Stream, d budget.Direction, n int64, promised bool) (v Verdict) {
	w, a := g.worker, g.worker.account
	beyond := a.Pass(now, &s.Stream, d, n)
	lost := s.Seen(d) > int64(w.budget.Small) && s.outgrowSmall(now)
	if beyond == 0 && !s.Beyond(d) && !lost {
		return v
	}
	free := promised || s.exempt != notExempt
	switch {
	case s.Beyond(d):
		v = g.extend(now, s, d, beyond, free)
	case free:
	case (lost || d == budget.Request && s.Lapsed(d)) && a.Ask(now, 0, budget.UpToLimit) == budget.Denied && w.outgrows(now):
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

// extend asks for more for a message that has passed what was ever reserved for it, and reserves
// it: twice of what has passed. So many bytes of it were beyond what was coming. One that is free
// is not rejected.
func (g *Guard) extend(now Time, s *Stream, d budget.Direction, beyond int64, free bool) Verdict {
	w, a := g.worker, g.worker.account
	more := max(min(2*s.Seen(d), s.Cap(d))-min(s.Seen(d), s.Cap(d))-s.Reserved(d), 0)
	if d == budget.Response || s.length == budget.Unknown {
		// Who passes his forecast teaches it at once: slow readers never complete.
		w.learn(now, g.keyOf(now, s), d, min(2*s.Seen(d), s.Cap(d)))
	}
	switch {
	case free, more == 0 && beyond == 0, a.Ask(now, more, budget.UpToLimit) != budget.Denied, !w.outgrows(now):
		a.Reserve(now, &s.Stream, d, more)
	case beyond > 0: // else all that has passed was reserved
		return g.outgrown(now, s, d)
	}
	return Verdict{}
}

// outgrows says that the reading has reached soft, or does so with what has passed since and stays.
// Before that no stream that is under way is ended for an estimate: of 2,000 small gRPC streams 600
// were, at a third of the limit. The reading alone is too late for 16 MiB windows that fill between
// two of them: 1.02 of the limit in place of 0.76.
func (w *Worker) outgrows(now Time) bool {
	return w.measuresSoft(now) || w.account.Measured() >= w.account.Share(w.limits.Soft)
}

// firstPiece notes that the first piece of a response has passed that was held at its headers. It
// has brought all that was there: more is not waited for, and where nothing is known of the key yet
// it tells something.
func (g *Guard) firstPiece(now Time, s *Stream) {
	s.expects.Ahead = 0
	g.worker.account.Trim(now, &s.Stream)
	if !s.key.Value.Responses.Learned() {
		g.worker.learn(now, s.key, budget.Response, s.Held(budget.Response))
	}
}

// predict says what the response of a request comes to, of which so much will be told.
func (g *Guard) predict(now Time, s *Stream, told budget.Visibility) forecast.Prediction {
	if told != budget.Counted {
		return g.predictHeld(now, s, told)
	}
	if k := &s.key.Value; s.keyed && k.Large(now) {
		return forecast.Prediction{Bytes: min(k.Responses.Known(), int64(g.config.Buffers.Downstream+g.config.Buffers.Upstream)), Evidence: forecast.Learned}
	}
	return forecast.Prediction{}
}

// predictHeld is predict where Envoy holds the response at its headers.
func (g *Guard) predictHeld(now Time, s *Stream, told budget.Visibility) (p forecast.Prediction) {
	w, k, limit := g.worker, &s.key.Value, g.responseCap(s) // no call of a host
	lengthless := k.Bodies[budget.Response].Learned()
	switch {
	case told == budget.Silent:
		p.Bytes, p.Evidence = limit, forecast.Untold
	case s.isOpenEnded() && w.openEnded.known:
		return w.predictOpenEnded(s, limit)
	case s.keyed && k.Large(now):
		p.Bytes, p.Evidence = min(k.Responses.Known(), limit), forecast.Learned
	case !k.Responses.Learned() || k.unknown > w.account.Floor(): // nothing is known, or too much is under way from then
		p.Bytes, p.Evidence, lengthless = limit, forecast.Guessed, true
	default:
		if n := min(k.LargestAt(now), limit); n > int64(w.budget.Small) {
			p.Bytes, p.Evidence = n, forecast.Guessed
		}
	}
	if lengthless && k.counts(int64(w.budget.Small)) {
		p.Bytes *= 2 // as much lies in Envoy again on its way to us: 80 of those held 3.2 MiB each, of 2
	}
	p.Ahead = p.Bytes
	return p
}

// predictOpenEnded is predictHeld of one of which nothing will be told, beside what its request is
// expected to bring.
func (w *Worker) predictOpenEnded(s *Stream, most int64) forecast.Prediction {
	return forecast.Prediction{Bytes: min(max(w.openEnded.price-s.wants, 0), most), Evidence: forecast.Learned}
}

// probeShare: probes may bring 1/4 of what traffic can have, all together.
const probeShare = 4 // TestHiddenProbesAreBounded

// mayProbe says whether a cold request may go to its upstream without room for what may come of it.
// Of a key with small responses and large ones nobody can tell which this is. While large ones fill
// the memory, small ones get through by this. Where none was small yet, one goes now and then: most
// likely its upstream does the work for nothing. By turns it is one in the queue and one that has
// just come. Behind a burst of large ones, who comes now may well be small, and in the queue would
// be found last, at its timeout.
func (w *Worker) mayProbe(now Time, s *Stream) bool {
	k, comes, cold := &s.key.Value, s.state != queued, s.expects.Cold()
	switch {
	case k.Heavy() && !k.HasSmall():
		every := Tick
		if k.cameProbed == comes {
			every *= 2
		}
		if k.probing > 0 || now-k.probed < every {
			return false
		}
	case comes && k.queue.Len() > 0:
		return false
	}
	return w.probing == 0 || k.probing+cold <= w.account.Floor() && w.probing+cold <= w.account.Room()/probeShare
}

// probe makes a probe of a cold request.
func (w *Worker) probe(now Time, s *Stream) {
	k, cold := &s.key.Value, s.expects.Cold()
	s.probing, s.expects.Bytes = cold, 0
	k.probed, k.cameProbed = now, s.state != queued
	k.probing += cold
	w.probing += cold
}

// unprobe ends that, where the request is not admitted.
func (w *Worker) unprobe(s *Stream) {
	if s.probing > 0 {
		w.proven(s)
		s.expects.Bytes = s.expects.Cold()
	}
}

// admitCold notes that a cold request goes to its upstream.
func (w *Worker) admitCold(s *Stream) {
	cold := s.expects.Cold()
	if k := &s.key.Value; !k.Responses.Learned() {
		s.unknown = cold
		k.unknown += cold
	}
}

// expectShadow notes the headers of a shadow's response.
func (g *Guard) expectShadow(now Time, s *Stream, length int64) {
	s.meanwhile.answered, s.meanwhile.length = true, length
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
		s.exempt = notExempt
	}
	return ended
}
