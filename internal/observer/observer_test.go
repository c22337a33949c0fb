package observer

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv(pretendVariable); socket != "" {
		fmt.Fprintln(os.Stderr, pretending(socket))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

const (
	mib    = 1 << 20
	within = 10 * time.Second // for what takes milliseconds
)

// envoy stands for Envoy's admin interface: it answers /memory as told, and /stats with nothing.
type envoy struct {
	*httptest.Server
	asked  atomic.Int64 // for /memory
	answer atomic.Pointer[http.HandlerFunc]
}

func (e *envoy) set(h http.HandlerFunc) { e.answer.Store(&h) }

func newEnvoy(t *testing.T) *envoy {
	t.Helper()
	e := &envoy{}
	e.set(answersMemory(100*mib, 20*mib))
	mux := http.NewServeMux()
	mux.HandleFunc("GET /memory", func(w http.ResponseWriter, r *http.Request) {
		e.asked.Add(1)
		(*e.answer.Load())(w, r)
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "cluster.a: b.upstream_cx_rx_bytes_buffered: 5\ncluster.c.upstream_cx_tx_bytes_buffered: 6\nhttp.ingress.downstream_cx_rx_bytes_buffered: 7\n"+
			"tcp.t.downstream_cx_tx_bytes_buffered: 8\nhttp2.pending_send_bytes: 9\ncluster.c.http2.pending_send_bytes: 1\ncluster.c.upstream_cx_rx_bytes_buffered: 10\n")
	})
	mux.HandleFunc("GET "+tcmallocPath, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(allocatorText(t, "envoy-1.40-idle.txt.gz"))
	})
	e.Server = httptest.NewUnstartedServer(mux)
	e.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	e.Start()
	t.Cleanup(func() { e.CloseClientConnections(); e.Close() })
	return e
}

// memory answers with so much of the heap mapped and so much of that free, bytes.
func answersMemory(mapped, free int64) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "{\n \"allocated\": \"%d\",\n \"heap_size\": \"%d\",\n \"pageheap_unmapped\": \"0\",\n \"pageheap_free\": \"%d\",\n \"total_thread_cache\": \"1\"\n}\n", mapped-free-1, mapped, free)
	}
}

// machine has an Envoy, process 7, in a container of 300 MiB.
func machine() fstest.MapFS {
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	return fstest.MapFS{
		"proc/1/comm":                        file("sh\n"),
		"proc/7/comm":                        file("envoy\n"),
		"proc/7/status":                      file("Name:\tenvoy\nVmRSS:\t  200000 kB\nRssAnon:\t  112640 kB\nRssFile:\t   51008 kB\nRssShmem:\t    4 kB\n"),
		"proc/7/cgroup":                      file("0::/envoy\n"),
		"proc/self/mountinfo":                file("30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
		"sys/fs/cgroup/envoy/memory.current": file("209715200\n"),
		"sys/fs/cgroup/envoy/memory.max":     file("314572800\n"),
		"sys/fs/cgroup/envoy/memory.stat":    file("inactive_file 10485760\nsock 4194304\n"),
		"sys/fs/cgroup/envoy/memory.events":  file("oom 0\noom_kill 0\n"),
	}
}

// files is a file system that the test may change while it is read.
type files struct {
	sync.RWMutex
	m fstest.MapFS
}

func (f *files) Open(name string) (fs.File, error) {
	f.RLock()
	defer f.RUnlock()
	return f.m.Open(name)
}

func (f *files) ReadLink(name string) (string, error) {
	f.RLock()
	defer f.RUnlock()
	return f.m.ReadLink(name)
}

func (f *files) Lstat(name string) (fs.FileInfo, error) {
	f.RLock()
	defer f.RUnlock()
	return f.m.Lstat(name)
}

func (f *files) set(name, text string) {
	f.Lock()
	defer f.Unlock()
	m := fstest.MapFS{}
	for k, v := range f.m {
		m[k] = v
	}
	if m[name] = (&fstest.MapFile{Data: []byte(text)}); text == "" {
		delete(m, name)
	}
	f.m = m
}

// watch is an observer that runs, with what it logs.
type watch struct {
	*Observer
	t    *testing.T
	log  *lines
	stop func()
}

type lines struct {
	sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.Lock()
	defer l.Unlock()
	return l.Buffer.Write(p)
}

func textLog(l *lines) *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// Len is how long it is.
func (l *lines) Len() int {
	l.Lock()
	defer l.Unlock()
	return l.Buffer.Len()
}

// count is how many lines have the text.
func (l *lines) count(text string) (n int) {
	l.Lock()
	defer l.Unlock()
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func newWatch(t *testing.T, o Options) *watch {
	t.Helper()
	w := &watch{t: t, log: &lines{}}
	o.Log = textLog(w.log)
	if o.Root == nil {
		o.Root = machine()
	}
	if o.Release == (Release{}) {
		o.Release = Default().Release
	}
	var err error
	w.Observer, err = New(o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() { w.Run(ctx) })
	w.stop = func() { cancel(); run.Wait() }
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Log(w.log.String())
		}
	})
	return w
}

