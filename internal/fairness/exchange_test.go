package fairness

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTotalsOfOtherWorkersAreSummed(t *testing.T) {
	published := func(at time.Duration, use int64) []byte {
		return AppendTotals(nil, at, []Total{{ID: 7, Weight: 1, Use: use, Large: true}})
	}
	now := time.Hour
	x := Exchange{All: []Total{{ID: 7, Weight: 1, Use: 1}, {ID: 8, Weight: 1, Use: 2, Large: true}}}
	add := func(b []byte, low bool) { x.Add(b, now+time.Second, low) }
	add(published(now, 10), true)
	add(published(now, 100), false)
	add(published(now+time.Hour, 1000), true)
	add([]byte("of another version"), true)
	x.Merge()
	require.Equal(t, int64(111), x.Find(7).Use)
	require.Equal(t, int64(113), x.Used())
	require.True(t, x.Contended)
	require.Len(t, x.Before, 1, "of the worker with a lower id alone")
	require.Equal(t, int64(10), x.Before[0].Use)
}

// Max-min: who wants less than his share leaves the rest to the others; a newcomer gets as much as
// they.
func TestTheRoomIsSplitByMaxMin(t *testing.T) {
	x := Exchange{All: []Total{{ID: 7, Weight: 1, Use: 10}, {ID: 8, Weight: 1, Use: 50, Waits: 50}}}
	require.Equal(t, int64(45), x.Split(100, func(t *Total) int64 { return t.Use + t.Waits }))
	require.Equal(t, []int64{50, 90}, x.Parts[:2], "if it wanted all and the others what they want")
}
