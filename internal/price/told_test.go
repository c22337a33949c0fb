package price

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestToldIsDecodedAsItWas(t *testing.T) {
	told := Told{
		Parts:  []Part{{1, 3, 5 * mib}, {math.MaxUint64, 1, 0}},
		Prices: []Price{{math.MaxUint64, 30}, {7, 437 * kib}},
	}
	var got Told
	require.NoError(t, got.Decode(told.Append(nil)))
	require.Equal(t, told.Parts, got.Parts)
	require.Equal(t, []Price{{7, 437 * kib}, {math.MaxUint64, 30}}, got.Prices, "by id")
	require.Equal(t, 437*kib, Of(got.Prices, 7))
	require.Zero(t, Of(got.Prices, 8))

	impossible := Told{Parts: []Part{{1, -3, 0}, {2, 1, -1}, {3, 1, 1 << 62}}, Prices: []Price{{1, -1}, {2, 1 << 62}}}
	require.NoError(t, got.Decode(impossible.Append(nil)))
	require.Empty(t, got.Parts)
	require.Empty(t, got.Prices)

	many := Told{Prices: make([]Price, maxTold+1)}
	require.ErrorIs(t, got.Decode(many.Append(nil)), ErrTold)
	require.ErrorIs(t, got.Decode(nil), ErrTold)
}

// Whatever another worker left there, decoding ends, and nothing is in it that can't be.
func FuzzTold(f *testing.F) {
	told := Told{Parts: []Part{{1, 3, 5}}, Prices: []Price{{1, 30}}}
	f.Add(told.Append(nil))
	f.Add([]byte("1PWH\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got Told
		if got.Decode(b) != nil {
			require.Empty(t, got.Parts)
			require.Empty(t, got.Prices)
		}
		for _, p := range got.Parts {
			require.Positive(t, p.Streams)
			require.GreaterOrEqual(t, p.Likely, int64(0))
		}
		for _, p := range got.Prices {
			require.Positive(t, p.Bytes)
		}
	})
}
