//go:build oom

package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// The module reads its own cgroup: budget.limit: 80% is 80 % of what the container may have,
// without a companion, and follows that when it is changed. Under a flood nothing is killed.
func TestOOMTheModuleReadsItsCgroup(t *testing.T) {
	group, err := envoytest.NewCgroup(300 * mib)
	require.NoError(t, err)
	t.Cleanup(group.Remove) // after Envoy
	s := start(t, setup{
		face: envoytest.Module, workers: 2, cgroup: group.Dir(),
		plugin: func(cfg map[string]any) { section(cfg, "budget")["limit"] = "80%" },
	})
	for _, limit := range []int64{300 * mib, 400 * mib, 250 * mib} {
		require.NoError(t, group.SetLimit(limit))
		changed := time.Now()
		s.gauge("highwater_limit_bytes", float64(limit/10*8))
		t.Logf("the limit of the cgroup is %d MiB, and the budget follows after %v", limit/mib, time.Since(changed).Round(time.Millisecond))
		require.Less(t, time.Since(changed), 8*time.Second)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	flood := &load.Uploads{Addr: s.addr, Count: 400, Size: 4 * mib}
	flood.Run(ctx)
	peak, killed, err := group.Peak()
	require.NoError(t, err)
	require.False(t, killed)
	t.Logf("peak of the cgroup %d MiB of 250, %+v", peak/mib, flood.Snapshot())
	require.Positive(t, flood.Snapshot().Served)
	s.drained()
}