func (w *watch) until(what string, ok func(s Status) bool) Status {
	w.t.Helper()
	var s Status
	for deadline := time.Now().Add(within); ; time.Sleep(2 * time.Millisecond) {
		if s = w.Status(); ok(s) {
			return s
		}
		require.True(w.t, time.Now().Before(deadline), "%s: %+v", what, s)
	}
}

// ask waits for the answer to one question.
func (w *watch) ask() (memory.Reading, error) {
	w.t.Helper()
	type answer struct {
		r   memory.Reading
		err error
	}
	c := make(chan answer, 1)
	w.Ask(func(r memory.Reading, err error) { c <- answer{r, err} })
	select {
	case a := <-c:
		return a.r, a.err
	case <-time.After(within):
		require.Fail(w.t, "no answer")
		return memory.Reading{}, nil
	}
}

// A reading has what Envoy tells and what the kernel does: the same for guard and for a filter that
// asks over HTTP.
func TestReading(t *testing.T) {
	e := newEnvoy(t)
	w := newWatch(t, Options{URL: e.URL})
	want := memory.Reading{
		InUse: 80*mib + (112640+4-102400)<<10 + 4*mib, Allocated: 80*mib - 1, Free: 20 * mib, Mapped: 100 * mib,
		Limit: 300 * mib, Resident: 112644 << 10, WorkingSet: 190 * mib, Sock: 4 * mib,
	}
	got, err := w.ask()
	require.NoError(t, err)
	require.Equal(t, want, got)

	res := httptest.NewRecorder()
	w.Memory().ServeHTTP(res, httptest.NewRequest(http.MethodGet, "/memory", nil))
	require.Equal(t, http.StatusOK, res.Code)
	require.Equal(t, "application/json", res.Header().Get("Content-Type"))
	got, err = memory.Parse(res.Body.Bytes())
	require.NoError(t, err)
	require.Equal(t, want, got)
	var all map[string]string
	require.NoError(t, json.Unmarshal(res.Body.Bytes(), &all))
	require.Equal(t, "1", all["total_thread_cache"], "the rest of Envoy's answer is there too")

	s := w.until("buffers", func(s Status) bool { return s.Buffered != (Buffered{}) })
	require.Equal(t, Buffered{DownstreamRx: 7, DownstreamTx: 8, UpstreamRx: 15, UpstreamTx: 6, PendingSend: 10}, s.Buffered)
	require.True(t, s.Fresh)
	require.Equal(t, want, s.Reading)
	require.Equal(t, 7, s.PID)
	require.Equal(t, "/sys/fs/cgroup/envoy", s.Cgroup)
	require.Empty(t, s.Failing)
	require.Zero(t, w.log.count("WARN"))
}

// Whoever asks: what is answered was asked for after the call.
func TestMemoryIsNeverFromACache(t *testing.T) {
	e := newEnvoy(t)
	w := newWatch(t, Options{URL: e.URL})
	for i := range 20 {
		mapped := int64(100+i) * mib
		e.set(answersMemory(mapped, 20*mib))
		res := httptest.NewRecorder()
		w.Memory().ServeHTTP(res, httptest.NewRequest(http.MethodGet, "/memory", nil))
		got, err := memory.Parse(res.Body.Bytes())
		require.NoError(t, err)
		require.Equal(t, mapped, got.Mapped)
	}
	res := httptest.NewRecorder()
	w.Memory().ServeHTTP(res, httptest.NewRequest(http.MethodPost, "/memory", nil))
	require.Equal(t, http.StatusMethodNotAllowed, res.Code)
}

