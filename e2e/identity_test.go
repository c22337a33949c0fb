package e2e

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

const started = `, face filter: mode `

// The plugin says what it is once in the process, and again where its configuration changes, with
// what that changes for all.
func TestWhatHasStartedIsTold(t *testing.T) {
	p := newControlPlane(t)
	s := start(t, setup{edit: p.edit, log: "info", workers: 2})
	said := func(expression string, n int) (last string) {
		t.Helper()
		require.Eventually(t, func() bool { return len(s.lines(expression)) >= n }, 20*time.Second, 20*time.Millisecond, expression)
		time.Sleep(1500 * time.Millisecond) // for the other workers to say it again
		all := s.lines(expression)
		require.Len(t, all, n, expression)
		return all[n-1]
	}
	require.Regexp(t, `\[info\].* highwater: .*, face filter: mode enforce, limit 200MiB, buffers: downstream 64KiB, upstream 64KiB, http2_window 64KiB, `+
		`http2_connection_window 16MiB, linger 100ms, whole_request 16MiB, fairness by route`, said(started, 1))
	s.gauge("highwater_enforcing", 1)
	p.set(func(cfg map[string]any) {
		section(cfg, "budget")["limit"] = "150MiB"
		section(cfg, "throttle")["timeout"] = "5s"
		cfg["mode"] = "observe"
	})
	require.Contains(t, said(started, 2), "mode observe, limit 150MiB")
	require.Contains(t, said("shared settings have changed", 1), "shared settings have changed: budget.limit 200MiB → 150MiB, throttle.timeout 2s → 5s. All plugins of a vm_id share them")
	p.set(func(cfg map[string]any) {
		section(cfg, "budget")["limit"] = "200MiB"
		delete(section(cfg, "throttle"), "timeout")
		cfg["mode"] = "enforce"
	})
	require.Contains(t, said(started, 3), "mode enforce, limit 200MiB")
	require.Contains(t, said("shared settings have changed", 2), "budget.limit 150MiB → 200MiB, throttle.timeout 5s → 2s")
	require.Empty(t, s.lines("there is no|does not know|has no name"), "nothing is missing")
}

// The server says it with the line that it is ready, and what a changed file changes.
func TestTheServerTellsWhatHasStarted(t *testing.T) {
	var config map[string]any
	s := start(t, setup{face: envoytest.ExtProc, plugin: func(cfg map[string]any) { config = cfg }})
	require.Len(t, s.lines(`msg=ready .*version=.* face=ext_proc configuration="mode enforce, limit 200MiB, buffers: downstream 64KiB`), 1)
	section(config, "budget")["limit"] = "150MiB"
	require.NoError(t, s.Server().Configure(config))
	require.Eventually(t, func() bool { return s.LogMatches(`settings have changed: budget\.limit 200MiB → 150MiB`) }, 10*time.Second, 20*time.Millisecond)
}

