//go:build oom

package e2e

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/highwater-envoy/highwater/internal/doctor"
	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/evidence"
	"github.com/highwater-envoy/highwater/internal/load"
)

// Before the kernel kills an Envoy for a flood, there is evidence of it: complete, readable, and
// with the flood's route on top. The server only observes.
func TestOOMEvidence(t *testing.T) {
	group, err := envoytest.NewCgroup(300 * mib)
	require.NoError(t, err)
	t.Cleanup(group.Remove)
	dir := filepath.Join(t.TempDir(), "evidence")
	s := start(t, setup{
		face: envoytest.ExtProc, workers: 2, cgroup: group.Dir(),
		plugin: func(cfg map[string]any) {
			cfg["mode"] = "observe"
			cfg["envoy"] = map[string]any{"cgroup": group.Dir()}
			cfg["evidence"] = map[string]any{"directory": dir}
		},
	})
	ctx := t.Context()
	flood := untilEnvoyEnds(t, s)
	var loads sync.WaitGroup
	// Uploads of 4 MiB that their upstream does not read yet: eight more each quarter of a second.
	began := time.Now()
	small := &load.Small{Addr: s.addr, Rate: 100, Path: "/small"}
	loads.Go(func() { small.Run(flood) })
	for wave := 0; wave < 120 && !ended(s); wave++ {
		loads.Go(func() {
			u := &load.Uploads{Addr: s.addr, Count: 8, Size: 4 * mib, Path: "/upload?delay=60s"}
			u.Run(flood)
		})
		select {
		case <-s.Done():
		case <-time.After(250 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	select {
	case <-s.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("the kernel did not kill it: this shows nothing")
	}
	died := time.Now()
	loads.Wait()
	_, killed, err := group.Peak()
	require.NoError(t, err)
	require.True(t, killed)
	t.Logf("killed after %v", died.Sub(began).Round(time.Millisecond))

	var whole []string
	for _, b := range bundles(t, dir) {
		t.Logf("%s: %s, %d files, complete %v %v", b.name, b.Trigger, len(b.Files), b.complete(), b.missing())
		if b.complete() && b.written.Before(died) {
			whole = append(whole, b.name)
			b.read(t)
			b.examine(t)
			require.NotEmpty(t, b.BuildID)
			require.Contains(t, b.EnvoyVersion, "/1.")
		}
	}
	require.NotEmpty(t, whole, "none was complete before the kill")
}

// untilEnvoyEnds is a context that ends with Envoy.
func untilEnvoyEnds(t *testing.T, s *scene) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		select {
		case <-s.Done():
		case <-ctx.Done():
		}
	}()
	return ctx
}

func ended(s *scene) bool {
	select {
	case <-s.Done():
		return true
	default:
		return false
	}
}

// taken is a bundle as it lies on the disk.
type taken struct {
	evidence.Manifest
	dir, name string
	written   time.Time
}

func bundles(t *testing.T, dir string) (list []taken) {
	t.Helper()
	all, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range all {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		b := taken{dir: filepath.Join(dir, e.Name()), name: e.Name()}
		text, err := os.ReadFile(filepath.Join(b.dir, "manifest.json"))
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(text, &b.Manifest))
		info, err := os.Stat(filepath.Join(b.dir, "manifest.json"))
		require.NoError(t, err)
		b.written = info.ModTime()
		list = append(list, b)
	}
	return list
}

func (b taken) missing() (list []string) {
	for _, f := range b.Files {
		if f.Error != "" {
			list = append(list, f.Name+": "+f.Error)
		}
	}
	return list
}

func (b taken) complete() bool { return len(b.missing()) == 0 }

// read opens each file as who explains it would.
func (b taken) read(t *testing.T) {
	t.Helper()
	file := func(name string) []byte {
		text, err := os.ReadFile(filepath.Join(b.dir, name))
		require.NoError(t, err)
		require.NotEmpty(t, text, name)
		return text
	}
	for _, name := range []string{"memory.json", "stats.json", "server_info.json", "cgroup.json", "observed.json"} {
		require.True(t, json.Valid(file(name)), name)
	}
	require.Contains(t, string(file("tcmalloc.txt")), "Bytes in use by application")
	require.Contains(t, string(file("smaps.txt")), "Private_Dirty:")
	require.Contains(t, string(file("status.txt")), "RssAnon:")
	require.Contains(t, string(file("sockstat.txt")), "TCP: inuse")
	for _, name := range []string{"heap_dump.pb.gz", "peak_heap_dump.pb.gz"} {
		_, err := profile.ParseData(file(name))
		require.NoError(t, err, name)
	}
	z, err := gzip.NewReader(bytes.NewReader(file("requests-current.pb.gz")))
	require.NoError(t, err)
	raw, err := io.ReadAll(z)
	require.NoError(t, err)
	p, err := profile.ParseData(raw)
	require.NoError(t, err)
	held := map[string]int64{}
	for _, s := range p.Sample {
		held[s.Location[len(s.Location)-1].Line[0].Function.Name] += s.Value[1]
	}
	page := string(file("index.html"))
	require.Contains(t, page, "upload")
	require.NotContains(t, page, "src=")
	t.Logf("%s: %v", b.name, held)
	for _, s := range []string{"table", "prefers-color-scheme"} {
		require.Contains(t, page, s)
	}
	first := page[strings.Index(page, "requests by what tells them apart"):]
	require.Less(t, strings.Index(first, "upload"), 400, "the flood is on top: %s", first[:600])
}

