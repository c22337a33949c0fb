package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// Responses over HTTP/2 wait in front of the codec for slow readers, on Envoy's own settings: less
// is held than without the module, and once the readers go on they get the same bytes and trailers,
// whatever else is on their connection. So they do where a filter behind the module changes what
// passes, and what the codec has can't be told.
func TestTheModuleMetersResponses(t *testing.T) {
	certificate, key := selfSigned(t)
	for name, c := range map[string]struct{ encrypted, compressed bool }{
		"clear": {}, "TLS": {encrypted: true}, "a compressor behind it": {compressed: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			with := func(guarded bool) *scene {
				return start(t, setup{face: envoytest.Module, workers: 1, upstream: witness(t), edit: func(cfg envoytest.Config) {
					untouched(cfg)
					if c.compressed {
						compress(cfg)
					}
					if c.encrypted {
						cfg.SetTLS(certificate, key)
					}
					if !guarded {
						cfg.RemoveGuard()
					}
				}})
			}
			guarded := with(true)
			held := readSlowly(t, guarded, c.encrypted, c.compressed)
			guarded.quiet()
			if name == "clear" {
				plain := readSlowly(t, with(false), false, false)
				t.Logf("held by %d readers: %d MiB, and %d without the module", slowReaders, held>>20, plain>>20)
				require.Less(t, held, plain/2)
			}
		})
	}
}

const (
	slowReaders = 24
	slowBytes   = 8 * mib
)

// readSlowly has clients open responses on a few connections and read nothing of them for a while,
// with small requests beside, and then all. It returns what Envoy has held of them.
func readSlowly(t *testing.T, s *scene, encrypted, compressed bool) (held int64) {
	t.Helper()
	scheme := map[bool]string{false: "http", true: "https"}[encrypted]
	want := sha256.Sum256(fmt.Appendf(nil, "GET 0 %x %s\n", sha256.New().Sum(nil), bytes.Repeat([]byte("y"), slowBytes)))
	before, err := s.Memory(t.Context())
	require.NoError(t, err)
	clients := make([]*http.Client, 3)
	for i := range clients {
		clients[i] = secureClient(t, true, encrypted)
		clients[i].Timeout = time.Minute
		clients[i].Transport.(*http.Transport).HTTP2 = &http.HTTP2Config{MaxReceiveBufferPerStream: 64 << 10}
		clients[i].Transport.(*http.Transport).DisableCompression = !compressed
	}
	get := func(c *http.Client, n int) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), "GET", scheme+"://"+s.addr+"/echo?n="+strconv.Itoa(n), nil)
		require.NoError(t, err)
		req.Header.Set("content-type", "application/grpc") // by HTTP/2, which has trailers
		res, err := c.Do(req)
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, res.StatusCode)
		require.Equal(t, 2, res.ProtoMajor)
		return res
	}
	var answers []*http.Response
	for i := range slowReaders {
		c := clients[i%len(clients)]
		answers = append(answers, get(c, slowBytes))
		small := get(c, 100<<10) // they pass by
		n, err := io.Copy(io.Discard, small.Body)
		require.NoError(t, err)
		require.Greater(t, n, int64(100<<10))
		require.NoError(t, small.Body.Close())
		q := question{method: "POST", path: "/echo", size: 1000, expect: true}
		require.Contains(t, q.ask(t, c, scheme, s.addr), "200 whole continued")
	}
	time.Sleep(700 * time.Millisecond) // nobody tells when all is held that will be
	after, err := s.Memory(t.Context())
	require.NoError(t, err)
	var wg sync.WaitGroup
	for _, res := range answers {
		wg.Go(func() {
			defer res.Body.Close()
			hash := sha256.New()
			_, err := io.Copy(hash, res.Body)
			require.NoError(t, err)
			require.Equal(t, want[:], hash.Sum(nil))
			require.Equal(t, strconv.Itoa(slowBytes), res.Trailer.Get("x-sum"))
		})
	}
	wg.Wait()
	return after.InUse() - before.InUse()
}

