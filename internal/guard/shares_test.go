package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/fairness"
)

func TestTotalsOfOtherWorkersAreSummed(t *testing.T) {
	published := func(at Time, use int64) []byte {
		return fairness.AppendTotals(nil, at, []fairness.Total{{ID: 7, Weight: 1, Use: use, Large: true}})
	}
	now := time.Hour
	x := shares{totals: []fairness.Total{{ID: 7, Weight: 1, Use: 1}, {ID: 8, Weight: 1, Use: 2, Large: true}}}
	add := func(b []byte, low bool) { x.add(b, now-sharesFor, now+time.Second, low) }
	add(published(now, 10), true)
	add(published(now, 100), false)
	add(published(now-2*sharesFor, 1000), true)
	add(published(now+time.Hour, 1000), true)
	add([]byte("of another version"), true)
	x.merge()
	require.Equal(t, int64(111), x.find(7).Use)
	require.Equal(t, int64(113), x.used())
	require.True(t, x.contended)
	require.Len(t, x.before, 1, "of the worker with a lower id alone")
	require.Equal(t, int64(10), x.before[0].Use)
}

// Max-min: who wants less than his share leaves the rest to the others; a newcomer gets as much as
// they.
func TestTheRoomIsSplitByMaxMin(t *testing.T) {
	x := shares{totals: []fairness.Total{{ID: 7, Weight: 1, Use: 10}, {ID: 8, Weight: 1, Use: 50, Waits: 50}}}
	require.Equal(t, int64(45), x.split(100, ofRoom))
	require.Equal(t, []int64{50, 90}, x.parts[:2], "if it wanted all and the others what they want")
}
