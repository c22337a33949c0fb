// Package e2e tests the plugin in a real Envoy, on the shipped example.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

const (
	mib = 1 << 20
	// full is a reading of 200 MiB at which an upload of large has to wait and may: hard is at 184
	// MiB and the limit at
	// 200. A reading that jumps is a surprise too, by which both may come down to 166 and 180.
	full  = 172 * mib
	large = 16 * mib
)

// TestMain skips everything where there is no Envoy, unless HIGHWATER_E2E says that there has to be
// one.
func TestMain(m *testing.M) {
	_, err := envoybin.Find(context.Background())
	if root, rootErr := envoybin.ModuleRoot(); err == nil && rootErr == nil {
		for _, file := range []string{"highwater.wasm", "highwater-trap.wasm", "libhighwater.so", "libhighwater-trap.so"} {
			if _, statErr := os.Stat(filepath.Join(root, "build", file)); statErr != nil {
				err = statErr
			}
		}
	}
	if err != nil && os.Getenv("HIGHWATER_E2E") == "" {
		fmt.Printf("no end-to-end tests: %v; `make test` fetches and builds what they need\n", err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// scene is an Envoy with an upstream, and an allocator whose reading the test may set.
type scene struct {
	*envoytest.Envoy
	t        *testing.T
	upstream *load.Upstream
	memory   *memoryPage
	addr     string
}

// memoryPage stands for Envoy's own /memory where a test wants another reading, or none.
type memoryPage struct {
	inUse  atomic.Int64 // bytes; 0 = as mode says
	answer atomic.Value // func(http.ResponseWriter)
}

func (m *memoryPage) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if answer, ok := m.answer.Load().(func(http.ResponseWriter, *http.Request)); ok && answer != nil {
		answer(w, r)
		return
	}
	n := m.inUse.Load()
	fmt.Fprintf(w, `{"allocated":"%d","heap_size":"%d","pageheap_unmapped":"0","pageheap_free":"0","total_thread_cache":"0","total_physical_bytes":"0"}`, n, n)
}

type setup struct {
	face     envoytest.Face
	workers  int
	fake     int64 // if not 0 readings are the test's, and begin with this many bytes
	plugin   func(cfg map[string]any)
	edit     func(c envoytest.Config)
	wasm     string
	module   string
	upstream string
	cgroup   string // in which Envoy runs, if not empty
	args     []string
	env      []string
	log      string // Envoy's level, if not warning
}

func start(t *testing.T, s setup) *scene {
	t.Helper()
	upstream, err := load.NewUpstream()
	require.NoError(t, err)
	t.Cleanup(func() { upstream.Close() })
	sc := &scene{t: t, upstream: upstream, memory: &memoryPage{}}
	if s.upstream == "" {
		s.upstream = upstream.Addr()
	}
	var fake *httptest.Server
	if s.fake != 0 {
		sc.memory.inUse.Store(s.fake)
		fake = httptest.NewServer(sc.memory)
		t.Cleanup(fake.Close)
	}
	sc.Envoy, err = envoytest.Start(t.Context(), envoytest.Options{
		Face: s.face, Concurrency: s.workers, Upstream: s.upstream, Wasm: s.wasm, Module: s.module, CgroupDir: s.cgroup, LogLevel: s.log, Args: s.args, Env: s.env,
		Edit: func(c envoytest.Config) {
			switch {
			case fake == nil:
			case s.face == envoytest.ExtProc:
				c.SetPluginConfig(func(cfg map[string]any) { section(cfg, "memory")["url"] = fake.URL })
			case s.face == envoytest.Module: // it asks nobody unless it is told whom
				c.AddCluster("memory", fake.Listener.Addr().String())
				c.SetPluginConfig(func(cfg map[string]any) { section(cfg, "memory")["cluster"] = "memory" })
			default:
				c.SetEndpoint("envoy_admin", fake.Listener.Addr().String())
			}
			if s.plugin != nil {
				c.SetPluginConfig(s.plugin)
			}
			if s.edit != nil {
				s.edit(c)
			}
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", sc.Logs())
		}
		require.NoError(t, sc.Stop())
	})
	sc.addr = sc.Addr("ingress")
	if s.fake != 0 {
		sc.reading(s.fake)
	}
	return sc
}

// reading sets the reading and waits until the guard has it, and nothing is fresh any more.
func (s *scene) reading(n int64) {
	s.t.Helper()
	s.memory.inUse.Store(n)
	_, err := s.Until(s.t.Context(), "highwater", func(m map[string]float64) bool {
		return m["wasmcustom.highwater_in_use_bytes"] == float64(n) && m["wasmcustom.highwater_fresh_bytes"] == 0
	})
	require.NoError(s.t, err)
}

// counter waits until the counter has reached n.
func (s *scene) counter(name string, n float64) {
	s.t.Helper()
	_, err := s.Until(s.t.Context(), "highwater", func(m map[string]float64) bool { return m["wasmcustom."+name] >= n })
	require.NoError(s.t, err, name)
}

// turnedAway waits until so many were rejected, for whatever reason.
func (s *scene) turnedAway(n float64) {
	s.t.Helper()
	var sum float64
	_, err := s.Until(s.t.Context(), "highwater_rejected_total", func(m map[string]float64) bool {
		sum = 0
		for _, v := range m {
			sum += v
		}
		return sum >= n
	})
	require.NoError(s.t, err, "%v were turned away, not %v", sum, n)
}

// gauge waits until the gauge is n.
func (s *scene) gauge(name string, n float64) {
	s.t.Helper()
	m, err := s.Until(s.t.Context(), "highwater", func(m map[string]float64) bool { return m["wasmcustom."+name] == n })
	require.NoError(s.t, err, "%s is %v, not %v", name, m["wasmcustom."+name], n)
}

// drained waits until nothing is held of any request or connection. What the clients do to close
// theirs is done again and again: a connection whose streams were just cancelled is not idle at
// once.
func (s *scene) drained(closing ...func()) {
	s.t.Helper()
	_, err := s.Until(s.t.Context(), "highwater", func(m map[string]float64) bool {
		for _, f := range closing {
			f()
		}
		for _, name := range []string{"fresh_bytes", "coming_bytes", "waiting", "streams", "connections", "exposure_bytes"} {
			if v, ok := m["wasmcustom.highwater_"+name]; !ok || v != 0 {
				return false
			}
		}
		return true
	})
	require.NoError(s.t, err)
}

// quiet asserts that there was no verdict but plain admits, and no call of the host failed.
func (s *scene) quiet() {
	s.t.Helper()
	stats, err := s.Stats(s.t.Context(), "highwater")
	require.NoError(s.t, err)
	for name, v := range stats {
		if strings.Contains(name, "rejected") || strings.Contains(name, "throttled") || strings.Contains(name, "closed_connections") || strings.Contains(name, "host_errors") {
			require.Zero(s.t, v, name)
		}
	}
}

// client speaks HTTP/1 or, without TLS, HTTP/2.
func client(t *testing.T, http2 bool) *http.Client {
	t.Helper()
	tr := &http.Transport{Protocols: &http.Protocols{}}
	tr.Protocols.SetHTTP1(!http2)
	tr.Protocols.SetUnencryptedHTTP2(http2)
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Second}
}

func (s *scene) url(path string) string { return "http://" + s.addr + path }

// dial opens a raw connection and writes to it.
func (s *scene) dial(text string) net.Conn {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { c.Close() })
	_, err = io.WriteString(c, text)
	require.NoError(s.t, err)
	return c
}

