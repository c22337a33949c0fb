package budget

import (
	"errors"
	"time"

	"github.com/highwater-envoy/highwater/internal/wire"
)

// Time is a reading of the host's CLOCK_MONOTONIC. It has to come from one clock for all workers of
// a process.
type Time = time.Duration

// Table is what the workers of one process know of each other: the last reading of the allocator,
// and one entry per worker. It is one value in shared storage and changes by compare-and-swap only.
type Table struct {
	Reading    int64  // bytes in use by the process, without what shadows hold (see readings.withoutShadows); what counts only when Sequence > 0
	Asked      Time   // when the reading was asked for: all that had passed by then is in it
	Sequence   uint64 // counts readings; 0 = none yet
	Low        int64  // the lowest reading of the last 10 s, bytes
	Base       int64  // what the process holds without traffic, bytes: see trend.base
	Keeps      int64  // of what passes, so much was in use when the next readings came, thousandths; 0 = not known: see keeps.go
	Surprise   int64  // what came and no filter saw, the decaying maximum, bytes: see trend.judge
	Level      Level
	Futile     bool // shedding frees nothing: see level.go
	Impossible bool // the limit can't be held: Base is more than nearly all of it
	Booked     Time // until when those who were told to come back have taken places: see Account.Book; past = the queue is empty

	Container int64 // the limit of the container that the process runs in, bytes; 0 = not known

	Shown
	Begun Time // when the first worker of the process looked at the table; 0 = nobody has
	Blind bool // it has been told that readings do not come

	Evict  Eviction // what is to be evicted
	Poller Poller   // who asks for readings

	Marks [markFields]int64 // what the workers' guards keep of high-water marks: see Account.Watch

	Entries []Entry
}

// Shown is for people alone, bytes.
type Shown struct {
	InUse     int64 // the reading as it came
	Peak      int64 // the highest of all
	Allocated int64 // what the allocator says of the last one
}

// Eviction is what all workers together are to evict; each does its part once.
type Eviction struct {
	Bytes    int64
	Sequence uint64 // the reading for which; 0 = nothing ever was
}

// Poller is the VM that asks for readings.
type Poller struct {
	ID   uint32 // 0 = nobody
	Beat Time   // when it last said so
}

const (
	tableMagic  = 0x48573036 // "HW06": a changed layout needs a new one
	markFields  = 10
	headFields  = 18 + markFields
	headerBytes = 4 + 4 + headFields*8
	entryFields = 28
	entryBytes  = 8 + entryFields*8
	maxEntries  = 4096

	flagLevel      = 0xff // it is a number
	flagFutile     = 1 << 8
	flagBlind      = 1 << 9
	flagImpossible = 1 << 10
)

// ErrTable is wrapped by errors of Decode: the value is not a table of this version.
var ErrTable = errors.New("not a highwater table")

// Append encodes the table behind buf.
func (t *Table) Append(buf []byte) []byte {
	buf = wire.AppendUint32(buf, tableMagic)
	buf = wire.AppendUint32(buf, uint32(len(t.Entries)))
	flags := int64(t.Level)
	if t.Futile {
		flags |= flagFutile
	}
	if t.Blind {
		flags |= flagBlind
	}
	if t.Impossible {
		flags |= flagImpossible
	}
	buf = wire.AppendInts(buf,
		t.Reading, int64(t.Asked), int64(t.Sequence), t.Low, t.Base, t.Surprise, flags,
		int64(t.Poller.ID), int64(t.Poller.Beat), t.Evict.Bytes, int64(t.Evict.Sequence), int64(t.Booked), t.Container,
		t.InUse, t.Peak, t.Allocated, int64(t.Begun), t.Keeps)
	buf = wire.AppendInts(buf, t.Marks[:]...)
	for i := range t.Entries {
		e := &t.Entries[i]
		buf = wire.AppendInt(buf, int64(e.ID))
		for _, v := range e.fields() {
			buf = wire.AppendInt(buf, *v)
		}
	}
	return buf
}

// Decode reads what Append wrote, into t, whose entries it reuses. An empty value is an empty
// table. On an error, which wraps ErrTable, t is empty.
func (t *Table) Decode(value []byte) error {
	*t = Table{Entries: t.Entries[:0]}
	if len(value) == 0 {
		return nil
	}
	r := wire.Read(value, tableMagic)
	workers := r.Uint32()
	t.Reading, t.Asked, t.Sequence = r.Int(), Time(r.Int()), uint64(r.Int())
	t.Low, t.Base, t.Surprise = r.Int(), r.Int(), r.Int()
	flags := r.Int()
	t.Level, t.Futile, t.Blind = min(Level(flags&flagLevel), Over), flags&flagFutile != 0, flags&flagBlind != 0
	t.Impossible = flags&flagImpossible != 0
	t.Poller.ID, t.Poller.Beat = uint32(r.Int()), Time(r.Int())
	t.Evict.Bytes, t.Evict.Sequence, t.Booked, t.Container = r.Int(), uint64(r.Int()), Time(r.Int()), r.Int()
	t.InUse, t.Peak, t.Allocated, t.Begun, t.Keeps = r.Int(), r.Int(), r.Int(), Time(r.Int()), max(r.Int(), 0)
	for i := range t.Marks {
		t.Marks[i] = r.Int()
	}
	r.Expect(workers <= maxEntries && r.Left() == int(workers)*entryBytes, "as many workers as it says")
	for r.Left() > 0 {
		t.Entries = append(t.Entries, Entry{ID: uint32(r.Int())})
		for _, v := range t.Entries[len(t.Entries)-1].fields() {
			*v = r.Int()
		}
	}
	if err := r.End(ErrTable); err != nil {
		*t = Table{Entries: t.Entries[:0]}
		return err
	}
	return nil
}

