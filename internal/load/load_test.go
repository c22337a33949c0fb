package load

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run runs l until until is true of its Snapshot (or 10 s), stops it, and returns the last
// Snapshot.
func run(t *testing.T, l Load, until func(Snapshot) bool) Snapshot {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	for ctx.Err() == nil && !until(l.Snapshot()) {
		time.Sleep(time.Millisecond)
	}
	cancel()
	select {
	case <-done:
	case <-time.After(15 * time.Second):
		t.Fatal("Run does not end")
	}
	s := l.Snapshot()
	require.True(t, until(s), "%+v", s)
	require.Zero(t, s.InFlight)
	require.Zero(t, s.Waiting)
	return s
}

func served(n int64) func(Snapshot) bool { return func(s Snapshot) bool { return s.Served >= n } }

func newUpstream(t *testing.T) *Upstream {
	t.Helper()
	u, err := NewUpstream()
	require.NoError(t, err)
	t.Cleanup(func() { _ = u.Close() })
	return u
}

// server answers by h over both protocols.
func server(t *testing.T, h http.HandlerFunc) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: h, Protocols: protocols}
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(listener) }()
	t.Cleanup(func() { _ = s.Close(); <-done })
	return listener.Addr().String()
}

func TestUploads(t *testing.T) {
	for _, c := range []struct {
		name     string
		protocol Protocol
		chunked  bool
	}{{"h1", HTTP1, false}, {"h1 chunked", HTTP1, true}, {"h2", HTTP2, false}, {"h2 chunked", HTTP2, true}} {
		t.Run(c.name, func(t *testing.T) {
			u := newUpstream(t)
			const size = 300_001 // no multiple of any buffer
			s := run(t, &Uploads{Addr: u.Addr(), Path: "/upload?delay=5ms", Count: 10, Size: size, Chunked: c.chunked, Protocol: c.protocol}, served(50))
			require.Equal(t, s.Served*size, s.Bytes)
			require.Zero(t, s.Rejected+s.Errors+s.Closed+s.Cut, s.Problem)
			require.GreaterOrEqual(t, u.Requests("/upload"), s.Served)
			require.GreaterOrEqual(t, s.P50, 5*time.Millisecond)
			require.Positive(t, s.Goodput())
		})
	}
}

// What is under way when the load ends may finish if Drain says so, and nothing is counted if not.
func TestUploadsDrain(t *testing.T) {
	u := newUpstream(t)
	for _, drain := range []time.Duration{0, 5 * time.Second} {
		l := &Uploads{Addr: u.Addr(), Path: "/upload?delay=200ms", Count: 5, Size: 1000, Drain: drain}
		s := run(t, l, func(s Snapshot) bool { return s.Waiting == 5 || s.InFlight == 0 && s.Started == 5 })
		if drain == 0 {
			require.Zero(t, s.Served)
		} else {
			require.EqualValues(t, 5, s.Served)
		}
		require.Zero(t, s.Closed+s.Errors+s.Rejected, s.Problem)
	}
}

// A reject comes while the client still writes, and the rest is never read: that is a reject, not
// an error.
func TestUploadsRejectedEarly(t *testing.T) {
	for _, protocol := range []Protocol{HTTP1, HTTP2} {
		for _, chunked := range []bool{false, true} {
			t.Run(string(protocol), func(t *testing.T) {
				addr := server(t, func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(http.StatusServiceUnavailable)
					_ = http.NewResponseController(w).Flush()
				})
				s := run(t, &Uploads{Addr: addr, Count: 4, Size: 64 << 20, Chunked: chunked, Protocol: protocol},
					func(s Snapshot) bool { return s.Rejected >= 40 })
				require.Zero(t, s.Errors+s.Closed+s.Served, s.Problem)
			})
		}
	}
}

// A rejected client comes back after its pause, not before.
func TestUploadsRetry(t *testing.T) {
	var n atomic.Int64
	addr := server(t, func(w http.ResponseWriter, _ *http.Request) { n.Add(1); w.WriteHeader(http.StatusTooManyRequests) })
	begun := time.Now()
	run(t, &Uploads{Addr: addr, Count: 1, Size: 10, Retry: 30 * time.Millisecond}, func(s Snapshot) bool { return s.Rejected >= 5 })
	require.GreaterOrEqual(t, time.Since(begun), 4*30*time.Millisecond)
}

