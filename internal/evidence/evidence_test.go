package evidence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/unit"
)

const mib = 1 << 20

var noon = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

func config(t *testing.T) Config {
	t.Helper()
	c := Default()
	c.Directory = filepath.Join(t.TempDir(), "evidence")
	require.NoError(t, c.Validate())
	return c
}

// envoy answers as admin does, and has a process.
func envoy() Source {
	return Source{
		Admin: func(_ context.Context, path string, to io.Writer) error {
			text := `{"allocated": "1"}`
			if path == "/server_info" {
				text = `{"version": "abc/1.40.0/Clean", "state": "LIVE"}`
			}
			_, err := io.WriteString(to, text)
			return err
		},
		StatsPath: "/stats?format=json",
		Root: fstest.MapFS{
			"proc/7/status": {Data: []byte("VmRSS: 1 kB\n")}, "proc/7/smaps": {Data: []byte("Rss: 1 kB\n")}, "proc/7/net/sockstat": {Data: []byte("TCP: inuse 1\n")},
		},
		PID: 7, Cgroup: map[string]int{"limit": 300 * mib}, Observed: map[string]string{"growth": "none"}, Room: 200 * mib,
		Requests: func(context.Context) ([]Profile, error) {
			return []Profile{{"current", requests("<script>alert(1)</script>", "/upload")}}, nil
		},
	}
}

// requests is a profile of requests of some routes, of which each holds more than the one before.
func requests(routes ...string) []byte {
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "requests", Unit: "count"}, {Type: "held", Unit: "bytes"}}}
	for i, route := range routes {
		f := &profile.Function{ID: uint64(i + 1), Name: route}
		l := &profile.Location{ID: uint64(i + 1), Line: []profile.Line{{Function: f}}}
		p.Function, p.Location = append(p.Function, f), append(p.Location, l)
		p.Sample = append(p.Sample, &profile.Sample{Location: []*profile.Location{l}, Value: []int64{1, int64(i+1) * mib}})
	}
	var b strings.Builder
	if err := p.WriteUncompressed(&b); err != nil {
		panic(err)
	}
	return []byte(b.String())
}

func files(m Manifest) (there, missing map[string]string) {
	there, missing = map[string]string{}, map[string]string{}
	for _, f := range m.Files {
		if f.Error == "" {
			there[f.Name] = ""
		} else {
			missing[f.Name] = f.Error
		}
	}
	return there, missing
}

// A bundle is complete, only this user can read it, its manifest names what is in it, and names of
// routes are text in its page.
func TestBundle(t *testing.T) {
	c := config(t)
	k := NewKeeper(c)
	dir, m, err := k.Take(t.Context(), noon, NearLimit, envoy())
	require.NoError(t, err)
	there, missing := files(m)
	require.Empty(t, missing)
	for _, name := range []string{
		"memory.json", "tcmalloc.txt", "server_info.json", "stats.json", "smaps.txt", "status.txt", "cgroup.json", "sockstat.txt",
		"heap_dump.pb.gz", "peak_heap_dump.pb.gz", "requests-current.pb.gz", "index.html", "observed.json",
	} {
		require.Contains(t, there, name)
	}
	require.Equal(t, "abc/1.40.0/Clean", m.EnvoyVersion)
	text, err := os.ReadFile(filepath.Join(dir, manifestName))
	require.NoError(t, err)
	var read Manifest
	require.NoError(t, json.Unmarshal(text, &read))
	require.Equal(t, m, read)
	for _, f := range m.Files {
		info, err := os.Stat(filepath.Join(dir, f.Name))
		require.NoError(t, err)
		require.Equal(t, f.Bytes, info.Size())
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	}
	page, err := os.ReadFile(filepath.Join(dir, "index.html"))
	require.NoError(t, err)
	require.NotContains(t, string(page), "<script>")
	require.Contains(t, string(page), "&lt;script&gt;")
	require.Less(t, strings.Index(string(page), "/upload"), strings.Index(string(page), "&lt;script"), "who holds most comes first")
	n, bytes := k.Totals()
	require.Equal(t, 1, n)
	require.Positive(t, bytes)
}

