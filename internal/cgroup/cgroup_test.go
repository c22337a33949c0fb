package cgroup

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/require"
)

func TestMachines(t *testing.T) {
	for _, dir := range folders(t, "machines") {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join(dir, "want.json"))
			require.NoError(t, err)
			var want struct {
				PID     int
				At      string // by directory, not by process
				Version Version
				Dir     string
				Stats   Stats
			}
			require.NoError(t, json.Unmarshal(text, &want))
			g, err := Find(os.DirFS(dir), want.PID)
			if want.At != "" {
				g, err = At(os.DirFS(dir), want.At)
			}
			require.NoError(t, err)
			require.Equal(t, want.Dir, g.Dir())
			require.Equal(t, want.Version, g.Version())
			got, err := g.Read()
			require.NoError(t, err)
			if want.Stats.Pressure != nil {
				require.InDelta(t, want.Stats.Pressure.Some10, got.Pressure.Some10, 1e-9)
				require.InDelta(t, want.Stats.Pressure.Full10, got.Pressure.Full10, 1e-9)
				want.Stats.Pressure, got.Pressure = nil, nil
			}
			require.Equal(t, want.Stats, got)
		})
	}
}

func TestMalformed(t *testing.T) {
	for _, dir := range folders(t, "malformed") {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			want, err := os.ReadFile(filepath.Join(dir, "error"))
			require.NoError(t, err)
			var s Stats
			g, err := Find(os.DirFS(dir), 4242)
			if err == nil {
				s, err = g.Read()
			}
			require.EqualError(t, err, strings.TrimSpace(string(want)))
			require.Zero(t, s, "then nothing is known")
			require.True(t, errors.Is(err, ErrParse) || errors.Is(err, ErrNone) || errors.Is(err, fs.ErrNotExist), "a caller can branch")
		})
	}
}

func folders(t *testing.T, kind string) []string {
	t.Helper()
	list, err := filepath.Glob(filepath.Join("testdata", kind, "*"))
	require.NoError(t, err)
	require.NotEmpty(t, list)
	return list
}

