package e2e

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/doctor"
	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/gather"
	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/memorymap"
	"github.com/highwater-envoy/highwater/internal/process"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// examine runs highwater doctor as an operator does.
func (s *scene) examine(args ...string) (r doctor.Report) {
	s.t.Helper()
	root, err := envoybin.ModuleRoot()
	require.NoError(s.t, err)
	args = append([]string{"doctor", "-json", "-admin", s.AdminURL()}, args...)
	out, err := exec.CommandContext(s.t.Context(), filepath.Join(root, "build", "highwater"), args...).Output()
	require.NoError(s.t, err, "%s", out)
	require.NoError(s.t, json.Unmarshal(out, &r))
	require.Equal(s.t, s.PID(), r.Envoy.PID, "it finds the process by its admin socket")
	require.Empty(s.t, r.Missing)
	return r
}

// mapped requires what the map promises, and prints it where it does not.
func (s *scene) mapped(when string, r doctor.Report) {
	s.t.Helper()
	var text strings.Builder
	r.WriteText(&text)
	require.LessOrEqual(s.t, r.Map.Error, 0.02, "%s:\n%s", when, text.String())
	require.LessOrEqual(s.t, r.Map.InsideError, 0.10, "%s:\n%s", when, text.String())
	s.t.Logf("%s: %d MiB resident, off by %.2f%%, inside by %.1f%%", when, r.Map.Resident/mib, 100*r.Map.Error, 100*r.Map.InsideError)
}

// advised requires a finding, with its advice for a setting.
func advised(t *testing.T, r doctor.Report, id, setting string) doctor.Advice {
	t.Helper()
	for _, a := range r.Advice {
		if a.For == id && strings.Contains(a.Setting, setting) {
			require.True(t, r.Has(id))
			require.NotEmpty(t, a.Value)
			require.NotEmpty(t, a.Brings)
			return a
		}
	}
	var text strings.Builder
	r.WriteText(&text)
	t.Fatalf("no advice for %s about %s in:\n%s", id, setting, text.String())
	return doctor.Advice{}
}

// bare is the example without the guard, with Envoy's default buffers and windows.
func bare(c envoytest.Config) {
	c.RemoveGuard()
	c.SetBuffers(mib, mib)
	c.SetHTTP2(16*mib, 24*mib, 1024)
	delete(c, "memory_allocator_manager")
	for _, l := range c.Listeners() {
		delete(l, "socket_options")
	}
}

// under runs a load until look has returned.
func (s *scene) under(l load.Load, ready func(load.Snapshot) bool, look func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.Run(ctx)
	}()
	require.Eventually(s.t, func() bool { return ready(l.Snapshot()) }, 15*time.Second, 50*time.Millisecond)
	s.settled()
	look()
	cancel()
	<-done
}

// settled waits until Envoy holds what it is going to: what is allocated moves by less than 1 % in
// 300 ms.
func (s *scene) settled() {
	s.t.Helper()
	last := 0.0
	require.Eventually(s.t, func() bool {
		m, err := s.Memory(s.t.Context())
		require.NoError(s.t, err)
		now := float64(m.Allocated)
		calm := last > 0 && now < 1.01*last && now > 0.99*last
		last = now
		return calm
	}, 15*time.Second, 300*time.Millisecond)
}

func inFlight(n int64) func(load.Snapshot) bool {
	return func(s load.Snapshot) bool { return s.InFlight >= n }
}