// What can't be had is named, and the rest is there: an admin that hangs or breaks off, a process
// that has gone, requests that can't be told, and dumps for which there is no room.
func TestPartialBundle(t *testing.T) {
	s := envoy()
	s.PID = 8
	s.Room, s.Growth = 40*mib, 100*mib
	s.Requests = func(context.Context) ([]Profile, error) { return nil, errors.New("the server is ending") }
	s.Admin = func(ctx context.Context, path string, to io.Writer) error {
		switch path {
		case "/memory/tcmalloc": // more than may be
			for {
				if _, err := to.Write(make([]byte, mib)); err != nil {
					return err
				}
			}
		case "/server_info":
			<-ctx.Done()
			return fmt.Errorf("no answer in time: %w", ctx.Err())
		}
		_, err := io.WriteString(to, "{}")
		return err
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // as its own deadline
	defer cancel()
	dir, m, err := NewKeeper(config(t)).Take(ctx, noon, Events, s)
	require.NoError(t, err)
	there, missing := files(m)
	require.Contains(t, there, "memory.json")
	require.Contains(t, there, "cgroup.json")
	require.Contains(t, there, "index.html")
	require.Contains(t, missing["tcmalloc.txt"], "larger than it may be")
	require.Contains(t, missing["server_info.json"], "no answer in time")
	require.Contains(t, missing["smaps.txt"], "not exist")
	require.Contains(t, missing["requests-current.pb.gz"], "the server is ending")
	require.Contains(t, missing["heap_dump.pb.gz"], "of the 116 MiB that should be left 40 MiB are")
	for name := range missing {
		require.NoFileExists(t, filepath.Join(dir, name))
	}
}

// No more is kept than may be: what high-water marks left goes first, and the newest never.
func TestKeepAndQuota(t *testing.T) {
	c := config(t)
	c.Keep = 3
	k := NewKeeper(c)
	for i, trigger := range []Trigger{NearLimit, HighWater, HighWater, Events, HighWater} {
		_, _, err := k.Take(t.Context(), noon.Add(time.Duration(i)*time.Minute), trigger, envoy())
		require.NoError(t, err)
	}
	require.Equal(t, []string{"20261201T120000.000Z-near-limit", "20261201T120300.000Z-events", "20261201T120400.000Z-high-water"}, names(t, c))

	c.Quota = leastQuota
	k = NewKeeper(c)
	s := envoy()
	s.Admin = func(_ context.Context, path string, to io.Writer) error {
		if path != "/heap_dump" {
			return errors.New("not asked")
		}
		_, err := to.Write(make([]byte, 10*mib))
		return err
	}
	for i := range 3 {
		_, _, err := k.Take(t.Context(), noon.Add(time.Duration(10+i)*time.Minute), NearLimit, s)
		require.NoError(t, err)
		_, bytes := k.Totals()
		require.LessOrEqual(t, bytes, int64(leastQuota))
	}
	require.Equal(t, []string{"20261201T121200.000Z-near-limit"}, names(t, c))
	s.Admin = func(_ context.Context, _ string, to io.Writer) error {
		_, err := to.Write(make([]byte, 7*mib))
		return err
	}
	_, m, err := k.Take(t.Context(), noon.Add(time.Hour), NearLimit, s)
	require.NoError(t, err)
	_, missing := files(m)
	require.Contains(t, missing["stats.json"], "larger than it may be", "one bundle is no larger than the quota either")
}

func names(t *testing.T, c Config) (list []string) {
	t.Helper()
	all, err := os.ReadDir(c.Directory)
	require.NoError(t, err)
	for _, e := range all {
		list = append(list, e.Name())
	}
	return list
}

// What a server left behind that was killed is kept, and said to be cut off.
func TestLeftBehind(t *testing.T) {
	c := config(t)
	begun := filepath.Join(c.Directory, partial+"20261201T110000.000Z-near-limit")
	require.NoError(t, os.MkdirAll(begun, 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(c.Directory, partial+"20261201T100000.000Z-events"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(begun, "memory.json"), []byte("{}"), 0o600))
	k := NewKeeper(c)
	require.NoError(t, k.Tidy())
	require.Equal(t, []string{"20261201T110000.000Z-near-limit"}, names(t, c))
	text, err := os.ReadFile(filepath.Join(c.Directory, "20261201T110000.000Z-near-limit", manifestName))
	require.NoError(t, err)
	var m Manifest
	require.NoError(t, json.Unmarshal(text, &m))
	require.Equal(t, Unknown, m.Trigger)
	require.Len(t, m.Files, 1)
	require.Contains(t, m.Files[0].Error, "may be cut off")
}

// A directory where others may write, or none at all, is one clear error.
func TestBadDirectory(t *testing.T) {
	c := config(t)
	require.NoError(t, os.Mkdir(c.Directory, 0o700))
	require.NoError(t, os.Chmod(c.Directory, 0o777))
	_, _, err := NewKeeper(c).Take(t.Context(), noon, Events, envoy())
	require.ErrorContains(t, err, "evidence.directory: ")
	require.ErrorContains(t, err, "chmod go-w")
	c.Directory = filepath.Join(c.Directory, "a", "b")
	_, _, err = NewKeeper(c).Take(t.Context(), noon, Events, envoy())
	require.ErrorContains(t, err, "no such file or directory")
	require.NoError(t, os.WriteFile(filepath.Join(t.TempDir(), "x"), nil, 0o600))
}

func TestValidate(t *testing.T) {
	c := Config{Directory: "relative", Ahead: -1, Keep: 0, Quota: unit.MiB, Interval: 1}
	err := c.Validate()
	for _, key := range []string{"directory", "ahead", "keep", "quota", "interval"} {
		require.ErrorContains(t, err, "evidence."+key+": ")
	}
}
