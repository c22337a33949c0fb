package sim

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/wasmhost/hosttest"
)

// The plugin does the very same as the guard in it: every verdict at the same instant, on the same
// stream. So what the other tests show of the guard holds for the .wasm.
func TestThePluginDoesWhatTheGuardDoes(t *testing.T) {
	for _, workers := range []int{1, 2, 8} {
		t.Run(fmt.Sprintf("random loads/workers=%d", workers), func(t *testing.T) {
			t.Parallel()
			verdicts := 0
			for seed := range uint64(16) {
				s, limit, l := Random(seed, workers, Trait(seed))
				verdicts += same(t, s, limit, seed, l).Verdicts
			}
			require.Positive(t, verdicts)
		})
	}
	for _, sc := range scenarios() {
		for _, workers := range sc.workers() {
			t.Run(fmt.Sprintf("%s/workers=%d", sc.name, workers), func(t *testing.T) {
				t.Parallel()
				s, limit, l := sc.on(workers)
				l.Duration = pluginFor
				require.Positive(t, same(t, s, limit, 1, l).Verdicts)
			})
		}
	}
}

// pluginFor is how long a scenario goes on with the plugin, which takes ten times as long as the
// guard alone: by then all of them have verdicts of each kind that they ever have.
const pluginFor = 4 * time.Second

func same(t *testing.T, s Settings, limit int64, seed uint64, l Load) *Report {
	t.Helper()
	native := run(t, s, limit, true, seed, l)

	m, err := hosttest.Plugin()
	require.NoError(t, err)
	e := New(s, limit, seed)
	text, err := json.Marshal(config(s, limit))
	require.NoError(t, err)
	c, err := NewCompiled(e, m, string(text), s.Workers)
	require.NoError(t, err)
	defer c.Close()
	e.Use(c)
	r := e.Run(l)
	require.NoError(t, c.Err())
	faults, _ := c.Process().Metric("highwater_host_errors_total")
	require.Zero(t, faults.Value)
	require.Equal(t, native.Verdicts, r.Verdicts, "seed %d: %v\nnative %v", seed, r, native)
	require.Equal(t, native.Trace, r.Trace, "seed %d: %v\nnative %v", seed, r, native)
	require.Equal(t, native.Classes, r.Classes)
	require.Empty(t, r.Left)
	require.Zero(t, r.Uncovered)
	return r
}
