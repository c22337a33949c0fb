package guard

import "github.com/highwater-envoy/highwater/internal/budget"

// admitPresumed lets a request without a body in unjudged, where memory is calm, and says whether it
// did. All that its response can hold is reserved for it, so that it does not matter what it is and
// whose. To judge it takes code and figures that have to come from memory where large bodies have
// been through the caches since: of what a download of 1 MB costs Envoy that was 3 %, and of what
// Highwater adds to a GET of 1 kB a third. Of those that come between two ticks the first is judged,
// so that what is known of the keys stays true; and where a peak may come all are, so that it tells
// what they were. What can't be asked for later is asked now.
func (g *Guard) admitPresumed(now Time, s *Stream) bool {
	w, a, b := g.worker, g.worker.account, &g.config.Buffers
	n := int64(b.Upstream + max(b.Downstream, b.HTTP2Window))
	if w.judged != w.ticks {
		w.judged = w.ticks
		return false
	}
	if !a.Calm(now) || w.warm() || a.Ask(now, n, budget.Full) != budget.Granted {
		return false
	}
	if g.header != "" {
		g.keyOf(now, s)
	}
	s.presume(n)
	w.counts[CountAdmitted]++
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
		if s.expects = g.predict(now, s, budget.Counted); s.expects.bytes > 0 {
			w.noteLarge(now, s.key)
			a.Enlarge(now, &s.Stream)
			a.Anticipate(now, &s.Stream, s.expects.bytes)
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
