package e2e

import (
	"context"
	"flag"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// mixed is traffic of all kinds, none of which has a reason to fail. drain is how long what is
// under way may take in the end.
func mixed(addr string, drain time.Duration) []load.Load {
	return append(announced(addr, drain), &load.Uploads{Addr: addr, Path: "/upload?delay=50ms", Count: 3, Size: mib, Chunked: true, Drain: drain})
}

// announced is the traffic whose requests have lengths.
func announced(addr string, drain time.Duration) []load.Load {
	return []load.Load{
		&load.Small{Addr: addr, Rate: 100, Drain: drain},
		&load.Uploads{Addr: addr, Path: "/upload?delay=50ms", Count: 3, Size: mib, Drain: drain},
		&load.Uploads{Addr: addr, Path: "/upload?delay=50ms", Count: 3, Size: mib, Protocol: load.HTTP2, Drain: drain},
		&load.Downloads{Addr: addr, Clients: 3, Size: 300_000},
	}
}

// unharmed runs the traffic while something is done to the server, and wants every request served.
func (s *scene) unharmed(loads []load.Load, do func()) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	defer cancel()
	var running sync.WaitGroup
	for _, l := range loads {
		running.Go(func() { l.Run(ctx) })
	}
	s.progress(loads)
	do()
	s.progress(loads)
	cancel()
	running.Wait()
	for i, l := range loads {
		got := l.Snapshot()
		require.Zero(s.t, got.Errors+got.Cut+got.Closed+got.Rejected, "load %d: %+v", i, got)
		require.Positive(s.t, got.Served, i)
	}
}

// progress waits until each load has been served some more.
func (s *scene) progress(loads []load.Load) {
	s.t.Helper()
	for i, l := range loads {
		before := l.Snapshot().Served
		require.Eventually(s.t, func() bool { return l.Snapshot().Served > before+3 }, 20*time.Second, 5*time.Millisecond, "load %d: %+v", i, l.Snapshot())
	}
}

// Whatever becomes of the server, with failure_mode_allow no request fails; and once it is back it
// knows what there is.
func TestServerGoesAndComesBack(t *testing.T) {
	const times = 10
	s := start(t, setup{face: envoytest.ExtProc, workers: 2, edit: func(c envoytest.Config) {
		c.SetExtProc(func(filter map[string]any) { filter["message_timeout"] = "0.3s" })
	}})
	server := s.Server()
	// right waits until the server knows of requests and of all memory, and of no more requests
	// than there are.
	var longest time.Duration
	right := func(since time.Time) {
		t.Helper()
		_, err := s.Until(t.Context(), "highwater|ingress.downstream_rq_active", func(m map[string]float64) bool {
			memory, err := s.Memory(t.Context())
			return err == nil && m["wasmcustom.highwater_admitted_total"] > 0 &&
				m["wasmcustom.highwater_estimate_bytes"] >= 0.95*float64(memory.InUse()) && // of another moment
				m["wasmcustom.highwater_streams"] <= m["http.ingress.downstream_rq_active"]+3
		})
		require.NoError(t, err)
		longest = max(longest, time.Since(since))
		require.Less(t, time.Since(since), time.Second)
	}
	// A request without a length that is in the middle of its body when its stream ends otherwise
	// than by us may hang in Envoy (seen in 1.40, in one run of some), and
	// docs/how-to/run-beside-envoy.md says so.
	t.Run("killed", func(t *testing.T) {
		s.unharmed(announced(s.addr, 10*time.Second), func() {
			for range times {
				server.Kill()
				time.Sleep(50 * time.Millisecond) // traffic goes on meanwhile
				require.NoError(t, server.Restart(t.Context()))
				right(time.Now())
			}
		})
		s.drained()
	})
	t.Run("restarted", func(t *testing.T) {
		s.unharmed(mixed(s.addr, 10*time.Second), func() {
			for range times {
				began := time.Now()
				require.NoError(t, server.Stop(), "it exits with 0")
				require.Less(t, time.Since(began), 10*time.Second)
				require.NoError(t, server.Restart(t.Context()))
				right(time.Now())
			}
		})
		s.drained()
	})
	t.Run("hung", func(t *testing.T) {
		s.unharmed(announced(s.addr, 10*time.Second), func() {
			for range times {
				require.NoError(t, server.Signal(syscall.SIGSTOP))
				time.Sleep(400 * time.Millisecond) // longer than message_timeout
				require.NoError(t, server.Signal(syscall.SIGCONT))
			}
		})
		s.drained()
	})
	stats, err := s.Stats(t.Context(), "highwater")
	require.NoError(t, err)
	for name, v := range stats {
		if strings.Contains(name, "rejected") {
			require.Zero(t, v, name)
		}
	}
	t.Logf("right again %v after it was back, at most", longest)
}

