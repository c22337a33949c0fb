package e2e

import (
	"context"
	"io"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// second adds a copy of the listener under another name, edited, in the same virtual machines.
func second(t *testing.T, c envoytest.Config, edit func(c envoytest.Config)) {
	t.Helper()
	text, err := yaml.Marshal(c.Listeners()[0])
	require.NoError(t, err)
	listener := map[string]any{}
	require.NoError(t, yaml.Unmarshal(text, &listener))
	listener["name"] = "second"
	edit(envoytest.Config{"static_resources": map[string]any{"listeners": []any{listener}}})
	resources := c["static_resources"].(map[string]any)
	resources["listeners"] = append(resources["listeners"].([]any), listener)
}

// Each stream is counted with the buffers of its own listener, in one budget.
func TestTwoListeners(t *testing.T) {
	s := start(t, setup{fake: 40 * mib, edit: func(c envoytest.Config) {
		second(t, c, func(c envoytest.Config) {
			c.SetBuffers(mib, mib)
			c.SetPluginConfig(func(cfg map[string]any) { section(cfg, "buffers")["downstream"] = "1MiB" })
		})
	}})
	download := func(listener string) io.Closer {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.Addr(listener)+"/bytes?n=1000&length=0&hold=1", nil)
		require.NoError(t, err)
		c := client(t, false)
		c.Timeout = 0
		res, err := c.Do(req)
		require.NoError(t, err)
		return res.Body
	}
	first := download("ingress")
	s.gauge("highwater_exposure_bytes", 128<<10)
	other := download("second")
	s.gauge("highwater_exposure_bytes", 128<<10+64<<10+mib)
	first.Close()
	s.gauge("highwater_exposure_bytes", 64<<10+mib)
	other.Close()

	// Who waits on one is resumed for the other's sake too: there is one line per worker and one
	// budget.
	s.reading(full)
	c := client(t, false)
	codes := make(chan int, 2)
	for _, listener := range []string{"ingress", "second"} {
		go func() {
			code := 0
			if res, err := c.Post("http://"+s.Addr(listener)+"/upload?delay=0s", "text/plain", known(zeros(large))); err == nil {
				code = res.StatusCode
				res.Body.Close()
			}
			codes <- code
		}()
	}
	s.waiting(2)
	s.reading(40 * mib)
	require.Equal(t, []int{200, 200}, []int{<-codes, <-codes})
	s.drained(c.CloseIdleConnections)
}

// Two listeners that contradict each other: the plugin that starts last sets the budget, for all,
// and says so.
func TestContradictingBudgets(t *testing.T) {
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) {
		second(t, c, func(c envoytest.Config) {
			c.SetPluginConfig(func(cfg map[string]any) { section(cfg, "budget")["limit"] = "100MiB" })
		})
	}})
	s.gauge("highwater_limit_bytes", 100*mib)
	require.Eventually(t, func() bool {
		return s.LogMatches(`shared settings have changed: budget\.limit 200MiB → 100MiB\. All plugins of a vm_id share them`)
	}, 20*time.Second, 50*time.Millisecond)
	for _, listener := range []string{"ingress", "second"} {
		res := do(t, client(t, false), "GET", "http://"+s.Addr(listener)+"/small", nil, 0)
		require.Equal(t, 200, res.StatusCode)
	}
	s.gauge("highwater_limit_bytes", 100*mib)
	s.quiet()
}

// One HTTP/2 connection with thousands of streams: what may wait is bounded by its window, the
// small ones are served, and nothing is left.
func TestThousandsOfStreamsOnOneConnection(t *testing.T) {
	const gets, uploads = 2700, 300
	s := start(t, setup{
		fake:   40 * mib,
		plugin: func(cfg map[string]any) { section(cfg, "throttle")["timeout"] = "30s" },
		edit:   func(c envoytest.Config) { c.SetHTTP2(64<<10, 16*mib, 4000) },
	})
	s.reading(full)
	c := client(t, true)
	c.Timeout = time.Minute
	require.Equal(t, 200, do(t, c, "GET", s.url("/small"), nil, 0).StatusCode) // else the first ones dial one each

	var all sync.WaitGroup
	var mu sync.Mutex
	codes := map[string]map[int]int{"GET": {}, "POST": {}}
	request := func(method, path string, body io.Reader) {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, method, s.url(path), body)
			if err != nil {
				return
			}
			if body != nil {
				req.ContentLength = large
			}
			code := 0
			if res, err := c.Do(req); err == nil {
				code = res.StatusCode
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			codes[method][code]++
		})
	}
	for range gets {
		request(http.MethodGet, "/bytes?n=1000&delay=2s", nil)
	}
	for range uploads {
		request(http.MethodPost, "/upload?delay=0s", zeros(large))
	}
	s.waiting(100)
	s.reading(40 * mib)
	all.Wait()
	require.Equal(t, map[int]int{200: gets}, codes["GET"])
	require.Equal(t, uploads, codes["POST"][200]+codes["POST"][503]+codes["POST"][0], "%v", codes)
	require.GreaterOrEqual(t, codes["POST"][200], 100, "those that waited: %v", codes)
	stats, err := s.Stats(t.Context(), "downstream_cx_http2_total")
	require.NoError(t, err)
	require.Equal(t, 1, int(stats["http.ingress.downstream_cx_http2_total"]), "%v", stats)
	s.drained(c.CloseIdleConnections)
}
