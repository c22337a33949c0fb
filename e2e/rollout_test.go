package e2e

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/load"
)

// another is another build of the plugin, which one can tell by a request that asks it to trap.
func another(t *testing.T) string {
	t.Helper()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	return filepath.Join(root, "build", "highwater-trap.wasm")
}

// traffic is a load that goes on while something is changed.
type traffic struct {
	t    *testing.T
	load load.Load
	end  context.CancelFunc
	done chan struct{}
}

// steady are 100 small requests a second, until allServed.
func (s *scene) steady() *traffic {
	return s.loaded(&load.Small{Addr: s.addr, Rate: 100})
}

func (s *scene) loaded(l load.Load) *traffic {
	ctx, end := context.WithCancel(s.t.Context())
	r := &traffic{s.t, l, end, make(chan struct{})}
	s.t.Cleanup(func() { end(); <-r.done })
	go func() {
		defer close(r.done)
		l.Run(ctx)
	}()
	require.Eventually(s.t, func() bool { return l.Snapshot().Served > 5 }, 20*time.Second, 10*time.Millisecond)
	return r
}

// allServed ends it: none was lost, and none rejected.
func (r *traffic) allServed() {
	r.t.Helper()
	r.end()
	<-r.done
	all := r.load.Snapshot()
	require.Zero(r.t, all.Rejected+all.Cut+all.Closed+all.Errors, "%+v", all)
	require.Greater(r.t, all.Served, int64(20))
}

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
