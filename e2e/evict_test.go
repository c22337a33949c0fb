package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// Memory goes over the limit again and again, with requests in every phase on HTTP/1 and on shared
// HTTP/2 connections: some wait in line, some for their upstream, some are being read, of some the
// rest lies unread. What is ended, cut and closed in one tick must be what Envoy survives, whatever
// meets there; and small requests hardly notice.
func TestEvict(t *testing.T) {
	forFaces(t, func(t *testing.T, b base) {
		s := b.start(t, setup{fake: 40 * mib, plugin: func(cfg map[string]any) {
			section(cfg, "throttle")["timeout"] = "100ms" // rejects at the same ticks
		}})
		ctx, cancel := context.WithTimeout(t.Context(), 6*time.Second)
		defer cancel()
		var running sync.WaitGroup
		for _, protocol := range []load.Protocol{load.HTTP1, load.HTTP2} {
			for _, l := range []load.Load{
				&load.SlowReaders{Addr: s.addr, Count: 30, Size: 4 * mib, Length: true, Protocol: protocol},
				&load.SlowReaders{Addr: s.addr, Count: 30, Size: 100_000, Protocol: protocol}, // ended, and unread
				&load.Uploads{Addr: s.addr, Path: "/upload?delay=300ms", Count: 30, Size: mib, Protocol: protocol},
			} {
				running.Go(func() { l.Run(ctx) })
			}
		}
		small := &load.Small{Addr: s.addr, Rate: 100}
		running.Go(func() { small.Run(ctx) })
		for over := false; ctx.Err() == nil; over = !over {
			s.memory.inUse.Store(100 * mib)
			if over {
				s.memory.inUse.Store(230 * mib)
			}
			load.Sleep(ctx, 150*time.Millisecond)
		}
		running.Wait()
		s.memory.inUse.Store(40 * mib)

		stats, err := s.Stats(t.Context(), "highwater")
		require.NoError(t, err)
		require.Greater(t, stats["wasmcustom.highwater_rejected_total.reason.evicted"], 20.)
		got := small.Snapshot()
		// This reading does not fall however many are evicted, so that one or the other waits as
		// long as it may.
		require.GreaterOrEqual(t, got.Served, got.Started*98/100, "%+v", got)
		c := client(t, false)
		require.Equal(t, http.StatusOK, do(t, c, http.MethodGet, s.url("/small"), nil, 0).StatusCode)
		require.Empty(t, envoytest.Faults(s.Logs()))
		s.drained(c.CloseIdleConnections)
	})
}

// Who is ended in mid-upload, with all buffers full and a client that sends on, has his answer, and
// leaves nothing in Envoy, also while his connection lingers: other than who is rejected at his
// headers, of whom all that has come with them stays.
func TestWhoIsEndedInMidUploadLeavesNothing(t *testing.T) {
	const uploads, linger = 20, 10 * time.Second
	defaults := nobodyWaits()
	for _, c := range []struct {
		reason  string
		reading int64
		answers bool
	}{
		{"evicted", 4 << 30, false},   // all of them at once
		{"response", 199 * mib, true}, // there is no room for it
	} {
		t.Run(c.reason, func(t *testing.T) {
			upstream := listenDeaf(t)
			s := start(t, setup{
				workers: 1, fake: 40 * mib, upstream: upstream.Addr().String(),
				plugin: func(cfg map[string]any) {
					defaults.plugin(cfg)
					section(cfg, "buffers")["linger"], section(cfg, "buffers")["whole_request"] = linger.String(), 0
					cfg["evict"] = !c.answers
				},
				edit: func(c envoytest.Config) {
					defaults.edit(c)
					c.SetLinger(linger)
				},
			})
			allocated := func() int64 {
				m, err := s.Memory(t.Context())
				require.NoError(t, err)
				return m.Allocated
			}
			before := allocated()
			var clients []net.Conn
			for range uploads {
				client := s.dial(upload("content-length: 16777216", "/sink"))
				clients = append(clients, client)
				go func() { _, _ = client.Write(make([]byte, large)) }()
			}
			s.streams(uploads)
			require.Eventually(t, func() bool { return allocated() > before+uploads*mib }, 20*time.Second, 10*time.Millisecond, "its buffers fill")
			// Of what still passes when memory is over, each piece would be rejected for its
			// growth.
			last := allocated()
			require.Eventually(t, func() bool {
				was := last
				last = allocated()
				return last < was+mib/16 && last > was-mib/16
			}, 20*time.Second, 500*time.Millisecond, "its buffers are full")
			held := last - before

			s.memory.inUse.Store(c.reading)
			if c.answers {
				s.reading(c.reading)
				upstream.answer("HTTP/1.1 200 OK\r\ncontent-length: 16777216\r\n\r\n")
			}
			s.counter("highwater_rejected_total.reason."+c.reason, uploads)
			s.memory.inUse.Store(40 * mib) // at once, else idle connections are closed
			s.streams(0)
			for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				require.Less(t, allocated(), before+held/8)
			}
			s.gauge("highwater_connections", uploads) // they linger yet
			for _, c := range clients {
				require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
				answer := make([]byte, len("HTTP/1.1 503"))
				_, err := io.ReadFull(c, answer)
				require.NoError(t, err)
				require.Equal(t, "HTTP/1.1 503", string(answer))
			}
			require.Empty(t, envoytest.Faults(s.Logs()))
		})
	}
}

