package e2e

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A request that is rejected at its headers never reaches an upstream: whoever sent it may send it
// again, whatever its method.
func TestRejectsReachNoUpstream(t *testing.T) {
	t.Parallel()
	s := start(t, setup{fake: 40 * mib, plugin: func(cfg map[string]any) { cfg["throttle"] = map[string]any{"queue": 0} }})
	s.reading(full)
	before := s.upstream.Total()
	for range 5 {
		res := s.refused(client(t, false), false)
		require.Equal(t, 503, res.StatusCode)
		require.NotEmpty(t, res.Header.Get("retry-after"))
		require.Equal(t, "queue_full", res.Header.Get("x-highwater-reason"))
	}
	m, err := s.Stats(t.Context(), "highwater_rejected_responses_total|cluster.upstream.upstream_rq_total")
	require.NoError(t, err)
	require.Equal(t, before, s.upstream.Total())
	require.Zero(t, m["wasmcustom.highwater_rejected_responses_total"])
	require.Zero(t, m["cluster.upstream.upstream_rq_total"])
}
