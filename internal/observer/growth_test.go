package observer

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/allocator"
	"github.com/highwater-envoy/highwater/internal/evidence"
	"github.com/highwater-envoy/highwater/internal/leak"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Load is what clients bring: the admin interface's own does not count, and neither do single
// workers. The configuration is another one where a version or a count of changes is.
func TestLoad(t *testing.T) {
	lines := "http.ingress.downstream_rq_completed: 10\nhttp.a: b.downstream_rq_completed: 5\nhttp.admin.downstream_rq_completed: 999\n" +
		"http.ingress.downstream_rq_active: 3\nhttp.admin.downstream_rq_active: 1\n" +
		"listener.0.0.0.0_80.downstream_cx_active: 7\nlistener.0.0.0.0_80.worker_0.downstream_cx_active: 4\nlistener.admin.downstream_cx_active: 1\n"
	one, err := parseLoad([]byte(lines + "cluster_manager.cds.version: 18446744073709551615\n"))
	require.NoError(t, err)
	require.Equal(t, uint64(15), one.Finished)
	require.Equal(t, leak.Load{Connections: 7, Requests: 3}, one.Load)
	other, err := parseLoad([]byte("cluster_manager.cds.version: 2\n" + lines))
	require.NoError(t, err)
	require.NotEqual(t, one.Config, other.Config)
	same, err := parseLoad([]byte("cluster_manager.cds.version: 18446744073709551615\n" + lines))
	require.NoError(t, err)
	require.Equal(t, one.Config, same.Config, "in any order")
	for _, bad := range []string{"x", "x: y\n", "http.a.downstream_rq_active: -1\n"} {
		_, err := parseLoad([]byte(bad))
		require.ErrorIs(t, err, errNotStats, bad)
	}
}

// What tells no size classes is an error, and not classes that are empty.
func TestNotClasses(t *testing.T) {
	for _, name := range []string{"gperftools-burst.txt.gz", "envoy-1.40-burst.memory.json"} {
		_, err := classesOf(allocatorText(t, name))
		require.ErrorContains(t, err, "does not tell its size classes", name)
	}
	_, err := classesOf(allocatorText(t, "envoy-1.40-idle.txt.gz")[:20_000])
	require.Error(t, err, "it breaks off before the spans, of which the 16 KiB of buffers are taken")
	_, err = classesOf([]byte("{}"))
	require.ErrorIs(t, err, allocator.ErrParse)
	classes, err := classesOf(allocatorText(t, "envoy-1.40-burst.txt.gz"))
	require.NoError(t, err)
	require.Contains(t, classes, leak.Class{Size: 16 << 10, Live: 12_884}, "uploads are in Envoy's slices")
}

// allocatorText is one of the texts that package allocator is tested with.
func allocatorText(tb testing.TB, name string) []byte {
	tb.Helper()
	text, err := os.ReadFile("../allocator/testdata/" + name)
	require.NoError(tb, err)
	if !strings.HasSuffix(name, ".gz") {
		return text
	}
	z, err := gzip.NewReader(bytes.NewReader(text))
	require.NoError(tb, err)
	text, err = io.ReadAll(z)
	require.NoError(tb, err)
	return text
}

// Growth of a class is told in the log, in the status and as a metric, and so is its end.
func TestGrowthIsTold(t *testing.T) {
	w, err := New(Options{URL: "http://127.0.0.1:1", Config: Default(), Root: machine()})
	require.NoError(t, err)
	log := &lines{}
	w.log = textLog(log)
	d := leak.New(leak.Default())
	add := func(i int, live float64, process uint64) {
		d.Add(leak.Sample{At: time.Duration(i) * 10 * time.Second, InUse: mib, Finished: uint64(1000 * i), Process: process, Classes: []leak.Class{{Size: 896, Live: int64(live)}}})
		w.mu.Lock()
		w.tell(d)
		w.mu.Unlock()
	}
	for i := range 30 {
		add(i, 1000*float64(i), 1)
	}
	require.Equal(t, 1, log.count("memory grows, and load does not explain it"))
	require.Equal(t, 1, log.count("896-byte objects, about one a request"))
	figure := func(name string) float64 {
		for _, f := range w.Status().Figures() {
			if f.Name == name {
				return f.Value
			}
		}
		t.Fatal(name)
		return 0
	}
	require.InEpsilon(t, 89_600, figure("highwater_unexplained_growth_bytes_per_second"), 0.02)
	require.InDelta(t, 1, figure("highwater_unexplained_growth_total"), 0)
	add(30, 30_000, 2)
	require.Equal(t, 1, log.count("what grows no longer grows"))
	require.Zero(t, figure("highwater_unexplained_growth_bytes_per_second"))
}

// An observer takes evidence of what it sees: here of an event in the cgroup, of an Envoy whose
// admin hangs where most is asked for, and whose process has no memory map to show.
func TestEvidenceOfAnEvent(t *testing.T) {
	e := newEnvoy(t)
	root := &files{m: machine()}
	c := Default()
	c.Evidence.Directory = filepath.Join(t.TempDir(), "evidence")
	c.Evidence.Interval = unit.Duration(time.Second)
	w := newWatch(t, Options{URL: e.URL, Config: c, Root: root, Requests: func(context.Context) ([]evidence.Profile, error) { return nil, nil }})
	w.until("it is watched", func(s Status) bool { return s.Container != nil && s.Fresh })
	time.Sleep(2 * lookForEvidence)
	require.Zero(t, w.Status().Evidence.Taken)
	e.set(func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }) // it hangs, as in an OOM
	root.set("sys/fs/cgroup/envoy/memory.events", "oom 1\noom_kill 1\n")
	s := w.until("a bundle", func(s Status) bool { return s.Evidence.Taken == 1 })
	require.Equal(t, 1, s.Evidence.Bundles)
	text, err := os.ReadFile(filepath.Join(s.Evidence.Dir, "manifest.json"))
	require.NoError(t, err)
	var m evidence.Manifest
	require.NoError(t, json.Unmarshal(text, &m))
	require.Equal(t, evidence.Events, m.Trigger)
	for _, f := range m.Files {
		switch f.Name {
		case "memory.json":
			require.Contains(t, f.Error, "deadline")
		case "smaps.txt":
			require.Contains(t, f.Error, "not exist")
		case "cgroup.json", "observed.json", "tcmalloc.txt", "index.html", "status.txt":
			require.Empty(t, f.Error, f.Name)
		}
	}
	require.Equal(t, 1, w.log.count("evidence is kept"))
}

// A directory that can't be written is one line, and a fault until it can.
func TestEvidenceCanNotBeKept(t *testing.T) {
	c := Default()
	c.Evidence.Directory = filepath.Join(t.TempDir(), "missing", "evidence")
	w := newWatch(t, Options{URL: newEnvoy(t).URL, Config: c})
	s := w.until("it fails", func(s Status) bool { return s.Failures["evidence"] > 0 })
	require.Contains(t, s.Failing["evidence"], "evidence.directory: ")
	require.Equal(t, 1, w.log.count("no evidence is kept"))
}
