package guard

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// Watching a request may cost Envoy more than the request does. Of 52 KiB that an idle gRPC stream
// holds behind an ext_proc filter, 22 are its own, 8 the filter's, and 22 are the stream on which
// the filter tells of it. So where that is much of what fills memory, those are let go that hold
// next to nothing and are at rest, before anybody is turned away: 5,000 of them fit into 200 MiB
// then. Who was let go is neither counted nor evicted any more.
const (
	letGoFrom  = 2   // from half of soft on; TestWhoHoldsLittleIsLetGo
	letGoShare = 16  // as long as watching is 1/16 of what traffic holds, or more; TestWhoHoldsLittleIsLetGo
	letGoMost  = 128 // in one tick; TestWhoHoldsLittleIsLetGo

	letGoAfter = 500 * time.Millisecond // of rest; TestWhoHoldsLittleIsLetGo
)

// SetWatchCost says what it costs Envoy that its face is told of a request, bytes, for as long as
// that lives. 0, which it is until then, is nothing: nobody is let go.
func (w *Worker) SetWatchCost(bytes int64) { w.watchCost = bytes }

// letGo picks those who are let go, and closes their books.
func (w *Worker) letGo(now Time, a *Actions) {
	t := w.account.Table()
	if w.watchCost == 0 || w.account.Stale(now) || t.Reading < w.account.Share(w.limits.Soft/letGoFrom) ||
		letGoShare*w.watchCost*w.account.Own().Streams < t.Reading-t.Base {
		return
	}
	w.account.Owners(func(owner any) {
		if s, ok := owner.(*Stream); ok && len(a.LetGo) < letGoMost && s.holdsLittle(now, w.watchCost) {
			a.LetGo = append(a.LetGo, s)
		}
	})
	for _, s := range a.LetGo {
		s.guard.Close(now, s)
	}
}

// holdsLittle says that the stream is at rest, that all that passes is seen, and that it holds and is
// expected to bring less than n bytes.
func (s *Stream) holdsLittle(now Time, n int64) bool {
	return s.state == live && s.guard.config.Mode == Enforce &&
		s.Expected(budget.Response) && !s.Ended(budget.Response) && s.Counted(budget.Request) && s.Counted(budget.Response) &&
		s.Rests(now, letGoAfter) && s.Reserved(budget.Request)+s.Reserved(budget.Response)+s.Likely() < n
}
