package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestKeeps(t *testing.T) {
	var table Table
	var k keeps
	passed, now := int64(0), time.Minute
	comes := func(n, reading, waits int64) int64 {
		now += 25 * ms
		passed += n
		table.Reading = reading
		k.observe(now, &table, passed, waits)
		return table.Keeps
	}
	require.Zero(t, comes(0, 40*mib, 0))
	require.InDelta(t, 1, table.keeps(), 0, "nothing is known: all of it may stay")
	require.Zero(t, comes(31*mib, 60*mib, 0), "too little has passed to tell")
	require.EqualValues(t, 500, comes(9*mib, 60*mib, 0), "20 of 40")
	require.EqualValues(t, 1000, comes(40*mib, 140*mib, 0), "no more than has passed: the rest is something else")
	require.EqualValues(t, 1000, comes(40*mib, 180*mib, 0))
	for range 20 {
		require.GreaterOrEqual(t, comes(40*mib, 180*mib, 0), int64(500), "it falls slowly")
	}
	for range 100 {
		comes(40*mib, 180*mib, 0)
	}
	require.InDelta(t, keepsLeast, table.Keeps, 2, "the upstream may stall at any moment")
	require.EqualValues(t, 1000, comes(40*mib, 220*mib, 0), "and then it rises at once")

	// What waits stays, and says nothing of what passes.
	for range 200 {
		comes(40*mib, 220*mib, 0)
	}
	require.InDelta(t, keepsLeast, comes(40*mib, 280*mib, 60*mib), 2)

	// What comes into the allocator's caches is not to be seen in what is in use.
	table.InUse, table.Allocated = 280*mib, 200*mib
	comes(40*mib, 280*mib, 60*mib)
	table.Allocated = 260 * mib
	require.EqualValues(t, 1000, comes(60*mib, 280*mib, 60*mib))

	now += 11 * time.Second
	require.Zero(t, comes(0, 280*mib, 60*mib), "what was learned is too old")
	require.InDelta(t, 1, table.keeps(), 0)
}

// Of what passes for long in one pass of the event loop, each reading takes out what had passed
// when it was asked for: without marks all of it counted twice, for the third of a second that such
// a pass takes.
func TestWhatPassedSinceAReadingWasAskedFor(t *testing.T) {
	b := open(t, 2)
	a, poller := b.accounts[0], b.accounts[1]
	b.readings(2, 40*mib)
	s := b.stream(a)
	reading := func(asked time.Duration, inUse int64) {
		_, _, err := poller.Observe(b.now, asked, inUse)
		require.NoError(t, err)
	}
	poller.learned.trend.keeps.learned = b.now
	require.NoError(t, a.Change(b.now, func(t *Table) { t.Keeps = 500 }))
	a.Mark(b.now)
	for i := range int64(20) {
		b.now += 15 * ms
		a.Pass(b.now, s, Request, mib)
		reading(b.now-ms, 40*mib+i*mib) // asked for before the last MiB
		a.Mark(b.now)
		require.LessOrEqual(t, a.Own().Fresh, 3*mib)
		require.GreaterOrEqual(t, a.Table().Reading+a.Own().Fresh, 40*mib+(i+1)*mib, "and never less than there is")
	}

	// What is known to be gone is, until a reading tells.
	was := a.Measured()
	a.Free(b.now, mib)
	require.Equal(t, was-mib, a.Measured())
	b.now += 30 * ms
	reading(b.now, 59*mib)
	a.Mark(b.now)
	require.Equal(t, 59*mib, a.Measured())
}

// The first burst comes in one pass of the event loop, and nothing is known of what it leaves. What
// readings have of it counts once, for this worker and for the others.
func TestWhatPassesInTheFirstBurstCountsOnce(t *testing.T) {
	b := open(t, 2)
	a, poller := b.accounts[0], b.accounts[1]
	held := 130 * mib
	b.readings(2, held)
	b.join()
	for range 28 {
		b.now += 15 * ms
		a.Pass(b.now, b.stream(a), Request, mib)
		a.Cover(b.now)
		held += mib
		if a.Marks() {
			a.Mark(b.now)
		}
		b.now += ms
		_, _, err := poller.Observe(b.now, b.now-ms/2, held)
		require.NoError(t, err)
		require.NoError(t, a.Refresh(b.now))
		require.GreaterOrEqual(t, a.Estimate(b.now), held, "and never less")
	}
	require.Zero(t, a.Table().Keeps, "so little has passed")
	require.LessOrEqual(t, a.Measured(), held+4*mib)
	require.LessOrEqual(t, poller.Measured(), held+4*mib)
}

// Who waits in the place of one who has gone is counted once: all that stays is fresh, and what was
// known to be gone is there again.
func TestWhatWaitsIsPartOfWhatIsFresh(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.readings(2, 40*mib)
	waits := func() *Stream {
		s := b.stream(a)
		a.Pause(b.now, s, mib, mib)
		require.LessOrEqual(t, a.Own().Stays, a.Own().Fresh)
		require.LessOrEqual(t, a.Own().Paused, a.Own().Passed)
		return s
	}
	before := a.Measured()
	gone := waits()
	a.Drop(gone)
	a.Close(b.now, gone)
	waits()
	require.InDelta(t, before+mib, a.Measured(), float64(100*kib))
	b.readings(2, 41*mib)

	before = a.Measured()
	gone = waits()
	a.Free(b.now, mib)
	a.Drop(gone)
	a.Close(b.now, gone)
	require.InDelta(t, before, a.Measured(), float64(100*kib))
	waits()
	require.InDelta(t, before+mib, a.Measured(), float64(100*kib))
}

// Whoever takes the poller slot over goes on with what is known of what passes.
func TestATakeoverKeepsWhatIsKnownOfWhatPasses(t *testing.T) {
	b := open(t, 2)
	b.readings(3, 40*mib)
	require.NoError(t, b.accounts[0].Change(b.now, func(t *Table) { t.Keeps = 500 }))
	b.now += 300 * ms
	_, _, err := b.accounts[1].Observe(b.now, b.now, 80*mib)
	require.NoError(t, err)
	require.EqualValues(t, 500, b.stored().Keeps)
	b.now += keepsFor + ms
	_, _, err = b.accounts[1].Observe(b.now, b.now, 80*mib)
	require.NoError(t, err)
	require.Zero(t, b.stored().Keeps, "for as long as it would have been known")
}
