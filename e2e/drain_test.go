package e2e

import (
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// waiters are uploads that have no room yet. Their status codes come when they have been answered;
// 0 = they were lost.
func (s *scene) waiters(c *http.Client, n int) <-chan int {
	s.t.Helper()
	codes := make(chan int, n)
	for range n {
		go func() {
			code := 0
			if res, err := c.Post(s.url("/upload?delay=0s"), "text/plain", known(zeros(large))); err == nil {
				code = res.StatusCode
				res.Body.Close()
			}
			codes <- code
		}()
	}
	s.waiting(float64(n))
	return codes
}

func (s *scene) allServed(codes <-chan int) {
	s.t.Helper()
	for range cap(codes) {
		require.Equal(s.t, 200, <-codes)
	}
}

// patient lets requests wait, those of a route that has little too.
func patient(cfg map[string]any) {
	section(cfg, "throttle")["timeout"] = "30s"
	cfg["fairness"] = map[string]any{"by": "none"}
}

// A listener that drains while requests wait loses none of them.
func TestDrain(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP/1", true: "HTTP/2"}[http2], func(t *testing.T) {
			s := start(t, setup{fake: 40 * mib, plugin: patient})
			s.reading(full)
			c := client(t, http2)
			codes := s.waiters(c, 10)
			res, err := http.Post(s.AdminURL()+"/drain_listeners?graceful", "", nil)
			require.NoError(t, err)
			res.Body.Close()
			require.Equal(t, 200, res.StatusCode)
			s.reading(40 * mib)
			s.allServed(codes)
			s.drained(c.CloseIdleConnections)
		})
	}
}

// A new Envoy with another plugin takes over the listeners while requests wait in the old one, a
// response is under way, and small requests come. None of them is lost, and each Envoy has a budget
// of its own: the two share no memory.
func TestHotRestart(t *testing.T) {
	s := start(t, setup{fake: 40 * mib, plugin: patient})
	download := s.dial("GET /bytes?n=30000000 HTTP/1.1\r\nhost: test\r\n\r\n")
	require.Equal(t, 200, answer(t, download).StatusCode)
	s.reading(full)
	c := client(t, false)
	codes := s.waiters(c, 10)
	small := s.steady()
	after, err := envoytest.Start(t.Context(), envoytest.Options{
		After: s.Envoy, Upstream: s.upstream.Addr(), Wasm: another(t), Args: []string{"--parent-shutdown-time-s", "8", "--drain-time-s", "4"},
	})
	require.NoError(t, err)
	defer func() { require.NoError(t, after.Stop()) }()
	require.Eventually(t, func() bool {
		res, err := client(t, false).Get("http://" + after.Addr("ingress") + "/small")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		return res.StatusCode == 200
	}, 20*time.Second, 50*time.Millisecond)
	s.memory.inUse.Store(40 * mib)
	s.allServed(codes)
	_, err = io.Copy(io.Discard, io.LimitReader(download, 30_000_000))
	require.NoError(t, err)
	select {
	case <-s.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the old one does not end")
	}
	require.NotContains(t, s.Logs(), "Caught Segmentation", "it ended by itself")
	require.NoError(t, s.ExitErr())
	small.allServed()
	// Envoy adds the old one's gauges to the new one's until then.
	_, err = after.Until(t.Context(), "highwater", func(m map[string]float64) bool {
		return m["wasmcustom.highwater_admitted_total"] > 0 && m["wasmcustom.highwater_waiting"] == 0 && m["wasmcustom.highwater_streams"] == 0
	})
	require.NoError(t, err)
}
