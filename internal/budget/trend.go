package budget

import (
	"math"
	"time"
)

// lowest is the minimum of a sliding window, in n buckets of one width each: exact to a bucket, and
// small.
type lowest struct {
	width   Time
	buckets [10]struct {
		at  Time // start of the bucket
		low int64
		set bool
	}
}

func (w *lowest) add(now Time, v int64) {
	at := now - now%w.width
	b := &w.buckets[int(now/w.width)%len(w.buckets)]
	if !b.set || b.at != at || v < b.low {
		if b.set && b.at == at {
			v = min(v, b.low)
		}
		b.at, b.low, b.set = at, v, true
	}
}

func (w *lowest) min(now Time) int64 {
	low := int64(math.MaxInt64)
	for _, b := range w.buckets {
		if b.set && now-b.at < w.width*Time(len(w.buckets)) {
			low = min(low, b.low)
		}
	}
	return low
}

// trend is what the VM that polls learns from one reading after the other.
type trend struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	bases     lowest // reading − likely held, of ten minutes
	lows      lowest // readings of ten seconds
	untouched bool   // there has been no traffic since the first reading

	// Surprise: the growth of the reading over eight readings against all that passed meanwhile.
	// Over one reading alone it would mostly be false, because the table lags by a tick.
	ring    [surpriseReadings + 4]sample
	n       int       // samples in the ring
	pending [2]sample // not judged yet, the oldest first: where readings come as fast as workers publish there is always one
	waiting int       // how many are pending
	last    Time      // when the last reading came
	kept    int64
	keptAt  Time
	futile  futility
	keeps   keeps
	silence silence
	over    int  // readings over the limit, until eviction has nothing to do: see evict
	overAt  Time // when the last of them came
}

// sample is a reading and what all had passed when it was judged, bytes.
type sample struct {
	reading, passed         int64
	asked, answered, judged Time
}

const (
	surpriseReadings = 8                // TestSurprise
	surpriseHalf     = 30 * time.Second // TestSurprise
	// staleAfter: without a reading for so long there is none.
	staleAfter = time.Second // TestEstimateWithoutAReading
)

func newTrend() trend {
	return trend{bases: lowest{width: time.Minute}, lows: lowest{width: time.Second}}
}

// observe takes a reading into the table.
func (r *trend) observe(now Time, t *Table, l *Limits) {
	all := t.Sum()
	if t.Sequence > 0 && r.last == 0 {
		// This VM has only just taken over: what the one before it had found is all it knows.
		r.kept, r.keptAt, r.keeps.learned = min(t.Surprise, l.Limit), now, now
		if t.Base > 0 && t.Base != l.tenable() { // at which it may have been cut
			r.bases.add(now, t.Base)
		}
	}
	r.untouched = (t.Sequence == 1 || r.untouched) && all.Passed == 0 && all.Streams+all.Connections.Open == 0
	r.bases.add(now, max(t.Reading-all.Likely, min(t.Base, t.Reading)))
	r.lows.add(now, t.Reading)
	t.Base = r.base(now, t, l, &all)
	t.Impossible = t.impossible(l)
	t.Low = r.lows.min(now)
	if r.last == 0 || now-r.last > staleAfter {
		r.n = 0 // at the start and after a gap there is nothing to compare with
	}
	r.last = now
	if r.waiting < len(r.pending) {
		r.pending[r.waiting] = sample{reading: t.InUse, asked: t.Asked, answered: now}
		r.waiting++
	}
	t.Surprise = r.decayed(now)
	r.keeps.observe(now, t, all.Passed-all.Paused, all.Queue.Come)
	estimate := t.Reading + all.Fresh + all.Coming
	t.Level = t.Level.next(l, t.load(l, estimate), t.Reading > t.InForce(l))
	if t.Level == Normal && all.Queue.Waiting == 0 {
		t.Booked = 0 // there is room for everyone
	}
	t.Futile = r.futile.next(now, t.Level, all.Bounds+all.Coming, t.Reading, min(l.Limit, futileRooms*t.room(l)))
	r.evict(now, t, l, all.Evicted.Leaving)
}

// evictAfter readings over the limit somebody has to go: a single one may be what is being freed
// already.
const (
	evictAfter = 2               // scenario eviction
	evictOn    = 2 * time.Second // after the last of them: TestEvictionBelowTheLimitEnds
)

// evict says how much is to be evicted, down to hard, less what is leaving already. One excess
// evicts once: as long as not every worker has done its part of the last one, there is no other.
// What was evicted may have held less than was thought: then it goes on until memory is below hard,
// or it would stay just under the limit, and over it again and again. But that ends soon after the
// last reading over the limit. Traffic may stay between hard and the limit: it has its room there.
func (r *trend) evict(now Time, t *Table, l *Limits, leaving int64) {
	switch {
	case t.Reading > t.InForce(l):
		r.over++
		r.overAt = now
	case r.over < evictAfter, t.Reading <= t.share(l, l.Hard), now-r.overAt > evictOn:
		r.over = 0
	}
	if r.over < evictAfter || !l.Evict || t.Futile {
		return
	}
	for i := range t.Entries {
		if e := &t.Entries[i]; e.Likely > 0 && e.Evicted.Sequence < int64(t.Evict.Sequence) {
			return
		}
	}
	if n := t.Reading - t.share(l, l.Hard) - leaving; n > 0 {
		t.Evict.Bytes, t.Evict.Sequence = n, t.Sequence
	}
}

// settle judges the pending readings once every live worker has published after their answers: only
// then is all that the reading may hold in the totals. One without requests publishes each half
// second, and two readings are pending at most: beside it fewer are judged.
func (r *trend) settle(now Time, t *Table) {
	for r.waiting > 0 && r.published(t, r.pending[0].answered) {
		r.judge(now, r.pending[0], t)
		r.pending[0] = r.pending[1]
		r.waiting--
	}
}

func (r *trend) published(t *Table, at Time) bool {
	for i := range t.Entries {
		if e := &t.Entries[i]; e.Beat <= at {
			return false
		}
	}
	return true
}

func (r *trend) judge(now Time, last sample, t *Table) {
	last.judged = now
	for i := range t.Entries {
		last.passed += t.Entries[i].Passed
	}
	if r.n > 0 && last.passed < r.ring[r.n-1].passed {
		r.n = 0 // a worker has gone, and its total with it
	}
	if r.n == len(r.ring) {
		copy(r.ring[:], r.ring[1:])
		r.n--
	}
	r.ring[r.n] = last
	r.n++
	first := r.n - 1 - surpriseReadings
	// What passed between an answer and its judgement is in that reading's total but not in the
	// reading itself. So the total to begin with is one judged before the first reading was asked
	// for: else each burst would be a surprise.
	for i := first - 1; i >= 0; i-- {
		if before := &r.ring[i]; before.judged <= r.ring[first].asked {
			if s := (last.reading - r.ring[first].reading) - (last.passed - before.passed); s > r.decayed(now) {
				r.kept, r.keptAt = s, now
			}
			return
		}
	}
}

// decayed is the highest surprise, halved every 30 s since.
func (r *trend) decayed(now Time) int64 {
	if r.kept <= 0 {
		return 0
	}
	return int64(float64(r.kept) * math.Exp2(-float64(now-r.keptAt)/float64(surpriseHalf)))
}

// lost forgets the comparison, because a worker was dropped from the table and its total with it.
func (r *trend) lost() { r.n = 0 }
