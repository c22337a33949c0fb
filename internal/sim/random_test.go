package sim

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

const loads = 250

// At every instant the estimate covers the truth, whatever clients and upstreams do, as long as buffers tell the truth.
func TestRandomLoads(t *testing.T) {
	for _, workers := range []int{1, 2, 8, 64} {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(loads) {
				has := Trait(seed % 32)
				s, limit, l := Random(seed, workers, has)
				r := run(t, s, limit, true, seed, l)
				if has&Blind == 0 && r.Uncovered > 0 || r.Left != "" || has&(Unannounced|Relapse|Blind) == 0 && r.Excess > limit/20 {
					t.Errorf("seed %d traits %b: limit %d MiB base %d\n%+v at %v; excess %d MiB; left %q", seed, has, limit>>20, s.Base>>20, r, r.UncoveredAt, r.Excess>>20, r.Left)
				}
				require.NotZero(t, r.Checks)
			}
		})
	}
}
