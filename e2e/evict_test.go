package e2e

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// Memory goes over the limit again and again, with requests in every phase on HTTP/1 and on shared HTTP/2 connections: some wait in
// line, some for their upstream, some are being read, of some the rest lies unread. What is ended, cut and closed in one tick must be
// what Envoy survives, whatever meets there; and small requests hardly notice.
func TestEvict(t *testing.T) {
	forWorkers(t, func(t *testing.T, workers int) {
		s := start(t, setup{workers: workers, fake: 40 * mib, plugin: func(cfg map[string]any) {
			section(cfg, "throttle")["timeout"] = "100ms" // rejects at the same ticks
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
		defer cancel()
		var running sync.WaitGroup
		for _, protocol := range []load.Protocol{load.HTTP1, load.HTTP2} {
			for _, l := range []load.Load{
				&load.SlowReaders{Addr: s.addr, Count: 30, Size: 4 * mib, Length: true, Protocol: protocol},
				&load.SlowReaders{Addr: s.addr, Count: 30, Size: 100_000, Protocol: protocol}, // ended, and unread
				&load.Uploads{Addr: s.addr, Path: "/upload?delay=300ms", Count: 30, Size: mib, Protocol: protocol},
			} {
				running.Go(func() { l.Run(ctx) })
			}
		}
		small := &load.Small{Addr: s.addr, Rate: 100}
		running.Go(func() { small.Run(ctx) })
		for over := false; ctx.Err() == nil; over = !over {
			s.memory.inUse.Store(100 * mib)
			if over {
				s.memory.inUse.Store(230 * mib)
			}
			load.Sleep(ctx, 150*time.Millisecond)
		}
		running.Wait()
		s.memory.inUse.Store(40 * mib)

		stats, err := s.Stats(t.Context(), "highwater")
		require.NoError(t, err)
		require.Greater(t, stats["wasmcustom.highwater_rejected_total.reason.evicted"], 20.)
		got := small.Snapshot()
		// This reading does not fall however many are evicted, so that one or the other waits as long as it may.
		require.GreaterOrEqual(t, got.Served, got.Started*98/100, "%+v", got)
		c := client(t, false)
		require.Equal(t, http.StatusOK, do(t, c, http.MethodGet, s.url("/small"), nil, 0).StatusCode)
		require.Empty(t, envoytest.Faults(s.Logs()))
		s.drained(c.CloseIdleConnections)
	})
}
