package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// stock is Envoy as it comes: buffers of 1 MiB, a linger of 1 s.
func stock(mode, limit, upstream string) setup {
	return setup{
		workers: 2, upstream: upstream,
		plugin: func(cfg map[string]any) {
			cfg["mode"] = mode
			section(cfg, "budget")["limit"] = limit
			b := section(cfg, "buffers")
			b["downstream"], b["upstream"], b["linger"] = "1MiB", "1MiB", "1s"
		},
		edit: func(c envoytest.Config) { c.SetBuffers(mib, mib); c.SetLinger(time.Second) },
	}
}

func TestObserveCountsExperiment(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/bytes") {
			w.Header().Set("content-length", "16777216")
			_, _ = io.Copy(w, zeros(16<<20))
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		time.Sleep(2 * time.Second)
	}))
	defer up.Close()
	lazy, err := load.NewUpstream()
	require.NoError(t, err)
	defer lazy.Close()
	type loadCase struct {
		name, limit, upstream string
		loads                 func(addr string) [][]load.Load
	}
	ups := func(n, waves int) func(addr string) [][]load.Load {
		return func(addr string) (all [][]load.Load) {
			for range waves {
				all = append(all, []load.Load{&load.Uploads{Addr: addr, Path: "/upload?delay=2s", Count: n, Size: 4 * mib, Once: true, Drain: 10 * time.Second}})
			}
			return all
		}
	}
	for _, c := range []loadCase{
		{"stock-200", "200MiB", up.Listener.Addr().String(), ups(100, 1)},
		{"stock-100", "100MiB", up.Listener.Addr().String(), ups(100, 1)},
		{"stock-200x3", "200MiB", up.Listener.Addr().String(), ups(100, 3)},
		{"stock-100x3", "100MiB", up.Listener.Addr().String(), ups(100, 3)},
		{"lazy-200", "200MiB", lazy.Addr(), ups(100, 1)},
		{"lazy-100", "100MiB", lazy.Addr(), ups(100, 1)},
		{"readers-200", "200MiB", lazy.Addr(), func(addr string) [][]load.Load {
			return [][]load.Load{{&load.SlowReaders{Addr: addr, Count: 150, Size: 16 << 20, Length: true, Retry: time.Hour, Leave: true}}}
		}},
	} {
		for _, mode := range []string{"enforce", "observe"} {
			t.Run(c.name+"/"+mode, func(t *testing.T) {
				s := start(t, stock(mode, c.limit, c.upstream))
				time.Sleep(500 * time.Millisecond)
				var running sync.WaitGroup
				all := c.loads(s.addr)
				ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second+time.Duration(len(all)-1)*3*time.Second)
				defer cancel()
				for i, wave := range all {
					if i > 0 {
						time.Sleep(3 * time.Second)
					}
					for _, l := range wave {
						running.Go(func() { l.Run(ctx) })
					}
				}
				running.Wait()
				time.Sleep(700 * time.Millisecond)
				m, err := s.Stats(t.Context(), "highwater")
				require.NoError(t, err)
				sum, text := 0.0, ""
				for k, v := range m {
					if strings.Contains(k, "rejected_total.reason") && v > 0 {
						sum += v
						text += fmt.Sprintf(" %s=%v", k[strings.LastIndex(k, ".")+1:], v)
					}
				}
				served, closed, rejected := int64(0), int64(0), int64(0)
				for _, w := range all {
					for _, l := range w {
						x := l.Snapshot()
						served += x.Served
						closed += x.Closed + x.Cut
						rejected += x.Rejected
					}
				}
				fmt.Printf("RESULT %-12s %-8s sum=%v%s throttled=%v closed_cx=%v peak=%.0f | client served=%d closed=%d rejected=%d\n", c.name, mode, sum, text,
					m["wasmcustom.highwater_throttled_total"], m["wasmcustom.highwater_closed_connections_total"], m["wasmcustom.highwater_peak_bytes"]/mib, served, closed, rejected)
			})
		}
	}
}
