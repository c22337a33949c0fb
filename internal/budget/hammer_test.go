package budget

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stubborn conflicts on every Swap while it is told to.
type stubborn struct {
	Memory
	conflict bool
}

func (s *stubborn) Swap(value []byte, version uint32) error {
	if s.conflict {
		return ErrConflict
	}
	return s.Memory.Swap(value, version)
}

// What could not be published is not lent: nobody has heard of it. With it left in the lease, the
// second Ask was granted without an exchange, and workers that were Busy together exceeded T(hard).
func TestWhatWasNotPublishedIsNotLent(t *testing.T) {
	store := &stubborn{}
	a, err := NewAccount(store, limits())
	require.NoError(t, err)
	now := time.Hour
	a.Cover(now)
	for range 3 {
		now += 25 * ms
		_, _, err = a.Observe(now, now, 40*mib)
		require.NoError(t, err)
	}
	lease, under := a.Own().Lease, admits(a)
	store.conflict = true
	require.Equal(t, Busy, a.Ask(now, 20*mib, UpToHard))
	require.Equal(t, Busy, a.Ask(now, 20*mib, UpToHard), "and not granted from a lease that nobody knows")
	require.Equal(t, lease, a.Own().Lease)
	require.Equal(t, under, admits(a))
}

// Several workers admit at once, each with its own account: what they were granted is never more
// than T(hard).
func TestHammer(t *testing.T) {
	const workers, rounds = 8, 12
	for round := range rounds {
		store := &Memory{}
		poller, err := NewAccount(store, limits())
		require.NoError(t, err)
		now := time.Hour
		for range 3 {
			now += 25 * ms
			_, _, err = poller.Observe(now, now, 40*mib)
			require.NoError(t, err)
		}
		const room = 144 * mib // T(hard) − 40 MiB

		var granted [workers]int64
		start, done := make(chan struct{}), sync.WaitGroup{}
		for w := range workers {
			a, err := NewAccount(store, limits())
			require.NoError(t, err)
			done.Go(func() {
				<-start
				streams := make([]Stream, 400)
				for i := range streams {
					n := (1 + int64(i+w+round)%37) * 10 * kib
					// Busy is no grant here: a large request waits then.
					if a.Ask(now, n, UpToHard) == Granted {
						a.Open(now, &streams[i], nil, new(Sum), 0, 0, 1<<40, 1<<40)
						a.Expect(now, &streams[i], Request, n, n, 0)
						granted[w] += n
						if i%3 == 0 {
							a.Pass(now, &streams[i], Request, n)
						}
					}
					if i%5 == 0 {
						_, _ = a.Tick(now + Time(i/50))
					}
				}
			})
		}
		close(start)
		done.Wait()
		var sum int64
		for _, n := range granted {
			sum += n
		}
		require.LessOrEqual(t, sum, room)
		require.Greater(t, sum, room*8/10, "and little of it is stranded")
	}
}

// A falling room stops admissions at once, also those that were leased before: the reading grew by
// more than what was dropped from fresh.
func TestAReadingThatGrowsTakesTheLeaseBack(t *testing.T) {
	grown := func(t *testing.T, observer int) *books {
		t.Helper()
		b := open(t, 2)
		b.join()
		b.readings(3, 40*mib)
		a := b.accounts[0]
		_, out := b.take(a, mib, UpToHard)
		require.Equal(t, Granted, out)
		require.Greater(t, a.Own().Lease, 3*mib)
		b.now += 24 * ms
		_, _, err := b.accounts[observer].Observe(b.now, b.now, 190*mib)
		require.NoError(t, err)
		return b
	}
	t.Run("in the worker that brings it", func(t *testing.T) {
		b := grown(t, 0)
		require.Equal(t, Denied, b.accounts[0].Ask(b.now, mib, UpToHard))
	})
	t.Run("in one that meets it when it asks", func(t *testing.T) {
		b := grown(t, 1)
		require.Equal(t, Denied, b.accounts[0].Ask(b.now, 8*mib, UpToHard))
		require.Equal(t, Denied, b.accounts[0].Ask(b.now, mib, UpToHard))
	})
}
