package guard

import "github.com/highwater-envoy/highwater/internal/budget"

// futile lets large requests in while traffic is not what fills the memory: into the floor, and one
// at a time beside.
func (w *Worker) futile(now Time, s *Stream, n int64) bool {
	// What it left, unread in the codec, must be in the reading first: else one after the other
	// fills the memory.
	if t := w.account.Table(); !t.Futile || t.Asked <= w.letIn {
		return false
	}
	if w.account.Ask(now, n, budget.Floor) == budget.Granted {
		s.inFloor = true
		return true
	}
	if w.alone != nil {
		return false
	}
	w.alone = s
	w.account.Ask(now, n, budget.Forced)
	return true
}
