package adminhttp

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const within = 10 * time.Second

// lines are a log that may be read while it is written.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// serve serves until the end of the test.
func serve(t *testing.T, h http.Handler, network, address string, hosts ...string) (net.Addr, *lines) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), network, address)
	require.NoError(t, err)
	log := &lines{}
	s := New(h, address, hosts, slog.New(slog.NewTextHandler(log, nil)))
	var running sync.WaitGroup
	running.Go(func() { _ = s.Serve(Bounded(l)) })
	t.Cleanup(func() { _ = s.Close(); running.Wait() })
	return l.Addr(), log
}

var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "hello %s", r.URL.Path) })

// say sends text and returns what comes back until the server closes, or until it has said nothing
// for a while.
func say(t *testing.T, to net.Addr, text string) string {
	t.Helper()
	c, err := net.Dial(to.Network(), to.String())
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, text)
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(within)))
	out, _ := io.ReadAll(c)
	return string(out)
}

// A request is for this host, or it is refused and told what to set. A web page that leads a name
// of its own here asks for that name.
func TestHost(t *testing.T) {
	to, log := serve(t, hello, "tcp", "127.0.0.1:0", "metrics.internal", "2001:db8::1")
	_, port, err := net.SplitHostPort(to.String())
	require.NoError(t, err)
	ask := func(host, path string) string {
		return say(t, to, "GET "+path+" HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
	}
	for _, host := range []string{
		"localhost", "localhost:" + port, "LocalHost.:5", "127.0.0.1", "127.0.0.1:" + port, "127.8.9.10:1", "[::1]:" + port, "[::1]", "[::ffff:127.0.0.1]:7",
		"metrics.internal:9003", "METRICS.internal", "[2001:DB8::1]:80",
	} {
		require.Contains(t, ask(host, "/x"), " 200 OK\r\n", host)
	}
	for _, host := range []string{
		"evil.example", "evil.example:" + port, "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1:" + port, "0.0.0.0:" + port, "[::]:" + port,
		"highwater", "highwater:" + port, "internal", "xmetrics.internal", "[2001:db8::2]", "2130706433", ":" + port, "",
	} {
		got := ask(host, "/x")
		require.Contains(t, got, " 403 Forbidden\r\n", host)
		require.Contains(t, got, "-http-hosts")
		require.Contains(t, got, "Connection: close\r\n")
	}
	require.Contains(t, ask(strings.Repeat("a", 5000), "/x"), "aaa\" is not one that is answered")

	// The plugin asks for the readings under a name that it has fixed.
	require.Contains(t, ask("highwater", "/memory"), " 200 OK\r\n")
	require.Contains(t, ask("highwater:"+port, "/memory"), " 403 ", "a page would have the port")
	require.Contains(t, ask("highwater", "/memory/x"), " 403 ")

	require.Contains(t, say(t, to, "GET /x HTTP/1.0\r\n\r\n"), " 403 ", "no host is no host of ours")
	require.Contains(t, say(t, to, "GET /x HTTP/1.0\r\nHost: localhost\r\n\r\n"), " 200 ")
	require.Contains(t, say(t, to, "GET /x HTTP/1.1\r\nConnection: close\r\n\r\n"), " 400 ")
	require.Contains(t, say(t, to, "GET http://evil.example/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"), " 403 ", "that is what it asks for")
	require.LessOrEqual(t, strings.Count(log.String(), "\n"), 5, "a line a second")
	require.Contains(t, log.String(), "name it in -http-hosts")
}

// Where it listens on all addresses, the one that a connection came to is its own.
func TestHostIsTheAddress(t *testing.T) {
	to, _ := serve(t, hello, "tcp", "0.0.0.0:0")
	_, port, err := net.SplitHostPort(to.String())
	require.NoError(t, err)
	ask := func(at, host string) string {
		address, err := net.ResolveTCPAddr("tcp", at+":"+port)
		require.NoError(t, err)
		return say(t, address, "GET /x HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n")
	}
	require.Contains(t, ask("127.0.0.1", "127.0.0.1"), " 200 ")
	require.Contains(t, ask("127.0.0.1", "0.0.0.0"), " 200 ", "the address of -http")
	list, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range list {
		if ip := a.(*net.IPNet).IP.To4(); ip != nil {
			require.Contains(t, ask(ip.String(), ip.String()+":"+port), " 200 ", ip)
			require.Contains(t, ask(ip.String(), "192.0.2.7:"+port), " 403 ", ip)
		}
	}
}

// No name leads to a Unix socket.
func TestHostOnAUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "http.sock")
	to, _ := serve(t, hello, "unix", path)
	for _, host := range []string{"anything", ""} {
		require.Contains(t, say(t, to, "GET /x HTTP/1.1\r\nHost: "+host+"\r\nConnection: close\r\n\r\n"), " 200 ")
	}
	require.Contains(t, say(t, to, "GET /x HTTP/1.0\r\n\r\n"), " 200 ")
}

