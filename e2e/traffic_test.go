package e2e

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

func do(t *testing.T, c *http.Client, method, url string, body io.Reader, length int64) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, body)
	require.NoError(t, err)
	req.ContentLength = length
	res, err := c.Do(req)
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	return res
}

func TestHealthyTrafficIsNotTouched(t *testing.T) {
	forFaces(t, func(t *testing.T, b base) {
		s := b.start(t, setup{})
		for _, http2 := range []bool{false, true} {
			c := client(t, http2)
			for range 20 {
				require.Equal(t, 200, do(t, c, "GET", s.url("/small"), nil, 0).StatusCode)
				require.Equal(t, 200, do(t, c, "POST", s.url("/upload?delay=0s"), zeros(4*mib), 4*mib).StatusCode)
				require.Equal(t, 200, do(t, c, "POST", s.url("/upload?delay=0s"), zeros(mib), -1).StatusCode)
				require.Equal(t, 200, do(t, c, "GET", s.url("/bytes?n=1000000"), nil, 0).StatusCode)
				require.Equal(t, 200, do(t, c, "GET", s.url("/bytes?n=1000000&length=0"), nil, 0).StatusCode)
				require.Equal(t, 200, do(t, c, "HEAD", s.url("/bytes?n=1000000"), nil, 0).StatusCode)
			}
			c.CloseIdleConnections()
		}
		s.drained()
		s.quiet()
		s.counter("highwater_admitted_total", 240)
	})
}

func TestGRPC(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		server := grpc.NewServer()
		healthpb.RegisterHealthServer(server, health.NewServer())
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(server.Stop)
		s := b.start(t, setup{fake: 40 * mib, upstream: listener.Addr().String(), plugin: func(cfg map[string]any) {
			section(cfg, "throttle")["timeout"] = "0s"
			section(cfg, "memory")["on_stale"] = "reject"
		}})
		conn, err := grpc.NewClient(s.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		defer conn.Close()
		client := healthpb.NewHealthClient(conn)
		check := func(header *metadata.MD) error {
			_, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{}, grpc.Header(header), grpc.Trailer(header))
			return err
		}
		for range 10 {
			require.NoError(t, check(&metadata.MD{}))
		}
		watch, err := client.Watch(t.Context(), &healthpb.HealthCheckRequest{})
		require.NoError(t, err)
		_, err = watch.Recv()
		require.NoError(t, err, "a stream")
		s.quiet()

		s.memory.set(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) })
		require.Eventually(t, func() bool {
			md := metadata.MD{}
			err := check(&md)
			return status.Code(err) == codes.ResourceExhausted && strings.Contains(status.Convert(err).Message(), "no_reading") &&
				len(md.Get("grpc-retry-pushback-ms")) == 1 && len(md.Get("x-highwater-reason")) == 1
		}, 10*time.Second, 20*time.Millisecond, "a reject is status 8 with a pushback")
		require.NoError(t, conn.Close())
		s.memory.set(nil)
		s.drained()
	})
}

// With the reading at its limit, large requests wait, and then go on or are rejected.
func TestWaiting(t *testing.T) {
	forFaces(t, func(t *testing.T, b base) {
		for _, http2 := range []bool{false, true} {
			name := map[bool]string{false: "HTTP/1", true: "HTTP/2"}[http2]
			t.Run(name, func(t *testing.T) {
				s := b.start(t, setup{fake: 40 * mib, plugin: func(cfg map[string]any) {
					section(cfg, "throttle")["timeout"] = "4s"
				}})
				s.reading(full)
				c := client(t, http2)
				require.Equal(t, 200, do(t, c, "GET", s.url("/small"), nil, 0).StatusCode, "small ones pass")

				var uploads sync.WaitGroup
				codes := make(chan int, 8)
				for i := range 8 {
					uploads.Go(func() {
						if i%2 == 1 {
							codes <- do(t, c, "POST", s.url("/upload?delay=0s"), zeros(mib), -1).StatusCode
							return
						}
						codes <- do(t, c, "POST", s.url("/upload?delay=0s"), zeros(large), large).StatusCode
					})
				}
				s.waiting(4) // those without a length are forecast small at first, and go on
				s.reading(60 * mib)
				uploads.Wait()
				close(codes)
				for code := range codes {
					require.Equal(t, 200, code)
				}
				s.counter("highwater_throttled_total", 4)

				// And those for whom there is no room in time are told when to come back.
				s.reading(full)
				res := s.refused(c, http2)
				require.Equal(t, 503, res.StatusCode)
				require.Equal(t, "timeout", res.Header.Get("x-highwater-reason"))
				require.NotEmpty(t, res.Header.Get("retry-after"))
				s.reading(200*mib - 50_000)
				require.Equal(t, 503, do(t, c, "GET", s.url("/bytes?n=3000000"), nil, 0).StatusCode, "a large response has no room")
				s.reading(40 * mib)
				s.drained(c.CloseIdleConnections)
			})
		}
	})
}

