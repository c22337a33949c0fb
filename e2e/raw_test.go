package e2e

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// rawUpstream echoes what it is sent, but after a p it sends without an end.
func rawUpstream(t *testing.T) string {
	t.Helper()
	return listenTCP(t, func(c net.Conn) {
		b := make([]byte, 1)
		for {
			if _, err := c.Read(b); err != nil {
				return
			}
			for b[0] == 'p' {
				if _, err := c.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	})
}

// withRaw adds a listener that has tcp_proxy in place of HTTP, behind the network filter.
func withRaw(t *testing.T, c envoytest.Config, upstream string) {
	t.Helper()
	second(t, c, makeRaw)
	addRaw(t, c, upstream)
}

// makeRaw has the first listener have tcp_proxy in place of HTTP.
func makeRaw(c envoytest.Config) {
	chain := c.Listeners()[0]["filter_chains"].([]any)[0].(map[string]any)
	filters := chain["filters"].([]any)
	filters[len(filters)-1] = map[string]any{"name": "envoy.filters.network.tcp_proxy", "typed_config": map[string]any{
		"@type":       "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
		"stat_prefix": "raw", "cluster": "raw",
	}}
}

// addRaw adds the cluster of tcp_proxy.
func addRaw(t *testing.T, c envoytest.Config, upstream string) {
	t.Helper()
	host, port, err := net.SplitHostPort(upstream)
	require.NoError(t, err)
	resources := c["static_resources"].(map[string]any)
	resources["clusters"] = append(resources["clusters"].([]any), map[string]any{
		"name": "raw", "type": "STATIC", "connect_timeout": "5s", "per_connection_buffer_limit_bytes": 64 << 10,
		"load_assignment": map[string]any{"cluster_name": "raw", "endpoints": []any{map[string]any{"lb_endpoints": []any{map[string]any{
			"endpoint": map[string]any{"address": map[string]any{"socket_address": map[string]any{"address": host, "port_value": port}}},
		}}}}},
	})
}

// Raw TCP on a listener beside one of HTTP, with one configuration for both: connections that fill
// buffers are counted, no new ones are let in where those have no room, and over the limit they are
// closed. One that says little stays, and so do requests.
func TestRawTCP(t *testing.T) {
	forFilters(t, func(t *testing.T, b base) {
		t.Helper()
		upstream := rawUpstream(t)
		s := b.start(t, setup{fake: 40 * mib, edit: func(c envoytest.Config) { withRaw(t, c, upstream) }})
		connect := func(first string) net.Conn {
			t.Helper()
			c, err := net.DialTimeout("tcp", s.Addr("second"), 20*time.Second)
			require.NoError(t, err)
			t.Cleanup(func() { c.Close() })
			_, _ = io.WriteString(c, first) // it may have been refused already
			return c
		}
		echoes := func(c net.Conn) bool {
			t.Helper()
			if _, err := io.WriteString(c, "e"); err != nil {
				return false
			}
			require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
			_, err := io.ReadFull(c, make([]byte, 1))
			return err == nil
		}
		quiet := connect("")
		require.True(t, echoes(quiet))
		var deaf []net.Conn
		for range 20 {
			deaf = append(deaf, connect("p"))
		}
		s.gauge("highwater_streams", 20)

		s.reading(190 * mib)
		require.Eventually(t, func() bool { return !echoes(connect("")) }, 30*time.Second, 200*time.Millisecond, "new ones are refused")
		require.NotNil(t, s.visitor(), "on the other listener nobody is")

		s.reading(230 * mib)
		require.Eventually(t, func() bool {
			stats, err := s.Stats(t.Context(), "highwater_rejected_total")
			return err == nil && stats["wasmcustom.highwater_rejected_total.reason.evicted"] >= 20
		}, 30*time.Second, 50*time.Millisecond)
		for _, c := range deaf {
			require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
			n, err := io.Copy(io.Discard, c)
			var timeout net.Error
			require.False(t, errors.As(err, &timeout) && timeout.Timeout(), "it ends when its client has read what was there: %d bytes", n)
		}
		require.True(t, echoes(quiet))
		require.NotNil(t, s.visitor())
		s.gauge("highwater_streams", 0)

		s.reading(40 * mib)
		require.Eventually(t, func() bool { return echoes(connect("")) }, 20*time.Second, 100*time.Millisecond, "there is room again")
		m, err := s.Stats(t.Context(), "highwater")
		require.NoError(t, err)
		require.Equal(t, 20, int(m["wasmcustom.highwater_rejected_total.reason.evicted"]))
		require.Zero(t, m["wasmcustom.highwater_host_errors_total"])
	})
}
