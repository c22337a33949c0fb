package e2e

import (
	"bufio"
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

// ask returns an answer of the debug listener, over a connection of its own, so that any worker may
// take it.
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

// stalled sends n bytes of an upload that announces one more, on a connection of its own, and
// leaves it there: behind the buffer filter Envoy holds all of it.
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

// Three routes hold known bytes on two workers: go tool pprof finds them on the URL, for the peak
// and for now, within a tenth.
func TestPprofNamesWhoHoldsMemory(t *testing.T) {
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) {
		for _, name := range []string{"alpha", "beta", "gamma", "last"} {
			holds(c, name)
		}
	}})
	known := map[string]int{"alpha": 24 * mib, "beta": 12 * mib, "gamma": 8 * mib}
	var conns []net.Conn
	for name, n := range known {
		for range n / (4 * mib) { // 16 samples are taken of each: they are in for certain
			conns = append(conns, s.stalled("/"+name, 4*mib))
		}
	}
	s.streams(11)
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
	table = pprof(t, s.debug("pprof?peak=latest"))
	t.Log(table)
	check(table)
	require.Contains(t, table, "likely held by requests")

	// What a flame graph shows of them, from the outside in.
	status, body, header := s.ask(http.MethodGet, s.debug("pprof?peak=highest"))
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
		require.NotEmpty(t, p.Workers)
		require.LessOrEqual(t, p.SkewMS, int64(500))
	}
	for _, c := range conns {
		c.Close()
	}
	s.drained()
	s.quiet()
}

// Who scrapes profiles each few seconds finds one from the beginning, of a kind that he can keep,
// and never of a time that he has had.
func TestPprofIsScraped(t *testing.T) {
	s := start(t, setup{workers: 2, fake: 40 * mib, edit: func(c envoytest.Config) { holds(c, "alpha") }})
	last := time.Now().UnixNano()
	scraped := func(question string) *profile.Profile {
		t.Helper()
		status, body, _ := s.ask(http.MethodGet, s.debug(question))
		require.Equal(t, 200, status, body)
		p, err := profile.ParseData([]byte(body))
		require.NoError(t, err)
		require.NoError(t, p.CheckValid())
		require.Equal(t, &profile.ValueType{Type: "space", Unit: "bytes"}, p.PeriodType)
		require.Positive(t, p.Period)
		require.Zero(t, p.DurationNanos)
		return p
	}
	next := func() *profile.Profile {
		t.Helper()
		p := scraped("pprof")
		require.Greater(t, p.TimeNanos, last)
		require.Less(t, p.TimeNanos, time.Now().UnixNano())
		last = p.TimeNanos
		return p
	}
	for range 4 { // each of a connection of its own: any worker answers
		p := next()
		require.Empty(t, p.Sample)
		require.Contains(t, p.Comments[0], "now: in use 40.0MiB of 200.0MiB")
	}
	require.Empty(t, s.peaks())
	c := s.stalled("/alpha", 4*mib)
	s.streams(1)
	require.Eventually(t, func() bool { return len(next().Sample) == 1 }, 10*time.Second, 50*time.Millisecond)
	s.memory.inUse.Store(60 * mib)
	require.Eventually(t, func() bool { return len(s.peaks()) == 1 }, 10*time.Second, 50*time.Millisecond)
	peak := scraped("pprof?peak=highest")
	require.Contains(t, peak.Comments[0], "peak 1, the highest: in use 60.0MiB")
	require.Equal(t, peak.TimeNanos, scraped("pprof?peak=latest").TimeNanos, "a peak keeps its time")
	require.Contains(t, next().Comments[0], "now: ")
	// What has ended is not told as of now, by whichever worker.
	c.Close()
	s.drained()
	for range 4 {
		require.Empty(t, next().Sample)
	}
	s.quiet()
}

