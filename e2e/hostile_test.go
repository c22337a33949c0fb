package e2e

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// Clients that mean harm, of all kinds at once: the memory stays under the limit, nobody else
// notices, and nothing is left of them. The floods hostile-* of bench/floods are the same, longer
// and with more of them.
func TestHostileClients(t *testing.T) {
	const limit, shortly = 200 * mib, 8 * time.Second
	s := start(t, setup{workers: 2})
	before, err := s.Memory(t.Context())
	require.NoError(t, err)

	var sampler load.Sampler
	small := &load.Small{Addr: s.addr, Rate: 50}
	hostile := load.AllHostile(s.addr, 0.1, 1)
	ctx, cancel := context.WithTimeout(t.Context(), shortly)
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { hostile.Run(ctx) })
	running.Go(func() { small.Run(ctx) })
	running.Go(func() {
		sampler.Run(ctx, 20*time.Millisecond, func(ctx context.Context) (load.Reading, error) {
			m, err := s.Memory(ctx)
			return load.Reading{Allocated: m.Allocated, InUse: m.InUse()}, err
		})
	})
	running.Wait()

	for _, l := range hostile {
		require.Positive(t, l.Snapshot().Started, "%+v", l)
	}
	peak, samples, _ := sampler.Peak()
	require.Positive(t, samples)
	require.LessOrEqual(t, peak.Allocated, int64(limit))
	require.Positive(t, small.Snapshot().Served)
	require.InDelta(t, 1, small.Snapshot().Answered(), 0, "%+v", small.Snapshot())

	s.drained()
	require.Empty(t, envoytest.Faults(s.Logs()))
	require.Eventually(t, func() bool {
		after, err := s.Memory(t.Context())
		return err == nil && after.Allocated-before.Allocated < limit/20
	}, 10*time.Second, 50*time.Millisecond, "what they held is still there")
	require.Equal(t, 200, do(t, client(t, false), "POST", s.url("/upload?delay=0s"), zeros(4*mib), 4*mib).StatusCode)
}
