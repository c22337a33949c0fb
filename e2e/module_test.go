package e2e

import (
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// A fault of ours, wherever it is, is told and counted, and Envoy lives: in a hook, in a tick on a
// worker's thread and in the goroutine that has ticks come. The request in whose hook it was goes
// on, and so does all that waits.
func TestFaultsOfTheModule(t *testing.T) {
	for _, where := range []string{"hook", "tick", "goroutine"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			s := start(t, setup{face: envoytest.Module, workers: 2, fake: 40 * mib, module: trapModule(t), plugin: patient})
			s.reading(full)
			waits := s.dial(upload("content-length: 16777216", "/upload?delay=0s"))
			s.waiting(1)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url("/small"), nil)
			require.NoError(t, err)
			req.Header.Set("x-test-trap", where)
			c := client(t, false)
			for range 3 {
				res, err := c.Do(req)
				require.NoError(t, err)
				res.Body.Close()
				require.Equal(t, 200, res.StatusCode)
			}
			require.Eventually(t, func() bool { return s.LogMatches("highwater: a fault, and the traffic goes on: a trap.* for a test") }, 10*time.Second, 20*time.Millisecond)
			s.counter("highwater_host_errors_total", 1)
			s.waiting(1)
			s.reading(40 * mib)
			go func() { _, _ = waits.Write(make([]byte, large)) }()
			require.Equal(t, 200, answer(t, waits).StatusCode)
			waits.Close()
			c.CloseIdleConnections()
			s.drained()
		})
	}
}

// Readings of the allocator are those of Envoy's admin interface, and a share of the container's
// limit needs nobody beside.
func TestTheModuleReadsTheAllocator(t *testing.T) {
	s := start(t, setup{face: envoytest.Module, workers: 2, log: "info"})
	require.True(t, s.LogMatches(`readings come from mallinfo\(\) of Envoy's allocator`))
	c := client(t, false)
	for range 20 {
		require.Equal(t, 200, do(t, c, "POST", s.url("/upload?delay=0s"), zeros(mib), mib).StatusCode)
	}
	c.CloseIdleConnections()
	s.drained()
	require.Eventually(t, func() bool {
		m, err := s.Memory(t.Context())
		require.NoError(t, err)
		stats, err := s.Stats(t.Context(), "highwater")
		require.NoError(t, err)
		told := int64(stats["wasmcustom.highwater_in_use_bytes"])
		return told > 0 && told <= m.InUse()+mib && told >= m.InUse()-mib
	}, 10*time.Second, 300*time.Millisecond)
}

// Envoy's own admin interface answers who holds the memory.
func TestTheModuleAnswersOnTheAdminInterface(t *testing.T) {
	s := start(t, setup{face: envoytest.Module, workers: 2})
	get := func(path string) (status int, body string) {
		t.Helper()
		res, err := http.Get(s.AdminURL() + path)
		require.NoError(t, err)
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(text)
	}
	var uploads sync.WaitGroup
	for range 40 { // one alone makes no peak: it holds 64 KiB
		uploads.Go(func() { s.status(client(t, false), "/upload?delay=500ms", 2*mib) })
	}
	uploads.Wait()
	status, body := get("/highwater/status")
	require.Equal(t, 200, status)
	require.Contains(t, body, `"face":"module"`)
	require.Eventually(t, func() bool {
		status, body = get("/highwater/peaks")
		return status == 200 && strings.Contains(body, `"upload"`)
	}, 10*time.Second, 50*time.Millisecond, "%d %s", status, body)
	status, body = get("/highwater/pprof?peak=highest")
	require.Equal(t, 200, status)
	p, err := profile.ParseData([]byte(body))
	require.NoError(t, err)
	require.NotEmpty(t, p.Sample)
	status, body = get("/highwater/pprof")
	require.Equal(t, 400, status)
	require.Contains(t, body, "debug.path")
}

// A configuration that is wrong stops the start, with its reason.
func TestWrongConfigurationOfTheModule(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want string
	}{
		"no limit": {`{}`, `budget\.limit: required`},
		"two":      {`{"budget": {"limit": "200MiB", "sofd": 1}, "mode": 7}`, `budget\.sofd: unknown key`},
		"not JSON": {`budget: {limit: 200MiB}`, `not JSON`},
		"empty":    {``, `it needs at least`},
	} {
		t.Run(name, func(t *testing.T) {
			e, err := envoytest.Start(t.Context(), envoytest.Options{
				Face: envoytest.Module, Concurrency: 1, Edit: func(e envoytest.Config) { e.SetWholePluginConfig(c.text) },
			})
			if err == nil {
				require.NoError(t, e.Stop())
			}
			require.ErrorContains(t, err, "highwater: the configuration is refused", "Envoy must not start")
			require.Regexp(t, c.want, err.Error())
		})
	}
}
