package gather

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/allocator"
	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/doctor"
	"github.com/highwater-envoy/highwater/internal/memorymap"
	"github.com/highwater-envoy/highwater/internal/profiles"
)

const memoryText = `{"allocated":"6291456","heap_size":"12582912","pageheap_unmapped":"0","pageheap_free":"5242880","total_thread_cache":"524288","total_physical_bytes":"15728640"}`

func file(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }

func TestDir(t *testing.T) {
	limits, err := json.Marshal(cgroup.Stats{Limit: 300 << 20, High: cgroup.NoLimit, WorkingSet: 90 << 20})
	require.NoError(t, err)
	s, err := Dir(fstest.MapFS{
		Memory: file(memoryText), Status: file("Name:\tenvoy\nVmRSS:\t 71680 kB\nRssAnon:\t 12288 kB\nRssFile:\t 59392 kB\n"), Cgroup: file(string(limits)),
		Stats: file(`{"stats":[{"name":"http.a.downstream_rq_active","value":3}]}`), Sockstat: file("TCP: inuse 1 mem 2\n"),
		ServerInfo: file(`{"version":"abc/1.40.0/Clean/RELEASE/BoringSSL","uptime_current_epoch":"60s","command_line_options":{"concurrency":2}}`),
		Manifest:   file(`{"format":1,"time":"2026-12-01T12:00:00Z","files":[{"name":"tcmalloc.txt","error":"Envoy did not answer in time"}]}`),
	})
	require.NoError(t, err)
	require.Equal(t, doctor.Envoy{Version: "1.40.0", Workers: 2, Uptime: time.Minute}, s.Envoy)
	require.Equal(t, 2026, s.Time.Year())
	require.Equal(t, int64(3), s.Gauges.Requests)
	require.Equal(t, int64(300<<20), s.Container.Limit)
	require.Equal(t, int64(70<<20), s.Status.Resident)
	require.NotNil(t, s.Sockets)
	require.Equal(t, []string{"tcmalloc.txt: Envoy did not answer in time", "smaps.txt: not in the directory"}, s.Missing)
}

// Files that are wrong are named, and the rest is told.
func TestDirOfNonsense(t *testing.T) {
	_, err := Dir(fstest.MapFS{"other": file("x")})
	require.ErrorContains(t, err, "there is none of")
	large := strings.Repeat("x", 10<<20)
	s, err := Dir(fstest.MapFS{
		Memory: file(memoryText), TCMalloc: file(large), Smaps: file("0-1000 rw-p 0 0:0 0\nRss: 4 kB\n"), Status: file("\x1b[31m"), Sockstat: file(large),
		Stats: file(`{"stats":[{"name":"a`), ServerInfo: file("<html>\n\x1b[2J"), Cgroup: file(`{"Limit":-1}`), Manifest: file("not JSON"),
	})
	require.NoError(t, err)
	require.NotNil(t, s.Totals)
	require.Nil(t, s.Allocator)
	require.Nil(t, s.Mappings, "half a map would not add up")
	require.Len(t, s.Missing, 8)
	for _, m := range s.Missing {
		require.NotContains(t, m, "\x1b")
		require.Less(t, len(m), 500)
	}
	r := doctor.Examine(doctor.Input{Now: s})
	require.NotEmpty(t, r.Map.Parts)
}

// A pipe that nobody writes to holds nobody up.
func TestWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, Memory), []byte(memoryText), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, TCMalloc), 0o700))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, Smaps), 0o600))
	require.NoError(t, os.Symlink("/dev/zero", filepath.Join(dir, Status)))
	s, err := Dir(os.DirFS(dir))
	require.NoError(t, err)
	require.Contains(t, s.Missing, "tcmalloc.txt, smaps.txt, status.txt: it is no regular file")
}

func live(t *testing.T, h http.HandlerFunc, pid int) *Live {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	l, err := NewLive(server.URL, pid)
	require.NoError(t, err)
	t.Cleanup(l.Close)
	return l
}

// An admin interface that hangs costs its deadline once, and what the kernel tells is told.
func TestAdminHangs(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	defer close(stop)
	var asked atomic.Int64
	l := live(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		select {
		case <-stop:
		case <-r.Context().Done():
		}
	}, os.Getpid())
	began := time.Now()
	s := l.Read(t.Context())
	require.Less(t, time.Since(began), answerWithin+2*time.Second)
	require.EqualValues(t, 1, asked.Load())
	require.Contains(t, strings.Join(s.Missing, "\n"), "no answer in time")
	require.NotNil(t, s.Status)
	require.NotEmpty(t, s.Mappings)
}

// One that begins its answer and never ends it is the same.
func TestAdminTrickles(t *testing.T) {
	t.Parallel()
	l := live(t, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			_, _ = fmt.Fprint(w, " ")
			_ = http.NewResponseController(w).Flush()
			time.Sleep(50 * time.Millisecond)
		}
	}, os.Getpid())
	began := time.Now()
	s := l.Read(t.Context())
	require.Less(t, time.Since(began), answerWithin+2*time.Second)
	require.Contains(t, strings.Join(s.Missing, "\n"), "broke off: no answer in time")
}

// Answers without end are cut off, and the next question is asked.
func TestAdminFloods(t *testing.T) {
	l := live(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/memory" {
			fmt.Fprint(w, memoryText)
			return
		}
		chunk := make([]byte, 1<<16)
		for range 1600 { // 100 MiB
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}, os.Getpid())
	s := l.Read(t.Context())
	require.NotNil(t, s.Totals)
	require.Contains(t, strings.Join(s.Missing, "\n"), "has more than")
}