// The map adds up at idle, in four floods and after each, with Wasm and without, and three of the
// six cases are named by the way: wide windows, caches per thread, pages that wait.
func TestDoctorMap(t *testing.T) {
	for _, wasm := range []bool{false, true} {
		t.Run(fmt.Sprintf("wasm=%v", wasm), func(t *testing.T) {
			s := start(t, setup{workers: 2, edit: func(c envoytest.Config) {
				if !wasm {
					bare(c)
					return
				}
				c.SetBuffers(mib, mib)
				c.SetPluginConfig(func(cfg map[string]any) { cfg["mode"] = "observe" })
			}})
			s.mapped("idle", s.examine())
			for range 500 {
				s.dial("")
			}
			s.settled()
			s.mapped("500 idle connections", s.examine())

			s.under(&load.Uploads{Addr: s.addr, Count: 80, Size: 4 * mib, Path: "/upload?delay=30s"}, inFlight(80), func() {
				s.mapped("80 uploads", s.examine())
			})
			s.under(&load.SlowReaders{Addr: s.addr, Count: 80, Size: 16 * mib}, inFlight(80), func() {
				s.mapped("80 slow readers", s.examine())
			})
			s.under(&load.SlowReaders{Addr: s.addr, Count: 15, Size: 16 * mib, Protocol: load.HTTP2}, inFlight(15), func() {
				r := s.examine()
				s.mapped("15 slow readers over HTTP/2", r)
				if wasm { // with the example's windows of 64 KiB
					return
				}
				a := advised(t, r, doctor.WideWindows, "initial_stream_window_size")
				require.Equal(t, "65536", a.Value)
				require.Greater(t, a.Bytes, int64(100*mib))
			})
			s.settled()
			r := s.examine()
			s.mapped("after", r)
			caches := advised(t, r, doctor.ThreadCaches, "GLIBC_TUNABLES")
			require.Equal(t, "glibc.pthread.rseq=0", caches.Value)
			require.Greater(t, caches.Bytes, int64(4*mib))
			if !wasm { // the example has the setting
				require.Greater(t, advised(t, r, doctor.WaitingPages, "soft_memory_limit_bytes").Bytes, int64(20*mib))
			}
		})
	}
}

// With rseq left to tcmalloc there are caches per processor, and nothing is said.
func TestDoctorSeesRseq(t *testing.T) {
	t.Setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
	s := start(t, setup{workers: 2, edit: bare})
	r := s.examine()
	require.False(t, r.Has(doctor.ThreadCaches), "%+v", r.Allocator.Caches)
	require.True(t, r.Allocator.Caches.PerCPU)
}

var manyClusters = flag.Int("clusters", 1200, "how many clusters TestDoctorLimitBelowBase has")

// Clusters leave too little of the limit: 4,000 of them of 300 MiB, and 1,200 of 100. So many have
// far more than 50,000 stats, and to sample such an Envoy costs less than 1 % of a core.
func TestDoctorLimitBelowBase(t *testing.T) {
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) {
		bare(c)
		resources := c["static_resources"].(map[string]any)
		clusters := resources["clusters"].([]any)
		for i := range *manyClusters {
			name := fmt.Sprintf("service-%d", i)
			clusters = append(clusters, map[string]any{"name": name, "type": "STATIC", "load_assignment": map[string]any{"cluster_name": name}})
		}
		resources["clusters"] = clusters
	}})
	r := s.examine("-limit", fmt.Sprintf("%dMiB", 20+*manyClusters*70/1000))
	s.mapped("many clusters", r)
	a := advised(t, r, doctor.LimitBelowBase, "resources.limits.memory")
	value, err := unit.ParseBytes(a.Value)
	require.NoError(t, err)
	require.Greater(t, int64(value), r.Limit)
	advised(t, r, doctor.ManyClusters, "clusters")
	require.Contains(t, r.Verdict, "too small")
	roomy := s.examine("-limit", "2GiB")
	require.False(t, roomy.Has(doctor.LimitBelowBase))

	live, err := gather.NewLive(s.AdminURL(), 0)
	require.NoError(t, err)
	defer live.Close()
	used := func() time.Duration {
		envoy, err := process.CPU(s.PID())
		require.NoError(t, err)
		mine, err := process.CPU(os.Getpid())
		require.NoError(t, err)
		return envoy + mine
	}
	live.Read(t.Context())
	before, began := used(), time.Now()
	const samples = 10
	for range samples {
		sample := live.Read(t.Context())
		require.Empty(t, sample.Missing)
	}
	each := (used() - before) / samples
	every := max(5*time.Second, gather.Share*time.Since(began)/samples)
	t.Logf("a sample costs %v of CPU, Envoy's and the doctor's: %.2f%% of a core at one in %v", each, 100*each.Seconds()/every.Seconds(), every)
	require.Less(t, each, every/100)
}

