package process

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestThisProcess(t *testing.T) {
	before, err := CPU(os.Getpid())
	require.NoError(t, err)
	bytes, err := Resident(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, bytes, int64(1<<20))
	held := make([]byte, 64<<20)
	for i := range held {
		held[i] = byte(i)
	}
	after, err := CPU(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, after, before)
	more, err := Resident(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, more, bytes+int64(len(held))/2)
	require.Equal(t, byte(1), held[1])
	_, err = CPU(1 << 21)
	require.Error(t, err)
	_, err = Resident(1 << 22)
	require.Error(t, err)
}