// The answer to Ask holds all that had passed when it was called: an answer that was on its way
// then does not do.
func TestAskIsNotAnsweredByWhatWasAskedBefore(t *testing.T) {
	e := newEnvoy(t)
	entered, leave := make(chan struct{}, 10), make(chan struct{})
	e.set(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-leave
		answersMemory(e.asked.Load()*mib, 0)(w, r)
	})
	w := newWatch(t, Options{URL: e.URL})
	<-entered // its own first question
	got := make(chan int64, 2)
	for range 2 {
		w.Ask(func(r memory.Reading, err error) { got <- r.Mapped })
	}
	close(leave)
	require.Equal(t, int64(2*mib), <-got)
	require.Equal(t, int64(2*mib), <-got, "both get the same")
}

// However many ask, Envoy is asked once in an interval, and the answer to each was asked for after
// the question: what had passed by then is in it. Those who give up cost the others nothing.
func TestManyAskAtOnce(t *testing.T) {
	const clients, interval = 300, 25 * time.Millisecond
	e := newEnvoy(t)
	e.set(func(w http.ResponseWriter, r *http.Request) {
		at := time.Since(epoch).Microseconds() // it tells when it was asked, and many ask before they hear it
		time.Sleep(5 * time.Millisecond)
		answersMemory(at+mib, 0)(w, r)
	})
	w := newWatch(t, Options{URL: e.URL, Interval: interval})
	w.until("a reading", func(s Status) bool { return s.Fresh })
	web := httptest.NewServer(w.Memory())
	defer web.Close()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()

	var answers, early, failed atomic.Int64
	told := func(asked time.Time, r memory.Reading, err error) {
		answers.Add(1)
		if err != nil {
			failed.Add(1)
		} else if r.Mapped-mib < asked.Sub(epoch).Microseconds() {
			early.Add(1)
		}
	}
	begin, before := time.Now(), e.asked.Load()
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			for n := i; time.Since(begin) < 2*time.Second; n++ {
				ctx, cancel := context.WithCancel(context.Background())
				if n%10 == 0 {
					time.AfterFunc(3*time.Millisecond, cancel)
				}
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, web.URL, nil)
				asked := time.Now()
				if res, err := client.Do(req); err == nil {
					text, err := io.ReadAll(res.Body)
					res.Body.Close()
					if err == nil {
						r, err := memory.Parse(text)
						told(asked, r, err)
					}
				}
				cancel()
			}
		})
	}
	running.Go(func() { // the server's own guard is one of them
		for time.Since(begin) < 2*time.Second {
			asked := time.Now()
			r, err := w.ask()
			told(asked, r, err)
		}
	})
	running.Wait()
	questions, most := e.asked.Load()-before, int64(time.Since(begin)/interval)+1
	t.Logf("%d answers from %d questions in %v", answers.Load(), questions, time.Since(begin).Round(time.Millisecond))
	require.LessOrEqual(t, questions, most)
	require.Greater(t, answers.Load(), 10*questions)
	require.Zero(t, early.Load(), "answers that were asked for before their question")
	require.Zero(t, failed.Load())
}

// epoch is when the tests began.
var epoch = time.Now()

// raw answers with just this text.
func raw(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_, _ = io.WriteString(c, text)
			c.Close()
		}
	}
}