// A plugin's machine that grows is outside of Envoy's heap.
func TestDoctorWasmGrows(t *testing.T) {
	plugin := growingPlugin(t)
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) {
		bare(c)
		c.SetConnectionManager(func(hcm map[string]any) {
			hcm["http_filters"] = append([]any{map[string]any{"name": "growing", "typed_config": map[string]any{
				"@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
				"config": map[string]any{"name": "growing", "vm_config": map[string]any{
					"vm_id": "growing", "runtime": "envoy.wasm.runtime.v8", "code": map[string]any{"local": map[string]any{"filename": plugin}},
				}},
			}}}, hcm["http_filters"].([]any)...)
		})
	}})
	r := s.examine("-watch", "2500ms")
	s.mapped("a machine that grows", r)
	a := advised(t, r, doctor.WasmGrows, "vm_config")
	require.Greater(t, a.Bytes, int64(10*mib))
	require.Less(t, r.Allocator.Application, int64(20*mib), "Envoy's own heap does not show it")
}

// Retries keep bodies that no connection's buffer has.
func TestDoctorRetries(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		select {
		case <-time.After(2 * time.Second):
		case <-r.Context().Done():
		}
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(upstream.Close)
	s := start(t, setup{workers: 2, upstream: upstream.Listener.Addr().String(), edit: func(c envoytest.Config) {
		bare(c)
		c.AddRoute(map[string]any{"match": map[string]any{"prefix": "/"}, "request_body_buffer_limit": 16 * mib, "route": map[string]any{
			"cluster": "upstream", "timeout": "0s", "retry_policy": map[string]any{"retry_on": "5xx", "num_retries": 5},
		}})
	}})
	retried := func(load.Snapshot) bool {
		m, err := s.Stats(t.Context(), "upstream_rq_retry$")
		require.NoError(t, err)
		return m["cluster.upstream.upstream_rq_retry"] >= 1
	}
	s.under(&load.Uploads{Addr: s.addr, Count: 30, Size: 4 * mib, Path: "/x"}, retried, func() {
		r := s.examine()
		s.mapped("30 uploads with retries", r)
		a := advised(t, r, doctor.KeptForRetries, "request_body_buffer_limit")
		require.Equal(t, "65536", a.Value)
		require.Greater(t, a.Bytes, int64(60*mib))
	})
}

// What the map does not explain is set against the gauges: 100 responses that a compressor holds.
func TestDoctorCompressors(t *testing.T) {
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) {
		bare(c)
		c.SetConnectionManager(func(hcm map[string]any) {
			hcm["http_filters"] = append([]any{map[string]any{"name": "envoy.filters.http.compressor", "typed_config": map[string]any{
				"@type": "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor",
				"compressor_library": map[string]any{"name": "gzip", "typed_config": map[string]any{
					"@type": "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip", "memory_level": 9, "window_bits": 15,
				}},
				"response_direction_config": map[string]any{"common_config": map[string]any{"min_content_length": 1, "content_type": []any{"application/octet-stream"}}},
			}}}, hcm["http_filters"].([]any)...)
		})
	}})
	for range 100 {
		s.dial("GET /bytes?n=100000&hold=1 HTTP/1.1\r\nhost: test\r\naccept-encoding: gzip\r\n\r\n")
	}
	_, err := s.Until(t.Context(), "downstream_rq_active", func(m map[string]float64) bool { return m["http.ingress.downstream_rq_active"] == 100 })
	require.NoError(t, err)
	s.settled()
	r := s.examine()
	require.LessOrEqual(t, r.Map.Error, 0.02)
	a := advised(t, r, doctor.UnexplainedLoad, "memory_level")
	require.Greater(t, a.Bytes, int64(10*mib))
	require.Contains(t, r.Findings[0].Text+r.Findings[1].Text, "memory grew with http.ingress.downstream_rq_active: ")
	require.Greater(t, r.Map.In(memorymap.Unexplained), int64(15*mib))
}
