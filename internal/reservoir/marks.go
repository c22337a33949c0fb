package reservoir

import "sort"

// Rules say when memory in use is at a new high-water mark.
type Rules struct {
	Step  float64 // so much higher than the last one of the episode, as a share of it
	Floor int64   // bytes: an episode begins when traffic has so much more in use than at the lowest since the last one ended
	Keep  int     // so many episodes are kept, and the highest of all beside
}

// rearm: an episode ends when use falls below this share of its mark.
const rearm = .7 // TestMarks

// Marks are the high-water marks of a process. Each episode, from a rise of memory until it has
// fallen again, has a slot for its highest. The zero value is a process without any.
type Marks struct {
	Epoch    int64 // counts marks; a worker that sees another one than the last freezes its sample
	At       Time  // of the last mark
	Episode  int64 // counts episodes
	Height   int64 // bytes that traffic had in use at the last mark of the episode; 0 = it has ended, and the next one has not begun
	Slot     int64 // of the last episode, from 1 on
	High     int64 // the highest of all
	HighSlot int64 // and its slot: no other episode gets it
	Low      int64 // between episodes: the least that traffic had in use since the last one
	Looked   Time  // when somebody last wanted to see the samples as of then
	// Allocated is what the program had asked for, bytes, as of the last reading: only who brought
	// that knows it.
	Allocated int64
}

// MarkFields is how many numbers Marks are.
const MarkFields = 10

// Fields are the marks as numbers, for a table that knows nothing of them.
func (m *Marks) Fields() [MarkFields]int64 {
	return [MarkFields]int64{m.Epoch, int64(m.At), m.Episode, m.Height, m.Slot, m.High, m.HighSlot, m.Low, int64(m.Looked), m.Allocated}
}

// MarksOf is the reverse of Fields.
func MarksOf(f [MarkFields]int64) Marks {
	return Marks{f[0], Time(f[1]), f[2], f[3], f[4], f[5], f[6], f[7], Time(f[8]), f[9]}
}

// Next takes what traffic has in use, bytes, and says whether that is a new mark.
func (m *Marks) Next(now Time, use int64, r *Rules) (marked bool) {
	if m.Height > 0 && float64(use) < rearm*float64(m.Height) {
		m.Height, m.Low = 0, use // memory that goes on falling makes no marks
	}
	if m.Height == 0 {
		m.Low = min(m.Low, max(use, 0))
	}
	if float64(use) < m.threshold(r) {
		return false
	}
	if m.Height == 0 {
		m.Episode++
		m.Slot = m.nextSlot(r)
	}
	m.Epoch++
	m.At, m.Height = now, use
	if use > m.High {
		m.High, m.HighSlot = use, m.Slot
	}
	return true
}

// threshold is what traffic has to have in use for the next mark, bytes.
func (m *Marks) threshold(r *Rules) float64 {
	if m.Height > 0 {
		return float64(m.Height) * (1 + r.Step)
	}
	return float64(m.Low + max(r.Floor, 1))
}

// Slots is how many slots there are.
func (r *Rules) Slots() int { return r.Keep + 1 }

// nextSlot is the one whose episode is the oldest, but for the highest.
func (m *Marks) nextSlot(r *Rules) int64 {
	slot := m.Slot
	for range 2 {
		slot = slot%int64(r.Slots()) + 1
		if slot != m.HighSlot {
			break
		}
	}
	return slot
}

// MaxKeep is how many episodes can be kept, beside the highest of all. The store has a place for
// each.
const MaxKeep = 64

// Valid says whether they can be marks: what is read from a table may be anything.
func (m *Marks) Valid() bool {
	for _, slot := range [...]int64{m.Slot, m.HighSlot} {
		if slot < 0 || slot > MaxKeep+1 {
			return false
		}
	}
	const most = 4 * maxSize // a reading is of the heap, and of what is beside it
	return m.Epoch >= 0 && m.Episode >= 0 && m.Height >= 0 && m.Height <= most && m.High <= most && m.Low >= -most && m.Low <= most
}

// Peak is one episode's highest mark, or the samples as of now: what the workers froze for it.
type Peak struct {
	Number    int64 // of the episode; 0 = it is as of now
	Highest   bool  // of all
	Snapshots []Snapshot
}

// Gather makes a peak of what the workers have in one slot: of the latest episode among it, for a
// worker may have been away when the slot changed hands. It is false where there is none.
func Gather(snapshots []Snapshot) (p Peak, ok bool) {
	for i := range snapshots {
		p.Number = max(p.Number, snapshots[i].Episode)
	}
	for i := range snapshots {
		if snapshots[i].Episode == p.Number {
			p.Snapshots = append(p.Snapshots, snapshots[i])
		}
	}
	return p, len(p.Snapshots) > 0
}

// SortPeaks sorts them by number.
func SortPeaks(all []Peak) {
	sort.Slice(all, func(i, j int) bool { return all[i].Number < all[j].Number })
}