// machine is one of version 2 whose files the test may change.
func machine() fstest.MapFS {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	return fstest.MapFS{
		"proc/7/cgroup":                          file("0::/envoy\n"),
		"proc/self/mountinfo":                    file("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
		"sys/fs/cgroup/envoy/memory.current":     file("1000\n"),
		"sys/fs/cgroup/envoy/memory.max":         file("5000\n"),
		"sys/fs/cgroup/envoy/memory.stat":        file("inactive_file 300\nsock 20\n"),
		"sys/fs/cgroup/envoy/memory.events":      file("oom 0\n"),
		"sys/fs/cgroup/envoy/cgroup.controllers": file("memory\n"),
	}
}

// A limit that is changed while the process runs is in the next Read; a group that is removed is
// gone.
func TestNothingIsKept(t *testing.T) {
	m := machine()
	g, err := Find(m, 7)
	require.NoError(t, err)
	s, err := g.Read()
	require.NoError(t, err)
	require.EqualValues(t, 5000, s.Limit)
	require.EqualValues(t, NoLimit, s.High, "a kernel without memory.high has none")
	require.EqualValues(t, 700, s.WorkingSet)
	require.Nil(t, s.Pressure)

	m["sys/fs/cgroup/envoy/memory.max"].Data = []byte("max\n")
	s, err = g.Read()
	require.NoError(t, err)
	require.EqualValues(t, NoLimit, s.Limit)

	m["sys/fs/cgroup/memory.max"] = &fstest.MapFile{Data: []byte("3000\n")}
	s, err = g.Read()
	require.NoError(t, err)
	require.EqualValues(t, 3000, s.Limit)

	m["sys/fs/cgroup/envoy/memory.stat"].Data = []byte("inactive_file 3000\n")
	s, err = g.Read()
	require.NoError(t, err)
	require.Zero(t, s.WorkingSet, "two files are not read in one instant")

	for name := range m {
		if strings.HasPrefix(name, "sys/fs/cgroup/envoy/") {
			delete(m, name)
		}
	}
	_, err = g.Read()
	require.ErrorIs(t, err, ErrGone)
	require.EqualError(t, err, "the memory cgroup is gone: /sys/fs/cgroup/envoy")
}

func TestAtNoGroup(t *testing.T) {
	for _, dir := range []string{"/", "", "/sys/fs/cgroup", "/sys/fs/cgroup/none", "/../..", "sys/fs/cgroup/./"} {
		_, err := At(machine(), dir)
		require.ErrorIs(t, err, ErrNone, dir)
	}
	g, err := At(machine(), "/sys/fs/cgroup/envoy/")
	require.NoError(t, err)
	require.Equal(t, "/sys/fs/cgroup/envoy", g.Dir())
}

// What a mount shows of a hierarchy, and whether a group is in that.
func TestWithin(t *testing.T) {
	for _, c := range []struct{ at, root, below string }{
		{"/a/b", "/", "/a/b"},
		{"/", "/", "/"},
		{"/a/b", "/a", "/b"},
		{"/a/b", "/a/b", "/"},
		{"/../x/b", "/../x", "/b"}, // both outside of the reader's namespace
		{"/../x", "/../x", "/"},
		{"/ab", "/a", ""},
		{"/a", "/a/b", ""},
		{"/../x", "/", ""},
		{"/..", "/", ""},
		{"/a/../../etc", "/", ""},
		{"/a/b/../../../etc", "/a", ""},
	} {
		below, ok := within(c.at, c.root)
		require.Equal(t, c.below != "", ok, "%+v: %q", c, below)
		if ok {
			require.Equal(t, c.below, below, "%+v", c)
		}
	}
}

// The cgroup of this very machine, if it has one: what is found is read, or the error says why
// there is nothing.
func TestThisMachine(t *testing.T) {
	g, err := Find(os.DirFS("/"), 0)
	if err != nil {
		require.True(t, errors.Is(err, ErrNone) || errors.Is(err, fs.ErrNotExist), "%v", err)
		return
	}
	s, err := g.Read()
	require.NoError(t, err)
	require.Positive(t, s.Usage)
	require.Positive(t, s.Limit)
	require.LessOrEqual(t, s.WorkingSet, s.Usage)
	byPID, err := Find(os.DirFS("/"), os.Getpid())
	require.NoError(t, err)
	require.Equal(t, g.Dir(), byPID.Dir())
	at, err := At(os.DirFS("/"), g.Dir())
	require.NoError(t, err)
	require.Equal(t, g.Version(), at.Version())
}

func FuzzFind(f *testing.F) {
	for _, kind := range []string{"machines", "malformed"} {
		dirs, err := filepath.Glob(filepath.Join("testdata", kind, "*"))
		require.NoError(f, err)
		for _, dir := range dirs {
			member, err := os.ReadFile(filepath.Join(dir, "proc/4242/cgroup"))
			mounts, err2 := os.ReadFile(filepath.Join(dir, "proc/self/mountinfo"))
			if err == nil && err2 == nil {
				f.Add(string(member), string(mounts))
			}
		}
	}
	f.Fuzz(func(t *testing.T, member, mounts string) {
		m := machine()
		m["proc/7/cgroup"].Data, m["proc/self/mountinfo"].Data = []byte(member), []byte(mounts)
		g, err := Find(m, 7)
		switch {
		case err == nil && (!strings.HasPrefix(g.Dir(), "/") || !fs.ValidPath(g.dir) || !fs.ValidPath(g.top) || g.dir != g.top && g.top != "." && !strings.HasPrefix(g.dir, g.top+"/")):
			t.Fatalf("%q and %q: a group at %q below %q", member, mounts, g.dir, g.top)
		case err != nil && !errors.Is(err, ErrNone) && !errors.Is(err, ErrParse):
			t.Fatalf("%q and %q: %v", member, mounts, err)
		case err == nil:
			_, _ = g.Read()
		}
	})
}

func FuzzRead(f *testing.F) {
	f.Add("314572800\n", "anon 5\ninactive_file 7\nsock 8\n", "some avg10=1.00 avg60=0 avg300=0 total=0\n", false)
	f.Add("max\n", "total_inactive_file 7\nhierarchical_memory_limit 9223372036854771712\n", "", true)
	f.Add("-1", "a  1\n", "full avg10=1e300\n", false)
	f.Fuzz(func(t *testing.T, limit, stat, pressure string, v1 bool) {
		file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
		m := fstest.MapFS{
			"g/memory.current": file("1000\n"), "g/memory.max": file(limit), "g/memory.stat": file(stat), "g/memory.pressure": file(pressure), "g/memory.events": file("oom 0\n"),
		}
		if v1 {
			m = fstest.MapFS{
				"g/memory.usage_in_bytes": file("1000\n"), "g/memory.limit_in_bytes": file(limit), "g/memory.stat": file(stat), "g/memory.oom_control": file("oom_kill 0\n"), "g/memory.failcnt": file("0\n"),
			}
		}
		g, err := At(m, "/g")
		require.NoError(t, err)
		s, err := g.Read()
		if err != nil {
			if !errors.Is(err, ErrParse) || s != (Stats{}) {
				t.Fatalf("%+v, %v", s, err)
			}
			return
		}
		if s.Limit < 0 || s.High < 0 || s.WorkingSet < 0 || s.WorkingSet > s.Usage || s.Sock < 0 ||
			s.Pressure != nil && (!(s.Pressure.Some10 >= 0 && s.Pressure.Some10 <= 1) || !(s.Pressure.Full10 >= 0 && s.Pressure.Full10 <= 1)) {
			t.Fatalf("%q %q %q: %+v %+v", limit, stat, pressure, s, s.Pressure)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	g, err := Find(os.DirFS(filepath.Join("testdata", "machines", "v2-kubernetes")), 4242)
	require.NoError(b, err)
	for b.Loop() {
		if _, err := g.Read(); err != nil {
			b.Fatal(err)
		}
	}
}
