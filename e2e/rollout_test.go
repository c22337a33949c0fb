package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
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

// traps says whether the plugin is another.
func (s *scene) traps() bool {
	s.t.Helper()
	c := client(s.t, false)
	defer c.CloseIdleConnections()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url("/small"), http.NoBody)
	require.NoError(s.t, err)
	req.Header.Set("x-test-trap", "1")
	res, err := c.Do(req)
	if err == nil {
		res.Body.Close()
	}
	return err != nil || res.StatusCode != 200
}

// updated waits until the listener has been updated so many times, and the old ones are gone.
func (s *scene) updated(n float64) {
	s.t.Helper()
	m, err := s.Until(s.t.Context(), "listener_manager|filter_chains", func(m map[string]float64) bool {
		return m["listener_manager.lds.update_success"] >= n && m["listener_manager.total_listeners_warming"] == 0 &&
			m["listener_manager.total_listeners_draining"] == 0 && m["listener_manager.total_filter_chains_draining"] == 0
	})
	require.NoError(s.t, err, "%v", m)
}

// quickDrain has listeners that are replaced drain within seconds, not ten minutes.
func quickDrain() []string { return []string{"--drain-time-s", "3"} }

// A listener gets another .wasm by xDS while requests wait, uploads are under way and small
// requests come: all are served.
func TestUpgradeByXDS(t *testing.T) {
	t.Parallel()
	p := newControlPlane(t)
	s := start(t, setup{edit: p.edit, fake: 40 * mib, plugin: patient, args: quickDrain()})
	require.False(t, s.traps())
	s.reading(full)
	codes := s.waiters(client(t, false), 3)
	small := s.steady()
	p.change(func(c envoytest.Config) { c.SetCode(map[string]any{"local": map[string]any{"filename": another(t)}}) })
	s.updated(2)
	s.memory.inUse.Store(40 * mib)
	s.allServed(codes)
	uploads := s.loaded(&load.Uploads{Addr: s.addr, Count: 5, Size: mib, Path: "/upload?delay=50ms", Drain: 20 * time.Second})
	uploads.allServed()
	small.allServed()
	s.gauge("highwater_limit_bytes", 200*mib)
	require.True(t, s.traps(), "the other one answers now")
}

// codeServer serves .wasm files, each at its SHA-256.
func codeServer(t *testing.T, files ...string) (addr string, sums []string) {
	t.Helper()
	code := map[string][]byte{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		sum := sha256.Sum256(data)
		sums = append(sums, hex.EncodeToString(sum[:]))
		code["/"+sums[len(sums)-1]+".wasm"] = data
	}
	served := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, ok := code[strings.TrimPrefix(r.URL.Path, "/wrong")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(data)
	}))
	t.Cleanup(served.Close)
	return served.Listener.Addr().String(), sums
}

// remote is vm_config.code of a file that is fetched.
func remote(path, sum string) map[string]any {
	return map[string]any{"remote": map[string]any{
		"http_uri":     map[string]any{"uri": "http://code" + path, "cluster": "code", "timeout": "20s"},
		"sha256":       sum,
		"retry_policy": map[string]any{"num_retries": 0},
	}}
}

// careful has every plugin refuse an update whose code Envoy does not have yet.
func careful(code map[string]any) func(c envoytest.Config) {
	return func(c envoytest.Config) {
		c.SetCode(code)
		c.SetVM("nack_on_code_cache_miss", true)
	}
}

// The same by code.remote. With nack_on_code_cache_miss Envoy refuses the update and fetches the
// file, and takes the update when it comes again. A file that cannot be had, or has another
// SHA-256, is refused each time, and the traffic goes on with the old one.
func TestUpgradeByRemoteCode(t *testing.T) {
	t.Parallel()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	addr, sums := codeServer(t, filepath.Join(root, "build", "highwater.wasm"), another(t))
	path := func(sum string) string { return "/" + sum + ".wasm" }
	p := newControlPlane(t)
	s := start(t, setup{args: quickDrain(), edit: func(c envoytest.Config) {
		c.AddCluster("code", addr)
		c.SetCode(remote(path(sums[0]), sums[0]))
		p.edit(c)
	}})
	require.False(t, s.traps())
	small := s.steady()
	updates := func() float64 {
		m, err := s.Stats(t.Context(), "listener_manager.lds.update_success")
		require.NoError(t, err)
		return m["listener_manager.lds.update_success"]
	}
	before := updates()
	for tries := 0; updates() == before; tries++ {
		require.Less(t, tries, 20, "it is never taken: %v", p.refused.Load())
		p.change(careful(remote(path(sums[1]), sums[1])))
		time.Sleep(time.Second)
	}
	t.Logf("refused at first: %v", p.refused.Load())
	s.updated(before + 1)
	small.allServed()

	for what, code := range map[string]map[string]any{
		"another SHA-256": remote(path(sums[0]), strings.Repeat("0", 64)),
		"not there":       remote("/nothing.wasm", strings.Repeat("1", 64)),
	} {
		small, before = s.steady(), updates()
		for range 3 {
			p.refused.Store("")
			p.change(careful(code))
			require.Eventually(t, func() bool { return p.refused.Load() != "" }, 10*time.Second, 10*time.Millisecond, what)
			time.Sleep(300 * time.Millisecond)
		}
		require.InDelta(t, before, updates(), 0, what)
		small.allServed()
	}
	require.True(t, s.traps(), "it is the other one that goes on")
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
