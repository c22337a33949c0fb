package sim

import (
	"flag"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// loads for each of four numbers of workers; `make soak` runs a thousand of each.
var (
	loads = flag.Int("loads", 160, "random loads for each number of workers, a quarter as many for 64")
	first = flag.Int("first", 0, "seed of the first")
)

// At every instant the estimate covers the truth, whatever clients and upstreams do, as long as
// buffers tell the truth, but for what no filter sees (see Envoy.check); no admission of a large
// request exceeds the limit; and nothing is left. Where lengths are announced and no stream that
// has drained stalls again, the memory in use never exceeds limit and floor. Without a network
// filter rejects leave more than the guard can close, so that those loads show only that nothing is
// left.
func TestRandomLoads(t *testing.T) {
	for _, workers := range []int{1, 2, 8, 64} {
		t.Run(fmt.Sprintf("workers=%d", workers), func(t *testing.T) {
			t.Parallel()
			admissions, worst, waits := 0, 0.0, 0
			var h hashed
			n := *loads / max(workers/16, 1) // 64 take their time
			for seed := uint64(*first); seed < uint64(*first+n); seed++ {
				has := Trait(seed % 32)
				s, limit, l := Random(seed, workers, has)
				r, sum := recorded(t, workers, s, limit, seed, l)
				h.add(t, fmt.Sprintf("%d workers, loads from %3d", workers, seed), sum)
				require.Empty(t, r.Left, "seed %d, traits %b", seed, has)
				require.NotZero(t, r.Checks)
				if has&Blind != 0 {
					continue
				}
				admissions += r.Admissions
				if r.LongestWait > 0 {
					waits++
				}
				require.Zero(t, r.Uncovered, "seed %d, traits %b, at %v: %v", seed, has, r.UncoveredAt, r)
				require.LessOrEqual(t, r.Overadmitted, int64(0), "seed %d, traits %b: %v", seed, has, r)
				require.Less(t, r.Stuck, 2*time.Second, "seed %d, traits %b: %v", seed, has, r)
				if has&(Unannounced|Relapse) == 0 {
					require.LessOrEqual(t, r.Excess, limit/20, "seed %d, traits %b: %v", seed, has, r)
				} else {
					worst = max(worst, float64(r.Peak)/float64(limit))
				}
			}
			h.check(t, workers)
			require.True(t, n < 50 || admissions > 0 && waits > 0, "nothing was checked: %d admissions, %d waits", admissions, waits)
			t.Logf("%d admissions of large ones checked, someone waited in %d loads; worst peak where lengths are missing or readers stall again: %.2f × limit", admissions, waits, worst)
		})
	}
}

// The same seed gives the same run, else no failure could be looked into.
func TestRunsAreDeterministic(t *testing.T) {
	s, limit, l := Random(3, 2, Liars)
	once := run(t, s, limit, true, 3, l)
	again := run(t, s, limit, true, 3, l)
	require.Positive(t, once.Verdicts)
	require.Equal(t, once, again)
}
