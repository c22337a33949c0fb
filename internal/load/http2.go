package load

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// http2Conn is one HTTP/2 connection that clients share. When it is lost, the next that asks dials
// another.
type http2Conn struct {
	addr      string
	transport *http.Transport

	mu struct {
		sync.Mutex
		conn *http.ClientConn
		old  []*http.ClientConn // take no new requests, and may have some under way
	}
}

// newHTTP2 makes a connection that dials on first use. streamWindow > 0 is how much a stream's
// reader lets its peer send ahead; the connection's window is wide, so that no reader holds up
// another.
func newHTTP2(addr string, streamWindow, receiveBuffer int) *http2Conn {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http2Conn{addr: addr, transport: &http.Transport{
		Protocols: protocols,
		HTTP2:     &http.HTTP2Config{MaxReceiveBufferPerStream: streamWindow, StrictMaxConcurrentRequests: true},
		DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
			return dial(ctx, addr, receiveBuffer)
		},
	}}
}

func setTenant(req *http.Request, tenant string) {
	if tenant != "" {
		req.Header.Set(tenantHeader, tenant)
	}
}

// do sends one request. A connection-level failure is errConnectionLost.
func (c *http2Conn) do(req *http.Request) (*http.Response, error) {
	for {
		conn, err := c.get(req.Context())
		if err != nil {
			return nil, err
		}
		resp, err := conn.RoundTrip(req)
		if err != nil && strings.Contains(err.Error(), "client conn not usable") {
			c.retire(conn)
			if req.Body == nil { // else it is closed by now
				continue
			}
			return nil, fmt.Errorf("%w: %w", errConnectionLost, err)
		}
		return resp, c.explain(conn, err)
	}
}

// retire has the next request dial another: the connection was told to go away. Those that are
// under way on it go on.
func (c *http2Conn) retire(conn *http.ClientConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.conn != conn {
		return
	}
	c.mu.old = slices.DeleteFunc(append(c.mu.old, conn), func(old *http.ClientConn) bool { return old.InFlight() == 0 && old.Close() == nil })
	c.mu.conn = nil
}

// explain tells the failure of a connection from that of a stream. net/http has no types for
// either.
func (c *http2Conn) explain(conn *http.ClientConn, err error) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if strings.Contains(text, "stream error") || strings.Contains(text, "stream ID") && strings.Contains(text, "RST") {
		return fmt.Errorf("stream reset: %w", errors.New(text))
	}
	if conn.Err() != nil || strings.Contains(text, "GOAWAY") || strings.Contains(text, "connection lost") || isClosed(err) {
		return fmt.Errorf("%w: %w", errConnectionLost, err)
	}
	return err
}

func (c *http2Conn) get(ctx context.Context) (*http.ClientConn, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.conn != nil && c.mu.conn.Err() == nil {
		return c.mu.conn, nil
	}
	if c.mu.conn != nil {
		_ = c.mu.conn.Close()
		c.mu.conn = nil
	}
	conn, err := c.transport.NewClientConn(ctx, "http", c.addr)
	if err != nil {
		return nil, err
	}
	c.mu.conn = conn
	return conn, nil
}

func (c *http2Conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.conn != nil {
		_ = c.mu.conn.Close()
		c.mu.conn = nil
	}
	for _, old := range c.mu.old {
		_ = old.Close()
	}
	c.mu.old = nil
	c.transport.CloseIdleConnections()
}

// http2Pool spreads n clients over connections of perConn streams each.
func http2Pool(addr string, n, perConn, streamWindow, receiveBuffer int) []*http2Conn {
	if perConn <= 0 {
		perConn = n
	}
	conns := make([]*http2Conn, 0, (n+perConn-1)/max(perConn, 1))
	for range (n + perConn - 1) / max(perConn, 1) {
		conns = append(conns, newHTTP2(addr, streamWindow, receiveBuffer))
	}
	return conns
}