// Whatever admin does: one line in the log, a counter, no reading, and well again when it is.
func TestAdminMisbehaves(t *testing.T) {
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	text := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status); _, _ = io.WriteString(w, text) }
	}
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"403":        {text(403, "Forbidden"), "answers 403 Forbidden, not 200 (with admin.allow_paths, the path must be among them)"},
		"500":        {text(500, "oops"), "answers 500 Internal Server Error"},
		"204":        {text(204, ""), "answers 204 No Content"},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/stats", http.StatusFound) }, "answers 302 Found"},
		"HTML":       {text(200, "<html><body>Envoy</body></html>"), "not the answer of /memory"},
		"nothing":    {text(200, ""), "not the answer of /memory"},
		"null":       {text(200, "null"), "not the answer of /memory"},
		"other JSON": {text(200, `{"state": "LIVE"}`), "not the answer of /memory"},
		"a list":     {text(200, `[]`), "not the answer of /memory"},
		"impossible": {text(200, `{"allocated": "5", "heap_size": "-1"}`), "not a possible answer of /memory"},
		"half of it": {text(200, `{"allocated": "5", "heap_si`), "not the answer of /memory"},
		"too much":   {text(200, strings.Repeat(" ", maxMemory+1)), "more than 65536 bytes"},
		"it hangs":   {func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no answer in time"},
		"it breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, "{")
		}, "broke off"},
		"it just closes": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		"a header without end": {func(w http.ResponseWriter, _ *http.Request) {
			for i := range 2000 {
				w.Header().Set(fmt.Sprintf("x-%d", i), strings.Repeat("y", 20))
			}
		}, "server response headers exceeded 16384 bytes"},
		"no HTTP, and much of it": {raw(strings.Repeat("\xff\x00nonsense ", 1000) + "\r\n\r\n"), "malformed HTTP"},
		"hints without end":       {raw(strings.Repeat("HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n", 5000)), "header"},
		"a long reason":           {raw("HTTP/1.1 500 " + strings.Repeat("why ", 2000) + "\r\nContent-Length: 0\r\n\r\n"), "answers 500 why why"},
		"a long number":           {text(200, `{"allocated": "`+strings.Repeat("9", 60_000)+`", "heap_size": "10"}`), "not the answer of /memory"},
		"compressed": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(bytes.Repeat([]byte(" "), 1<<20))
			_ = z.Close()
		}, "not the answer of /memory"},
		"a body without end": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}, "more than 65536 bytes"},
		"drop after drop": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = io.WriteString(w, " ")
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}, "no answer in time"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEnvoy(t)
			w := newWatch(t, Options{URL: e.URL})
			w.until("a reading", func(s Status) bool { return s.Fresh })
			e.set(c.answer)
			s := w.until("it fails", func(s Status) bool { return s.Failures["memory"] >= 2 })
			require.Contains(t, s.Failing["memory"], c.want)
			require.Equal(t, 1, w.log.count("no reading of Envoy's memory"), "one line")
			r, err := w.ask()
			require.ErrorContains(t, err, c.want)
			require.Zero(t, r)
			require.Equal(t, 7, w.Status().PID, "the rest is seen all the same")

			res := httptest.NewRecorder()
			w.Memory().ServeHTTP(res, httptest.NewRequest(http.MethodGet, "/memory", nil))
			require.Equal(t, http.StatusBadGateway, res.Code)
			require.Contains(t, res.Body.String(), c.want)
			require.Less(t, res.Body.Len(), 1000, "what is quoted is bounded")
			require.Less(t, w.log.Len(), 5000)

			e.set(answersMemory(100*mib, 0))
			w.until("it is well", func(s Status) bool { return s.Fresh && s.Failing["memory"] == "" })
			require.Equal(t, 1, w.log.count("no reading of Envoy's memory"))
			require.Equal(t, 1, w.log.count("well again"))
		})
	}
}

// Many ask at once, of an admin that sometimes fails, in all ways that there are: each is answered
// once, before the end of Run or at it.
func TestHammer(t *testing.T) {
	e := newEnvoy(t)
	var n atomic.Int64
	e.set(func(w http.ResponseWriter, r *http.Request) {
		switch n.Add(1) % 50 {
		case 0:
			w.WriteHeader(500)
		case 1:
			fmt.Fprint(w, "<html>")
		default:
			answersMemory(100*mib, 20*mib)(w, r)
		}
	})
	w := newWatch(t, Options{URL: e.URL, Limit: func() int64 { return 200 * mib }})
	const workers = 8
	var asks, answers, good atomic.Int64
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for begin := time.Now(); time.Since(begin) < time.Second; {
				asks.Add(1)
				answered := make(chan struct{})
				w.Ask(func(r memory.Reading, err error) {
					answers.Add(1)
					if err == nil {
						good.Add(1)
					}
					close(answered)
				})
				w.Memory().ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/memory", nil))
				_ = w.Status().Figures()
				<-answered
			}
		})
	}
	all.Wait()
	require.Equal(t, asks.Load(), answers.Load())
	require.Positive(t, good.Load())
	for range 100 {
		w.Ask(func(memory.Reading, error) { answers.Add(1) })
	}
	w.stop()
	require.Equal(t, asks.Load()+100, answers.Load(), "once each")
}

