package guard

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/forecast"
)

// openEnded is what is learnt of requests of which nothing is told but that they are there: no byte
// of an upgrade (WebSocket) or of CONNECT comes to an ext_proc server. What the reading has beyond
// all that is known of others is theirs. Those that have only just come hold less than they will,
// so it is divided among those that are there for a while, where these are the half of all: while
// many come that is up to twice too dear.
type openEnded struct {
	price  int64 // of one, bytes
	known  bool
	looked Time
}

const (
	openAfter = 200 * time.Millisecond // TestUpgradesHaveAPrice
	openEvery = 100 * time.Millisecond // TestUpgradesHaveAPrice
	openLeast = 4                      // fewer tell nothing: caches of the allocator move as much; TestUpgradesHaveAPrice
	openFalls = 8                      // it falls by 1/8 of the difference each openEvery, and rises at once; TestUpgradesHaveAPrice
)

// isOpenEnded says that nothing will be told of what the request brings, nor how much that is.
func (s *Stream) isOpenEnded() bool {
	return s.length == budget.Unknown && !s.Counted(budget.Request)
}

// learnOpenEnded learns, now and then, what those hold that are there.
func (w *Worker) learnOpenEnded(now Time) {
	x := &w.openEnded
	if !w.account.Hides() || now-x.looked < openEvery || w.account.Stale(now) {
		return
	}
	x.looked = now
	t := w.account.Table()
	rest, all, n := t.Reading-t.Base-t.Sum().Likely, int64(0), int64(0)
	w.account.Owners(func(owner any) {
		s, ok := owner.(*Stream)
		if !ok {
			return
		}
		rest -= int64(s.guard.config.Costs.Stream)
		if s.admitted() && s.isOpenEnded() && s.Expected(budget.Response) {
			all++
			rest += s.Likely()
			if now-s.opened >= openAfter {
				n++
			}
		}
	})
	if n < openLeast || 2*n < all {
		return
	}
	price := max(rest, 0) / n
	if x.known && price < x.price {
		price = x.price - (x.price-price)/openFalls
	}
	x.price, x.known = price, true
}

// predictOpenEnded is predict of one of those, beside what its request is expected to bring.
func (w *Worker) predictOpenEnded(s *Stream, most int64) forecast.Prediction {
	return forecast.Prediction{Bytes: min(max(w.openEnded.price-s.wants, 0), most), Evidence: forecast.Learned}
}