func (s *scene) waiting(n float64) {
	s.t.Helper()
	_, err := s.Until(s.t.Context(), "highwater_waiting", func(m map[string]float64) bool {
		return m["wasmcustom.highwater_waiting"] >= n
	})
	require.NoError(s.t, err)
}

func (m *memoryPage) set(answer func(http.ResponseWriter, *http.Request)) { m.answer.Store(answer) }

func TestHangUpInEveryPhase(t *testing.T) {
	forFaces(t, func(t *testing.T, b base) {
		s := b.start(t, setup{fake: 40 * mib, plugin: func(cfg map[string]any) {
			cfg["fairness"] = map[string]any{"by": "none"} // else a route that has little does not wait
			section(cfg, "throttle")["timeout"] = "10s"
		}})
		body := strings.Repeat("x", 100_000)
		t.Run("before any byte", func(t *testing.T) { s.dial("").Close(); s.drained() })
		t.Run("in the headers", func(t *testing.T) { s.dial("POST /upload HTTP/1.1\r\nho").Close(); s.drained() })
		t.Run("in an upload", func(t *testing.T) {
			c := s.dial(upload("content-length: 4194304") + body)
			s.streams(1)
			c.Close()
			s.drained()
		})
		t.Run("in a chunked upload", func(t *testing.T) {
			c := s.dial(upload("transfer-encoding: chunked") + "186a0\r\n" + body)
			s.streams(1)
			c.Close()
			s.drained()
		})
		t.Run("while the upstream works", func(t *testing.T) {
			c := s.dial(upload("content-length: 100000", "/upload?delay=5s") + body)
			s.streams(1)
			c.Close()
			s.drained()
		})
		t.Run("in the response", func(t *testing.T) {
			c := s.dial("GET /bytes?n=100000000 HTTP/1.1\r\nhost: test\r\n\r\n")
			require.Equal(t, 200, answer(t, c).StatusCode)
			c.Close()
			s.drained()
		})
		t.Run("while it waits", func(t *testing.T) {
			s.reading(full)
			var cs []net.Conn
			for range 5 {
				cs = append(cs, s.dial(upload("content-length: 16777216")+body))
			}
			s.waiting(5)
			for _, c := range cs {
				c.Close()
			}
			s.drained()
			s.reading(40 * mib)
		})
		t.Run("with a reset", func(t *testing.T) {
			s.reading(full)
			c := s.dial(upload("content-length: 16777216") + body)
			s.waiting(1)
			require.NoError(t, c.(*net.TCPConn).SetLinger(0))
			c.Close()
			s.drained()
			s.reading(40 * mib)
		})
		t.Run("HTTP/2 streams that wait are reset", func(t *testing.T) {
			s.reading(full)
			c := client(t, true)
			ctx, cancel := context.WithCancel(t.Context())
			var uploads sync.WaitGroup
			for range 5 {
				uploads.Go(func() {
					req, _ := http.NewRequestWithContext(ctx, http.MethodPost, s.url("/upload"), zeros(large))
					req.ContentLength = large
					if res, err := c.Do(req); err == nil {
						res.Body.Close()
					}
				})
			}
			s.waiting(5)
			cancel()
			uploads.Wait()
			s.drained(c.CloseIdleConnections)
		})
	})
}

func (s *scene) streams(n float64) {
	s.t.Helper()
	_, err := s.Until(s.t.Context(), "highwater_streams", func(m map[string]float64) bool {
		return m["wasmcustom.highwater_streams"] == n
	})
	require.NoError(s.t, err)
}