// Requests that wait, and those under way, go on when the server is asked to end: it closes their
// streams with OK, so that even a filter that fails closed lets them.
func TestServerEndsWithRequestsUnderWay(t *testing.T) {
	s := start(t, setup{
		face: envoytest.ExtProc, fake: 40 * mib, plugin: func(cfg map[string]any) { cfg["fairness"] = map[string]any{"by": "none"} },
		edit: func(c envoytest.Config) {
			c.SetExtProc(func(filter map[string]any) { filter["failure_mode_allow"] = false })
		},
	})
	c := client(t, false)
	codes := make(chan int, 2)
	s.reaches(func() { codes <- s.status(c, "/upload?delay=3s", 1000) })
	s.reading(full)
	go func() { codes <- s.status(c, "/upload?delay=0s", large) }()
	s.waiting(1)
	require.NoError(t, s.Server().Stop())
	require.Equal(t, 200, <-codes)
	require.Equal(t, 200, <-codes)
}

// status is what an upload of n bytes is answered, 0 if it is not.
func (s *scene) status(c *http.Client, path string, n int64) int {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url(path), zeros(n))
	if err != nil {
		return 0
	}
	req.ContentLength = n
	res, err := c.Do(req)
	if err != nil {
		return 0
	}
	defer res.Body.Close()
	_, _ = io.Copy(io.Discard, res.Body)
	return res.StatusCode
}

// What was decided is in the access log: of a reject in the details, of a request that waited in
// dynamic metadata.
func TestServerTellsInTheAccessLog(t *testing.T) {
	log := filepath.Join(t.TempDir(), "access.log")
	s := start(t, setup{
		face: envoytest.ExtProc, fake: 40 * mib, plugin: func(cfg map[string]any) {
			cfg["fairness"] = map[string]any{"by": "none"}
			section(cfg, "throttle")["timeout"] = "500ms"
		},
		edit: func(c envoytest.Config) {
			c.SetConnectionManager(func(hcm map[string]any) {
				access := hcm["access_log"].([]any)[0].(map[string]any)
				access["typed_config"].(map[string]any)["path"] = log
			})
		},
	})
	s.reading(full)
	c := client(t, false)
	require.Equal(t, 503, s.refused(c, false).StatusCode)
	done := make(chan int)
	go func() { done <- s.status(c, "/upload?delay=0s", large) }()
	s.waiting(1)
	s.reading(40 * mib)
	require.Equal(t, 200, <-done)
	require.NoError(t, s.Stop()) // writes the rest of it
	text, err := os.ReadFile(log)
	require.NoError(t, err)
	require.Contains(t, string(text), "highwater{rejected,timeout,waited=")
	require.Regexp(t, `via_upstream admitted waited=\d+ms`, string(text))
}