// What is missing of the configuration around it, as far as a plugin can see that.
func TestWhatIsMissingIsTold(t *testing.T) {
	once := func(t *testing.T, s *scene, expression string, n int) {
		t.Helper()
		require.Eventually(t, func() bool { return len(s.lines(expression)) >= n }, 20*time.Second, 20*time.Millisecond, "%s", expression)
		time.Sleep(time.Second)
		require.Len(t, s.lines(expression), n, expression)
	}
	requests := func(t *testing.T, s *scene, listener string) {
		t.Helper()
		for range 20 { // on connections of their own, and so on both workers
			status, _, _ := s.ask(http.MethodGet, "http://"+s.Addr(listener)+"/small")
			require.Equal(t, 200, status)
		}
	}
	t.Run("no network filter", func(t *testing.T) {
		t.Parallel()
		s := start(t, setup{edit: func(c envoytest.Config) { c.RemoveNetworkFilter() }})
		requests(t, s, "ingress")
		once(t, s, "there is no network filter with root_id connections", 1)
		require.Empty(t, s.lines("does not know"), "that was told")
	})
	t.Run("two vm_ids", func(t *testing.T) {
		t.Parallel()
		s := start(t, setup{edit: func(c envoytest.Config) { c.SetVMID("connections", "other") }})
		requests(t, s, "ingress")
		once(t, s, `there is no network filter with root_id connections.* of vm_id "highwater": give both filters the same vm_config`, 1)
		once(t, s, `there is no HTTP filter with root_id requests.* of vm_id "other"`, 1)
	})
	t.Run("no network filter on one listener", func(t *testing.T) {
		t.Parallel()
		s := start(t, setup{edit: func(c envoytest.Config) {
			second(t, c, func(c envoytest.Config) { c.RemoveNetworkFilter() })
		}})
		requests(t, s, "ingress")
		require.Empty(t, s.lines("does not know"))
		requests(t, s, "second")
		once(t, s, "a request came to 127.0.0.1:.* on a connection that the network filter does not know", 1)
		require.Empty(t, s.lines("there is no network filter"))
	})
	t.Run("a route without a name", func(t *testing.T) {
		t.Parallel()
		s := start(t, setup{edit: func(c envoytest.Config) {
			c.AddRoute(map[string]any{"match": map[string]any{"prefix": "/nameless"}, "route": map[string]any{"cluster": "upstream"}})
			c.AddRoute(map[string]any{"match": map[string]any{"prefix": "/nowhere"}, "direct_response": map[string]any{"status": 404}})
		}})
		for range 10 {
			c := client(t, false)
			require.Equal(t, 404, do(t, c, "POST", s.url("/nowhere"), zeros(1000), 1000).StatusCode)
			require.Equal(t, 200, do(t, c, "POST", s.url("/upload?delay=0s"), zeros(1000), 1000).StatusCode)
			c.CloseIdleConnections()
		}
		time.Sleep(time.Second)
		require.Empty(t, s.lines("has no name"))
		for range 10 {
			c := client(t, false)
			require.Equal(t, 200, do(t, c, "POST", s.url("/nameless/upload?delay=0s"), zeros(1000), 1000).StatusCode)
			c.CloseIdleConnections()
		}
		once(t, s, "a request came whose route has no name", 1)
	})
}

// The figures of the process are the same whichever worker tells them, and there are counters of
// all workers beside.
func TestStatusIsThatOfTheProcess(t *testing.T) {
	s := start(t, setup{workers: 2, fake: 40 * mib})
	for range 10 {
		status, _, _ := s.ask(http.MethodGet, s.url("/small"))
		require.Equal(t, 200, status)
	}
	conns := []func() error{}
	for range 4 {
		conns = append(conns, s.stalled("/upload", 4*mib).Close)
	}
	s.streams(4)
	s.reading(70 * mib)
	s.counter("highwater_admitted_total", 14)
	s.reading(60 * mib)
	var first map[string]any
	for i := range 12 { // a connection each: both workers
		code, body, _ := s.ask(http.MethodGet, s.debug("status"))
		require.Equal(t, 200, code)
		got := map[string]any{}
		require.NoError(t, json.Unmarshal([]byte(body), &got), body)
		for _, name := range []string{"reading_age_milliseconds", "vm_bytes"} {
			delete(got, name)
		}
		if i == 0 {
			first = got
		}
		require.Equal(t, first, got)
	}
	require.NotEmpty(t, first["version"])
	require.Equal(t, []any{"filter", "enforce", "normal"}, []any{first["face"], first["mode"], first["level"]})
	require.EqualValues(t, 60*mib, first["allocated_bytes"])
	require.EqualValues(t, 70*mib, first["peak_bytes"])
	require.GreaterOrEqual(t, first["likely_held_bytes"], 16.*mib)
	counters := first["counters"].(map[string]any)
	require.EqualValues(t, 14, counters["highwater_admitted_total"], "of both workers")
	require.Contains(t, counters, "highwater_rejected_total.reason.closed")
	for _, hangUp := range conns {
		require.NoError(t, hangUp())
	}
}
