package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/observer"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// observe runs an observer until the end of the test.
func observe(t *testing.T, o observer.Options) (w *observer.Observer, stop func()) {
	t.Helper()
	w, err := observer.New(o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { w.Run(ctx) })
	stop = func() { cancel(); run.Wait() }
	t.Cleanup(stop)
	return w, stop
}

const (
	reduceTimeouts = "overload.envoy.overload_actions.reduce_timeouts."
	noKeepalive    = "overload.envoy.overload_actions.disable_http_keepalive."
	shrinkHeap     = "overload.envoy.overload_actions.shrink_heap."
)

// injected gives Envoy an overload manager with two injected_resource monitors: pressure cuts
// timeouts and keep-alive, pulses give free pages back and do nothing else.
func injected(c envoytest.Config, pressure, pulse string) {
	monitor := func(name, file string) any {
		return map[string]any{
			"name": "highwater." + name,
			"typed_config": map[string]any{
				"@type":    "type.googleapis.com/envoy.extensions.resource_monitors.injected_resource.v3.InjectedResourceConfig",
				"filename": file,
			},
		}
	}
	c["overload_manager"] = map[string]any{
		"refresh_interval":  "0.25s",
		"resource_monitors": []any{monitor("pressure", pressure), monitor("pulse", pulse)},
		"actions": []any{
			map[string]any{
				"name":     "envoy.overload_actions.reduce_timeouts",
				"triggers": []any{map[string]any{"name": "highwater.pressure", "scaled": map[string]any{"scaling_threshold": 0.85, "saturation_threshold": 0.95}}},
				"typed_config": map[string]any{
					"@type": "type.googleapis.com/envoy.config.overload.v3.ScaleTimersOverloadActionConfig",
					"timer_scale_factors": []any{map[string]any{
						"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "0.2s",
					}},
				},
			},
			map[string]any{
				"name":     "envoy.overload_actions.disable_http_keepalive",
				"triggers": []any{map[string]any{"name": "highwater.pressure", "threshold": map[string]any{"value": 0.95}}},
			},
			map[string]any{
				"name":     "envoy.overload_actions.shrink_heap",
				"triggers": []any{map[string]any{"name": "highwater.pulse", "threshold": map[string]any{"value": 1}}},
				"typed_config": map[string]any{
					"@type":          "type.googleapis.com/envoy.config.overload.v3.ShrinkHeapConfig",
					"timer_interval": "1s", "max_unfreed_memory_bytes": 8 * mib,
				},
			},
		},
	}
	delete(c, "memory_allocator_manager") // it would give pages back by itself
}

// overload waits until the overload manager's figures are these.
func (s *scene) overload(want map[string]float64) map[string]float64 {
	s.t.Helper()
	m, err := s.Until(s.t.Context(), "^overload", func(m map[string]float64) bool {
		for name, v := range want {
			if is, ok := m[name]; !ok || is != v {
				return false
			}
		}
		return true
	})
	require.NoError(s.t, err, "%v", m)
	return m
}

