package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/doctor"
	"github.com/highwater-envoy/highwater/internal/evidence"
	"github.com/highwater-envoy/highwater/internal/memorymap"
	"github.com/highwater-envoy/highwater/internal/observer"
	"github.com/highwater-envoy/highwater/internal/profiles"
)

func doctorOf(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(append([]string{"doctor"}, args...), strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

// evidence is a directory with what /memory says and nothing else.
func savedEvidence(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "memory.json"),
		[]byte(`{"allocated":"14729304","heap_size":"230686720","pageheap_unmapped":"23068672","pageheap_free":"177184768","total_thread_cache":"10326000"}`), 0o600))
	return dir
}

func TestDoctorOfADirectory(t *testing.T) {
	dir := savedEvidence(t)
	page := filepath.Join(dir, "page.html")
	code, text, errs := doctorOf(t, "-dir", dir, "-html", page)
	require.Zero(t, code, errs)
	require.Contains(t, text, "free pages that were not given back")
	require.Contains(t, text, "soft_memory_limit_bytes")
	require.Contains(t, text, "smaps.txt")
	html, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Contains(t, string(html), "soft_memory_limit_bytes")

	code, text, errs = doctorOf(t, "-dir", dir, "-json", "-limit", "300MiB")
	require.Zero(t, code, errs)
	var r doctor.Report
	require.NoError(t, json.Unmarshal([]byte(text), &r))
	require.Equal(t, int64(300<<20), r.Limit)
	require.True(t, r.Has(doctor.WaitingPages))
}

func TestDoctorSaysWhatIsWrong(t *testing.T) {
	empty := t.TempDir()
	for want, c := range map[string]struct {
		code int
		args []string
	}{
		"goes with none of -admin":       {2, []string{"-dir", empty, "-pid", "7"}},
		"-binary is of -heap":            {2, []string{"-binary", "envoy"}},
		"takes no arguments but flags":   {2, []string{"bundle"}},
		"-pid: -3 is no process":         {2, []string{"-pid", "-3"}},
		"-watch: -1s must be":            {2, []string{"-watch", "-1s"}},
		"not a size":                     {2, []string{"-limit", "much"}},
		"there is none of memory.json":   {1, []string{"-dir", empty}},
		"no such file":                   {1, []string{"-dir", filepath.Join(empty, "none")}},
		"must be the address of Envoy's": {1, []string{"-admin", "127.0.0.1:9901"}},
		"127.0.0.1:1: memory.json, ":     {1, []string{"-admin", "http://127.0.0.1:1"}},
		"-html:":                         {1, []string{"-dir", savedEvidence(t), "-html", filepath.Join(empty, "none", "x.html")}},
	} {
		code, _, errs := doctorOf(t, c.args...)
		require.Equal(t, c.code, code, want)
		require.Contains(t, errs, want)
	}
	code, out, _ := doctorOf(t, "-h")
	require.Zero(t, code)
	require.Contains(t, out, "-watch 5m")
}

// unpackedText is one of the texts that package allocator is tested with.
func unpackedText(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile("../../internal/allocator/testdata/" + name)
	require.NoError(t, err)
	if strings.HasSuffix(name, ".gz") {
		text, err = profiles.Unpack(text)
		require.NoError(t, err)
	}
	return text
}