// compress has a compressor behind the module, on the way of responses.
func compress(c envoytest.Config) {
	c.SetConnectionManager(func(hcm map[string]any) {
		const types = "type.googleapis.com/envoy.extensions."
		filters := hcm["http_filters"].([]any)
		hcm["http_filters"] = append([]any{map[string]any{"name": "compressor", "typed_config": map[string]any{
			"@type":                     types + "filters.http.compressor.v3.Compressor",
			"response_direction_config": map[string]any{"common_config": map[string]any{"content_type": []any{"text/plain"}}},
			"compressor_library": map[string]any{"name": "gzip", "typed_config": map[string]any{
				"@type": types + "compression.gzip.compressor.v3.Gzip", "compression_level": "COMPRESSION_LEVEL_1",
			}},
		}}}, filters...)
	})
}

// An Envoy without HTTP is governed, and has its metrics.
func TestTheModuleWithRawTCPAlone(t *testing.T) {
	t.Parallel()
	upstream := rawUpstream(t)
	s := start(t, setup{face: envoytest.Module, workers: 1, edit: func(c envoytest.Config) {
		makeRaw(c)
		addRaw(t, c, upstream)
		delete(c.Cluster("raw"), "per_connection_buffer_limit_bytes")
		resources := c["static_resources"].(map[string]any)
		resources["listeners"] = resources["listeners"].([]any)[:1]
		c.SetWholePluginConfig(`{"budget": {"limit": "60MiB"}}`)
	}})
	for range 100 {
		c := s.dial("p")
		require.NoError(t, c.(*net.TCPConn).SetReadBuffer(8<<10))
		time.Sleep(5 * time.Millisecond)
	}
	s.counter("highwater_refused_connections_total", 1)
	stats, err := s.Stats(t.Context(), "highwater")
	require.NoError(t, err)
	require.Positive(t, stats["wasmcustom.highwater_connections"])
	require.LessOrEqual(t, stats["wasmcustom.highwater_peak_bytes"], 66.*mib)
}

// Connections that say nothing are bounded while Envoy's tls_inspector waits for them, and lock
// nobody out for longer than a second, though Envoy would wait for ever.
func TestTheModuleBoundsSilentConnections(t *testing.T) {
	t.Parallel()
	s := start(t, setup{face: envoytest.Module, workers: 1, edit: func(c envoytest.Config) {
		c.SetWholePluginConfig(`{"budget": {"limit": "40MiB"}}`)
		l := c.Listeners()[0]
		l["listener_filters_timeout"] = "0s"
		l["listener_filters"] = append(l["listener_filters"].([]any), map[string]any{
			"name": "tls_inspector", "typed_config": map[string]any{
				"@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
			},
		})
	}})
	c := client(t, false)
	require.Equal(t, 200, do(t, c, "GET", s.url("/small"), nil, 0).StatusCode) // so that there are readings
	open := func(n int) (all []net.Conn) {
		for range n {
			all = append(all, s.dial(""))
		}
		return all
	}
	closed := func(all []net.Conn) (n int) {
		for _, c := range all {
			require.NoError(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
			if _, err := c.Read(make([]byte, 1)); errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
				n++
			}
		}
		return n
	}
	first := open(300)
	s.counter("highwater_refused_connections_total", 1)
	refused := closed(first)
	require.Positive(t, refused)
	require.Less(t, refused, 250, "they are bounded by what they cost")

	time.Sleep(1100 * time.Millisecond) // for so long others find no place
	next := open(50)
	require.Eventually(t, func() bool { return closed(first) == refused+50 }, 10*time.Second, 100*time.Millisecond)
	require.Zero(t, closed(next), "those who have said nothing for long have gone for them")
	c.CloseIdleConnections()
	require.Equal(t, 200, do(t, c, "GET", s.url("/small"), nil, 0).StatusCode)
}