// Only the listener whose own plugin has a debug.path answers, whatever its worker; and it answers
// what there is, to GET alone.
func TestOnlyTheDebugListenerAnswers(t *testing.T) {
	s := start(t, setup{workers: 2, fake: 40 * mib, plugin: func(cfg map[string]any) { section(cfg, "fairness")["by"] = "header:x-tenant" }})
	for _, question := range []string{"status", "peaks", "current", "pprof", "pprof?peak=current", ""} {
		for range 4 { // a connection each: both workers
			before := s.upstream.Total()
			status, body, _ := s.ask(http.MethodGet, s.url("/highwater/"+question))
			require.Equal(t, 404, status, "what the upstream says")
			require.Equal(t, "404 page not found\n", body)
			require.Equal(t, before, s.upstream.Total(), "it does not count what it does not know")
		}
	}
	for range 6 {
		status, body, header := s.ask(http.MethodGet, s.debug("status"))
		require.Equal(t, 200, status)
		require.Equal(t, "application/json", header.Get("content-type"))
		require.Equal(t, "nosniff", header.Get("x-content-type-options"))
		figures := map[string]any{}
		require.NoError(t, json.Unmarshal([]byte(body), &figures))
		require.Equal(t, "normal", figures["level"])
		require.EqualValues(t, 40*mib, figures["in_use_bytes"])
		require.EqualValues(t, 200*mib, figures["limit_bytes"])
	}
	for _, question := range []string{"", "peak", "statuses", "status/x", "pprof?peak=7", "pprof?peak=x", "pprof?peak=highest", "pprof?peak=latest"} {
		status, body, _ := s.ask(http.MethodGet, s.debug(question))
		require.Equal(t, 404, status, question)
		require.NotEmpty(t, body)
	}
	status, _, _ := s.ask(http.MethodGet, "http://"+s.Addr("debug")+"/highwaters/status")
	require.Equal(t, 404, status, "of the listener's own route")
	for _, method := range []string{http.MethodPost, http.MethodHead, http.MethodDelete} {
		for _, question := range []string{"status", "current"} {
			status, _, header := s.ask(method, s.debug(question))
			require.Equal(t, 405, status)
			require.Equal(t, "GET", header.Get("allow"))
		}
	}

	// A tenant with a hostile name, a long one and one that nobody asked for.
	s.reading(60 * mib)
	for _, tenant := range []string{"<script>alert(1)</script>", "\x80\xff" + strings.Repeat("x", 8000)} {
		s.stalled("/upload", 8*mib, "x-tenant: "+tenant, "authorization: secret")
	}
	s.streams(2)
	require.Eventually(t, func() bool { return s.current().Likely >= 16*mib }, 10*time.Second, 50*time.Millisecond)
	s.memory.inUse.Store(90 * mib)
	require.Eventually(t, func() bool { peaks := s.peaks(); return peaks[len(peaks)-1].Likely >= 16*mib }, 10*time.Second, 50*time.Millisecond)
	for _, question := range []string{"current", "pprof?peak=current", "peaks"} {
		status, body, _ := s.ask(http.MethodGet, s.debug(question))
		require.Equal(t, 200, status)
		require.NotContains(t, body, "secret")
		require.Less(t, len(body), 32<<10)
		if question == "pprof?peak=current" {
			prof, err := profile.ParseData([]byte(body))
			require.NoError(t, err)
			keys := ""
			for _, sample := range prof.Sample {
				keys += fmt.Sprint(sample.Label[peak.LabelKey])
			}
			require.Contains(t, keys, "<script>alert(1)</script>", "pprof's own page escapes it")
			require.Contains(t, keys, `\x80\xffxxx`)
			continue
		}
		require.NotContains(t, body, "<")
		require.Contains(t, body, `\u003cscript\u003e`)
	}
	s.quiet()
}

