package budget

import (
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// There is one queue for all workers: each place begins where the one before ends, whoever booked
// it.
func TestPlacesOfAllWorkersFollowEachOther(t *testing.T) {
	b := open(t, 2)
	first, last := b.now+time.Second, b.now+30*time.Second
	for i := range 29 {
		start, booked := b.accounts[i%2].Book(b.now, first, time.Second, last)
		require.True(t, booked)
		require.Equal(t, first+Time(i)*time.Second, start)
	}
	_, booked := b.accounts[0].Book(b.now, first, 1, last)
	require.False(t, booked, "it is no longer than that")
	require.Equal(t, last, b.stored().Booked)

	// With time it drains, and it begins no earlier than it may.
	b.now += 40 * time.Second
	start, booked := b.accounts[1].Book(b.now, b.now+time.Second, time.Second, b.now+30*time.Second)
	require.True(t, booked)
	require.Equal(t, b.now+time.Second, start)
}

// Where there is room for everyone, those who come back have no need of a queue.
func TestTheQueueIsEmptyBelowResume(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	book := func() {
		_, booked := a.Book(b.now, b.now, time.Minute, b.now+time.Hour)
		require.True(t, booked)
	}
	b.join()
	b.readings(2, 40*mib)
	book()
	a.SetWaiting(1, 0, 0, b.now)
	b.readings(2, 40*mib)
	require.NotZero(t, b.stored().Booked, "somebody waits")
	a.SetWaiting(0, 0, 0, 0)
	b.readings(2, 40*mib)
	require.Zero(t, b.stored().Booked)
	b.readings(2, 195*mib)
	book()
	b.readings(2, 195*mib)
	require.NotZero(t, b.stored().Booked)
}

// A worker that can't reach the others books by what it knows.
func TestAPlaceWithoutTheTable(t *testing.T) {
	store := &stubborn{}
	a, err := NewAccount(store, limits())
	require.NoError(t, err)
	now := time.Hour
	_, booked := a.Book(now, now, time.Second, now+time.Minute)
	require.True(t, booked)
	store.conflict = true
	start, booked := a.Book(now, now, time.Second, now+time.Minute)
	require.True(t, booked)
	require.Equal(t, now+time.Second, start)
	require.Equal(t, uint64(1), a.Contention)
}

// Workers that book at once never get the same place.
func TestPlacesUnderContention(t *testing.T) {
	const workers, each = 8, 200
	store := &Memory{}
	var mu sync.Mutex
	taken := map[Time]int{}
	var lost uint64
	var running sync.WaitGroup
	for range workers {
		a, err := NewAccount(store, limits())
		require.NoError(t, err)
		running.Go(func() {
			for range each {
				start, _ := a.Book(time.Hour, time.Hour, time.Second, 2*time.Hour)
				mu.Lock()
				taken[start]++
				mu.Unlock()
			}
			mu.Lock()
			lost += a.Contention
			mu.Unlock()
		})
	}
	running.Wait()
	require.GreaterOrEqual(t, len(taken), workers*each-int(lost), "but for those that gave up")
}