// bundleOf takes a bundle as serve does, of an Envoy that answers each path and of this process.
func bundleOf(t *testing.T) string {
	t.Helper()
	answers := map[string][]byte{
		"/memory": unpackedText(t, "envoy-1.40-burst.memory.json"), "/memory/tcmalloc": unpackedText(t, "envoy-1.40-burst.txt.gz"),
		"/server_info": []byte(`{"version":"abc/1.40.0/Clean/RELEASE/BoringSSL","command_line_options":{"concurrency":2},"uptime_current_epoch":"60s"}`),
		"/heap_dump":   smallDump(t), "/peak_heap_dump": smallDump(t),
		memorymap.StatsPath: []byte(`{"stats":[{"name":"http.ingress.downstream_rq_active","value":80},{"name":"listener.x.downstream_cx_active","value":80}]}`),
	}
	c := evidence.Default()
	c.Directory = filepath.Join(t.TempDir(), "evidence")
	dir, m, err := evidence.NewKeeper(c).Take(t.Context(), time.Now(), evidence.NearLimit, evidence.Source{
		Admin: func(_ context.Context, path string, to io.Writer) error {
			text, ok := answers[path]
			if !ok {
				return fmt.Errorf("404 of %s", path)
			}
			_, err := to.Write(text)
			return err
		},
		StatsPath: memorymap.StatsPath, Root: os.DirFS("/"), PID: os.Getpid(), Room: -1,
		Cgroup: &cgroup.Stats{Limit: 512 << 20, High: cgroup.NoLimit, Usage: 400 << 20, WorkingSet: 390 << 20}, Observed: observer.Status{},
		Requests: func(context.Context) ([]evidence.Profile, error) {
			return []evidence.Profile{{Name: "current", Data: smallDump(t)}}, nil
		},
	})
	require.NoError(t, err)
	for _, f := range m.Files {
		require.Empty(t, f.Error, f.Name)
	}
	return dir
}

// A bundle of serve's opens with nothing missing: each text is what doctor reads, and its heap
// dumps have their classes where a binary is at hand.
func TestDoctorOfABundle(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	dir, envoy := bundleOf(t), inDir(t, map[string][]byte{"envoy": small.Bytes()})["envoy"]
	code, text, errs := doctorOf(t, "-dir", dir, "-json", "-heap", "-binary", envoy)
	require.Zero(t, code, errs)
	var r doctor.Report
	require.NoError(t, json.Unmarshal([]byte(text), &r))
	require.Empty(t, r.Missing)
	require.Equal(t, "1.40.0", r.Envoy.Version)
	require.Equal(t, 2, r.Envoy.Workers)
	require.False(t, r.Time.IsZero())
	require.Equal(t, int64(512<<20), r.Limit)
	require.Equal(t, int64(80), r.Gauges.Requests)
	require.Equal(t, int64(12_884), r.Allocator.Live()[16384])
	require.Positive(t, r.Map.Resident)
	require.NotNil(t, r.Map.Sockets)
	require.Len(t, r.Heaps, 2)
	require.Equal(t, "Envoy::Buffer", r.Heaps[0].Classes[0].Name)
	require.True(t, r.Heaps[0].Exact, "by the bundle's tcmalloc.txt")
	require.False(t, r.Heaps[1].Exact)
	require.True(t, r.Heaps[1].Peak)
	require.Equal(t, []string{"highwater pprof " + filepath.Join(dir, "requests-current.pb.gz")}, r.More)

	page := filepath.Join(t.TempDir(), "page.html")
	code, text, errs = doctorOf(t, "-dir", dir, "-html", page)
	require.Zero(t, code, errs)
	require.NotContains(t, text, "Not known")
	require.Contains(t, text, "highwater doctor -dir "+dir+" -heap -binary ENVOY")
	require.FileExists(t, page)

	code, text, errs = doctorOf(t, "-dir", dir, "-heap")
	require.Zero(t, code, errs)
	require.Contains(t, strings.Join(strings.Fields(text), " "), "heap_dump.pb.gz: the binary that the dump names can't be read: name Envoy's process or its binary")
	require.NoError(t, os.Remove(filepath.Join(dir, "heap_dump.pb.gz")))
	code, text, errs = doctorOf(t, "-dir", dir, "-heap", "-binary", envoy)
	require.Zero(t, code, errs)
	require.Contains(t, text, "heap_dump.pb.gz: not in the directory")
	require.Contains(t, text, "Who holds the heap at its peak")
}
