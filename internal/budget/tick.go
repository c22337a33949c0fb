package budget

import (
	"errors"
	"time"
)

// Tick sweeps the streams, exchanges with the table and takes or keeps the poller slot. It returns
// whether the slot is this VM's. An error is the store's; the account goes on with what it knows.
func (a *Account) Tick(now Time) (polls bool, err error) {
	a.fresh.passes()
	a.book(now)
	a.sweep(now)
	stores := false
	err = a.exchange(now, func() bool {
		polls = a.refreshAll(now)
		if stores = a.due(now, polls); !stores {
			return false
		}
		if polls {
			a.shared.table.Poller = Poller{ID: a.shared.id, Beat: now}
		}
		if a.joined {
			a.entry(now)
		}
		return true
	})
	switch {
	case errors.Is(err, ErrConflict):
		return false, nil
	case err != nil:
		return false, err
	}
	if stores && a.joined {
		a.published()
	}
	return polls, nil
}

// sweep takes back, now and then, what is reserved and does not come.
func (a *Account) sweep(now Time) {
	clear(a.streams.lapsed)
	a.streams.lapsed = a.streams.lapsed[:0]
	if now-a.streams.swept < sweepEvery {
		return
	}
	a.streams.swept = now
	for s := a.streams.ring.next; s != &a.streams.ring; s = s.next {
		s.lapse(a, now)
		s.settle(a, now)
	}
}

// refreshAll has what the account keeps follow the table that was just loaded, and says whether the
// poller slot is this VM's.
func (a *Account) refreshAll(now Time) (polls bool) {
	t := &a.shared.table
	a.notice(now)
	a.tighten(now)
	polls = t.Poller.ID == a.shared.id || now-t.Poller.Beat > pollerFree || t.Poller.ID == 0
	if polls {
		if a.shared.dropped || a.streams.hidden > 0 {
			a.learned.trend.lost()
		}
		a.learned.trend.settle(now, t)
	}
	a.shared.dropped = false
	a.shrink(now)
	a.shrinkConnections()
	return polls
}

const (
	sweepEvery = 100 * time.Millisecond // TestComingLapses
	beatEvery  = 100 * time.Millisecond // TestAnIdleTickWritesOnlyToBeat
	pollerFree = 250 * time.Millisecond // TestAnIdleWorkerTicksSeldom
)

// shrink lowers the lease to what is needed and the slack of the formula, and raises it to what is
// needed.
func (a *Account) shrink(now Time) {
	if !a.joined {
		return
	}
	need := a.own.need()
	a.lease.shrink(need, a.slack(a.rooms(a.Stale(now))[underHard]-need, need))
}

// due says whether there is something to tell the others.
func (a *Account) due(now Time, polls bool) bool {
	s := &a.shared
	if polls && (s.table.Poller.ID != s.id || now-s.table.Poller.Beat >= beatEvery) {
		return true
	}
	if !a.joined {
		return false
	}
	was := s.written
	was.Beat = a.own.Beat
	return was != a.Own() || now-s.written.Beat >= beatEvery || s.writtenAfter != a.fresh.noticed
}

// notice takes out of fresh what is in the table's reading, and returns how many bytes that are.
// Only Tick, Observe and Mark do this: elsewhere now may be as old as the last tick, and the
// rotation would seem to lie before bytes that passed before it.
func (a *Account) notice(now Time) (in int64) {
	in, rotates := a.fresh.notice(now, a.shared.table.Sequence, a.shared.table.Asked)
	if !rotates {
		return 0
	}
	a.Rotations++
	a.own.Fresh -= in
	a.lease.spend(in)
	for i := len(a.streams.unbooked) - 1; i >= 0; i-- {
		if s := a.streams.unbooked[i]; s.dir[Response].coming == 0 { // what passes from now on may be in no reading
			a.revoke(s)
		}
	}
	return in
}

// addPaused is addFresh of what comes for those who wait.
func (a *Account) addPaused(n int64) {
	a.fresh.waits(a.addFresh(n))
}

// addFresh counts n more bytes that have passed, and returns how many are new: those that others
// have given back are counted already.
func (a *Account) addFresh(n int64) (added int64) {
	added = a.fresh.add(n)
	a.own.Fresh += added
	a.own.Passed += added
	return added
}