// Envoy's own overload actions follow the observer's files: pulses give free pages back, and
// nobody's timeout is cut for it; pressure cuts timeouts, and is gone when the observer ends.
func TestNativeActions(t *testing.T) {
	dir := t.TempDir()
	pressure, pulse := filepath.Join(dir, "pressure"), filepath.Join(dir, "pulse")
	s := start(t, setup{edit: func(c envoytest.Config) { c.RemoveGuard(); injected(c, pressure, pulse) }})
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", s.PID()))
	require.NoError(t, err)
	require.Equal(t, "envoy\n", string(name), "by this an observer finds it")

	idle, err := net.Dial("tcp", s.addr)
	require.NoError(t, err)
	defer idle.Close()

	// Free pages: what uploads leave behind. Nobody gives any back yet.
	ctx, cancel := context.WithTimeout(t.Context(), 2500*time.Millisecond)
	defer cancel()
	flood := &load.Uploads{Addr: s.addr, Count: 40, Size: 4 * mib, Path: "/upload?delay=1s"}
	flood.Run(ctx)
	was, err := s.Memory(t.Context())
	require.NoError(t, err)
	require.Greater(t, was.PageheapFree, int64(16*mib), "else there is nothing to give back: %+v", was)

	var limit atomic.Int64 // 0: there is none, and nothing presses
	config := observer.Default()
	config.Envoy = observer.Envoy{PID: s.PID(), Cgroup: "/sys/fs/cgroup/none"} // not the tests' own
	config.Release.Interval = unit.Duration(time.Second)
	config.Release.PressureFile, config.Release.PulseFile = pressure, pulse
	w, stop := observe(t, observer.Options{Config: config, URL: s.AdminURL(), Limit: limit.Load})
	require.Eventually(t, func() bool { return w.Status().Resident > 0 }, 10*time.Second, 10*time.Millisecond)
	resident := w.Status().Resident

	during := s.overload(map[string]float64{shrinkHeap + "active": 1, "overload.highwater.pulse.pressure": 100})
	require.Zero(t, during[reduceTimeouts+"scale_percent"]+during[reduceTimeouts+"active"]+during[noKeepalive+"active"])
	// Some of it goes at once, but of what was in use in the last minute TCMalloc keeps most: at
	// worst this takes as long.
	var now envoytest.Memory
	var x observer.Status
	for deadline := time.Now().Add(100 * time.Second); now.PageheapUnmapped < was.PageheapUnmapped+4*mib || x.Resident > resident-4*mib || x.Released < 4*mib; {
		require.True(t, time.Now().Before(deadline), "unmapped rises, and what is resident falls: was %+v and %d, is %+v %+v", was, resident, now, x)
		time.Sleep(50 * time.Millisecond)
		now, err = s.Memory(t.Context())
		require.NoError(t, err)
		x = w.Status()
	}
	during = s.overload(map[string]float64{"overload.highwater.pressure.pressure": 0})
	require.Zero(t, during[reduceTimeouts+"scale_percent"]+during[reduceTimeouts+"active"]+during[noKeepalive+"active"])
	require.NoError(t, idle.SetReadDeadline(time.Now().Add(time.Millisecond)))
	_, err = idle.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, "the idle connection is still there")
	t.Logf("free pages %d MiB, after a pulse %d; resident %d MiB, after it %d", was.PageheapFree/mib, now.PageheapFree/mib, resident/mib, x.Resident/mib)

	// Pressure: memory in use is all of the limit.
	limit.Store(w.Status().Reading.InUse)
	s.overload(map[string]float64{reduceTimeouts + "active": 1, reduceTimeouts + "scale_percent": 100, noKeepalive + "active": 1})
	require.NoError(t, idle.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err = idle.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "its timeout is cut")

	// An observer that ends takes the pressure with it.
	stop()
	s.overload(map[string]float64{
		reduceTimeouts + "active": 0, noKeepalive + "active": 0, shrinkHeap + "active": 0,
		"overload.highwater.pressure.pressure": 0, "overload.highwater.pulse.pressure": 0,
	})
	for _, file := range []string{pressure, pulse} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.InDelta(t, 0, number(t, string(text)), 0)
	}
}

func number(t *testing.T, text string) float64 {
	t.Helper()
	v, err := strconv.ParseFloat(text, 64)
	require.NoError(t, err)
	return v
}

// With admin.allow_paths the observer needs /memory alone. What else it would like to see is
// missing, and said so.
func TestObserverWithAllowPaths(t *testing.T) {
	for name, c := range map[string]struct {
		paths    []any
		buffered bool
	}{
		"memory alone":     {[]any{map[string]any{"exact": "/memory"}}, false},
		"memory and stats": {[]any{map[string]any{"exact": "/memory"}, map[string]any{"prefix": "/stats"}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			// What the test itself needs of admin.
			paths := append([]any{map[string]any{"prefix": "/server_info"}, map[string]any{"prefix": "/listeners"}, map[string]any{"prefix": "/ready"}}, c.paths...)
			s := start(t, setup{edit: func(e envoytest.Config) {
				e.RemoveGuard()
				e["admin"].(map[string]any)["allow_paths"] = paths
			}})
			config := observer.Default()
			config.Envoy.PID = s.PID()
			w, _ := observe(t, observer.Options{Config: config, URL: s.AdminURL()})
			var x observer.Status
			require.Eventually(t, func() bool {
				x = w.Status()
				return x.Fresh && (x.Failing["buffers"] == "") == c.buffered && (c.buffered || x.Failures["buffers"] > 0)
			}, 10*time.Second, 10*time.Millisecond, "%+v", x)
			require.Positive(t, x.Reading.InUse)
			require.GreaterOrEqual(t, x.Reading.InUse, x.Reading.Allocated)
			require.Positive(t, x.Resident)
			require.Zero(t, x.Failures["memory"])
			if !c.buffered {
				require.Contains(t, x.Failing["buffers"], "403")
				require.Contains(t, x.Failing["buffers"], "admin.allow_paths")
			}
		})
	}
}
