package e2e

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// echoMessages serves a WebSocket that sends back what it gets.
func echoMessages(w http.ResponseWriter, r *http.Request) {
	var up websocket.Upgrader
	c, err := up.Upgrade(w, r, nil)
	if err != nil {
		return
	}
	defer c.Close()
	for {
		kind, message, err := c.ReadMessage()
		if err != nil || c.WriteMessage(kind, message) != nil {
			return
		}
	}
}

// echoes is an upstream of WebSockets.
func echoes(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(echoMessages))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// tunnelled is an upstream that echoes what it is sent.
func tunnelled(t *testing.T) string {
	t.Helper()
	return listenTCP(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// listenTCP is an upstream that serves each connection until serve returns.
func listenTCP(t *testing.T, serve func(c net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	return l.Addr().String()
}

func upgrades(kind string) func(c envoytest.Config) {
	return func(c envoytest.Config) {
		c.SetConnectionManager(func(hcm map[string]any) {
			hcm["upgrade_configs"] = []any{map[string]any{"upgrade_type": kind}}
			hcm["http2_protocol_options"].(map[string]any)["allow_connect"] = true
		})
		if kind != "CONNECT" {
			return
		}
		c.AddRoute(map[string]any{
			"match": map[string]any{"connect_matcher": map[string]any{}},
			"route": map[string]any{
				"cluster": "upstream", "timeout": "0s",
				"upgrade_configs": []any{map[string]any{"upgrade_type": "CONNECT", "connect_config": map[string]any{}}},
			},
		})
	}
}

// A WebSocket is a stream without lengths: its bytes are counted, it goes on under pressure, and is
// cut only where it has been idle and what it sends then has no room at all.
func TestWebSocket(t *testing.T) {
	forPlugins(t, 1, func(t *testing.T, b base) {
		t.Helper()
		s := b.start(t, setup{ // forecasts are a worker's
			fake: 40 * mib, upstream: echoes(t), edit: upgrades("websocket"),
			plugin: func(cfg map[string]any) { cfg["evict"] = false }, // it goes over the limit
		})
		dial := func() *websocket.Conn {
			t.Helper()
			c, res, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+s.addr+"/ws", nil)
			require.NoError(t, err)
			res.Body.Close()
			t.Cleanup(func() { c.Close() })
			require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
			return c
		}
		message := bytes.Repeat([]byte("x"), 64<<10)
		echo := func(c *websocket.Conn) {
			t.Helper()
			require.NoError(t, c.WriteMessage(websocket.BinaryMessage, message))
			_, back, err := c.ReadMessage()
			require.NoError(t, err)
			require.Equal(t, message, back)
		}
		c := dial()
		for range 100 {
			echo(c)
		}
		s.streams(1)
		s.quiet()
		s.gauge("highwater_exposure_bytes", 16*mib+128<<10) // the caps: whole_request, and two buffers for the response
		s.reading(full - 12*mib)                            // what it sends has room there, also where the jump is a surprise
		for range 100 {
			echo(c)
		}
		s.quiet()

		// Its request is expected to bring what others brought: it waits as an upload does, also
		// when what was still coming has lapsed.
		s.reading(full + 4*mib)
		dialled := make(chan *websocket.Conn)
		go func() {
			c, res, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+s.addr+"/ws", nil)
			if err == nil {
				res.Body.Close()
			}
			dialled <- c
		}()
		s.waiting(1)
		s.reading(40 * mib)
		other := <-dialled
		require.NotNil(t, other)
		defer other.Close()
		echo(other)

		// What was reserved for it has lapsed when it has been idle, and what it sends then must
		// have room.
		s.gauge("highwater_coming_bytes", 0)
		s.reading(210 * mib)
		require.NoError(t, other.SetReadDeadline(time.Now().Add(20*time.Second)))
		var err error
		for err == nil {
			if err = other.WriteMessage(websocket.BinaryMessage, message); err == nil {
				_, _, err = other.ReadMessage()
			}
		}
		s.turnedAway(1) // for its growth, or closed where not even an answer has room
		s.reading(40 * mib)
		echo(c)
		require.NoError(t, c.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")))
		c.Close()
		s.drained()
	})
}

// A tunnel is one too, over HTTP/1 and HTTP/2.
func TestConnect(t *testing.T) {
	forPlugins(t, 2, func(t *testing.T, b base) {
		t.Helper()
		s := b.start(t, setup{fake: 40 * mib, upstream: tunnelled(t), edit: upgrades("CONNECT")})
		tunnel := func(t *testing.T, write io.Writer, read io.Reader) {
			t.Helper()
			for range 50 {
				_, err := write.Write(make([]byte, 32<<10))
				require.NoError(t, err)
				_, err = io.ReadFull(read, make([]byte, 32<<10))
				require.NoError(t, err)
			}
			s.streams(1)
			s.quiet()
		}
		t.Run("HTTP/1", func(t *testing.T) {
			c := s.dial("CONNECT test:80 HTTP/1.1\r\nhost: test:80\r\n\r\n")
			require.Equal(t, 200, answer(t, c).StatusCode)
			tunnel(t, c, c)
			c.Close()
			s.drained()
		})
		t.Run("HTTP/2", func(t *testing.T) {
			c := client(t, true)
			r, w := io.Pipe()
			res, err := c.Do(&http.Request{
				Method: http.MethodConnect, URL: &url.URL{Scheme: "http", Host: s.addr}, Host: "test:80", Body: r, ContentLength: -1,
				Header: http.Header{},
			})
			require.NoError(t, err)
			require.Equal(t, 200, res.StatusCode)
			tunnel(t, w, res.Body)
			require.NoError(t, w.Close())
			res.Body.Close()
			s.drained(c.CloseIdleConnections)
		})
	})
}