// Who obeys comes back when he was told to, and it is counted whether he was served then.
func TestUploadsObey(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	addr := server(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if n.Add(1) <= 2 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	begun := time.Now()
	s := run(t, &Uploads{Addr: addr, Count: 1, Size: 10, Obey: 2 * time.Second}, func(s Snapshot) bool { return s.Served >= 3 })
	require.GreaterOrEqual(t, time.Since(begun), 2*time.Second)
	require.Equal(t, []int64{1, 1, 0}, []int64{s.Kept, s.Broken, s.ToldLonger})
	require.Equal(t, time.Second, s.Told)
	require.InDelta(t, 0.5, s.Truth(), 1e-9)
}

// Mixed sizes are the same in every run, and who is rejected comes back with the same upload.
func TestUploadsMixed(t *testing.T) {
	var mu sync.Mutex
	sizes := map[int64]int{}
	addr := server(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		defer mu.Unlock()
		if sizes[r.ContentLength]++; sizes[r.ContentLength] == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	})
	l := &Uploads{Addr: addr, Count: 3, Size: 1 << 10, Largest: 64 << 10, Seed: 1, Retry: time.Millisecond, Drain: 5 * time.Second}
	s := run(t, l, served(30))
	require.Zero(t, s.Errors+s.Closed+s.Cut, s.Problem)
	var bytes int64
	for size, n := range sizes {
		require.GreaterOrEqual(t, size, int64(1<<10))
		require.LessOrEqual(t, size, int64(64<<10))
		bytes += size * int64(n-1)
	}
	require.Equal(t, bytes, s.Bytes)
	require.Greater(t, len(sizes), 25)

	again := &Uploads{Size: 1 << 10, Largest: 64 << 10, Seed: 1}
	for i := range 3 {
		next := again.Sizes(i)
		for range 3 {
			require.Contains(t, sizes, next())
		}
	}
}

func TestUploadsClosed(t *testing.T) {
	for _, protocol := range []Protocol{HTTP1, HTTP2} {
		t.Run(string(protocol), func(t *testing.T) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(t, err)
			var acceptor sync.WaitGroup
			acceptor.Go(func() {
				for {
					conn, err := listener.Accept()
					if err != nil {
						return
					}
					_, _ = io.ReadFull(conn, make([]byte, 100))
					_ = conn.Close() // with bytes unread: a reset
				}
			})
			defer acceptor.Wait()
			defer listener.Close()
			s := run(t, &Uploads{Addr: listener.Addr().String(), Count: 3, Size: 8 << 20, Protocol: protocol},
				func(s Snapshot) bool { return s.Closed >= 10 })
			require.Zero(t, s.Errors+s.Served+s.Rejected, s.Problem)
		})
	}
}

func TestNobodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := listener.Addr().String()
	require.NoError(t, listener.Close())
	for _, l := range []Load{
		&Uploads{Addr: addr, Count: 2, Size: 10},
		&Uploads{Addr: addr, Count: 2, Size: 10, Protocol: HTTP2},
		&SlowReaders{Addr: addr, Count: 2, Size: 10},
		&SlowReaders{Addr: addr, Count: 2, Size: 10, Protocol: HTTP2},
		&Small{Addr: addr, Rate: 200},
		&Downloads{Addr: addr, Clients: 2, Size: 10},
		&IdleStreams{Addr: addr, Streams: 3, Bytes: 10},
		&Echoes{Addr: addr, Streams: 2, Size: 10},
	} {
		s := run(t, l, func(s Snapshot) bool { return s.Errors >= 3 })
		require.Zero(t, s.Served+s.Closed+s.Cut+s.Rejected)
		require.Contains(t, s.Problem, "refused")
	}
}

