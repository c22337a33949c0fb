package guard

import "github.com/highwater-envoy/highwater/internal/budget"

// futile is what lets large requests in while shedding is futile: as many as the floor has room for,
// and one at a time beside.
type futile struct {
	taken bool // the one beside is there
	ended Time // when the last that was let in by this ended: the next one needs a reading asked for after that
}

// letIn says by which of the two a large request was let in, or both: its response may be let in by
// another than the request was.
type letIn uint8

const (
	inFloor letIn = 1 << iota // it stays in the small sum
	alone
)

func (l letIn) is(way letIn) bool { return l&way != 0 }

// leaves notes that a request ends that was let in while shedding was futile.
func (f *futile) leaves(now Time, l letIn) {
	if l == 0 {
		return
	}
	f.ended = now
	if l.is(alone) {
		f.taken = false
	}
}

// futile lets large requests in while traffic is not what fills the memory: into the floor, and one
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
