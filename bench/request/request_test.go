package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestQuartiles(t *testing.T) {
	least, lower, median, upper := quartiles([]float64{5, 1, 3, 2, 4})
	require.Equal(t, []float64{1, 2, 3, 4}, []float64{least, lower, median, upper})
}

// For 20 values the tables say the 6th and the 15th, for 10 the 2nd and the 9th.
func TestInterval(t *testing.T) {
	values := func(n int) (v []float64) {
		for i := range n {
			v = append(v, float64(n-i))
		}
		return v
	}
	low, high := interval(values(20))
	require.Equal(t, []float64{6, 15}, []float64{low, high})
	low, high = interval(values(10))
	require.Equal(t, []float64{2, 9}, []float64{low, high})
	low, high = interval(values(3))
	require.Equal(t, []float64{1, 3}, []float64{low, high})
}

func TestLEB(t *testing.T) {
	require.Equal(t, []byte{0x7f}, leb(127))
	require.Equal(t, []byte{0xe5, 0x8e, 0x26}, leb(624485))
}