func TestHosts(t *testing.T) {
	hosts, err := Hosts("A.example, b.,10.0.0.1,2001:DB8::1")
	require.NoError(t, err)
	require.Equal(t, []string{"a.example", "b", "10.0.0.1", "2001:db8::1"}, hosts)
	hosts, err = Hosts("")
	require.NoError(t, err)
	require.Empty(t, hosts)
	for _, list := range []string{"a:9003", "a,,b", "http://a", "*", "[::1]:5", "a b", ",", strings.Repeat("a", 300)} {
		_, err := Hosts(list)
		require.ErrorContains(t, err, "without ports", list)
	}
}

// What a request brings is not read, and what is more than a request is refused.
func TestWhatARequestMayBring(t *testing.T) {
	var served atomic.Int64
	to, _ := serve(t, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served.Add(1) }), "tcp", "127.0.0.1:0")
	for _, text := range []string{
		"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
	} {
		began := time.Now()
		got := say(t, to, text)
		require.Contains(t, got, " 400 Bad Request\r\n")
		require.Contains(t, got, "no body")
		require.Less(t, time.Since(began), 2*time.Second, "and closed, without waiting for it")
	}
	require.Contains(t, say(t, to, "GET /"+strings.Repeat("x", 20_000)+" HTTP/1.1\r\nHost: localhost\r\n\r\n"), " 431 ")
	require.Contains(t, say(t, to, "GET / HTTP/1.1\r\nHost: localhost\r\n"+strings.Repeat("a: b\r\n", 4000)+"\r\n"), " 431 ")
	require.Zero(t, served.Load())
	began := time.Now()
	require.NotContains(t, say(t, to, "GET / HTTP/1.1\r\nHo"), " 200 ", "half a request")
	require.InDelta(t, headerTimeout.Seconds(), time.Since(began).Seconds(), 1.5)
}

// get asks for a path, as one of many who do.
func get(ctx context.Context, client *http.Client, to net.Addr, path string) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+to.String()+path, nil)
	if err != nil {
		return nil, nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	return res, body, err
}

func newClient(t *testing.T) *http.Client {
	t.Helper()
	c := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 200}}
	t.Cleanup(c.CloseIdleConnections)
	return c
}

// Those who wait for their turn are served one after the other, with pauses, or told to come again;
// who gives up is gone, and who does not read what it is answered keeps nobody waiting.
func TestInTurn(t *testing.T) {
	var now, most, served atomic.Int64
	gate := make(chan struct{})
	h := InTurn(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		most.Store(max(most.Load(), now.Add(1)))
		defer now.Add(-1)
		if r.URL.Path == "/panic" {
			panic(http.ErrAbortHandler)
		}
		if r.URL.Path == "/gate" {
			<-gate
		}
		time.Sleep(5 * time.Millisecond)
		w.Header().Set("x-of", "the handler")
		w.WriteHeader(http.StatusTeapot)
		_, _ = w.Write(bytes.Repeat([]byte("x"), 1<<20))
		served.Add(1)
	}))
	to, _ := serve(t, h, "tcp", "127.0.0.1:0")
	client := newClient(t)
	for range 5 { // a fault gives its turn back
		_, _, err := get(t.Context(), client, to, "/panic")
		require.Error(t, err)
	}
	for range 5 { // peers that don't read
		c, err := net.Dial("tcp", to.String())
		require.NoError(t, err)
		defer c.Close()
		_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
		require.NoError(t, err)
	}
	res, body, err := get(t.Context(), client, to, "/")
	require.NoError(t, err)
	require.Equal(t, http.StatusTeapot, res.StatusCode)
	require.Equal(t, "the handler", res.Header.Get("x-of"))
	require.Len(t, body, 1<<20)
	require.EqualValues(t, 1<<20, res.ContentLength)

	require.Eventually(t, func() bool { return served.Load() == 6 }, within, time.Millisecond, "nor is any of them left out")
	began := time.Now()
	for range 10 {
		_, _, err := get(t.Context(), client, to, "/")
		require.NoError(t, err)
	}
	require.GreaterOrEqual(t, time.Since(began), 9*4*5*time.Millisecond, "three quarters of the time are the rest's")

	var running sync.WaitGroup
	running.Go(func() { _, _, _ = get(t.Context(), client, to, "/gate") })
	require.Eventually(t, func() bool { return now.Load() == 1 }, within, time.Millisecond)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, _, err = get(ctx, client, to, "/")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	began = time.Now()
	res, _, err = get(t.Context(), client, to, "/")
	require.NoError(t, err)
	require.Equal(t, http.StatusServiceUnavailable, res.StatusCode)
	require.Equal(t, "1", res.Header.Get("Retry-After"))
	require.InDelta(t, patience.Seconds(), time.Since(began).Seconds(), 1)
	close(gate)
	running.Wait()
	require.EqualValues(t, 1, most.Load())
}

