package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/peak"
)

// debug is the URL of an answer on the listener that gives them.
func (s *scene) debug(question string) string {
	return "http://" + s.Addr("debug") + "/highwater/" + question
}

// ask returns an answer of the debug listener, over a connection of its own, so that any worker may take it.
func (s *scene) ask(method, url string) (int, string, http.Header) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, url, nil)
	require.NoError(s.t, err)
	req.Close = true
	res, err := client(s.t, false).Do(req)
	require.NoError(s.t, err)
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	require.NoError(s.t, err)
	return res.StatusCode, string(body), res.Header
}

func (s *scene) current() (v peak.View) {
	s.t.Helper()
	status, body, _ := s.ask(http.MethodGet, s.debug("current"))
	require.Equal(s.t, 200, status, body)
	require.NoError(s.t, json.Unmarshal([]byte(body), &v), body)
	return v
}

func (s *scene) peaks() []peak.View {
	s.t.Helper()
	status, body, _ := s.ask(http.MethodGet, s.debug("peaks"))
	require.Equal(s.t, 200, status, body)
	var v struct{ Peaks []peak.View }
	require.NoError(s.t, json.Unmarshal([]byte(body), &v), body)
	return v.Peaks
}

// stalled sends n bytes of an upload that announces one more, on a connection of its own, and leaves it there: behind the buffer
// filter Envoy holds all of it.
func (s *scene) stalled(path string, n int, headers ...string) net.Conn {
	s.t.Helper()
	more := strings.Join(append(headers, fmt.Sprintf("content-length: %d", n+1)), "\r\n")
	c := s.dial(upload(more, path))
	_, err := io.Copy(c, zeros(int64(n)))
	require.NoError(s.t, err)
	return c
}

// holds adds a route that is behind the buffer filter.
func holds(c envoytest.Config, name string) {
	c.AddRoute(map[string]any{
		"name": name, "match": map[string]any{"prefix": "/" + name}, "route": map[string]any{"cluster": "upstream", "timeout": "0s"},
		"typed_per_filter_config": map[string]any{"envoy.filters.http.buffer": map[string]any{
			"@type":  "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.BufferPerRoute",
			"buffer": map[string]any{"max_request_bytes": 16 * mib},
		}},
	})
}

// cum finds what pprof's table says of a name, its callees included, in bytes.
func cum(t *testing.T, table, name string) float64 {
	t.Helper()
	m := regexp.MustCompile(`(?m)^\s*\S+\s+\S+\s+\S+\s+(-?[0-9.]+)B\s+\S+\s+` + regexp.QuoteMeta(name) + `$`).FindStringSubmatch(table)
	require.NotNil(t, m, "%s is not in\n%s", name, table)
	n, err := strconv.ParseFloat(m[1], 64)
	require.NoError(t, err)
	return n
}

func pprof(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"tool", "pprof", "-top", "-cum", "-unit=B"}, args...)...)
	cmd.Env = append(cmd.Environ(), "PPROF_TMPDIR="+t.TempDir())
	out, err := cmd.Output()
	require.NoError(t, err, "%s", out)
	return string(out)
}

// Three routes hold known bytes on two workers: go tool pprof finds them on the URL, for the peak and for now, within a tenth.
func TestPprofNamesWhoHoldsMemory(t *testing.T) {
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) {
		for _, name := range []string{"alpha", "beta", "gamma", "last"} {
			holds(c, name)
		}
	}})
	known := map[string]int{"alpha": 24 * mib, "beta": 12 * mib, "gamma": 8 * mib}
	var conns []net.Conn
	for range 8 {
		for name, n := range known {
			conns = append(conns, s.stalled("/"+name, n/8))
		}
	}
	s.streams(24)
	check := func(table string) {
		t.Helper()
		for name, n := range known {
			require.InEpsilon(t, n, cum(t, table, "route "+name), .1, "%s in\n%s", name, table)
		}
	}
	require.Eventually(t, func() bool { return s.current().Held >= 43*mib }, 10*time.Second, 50*time.Millisecond)
	table := pprof(t, s.debug("pprof?peak=current"))
	t.Log(table)
	check(table)

	// Somebody else makes a new high-water mark: at that the three hold what they held.
	conns = append(conns, s.stalled("/last", 15*mib))
	require.Eventually(t, func() bool {
		peaks := s.peaks()
		return len(peaks) > 0 && peaks[len(peaks)-1].Held >= 52*mib
	}, 10*time.Second, 50*time.Millisecond)
	table = pprof(t, s.debug("pprof"))
	t.Log(table)
	check(table)
	require.Contains(t, table, "likely held by requests")

	// What a flame graph shows of them, from the outside in.
	status, body, header := s.ask(http.MethodGet, s.debug("pprof"))
	require.Equal(t, 200, status)
	require.Equal(t, "application/octet-stream", header.Get("content-type"))
	prof, err := profile.ParseData([]byte(body))
	require.NoError(t, err)
	stacks := map[string]bool{}
	methods := map[string]bool{}
	for _, sample := range prof.Sample {
		var names []string
		for _, l := range sample.Location {
			names = append([]string{l.Line[0].Function.Name}, names...)
		}
		stacks[strings.Join(names, " → ")] = true
		require.Equal(t, []string{"HTTP/1.1"}, sample.Label[peak.LabelProtocol])
		require.Equal(t, []string{"127.0.0.1"}, sample.Label[peak.LabelSource])
		for _, m := range sample.Label[peak.LabelMethod] {
			methods[m] = true
		}
	}
	require.True(t, stacks["virtual host all → route alpha → cluster upstream → uploading"], "%v", stacks)
	t.Log("methods: ", methods)

	for _, p := range s.peaks() {
		require.Equal(t, p.InUse, p.Base+p.Held+p.Unexplained, "the figures beside each other add up: %+v", p)
		require.Len(t, p.Workers, 2)
		require.LessOrEqual(t, p.SkewMS, int64(500))
	}
	for _, c := range conns {
		c.Close()
	}
	s.drained()
	s.quiet()
}
