package guard

import (
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// prediction is what the response of a request will come to, as far as that is to be reserved when
// the request is admitted.
//
// Where bodies are told, little has to be foreseen. A response can be refused when its headers come,
// before it has filled anything, so that only a request of a key all of whose responses are large
// reserves room for one: it is better to reject it before its upstream has done the work.
//
// Where an external processor is told headers alone, Envoy holds a response at its headers until
// they are answered. It fills its buffers meanwhile, and a burst of requests for large responses is
// there before any of them can be refused: 300 slow readers behind 1 MiB buffers made 2.2 times the
// limit. So there each request expects as much as may lie ahead of that answer, by the evidence:
//
//	nothing is told of responses   the buffers' limits
//	all of its key's are large     their forecast
//	nothing is known of its key    the buffers' limits
//	its key has had large ones     the largest of late
//
// By the last two the request is cold: its response is most likely small, and whether it is can be
// found out. It may go as a probe, without what it expects being reserved: see unproven.
type prediction struct {
	bytes    int64
	ahead    int64 // of a response that Envoy holds at its headers, so much may be there before those are answered
	evidence evidence
}

// evidence is by what a prediction was made.
type evidence uint8

const (
	none    evidence = iota // nothing is to be expected
	learned                 // all responses of its key are large
	guessed                 // its key may have large ones
	silent                  // nothing will be told of the response
)

// cold is what the response may hold, where that is guessed.
func (p *prediction) cold() int64 {
	if p.evidence != guessed {
		return 0
	}
	return p.ahead
}

// predict says what the response of a request comes to, of which so much will be told.
func (g *Guard) predict(now Time, s *Stream, told budget.Visibility) prediction {
	if told != budget.Counted {
		return g.predictHeld(now, s, told)
	}
	if k := &s.key.Value; s.keyed && k.Large(now) {
		return prediction{bytes: min(k.Responses.Known(), int64(g.config.Buffers.Downstream+g.config.Buffers.Upstream)), evidence: learned}
	}
	return prediction{}
}

// predictHeld is predict where Envoy holds the response at its headers.
func (g *Guard) predictHeld(now Time, s *Stream, told budget.Visibility) (p prediction) {
	w, k, limit := g.worker, &s.key.Value, g.responseCap(s) // no call of a host
	lengthless := k.Bodies[budget.Response].Learned()
	switch {
	case told == budget.Silent:
		p.bytes, p.evidence = limit, silent
	case s.keyed && k.Large(now):
		p.bytes, p.evidence = min(k.Responses.Known(), limit), learned
	case !k.Responses.Learned() || k.unknown > w.account.Floor(): // nothing is known, or too much is under way from then
		p.bytes, p.evidence, lengthless = limit, guessed, true
	default:
		if n := min(k.LargestAt(now), limit); n > int64(w.budget.Small) {
			p.bytes, p.evidence = n, guessed
		}
	}
	if lengthless {
		p.bytes *= 2 // as much lies in Envoy again on its way to us: 80 of those held 3.2 MiB each, of 2
	}
	p.ahead = p.bytes
	return p
}

// unproven is what a cold request's response may hold and is in one of two sums, until its headers
// have come or coldFor is over. A probe goes without what it expects being reserved: few are enough
// for many, because each is over when its response's headers have come. And what went when nothing
// was known of its key tells that more of those are no news.
type unproven struct {
	probing int64 // in the worker's and its key's sum of what probes may hold
	unknown int64 // in its key's sum of what may be held of those that went when nothing was known
	sent    Time  // when it was admitted
}

// proofs are a worker's requests that are unproven.
type proofs struct {
	cold    []*Stream // and some that were answered since
	probing int64     // what the responses of probes may hold and is not reserved
}

const (
	probeShare = 4               // probes may bring 1/4 of what traffic can have, all together
	coldFor    = 2 * time.Second // as long as what is reserved for a response that does not come
)

// mayProbe says whether a cold request may go to its upstream without room for what may come of it. Of a key with small responses and large ones nobody can tell whose this is; while
// large ones fill the memory, small ones get through by this. Where none was small yet, one goes now
// and then: most likely its upstream does the work for nothing. By turns it is one in line and one
// that has just come: behind a burst of large ones, who comes now may well be small, and in line
// would be found last, at its timeout.
func (w *Worker) mayProbe(now Time, s *Stream) bool {
	k, comes, cold := &s.key.Value, s.state != queued, s.expects.cold()
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
	k, cold := &s.key.Value, s.expects.cold()
	s.probing, s.expects.bytes = cold, 0
	k.probed, k.cameProbed = now, s.state != queued
	k.probing += cold
	w.probing += cold
}

// unprobe ends that, where the request is not admitted.
func (w *Worker) unprobe(s *Stream) {
	if s.probing > 0 {
		w.proven(s)
		s.expects.bytes = s.expects.cold()
	}
}

// admitCold notes that a cold request goes to its upstream.
func (w *Worker) admitCold(now Time, s *Stream) {
	cold := s.expects.cold()
	if k := &s.key.Value; !k.Responses.Learned() {
		s.unknown = cold
		k.unknown += cold
	}
	if s.unknown+s.probing > 0 {
		s.sent = now
		w.cold = append(w.cold, s)
	}
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

// forgetCold takes those whose upstream is slow for proven: they are no burst.
func (w *Worker) forgetCold(now Time) {
	w.cold = slices.DeleteFunc(w.cold, func(s *Stream) bool {
		if now-s.sent >= coldFor {
			w.proven(s)
		}
		return s.unknown+s.probing == 0
	})
}