const (
	// Ahead is how much later than now a time may be that another worker has written: between ticks
	// a worker's now is that of its last one, and that may be late. What lies further ahead is no
	// time of this machine.
	Ahead = 10 * time.Second
	// maxBooked is how far ahead places may be taken: the longest delay that a client is told.
	maxBooked = time.Hour + Ahead
	// maxSize is more than any reading, bytes, and maxSum than all that the workers can have
	// together: sums of both overflow nothing.
	maxSize = 4 * Unlimited
	maxSum  = 1 << 60
)

// mend takes out of the table what can't be: times that lie in the future, and sizes that no memory
// has. Else they would count as the latest for ever. What is taken for a reading then is none, and
// the poller's place is free.
func (t *Table) mend(now Time) {
	if !happened(t.Asked, now) || !possible(t.Reading) {
		t.Reading, t.Asked = 0, min(0, now-2*staleAfter)
	}
	if !happened(t.Poller.Beat, now) {
		t.Poller.ID, t.Poller.Beat = 0, 0
	}
	if t.Booked < 0 || t.Booked > now+maxBooked {
		t.Booked = 0
	}
	if !happened(t.Begun, now) {
		t.Begun = 0
	}
	for _, size := range [...]*int64{&t.Low, &t.Base, &t.Surprise, &t.Evict.Bytes, &t.Container, &t.InUse, &t.Peak, &t.Allocated} {
		if !possible(*size) {
			*size = 0
		}
	}
	if t.Sequence > maxSum {
		t.Sequence = 0
	}
	t.Evict.Sequence = min(t.Evict.Sequence, t.Sequence)
}

// happened says whether it can have been that time: a negative one is of no machine.
func happened(at, now Time) bool { return at >= 0 && at <= now+Ahead }

func possible(size int64) bool { return size >= 0 && size <= maxSize }

// drop removes the entries of workers that no longer beat, and those that no worker can have
// written.
func (t *Table) drop(now Time) (dropped bool) {
	live, most := t.Entries[:0], int64(maxSum/max(len(t.Entries), 1))
	for i := range t.Entries {
		if e := &t.Entries[i]; happened(e.Beat, now) && e.Beat >= now-deadAfter && e.within(most) {
			live = append(live, *e)
		}
	}
	dropped = len(live) < len(t.Entries)
	t.Entries = live
	return dropped
}

// deadAfter: a worker that has not published for so long was trapped, or is gone. Others stop
// counting what it had: as far as Envoy still holds it, it is in the reading. One that has nothing
// to tell publishes each beatEvery all the same, and one that sleeps each half second.
const deadAfter = 2 * time.Second // TestADeadWorkerIsDropped

func (t *Table) has(id uint32) bool {
	for i := range t.Entries {
		if t.Entries[i].ID == id {
			return true
		}
	}
	return false
}

// entry returns the worker's own entry, which it adds if there is none.
func (t *Table) entry(id uint32) *Entry {
	for i := range t.Entries {
		if t.Entries[i].ID == id {
			return &t.Entries[i]
		}
	}
	t.Entries = append(t.Entries, Entry{ID: id})
	return &t.Entries[len(t.Entries)-1]
}

// sum adds up the entries but one (0 leaves nobody out: ids begin at 1); its Lease is what an
// estimate must count (see Entry.counts), its Connections.Lease what a limit must, its Queue.Since
// the earliest.
func (t *Table) sum(without uint32) Entry {
	var s Entry
	total := s.fields()
	var lease, connections int64
	var since Time
	for i := range t.Entries {
		e := &t.Entries[i]
		if e.ID == without {
			continue
		}
		for k, v := range e.fields() {
			*total[k] += *v
		}
		lease += e.counts()
		connections += max(e.Connections.Lease, e.Connections.Open)
		if at := e.Queue.Since; at != 0 && (since == 0 || at < since) {
			since = at
		}
	}
	s.Lease, s.Connections.Lease, s.Queue.Since = lease, connections, since
	s.Beat, s.Evicted.Sequence = 0, 0
	return s
}

// Sum adds up all workers.
func (t *Table) Sum() Entry { return t.sum(0) }