// However many ask, an answer is made at most each 25 ms, and none is older than its question.
func TestShare(t *testing.T) {
	epoch := time.Now()
	var made, most atomic.Int64
	h := Share(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := made.Add(1)
		if n == 1 {
			panic("at the disco")
		}
		w.Header().Set("x-of", "the handler")
		w.WriteHeader(http.StatusTeapot)
		at := time.Since(epoch)
		time.Sleep(5 * time.Millisecond)
		fmt.Fprint(w, int64(at))
		most.Store(max(most.Load(), made.Load()-n))
	}))
	to, _ := serve(t, h, "tcp", "127.0.0.1:0")
	client := newClient(t)
	res, body, err := get(t.Context(), client, to, "/x")
	require.NoError(t, err)
	require.Equal(t, http.StatusInternalServerError, res.StatusCode)
	require.Equal(t, "a fault of highwater: at the disco\n", string(body))
	const d = time.Second
	var answers atomic.Int64
	var running sync.WaitGroup
	for range 100 {
		running.Go(func() {
			for time.Since(epoch) < d {
				asked := time.Since(epoch)
				res, body, err := get(t.Context(), client, to, "/x?y="+asked.String())
				if err != nil || res.StatusCode != http.StatusTeapot || res.Header.Get("x-of") != "the handler" {
					t.Error(res, err)
					return
				}
				at, err := strconv.ParseInt(string(body), 10, 64)
				if err != nil || time.Duration(at) < asked {
					t.Error("it was made before the question", asked, string(body), err)
					return
				}
				answers.Add(1)
			}
		})
	}
	running.Wait()
	require.LessOrEqual(t, made.Load(), int64(time.Since(epoch)/shareEvery)+1)
	require.Greater(t, answers.Load(), 10*made.Load())
	require.Zero(t, most.Load(), "one at a time")

	ctx, cancel := context.WithTimeout(t.Context(), time.Microsecond)
	defer cancel()
	_, _, err = get(ctx, client, to, "/x")
	require.Error(t, err)
}

// When there is no place left a new connection takes that of one that asks nothing; one that asks
// again and again keeps its own.
func TestEviction(t *testing.T) {
	to, log := serve(t, hello, "tcp", "127.0.0.1:0")
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", to.String())
		require.NoError(t, err)
		t.Cleanup(func() { c.Close() })
		return c
	}
	ask := func(c net.Conn, r *bufio.Reader) error {
		if _, err := io.WriteString(c, "GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(within))
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			return err
		}
		_, err = io.ReadAll(res.Body)
		res.Body.Close()
		return err
	}
	busy := dial()
	reader := bufio.NewReader(busy)
	require.NoError(t, ask(busy, reader))
	idle := dial() // it asked once
	require.NoError(t, ask(idle, bufio.NewReader(idle)))
	for range 4 * maxConnections {
		dial()
	}
	require.NoError(t, ask(busy, reader), "those that have asked nothing go first")
	require.NoError(t, ask(idle, bufio.NewReader(idle)))
	for i := range 2 * maxConnections {
		c := dial()
		require.NoError(t, ask(c, bufio.NewReader(c)))
		if i%10 == 0 {
			require.NoError(t, ask(busy, reader), "after %d others", i)
		}
	}
	require.Error(t, ask(idle, bufio.NewReader(idle)), "the one that asked nothing for the longest")
	require.Contains(t, log.String(), "too many HTTP connections")
	require.LessOrEqual(t, strings.Count(log.String(), "\n"), 10, "a line a second")
}
