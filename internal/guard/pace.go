package guard

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// pace says when a worker's next tick is due.
//
// What the others know of a worker, and it of them, is a tick old, so that ticks must come often
// while there is anything to know. But a tick of an idle machine costs some 0.2 ms of CPU, most of
// it to wake up: 40 a second and worker cost as much as 300 requests. So a worker ticks fast while
// somebody waits, and slower the less there is to do; and a tick may rest, which is to do nothing.
type pace struct {
	ticks  uint64 // those that did not rest
	rested bool   // the last tick was none
	active Time   // when there was last something to do
	judged uint64 // the tick since which one was judged that could be presumed
	Sleeps bool   // the next tick comes late: Wake it, where a connection or a request begins or bytes come
}

// How long it is from one tick to the next.
const (
	FastTick = 2 * time.Millisecond   // while somebody waits or is to be closed: one is resumed per tick
	Tick     = 25 * time.Millisecond  // else
	CalmTick = 50 * time.Millisecond  // where this one has no request: the one who polls, as long as no reading is due before
	SlowTick = 500 * time.Millisecond // and where this one has had none for calmAfter: the others
)

// calmAfter is how long a worker without requests ticks on: between two requests the host is not
// called for the sake of ticks.
const calmAfter = time.Second

// Wake says that there is work again, where Sleeps is true: the next tick is due after Tick at the
// latest.
func (p *pace) Wake(now Time) { p.Sleeps, p.active = false, now }

// mayRest says that this tick may pass: every other may while memory is calm and all in flight are
// presumed. Nothing is known of those, and nobody has to know more than what they have leased.
func (w *Worker) mayRest(now Time) bool {
	own := w.account.Own()
	return !w.rested && own.PresumedStreams > 0 && own.PresumedStreams == own.Streams && w.account.Calm(now)
}

// plan sets when the next tick is due.
func (w *Worker) plan(now Time, a *Actions) {
	if w.works() {
		w.active = now
	}
	a.Next = w.due(now)
	w.Sleeps = a.Next > Tick
}

// works says that there is something on this worker that has to be watched.
func (w *Worker) works() bool {
	own := w.account.Own()
	return own.Streams > 0 || own.Fresh > 0 || len(w.residual) > 0 || w.left.Bytes() > 0 || w.leaving.Bytes() > 0 || w.account.Table().Level > budget.Normal
}

// due is how long it is to the next tick.
func (w *Worker) due(now Time) time.Duration {
	switch {
	case w.line.Len() > 0 || len(w.closing) > 0:
		return FastTick
	case now-w.active < calmAfter, w.polls && w.poll.Every() < CalmTick && w.account.Others().Streams > 0:
		return Tick
	case w.polls:
		return CalmTick
	}
	return SlowTick
}
