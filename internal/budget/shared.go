package budget

import "errors"

// shared is the table as one worker knows it, and how it changes: by compare-and-swap. What is read
// of it is as old as the last exchange; what is written is right or is not there, for a swap fails
// when anybody else was first.
type shared struct {
	store   Store
	id      uint32 // the worker's own
	table   Table  // the last one loaded, and what was changed in it since
	version uint32 // of it
	known   bool   // the last load succeeded
	buf     []byte // for the encoded table
	others  Entry  // sum of the others in it
	workers int    // in it, this one included
	dropped bool   // one was dropped from it since the last tick

	written      Entry  // the worker's own as it was published last
	writtenAfter uint64 // the last reading noticed then
}

// load reads the table, and takes out of it what can't be and who is gone.
func (s *shared) load(now Time) error {
	value, version, err := s.store.Load()
	s.known = err == nil
	if err != nil {
		return err
	}
	if s.table.Decode(value) != nil {
		s.table = Table{Entries: s.table.Entries[:0]} // of another version of us, or garbage: begin again
	}
	s.version = version
	s.table.mend(now)
	if s.table.Begun == 0 {
		s.table.Begun = now
	}
	s.dropped = s.table.drop(now) || s.dropped
	s.others = s.table.sum(s.id)
	s.workers = len(s.table.Entries)
	return nil
}

// swap stores the table, unless somebody has since it was loaded: then the error is ErrConflict.
func (s *shared) swap() error {
	s.buf = s.table.Append(s.buf[:0])
	return s.store.Swap(s.buf, s.version)
}

// load reads the table, and has what this worker knows by itself follow it.
func (a *Account) load(now Time) error {
	if err := a.shared.load(now); err != nil {
		return err
	}
	t := &a.shared.table
	// Where a table begins again, so do the numbers of its readings: what was done for one of
	// before is nothing for those to come.
	a.own.Evicted.Sequence = min(a.own.Evicted.Sequence, int64(t.Sequence))
	a.limits = a.set.of(t.Container)
	if !a.joined {
		return nil
	}
	a.shared.workers = max(a.shared.workers, 1)
	if !t.has(a.shared.id) {
		// It is new, or was dropped for want of a beat: then others may have what it was lent.
		a.own.Connections.Lease = min(a.own.Connections.Lease, a.own.Connections.Open)
	}
	return nil
}

// exchange loads the table, has change make of it what it wants, and stores it, unless change says
// that there is nothing to store. Where others were first it does all of that again, up to maxTries
// times. What change has done to the account itself it has to undo, or to do only when exchange has
// returned. The error is the store's, or ErrConflict where others were always first.
func (a *Account) exchange(now Time, change func() (store bool)) error {
	for range maxTries {
		if err := a.load(now); err != nil {
			return err
		}
		if !change() {
			return nil
		}
		if err := a.shared.swap(); !errors.Is(err, ErrConflict) {
			return err
		}
	}
	a.Contention++
	return ErrConflict
}

// maxTries is how often an exchange is tried where others are first.
const maxTries = 8 // TestOthersMayBeFirstAFewTimes, TestContentionAndFailuresAreBusy

// entry writes the worker's own entry into the loaded table. What a claim adds to it is up to the
// caller. Inlined in each exchange it would make the .wasm larger by 3 kB, as would published.
//
//go:noinline
func (a *Account) entry(now Time) *Entry {
	e := a.shared.table.entry(a.shared.id)
	*e = a.Own()
	e.Beat = now
	return e
}

// published notes that the others have the entry that is in the table now.
//
//go:noinline
func (a *Account) published() {
	s := &a.shared
	s.written, s.writtenAfter = *s.table.entry(s.id), a.fresh.noticed
	s.workers = len(s.table.Entries)
}

// Refresh looks at what others have now. The error is the store's; the account goes on with what it
// knows.
func (a *Account) Refresh(now Time) error {
	err := a.load(now)
	if err == nil {
		a.tighten(now)
	}
	return err
}

// Change lets change have Table.Marks as it wants, or Table.Blind. The error is the store's, or
// ErrConflict where others were always first.
func (a *Account) Change(now Time, change func(t *Table)) error {
	return a.exchange(now, func() bool {
		a.tighten(now)
		change(&a.shared.table)
		return true
	})
}

// Book takes the next place in the one virtual queue of those who are to come back: so long, and
// from first on at the earliest. It is not booked where it would end after last. If the table can't
// be changed in time, only this worker knows of the place, until it loads the table again.
func (a *Account) Book(now, first, span, last Time) (start Time, booked bool) {
	t := &a.shared.table
	err := a.exchange(now, func() bool {
		if start, booked = t.book(first, span, last); booked {
			a.tighten(now)
		}
		return booked
	})
	if err != nil && !a.shared.known {
		return t.book(first, span, last)
	}
	return start, booked
}

// book takes the place in the loaded table alone.
func (t *Table) book(first, span, last Time) (start Time, booked bool) {
	start = max(t.Booked, first)
	if start+span > last {
		return 0, false
	}
	t.Booked = start + span
	return start, true
}
