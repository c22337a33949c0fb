package sim

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/wasmhost/hosttest"
)

// The plugin does the very same as the guard in it: every verdict at the same instant, on the same stream.
func TestThePluginDoesWhatTheGuardDoes(t *testing.T) {
	m, err := hosttest.Plugin()
	require.NoError(t, err)
	for _, workers := range []int{1, 2, 8} {
		t.Run(fmt.Sprintf("workers=%d", workers), func(t *testing.T) {
			verdicts := 0
			for seed := range uint64(16) {
				s, limit, l := Random(seed, workers, Trait(seed))
				native := run(t, s, limit, true, seed, l)

				e := New(s, limit, seed)
				text, err := json.Marshal(config(s, limit))
				require.NoError(t, err)
				c, err := NewCompiled(e, m, string(text), workers)
				require.NoError(t, err)
				e.Use(c)
				r := e.Run(l)
				require.NoError(t, c.Err())
				faults, _ := c.Process().Metric("highwater_host_errors_total")
				c.Close()
				require.Zero(t, faults.Value)
				verdicts += r.Verdicts
				require.Equal(t, native.Verdicts, r.Verdicts, "seed %d: %v\nnative %v", seed, r, native)
				require.Equal(t, native.Trace, r.Trace, "seed %d: %v\nnative %v", seed, r, native)
				require.Equal(t, native.Classes, r.Classes)
				require.Empty(t, r.Left)
				require.Zero(t, r.Uncovered)
			}
			require.Positive(t, verdicts)
			t.Logf("%d verdicts", verdicts)
		})
	}
}