// nobodyWaits, and what is rejected leaves much for long: buffers and delayed_close_timeout are
// Envoy's defaults.
func nobodyWaits() setup {
	return setup{
		fake: 40 * mib,
		plugin: func(cfg map[string]any) {
			section(cfg, "throttle")["timeout"] = "0s"
			b := section(cfg, "buffers")
			b["downstream"], b["upstream"], b["linger"] = "1MiB", "1MiB", "1s"
		},
		edit: func(c envoytest.Config) { c.SetBuffers(mib, mib); c.SetLinger(time.Second) },
	}
}

// With Envoy's default buffers a reject would leave megabytes unread: the connection is closed
// instead, and a client that hangs up between the verdict and that is no harm.
func TestRejectWithoutRoomClosesTheConnection(t *testing.T) {
	s := start(t, nobodyWaits())
	s.reading(199 * mib)
	for range 20 {
		s.dial(upload("content-length: 4194304") + strings.Repeat("x", 100_000)).Close()
	}
	c := s.dial(upload("content-length: 4194304") + strings.Repeat("x", 100_000))
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := io.ReadAll(c)
	if err != nil { // a reset, because Envoy had not read all
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	s.counter("highwater_closed_connections_total", 1)
	s.drained()
	require.Equal(t, 200, do(t, client(t, false), "GET", s.url("/small"), nil, 0).StatusCode)
}

// While connections wait to be closed for want of room, new ones that begin with an upload are
// closed at their first bytes: Envoy never sees a request on them. Else a pass of its event loop
// reads a buffer of each before any of them is gone.
func TestUploadsWithoutRoomAreClosedAtTheirFirstBytes(t *testing.T) {
	const uploads = 100
	run := func(t *testing.T, exempt bool) (connections, requests int) {
		t.Helper()
		setup := nobodyWaits()
		setup.workers = 1
		if exempt {
			plugin := setup.plugin
			setup.plugin = func(cfg map[string]any) {
				plugin(cfg)
				cfg["exempt"] = []any{map[string]any{"route": "nobody"}} // who is exempt can't be told at the first bytes
			}
		}
		s := start(t, setup)
		s.reading(199 * mib)
		text := upload("content-length: 4194304") + strings.Repeat("x", 2*mib)
		var clients sync.WaitGroup
		var hang atomic.Int64
		for range uploads {
			c, err := net.Dial("tcp", s.addr)
			require.NoError(t, err)
			clients.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(10 * time.Second))
				_, _ = io.WriteString(c, text) // fails where the connection is closed meanwhile
				if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
					hang.Add(1)
				}
			})
		}
		clients.Wait()
		require.Zero(t, hang.Load(), "each is closed, with an answer or without")
		stats, err := s.Stats(t.Context(), "http.ingress.downstream")
		require.NoError(t, err)
		s.drained()
		require.Equal(t, 200, do(t, client(t, false), "GET", s.url("/small"), nil, 0).StatusCode)
		require.Empty(t, envoytest.Faults(s.Logs()))
		return int(stats["http.ingress.downstream_cx_total"]), int(stats["http.ingress.downstream_rq_total"])
	}
	connections, requests := run(t, false)
	require.GreaterOrEqual(t, connections, uploads)
	require.Less(t, requests, connections-10, "some were closed before they were requests")
	connections, requests = run(t, true)
	require.GreaterOrEqual(t, connections, uploads)
	require.Equal(t, connections, requests, "none is, where one might be exempt")
}

func TestExpectContinueIsRejectedCleanly(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		s := b.start(t, setup{fake: 40 * mib, plugin: func(cfg map[string]any) { section(cfg, "throttle")["timeout"] = "100ms" }})
		s.reading(full)
		c := s.dial(upload("content-length: 16777216\r\nexpect: 100-continue"))
		require.Equal(t, 100, answer(t, c).StatusCode, "Envoy's own")
		require.Equal(t, 503, answer(t, c).StatusCode)
		c.Close()
		s.reading(40 * mib)
		c = s.dial(upload("content-length: 4\r\nexpect: 100-continue", "/upload?delay=0s"))
		require.Equal(t, 100, answer(t, c).StatusCode)
		_, err := io.WriteString(c, "body")
		require.NoError(t, err)
		require.Equal(t, 200, answer(t, c).StatusCode)
		c.Close()
		s.drained()
	})
}