func upload(length string, path ...string) string {
	return "POST " + strings.Join(append(path, "/upload")[:1], "") + " HTTP/1.1\r\nhost: test\r\n" + length + "\r\n\r\n"
}

// refused uploads what has no room and returns the answer.
func (s *scene) refused(c *http.Client, http2 bool) *http.Response {
	s.t.Helper()
	if http2 {
		return do(s.t, c, "POST", s.url("/upload"), zeros(large), large)
	}
	// By hand: a client that goes on writing may see its connection reset before it sees the
	// answer.
	conn := s.dial(upload("content-length: 16777216") + strings.Repeat("x", 50_000))
	defer conn.Close()
	return answer(s.t, conn)
}

func answer(t *testing.T, c net.Conn) *http.Response {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
	res, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: http.MethodPost})
	require.NoError(t, err)
	return res
}

// zeros is a body of n bytes whose length the client does not know unless told.
func zeros(n int64) io.Reader { return io.LimitReader(zeroReader{}, n) }

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func forWorkers(t *testing.T, test func(t *testing.T, workers int)) {
	t.Helper()
	for _, workers := range []int{1, 2} {
		t.Run(fmt.Sprintf("%d workers", workers), func(t *testing.T) {
			t.Parallel()
			test(t, workers)
		})
	}
}