// The server reads its configuration again when the file changes, or on SIGHUP; one that is wrong
// changes nothing. Where the filter tells nothing of responses, each is taken for as much as its
// buffers hold: unguarded these slow readers made 1.6 times the limit, and only the first 16
// requests tell what the mode is.
func TestServerIsToldNothingOfResponses(t *testing.T) {
	s := start(t, setup{face: envoytest.ExtProc, workers: 2, edit: func(c envoytest.Config) {
		c.SetBuffers(mib, mib)
		c.SetExtProc(func(filter map[string]any) {
			filter["processing_mode"].(map[string]any)["response_header_mode"] = "SKIP"
			delete(filter, "allow_mode_override") // else the server asks for them
		})
	}, plugin: func(cfg map[string]any) {
		section(cfg, "budget")["limit"] = "100MiB"
		b := section(cfg, "buffers")
		b["downstream"], b["upstream"] = "1MiB", "1MiB"
	}})
	for range 20 {
		require.Equal(t, http.StatusOK, s.status(http.DefaultClient, "/upload", 100))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
	defer cancel()
	var sampler load.Sampler
	var running sync.WaitGroup
	running.Go(func() {
		sampler.Run(ctx, 10*time.Millisecond, func(ctx context.Context) (load.Reading, error) {
			m, err := s.Memory(ctx)
			return load.Reading{Allocated: m.Allocated, InUse: m.InUse()}, err
		})
	})
	readers := &load.SlowReaders{Addr: s.Addr("ingress"), Count: 150, Size: 16 * mib, Length: true}
	readers.Run(ctx)
	cancel()
	running.Wait()
	peak, _, _ := sampler.Peak()
	got := readers.Snapshot()
	t.Logf("peak %d MiB of 100, %d served, %d rejected", peak.Allocated/mib, got.Served, got.Rejected)
	require.LessOrEqual(t, peak.Allocated, int64(100*mib))
	require.Positive(t, got.Served)
	require.Zero(t, got.Errors+got.Cut)
	require.Contains(t, s.Logs(), "set response_header_mode: SEND")
}

func TestServerReloads(t *testing.T) {
	config := map[string]any{}
	s := start(t, setup{face: envoytest.ExtProc, fake: 40 * mib, plugin: func(cfg map[string]any) { config = cfg }})
	section(config, "budget")["limit"] = "300MiB"
	require.NoError(t, s.Server().Configure(config))
	s.gauge("highwater_limit_bytes", 300*mib)
	section(config, "budget")["resume"] = "99%"
	require.NoError(t, s.Server().Configure(config))
	logged := func(text string) {
		t.Helper()
		require.Eventually(t, func() bool { return strings.Contains(s.Server().Logs(), text) }, 10*time.Second, 10*time.Millisecond, text)
	}
	logged("budget.resume: 99% must be above 0% and below budget.soft")
	s.gauge("highwater_limit_bytes", 300*mib)
	delete(section(config, "budget"), "resume")
	section(config, "budget")["connections"] = 5
	require.NoError(t, s.Server().Configure(config))
	logged("envoy.resource_monitors.global_downstream_max_connections")
	delete(section(config, "budget"), "connections")
	section(config, "budget")["limit"] = "250MiB"
	require.NoError(t, s.Server().Configure(config))
	require.NoError(t, s.Server().Signal(syscall.SIGHUP))
	s.gauge("highwater_limit_bytes", 250*mib)
	// Readings may come from elsewhere.
	section(config, "memory")["path"] = "/elsewhere"
	require.NoError(t, s.Server().Configure(config))
	s.memory.set(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			_, _ = io.WriteString(w, `{"allocated":"77","heap_size":"77000000","pageheap_unmapped":"0","pageheap_free":"0"}`)
		}
	})
	s.gauge("highwater_in_use_bytes", 77_000_000)
	require.Equal(t, 200, do(t, client(t, false), http.MethodGet, s.url("/small"), nil, 0).StatusCode)
}

// More requests at once than Envoy's default circuit breaker, each a stream on the server: none is
// rejected, and each is counted.
func TestServerHoldsManyStreams(t *testing.T) {
	s := start(t, setup{face: envoytest.ExtProc, workers: 2})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	l := &load.IdleStreams{Addr: s.addr, Streams: 1500, Bytes: 1000}
	var running sync.WaitGroup
	running.Go(func() { l.Run(ctx) })
	_, err := s.Until(t.Context(), "highwater", func(m map[string]float64) bool { return m["wasmcustom.highwater_streams"] == 1500 })
	require.NoError(t, err)
	cancel()
	running.Wait()
	s.drained()
	require.Zero(t, l.Snapshot().Errors)
	s.quiet()
}

var soak = flag.Duration("soak", 3*time.Second, "how long TestServerSoak and TestSoakOfTheModule last")

// abrupt is mixed load, with slow readers, streams that stay and clients that reset.
func abrupt(addr string) []load.Load {
	return append(mixed(addr, 0), &load.SlowReaders{Addr: addr, Count: 20, Size: mib},
		&load.Uploads{Addr: addr, Path: "/upload?delay=50ms", Count: 10, Size: 4 * mib, Protocol: load.HTTP2, Chunked: true},
		&load.Echoes{Addr: addr, Streams: 20, Size: 10_000, Pause: 10 * time.Millisecond},
		&load.Hostile{Addr: addr, Kind: load.Resets, Count: 10}, &load.Hostile{Addr: addr, Kind: load.RapidReset, Count: 1})
}

// inTurns runs each load for half a second, then all its clients are gone at once, and again.
func inTurns(ctx context.Context, running *sync.WaitGroup, loads []load.Load) {
	for _, l := range loads {
		running.Go(func() {
			for ctx.Err() == nil {
				part, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
				l.Run(part)
				cancel()
			}
		})
	}
}