// deaf is an upstream that reads nothing.
type deaf struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func listenDeaf(t *testing.T) *deaf {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	d := &deaf{Listener: l}
	t.Cleanup(func() {
		l.Close()
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, c := range d.conns {
			c.Close()
		}
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.mu.Lock()
			d.conns = append(d.conns, c)
			d.mu.Unlock()
		}
	}()
	return d
}

// answer begins the response of each.
func (d *deaf) answer(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, c := range d.conns {
		_, _ = io.WriteString(c, text)
	}
}

// phases are what a request can be in when it is ended: each begins one, and returns when it waits
// in the queue, is being sent or has come to the upstream.
var phases = []struct {
	name  string
	begin func(s *scene, c *http.Client, done func())
}{
	{"waiting in line", func(s *scene, c *http.Client, done func()) {
		s.reading(full)
		go func() {
			defer done()
			s.send(c, "/upload", zeros(large), large)
		}()
		s.waiting(1)
	}},
	{"sending", func(s *scene, c *http.Client, done func()) {
		r, w := io.Pipe()
		s.t.Cleanup(func() { w.Close() })
		go func() {
			defer done()
			s.send(c, "/upload", r, mib)
		}()
		_, err := w.Write(make([]byte, 200_000))
		require.NoError(s.t, err)
	}},
	{"at the upstream", func(s *scene, c *http.Client, done func()) {
		s.reaches(func() {
			defer done()
			s.send(c, "/upload?delay=10s", zeros(200_000), 200_000)
		})
	}},
	{"being read", func(s *scene, c *http.Client, done func()) {
		s.reaches(func() {
			defer done()
			s.stall(c, "/bytes?n=16000000")
		})
	}},
	{"ended and unread", func(s *scene, c *http.Client, done func()) {
		s.reaches(func() {
			defer done()
			s.stall(c, "/bytes?n=150000")
		})
	}},
}

// reaches lets a request run, until it has come to the upstream.
func (s *scene) reaches(request func()) {
	s.t.Helper()
	before := s.upstream.Total()
	go request()
	require.Eventually(s.t, func() bool { return s.upstream.Total() > before }, 20*time.Second, time.Millisecond)
}

func (s *scene) send(c *http.Client, path string, body io.Reader, n int64) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url(path), body)
	if err != nil {
		panic(err)
	}
	req.ContentLength = n
	if res, err := c.Do(req); err == nil {
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
}

// stall asks for something and does not read it, until Envoy ends it or the test does.
func (s *scene) stall(c *http.Client, path string) {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url(path), nil)
	if err != nil {
		panic(err)
	}
	res, err := c.Do(req)
	if err != nil {
		return
	}
	defer res.Body.Close()
	time.Sleep(time.Second)
	_, _ = io.Copy(io.Discard, res.Body)
}

// Whatever two requests of one connection, or of two, are ended in one tick, in whatever phase each
// is: Envoy survives, and both are gone.
func TestEveryPairEndsInOneTick(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		s := b.start(t, setup{fake: 40 * mib, plugin: func(cfg map[string]any) {
			section(cfg, "throttle")["timeout"] = "2s"     // on a busy machine it takes a while until it is seen to wait
			cfg["fairness"] = map[string]any{"by": "none"} // else a route that has little does not wait
		}})
		evicted := 0.
		for _, http2 := range []bool{false, true} {
			for i, a := range phases {
				for _, b := range phases[i:] {
					name := fmt.Sprintf("%s and %s, HTTP/2 %v", a.name, b.name, http2)
					c := client(t, http2)
					// Small windows: what is not read stays in Envoy.
					c.Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 65536, MaxReceiveBufferPerConnection: 1 << 20}
					s.reading(40 * mib)
					var ended sync.WaitGroup
					ended.Add(2)
					b.begin(s, c, ended.Done)
					a.begin(s, c, ended.Done) // who waits in the queue is last
					s.memory.inUse.Store(230 * mib)
					gone := make(chan struct{})
					go func() { ended.Wait(); close(gone) }()
					select {
					case <-gone:
					case <-time.After(20 * time.Second):
						t.Fatalf("%s: a client was not told", name)
					}
					require.Empty(t, envoytest.Faults(s.Logs()), name)
					s.memory.inUse.Store(40 * mib)
					c.CloseIdleConnections()
					s.streams(0)
					stats, err := s.Stats(t.Context(), "highwater_rejected_total")
					require.NoError(t, err, name)
					evicted = stats["wasmcustom.highwater_rejected_total.reason.evicted"]
				}
			}
		}
		require.GreaterOrEqual(t, evicted, 30., "they were to be evicted, not to end by themselves")
		require.Equal(t, http.StatusOK, do(t, client(t, false), http.MethodGet, s.url("/small"), nil, 0).StatusCode)
	})
}
