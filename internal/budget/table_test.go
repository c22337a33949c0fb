package budget

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// each field has a value of its own, so that two that are swapped are found.
func numbered(entries int) *Table {
	t := &Table{
		Reading: 1, Asked: 2, Sequence: 3, Low: 4, Base: 5, Surprise: 6, Keeps: 7, Level: Hard, Futile: true, Impossible: true,
		Poller: Poller{ID: 8, Beat: 9}, Booked: 10, Evict: Eviction{Bytes: 11, Sequence: 12}, Container: 13,
		Shown: Shown{InUse: 14, Peak: 15, Allocated: 16}, Begun: 17, Blind: true,
		Marks: [markFields]int64{21, 22, 23, 24, 25, 26, 27, 28, 29, 30},
	}
	for i := range entries {
		e := Entry{ID: uint32(i + 1)}
		for j, v := range e.fields() {
			*v = int64(100*i + j + 14)
		}
		t.Entries = append(t.Entries, e)
	}
	return t
}

func TestATableIsReadBack(t *testing.T) {
	for _, want := range []*Table{
		{},
		{Level: Over},
		{Futile: true},
		{Blind: true},
		numbered(0), numbered(1), numbered(64), numbered(maxEntries),
		{Reading: math.MaxInt64, Asked: math.MinInt64, Sequence: math.MaxUint64, Poller: Poller{ID: math.MaxUint32}, Entries: []Entry{{ID: math.MaxUint32, Lease: -1, VM: math.MinInt64}}},
	} {
		var got Table
		require.NoError(t, got.Decode(want.Append(nil)))
		if len(want.Entries) == 0 {
			got.Entries = want.Entries
		}
		require.Equal(t, *want, got)
	}
	require.Equal(t, []byte("front"), numbered(1).Append([]byte("front"))[:5])
	got := *numbered(3)
	require.NoError(t, got.Decode(nil), "what was never stored is empty")
	require.Empty(t, got.Entries)
	require.Zero(t, got.Sequence)
}

// Each field of an entry is encoded once: a field that was forgotten would be 0 for all others, and
// no test of one worker would see it.
func TestNoFieldOfAnEntryIsForgotten(t *testing.T) {
	var e Entry
	seen := map[*int64]bool{}
	for _, v := range e.fields() {
		require.False(t, seen[v], "twice")
		seen[v] = true
	}
	require.Equal(t, entryFields*8+8, entryBytes)
	// A worker's entry is its id and int64 alone; what is added to it has to be added to fields.
	require.Equal(t, entryBytes, binary.Size(struct {
		ID     uint64
		Fields [entryFields]int64
	}{}))
	require.Equal(t, uintptr(entryBytes), reflect.TypeFor[Entry]().Size())
}

