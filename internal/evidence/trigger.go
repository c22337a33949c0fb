package evidence

import "time"

// Trigger is why a bundle is taken.
type Trigger string

// The triggers. The first two mean that there may soon be nothing left to look at: for them only a
// bundle of the same kind counts for the interval, and any other one for soonAgain.
const (
	NearLimit Trigger = "near-limit" // memory is at its limit in less than Config.Ahead, as it grows now
	Events    Trigger = "events"     // the kernel counted something in the cgroup's memory.events
	Verdict   Trigger = "verdict"    // growth that load does not explain, or a leak
	HighWater Trigger = "high-water" // memory in use has never been that high
	Unknown   Trigger = "unknown"    // it was begun by a server that ended before it was complete
)

// pressing says whether it can't wait.
func (t Trigger) pressing() bool { return t == NearLimit || t == Events }

// State is what triggers are seen by. Sizes are bytes.
type State struct {
	InUse  int64
	Limit  int64         // of what InUse counts; 0 = not known
	Left   time.Duration // until it is there, as it grows now; 0 = it does not grow
	Events int64         // of memory.events, all that mean distress, in sum; −1 = not known
	Found  bool          // there is a verdict
}

// watch sees what is to be taken when. It is a pure machine: see is called with the time and what
// is known then. The zero value has seen nothing.
type watch struct {
	high    int64 // in use, of the last mark
	began   bool
	events  int64
	found   bool
	near    bool
	waiting Trigger               // was seen, and its time had not come
	taken   map[Trigger]time.Time // when last
	last    time.Time             // when any was
}

const (
	soonAgain = 10 * time.Second
	// A high-water mark is a quarter above the last one, and half of the limit at least: below that
	// there is nothing to explain.
	markStep  = 4
	markFloor = 2
)

// see returns what is to be taken now, if anything. Whoever takes it calls took.
func (w *watch) see(now time.Time, c Config, s State) (Trigger, bool) {
	if t := w.seen(c, s); t != "" && (w.waiting == "" || t.pressing()) {
		w.waiting = t
	}
	if w.waiting == "" || !w.due(now, c) {
		return "", false
	}
	return w.waiting, true
}

func (w *watch) seen(c Config, s State) (t Trigger) {
	if mark := w.high + w.high/markStep; s.InUse > mark && s.Limit > 0 && s.InUse > s.Limit/markFloor {
		w.high = s.InUse
		t = HighWater
	}
	if s.Found && !w.found {
		t = Verdict
	}
	if s.Events >= 0 {
		if w.began && s.Events > w.events {
			t = Events
		}
		w.events, w.began = s.Events, true
	}
	near := c.Ahead > 0 && s.Left > 0 && s.Left < time.Duration(c.Ahead)
	if near && !w.near {
		t = NearLimit
	}
	w.found, w.near = s.Found, near
	return t
}

func (w *watch) due(now time.Time, c Config) bool {
	if w.last.IsZero() {
		return true
	}
	if now.Sub(w.last) < min(soonAgain, time.Duration(c.Interval)) {
		return false
	}
	since := w.last
	if w.waiting.pressing() {
		if since = w.taken[w.waiting]; since.IsZero() {
			return true
		}
	}
	return now.Sub(since) >= time.Duration(c.Interval)
}

// took notes that a bundle for what waits was taken, or tried.
func (w *watch) took(now time.Time) {
	if w.taken == nil {
		w.taken = map[Trigger]time.Time{}
	}
	w.taken[w.waiting], w.last, w.waiting = now, now, ""
}
