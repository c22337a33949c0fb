package guard

import "github.com/highwater-envoy/highwater/internal/budget"

// Shadows are how mode observe counts what mode enforce would have done. Who would have had to wait
// stands in line, and who would have been turned away is gone, but in the books alone: Envoy lets
// them go. What they hold all the same is in every reading, and would turn away others that mode
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

// lets says that this guard's verdicts are counted, and that whoever they are about is counted as
// admitted.
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

// meanwhile is what has come of a shadow's response. Where the shadow stands in line, it is judged
// when that has let it go.
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