func TestGarbageIsNoTable(t *testing.T) {
	good := numbered(3).Append(nil)
	with := func(edit func(b []byte)) []byte {
		b := bytes.Clone(good)
		edit(b)
		return b
	}
	for name, value := range map[string][]byte{
		"one byte":          {1},
		"another version":   with(func(b []byte) { b[0]++ }),
		"a byte less":       good[:len(good)-1],
		"a byte more":       append(bytes.Clone(good), 0),
		"a worker less":     good[:len(good)-entryBytes],
		"only a header":     good[:headerBytes],
		"less than that":    good[:headerBytes-1],
		"only a beginning":  good[:4],
		"more workers":      with(func(b []byte) { b[4]++ }),
		"billions of them":  with(func(b []byte) { binary.LittleEndian.PutUint32(b[4:], math.MaxUint32) }),
		"too many":          numbered(maxEntries + 1).Append(nil),
		"something of text": []byte("once upon a time there was a table, and it had four legs, and it was long enough for a header, and more"),
	} {
		got := numbered(2)
		require.ErrorIs(t, got.Decode(value), ErrTable, name)
		require.Empty(t, got.Entries, name)
		require.Zero(t, got.Reading, name)
	}
	// A level from the future is the highest that we know.
	got := &Table{}
	require.NoError(t, got.Decode(with(func(b []byte) { b[8+6*8] = 200 })))
	require.Equal(t, Over, got.Level)
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte{})
	for _, n := range []int{0, 1, 3} {
		f.Add(numbered(n).Append(nil))
	}
	f.Add((&Table{Level: Over}).Append(nil)[:20])
	for _, v := range []int64{math.MaxInt64, math.MinInt64, maxSize, maxSum / 2, int64(time.Hour), int64(time.Hour + Ahead), -1} {
		all := &Table{
			Reading: v, Asked: Time(v), Sequence: uint64(v), Low: v, Base: v, Surprise: v, Poller: Poller{ID: 9, Beat: Time(v)}, Booked: Time(v),
			Evict: Eviction{Bytes: v, Sequence: uint64(v)}, Container: v, Entries: make([]Entry, 2),
		}
		for i := range all.Entries {
			all.Entries[i].ID = uint32(i + 8)
			for _, field := range all.Entries[i].fields() {
				*field = v
			}
			all.Entries[i].Beat = time.Hour
		}
		f.Add(all.Append(nil))
		all.Entries[0].Beat = Time(v)
		f.Add(all.Append(nil))
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		var table, again Table
		if err := table.Decode(value); err != nil {
			if len(table.Entries) > 0 || table.Sequence != 0 {
				t.Fatalf("%x: both a table and %v", value, err)
			}
			return
		}
		written := table.Append(nil)
		if err := again.Decode(written); err != nil {
			t.Fatalf("%x can't be read back: %v", value, err)
		}
		if !bytes.Equal(written, again.Append(nil)) {
			t.Fatalf("%x changes with each reading", value)
		}
		// Whatever a foreign table says, an account on it must not panic nor loop.
		store := &Memory{}
		if err := store.Swap(value, 0); err != nil {
			t.Fatal(err)
		}
		a, err := NewAccount(store, limits())
		if err != nil {
			t.Fatal(err)
		}
		now := time.Hour
		a.Ask(now, mib, UpToHard)
		a.Ask(now, mib, Floor)
		a.Ask(now, mib, Forced)
		// And when those of whom it tells are dead, it goes by its own readings alone.
		polls := false
		for end := now + Ahead + deadAfter + time.Second; now < end; now += 200 * ms {
			polls, _ = a.Tick(now)
			if _, _, err := a.Observe(now+ms, now, 40*mib); err != nil {
				t.Fatal(err)
			}
		}
		switch at := a.Table(); {
		case !polls, a.Stale(now), at.Reading != 40*mib, at.Base > 40*mib, at.Low != 40*mib:
			t.Fatalf("%x: polls %v, stale %v, %+v", value, polls, a.Stale(now), at)
		case len(at.Entries) != 1, a.Others() != Entry{}:
			t.Fatalf("%x: dead workers stay: %+v", value, at.Entries)
		case a.Estimate(now) != 40*mib:
			t.Fatalf("%x: the estimate is %d", value, a.Estimate(now))
		}
	})
}

// The fields of random tables survive, in whatever order workers come and go.
func TestRandomTablesAreReadBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 10))
	var got Table // used again and again, as an account does
	for range 2000 {
		want := Table{
			Reading: rng.Int64(), Asked: Time(rng.Int64()), Sequence: rng.Uint64(), Low: -rng.Int64(), Base: rng.Int64(),
			Surprise: rng.Int64(), Level: Level(rng.IntN(4)), Futile: rng.IntN(2) == 0,
			Poller: Poller{ID: rng.Uint32(), Beat: Time(rng.Int64())}, Container: rng.Int64(), Entries: make([]Entry, rng.IntN(9)),
		}
		for i := range want.Entries {
			want.Entries[i].ID = rng.Uint32()
			for _, v := range want.Entries[i].fields() {
				*v = int64(rng.Uint64())
			}
		}
		require.NoError(t, got.Decode(want.Append(nil)))
		require.Equal(t, want, got)
	}
}

func TestEntriesComeAndGo(t *testing.T) {
	table := numbered(0)
	require.Equal(t, uint32(7), table.entry(7).ID)
	table.entry(7).Beat = 10 * ms
	table.entry(9).Beat = 500 * ms
	require.Len(t, table.Entries, 2, "an entry is added once")
	require.False(t, table.drop(10*ms+deadAfter), "2 s are not too long")
	require.True(t, table.drop(11*ms+deadAfter))
	require.Len(t, table.Entries, 1)
	require.Equal(t, uint32(9), table.Entries[0].ID)
}
