package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// Streams that rest are watched no more where that is much of what fills the memory, and go on:
// what they say afterwards comes, in both directions.
func TestWhoIsLetGoGoesOn(t *testing.T) {
	t.Parallel()
	s := start(t, setup{face: envoytest.ExtProc, workers: 2, fake: 20 * mib, plugin: func(cfg map[string]any) {
		cfg["budget"] = map[string]any{"limit": "80MiB"}
	}})
	echoes := &load.Echoes{Addr: s.addr, Streams: 400, Size: 200, Pause: 800 * time.Millisecond}
	ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
	defer cancel()
	ended := make(chan struct{})
	go func() { defer close(ended); echoes.Run(ctx) }()
	require.Eventually(t, func() bool { return echoes.Snapshot().Served > 400 }, 5*time.Second, 5*time.Millisecond)
	s.memory.inUse.Store(43 * mib)
	_, err := s.Until(ctx, "highwater", func(m map[string]float64) bool { return m["wasmcustom.highwater_streams"] < 100 })
	require.NoError(t, err)
	served := echoes.Snapshot().Served
	<-ended
	t.Log(served, echoes.Snapshot())
	require.Greater(t, echoes.Snapshot().Served, served+800)
	require.Zero(t, echoes.Snapshot().Cut+echoes.Snapshot().Errors)
}
