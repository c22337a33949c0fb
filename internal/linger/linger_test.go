package linger

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestNothingLingersLongerThanItMay(t *testing.T) {
	var s Sum
	s.Add(0, time.Second, 10)
	s.Add(500*time.Millisecond, time.Second, 5)
	require.Equal(t, int64(15), s.Bytes())
	s.Expire(999 * time.Millisecond)
	require.Equal(t, int64(15), s.Bytes())
	s.Expire(time.Second)
	require.Equal(t, int64(5), s.Bytes())
	s.Expire(1500 * time.Millisecond)
	require.Zero(t, s.Bytes())
}

func TestWithoutALingerNothingStays(t *testing.T) {
	var s Sum
	s.Add(0, 0, 10)
	s.Add(0, time.Second, 0)
	require.Zero(t, s.Bytes())
}

// However many come, the sum is that of what lingers, less a fifteenth at most.
func TestAFloodIsOneSumEachFifteenth(t *testing.T) {
	const step, linger = time.Millisecond, time.Second
	var s Sum
	for now := time.Duration(0); now < 5*time.Second; now += step {
		s.Expire(now)
		s.Add(now, linger, 1)
		all := min(int64(now/step)+1, int64(linger/step))
		require.LessOrEqual(t, s.Bytes(), all)
		require.GreaterOrEqual(t, s.Bytes(), all-int64(linger/step)/(buckets-1)-1)
	}
	s.Expire(7 * time.Second)
	require.Zero(t, s.Bytes())
}

// Where the clock stands still, the ring is full of what has not expired: it is kept longer, not
// lost.
func TestAFullRingKeepsItsOldest(t *testing.T) {
	var s Sum
	for i := range 2 * buckets {
		s.Add(time.Duration(i)*100*time.Millisecond, time.Second, 1)
	}
	require.Equal(t, int64(2*buckets), s.Bytes())
	s.Expire(time.Minute)
	require.Zero(t, s.Bytes())
}