func TestUpstreamResets(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		upstream, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer upstream.Close()
		go func() {
			for i := 0; ; i++ {
				c, err := upstream.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					buf := make([]byte, 64<<10)
					if _, err := c.Read(buf); err != nil || i%3 == 0 {
						return // before an answer
					}
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
					if i%3 == 2 {
						_, _ = c.Write(buf) // in the middle of its body
					}
					_ = c.(*net.TCPConn).SetLinger(0)
				}()
			}
		}()
		s := b.start(t, setup{upstream: upstream.Addr().String()})
		c := client(t, false)
		for range 12 {
			if res, err := c.Post(s.url("/upload"), "text/plain", zeros(200_000)); err == nil {
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
		}
		s.drained(c.CloseIdleConnections)
		s.quiet()
	})
}

func TestTrailersEndBodies(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		s := b.start(t, setup{fake: 40 * mib, edit: func(c envoytest.Config) {
			c.SetConnectionManager(func(hcm map[string]any) {
				hcm["http_protocol_options"] = map[string]any{"enable_trailers": true}
			})
		}})
		c := s.dial(upload("transfer-encoding: chunked\r\ntrailer: x", "/upload?delay=2s") + "5\r\nhello\r\n0\r\nx: y\r\n\r\n")
		_, err := s.Until(t.Context(), "highwater", func(m map[string]float64) bool {
			return m["wasmcustom.highwater_streams"] == 1 && m["wasmcustom.highwater_coming_bytes"] == 0
		})
		require.NoError(t, err, "the forecast is taken back at the trailers, not only when the stream ends")
		require.Equal(t, 200, answer(t, c).StatusCode)
		c.Close()
		s.drained()
	})
}

func TestObserve(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		s := b.start(t, setup{fake: 40 * mib, plugin: func(cfg map[string]any) { cfg["mode"] = "observe" }})
		s.reading(205 * mib)
		c := client(t, false)
		for range 5 {
			require.Equal(t, 200, do(t, c, "POST", s.url("/upload?delay=0s"), zeros(4*mib), 4*mib).StatusCode)
			require.Equal(t, 200, do(t, c, "GET", s.url("/bytes?n=1000000"), nil, 0).StatusCode)
		}
		s.drained(c.CloseIdleConnections)
		// Each upload. Whether a response is too depends on what the shadows of the uploads held:
		// that is taken out of the readings.
		s.turnedAway(5)
	})
}

func TestWithoutAReading(t *testing.T) {
	forEachFace(t, func(t *testing.T, b base) {
		stop := make(chan struct{})
		t.Cleanup(func() { close(stop) })
		for name, broken := range map[string]func(http.ResponseWriter, *http.Request){
			"403":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) },
			"garbage": func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
			"empty":   func(http.ResponseWriter, *http.Request) {},
			"hangs": func(_ http.ResponseWriter, r *http.Request) {
				select {
				case <-r.Context().Done():
				case <-stop:
				}
			},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel() // it waits for most of its time
				s := b.start(t, setup{fake: 40 * mib})
				s.reading(199 * mib)
				s.memory.set(broken)
				s.gauge("highwater_blind", 1)
				require.Eventually(t, func() bool { return s.LogMatches("no reading .*on_stale is estimate") }, 10*time.Second, 50*time.Millisecond)
				c := client(t, false)
				require.Equal(t, 200, do(t, c, "GET", s.url("/small"), nil, 0).StatusCode)
				require.Equal(t, 200, do(t, c, "POST", s.url("/upload?delay=0s"), zeros(4*mib), 4*mib).StatusCode,
					"a frozen reading of 199 of 200 MiB must not lock everyone out")
				c.CloseIdleConnections()
				s.memory.set(nil)
				s.reading(50 * mib)
				require.True(t, s.LogMatches("readings of Envoy's memory are back after"))
				s.gauge("highwater_blind", 0)
				s.drained()
			})
		}
	})
}

