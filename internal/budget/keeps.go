package budget

import (
	"math"
	"time"
)

// keeps learns how much of what passes stays: how much more is allocated for each byte that has
// passed since the reading before. Uploads that the upstream reads at once leave a tenth to a half
// of what they bring, those that it does not read leave all. It is not told by what is in use: of
// that the allocator's caches have 20 MiB after a start, which hide as much of the first burst.
//
// It says nothing of the next burst, so that nobody is let in by it. It says who may wait, for that
// is taken back as soon as readings tell otherwise.
type keeps struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	at              Time // of the reading that the next is compared with; 0 = there is none
	reading, passed int64
	learned         Time // when it last learned
}

const (
	keepsFrom  = 32 << 20               // less has to pass for a comparison: caches of the allocator move as much; TestKeeps
	keepsFor   = 10 * time.Second       // what was learned holds so long; TestKeeps
	keepsHalf  = 500 * time.Millisecond // and is halved so often, where what passes now stays less; TestKeeps
	keepsLeast = 250                    // thousandths; the upstream may stall at any moment; TestKeeps
	drains     = 850                    // thousandths; flood upload-default-100, cases stock-upload and ext-authz-body
	keepsMost  = 1000                   // likewise; TestKeeps
)

// observe takes a reading and all that had passed by then, but for what came for those who wait.
// Those hold so much. It sets what the table says.
func (k *keeps) observe(now Time, t *Table, passed, waits int64) {
	reading := t.live() - waits
	if now-k.learned > keepsFor {
		t.Keeps = 0
	}
	switch n := passed - k.passed; {
	case k.at == 0, n < 0, n < keepsFrom && now-k.at > time.Second:
	case n < keepsFrom:
		return
	default:
		is := max(min((reading-k.reading)*1000/n, keepsMost), keepsLeast)
		if t.Keeps > is { // it rises at once, and falls slowly
			is += int64(float64(t.Keeps-is) * math.Exp2(-float64(now-k.learned)/float64(keepsHalf)))
		}
		t.Keeps, k.learned = is, now
	}
	k.at, k.reading, k.passed = now, reading, passed
}

// live is the reading without what is free in the allocator's caches, as far as that is told.
func (t *Table) live() int64 {
	if t.Allocated <= 0 {
		return t.Reading
	}
	return t.Reading - max(t.InUse-t.Allocated, 0)
}

// Drains says that what passes has lately not stayed, and Stays that it has: most likely the
// upstream does not read. In between nothing is known.
func (t *Table) Drains() bool { return t.Keeps > 0 && t.Keeps <= drains }

// Stays says that what passes has lately stayed: most likely the upstream does not read. Where
// nothing was learned (Keeps is 0) both are false.
func (t *Table) Stays() bool { return t.Keeps > drains }

// keeps is what stays of what passes: all of it, where nothing is known.
func (t *Table) keeps() float64 {
	if t.Keeps <= 0 {
		return 1
	}
	return float64(t.Keeps) / 1000
}