func TestSlowReaders(t *testing.T) {
	for _, protocol := range []Protocol{HTTP1, HTTP2} {
		for _, length := range []bool{true, false} {
			t.Run(string(protocol), func(t *testing.T) {
				u := newUpstream(t)
				// Held to the end.
				l := &SlowReaders{Addr: u.Addr(), Count: 8, Size: 16 << 20, Length: length, Protocol: protocol}
				s := run(t, l, func(s Snapshot) bool { return s.Bytes >= 8*16<<10 })
				require.EqualValues(t, 8, s.Served)
				require.Zero(t, s.Cut+s.Errors+s.Closed+s.Rejected, s.Problem)
				require.LessOrEqual(t, s.Bytes, int64(8*5*16<<10), "slow is slow")
				// Read whole, and asked for again.
				l = &SlowReaders{Addr: u.Addr(), Count: 2, Size: 10_000, Length: length, Protocol: protocol, Rate: 20_000}
				s = run(t, l, served(6))
				require.Zero(t, s.Cut+s.Errors+s.Closed+s.Rejected, s.Problem)
			})
		}
	}
}

// What a reader takes fast is there long before its rate would have brought it.
func TestSlowReadersFast(t *testing.T) {
	for _, protocol := range []Protocol{HTTP1, HTTP2} {
		u := newUpstream(t)
		begun := time.Now()
		l := &SlowReaders{Addr: u.Addr(), Count: 3, Size: 16 << 20, Length: true, Protocol: protocol, Fast: 4 << 20}
		s := run(t, l, func(s Snapshot) bool { return s.Bytes >= 3*4<<20 })
		require.Less(t, time.Since(begun), 8*time.Second, "at 16 KiB a second it takes four minutes")
		require.LessOrEqual(t, s.Bytes, int64(3*(4<<20+10*16<<10)), "and then slow is slow")
		require.EqualValues(t, 3, s.Served)
		require.Zero(t, s.Cut+s.Errors+s.Closed+s.Rejected, s.Problem)
	}
}

// One that leaves when it is cut comes back from a reject all the same.
func TestSlowReadersLeave(t *testing.T) {
	for _, protocol := range []Protocol{HTTP1, HTTP2} {
		var n atomic.Int64
		addr := server(t, func(w http.ResponseWriter, _ *http.Request) {
			if n.Add(1) <= 5 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			_, _ = w.Write(make([]byte, 50_000))
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		})
		l := &SlowReaders{Addr: addr, Count: 3, Size: 16 << 20, Protocol: protocol, Fast: 16 << 20, Leave: true}
		begun := time.Now()
		l.Run(t.Context()) // ends by itself when all have left
		require.Less(t, time.Since(begun), 10*time.Second)
		s := l.Snapshot()
		require.EqualValues(t, 3, s.Cut)
		require.EqualValues(t, 5, s.Rejected)
		require.EqualValues(t, 8, s.Started)
	}
}

// Who has a tenant says so in each request.
func TestTenant(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]bool{}
	addr := server(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		mu.Lock()
		seen[r.Proto+" "+r.Method+" "+r.Header.Get("x-tenant")] = true
		mu.Unlock()
		_, _ = w.Write(make([]byte, 10))
	})
	for _, protocol := range []Protocol{HTTP1, HTTP2} {
		run(t, &Uploads{Addr: addr, Tenant: "a", Count: 2, Size: 10, Protocol: protocol}, served(10))
		run(t, &SlowReaders{Addr: addr, Tenant: "b", Count: 2, Size: 10, Protocol: protocol}, served(2))
	}
	mu.Lock() // clients that were told to stop may still be served
	defer mu.Unlock()
	require.Equal(t, map[string]bool{
		"HTTP/1.1 POST a": true, "HTTP/1.1 GET b": true, "HTTP/2.0 POST a": true, "HTTP/2.0 GET b": true,
	}, seen)
}

// A response that is cut while its reader sleeps in front of a full buffer is noticed all the same.
func TestSlowReadersCut(t *testing.T) {
	for _, protocol := range []Protocol{HTTP1, HTTP2} {
		t.Run(string(protocol), func(t *testing.T) {
			addr := server(t, func(w http.ResponseWriter, _ *http.Request) {
				_, _ = w.Write(make([]byte, 50_000))
				_ = http.NewResponseController(w).Flush()
				time.Sleep(100 * time.Millisecond)
				panic(http.ErrAbortHandler)
			})
			l := &SlowReaders{Addr: addr, Count: 3, Size: 16 << 20, Protocol: protocol, Rate: 1000}
			ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
			defer cancel()
			l.Run(ctx)
			s := l.Snapshot()
			require.GreaterOrEqual(t, s.Cut, int64(3), "%+v", s)
			require.Zero(t, s.Errors+s.Closed+s.Rejected, s.Problem)
		})
	}
}