func TestAdminRefuses(t *testing.T) {
	l := live(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/memory" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		fmt.Fprint(w, memoryText)
	}, os.Getpid())
	s := l.Read(t.Context())
	require.NotNil(t, s.Totals)
	require.Contains(t, strings.Join(s.Missing, "\n"), "admin.allow_paths")
}

func TestNobodyThere(t *testing.T) {
	l, err := NewLive("http://127.0.0.1:1", 0)
	require.NoError(t, err)
	s := l.Read(t.Context())
	require.Nil(t, s.Totals)
	require.Contains(t, strings.Join(s.Missing, "\n"), "connection refused")
	require.Contains(t, strings.Join(s.Missing, "\n"), "use -pid")
	_, err = NewLive("ftp://x", 0)
	require.ErrorContains(t, err, "must be the address")
}

// A process that has ended is named, and what Envoy's admin interface told before is told.
func TestProcessIsGone(t *testing.T) {
	c := exec.CommandContext(t.Context(), "true")
	require.NoError(t, c.Run())
	l := live(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, memoryText) }, c.Process.Pid)
	s := l.Read(t.Context())
	require.NotNil(t, s.Totals)
	require.Nil(t, s.Status)
	require.Contains(t, strings.Join(s.Missing, "\n"), fmt.Sprintf("there is no process %d", c.Process.Pid))
}

func TestWatch(t *testing.T) {
	reads := 0
	seen := 0
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	w := Watch{Every: 20 * time.Millisecond, Seen: func(doctor.Sample) { seen++ }, Read: func(context.Context) doctor.Sample {
		reads++
		s, err := Dir(fstest.MapFS{Memory: file(memoryText)})
		require.NoError(t, err)
		s.Envoy.PID = reads
		return s
	}}
	first, last := w.Run(ctx)
	require.Equal(t, 1, first.Envoy.PID)
	require.Equal(t, reads, last.Envoy.PID)
	require.Greater(t, reads, 2)
	require.Equal(t, reads, seen)
}

// What a sample costs is the least of some: on a busy machine most of the time is waiting.
func TestCost(t *testing.T) {
	var c cost
	require.Equal(t, time.Second, c.add(time.Second))
	require.Equal(t, time.Millisecond, c.add(time.Millisecond))
	require.Equal(t, time.Millisecond, c.add(time.Minute))
	for range 4 {
		c.add(time.Minute)
	}
	require.Equal(t, time.Minute, c.add(time.Minute))
}

// Growth of one size under steady load is told by size and count; the same samples without their
// load are none; and what another process has is no growth.
func TestGrowth(t *testing.T) {
	sample := func(i int, live int64) doctor.Sample {
		return doctor.Sample{
			Time: time.Unix(int64(5*i), 0), Envoy: doctor.Envoy{PID: 7}, Gauges: &memorymap.Gauges{Finished: int64(200 * i), Requests: 5},
			Allocator: &allocator.Report{Application: 50 << 20, Counted: true, Classes: []allocator.Class{{Size: 896, Live: live}, {Size: 64, Live: 5000}}},
		}
	}
	g, blind, restarted := NewGrowth(5*time.Second), NewGrowth(5*time.Second), NewGrowth(5*time.Second)
	for i := range 24 {
		s := sample(i, int64(1000+200*i))
		g.Add(s)
		s.Envoy.PID = i
		restarted.Add(s)
		s.Gauges = nil
		blind.Add(s)
		if i == 5 {
			require.Contains(t, g.Verdict().Growing.String(), "too few")
		}
	}
	v := g.Verdict()
	require.Equal(t, 115*time.Second, v.Over)
	require.Equal(t, "2.1 MiB a minute: 896-byte objects, about one a request", v.Growing.String())
	require.False(t, v.Leak.Found())
	require.Zero(t, blind.Verdict().Growing)
	require.Zero(t, restarted.Verdict().Growing)
}

// The exact sizes come to what the application has: what is larger than any class is the rest.
func TestSizes(t *testing.T) {
	for name, want := range map[string]int64{"envoy-1.40-burst": 223_825_328, "envoy-1.38.2-load": 965_651_768} {
		packed, err := os.ReadFile("../allocator/testdata/" + name + ".txt.gz")
		require.NoError(t, err)
		text, err := profiles.Unpack(packed)
		require.NoError(t, err)
		sizes, err := ParseSizes(text)
		require.NoError(t, err)
		var sum int64
		for _, s := range sizes {
			require.GreaterOrEqual(t, s.Live, int64(0))
			sum += s.Live
		}
		require.Equal(t, want, sum, name)
		require.Zero(t, sizes[len(sizes)-1].Bytes)
		require.GreaterOrEqual(t, sizes[len(sizes)-1].Live, int64(64*8192), name)
		_, err = ParseSizes(text[:20_000])
		require.ErrorIs(t, err, errNoSizes)
		huge, err := ParseSizes([]byte(strings.ReplaceAll(string(text), " live pages", "999 live pages")))
		require.NoError(t, err)
		sum = 0
		for _, s := range huge {
			require.GreaterOrEqual(t, s.Live, int64(0))
			sum += s.Live
		}
		require.Equal(t, want, sum, "no more than there is")
	}
	_, err := Sizes(nil)
	require.ErrorIs(t, err, errNoSizes)
	_, err = Sizes(&allocator.Report{Kind: allocator.GPerfTools, Application: 5})
	require.ErrorIs(t, err, errNoSizes)
}