// Two floods are two peaks, the highest is what is told unasked, and the difference shows who is
// new. Under the second one the workers answer from the middle of it.
func TestTwoFloodsAreTwoPeaks(t *testing.T) {
	s := start(t, setup{workers: 2, fake: 40 * mib, edit: func(c envoytest.Config) {
		holds(c, "morning")
		holds(c, "evening")
	}})
	flood := func(inUse int64, paths ...string) {
		var conns []net.Conn
		for _, path := range paths {
			conns = append(conns, s.stalled(path, 10*mib))
		}
		s.streams(float64(len(paths)))
		require.Eventually(t, func() bool { return s.current().Likely >= int64(len(paths))*10*mib }, 10*time.Second, 50*time.Millisecond)
		n := len(s.peaks())
		s.memory.inUse.Store(inUse) // not settled: to that there is nothing fresh
		require.Eventually(t, func() bool {
			peaks := s.peaks()
			return len(peaks) == n+1 && peaks[n].InUse == inUse && peaks[n].Allocated == inUse && peaks[n].Likely >= int64(len(paths))*10*mib
		}, 10*time.Second, 50*time.Millisecond, "%+v", s.peaks())
		for _, c := range conns {
			c.Close()
		}
		s.drained()
		s.reading(40 * mib)
	}
	// Both workers have had a connection.
	for range 20 {
		s.ask(http.MethodGet, s.url("/small"))
	}
	flood(60*mib, "/morning", "/morning")
	flood(90*mib, "/morning", "/morning", "/evening", "/evening", "/evening")
	peaks := s.peaks()
	require.Len(t, peaks, 2)
	require.True(t, peaks[1].Highest)
	require.Equal(t, "morning", peaks[0].Stacks[0].Route)
	require.Equal(t, "evening", peaks[1].Stacks[0].Route)
	require.InEpsilon(t, 30*mib, peaks[1].Stacks[0].Held, .01)

	// As `highwater pprof` tells it.
	root, err := envoytestRoot()
	require.NoError(t, err)
	command := func(args ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), root+"/build/highwater", append([]string{"pprof"}, args...)...)
	}
	out, err := command("-base", s.debug("pprof?peak=1"), "http://"+s.Addr("debug")+"/highwater").CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Logf("%s", out)
	require.Regexp(t, `(?m)^ *30\.0MiB .*  3  .*evening$`, string(out))
	require.Regexp(t, `(?m)^ *0B .*  0  .*morning$`, string(out))
	out, err = command("-peak", "3", s.debug("pprof")).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "there are 1, 2, latest, highest and current")

	// And on pprof's own page.
	page := command("-http", "127.0.0.1:", "-no_browser", "-peak", "2", s.debug("pprof"))
	stderr, err := page.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, page.Start())
	defer func() {
		require.NoError(t, page.Process.Kill())
		_ = page.Wait() // it was killed
	}()
	url := ""
	for lines := bufio.NewScanner(stderr); url == "" && lines.Scan(); {
		_, url, _ = strings.Cut(lines.Text(), "Serving web UI on ")
	}
	require.Eventually(t, func() bool { // pprof says so before it listens
		c, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err == nil {
			err = c.Close()
		}
		return err == nil
	}, 5*time.Second, 10*time.Millisecond)
	status, body, _ := s.ask(http.MethodGet, url+"/ui/flamegraph")
	require.Equal(t, 200, status)
	require.Contains(t, body, "route evening")
	require.Contains(t, body, "virtual host all")
}

// The same with memory that is really held, and what the allocator keeps of it: only the difference
// tells who came later.
func TestTwoRealFloodsAreTwoPeaks(t *testing.T) {
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) {
		holds(c, "morning")
		holds(c, "evening")
	}})
	for n, paths := range [][]string{
		{"/morning", "/morning", "/morning"},
		{"/morning", "/morning", "/evening", "/evening", "/evening", "/evening"},
	} {
		var conns []net.Conn
		for _, path := range paths {
			conns = append(conns, s.stalled(path, 10*mib))
		}
		held := int64(len(paths)) * 10 * mib
		// Nobody may go before the reading has all of it: the last mark would find half of them.
		_, err := s.Until(t.Context(), "highwater", func(m map[string]float64) bool {
			return m["wasmcustom.highwater_fresh_bytes"] == 0 && m["wasmcustom.highwater_streams"] == float64(len(paths)) &&
				m["wasmcustom.highwater_in_use_bytes"]-m["wasmcustom.highwater_base_bytes"] > float64(held)*9/10
		})
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			peaks := s.peaks()
			return len(peaks) == n+1 && peaks[n].Held > held*9/10 && peaks[n].Held < held*11/10
		}, 20*time.Second, 50*time.Millisecond, "%+v", s.peaks())
		for _, c := range conns {
			c.Close()
		}
		s.drained()
	}
	difference := pprof(t, "-base", s.debug("pprof?peak=1"), s.debug("pprof?peak=2"))
	t.Log(difference)
	for name, bytes := range map[string]float64{"route evening": 40 * mib, "route morning": -10 * mib} {
		found := regexp.MustCompile(`(-?\d+)B +-?[\d.]+% +` + name).FindStringSubmatch(difference)
		require.NotNil(t, found, name)
		got, err := strconv.ParseFloat(found[1], 64)
		require.NoError(t, err)
		require.InDelta(t, bytes, got, 4*mib, name)
	}
}
