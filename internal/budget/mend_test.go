package budget

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// foreign puts a table there as some other worker, or nobody, has left it.
func (b *books) foreign(t *Table) {
	b.t.Helper()
	_, version, err := b.store.Load()
	require.NoError(b.t, err)
	require.NoError(b.t, b.store.Swap(t.Append(nil), version))
}

// never are times that cannot have been at now.
func never(now Time) []Time { return []Time{now + Ahead + 1, math.MaxInt64, -1, math.MinInt64} }

// A reading that was asked for in the future would be the latest for ever, and each that comes an
// older one.
func TestAReadingFromTheFutureIsNone(t *testing.T) {
	for _, asked := range never(time.Hour) {
		t.Run(fmt.Sprint(asked), func(t *testing.T) {
			b := open(t, 2)
			b.foreign(&Table{Reading: 190 * mib, Asked: asked, Sequence: 7, Base: 20 * mib})
			a := b.accounts[0]
			require.NoError(t, a.Refresh(b.now))
			require.True(t, a.Stale(b.now))
			require.Equal(t, 20*mib, a.Estimate(b.now), "as without a reading")
			require.Equal(t, Granted, a.Ask(b.now, 100*mib, UpToHard))
			b.read(b.now, 40*mib)
			for _, a := range b.accounts {
				require.False(t, a.Stale(b.now))
				require.Equal(t, 40*mib, a.Table().Reading)
			}
			b.tick(staleAfter + ms)
			require.True(t, a.Stale(b.now), "and it grows old")
		})
	}
	// A worker whose now is that of its last tick may be behind: what was asked for since is a
	// reading.
	b := open(t, 1)
	b.foreign(&Table{Reading: 190 * mib, Asked: b.now + Ahead, Sequence: 7})
	require.NoError(t, b.accounts[0].Refresh(b.now))
	require.False(t, b.accounts[0].Stale(b.now))
	require.Equal(t, 190*mib, b.accounts[0].Table().Reading)
}

// Who beats in the future would never be dead: what he holds would count for ever, and nobody would
// ask for readings.
func TestABeatFromTheFutureIsNone(t *testing.T) {
	for _, beat := range never(time.Hour) {
		t.Run(fmt.Sprint(beat), func(t *testing.T) {
			b := open(t, 1)
			a := b.accounts[0]
			b.join()
			table := b.stored()
			table.Poller = Poller{ID: 99, Beat: beat}
			table.Entries = append(table.Entries, Entry{ID: 99, Beat: beat, Lease: 150 * mib, Queue: Queue{Waiting: 1, Since: math.MaxInt64}, Connections: Connections{Lease: 5}})
			b.foreign(table)
			require.NoError(t, a.Refresh(b.now))
			require.Zero(t, a.Others())
			polls, err := a.Tick(b.now)
			require.NoError(t, err)
			require.True(t, polls, "somebody has to ask for readings")
			require.Equal(t, a.ID(), b.stored().Poller.ID)
			b.tick(beatEvery)
			require.Len(t, b.stored().Entries, 1)
		})
	}
	// One who is only a little ahead is alive, and dead when that time has come.
	b := open(t, 1)
	a := b.accounts[0]
	b.foreign(&Table{Entries: []Entry{{ID: 99, Beat: b.now + Ahead, Lease: mib}}})
	require.NoError(t, a.Refresh(b.now))
	require.Equal(t, mib, a.Others().Lease)
	b.now += Ahead + deadAfter
	require.NoError(t, a.Refresh(b.now))
	require.Equal(t, mib, a.Others().Lease)
	b.now++
	require.NoError(t, a.Refresh(b.now))
	require.Zero(t, a.Others().Lease)
}

// Nobody is told to come back in more than an hour: a queue that is longer is none.
func TestPlacesFromTheFutureAreNone(t *testing.T) {
	for _, booked := range []Time{time.Hour + maxBooked + 1, math.MaxInt64, math.MinInt64} {
		b := open(t, 1)
		b.foreign(&Table{Booked: booked})
		start, ok := b.accounts[0].Book(b.now, b.now+time.Second, time.Second, b.now+30*time.Second)
		require.True(t, ok)
		require.Equal(t, b.now+time.Second, start)
	}
}

