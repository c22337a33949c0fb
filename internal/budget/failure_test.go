package budget

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fails is a store on which everything, or only Swap, goes wrong.
type fails struct {
	Memory
	load, swap, id error
	swaps          int
}

func (f *fails) Load() ([]byte, uint32, error) {
	if f.load != nil {
		return nil, 0, f.load
	}
	return f.Memory.Load()
}

func (f *fails) Swap(value []byte, version uint32) error {
	f.swaps++
	if f.swap != nil {
		return f.swap
	}
	return f.Memory.Swap(value, version)
}

func (f *fails) NextID() (uint32, error) {
	if f.id != nil {
		return 0, f.id
	}
	return f.Memory.NextID()
}

// When others are always first, or the host fails, nobody is rejected for it: Busy. And nothing
// loops for ever.
func TestContentionAndFailuresAreBusy(t *testing.T) {
	broken := errors.New("the host has failed")
	for name, f := range map[string]*fails{
		"always first":  {swap: ErrConflict},
		"Swap fails":    {swap: broken},
		"Load fails":    {load: broken},
		"both and more": {load: broken, swap: broken},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := NewAccount(f, limits())
			require.NoError(t, err)
			now := time.Hour
			for _, c := range []Claim{UpToHard, UpToLimit, Floor, Forced} {
				a, err := NewAccount(f, limits())
				require.NoError(t, err)
				f.swaps = 0
				require.Equal(t, Busy, a.Ask(now, mib, c))
				require.LessOrEqual(t, f.swaps, maxTries)
			}
			// A life in which nothing works.
			s, c := &Stream{}, &Connection{}
			a.OpenConnection(c, 29*kib)
			a.Open(now, s, nil, new(Sum), 16*kib, 0, mib, mib)
			a.Expect(now, s, Request, mib, mib, 0)
			a.Cover(now)
			for range 20 {
				now += 25 * ms
				polls, err := a.Tick(now)
				require.False(t, polls, "who can't say so does not poll")
				if !errors.Is(f.swap, ErrConflict) {
					require.ErrorIs(t, err, broken)
				} else {
					require.NoError(t, err, "that is no failure of the host")
				}
				_, _, err = a.Observe(now, now-ms, 40*mib)
				require.Error(t, err)
				a.Pass(now, s, Request, 10*kib)
				a.Cover(now)
			}
			a.Close(now, s)
			a.CloseConnection(c)
			require.Zero(t, a.Own().Coming)
			require.Zero(t, a.Own().Streams)
			if errors.Is(f.swap, ErrConflict) {
				require.Positive(t, a.Contention)
			}

			// It works again.
			*f = fails{}
			a.Cover(now)
			now += 25 * ms
			polls, err := a.Tick(now)
			require.NoError(t, err)
			require.True(t, polls)
			_, _, err = a.Observe(now, now, 40*mib)
			require.NoError(t, err)
			require.Equal(t, Granted, a.Ask(now, mib, UpToHard))
		})
	}
	_, err := NewAccount(&fails{id: broken}, limits())
	require.ErrorIs(t, err, broken)
}

// What is in shared data after an upgrade was written by another version: it counts as nothing, and
// is written over.
func TestATableOfAnotherVersionIsBegunAnew(t *testing.T) {
	b := open(t, 1)
	require.NoError(t, b.store.Swap([]byte("something else altogether"), 0))
	b.join()
	b.tick(25 * ms)
	require.Len(t, b.stored().Entries, 1)
	b.readings(1, 40*mib)
	require.Equal(t, 40*mib, b.stored().Reading)
}

// Who finds that others were first a few times tries on: nobody is held back for it.
func TestOthersMayBeFirstAFewTimes(t *testing.T) {
	store := &slow{first: 5}
	a, err := NewAccount(store, limits())
	require.NoError(t, err)
	require.Equal(t, Granted, a.Ask(time.Hour, mib, Forced))
	require.Zero(t, a.Contention)
}

// slow is a store on which others are first so many times.
type slow struct {
	Memory
	first int
}

func (s *slow) Swap(value []byte, version uint32) error {
	if s.first > 0 {
		s.first--
		return ErrConflict
	}
	return s.Memory.Swap(value, version)
}