// A fault beyond recover ends the virtual machine of one worker. Envoy brings it back with the next
// request, and what it had in the table is forgotten.
func TestTrap(t *testing.T) {
	root, err := envoytestRoot()
	require.NoError(t, err)
	forWorkers(t, func(t *testing.T, workers int) {
		s := start(t, setup{workers: workers, wasm: filepath.Join(root, "build", "highwater-trap.wasm")})
		c := client(t, false)
		c.Transport.(*http.Transport).DisableKeepAlives = true
		open := s.dial("GET /bytes?n=100000000 HTTP/1.1\r\nhost: test\r\n\r\n")
		require.Equal(t, 200, answer(t, open).StatusCode)
		s.streams(1)
		for range 3 * workers { // until each worker had one
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url("/small"), nil)
			require.NoError(t, err)
			req.Header.Set("x-test-trap", "1")
			if res, err := c.Do(req); err == nil {
				res.Body.Close()
			}
		}
		served := func() bool {
			res, err := c.Get(s.url("/small"))
			if err != nil {
				return false
			}
			res.Body.Close()
			return res.StatusCode == http.StatusOK
		}
		require.True(t, s.LogMatches("Uncaught RuntimeError"), "nothing has faulted")
		require.Eventually(t, served, 20*time.Second, 50*time.Millisecond, "it is brought back")
		open.Close()
		for range 10 {
			require.Eventually(t, served, 20*time.Second, 50*time.Millisecond)
		}
		s.drained()
	})
}

// A fault with 100 requests waiting and 30 uploads under way: those of the virtual machine that
// faulted are lost, as ENVOY-FACTS says, and nobody else; 3 s later no worker counts anything of
// them.
func TestTrapUnderLoad(t *testing.T) {
	root, err := envoytestRoot()
	require.NoError(t, err)
	for _, where := range []string{"request", "tick"} {
		t.Run("in a "+where, func(t *testing.T) {
			s := start(t, setup{
				workers: 2, fake: 40 * mib, wasm: filepath.Join(root, "build", "highwater-trap.wasm"), plugin: patient,
			})
			// Thirty are under way, and what comes after them waits.
			var uploading []net.Conn
			for range 30 {
				c := s.dial(upload("content-length: 4194304", "/upload?delay=0s") + strings.Repeat("x", 1000))
				uploading = append(uploading, c)
			}
			s.streams(30)
			s.gauge("highwater_coming_bytes", 0) // they dawdle
			var waiting []net.Conn
			for range 100 {
				if len(waiting)%20 == 0 {
					s.waiting(float64(len(waiting)))
					s.reading(full) // so that it holds what the others brought
				}
				waiting = append(waiting, s.dial(upload("content-length: 16777216", "/upload?delay=0s")+strings.Repeat("x", 1000)))
			}
			s.waiting(100)

			// Its own connection: the kernel gives it to either worker.
			trap := s.dial("GET /small HTTP/1.1\r\nhost: test\r\nx-test-trap: " + where + "\r\n\r\n")
			defer trap.Close()
			begun := time.Now()
			c := client(t, false)
			c.Transport.(*http.Transport).DisableKeepAlives = true
			served, lost := 0, 0
			for time.Since(begun) < 3*time.Second {
				res, err := c.Get(s.url("/small"))
				if err == nil {
					res.Body.Close()
				}
				if err == nil && res.StatusCode == http.StatusOK {
					served++
				} else {
					lost++
				}
			}
			require.True(t, s.LogMatches("Uncaught RuntimeError"), "nothing has faulted")
			require.Greater(t, served, lost, "the other worker serves, and this one is back")

			// What is still counted is the other worker's alone, and all of it is served.
			last, since := -1.0, time.Now()
			stats, err := s.Until(t.Context(), "highwater", func(m map[string]float64) bool { // when the small ones have gone
				if n := m["wasmcustom.highwater_streams"]; n != last {
					last, since = n, time.Now()
				}
				return time.Since(since) > 500*time.Millisecond
			})
			require.NoError(t, err)
			counted := func(name string) int { return int(stats["wasmcustom.highwater_"+name]) }
			t.Logf("%d small ones served, %d lost; of 30 uploads and 100 that wait %d and %d are counted", served, lost, counted("streams")-counted("waiting"), counted("waiting"))
			s.reading(40 * mib)
			finished := func(conns []net.Conn, rest int64) (n int) {
				for _, conn := range conns {
					go func() { _, _ = io.Copy(conn, zeros(rest)) }()
				}
				deadline := time.Now().Add(5 * time.Second)
				for _, conn := range conns {
					_ = conn.SetReadDeadline(deadline)
					if res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: http.MethodPost}); err == nil && res.StatusCode == http.StatusOK {
						n++
					}
				}
				return n
			}
			require.Equal(t, counted("streams"), finished(waiting, large-1000)+finished(uploading, 4*mib-1000))
			for _, conn := range append(uploading, waiting...) {
				conn.Close()
			}
			s.drained(c.CloseIdleConnections)
		})
	}
}