// examine opens it with highwater doctor, for which nothing is missing.
func (b taken) examine(t *testing.T) {
	t.Helper()
	envoy, err := envoybin.Find(t.Context())
	require.NoError(t, err)
	var r doctor.Report
	require.NoError(t, json.Unmarshal([]byte(command(t, "doctor", "-json", "-dir", b.dir, "-heap", "-binary", envoy)), &r))
	require.Empty(t, r.Missing)
	require.NotZero(t, r.Limit)
	require.NotEmpty(t, r.More)
	require.Positive(t, r.Gauges.Requests)
	require.LessOrEqual(t, r.Map.Error, 0.1, "its files are of moments of a flood")
	require.Len(t, r.Heaps, 2)
	require.True(t, r.Heaps[0].Exact)
	require.Contains(t, r.Heaps[0].Classes[0].Name, "Buffer")
	t.Logf("%s; %.0f%% of the heap with a class, most by %s", r.Verdict, 100*r.Heaps[0].Share(), r.Heaps[0].Classes[0].Name)
}

// A heap dump takes Envoy less than half of the room that must be left for it.
func TestOOMHeapDumpCost(t *testing.T) {
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) { c.RemoveGuard(); c.SetBuffers(mib, mib) }})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	u := &load.Uploads{Addr: s.addr, Count: 200, Size: 4 * mib, Path: "/upload?delay=60s"}
	running.Go(func() { u.Run(ctx) })
	time.Sleep(4 * time.Second)
	resident := func() (n int64) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.PID()))
		require.NoError(t, err)
		var size int64
		_, err = fmt.Sscan(string(text), &size, &n)
		require.NoError(t, err)
		return n * int64(os.Getpagesize())
	}
	before, _ := s.Memory(ctx)
	for _, path := range []string{"/heap_dump", "/peak_heap_dump", "/memory/tcmalloc", "/stats?format=json"} {
		base, most := resident(), int64(0)
		var size int64
		began := time.Now()
		done := make(chan struct{})
		go func() {
			defer close(done)
			res, err := http.Get(s.AdminURL() + path)
			if err == nil {
				size, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		}()
		for waiting := true; waiting; {
			select {
			case <-done:
				waiting = false
			default:
				most = max(most, resident()-base)
			}
		}
		t.Logf("%s at %d MiB in use: %d KiB more resident, %v, %d bytes", path, before.InUse()/mib, most>>10, time.Since(began).Round(time.Millisecond), size)
		require.Less(t, most, int64(8*mib), path)
	}
}

// A full disk is a partial bundle or none, and one line; once there is room, there is a bundle.
func TestOOMEvidenceFullDisk(t *testing.T) {
	disk := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(disk, unix.MNT_DETACH)) })
	s := start(t, setup{workers: 1, edit: func(c envoytest.Config) { c.RemoveGuard() }})
	take := func(k *evidence.Keeper, at time.Time) (evidence.Manifest, error) {
		_, m, err := k.Take(t.Context(), at, evidence.Verdict, evidence.Source{
			Root: os.DirFS("/"), PID: s.PID(), Room: -1,
			Admin: func(ctx context.Context, path string, to io.Writer) error {
				res, err := http.Get(s.AdminURL() + path)
				if err != nil {
					return err
				}
				defer res.Body.Close()
				_, err = io.Copy(to, res.Body)
				return err
			},
		})
		return m, err
	}
	c := evidence.Default()
	c.Directory = filepath.Join(disk, "evidence")
	m, err := take(evidence.NewKeeper(c), time.Now())
	require.NoError(t, err, "what is small fits")
	full := 0
	for _, f := range m.Files {
		if strings.Contains(f.Error, "no space left on device") {
			full++
		}
	}
	t.Logf("%+v", m.Files)
	require.Positive(t, full)
	require.Less(t, full, len(m.Files)/2)

	rest := filepath.Join(disk, "rest")
	f, err := os.Create(rest)
	require.NoError(t, err)
	_, err = io.Copy(f, zeroReader{})
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoError(t, f.Close())
	_, err = take(evidence.NewKeeper(c), time.Now().Add(time.Second))
	require.ErrorContains(t, err, "no space left on device")
	require.ErrorContains(t, err, "evidence.directory: ")
	require.Len(t, bundles(t, c.Directory), 1, "nothing is left of it")
	require.NoError(t, os.Remove(rest))
	_, err = take(evidence.NewKeeper(c), time.Now().Add(2*time.Second))
	require.NoError(t, err)
}