// Sizes that no memory has overflow no sum, and don't stay.
func TestImpossibleSizesCountAsNone(t *testing.T) {
	for _, size := range []int64{math.MaxInt64, math.MinInt64, maxSize + 1, -1} {
		b := open(t, 1)
		a := b.accounts[0]
		b.foreign(&Table{
			Reading: size, Asked: b.now, Sequence: math.MaxUint64, Low: size, Base: size, Surprise: size,
			Evict: Eviction{Bytes: size, Sequence: math.MaxUint64}, Container: size,
			Shown: Shown{InUse: size, Peak: size, Allocated: size}, Begun: Time(size),
		})
		require.NoError(t, a.Refresh(b.now))
		require.True(t, a.Stale(b.now), "there is no reading")
		require.Equal(t, Table{Asked: min(0, b.now-2*staleAfter), Begun: b.now, Entries: a.Table().Entries}, *a.Table())
	}
	for name, edit := range map[string]func(e *Entry){
		"lease":    func(e *Entry) { e.Lease = math.MaxInt64 },
		"fresh":    func(e *Entry) { e.Fresh = math.MinInt64 },
		"streams":  func(e *Entry) { e.Streams = maxSum },
		"presumed": func(e *Entry) { e.Presumed.Streams = -maxSum },
	} {
		b := open(t, 1)
		e := Entry{ID: 99, Beat: b.now, Coming: mib, Passed: math.MaxInt64, Evicted: Evicted{Sequence: math.MaxInt64}}
		good := Entry{ID: 98, Beat: b.now, Coming: mib, Passed: math.MaxInt64, Evicted: Evicted{Sequence: math.MaxInt64}}
		edit(&e)
		b.foreign(&Table{Entries: []Entry{e, good}})
		require.NoError(t, b.accounts[0].Refresh(b.now))
		require.Equal(t, mib, b.accounts[0].Others().Lease, name)
	}
}

// However many workers there are, what the table says of them can be added up.
func TestSumsOfATableDoNotOverflow(t *testing.T) {
	for _, n := range []int{1, 2, 100, maxEntries} {
		b := open(t, 1)
		table := &Table{Reading: maxSize, Asked: b.now, Sequence: 1, Base: maxSize, Surprise: maxSize}
		for i := range n {
			e := Entry{ID: uint32(i + 2)}
			for _, v := range e.fields() {
				*v = maxSum / int64(n)
			}
			e.Beat = b.now
			table.Entries = append(table.Entries, e)
		}
		b.foreign(table)
		a := b.accounts[0]
		require.NoError(t, a.Refresh(b.now))
		require.Len(t, a.Table().Entries, n)
		require.Greater(t, a.Estimate(b.now), int64(maxSum), "what is fresh and coming is twice as much")
		require.Greater(t, a.estimate(true), int64(maxSum))
		require.Equal(t, Denied, a.Ask(b.now, 1, Floor))
	}
}

// A table that begins again counts readings from 1: what was evicted for one of before is no
// reason not to evict.
func TestEvictionInATableThatBeginsAnew(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	l := limits()
	l.Evict = true
	a.SetLimits(l)
	s := b.stream(a)
	a.Expect(b.now, s, Response, 1<<40, 0, 0)
	a.Pass(b.now, s, Response, 150*mib)
	a.Cover(b.now)
	b.readings(20, 40*mib)
	b.readings(3, 230*mib)
	require.Positive(t, a.ToEvict())
	require.Zero(t, a.ToEvict(), "once")
	b.foreign(&Table{})
	b.readings(3, 230*mib)
	require.Positive(t, a.ToEvict())
}

// A table from a worker that has found a surprise beyond all reason keeps no more free than this
// one's own could.
func TestASurpriseThatIsTakenOverIsBounded(t *testing.T) {
	b := open(t, 1)
	b.foreign(&Table{Reading: 40 * mib, Asked: b.now - ms, Sequence: 3, Surprise: maxSize})
	b.readings(1, 40*mib)
	require.LessOrEqual(t, b.stored().Surprise, 200*mib)
}