func TestVerdictInAccessLogAndMetrics(t *testing.T) {
	file := filepath.Join(t.TempDir(), "access.log")
	s := start(t, setup{fake: 40 * mib, plugin: func(cfg map[string]any) {
		section(cfg, "throttle")["timeout"] = "100ms"
		section(cfg, "reject")["status"] = 429
		section(cfg, "reject")["body"] = "come back later"
	}, edit: func(c envoytest.Config) {
		c.SetConnectionManager(func(hcm map[string]any) {
			hcm["access_log"] = []any{map[string]any{"name": "file", "typed_config": map[string]any{
				"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": file,
				"log_format": map[string]any{"text_format_source": map[string]any{"inline_string": "%PROTOCOL% %RESPONSE_CODE% [%FILTER_STATE(wasm.highwater.verdict:PLAIN)%]\n"}},
			}}}
		})
	}})
	for _, http2 := range []bool{false, true} {
		c := client(t, http2)
		require.Equal(t, 200, do(t, c, "GET", s.url("/small"), nil, 0).StatusCode)
		s.reading(full)
		require.Equal(t, 429, s.refused(c, http2).StatusCode)
		s.reading(40 * mib)
		c.CloseIdleConnections()
	}
	require.Eventually(t, func() bool {
		text, err := os.ReadFile(file)
		if err != nil {
			return false
		}
		lines := strings.Split(strings.TrimSpace(string(text)), "\n")
		return len(lines) == 4 && strings.HasPrefix(lines[0], "HTTP/1.1 200 [-]") &&
			strings.HasPrefix(lines[1], "HTTP/1.1 429 [rejected timeout waited=1") && strings.HasPrefix(lines[3], "HTTP/2 429 [rejected timeout waited=1")
	}, 15*time.Second, 100*time.Millisecond)
	res, err := http.Get(s.AdminURL() + "/stats/prometheus?filter=highwater")
	require.NoError(t, err)
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	require.NoError(t, res.Body.Close())
	require.Contains(t, string(text), `reason="timeout"`)
	s.drained()
}

// Without the network filter connections can't be closed and are not counted; requests are guarded
// all the same.
func TestWithoutTheNetworkFilter(t *testing.T) {
	s := start(t, setup{
		fake: 40 * mib, plugin: func(cfg map[string]any) { section(cfg, "throttle")["timeout"] = "200ms" },
		edit: func(c envoytest.Config) { c.RemoveNetworkFilter() },
	})
	s.reading(full)
	c := client(t, true)
	require.Equal(t, 503, s.refused(c, true).StatusCode)
	s.reading(40 * mib)
	require.Equal(t, 200, do(t, c, "POST", s.url("/upload?delay=0s"), zeros(mib), mib).StatusCode)
	s.drained(c.CloseIdleConnections)
}

// Slow readers, with and without a length, are served to the end and leave nothing behind.
func TestSlowReaders(t *testing.T) {
	forFilters(t, func(t *testing.T, b base) {
		s := b.start(t, setup{})
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		var loads sync.WaitGroup
		var readers []*load.SlowReaders
		for _, protocol := range []load.Protocol{load.HTTP1, load.HTTP2} {
			for _, length := range []bool{true, false} {
				r := &load.SlowReaders{Addr: s.addr, Count: 30, Size: 16 * mib, Length: length, Protocol: protocol}
				readers = append(readers, r)
				loads.Go(func() { r.Run(ctx) })
			}
		}
		loads.Wait()
		for _, r := range readers {
			got := r.Snapshot()
			require.Equal(t, int64(30), got.Served, "%+v", got)
			require.Zero(t, got.Cut+got.Rejected+got.Errors, "%+v", got)
		}
		s.drained()
		s.quiet()
	})
}
