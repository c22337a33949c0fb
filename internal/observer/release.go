package observer

import "time"

// releaser says when free pages are to be given back, and for how long. It is a pure machine: step
// is called with the time and what is known then.
//
// Envoy's shrink_heap acts on a timer of its own, by default each 10 s, so that a pulse lasts until
// that has been: it goes on while it brings something, and ends when there is nothing left to
// bring. What brings nothing is tried less and less often: TCMalloc keeps pages for a minute after
// a peak, whoever asks.
type releaser struct {
	threshold float64       // share of the limit from which on free pages go; 0 = never for that
	interval  time.Duration // and else after so long; 0 = never for that
	keep      int64         // as long as there are more than that

	on        bool
	began     time.Time // of this pulse, or when the last one ended
	progress  time.Time // when it last brought something
	mapped    int64     // when it began
	lowest    int64     // since
	fruitless int       // pulses in a row that brought next to nothing
	pulses    uint64
	released  int64
}

// released and free pages of the heap as they are now.
type heap struct {
	known  bool
	free   int64   // pages that could be given back, bytes
	mapped int64   // pages of the heap that may be resident, free ones included
	share  float64 // of the limit that the process has, free pages included; 0 = no limit is known
}

const (
	leastRelease = 1 << 20          // less is not worth a pulse
	pulseHold    = 12 * time.Second // Envoy's default timer of 10 s, its overload manager's second and ours
	soonAgain    = time.Second      // between two pulses for the threshold's sake
	tries        = 10               // back-off goes up to so many times the interval
)

// step returns whether the pulse is on.
func (r *releaser) step(now time.Time, h heap) bool {
	if r.began.IsZero() {
		r.began = now // the first interval begins with the start
	}
	pressing := r.threshold > 0 && h.share >= r.threshold
	goal := r.keep
	if pressing {
		goal = 0
	}
	goal = max(goal, leastRelease)
	if r.on {
		if h.known && h.mapped <= r.lowest-leastRelease {
			r.released += r.lowest - h.mapped
			r.lowest, r.progress = h.mapped, now
		}
		if now.Sub(r.progress) >= pulseHold || h.known && h.free <= goal {
			r.end(now)
		}
		return r.on
	}
	if !h.known || h.free <= goal {
		return false
	}
	wait := r.interval
	if pressing && (wait == 0 || wait > soonAgain) {
		wait = soonAgain
	}
	if wait == 0 {
		return false
	}
	if now.Sub(r.began) >= min(wait<<min(r.fruitless, tries), tries*max(wait, r.interval)) {
		r.on, r.began, r.progress, r.mapped, r.lowest = true, now, now, h.mapped, h.mapped
		r.pulses++
	}
	return r.on
}

func (r *releaser) end(now time.Time) {
	r.on, r.began = false, now
	if r.mapped-r.lowest >= leastRelease {
		r.fruitless = 0
	} else {
		r.fruitless++
	}
}