func TestSlowReadersRejected(t *testing.T) {
	for _, protocol := range []Protocol{HTTP1, HTTP2} {
		addr := server(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
		s := run(t, &SlowReaders{Addr: addr, Count: 3, Size: 1 << 20, Protocol: protocol}, func(s Snapshot) bool { return s.Rejected >= 9 })
		require.Zero(t, s.Served+s.Cut+s.Errors+s.Closed, s.Problem)
	}
}

func TestSmall(t *testing.T) {
	u := newUpstream(t)
	s := run(t, &Small{Addr: u.Addr(), Rate: 500}, served(100))
	require.Equal(t, s.Started, s.Served)
	require.Zero(t, s.Rejected+s.Errors+s.Closed, s.Problem)
	require.Less(t, s.P50, 100*time.Millisecond)
}

// Uploads at a fixed rate are whole, and one that is answered early has its connection to itself.
func TestSmallUploads(t *testing.T) {
	u := newUpstream(t)
	const size = 300_001
	s := run(t, &Small{Addr: u.Addr(), Path: "/quiet/upload?delay=5ms", Upload: size, Rate: 200}, served(50))
	require.Equal(t, s.Started, s.Served)
	require.Equal(t, s.Served*size, s.Bytes)
	require.Zero(t, s.Rejected+s.Errors+s.Closed, s.Problem)
	require.GreaterOrEqual(t, s.P50, 5*time.Millisecond)
	require.Equal(t, u.Requests("/upload"), s.Served)

	addr := server(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	s = run(t, &Small{Addr: addr, Path: "/upload", Upload: 16 << 20, Rate: 200}, func(s Snapshot) bool { return s.Rejected >= 50 })
	require.Zero(t, s.Served+s.Errors+s.Closed, s.Problem)
}

// An upload whose connection goes away under it is not sent again; one that was closed before is
// not used.
func TestSmallUploadsClosed(t *testing.T) {
	var n atomic.Int64
	addr := server(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if n.Add(1)%2 == 0 {
			panic(http.ErrAbortHandler)
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") // kept, it seems
		_ = conn.Close()
	})
	s := run(t, &Small{Addr: addr, Path: "/upload", Upload: 1000, Rate: 20, Connections: 1}, func(s Snapshot) bool { return s.Closed >= 5 && s.Served >= 5 })
	require.Zero(t, s.Errors+s.Rejected, s.Problem)
	require.InDelta(t, s.Served, s.Closed, 1)
	require.Equal(t, s.Started, n.Load())
}

// Latency counts from when a request was due: one stall shows in all that it held up.
func TestSmallOpenLoop(t *testing.T) {
	var stalled atomic.Bool
	release := make(chan struct{})
	addr := server(t, func(w http.ResponseWriter, _ *http.Request) {
		if stalled.Load() {
			<-release
		}
		_, _ = w.Write(zeros[:smallBody])
	})
	stalled.Store(true)
	time.AfterFunc(500*time.Millisecond, func() { stalled.Store(false); close(release) })
	s := run(t, &Small{Addr: addr, Rate: 200, Connections: 2, MaxConnections: 4}, served(150))
	require.Zero(t, s.Errors+s.Closed+s.Rejected, s.Problem)
	require.GreaterOrEqual(t, s.Max, 450*time.Millisecond)
	require.GreaterOrEqual(t, s.P50, 20*time.Millisecond, "a hundred of them were due while it stalled")
}

func TestSmallOnNewConnections(t *testing.T) {
	var mu sync.Mutex
	from := map[string]bool{}
	addr := server(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if from[r.RemoteAddr] {
			w.WriteHeader(http.StatusConflict)
		}
		from[r.RemoteAddr] = true
		_, _ = w.Write(zeros[:smallBody])
	})
	s := run(t, &Small{Addr: addr, Rate: 500, Reconnect: true}, served(100))
	require.Zero(t, s.Errors+s.Closed+s.Rejected, s.Problem)
}

// A connection that its server closes while idle is no error.
func TestSmallReconnects(t *testing.T) {
	var n atomic.Int64
	addr := server(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(zeros[:smallBody])
		if n.Add(1)%2 == 0 {
			time.AfterFunc(time.Millisecond, func() {
				if conn, ok := r.Context().Value(http.LocalAddrContextKey).(net.Conn); ok {
					_ = conn.Close()
				}
			})
			w.Header().Set("Connection", "close")
		}
	})
	s := run(t, &Small{Addr: addr, Rate: 500}, served(200))
	require.Zero(t, s.Errors+s.Closed+s.Rejected, s.Problem)
}

