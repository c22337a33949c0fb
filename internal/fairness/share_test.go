package fairness

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func shares(capacity int64, demands ...Demand) []int64 {
	s := make([]int64, len(demands))
	Shares(capacity, demands, s)
	return s
}

func TestShares(t *testing.T) {
	// Alone, a key has all.
	require.Equal(t, []int64{100}, shares(100, Demand{1, 1000}))
	// Two that want more than there is have half each, or by their weights.
	require.Equal(t, []int64{50, 50}, shares(100, Demand{1, 1000}, Demand{1, 1000}))
	require.Equal(t, []int64{25, 75}, shares(100, Demand{1, 1000}, Demand{3, 1000}))
	// What one does not want is the other's at once; the one could have its half whenever it wanted
	// it.
	require.Equal(t, []int64{50, 90}, shares(100, Demand{1, 10}, Demand{1, 1000})[:2][:2])
	require.Equal(t, []int64{50, 100}, shares(100, Demand{1, 0}, Demand{1, 1000}))
	// Without a weight a key has what is left.
	require.Equal(t, []int64{70, 100}, shares(100, Demand{0, 1000}, Demand{1, 30}))
	require.Equal(t, []int64{0, 100}, shares(100, Demand{0, 1000}, Demand{1, 300}))
	require.Equal(t, []int64{0, 0}, shares(-5, Demand{1, 1000}, Demand{1, 1}), "less than nothing is nothing")
}

func TestCuts(t *testing.T) {
	cuts := func(keep int64, demands ...Demand) []int64 {
		c := make([]int64, len(demands))
		Cuts(keep, demands, c)
		return c
	}
	require.Equal(t, []int64{0, 0}, cuts(100, Demand{1, 40}, Demand{1, 60}), "all of it may stay")
	require.Equal(t, []int64{0, 20}, cuts(100, Demand{1, 40}, Demand{1, 80}), "who has most gives it up")
	require.Equal(t, []int64{30, 30}, cuts(100, Demand{1, 80}, Demand{1, 80}))
	require.Equal(t, []int64{55, 5}, cuts(100, Demand{1, 80}, Demand{3, 80}))
	require.Equal(t, []int64{10, 0}, cuts(100, Demand{0, 10}, Demand{1, 100}), "without a weight first")
}

// Whatever is wanted: all shares that are asked for together fit, none is less than its part by
// weight, and nobody who wants more could have more without taking it from one that has less of its
// weight.
func TestSharesAreMaxMin(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		demands := make([]Demand, 1+random.IntN(maxDemands))
		var weights float64
		var wanted int64
		for i := range demands {
			demands[i] = Demand{float64(1 + random.IntN(10)), int64(math.Exp(random.Float64() * 20))}
			weights += demands[i].Weight
			wanted += demands[i].Bytes
		}
		capacity := int64(math.Exp(random.Float64() * 22))
		got := shares(capacity, demands...)
		var used int64
		for i, d := range demands {
			require.GreaterOrEqual(t, got[i]+1, int64(float64(capacity)*d.Weight/weights))
			used += min(got[i], d.Bytes)
		}
		require.LessOrEqual(t, used, capacity+int64(len(demands)))
		if wanted >= capacity {
			require.GreaterOrEqual(t, used, capacity-int64(len(demands)), "nothing is left lying")
		}

		cuts := make([]int64, len(demands))
		Cuts(capacity, demands, cuts)
		var kept int64
		for i, d := range demands {
			require.GreaterOrEqual(t, cuts[i], int64(0))
			require.LessOrEqual(t, cuts[i], d.Bytes)
			kept += d.Bytes - cuts[i]
			if d.Bytes <= got[i] {
				require.LessOrEqual(t, cuts[i], int64(1), "it has no more than its share")
			}
		}
		require.InDelta(t, min(wanted, capacity), kept, float64(len(demands)))
	}
}

func TestSharesAllocateNothing(t *testing.T) {
	demands, parts := make([]Demand, maxDemands), make([]int64, maxDemands)
	for i := range demands {
		demands[i] = Demand{1, int64(i * 7919 % 100)}
	}
	require.Zero(t, testing.AllocsPerRun(10, func() { Shares(1000, demands, parts); Cuts(1000, demands, parts) }))
}

// Whatever the weights and the figures, a share is between nothing and all there is, and a cut
// between nothing and all that is had.
func FuzzShares(f *testing.F) {
	f.Add(uint64(1), int64(100))
	f.Add(uint64(2), int64(math.MaxInt64))
	f.Add(uint64(3), int64(math.MinInt64))
	f.Fuzz(func(t *testing.T, seed uint64, capacity int64) {
		rng := rand.New(rand.NewPCG(seed, 0))
		weights := []float64{0, 1, 2, .5, 1e-300, math.SmallestNonzeroFloat64, 1e-9, MaxWeight, rng.Float64()}
		figures := []int64{0, 1, 100, 1 << 20, 1 << 48, math.MaxInt64, rng.Int64()}
		demands := make([]Demand, 1+rng.IntN(MaxKeys+1))
		for i := range demands {
			demands[i] = Demand{weights[rng.IntN(len(weights))], figures[rng.IntN(len(figures))]}
		}
		got := shares(capacity, demands...)
		for i, share := range got {
			if share < 0 || share > max(capacity, 0) {
				t.Fatalf("%d of %d: %v has %d", i, capacity, demands, share)
			}
		}
		Cuts(capacity, demands, got)
		for i, cut := range got {
			if cut < 0 || cut > demands[i].Bytes {
				t.Fatalf("%d of %d: %v gives up %d", i, capacity, demands, cut)
			}
		}
	})
}
