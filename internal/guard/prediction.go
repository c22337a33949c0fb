package guard

import (
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// foresee sets what the response is expected to come to: where all of its key's are large, as much
// as those, else nothing. But where a response is held at its headers until we have answered, it
// fills its buffers meanwhile, and a burst of requests for large ones is there before any of them
// can be refused (300 slow readers behind 1 MiB buffers made 2.2 times the limit): there the
// request is cold, and expects as much as it may come to, for all that is known of its key's.
func (g *Guard) foresee(now Time, s *Stream, hides bool) {
	w, k, limit := g.worker, &s.key.Value, int64(g.config.Buffers.Downstream+g.config.Buffers.Upstream)
	if hides {
		limit = g.responseCap(s) // no call of a host
	}
	s.expects, s.cold, s.ahead = 0, 0, 0
	large, lengthless := s.keyed && k.large(now), k.forecasts[budget.Response].Learned()
	switch {
	case hides && s.host.Untold():
		s.expects, s.untold, large = limit, true, true
	case large:
		s.expects = min(k.responses.Known(), limit)
	case !hides:
	case !k.responses.Learned() || k.unknown > w.account.Floor(): // nothing is known, or too much is under way from then
		s.expects, lengthless = limit, true
	default:
		if s.expects = min(k.largestAt(now), limit); s.expects <= int64(w.budget.Small) {
			s.expects = 0
		}
	}
	if hides && s.expects > 0 {
		if lengthless {
			s.expects *= 2 // as much lies in Envoy again on its way to us: 80 of those held 3.2 MiB each, of 2
		}
		s.ahead = s.expects
		if !large {
			s.cold = s.expects
		}
	}
}

const (
	probeShare = 4               // probes may bring 1/4 of what traffic can have, all together
	coldFor    = 2 * time.Second // as long as what is reserved for a response that does not come
)

// mayProbe says whether a cold request may go to its upstream without room for what may come of it.
// Of a key with small responses and large ones nobody can tell whose this is; while large ones fill
// the memory, small ones get through by this. Each is over when its response's headers have come,
// so that few are enough for many. Where none was small yet, one goes now and then: most likely its
// upstream does the work for nothing. By turns it is one in line and one that has just come: behind
// a burst of large ones, who comes now may well be small, and in line would be found last, at its
// timeout.
func (w *Worker) mayProbe(now Time, s *Stream) bool {
	k, comes := &s.key.Value, s.state != queued
	switch {
	case k.heavy != 0 && k.lastSmall == 0:
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
	return w.probing == 0 || k.probing+s.cold <= w.account.Floor() && w.probing+s.cold <= w.account.Room()/probeShare
}

func (w *Worker) probe(now Time, s *Stream) {
	s.probing, s.expects = s.cold, 0
	s.key.Value.probed, s.key.Value.cameProbed = now, s.state != queued
	s.key.Value.probing += s.cold
	w.probing += s.cold
}

// admitCold notes that a cold request goes to its upstream.
func (w *Worker) admitCold(now Time, s *Stream) {
	if k := &s.key.Value; !k.responses.Learned() {
		s.unknown = s.cold
		k.unknown += s.cold
	}
	if s.unknown+s.probing > 0 {
		s.since = now
		w.cold = append(w.cold, s)
	}
}

// answered notes that the response of a request has come, or will not.
func (w *Worker) answered(s *Stream) {
	k := &s.key.Value
	k.unknown -= s.unknown
	k.probing -= s.probing
	w.probing -= s.probing
	s.unknown, s.probing = 0, 0
}

// forgetCold takes those whose upstream is slow for answered: they are no burst.
func (w *Worker) forgetCold(now Time) {
	w.cold = slices.DeleteFunc(w.cold, func(s *Stream) bool {
		if now-s.since >= coldFor {
			w.answered(s)
		}
		return s.unknown+s.probing == 0
	})
}