// Nobody there, and then somebody.
func TestAdminIsNotThereYet(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	w := newWatch(t, Options{URL: "http://" + address})
	w.until("it fails", func(s Status) bool { return s.Failures["memory"] >= 2 && s.Failures["buffers"] >= 1 })
	require.Equal(t, 1, w.log.count("no reading of Envoy's memory"))
	require.Equal(t, 1, w.log.count("gauges of buffered bytes are not known"))
	require.Zero(t, w.Status().Age, "there was none yet")
	l, err = net.Listen("tcp", address)
	require.NoError(t, err)
	server := &http.Server{Handler: answersMemory(100*mib, 0), ReadHeaderTimeout: time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer serving.Wait()
	defer server.Close()
	w.until("a reading", func(s Status) bool { return s.Fresh })
}

// Who asks is told of a failure, and it is not in the log a second time. An admin that fails is
// left in peace for longer and longer, up to a second, whoever asks how often.
func TestBackOff(t *testing.T) {
	e := newEnvoy(t)
	e.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) })
	w := newWatch(t, Options{URL: e.URL})
	w.until("it fails", func(s Status) bool { return s.Failures["memory"] > 0 })
	begin, answers := time.Now(), 0
	for time.Since(begin) < 1500*time.Millisecond {
		_, err := w.ask()
		require.Error(t, err)
		answers++
		time.Sleep(5 * time.Millisecond)
	}
	require.Greater(t, answers, 50, "each is answered at once")
	require.LessOrEqual(t, e.asked.Load(), int64(6), "0.1, 0.3, 0.7, 1.5 s")
	e.set(answersMemory(100*mib, 0))
	fixed := time.Now()
	w.until("a reading", func(s Status) bool { return s.Fresh })
	require.Less(t, time.Since(fixed), 2*time.Second)
}

// A pace is set by how long an answer takes: one that takes 40 ms is asked for at most each 80.
func TestPace(t *testing.T) {
	a := admin{least: 25 * time.Millisecond, longest: time.Second}
	now := time.Now()
	require.LessOrEqual(t, a.rests(now), time.Duration(0))
	a.asked(now, 40*time.Millisecond, nil)
	require.Equal(t, 80*time.Millisecond, a.rests(now))
	a.asked(now, 10*time.Second, nil)
	require.Equal(t, 10*time.Second+longestRest, a.rests(now))
	for i, want := range []int64{100, 200, 400, 800, 1000, 1000} {
		a.asked(now, 0, errors.New("down"))
		require.Equal(t, want, a.rests(now).Milliseconds(), i)
	}
	a.failed = 1 << 30
	a.asked(now, 0, errors.New("down"))
	require.Equal(t, time.Second, a.rests(now), "however long")
	a.asked(now, time.Millisecond, nil)
	require.Equal(t, 25*time.Millisecond, a.rests(now), "from question to question")
}

func TestUnixSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := &http.Server{Handler: answersMemory(100*mib, 0), ReadHeaderTimeout: time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) })
	defer serving.Wait()
	defer server.Close()
	w := newWatch(t, Options{URL: "unix:" + socket})
	r, err := w.ask()
	require.NoError(t, err)
	require.Equal(t, int64(100*mib), r.Mapped)
	w.stop()
}

func TestAddresses(t *testing.T) {
	for _, url := range []string{"", "127.0.0.1:9901", "https://127.0.0.1:9901", "http://", "http://u:p@h:1", "http://h:1/memory", "http://h:1?x", "unix:", "unix:rel/ative", "://"} {
		_, err := New(Options{URL: url})
		require.ErrorContains(t, err, "memory.url: ", url)
	}
}

// The end of Run is the end of everything: questions are answered, and later ones too.
func TestStop(t *testing.T) {
	e := newEnvoy(t)
	entered := make(chan struct{}, 10)
	e.set(func(_ http.ResponseWriter, r *http.Request) { entered <- struct{}{}; <-r.Context().Done() })
	w := newWatch(t, Options{URL: e.URL})
	<-entered
	got := make(chan error, 2)
	w.Ask(func(_ memory.Reading, err error) { got <- err })
	begin := time.Now()
	w.stop()
	require.Less(t, time.Since(begin), 5*time.Second)
	require.ErrorIs(t, <-got, ErrStopped)
	w.Ask(func(_ memory.Reading, err error) { got <- err })
	require.ErrorIs(t, <-got, ErrStopped)
	require.Zero(t, w.Status().Failures["memory"], "that was not Envoy's fault")
}

