package extproc

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/pprof/profile"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestAdmin(t *testing.T) {
	s, _ := serve(t, 40*mib, func(c *guard.Config) { c.Fairness.By = "header:x-tenant" })
	web := httptest.NewServer(s.Admin(s.Registry(NewGRPC(s, nil)), func() any { return map[string]int{"x": 1} }))
	defer web.Close()
	defer http.DefaultClient.CloseIdleConnections()
	get := func(path string) (int, string) {
		res, err := http.Get(web.URL + path)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(body)
	}
	c := s.dial(t)
	c.say(request(false, "content-length", "5", "x-tenant", "a\xffb\"c"))
	c.heard()
	defer c.close()
	other := s.dial(t)
	other.say(&extprocv3.ProcessingRequest{})
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ready", "/status": `"x": 1`, "/": "/metrics"} {
		code, body := get(path)
		require.Equal(t, 200, code, path)
		require.Contains(t, body, want)
	}
	code, metrics := get("/metrics")
	require.Equal(t, 200, code)
	for _, line := range []string{
		"highwater_admitted_total 1", `highwater_rejected_total{reason="timeout"} 0`, "highwater_limit_bytes 2.097152e+08", `highwater_key_coming_bytes{key="a` + "\uFFFD" + `b\"c"} 5`,
		`highwater_key_coming_bytes{key="(other)"} 0`, `highwater_ext_proc_bad_streams_total{reason="unknown_message"} 1`, "go_goroutines", "grpc_server_started_total 0",
		"highwater_wait_seconds_count 0",
	} {
		require.Contains(t, metrics, line+map[bool]string{true: " ", false: "\n"}[line == "go_goroutines"])
	}
	code, _ = get("/nothing")
	require.Equal(t, 404, code)
	problems, err := promlint.New(strings.NewReader(metrics)).Lint() // as promtool check metrics does
	require.NoError(t, err)
	require.Empty(t, problems)
}

// Which requests hold the memory is told here as the filter tells it below its debug.path.
func TestWhoHoldsTheMemory(t *testing.T) {
	s, readings := serve(t, 40*mib, func(c *guard.Config) {
		c.Fairness.By = "header:x-tenant"
		c.Buffers.WholeRequest = 16 * unit.MiB
	})
	web := httptest.NewServer(s.Admin(s.Registry(NewGRPC(s, nil)), nil))
	defer web.Close()
	defer http.DefaultClient.CloseIdleConnections()
	get := func(path string, status int) []byte {
		res, err := http.Get(web.URL + path)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, status, res.StatusCode, "%s: %s", path, body)
		return body
	}
	require.Contains(t, string(get("/debug/pprof/highwater?peak=highest", 404)), "no peak yet")
	// Unasked it is as of now, before the first peak too, and never of a time that it has had.
	scraped := func() *profile.Profile {
		before := time.Now().UnixNano()
		p, err := profile.ParseData(get("/debug/pprof/highwater", 200))
		require.NoError(t, err)
		require.Equal(t, &profile.ValueType{Type: "space", Unit: "bytes"}, p.PeriodType)
		require.Positive(t, p.Period)
		require.Zero(t, p.DurationNanos)
		require.Greater(t, p.TimeNanos, before)
		require.Contains(t, p.Comments[0], "now: in use 40.0MiB")
		return p
	}
	first := scraped()
	require.Empty(t, first.Sample)
	require.Greater(t, scraped().TimeNanos, first.TimeNanos)
	c := s.dial(t)
	c.say(request(false, "content-length", "8388608", "x-tenant", "noisy"))
	c.heard()
	defer c.close()
	readings.set(46 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 46*mib })
	require.Contains(t, string(get("/current", 200)), `"noisy"`)
	require.JSONEq(t, `{"peaks": []}`, string(get("/peaks", 200)))
	p, err := profile.ParseData(get("/debug/pprof/highwater?peak=current", 200))
	require.NoError(t, err)
	require.Len(t, p.Sample, 1)
	require.Equal(t, []string{"noisy"}, p.Sample[0].Label["key"])
	require.InDelta(t, 6*mib, p.Sample[0].Value[1], float64(mib), "as much as was measured")
}
