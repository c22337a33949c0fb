package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// process is `highwater serve`, a process of its own whose memory can be looked at.
type process struct {
	t    *testing.T
	pid  int
	http string
	log  *output
}

func startProcess(t *testing.T, args ...string) *process {
	t.Helper()
	admin := httptest.NewServer(handler(`{"allocated":"5","heap_size":"40000000","pageheap_unmapped":"0","pageheap_free":"0"}`))
	t.Cleanup(admin.Close)
	config := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(config, []byte("budget: {limit: 200MiB}\nenvoy: {pid: 4194303}\nmemory: {url: \""+admin.URL+"\"}\n"), 0o600))
	self, err := os.Executable()
	require.NoError(t, err)
	c := exec.Command(self, append([]string{"serve", "-config", config, "-grpc", "127.0.0.1:0", "-http", "127.0.0.1:0"}, args...)...)
	c.Env = append(os.Environ(), asMain+"=1")
	p := &process{t: t, log: &output{}}
	c.Stderr = p.log
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		require.NoError(t, c.Wait(), p.log.String())
	})
	p.pid = c.Process.Pid
	ready := regexp.MustCompile(`msg=ready grpc=\S+ http=(\S+)`)
	require.Eventually(t, func() bool {
		m := ready.FindStringSubmatch(p.log.String())
		if m != nil {
			p.http = m[1]
		}
		return m != nil
	}, 20*time.Second, 10*time.Millisecond, p.log.String())
	return p
}

// resident is its memory, MiB, and files how many it has open.
func (p *process) resident() (mib int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	require.NoError(p.t, err)
	m := regexp.MustCompile(`VmRSS:\s+(\d+) kB`).FindSubmatch(text)
	require.NotNil(p.t, m)
	kib, err := strconv.Atoi(string(m[1]))
	require.NoError(p.t, err)
	return kib >> 10
}

// cpu is what it has used of a processor, seconds.
func (p *process) cpu() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	require.NoError(p.t, err)
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	user, err := strconv.Atoi(fields[11])
	require.NoError(p.t, err)
	system, err := strconv.Atoi(fields[12])
	require.NoError(p.t, err)
	return float64(user+system) / 100
}

func (p *process) files() int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid))
	require.NoError(p.t, err)
	return len(list)
}

// dial connects, with next to nothing buffered on our side.
func (p *process) dial() (net.Conn, error) {
	c, err := net.DialTimeout("tcp", p.http, 5*time.Second)
	if err == nil {
		_ = c.(*net.TCPConn).SetReadBuffer(4096)
		_ = c.(*net.TCPConn).SetWriteBuffer(4096)
		_ = c.(*net.TCPConn).SetLinger(0)
	}
	return c, err
}

// besides runs an attack while a filter asks for readings on one connection and somebody scrapes
// metrics on new ones. Both are served, the filter on the connection that it had, and the process
// stays as large as it was, but for what so many connections may cost.
func (p *process) besides(attack func(ctx context.Context)) {
	p.t.Helper()
	var dials atomic.Int64
	readings := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}}
	defer readings.CloseIdleConnections()
	scrapes := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(c *http.Client, path string) error {
		res, err := c.Get("http://" + p.http + path)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("%s is answered %s", path, res.Status)
		}
		return nil
	}
	require.NoError(p.t, get(readings, "/memory"))
	require.NoError(p.t, get(scrapes, "/metrics"))
	before, cpu := p.resident(), p.cpu()

	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var errs [2]error
	var longest [2]time.Duration
	var most, files int
	var served, failed [2]int
	every := func(i int, d time.Duration, ask func() error) {
		running.Go(func() {
			for ctx.Err() == nil {
				began := time.Now()
				if err := ask(); err != nil {
					errs[i] = err
					failed[i]++
				} else {
					served[i]++
				}
				longest[i] = max(longest[i], time.Since(began))
				time.Sleep(d)
			}
		})
	}
	every(0, 20*time.Millisecond, func() error { return get(readings, "/memory") })
	every(1, 100*time.Millisecond, func() error {
		most, files = max(most, p.resident()), max(files, p.files())
		return get(scrapes, "/metrics")
	})
	attack(ctx)
	cancel()
	running.Wait()
	p.t.Logf("resident %d MiB, at most %d; %d files; %d readings (%d failed), the slowest %v; %d scrapes (%d failed), the slowest %v; %.1f s of CPU",
		before, most, files, served[0], failed[0], longest[0], served[1], failed[1], longest[1], p.cpu()-cpu)
	for i, who := range []string{"the filter", "who scrapes"} { // a busy machine may keep one waiting for too long
		require.LessOrEqual(p.t, failed[i], max(1, served[i]/20), "%s: %v", who, errs[i])
		require.GreaterOrEqual(p.t, served[i], 5, who)
	}
	require.EqualValues(p.t, 1, dials.Load(), "the filter keeps its connection")
	require.Less(p.t, most, before+mayGrow)
	require.Less(p.t, files, 600)
}

