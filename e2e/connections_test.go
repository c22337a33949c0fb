package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

func limited(n int) func(cfg map[string]any) {
	return func(cfg map[string]any) { section(cfg, "budget")["connections"] = n }
}

// visitor is a connection that asks for something small. It is nil if it was refused.
func (s *scene) visitor() *visitor { return s.visitorFrom(nil) }

// visitorFrom is one from an address of this machine.
func (s *scene) visitorFrom(ip net.IP) *visitor {
	d := net.Dialer{Timeout: 20 * time.Second, LocalAddr: &net.TCPAddr{IP: ip}}
	c, err := d.DialContext(s.t.Context(), "tcp", s.addr)
	if err != nil {
		return nil
	}
	v := &visitor{Conn: c, r: bufio.NewReader(c)}
	if v.get() != nil {
		c.Close()
		return nil
	}
	return v
}

type visitor struct {
	net.Conn
	r *bufio.Reader
}

func (v *visitor) get() error {
	if err := v.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(v, "GET /small HTTP/1.1\r\nhost: test\r\n\r\n"); err != nil {
		return err
	}
	res, err := http.ReadResponse(v.r, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if _, err = io.Copy(io.Discard, res.Body); err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d", res.StatusCode)
	}
	return err
}

// closed says whether Envoy has closed the connection, or does within d.
func closed(t *testing.T, c net.Conn, d time.Duration) bool {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(d)))
	_, err := c.Read(make([]byte, 1))
	require.Error(t, err)
	var timeout net.Error
	return !errors.As(err, &timeout) || !timeout.Timeout()
}

// One source takes all that it gets: the last eighth is for others.
func TestConnectionsOfASource(t *testing.T) {
	forFilters(t, func(t *testing.T, b base) {
		const limit = 160
		s := b.start(t, setup{fake: 40 * mib, plugin: func(cfg map[string]any) {
			limited(limit)(cfg)
			section(cfg, "fairness")["by"] = "source"
		}})
		come := func(host byte, n int) (open []*visitor) {
			for range n {
				if v := s.visitorFrom(net.IPv4(127, 0, 0, host)); v != nil {
					t.Cleanup(func() { v.Close() })
					open = append(open, v)
				}
				time.Sleep(time.Millisecond) // so that workers tell each other
			}
			return open
		}
		greedy := come(2, 2*limit)
		require.LessOrEqual(t, len(greedy), limit-limit/8+b.workers)
		require.Greater(t, len(greedy), limit*3/4)
		others := len(come(3, limit/16)) + len(come(4, limit/16))
		require.GreaterOrEqual(t, others, limit/8-2*b.workers, "of an eighth, less what a worker may have leased and does not use")
		for _, v := range greedy {
			require.NoError(t, v.get(), "it is not cut")
		}
	})
}

