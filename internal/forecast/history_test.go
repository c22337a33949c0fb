package forecast

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	kib = int64(1 << 10)
	mib = 1 << 10 * kib
)

func TestForecast(t *testing.T) {
	var f Forecast
	require.Equal(t, 64*kib, f.Bytes(), "before it has seen any")
	f.Learn(100 * kib)
	require.Equal(t, 200*kib, f.Bytes(), "one: its size, and half of it as the deviation, twice")
	for range 200 {
		f.Learn(100 * kib)
	}
	require.InDelta(t, 100*kib, f.Bytes(), 64, "all of a size: no deviation")

	// A maximum would let one huge response block everyone.
	f.Learn(100 * mib)
	require.Less(t, f.Bytes(), 80*mib)
	for range 60 {
		f.Learn(100 * kib)
	}
	require.Less(t, f.Bytes(), mib, "and it is forgotten")

	f = Forecast{}
	for range 100 {
		f.Learn(0)
	}
	require.Equal(t, 2*kib, f.Bytes(), "never below 2 KiB")
	for range 1000 {
		f.Learn(math.MaxInt64 / 4)
		require.Positive(t, f.Bytes())
	}
}

func TestAKeyIsHeavyWhileNearlyAllItsResponsesAreLarge(t *testing.T) {
	var h History
	now := time.Hour
	turned := 0
	for range 20 {
		if h.LearnResponse(now, mib, 64*kib) {
			turned++
		}
	}
	require.Equal(t, 1, turned, "one large response may be the exception")
	require.False(t, h.Large(now), "there may be small ones too")
	require.True(t, h.Large(now+HeavyFor))
	require.False(t, h.LearnResponse(now+HeavyFor, kib, 64*kib) && h.Heavy())
	require.False(t, h.Large(now+HeavyFor), "here is one")
}

func TestTheLargestResponseFades(t *testing.T) {
	var h History
	h.LearnResponse(time.Hour, 8*mib, mib)
	require.Equal(t, 8*mib, h.LargestAt(time.Hour))
	require.Equal(t, 4*mib, h.LargestAt(time.Hour+largestHalf))
	h.LearnResponse(time.Hour+largestHalf, 2*mib, mib)
	require.Equal(t, 4*mib, h.LargestAt(time.Hour+largestHalf), "a smaller one says nothing")
	h.LearnResponse(time.Hour+2*largestHalf, 3*mib, mib)
	require.Equal(t, 3*mib, h.LargestAt(time.Hour+2*largestHalf))
}
