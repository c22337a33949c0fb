package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// withClusters makes Envoy hold some 55 KiB for each of so many more clusters, which nobody calls.
func withClusters(n int) func(c envoytest.Config) {
	return func(c envoytest.Config) {
		static := c["static_resources"].(map[string]any)
		clusters := static["clusters"].([]any)
		for i := range n {
			address := map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": 9}}
			endpoint := map[string]any{"endpoint": map[string]any{"address": address}}
			name := fmt.Sprintf("outbound|8080||service-%d.namespace-%d.svc.cluster.local", i, i%97)
			clusters = append(clusters, map[string]any{
				"name": name, "type": "STATIC", "connect_timeout": "5s",
				"load_assignment": map[string]any{
					"cluster_name": name, "endpoints": []any{map[string]any{"lb_endpoints": []any{endpoint}}},
				},
			})
		}
		static["clusters"] = clusters
	}
}

// An Envoy that holds more than the limit before there is any traffic says so once, and serves.
func TestAnImpossibleBudget(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		t.Helper()
		s := b.start(t, setup{edit: withClusters(2000), plugin: func(cfg map[string]any) {
			section(cfg, "budget")["limit"] = "80MiB"
		}})
		s.gauge("highwater_budget_impossible", 1)
		s.gauge("highwater_limit_bytes", 80*mib)
		m, err := s.Stats(t.Context(), "highwater")
		require.NoError(t, err)
		require.Greater(t, m["wasmcustom.highwater_base_bytes"], 80.*mib)
		c := client(t, false)
		for range 5 {
			require.Equal(t, 200, do(t, c, "POST", s.url("/upload"), known(zeros(mib)), mib).StatusCode, "a large request is served")
		}
		time.Sleep(300 * time.Millisecond)
		said := s.lines("budget.limit 80MiB cannot be held: Envoy holds 1[0-9.]+MiB without traffic")
		require.Len(t, said, 1, "once, and not by each worker")
		require.Regexp(t, `error|ERROR`, said[0])
		require.Contains(t, said[0], "Raise budget.limit to at least 1")
	})
}