// A cgroup that vanishes takes its figures along; the limit in force is guard's to keep. The
// process that comes back is found again.
func TestCgroupVanishes(t *testing.T) {
	e := newEnvoy(t)
	root := &files{m: machine()}
	w := newWatch(t, Options{URL: e.URL, Root: root})
	w.until("a limit", func(s Status) bool { return s.Fresh && s.Reading.Limit == 300*mib })
	root.set("sys/fs/cgroup/envoy/memory.max", "419430400\n")
	w.until("another limit", func(s Status) bool { return s.Reading.Limit == 400*mib })
	for name := range machine() {
		if strings.HasPrefix(name, "sys/") {
			root.set(name, "")
		}
	}
	s := w.until("no limit", func(s Status) bool { return s.Fresh && s.Reading.Limit == 0 && s.Container == nil })
	require.Contains(t, s.Failing["cgroup"], "the memory cgroup is gone: /sys/fs/cgroup/envoy")
	require.Positive(t, s.Failures["cgroup"])
	require.Equal(t, int64(100*mib), s.Reading.Mapped, "Envoy answers all the same")
	require.Equal(t, 1, w.log.count("the container's limit is not known"))
	for name, f := range machine() {
		root.set(name, string(f.Data))
	}
	w.until("a limit again", func(s Status) bool { return s.Reading.Limit == 300*mib })
	require.Equal(t, 1, w.log.count("the container's limit is not known"))
}

// Envoy ends and another one takes its place.
func TestProcessIsReplaced(t *testing.T) {
	e := newEnvoy(t)
	root := &files{m: machine()}
	w := newWatch(t, Options{URL: e.URL, Root: root})
	w.until("it is found", func(s Status) bool { return s.PID == 7 })
	status := string(machine()["proc/7/status"].Data)
	root.set("proc/9/comm", "envoy\n")
	root.set("proc/9/status", strings.Replace(status, "112640 kB", "133120 kB", 1))
	root.set("proc/9/cgroup", "0::/envoy\n")
	for _, file := range []string{"comm", "status", "cgroup"} {
		root.set("proc/7/"+file, "")
	}
	s := w.until("the new one is found", func(s Status) bool { return s.PID == 9 })
	require.Equal(t, int64(133124<<10), s.Resident)
	require.Equal(t, 1, w.log.count("memory outside of Envoy's heap is not known"))
}

// Without an Envoy in sight its own figures are missing, and one setting helps: the directory of
// its cgroup.
func TestOnlyTheCgroupIsKnown(t *testing.T) {
	e := newEnvoy(t)
	root := machine()
	delete(root, "proc/7/comm")
	w := newWatch(t, Options{URL: e.URL, Root: root})
	s := w.until("a reading", func(s Status) bool { return s.Fresh })
	require.Contains(t, s.Failing["process"], "no process here is called envoy")
	require.Contains(t, s.Failing["cgroup"], "set envoy.pid or envoy.cgroup")
	require.Zero(t, s.Reading.Limit)
	require.Equal(t, int64(80*mib), s.Reading.InUse)
	w.stop()

	config := Default()
	config.Envoy.Cgroup = "/sys/fs/cgroup/envoy"
	w = newWatch(t, Options{URL: e.URL, Root: root, Config: config})
	s = w.until("a reading", func(s Status) bool { return s.Fresh })
	require.Equal(t, int64(300*mib), s.Reading.Limit)
	require.Equal(t, int64(84*mib), s.Reading.InUse, "with its sockets")
}

func TestParseStatus(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "a zombie": "Name:\tenvoy\nState:\tZ (zombie)\n", "no unit": "RssAnon:\t12\n", "negative": "RssAnon:\t-12 kB\n", "words": "RssAnon:\tmuch kB\n", "too large": "RssAnon:\t9223372036854775807 kB\n",
	} {
		_, err := parseStatus([]byte(text))
		require.Error(t, err, name)
	}
}

func TestParseBuffersRefuses(t *testing.T) {
	for _, text := range []string{"<html>", "a\n", "a: b\n", "a: -1\n", "x_cx_rx_bytes_buffered: 99999999999999999999\n", `{"stats": []}`} {
		_, err := parseBuffers([]byte(text))
		require.Error(t, err, text)
	}
	b, err := parseBuffers(nil)
	require.NoError(t, err, "nothing was ever buffered")
	require.Zero(t, b)
}