// 5,000 connections come at once to a limit of 1,000: never are more open, those that are stay, and
// a listener without the network filter is reached throughout.
func TestLimitOfConnections(t *testing.T) {
	const limit, all = 1000, 5000
	s := start(t, setup{workers: 2, fake: 40 * mib, plugin: limited(limit), edit: func(c envoytest.Config) {
		second(t, c, func(c envoytest.Config) { c.RemoveNetworkFilter() })
	}})
	stop := make(chan struct{})
	var watching sync.WaitGroup
	var bystanders, lost, most atomic.Int64
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if m, err := s.Stats(t.Context(), "highwater_connections"); err == nil {
				most.Store(max(most.Load(), int64(m["wasmcustom.highwater_connections"])))
			}
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
			res, err := c.Get("http://" + s.Addr("second") + "/small")
			bystanders.Add(1)
			if err != nil || res.StatusCode != http.StatusOK {
				lost.Add(1)
			}
			if err == nil {
				res.Body.Close()
			}
			time.Sleep(5 * time.Millisecond)
		}
	})

	var mu sync.Mutex
	var open []*visitor
	come := func(n int) {
		var coming sync.WaitGroup
		for range n {
			coming.Go(func() {
				if v := s.visitor(); v != nil {
					mu.Lock()
					defer mu.Unlock()
					open = append(open, v)
				}
			})
		}
		coming.Wait()
	}
	come(all)
	first := len(open)
	require.LessOrEqual(t, first, limit)
	require.Greater(t, first, limit*9/10)
	require.Eventually(t, func() bool {
		come(10) // what one worker has leased and does not use it gives back on tick
		return len(open) >= limit-2
	}, 20*time.Second, 50*time.Millisecond)
	require.LessOrEqual(t, len(open), limit)
	s.gauge("highwater_connections", float64(len(open)))
	for _, v := range open {
		require.NoError(t, v.get(), "it is not cut")
	}
	close(stop)
	watching.Wait()
	require.LessOrEqual(t, most.Load(), int64(limit))
	require.Positive(t, bystanders.Load())
	require.Zero(t, lost.Load(), "of %d", bystanders.Load())
	stats, err := s.Stats(t.Context(), "highwater")
	require.NoError(t, err)
	t.Logf("%d of %d at once, then %d; at most %d counted; %v refused; %d on the other listener", first, all, len(open), most.Load(),
		stats["wasmcustom.highwater_refused_connections_total"], bystanders.Load())
	require.GreaterOrEqual(t, stats["wasmcustom.highwater_refused_connections_total"], float64(all-limit))
	require.Zero(t, stats["wasmcustom.highwater_host_errors_total"])
	require.Zero(t, stats["wasmcustom.highwater_closed_idle_total"])

	for _, v := range open[:limit/2] {
		v.Close()
	}
	require.Eventually(t, func() bool {
		v := s.visitor()
		if v != nil {
			v.Close()
		}
		return v != nil
	}, 20*time.Second, 20*time.Millisecond, "there is room again")
	for _, v := range open[limit/2:] {
		v.Close()
	}
	s.drained()
}

// A limit that falls while Envoy runs cuts nobody, and one that rises lets more in.
func TestXDSChangesTheLimitOfConnections(t *testing.T) {
	p := newControlPlane(t)
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) {
		c.SetPluginConfig(limited(20))
		p.edit(c)
	}})
	var open []*visitor
	enters := func() bool {
		v := s.visitor()
		if v != nil {
			open = append(open, v)
		}
		return v != nil
	}
	require.Eventually(t, func() bool { enters(); return len(open) >= 18 }, 20*time.Second, time.Millisecond)
	require.LessOrEqual(t, len(open), 20)
	p.set(limited(5))
	require.Eventually(t, func() bool {
		return s.LogMatches(`budget.connections 20 → 5`) && !enters()
	}, 20*time.Second, 20*time.Millisecond)
	there := len(open)
	for range 20 {
		require.False(t, enters())
	}
	s.gauge("highwater_connections", float64(there))
	for _, v := range open[:there/2] {
		// It is on the listener that there was, which drains: Envoy may tell it to close.
		require.NoError(t, v.get())
	}
	p.set(limited(200))
	require.Eventually(t, func() bool { enters(); return len(open) >= there+50 }, 20*time.Second, time.Millisecond)
	for _, v := range open {
		v.Close()
	}
	s.drained()
}

