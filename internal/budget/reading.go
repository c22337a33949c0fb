package budget

import (
	"errors"
	"math"
	"time"
)

// readings is what the worker that polls makes of one reading after the other. It knows the table,
// and neither the account nor a stream.
//
// A reading is the allocator's: it has what traffic holds, what the process holds without any
// (Table.Base), and what nobody saw come (Table.Surprise, which is kept free). Both are learned
// here, by trend. What shadows hold is taken out of it, by mix: mode enforce would not have it.
type readings struct {
	trend     trend
	mix       mix
	watch     func(now Time, t *Table)
	container int64 // to be published with the next: the container's limit; 0 = nothing
	allocated int64 // and what is allocated
	turned    bool  // Table.Impossible has changed with the last
	enforced  bool  // shadows count as what they are: see SetReal
}

// enter writes a reading into the table.
func (r *readings) enter(now, asked Time, reading int64, t *Table) {
	t.InUse, t.Allocated, t.Asked, t.Blind = reading, r.allocated, asked, false
	t.Peak = max(t.Peak, reading)
	t.Reading = r.withoutShadows(now, reading, t)
	if r.container > 0 { // where it is told no more, the last one stays: it was true once, and without it there is none
		t.Container = r.container
	}
	t.Sequence++
}

// Watch has watch see each reading that this worker brings into the table, before the others do; it
// may change Table.Marks alone. Where another worker was first, it sees the table as that left it,
// again.
func (a *Account) Watch(watch func(now Time, t *Table)) { a.learned.watch = watch }

// SetContainer publishes, with the next reading, the limit of the container that the process runs
// in, bytes.
func (a *Account) SetContainer(n int64) { a.learned.container = n }

// SetAllocated publishes, with the next reading, what the allocator says is allocated, bytes.
func (a *Account) SetAllocated(n int64) { a.learned.allocated = n }

// SetReal says whether verdicts are carried out anywhere in the process. Then what shadows hold is
// memory that others can't have.
func (a *Account) SetReal(enforcing bool) { a.learned.enforced = enforcing }

// Observe takes a reading: bytes in use by the process and when it was asked for. It returns the
// level before and after it. The error is the store's, or ErrConflict where the table could not be
// changed in time; then the reading is lost, and the next one comes soon.
func (a *Account) Observe(now, asked Time, reading int64) (before, after Level, err error) {
	learned, late := a.learned.trend, false
	a.learned.turned = false
	t := &a.shared.table
	err = a.exchange(now, func() bool {
		before = t.Level
		if late = t.Sequence > 0 && asked <= t.Asked; late {
			return false // an older answer that came late
		}
		a.learned.trend = learned
		if a.joined {
			a.entry(now)
		}
		a.learned.enter(now, asked, reading, t)
		a.limits = a.set.of(t.Container)
		if a.joined && len(t.Entries) == 1 {
			a.learned.trend.silence.before = a.joinedAt - t.Begun
		}
		impossible := t.Impossible
		a.learned.trend.observe(now, t, &a.limits)
		a.learned.turned = t.Impossible != impossible
		if a.learned.watch != nil {
			a.learned.watch(now, t)
		}
		after = t.Level
		return true
	})
	switch {
	case errors.Is(err, ErrConflict):
		a.learned.trend, a.learned.turned = learned, false
		return before, before, err
	case err != nil || late:
		return before, before, err
	}
	a.notice(now)
	a.tighten(now)
	return before, after, nil
}

// withoutShadows is what a reading would be if those were not there that would have been turned
// away, and those waited that would have had to: of what traffic holds, their part goes, and what
// waiting costs comes in its place. All that is likely held is as much too high or too low, so that
// only the proportions count. What nobody explains may be a leak, which mode enforce would have
// too, or be of shadows: as large a part as they have moved of late, but not more than those who
// are there likely hold, which may be twice that, and a quarter of what was held at once by those
// who were. 100 uploads leave 100 idle connections to the upstream, where mode enforce would have
// opened 30.
func (r *readings) withoutShadows(now Time, reading int64, t *Table) int64 {
	all := t.Sum()
	shadowed := r.mix.shadowed(now, &all)
	traffic := reading - t.Base
	if r.enforced || shadowed == 0 && all.Shadows.Likely <= 0 || traffic <= 0 {
		return reading
	}
	likely := max(all.Likely, 0)
	held := min(likely+all.Shadows.Likely, traffic)
	part := 1.
	if all.Shadows.Likely > 0 {
		part = min(float64(likely+all.Queue.Held)/float64(likely+all.Shadows.Likely), 1)
	}
	left := min(shadowed*float64(traffic-held), float64(all.Shadows.Likely)+r.mix.most/shadowsLeave)
	return t.Base + traffic - held - int64(left) + int64(part*float64(held))
}

// mix is how much of what has passed of late was of shadows.
type mix struct {
	at                     Time
	passed, shadows        float64 // with less weight the longer it is ago
	wasPassed, wasShadowed int64   // the totals then
	most                   float64 // that shadows have held at once, likewise
}

const (
	mixHalf      = 10 * time.Minute // scenario shadows
	shadowsLeave = 4                // at most 1/4 of what they have held at once; TestShadowsAreNotInReadings
)

func (m *mix) shadowed(now Time, all *Entry) (share float64) {
	passed, shadows := all.Passed-m.wasPassed, all.Shadows.Passed-m.wasShadowed
	if m.at == 0 || passed < 0 || shadows < 0 {
		passed, shadows = 0, 0 // a worker has gone, and its totals with it
	}
	keep := math.Exp2(-float64(now-m.at) / float64(mixHalf))
	m.passed, m.shadows = keep*m.passed+float64(passed), keep*m.shadows+float64(shadows)
	m.most = max(keep*m.most, float64(all.Shadows.Likely))
	m.at, m.wasPassed, m.wasShadowed = now, all.Passed, all.Shadows.Passed
	if m.shadows == 0 {
		return 0
	}
	return min(m.shadows/m.passed, 1)
}
