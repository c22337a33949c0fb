package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestAKeyIsHeavyWhileNearlyAllItsResponsesAreLarge(t *testing.T) {
	var h history
	now := time.Hour
	turned := 0
	for range 20 {
		if h.learnResponse(now, mib, 64*kib) {
			turned++
		}
	}
	require.Equal(t, 1, turned, "one large response may be the exception")
	require.False(t, h.large(now), "there may be small ones too")
	require.True(t, h.large(now+heavyFor))
	require.False(t, h.learnResponse(now+heavyFor, kib, 64*kib) && h.heavy != 0)
	require.False(t, h.large(now+heavyFor), "here is one")
}

func TestTheLargestResponseFades(t *testing.T) {
	var h history
	h.learnResponse(time.Hour, 8*mib, mib)
	require.Equal(t, 8*mib, h.largestAt(time.Hour))
	require.Equal(t, 4*mib, h.largestAt(time.Hour+largestHalf))
	h.learnResponse(time.Hour+largestHalf, 2*mib, mib)
	require.Equal(t, 4*mib, h.largestAt(time.Hour+largestHalf), "a smaller one says nothing")
	h.learnResponse(time.Hour+2*largestHalf, 3*mib, mib)
	require.Equal(t, 3*mib, h.largestAt(time.Hour+2*largestHalf))
}
