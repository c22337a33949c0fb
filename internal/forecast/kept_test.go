package forecast

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What a filter keeps of one request it keeps of the next, until it has not for a while.
func TestKept(t *testing.T) {
	var k Kept
	require.Zero(t, k.At(0))
	k.Learn(time.Second, 8*mib)
	k.Learn(2*time.Second, 2*mib)
	require.Equal(t, 8*mib, k.At(2*time.Second+keptFor), "the most of late")
	require.Zero(t, k.At(2*time.Second+keptFor+1))
	k.Learn(time.Minute, mib)
	require.Equal(t, mib, k.At(time.Minute), "what was forgotten is")
}