func FuzzParseStatus(f *testing.F) {
	f.Add(machine()["proc/7/status"].Data)
	f.Add([]byte("RssAnon:\t1125899906842624 kB\nRssAnon:\t1125899906842624 kB\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if n, err := parseStatus(text); err == nil && n < 0 {
			t.Fatalf("%q is taken for %d", text, n)
		}
	})
}

func FuzzParseBuffers(f *testing.F) {
	f.Add([]byte("cluster.a: b.upstream_cx_rx_bytes_buffered: 5\n"))
	f.Add([]byte("a: 1: 2\n\n: 3\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := parseBuffers(text)
		for _, n := range b.byName() {
			if n < 0 || err != nil && n != 0 {
				t.Fatalf("%q is taken for %+v, %v", text, b, err)
			}
		}
	})
}

func FuzzCompose(f *testing.F) {
	f.Add([]byte(`{"allocated": "5", "heap_size": "10", "limit": "7"}`))
	f.Add([]byte(`{"Limit": "5", "heap_size": "10", "allocated": "1", "allocated": "2"}`))
	seen := figures{pid: 7, resident: 12}
	f.Fuzz(func(t *testing.T, text []byte) {
		was, err := memory.Parse(text)
		if err != nil {
			return
		}
		composed, err := compose(text, seen)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		r, err := memory.Parse(composed)
		if err != nil {
			t.Fatalf("%q: %q: %v", text, composed, err)
		}
		if r.Allocated != was.Allocated || r.Mapped != was.Mapped {
			t.Fatalf("%q: %+v, was %+v", text, r, was)
		}
	})
}

// Validate tells all mistakes, each with its key.
func TestConfig(t *testing.T) {
	c := Default()
	require.NoError(t, c.Validate())
	c.Release = Release{Threshold: 1.5, Interval: unit.Duration(time.Millisecond), Keep: 2 * unit.TiB, PressureFile: "pressure", PulseFile: "/a/../b"}
	c.Envoy = Envoy{PID: -1, Cgroup: "sys"}
	require.EqualError(t, c.Validate(), strings.Join([]string{
		"release.threshold: 150% must be from 0% (never) to 100%",
		"release.interval: 1ms must be 0 (never) or from 1s to 24h",
		"release.keep: 2TiB must be at most 1TiB",
		`release.pressure_file: "pressure" must be an absolute path without . and .., as in Envoy's injected_resource monitor`,
		`release.pulse_file: "/a/../b" must be an absolute path without . and .., as in Envoy's injected_resource monitor`,
		"envoy.pid: -1 must be from 0 (found by itself) to 4194304",
		`envoy.cgroup: "sys" must be an absolute path, such as /sys/fs/cgroup/envoy`,
	}, "\n"))
	c = Default()
	c.Release.PressureFile, c.Release.PulseFile = "/run/x", "/run/x"
	require.EqualError(t, c.Validate(), `release.pulse_file: "/run/x" must not be release.pressure_file: to give pages back would cut timeouts too`)
	_, err := New(Options{Config: c, URL: "http://127.0.0.1:1"})
	require.Error(t, err)
	c.Release.PulseFile = "/run/x.new"
	require.EqualError(t, c.Validate(), `release.pulse_file: "/run/x.new" must not be release.pressure_file with .new behind: that is written first, and then renamed`)
	c.Release.PressureFile = "/"
	require.ErrorContains(t, c.Validate(), `release.pressure_file: "/" must be an absolute path`)
}

// The metrics' names, kinds and help are complete, and what is not known is left out.
func TestFigures(t *testing.T) {
	e := newEnvoy(t)
	w := newWatch(t, Options{URL: e.URL})
	s := w.until("a reading", func(s Status) bool { return s.Fresh })
	seen := map[string]float64{}
	for _, f := range s.Figures() {
		require.NotContains(t, seen, f.Name)
		require.Regexp(t, `^highwater_[a-z_]+(\.[a-z]+\.[a-z_]+)?$`, f.Name)
		require.NotEmpty(t, f.Help, f.Name)
		base, _, _ := strings.Cut(f.Name, ".")
		require.Equal(t, f.Kind == metric.Counter, strings.HasSuffix(base, "_total"), f.Name)
		seen[f.Name] = f.Value
	}
	require.InDelta(t, 300*mib, seen["highwater_container_limit_bytes"], 0)
	require.InDelta(t, 112644<<10, seen["highwater_resident_bytes"], 0)
	require.NotContains(t, seen, "highwater_time_to_limit_seconds")
	for _, f := range (Status{}).Figures() {
		require.NotContains(t, f.Name, "container")
		require.NotContains(t, f.Name, "resident")
	}
}

