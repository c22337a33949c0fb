package budget

import (
	"math"
	"time"
)

// fresh is what has passed since the readings. It knows neither the account nor a stream.
//
// A reading has each byte that had passed when it was asked for. What has passed is told apart by
// marks: what was added before a mark, which was made before a reading was asked for, is in that
// reading, and goes when it comes. The rest stays. With each mark a generation ends: a message adds
// no more than it can hold to each.
//
// A mark is made when a reading is noticed, and in a pass of the event loop that takes long: there
// several readings may come before the next tick.
type fresh struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	total    int64 // all that was ever added
	kept     int64 // of it, what no reading has yet, as far as it is known
	paused   int64 // and of total, what came for those who wait: it stays until they are let go
	stays    int64 // of that, what no reading has yet
	reusable int64 // of this generation: what is gone again, for what comes next
	deleted  int64 // likewise, when the pass of Envoy's event loop has ended
	gen      uint32
	noticed  uint64   // sequence of the last reading noticed
	marks    [32]mark // a ring
	last     int      // place of the last
	freed    int64    // what went since of what waited: see Account.Free
	freedAt  Time
}

// mark is what total was.
type mark struct {
	at            Time
	total, paused int64
}

// markEvery is the least time between two marks in a pass of the event loop.
const markEvery = 10 * time.Millisecond // TestWhatPassedSinceAReadingWasAskedFor

// add counts n more bytes, of which some may be those that others have given back: the allocator
// gives them out again. It returns how many are new.
func (f *fresh) add(n int64) int64 {
	again := min(n, f.reusable)
	f.reusable -= again
	f.freed = max(f.freed-again, 0) // it is there again
	n -= again
	f.total += n
	f.kept += n
	return n
}

// waits notes that n bytes of what was added are of those who wait.
func (f *fresh) waits(n int64) {
	f.paused += n
	f.stays += n
}

// free notes that n bytes go that are in a reading or were added since.
func (f *fresh) free(now Time, n int64) {
	f.freed += n
	f.freedAt = now
}

// giveBack keeps what is gone for the next, within its generation. Until a reading tells, it stays
// counted, for the allocator's caches may hold it.
func (f *fresh) giveBack(gen uint32, n int64) {
	if gen == f.gen {
		f.reusable += n
	}
}

// giveBackLater is giveBack of what Envoy deletes when it has been through all sockets that were
// ready, and no tick comes before that: in a pass of a second hundreds of rejected requests still
// had their headers (case headers-60k).
func (f *fresh) giveBackLater(gen uint32, n int64) {
	if gen == f.gen {
		f.deleted += n
	}
}

// passes notes that a pass of the event loop has ended.
func (f *fresh) passes() { f.reusable, f.deleted = f.reusable+f.deleted, 0 }

// mayMark says that the last mark is long enough ago.
func (f *fresh) mayMark(now Time) bool { return now-f.marks[f.last].at >= markEvery }

// mark ends a generation.
func (f *fresh) mark(now Time) {
	f.last = (f.last + 1) % len(f.marks)
	f.marks[f.last] = mark{now, f.total, f.paused}
	f.gen++
	f.reusable, f.deleted = 0, 0
}

// notice takes out what is in a reading that is new, and returns how many bytes that are.
func (f *fresh) notice(now Time, sequence uint64, asked Time) (in int64, rotates bool) {
	if sequence == f.noticed {
		return 0, false
	}
	f.noticed = sequence
	if asked > f.freedAt {
		f.freed = 0
	}
	since, stays := int64(math.MaxInt64), int64(math.MaxInt64)
	for i := range f.marks {
		if m := &f.marks[i]; m.at < asked {
			since, stays = min(since, f.total-m.total), min(stays, f.paused-m.paused)
		}
	}
	in = max(f.kept-since, 0)
	f.kept -= in
	f.stays = min(f.stays, stays)
	if rotates = asked > f.marks[f.last].at; rotates {
		f.mark(now)
	}
	return in, rotates || in > 0
}

// cost is something that was added to fresh: it can be given back in its generation alone.
type cost struct {
	bytes int64
	gen   uint32
}