// Mixed load with clients that hang up at any moment, and memory that is short every now and then:
// in the end goroutines, memory and what is charged are what they were.
func TestServerSoak(t *testing.T) {
	s := start(t, setup{face: envoytest.ExtProc, workers: 2, fake: 40 * mib, plugin: func(cfg map[string]any) {
		section(cfg, "throttle")["timeout"] = "200ms"
	}})
	metric := func(name string) float64 {
		res, err := http.Get("http://" + s.Server().HTTP + "/metrics")
		require.NoError(t, err)
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			if v, ok := strings.CutPrefix(line, name+" "); ok {
				n, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
				require.NoError(t, err)
				return n
			}
		}
		require.Fail(t, "no metric", name)
		return 0
	}
	run := func(d time.Duration) {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		var running sync.WaitGroup
		inTurns(ctx, &running, abrupt(s.addr))
		for i := 0; ctx.Err() == nil; i++ {
			s.memory.inUse.Store([]int64{40 * mib, 172 * mib, 40 * mib, 230 * mib}[i%4])
			load.Sleep(ctx, 150*time.Millisecond)
		}
		running.Wait()
		s.memory.inUse.Store(40 * mib)
		s.drained()
	}
	run(3 * time.Second) // everything has been there once
	goroutines, heap := metric("go_goroutines"), metric("process_resident_memory_bytes")
	run(*soak)
	require.Eventually(t, func() bool { return metric("go_goroutines") <= goroutines+2 }, 20*time.Second, 100*time.Millisecond)
	after := metric("process_resident_memory_bytes")
	t.Logf("resident: %.1f MiB before, %.1f after; %v requests admitted", heap/mib, after/mib, metric("highwater_admitted_total"))
	require.Less(t, after, heap+16*mib)
	require.Zero(t, metric("highwater_ext_proc_faults_total"))
	for _, reason := range []string{"not_a_message", "unknown_message", "out_of_order", "twice", "no_headers", "too_large", "attribute"} {
		require.Zero(t, metric(`highwater_ext_proc_bad_streams_total{reason="`+reason+`"}`), reason)
	}
	// What Envoy sends is answered, or its stream ends: however it does, nothing is owed.
	require.Positive(t, metric(`highwater_rejected_total{reason="evicted"}`))
	require.Positive(t, metric("highwater_throttled_total"))
	require.Positive(t, metric(`grpc_server_handled_total{grpc_code="OK",grpc_method="Process"}`))
	require.Zero(t, metric("grpc_server_broken_connections_total"))
	require.Eventually(t, func() bool { return metric("highwater_ext_proc_unanswered_bytes") == 0 }, 5*time.Second, 50*time.Millisecond)
}

// With Envoy's default buffers, what came of an upload without a length while it waited reaches the
// server in one message: 10 bytes more than 1 MiB on HTTP/1, and 2.1 MB behind an HTTP/2 window of
// 2 MiB. It is no reason to end the stream.
func TestServerTakesWhatCameWhileAnUploadWaited(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		t.Run(map[bool]string{false: "HTTP/1", true: "HTTP/2"}[http2], func(t *testing.T) {
			s := start(t, setup{face: envoytest.ExtProc, workers: 1, fake: 40 * mib, plugin: func(cfg map[string]any) {
				section(cfg, "throttle")["timeout"] = "10s"
				cfg["buffers"] = map[string]any{"http2_window": "2MiB"}
			}, edit: func(c envoytest.Config) {
				c.SetBuffers(mib, mib)
				c.SetHTTP2(2*mib, 24*mib, 100)
				c.SetExtProc(func(filter map[string]any) { filter["message_timeout"], filter["failure_mode_allow"] = "15s", false })
			}})
			upload := func() int { return do(t, client(t, http2), "POST", s.url("/upload"), zeros(8*mib), -1).StatusCode }
			require.Equal(t, 200, upload()) // so that it is known to be large
			s.reading(183 * mib)
			var status int
			var running sync.WaitGroup
			running.Go(func() { status = upload() })
			s.gauge("highwater_waiting", 1)
			load.Sleep(t.Context(), 300*time.Millisecond) // for what comes meanwhile
			s.memory.inUse.Store(40 * mib)
			running.Wait()
			require.Equal(t, 200, status)
			res, err := http.Get("http://" + s.Server().HTTP + "/metrics")
			require.NoError(t, err)
			defer res.Body.Close()
			text, err := io.ReadAll(res.Body)
			require.NoError(t, err)
			require.Contains(t, string(text), `highwater_ext_proc_bad_streams_total{reason="too_large"} 0`)
		})
	}
}