// repeat has so many peers each do the same again and again for a time, each time on a new
// connection.
func (p *process) repeat(peers int, d time.Duration, what func(c net.Conn, until time.Time)) func(context.Context) {
	return func(context.Context) {
		until := time.Now().Add(d)
		var running sync.WaitGroup
		for range peers {
			running.Go(func() {
				for time.Now().Before(until) {
					if c, err := p.dial(); err == nil {
						_ = c.SetDeadline(until)
						what(c, until)
						c.Close()
					}
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
		running.Wait()
	}
}

// Whatever peers do to the HTTP server, it serves who asks, and stays small.
func TestHTTPHoldsItsOwn(t *testing.T) {
	p := startProcess(t)

	t.Run("10,000 idle connections", func(t *testing.T) {
		p.t = t
		p.besides(func(context.Context) {
			var all sync.WaitGroup
			var mu sync.Mutex
			var open []net.Conn
			for range 20 {
				all.Go(func() {
					for range 500 {
						if c, err := p.dial(); err == nil {
							mu.Lock()
							open = append(open, c)
							mu.Unlock()
						}
					}
				})
			}
			all.Wait()
			require.Greater(t, len(open), 9000)
			time.Sleep(time.Second)
			for _, c := range open {
				c.Close()
			}
		})
	})

	t.Run("headers that do not end", func(t *testing.T) {
		p.t = t
		p.besides(p.repeat(500, 5*time.Second, func(c net.Conn, _ time.Time) {
			_, err := io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n")
			for i := 0; err == nil; i++ {
				time.Sleep(200 * time.Millisecond)
				_, err = fmt.Fprintf(c, "x-%d: y\r\n", i)
			}
		}))
	})

	t.Run("answers that nobody reads", func(t *testing.T) {
		p.t = t
		many := []byte(strings.Repeat("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 50))
		p.besides(p.repeat(400, 5*time.Second, func(c net.Conn, _ time.Time) {
			for {
				if _, err := c.Write(many); err != nil {
					return
				}
			}
		}))
	})

	t.Run("each question at once", func(t *testing.T) {
		p.t = t
		paths := []string{"/metrics", "/status", "/current", "/peaks", "/debug/pprof/highwater?peak=current", "/memory", "/debug/heap"}
		var n atomic.Int64
		p.besides(p.repeat(100, 5*time.Second, func(c net.Conn, until time.Time) {
			r := bufio.NewReader(c)
			for time.Now().Before(until) {
				fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", paths[n.Add(1)%int64(len(paths))])
				res, err := http.ReadResponse(r, nil)
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				time.Sleep(20 * time.Millisecond)
			}
		}))
	})
	require.Less(t, strings.Count(p.log.String(), "\n"), 60, "a line a second: %s", p.log.String())
}

// Another host than this one is refused unless it is named.
func TestHTTPHosts(t *testing.T) {
	ask := func(web, host, path string) int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+web+path, nil)
		require.NoError(t, err)
		req.Host = host
		res, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		res.Body.Close()
		return res.StatusCode
	}
	defer http.DefaultClient.CloseIdleConnections()
	_, web := serving(t, settings{grpc: "127.0.0.1:0", http: "127.0.0.1:0", hosts: []string{"metrics.internal"}})
	require.Equal(t, 200, ask(web, web, "/peaks"))
	require.Equal(t, 200, ask(web, "metrics.internal:9003", "/peaks"))
	require.Equal(t, 403, ask(web, "evil.example", "/peaks"))
	require.Equal(t, 403, ask(web, "highwater", "/peaks"))
	require.Equal(t, 200, ask(web, "highwater", "/memory"), "the plugin's own")
}