// base is on which face, and how many workers, a test runs.
type base struct {
	face    envoytest.Face
	workers int
}

// forFaces runs a test where all faces do the same: the plugin, with one worker and with two, the
// ext_proc server and the dynamic module.
func forFaces(t *testing.T, test func(t *testing.T, b base)) {
	t.Helper()
	for _, workers := range []int{1, 2} {
		side(t, fmt.Sprintf("%d workers", workers), base{envoytest.Filter, workers}, test)
	}
	side(t, "ext_proc", base{envoytest.ExtProc, 2}, test)
	side(t, "module", base{envoytest.Module, 2}, test)
}

// forFilters is forFaces without the ext_proc server, which sees no connections.
func forFilters(t *testing.T, test func(t *testing.T, b base)) {
	t.Helper()
	for _, workers := range []int{1, 2} {
		side(t, fmt.Sprintf("%d workers", workers), base{envoytest.Filter, workers}, test)
	}
	side(t, "module", base{envoytest.Module, 2}, test)
}

// forPlugins is forFilters with so many workers alone.
func forPlugins(t *testing.T, workers int, test func(t *testing.T, b base)) {
	t.Helper()
	side(t, "filter", base{envoytest.Filter, workers}, test)
	side(t, "module", base{envoytest.Module, workers}, test)
}

// side runs a test on one of its sides, beside those on the others: most of the time each waits.
func side(t *testing.T, name string, b base, test func(t *testing.T, b base)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Parallel()
		test(t, b)
	})
}

// start is start on this face.
func (b base) start(t *testing.T, s setup) *scene {
	t.Helper()
	s.face, s.workers = b.face, b.workers
	return start(t, s)
}

// forEachFace is forFaces with two workers alone.
func forEachFace(t *testing.T, test func(t *testing.T, b base)) {
	t.Helper()
	side(t, "filter", base{envoytest.Filter, 2}, test)
	side(t, "ext_proc", base{envoytest.ExtProc, 2}, test)
	side(t, "module", base{envoytest.Module, 2}, test)
}

// trapModule is the module that faults where a request asks for it.
func trapModule(t *testing.T) string {
	t.Helper()
	root, err := envoytestRoot()
	require.NoError(t, err)
	return filepath.Join(root, "build", "libhighwater-trap.so")
}

func section(cfg map[string]any, name string) map[string]any {
	m, ok := cfg[name].(map[string]any)
	if !ok {
		m = map[string]any{}
		cfg[name] = m
	}
	return m
}

// known makes the client announce the length of zeros(large): the standard library knows the length
// of these readers.
func known(r io.Reader) io.Reader {
	body, err := io.ReadAll(r)
	if err != nil {
		panic(err)
	}
	return bytes.NewReader(body)
}
