package e2e

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

func TestZZ(t *testing.T) {
	lazy, err := load.NewUpstream()
	require.NoError(t, err)
	defer lazy.Close()
	eager := readsAtOnce(t)
	ups := func(n, waves int, delay string) func(addr string) []load.Load {
		return func(addr string) (all []load.Load) {
			for range waves {
				all = append(all, &load.Uploads{Addr: addr, Path: "/upload?delay=" + delay, Count: n, Size: 4 * mib, Once: true, Drain: 10 * time.Second})
			}
			return all
		}
	}
	example := func(limit string) func(mode string) setup {
		return func(mode string) setup {
			return setup{upstream: lazy.Addr(), plugin: func(cfg map[string]any) {
				cfg["mode"] = mode
				section(cfg, "budget")["limit"] = limit
				delete(section(cfg, "buffers"), "whole_request")
			}}
		}
	}
	for _, c := range []struct {
		name  string
		s     func(mode string) setup
		loads func(addr string) []load.Load
		every time.Duration
	}{
		{"ex64-100-lazy2s-400x3", example("100MiB"), ups(400, 3, "2s"), 3 * time.Second},
		{"ex64-100-200ms-200x6", example("100MiB"), ups(200, 6, "200ms"), 500 * time.Millisecond},
		{"ext-stock-200x3", func(mode string) setup { s := stock(mode, "200MiB", eager); s.face = envoytest.ExtProc; return s }, ups(100, 3, "0s"), 3 * time.Second},
		{"stock-readers-200", func(mode string) setup { return stock(mode, "200MiB", lazy.Addr()) }, func(addr string) []load.Load {
			return []load.Load{&load.SlowReaders{Addr: addr, Count: 150, Size: 16 << 20, Length: true, Retry: time.Hour, Leave: true}}
		}, 0},
		{"stock-lazy-200x3", func(mode string) setup { return stock(mode, "200MiB", lazy.Addr()) }, ups(100, 3, "2s"), 4 * time.Second},
	} {
		for _, mode := range []string{"enforce", "observe"} {
			t.Run(c.name+"/"+mode, func(t *testing.T) {
				s := start(t, c.s(mode))
				time.Sleep(500 * time.Millisecond)
				sum := waves(t, c.every, 6*time.Second, c.loads(s.addr)...)
				n, by := s.reasons()
				m, _ := s.Stats(t.Context(), "highwater")
				fmt.Printf("RESULT %-22s %-8s sum=%v %v throttled=%v admitted=%v peak=%.0f | served=%d closed=%d rejected=%d\n", c.name, mode, n, by,
					m["wasmcustom.highwater_throttled_total"], m["wasmcustom.highwater_admitted_total"], m["wasmcustom.highwater_peak_bytes"]/mib, sum.Served, sum.Closed, sum.Rejected)
			})
		}
	}
}

func waves(t *testing.T, every, last time.Duration, loads ...load.Load) (sum load.Snapshot) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), every*time.Duration(len(loads)-1)+last)
	defer cancel()
	var running sync.WaitGroup
	for i, l := range loads {
		if i > 0 {
			require.True(t, load.Sleep(ctx, every))
		}
		running.Go(func() { l.Run(ctx) })
	}
	running.Wait()
	for _, l := range loads {
		s := l.Snapshot()
		sum.Served += s.Served
		sum.Rejected += s.Rejected
		sum.Closed += s.Closed
	}
	return sum
}
