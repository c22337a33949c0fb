package budget

import "time"

// A limit is impossible to hold where the process has nearly all of it without any traffic: a large
// configuration has (4,000 clusters 222 MiB). Shedding frees nothing of that. So the lowest limit
// that could be held with it is in force, and what is told is that the limit is wrong.

// protectedShare of the limit in force is what traffic has in any case.
const protectedShare = 10 // 1/10; TestTrafficHasATenthInAnyCase

// tenable is the highest base with which the limit can be held.
func (l *Limits) tenable() int64 { return l.Limit / protectedShare * (protectedShare - 1) }

// Possible is the lowest limit that can be held with the base, bytes.
func Possible(base int64) int64 { return base * protectedShare / (protectedShare - 1) }

// InForce is the limit by which is decided, bytes: as it was set, or more where the base is so high
// that it can't be held. Where the base is just tenable both are the same: nothing jumps.
func (t *Table) InForce(l *Limits) int64 { return max(l.Limit, Possible(t.Base)) }

// room is what lies between the base and the limit in force, bytes: a tenth of the limit at least.
func (t *Table) room(l *Limits) int64 { return t.InForce(l) - t.Base }

// clears is how far below what is tenable the base has to fall until the limit is possible again.
const clears = 20 // 1/20 of the limit; TestAnImpossibleLimitDoesNotFlap

func (t *Table) impossible(l *Limits) bool {
	return t.Base > l.tenable() || t.Impossible && t.Base >= l.tenable()-l.Limit/clears
}

// silence is when there is nearly no traffic, so that what a reading holds is the process's own.
type silence struct {
	since           Time  // since when there has been none; 0 = there is some
	passed, reading int64 // by all until then, and the reading then
	before          Time  // how long this worker, which is the only one, had been there when its first request came
}

const (
	// silentFor: a new Envoy gets its first requests half a second after it is ready.
	silentFor    = 250 * time.Millisecond // TestAFloodThatWasThereBeforeUsIsNoBase
	silentUsers  = 8                      // so many requests and connections together are nearly none; TestNearlyNoTrafficIsProofOfABase
	silentPasses = 1 << 20                // and so many bytes of theirs; TestRequestsBetweenReadingsAreTraffic
	silentSwing  = 32                     // 1/32 of the limit that readings may differ; TestAReadingThatMovesIsTraffic
	// youth: a guard that starts in a running process does not know what requests of before hold of
	// it. After that they have ended, or all that it ends frees nothing.
	youth = time.Minute // TestAFutileMinuteIsProofOfABase
)

// next notes a reading, and says whether it is silent for long enough.
func (s *silence) next(now Time, t *Table, l *Limits, all *Entry) bool {
	passed, moved := all.Passed-s.passed, max(t.Reading-s.reading, s.reading-t.Reading)
	if t.Sequence == 1 {
		// Who was there before Envoy knows of all its requests: those are what is likely held.
		if s.before >= silentFor {
			return true // TestWhoWasThereBeforeEnvoyKnowsItsBase
		}
		s.since, s.reading, moved = max(t.Begun, 1), t.Reading, 0 // TestSilenceBeforeTheFirstReading
	}
	switch {
	case all.Streams+all.Connections.Open > silentUsers:
		s.since = 0
	case s.since == 0, passed < 0, passed > silentPasses, moved > l.Limit/silentSwing:
		s.since, s.passed, s.reading = now, all.Passed, t.Reading
	}
	return s.since != 0 && now-s.since >= silentFor
}

// base is what the process holds without traffic: the lowest of ten minutes. That may be traffic of
// which nobody knew, such as that of before this guard has started. Up to what is tenable it does
// little harm. Beyond that it would raise the limit, so that it needs proof: nearly no traffic, or
// that shedding has been futile.
func (r *trend) base(now Time, t *Table, l *Limits, all *Entry) int64 {
	low := max(r.bases.min(now), 0)
	silent := r.silence.next(now, t, l, all)
	if silent && r.untouched && low > l.tenable() {
		// Envoy still read a large configuration before: what it held then is no base. With it the
		// first large requests had no room for 5 s (TestAnImpossibleBudget).
		r.bases = lowest{width: r.bases.width}
		r.bases.add(now, t.Reading)
		return t.Reading
	}
	if silent || t.Futile && now-t.Begun >= youth {
		return low
	}
	return min(low, max(t.Base, l.tenable()))
}