func TestSmallTimeout(t *testing.T) {
	addr := server(t, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	s := run(t, &Small{Addr: addr, Rate: 100, Timeout: 50 * time.Millisecond}, func(s Snapshot) bool { return s.Errors >= 10 && s.InFlight == 0 || s.Errors >= 10 })
	require.Contains(t, s.Problem, "no answer in time")
	require.Zero(t, s.Served+s.Closed)
}

func TestDownloads(t *testing.T) {
	u := newUpstream(t)
	for _, protocol := range []Protocol{HTTP1, HTTP2} {
		s := run(t, &Downloads{Addr: u.Addr(), Clients: 4, Size: 200_000, Protocol: protocol}, served(100))
		require.Equal(t, s.Served*200_000, s.Bytes)
		require.Zero(t, s.Rejected+s.Errors+s.Closed+s.Cut, s.Problem)
	}
}

func TestIdleStreams(t *testing.T) {
	u := newUpstream(t)
	l := &IdleStreams{Addr: u.Addr(), Streams: 30, Bytes: 1 << 20, PerConnection: 10}
	s := run(t, l, served(30))
	require.EqualValues(t, 30, s.Started)
	require.EqualValues(t, 30<<20, s.Bytes)
	require.Zero(t, s.Rejected+s.Errors+s.Closed+s.Cut, s.Problem)
}

func TestEchoes(t *testing.T) {
	u := newUpstream(t)
	s := run(t, &Echoes{Addr: u.Addr(), Streams: 10, Size: 1000, Pause: time.Millisecond}, served(100))
	require.EqualValues(t, 10, s.Started)
	require.Zero(t, s.Rejected+s.Errors+s.Closed+s.Cut, s.Problem)
}

func TestUpstreamRefusesNonsense(t *testing.T) {
	u := newUpstream(t)
	for _, path := range []string{"/bytes", "/bytes?n=x", "/bytes?n=-1", "/small?delay=x"} {
		resp, err := http.Get("http://" + u.Addr() + path)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusBadRequest, resp.StatusCode, path)
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestHistogram(t *testing.T) {
	var h histogram
	require.Zero(t, h.quantile(0.99))
	for ns := int64(0); ns < 1<<60; ns = ns*3/2 + 1 {
		b := bucketOf(ns)
		require.LessOrEqual(t, ns, upperOf(b))
		require.Equal(t, b, bucketOf(upperOf(b)))
		require.Equal(t, b+1, bucketOf(upperOf(b)+1))
		require.LessOrEqual(t, float64(upperOf(b)), float64(ns)*(1+1.0/32)+1)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 100_000 {
		h.add(time.Duration(rng.IntN(1_000_000)))
	}
	require.InEpsilon(t, 500_000, int64(h.quantile(0.5)), 0.05)
	require.InEpsilon(t, 990_000, int64(h.quantile(0.99)), 0.05)
	require.LessOrEqual(t, h.quantile(1), h.max())
}

func TestSampler(t *testing.T) {
	var s Sampler
	ctx, cancel := context.WithCancel(t.Context())
	n := int64(0)
	s.Run(ctx, time.Millisecond, func(context.Context) (Reading, error) {
		if n++; n == 5 {
			cancel()
		}
		if n == 2 {
			return Reading{Allocated: 1 << 40}, errors.New("no admin")
		}
		return Reading{Allocated: 10 - n, InUse: n}, nil
	})
	peak, samples, blind := s.Peak()
	require.Equal(t, Reading{Allocated: 9, InUse: 5}, peak)
	require.Equal(t, 4, samples)
	require.Positive(t, blind)
	require.Equal(t, Reading{Allocated: 5, InUse: 5}, s.Last())
}