// A file's directory that is missing or read-only: one line, a counter, tried again, and nothing
// else suffers.
func TestFilesThatCanNotBeWritten(t *testing.T) {
	e := newEnvoy(t)
	dir := filepath.Join(t.TempDir(), "missing")
	config := Default()
	config.Release.PressureFile, config.Release.PulseFile = filepath.Join(dir, "pressure"), filepath.Join(dir, "pulse")
	w := newWatch(t, Options{URL: e.URL, Config: config})
	s := w.until("it fails twice", func(s Status) bool { return s.Failures["pressure_file"] >= 2 && s.Failures["pulse_file"] >= 2 })
	require.Contains(t, s.Failing["pressure_file"], config.Release.PressureFile+" can't be written, its directory must exist and be writable: ")
	require.Contains(t, s.Failing["pressure_file"], "no such file or directory")
	require.Equal(t, 1, w.log.count("Envoy does not get to know of the pressure"))
	require.Equal(t, 1, w.log.count("free pages are not given back on demand"))
	require.True(t, s.Fresh)
	require.NoError(t, os.Mkdir(dir, 0o755))
	w.until("it is well", func(s Status) bool { return len(s.Failing) == 0 })
	require.FileExists(t, config.Release.PressureFile)
	require.FileExists(t, config.Release.PulseFile)
	require.Equal(t, 2, w.log.count("well again"))

	w.stop()

	// One that nobody may write to, root neither.
	config.Release.PressureFile, config.Release.PulseFile = "/sys/pressure", ""
	w = newWatch(t, Options{URL: e.URL, Config: config})
	s = w.until("it fails", func(s Status) bool { return s.Failures["pressure_file"] >= 2 })
	require.Contains(t, s.Failing["pressure_file"], "/sys/pressure can't be written, its directory must exist and be writable: ")
	require.Zero(t, s.Failures["pulse_file"], "there is none")
	require.Equal(t, 1, w.log.count("Envoy does not get to know of the pressure"))
}

// At start and at stop there is 0 in the files, whatever a predecessor that was killed left there.
func TestFilesBeginAndEndWithZero(t *testing.T) {
	e := newEnvoy(t)
	e.set(answersMemory(300*mib, 0))
	dir := t.TempDir()
	config := Default()
	config.Release.PressureFile, config.Release.PulseFile = filepath.Join(dir, "pressure"), filepath.Join(dir, "pulse")
	content := func(file string) string {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		return string(text)
	}
	require.NoError(t, os.WriteFile(config.Release.PressureFile, []byte("0.99"), 0o600))
	require.NoError(t, os.WriteFile(config.Release.PulseFile, []byte("1"), 0o600))
	w := newWatch(t, Options{URL: e.URL, Config: config, Limit: func() int64 { return 320 * mib }})
	w.until("pressure", func(s Status) bool { return s.Pressure > 0.9 })
	require.Eventually(t, func() bool {
		return strings.HasPrefix(content(config.Release.PressureFile), "0.9") || content(config.Release.PressureFile) == "1.00"
	}, within, time.Millisecond)
	require.Equal(t, "0", content(config.Release.PulseFile))
	info, err := os.Stat(config.Release.PressureFile)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o644), info.Mode().Perm(), "Envoy may be another user")
	w.stop()
	require.Equal(t, "0.00", content(config.Release.PressureFile))
	require.Equal(t, "0", content(config.Release.PulseFile))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 2, "nothing else is left")
}

// Where somebody asks all the time he tells of failures, and the log need not.
func TestWhoAsksTellsOfFailures(t *testing.T) {
	e := newEnvoy(t)
	w := newWatch(t, Options{URL: e.URL, Told: true})
	w.until("a reading", func(s Status) bool { return s.Fresh })
	e.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
	s := w.until("it fails", func(s Status) bool { return s.Failures["memory"] >= 2 })
	require.Contains(t, s.Failing["memory"], "answers 403")
	_, err := w.ask()
	require.ErrorContains(t, err, "answers 403")
	require.Zero(t, w.log.count("reading"))
}
