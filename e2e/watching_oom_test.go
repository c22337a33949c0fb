//go:build oom

package e2e

import (
	"fmt"
	"maps"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/process"
)

// All that the companion watches costs it about a hundredth of a core, and Envoy another one, with
// 50,000 stats too: readings, buffers, size classes, load, and looking for evidence.
func TestWatchingCosts(t *testing.T) {
	const clusters, over = 700, 24 * time.Second
	s := start(t, setup{workers: 1, edit: func(c envoytest.Config) {
		c.RemoveGuard()
		static := c["static_resources"].(map[string]any)
		like := c.Clusters()[0]
		list := static["clusters"].([]any)
		for i := range clusters {
			another := maps.Clone(like)
			another["name"] = fmt.Sprintf("another-%d", i)
			list = append(list, another)
		}
		static["clusters"] = list
	}})
	stats, err := s.Stats(t.Context(), ".*")
	require.NoError(t, err)
	require.Greater(t, len(stats), 50_000)
	cpu := func(pid int) time.Duration {
		used, err := process.CPU(pid)
		require.NoError(t, err)
		return used
	}
	idle := cpu(s.PID())
	time.Sleep(over / 3)
	idle = (cpu(s.PID()) - idle) * 3

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	_, pid := companion(t, address, fmt.Sprintf("budget: {limit: 1GiB}\nmemory: {url: %q}\nenvoy: {pid: %d}\nevidence: {directory: %q}\n", s.AdminURL(), s.PID(), t.TempDir()+"/evidence"))
	time.Sleep(time.Second) // its start
	own, envoy := cpu(pid), cpu(s.PID())
	time.Sleep(over)
	own, envoy = cpu(pid)-own, cpu(s.PID())-envoy-idle
	share := func(d time.Duration) float64 { return 100 * d.Seconds() / over.Seconds() }
	x := observed(t, address)
	t.Logf("%d stats: the companion takes %.2f %% of a core, and Envoy %.2f %% for it beside %.2f %% of its own", len(stats), share(own), share(envoy), share(idle))
	require.Empty(t, x.Failing)
	// It is more on a busy machine, whose caches are others'.
	require.Less(t, share(own), 3.0)
	require.Less(t, share(envoy), 3.0)
}