// sorts is an upstream of WebSockets (/ws), of responses that don't end (/hold), and of short ones.
func sorts(t *testing.T) string {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/ws", echoMessages)
	mux.HandleFunc("/hold", func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// tcpProxy replaces the HTTP connection manager.
func tcpProxy(c envoytest.Config) {
	for _, l := range c.Listeners() {
		for _, chain := range l["filter_chains"].([]any) {
			filters := chain.(map[string]any)["filters"].([]any)
			filters[len(filters)-1] = map[string]any{"name": "envoy.filters.network.tcp_proxy", "typed_config": map[string]any{
				"@type":       "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
				"stat_prefix": "tcp", "cluster": "upstream",
			}}
		}
	}
}

// From soft on, connections without a request are closed; those with one stay, be it a response
// that goes on, a WebSocket that is silent, or raw TCP.
func TestIdleConnections(t *testing.T) {
	forFilters(t, func(t *testing.T, b base) {
		s := b.start(t, setup{fake: 40 * mib, upstream: sorts(t), plugin: func(cfg map[string]any) {
			// Soft and not hard: a second without a request, which the test's own clients don't
			// miss.
			section(cfg, "budget")["soft"], section(cfg, "budget")["resume"] = "50%", "45%"
		}, edit: func(c envoytest.Config) {
			upgrades("websocket")(c)
			second(t, c, tcpProxy)
		}})
		visit := func() *visitor {
			t.Helper()
			v := s.visitor()
			require.NotNil(t, v)
			t.Cleanup(func() { v.Close() })
			return v
		}
		var idle, raw []*visitor
		for range 100 {
			idle = append(idle, visit())
			c, err := net.Dial("tcp", s.Addr("second"))
			require.NoError(t, err)
			t.Cleanup(func() { c.Close() })
			v := &visitor{Conn: c, r: bufio.NewReader(c)}
			require.NoError(t, v.get())
			raw = append(raw, v)
		}
		silent, half := s.dial(""), s.dial("GET /small HTTP/1.1\r\nho")
		var live []net.Conn
		for range 10 {
			c := s.dial("GET /hold HTTP/1.1\r\nhost: test\r\n\r\n")
			require.Equal(t, 200, answer(t, c).StatusCode)
			live = append(live, c)
		}
		ws, res, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+s.addr+"/ws", nil)
		require.NoError(t, err)
		res.Body.Close()
		defer ws.Close()
		h2 := client(t, true)
		require.Equal(t, 200, do(t, h2, "GET", s.url("/small"), nil, 0).StatusCode)
		const stay = 100 + 2 + 10 + 1
		s.gauge("highwater_connections", stay+100+1)
		for range 3 { // not while the level is normal
			require.False(t, closed(t, idle[0], 500*time.Millisecond))
		}

		s.reading(150 * mib)
		s.gauge("highwater_connections", stay)
		for _, v := range idle {
			require.True(t, closed(t, v, 5*time.Second))
		}
		s.counter("highwater_closed_idle_total", 101)
		// Those with requests, one after the other, are not closed between them.
		busy := visit()
		for range 40 {
			require.NoError(t, busy.get())
			time.Sleep(50 * time.Millisecond)
		}
		busy.Close()
		s.gauge("highwater_connections", stay)
		for _, c := range append(live, silent, half) {
			require.False(t, closed(t, c, time.Millisecond))
		}
		_, err = io.WriteString(half, "st: test\r\n\r\n")
		require.NoError(t, err)
		require.Equal(t, 200, answer(t, half).StatusCode)
		for _, v := range raw {
			require.NoError(t, v.get())
		}
		require.NoError(t, ws.WriteMessage(websocket.TextMessage, []byte("still there")))
		_, back, err := ws.ReadMessage()
		require.NoError(t, err)
		require.Equal(t, "still there", string(back))
		require.Equal(t, 200, do(t, h2, "GET", s.url("/small"), nil, 0).StatusCode, "a client comes back")
		stats, err := s.Stats(t.Context(), "highwater")
		require.NoError(t, err)
		require.InDelta(t, 1, stats["wasmcustom.highwater_level"], 0)
		require.Zero(t, stats["wasmcustom.highwater_host_errors_total"])
		require.Zero(t, stats["wasmcustom.highwater_refused_connections_total"])
		require.False(t, s.LogMatches("holds requests back"))
	})
}

// What observe would have closed or refused it only counts.
func TestConnectionsAreObserved(t *testing.T) {
	s := start(t, setup{fake: 40 * mib, plugin: func(cfg map[string]any) { cfg["mode"] = "observe"; limited(3)(cfg) }})
	for range 10 {
		v := s.visitor()
		require.NotNil(t, v)
		defer v.Close()
		defer func() { require.NoError(t, v.get()) }()
	}
	s.counter("highwater_refused_connections_total", 7)
	s.reading(full)
	s.counter("highwater_closed_idle_total", 10)
	s.gauge("highwater_connections", 10)
}
