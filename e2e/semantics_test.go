package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// The module sets buffers of connections by itself. What other filters may hold, and all that a
// client sees, is as in an Envoy without it, on Envoy's own settings: the same statuses, bodies,
// headers of filters and trailers, whatever the protocol.
func TestTheModuleChangesNoSemantics(t *testing.T) {
	certificate, key := selfSigned(t)
	for _, encrypted := range []bool{false, true} {
		t.Run(map[bool]string{false: "clear", true: "TLS"}[encrypted], func(t *testing.T) {
			t.Parallel()
			with := func(guarded bool) *scene {
				return start(t, setup{face: envoytest.Module, workers: 2, upstream: witness(t), edit: func(c envoytest.Config) {
					untouched(c)
					if encrypted {
						c.SetTLS(certificate, key)
					}
					if !guarded {
						c.RemoveGuard()
					}
				}})
			}
			plain, guarded := with(false), with(true)
			for _, http2 := range []bool{false, true} {
				c := secureClient(t, http2, encrypted)
				scheme := map[bool]string{false: "http", true: "https"}[encrypted]
				for _, q := range questions() {
					name := fmt.Sprintf("%s, HTTP/2 %v", q.name, http2)
					var got, want string
					// Whether a client that still sends sees a 413 or a reset is a matter of time.
					for range 5 {
						if got, want = q.ask(t, c, scheme, guarded.addr), q.ask(t, c, scheme, plain.addr); got == want {
							break
						}
					}
					require.Equal(t, want, got, name)
					if q.want != "" {
						require.Contains(t, want, q.want, name)
					}
				}
			}
			guarded.quiet()
		})
	}
}

// untouched has Envoy's own settings, the filters that hold bodies, and the shortest configuration.
func untouched(c envoytest.Config) {
	for _, l := range c.Listeners() {
		delete(l, "socket_options")
	}
	for _, cluster := range c.Clusters() {
		delete(cluster, "per_connection_buffer_limit_bytes")
	}
	delete(c, "memory_allocator_manager")
	c.SetWholePluginConfig(`{"budget": {"limit": "800MiB"}}`)
	const types = "type.googleapis.com/envoy.extensions.filters.http."
	c.SetConnectionManager(func(hcm map[string]any) {
		delete(hcm, "http2_protocol_options")
		hcm["proxy_100_continue"] = true
		hcm["upgrade_configs"] = []any{map[string]any{"upgrade_type": "websocket"}}
		filters := hcm["http_filters"].([]any)
		router := filters[len(filters)-1]
		hcm["http_filters"] = append(filters[:len(filters)-1:len(filters)-1],
			map[string]any{"name": "lua", "disabled": true, "typed_config": map[string]any{"@type": types + "lua.v3.Lua"}},
			map[string]any{"name": "authz", "disabled": true, "typed_config": map[string]any{
				"@type": types + "ext_authz.v3.ExtAuthz",
				"http_service": map[string]any{
					"server_uri": map[string]any{"uri": "http://authz", "cluster": "upstream", "timeout": "10s"}, "path_prefix": "/authz",
					"authorization_response": map[string]any{"allowed_upstream_headers": map[string]any{"patterns": []any{map[string]any{"exact": "x-authorized"}}}},
				},
				"with_request_body": map[string]any{"max_request_bytes": 4 * mib, "pack_as_bytes": true},
			}},
			router)
	})
	route := func(path string, action, perFilter map[string]any) {
		r := map[string]any{"name": path, "match": map[string]any{"prefix": path}, "typed_per_filter_config": perFilter}
		for k, v := range action {
			r[k] = v
		}
		c.AddRoute(r)
	}
	upstream := map[string]any{"route": map[string]any{"cluster": "upstream", "timeout": "0s"}}
	route("/lua", upstream, map[string]any{"lua": map[string]any{"@type": types + "lua.v3.LuaPerRoute", "source_code": map[string]any{
		"inline_string": "function envoy_on_request(h)\n  h:headers():add('x-lua', tostring(h:body():length()))\nend\n" +
			"function envoy_on_response(h)\n  h:headers():add('x-lua-response', tostring(h:body():length()))\nend\n",
	}}})
	route("/checked", upstream, map[string]any{"authz": map[string]any{"@type": types + "ext_authz.v3.ExtAuthzPerRoute", "check_settings": map[string]any{}}})
	route("/buffered", upstream, map[string]any{"envoy.filters.http.buffer": map[string]any{
		"@type": types + "buffer.v3.BufferPerRoute", "buffer": map[string]any{"max_request_bytes": 2 * mib},
	}})
	retries := map[string]any{"retry_on": "5xx", "num_retries": 2, "retry_back_off": map[string]any{"base_interval": "0.001s"}}
	route("/again", map[string]any{"route": map[string]any{"cluster": "upstream", "timeout": "0s", "retry_policy": retries}}, nil)
	route("/kept", map[string]any{
		"request_body_buffer_limit": 4 * mib, "route": map[string]any{"cluster": "upstream", "timeout": "0s", "retry_policy": retries},
	}, nil)
	route("/direct", map[string]any{"direct_response": map[string]any{"status": 418, "body": map[string]any{"inline_string": "a teapot"}}}, nil)
}

// witness tells of each request what came of it: its bytes, and what filters added to its headers.
// Below again and kept it fails twice.
func witness(t *testing.T) string {
	t.Helper()
	var mu sync.Mutex
	tries := map[string]int{}
	return listenHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("expect") != "" && r.URL.Path == "/refuses" {
			w.WriteHeader(http.StatusExpectationFailed)
			return
		}
		hash := sha256.New()
		n, err := io.Copy(hash, r.Body)
		if err != nil {
			return // its client, or Envoy, has given it up
		}
		if id := r.Header.Get("x-again"); id != "" {
			mu.Lock()
			tries[id]++
			try := tries[id]
			mu.Unlock()
			if try < 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
		}
		w.Header().Set("Trailer", "x-sum")
		w.Header().Set("x-authorized", "yes")
		w.Header().Set("x-seen", r.Header.Get("x-lua")+" "+r.Header.Get("x-authorized"))
		answer, _ := strconv.Atoi(r.URL.Query().Get("n"))
		fmt.Fprintf(w, "%s %d %x %s\n", r.Method, n, hash.Sum(nil), bytes.Repeat([]byte("y"), answer))
		w.Header().Set("x-sum", strconv.Itoa(answer))
	}))
}

func listenHTTP(t *testing.T, h http.Handler) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: h, Protocols: protocols, ReadHeaderTimeout: time.Minute}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// question is a request, asked of both.
type question struct {
	name   string
	method string
	path   string
	size   int
	chunks bool // without a length
	expect bool // 100-continue
	again  bool
	want   string // is in the answer of a plain Envoy: else the test would compare nothing
}

func questions() (all []question) {
	for _, size := range []int{0, 100 << 10, 400 << 10, 900 << 10, 3 * mib, 8 * mib} {
		for _, path := range []string{"/echo", "/lua", "/checked", "/buffered", "/again", "/kept"} {
			for _, chunks := range []bool{false, true} {
				q := question{method: "POST", path: path, size: size, chunks: chunks, again: path == "/again" || path == "/kept"}
				q.name = fmt.Sprintf("%s %d, chunked %v", path, size, chunks)
				if size <= 900<<10 {
					q.want = "200"
				}
				all = append(all, q)
			}
		}
	}
	return append(all,
		question{name: "direct", method: "GET", path: "/direct", want: "418"},
		question{name: "direct with a body", method: "POST", path: "/direct", size: 400 << 10, want: "418"},
		question{name: "HEAD", method: "HEAD", path: "/echo?n=100000", want: "200"},
		question{name: "a large answer", method: "GET", path: "/echo?n=5000000", want: "200"},
		question{name: "a large answer through Lua", method: "GET", path: "/lua?n=700000", want: "200"},
		question{name: "too large an answer for Lua", method: "GET", path: "/lua?n=9000000"},
		question{name: "100 Continue", method: "POST", path: "/echo", size: 100 << 10, expect: true, want: "continued"},
		question{name: "Expect refused", method: "POST", path: "/refuses", size: 100 << 10, expect: true, want: "417"},
	)
}

// ask tells what came, as text to compare.
func (q *question) ask(t *testing.T, c *http.Client, scheme, addr string) (what string) {
	t.Helper()
	continued := ""
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { continued = " continued" }})
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var body io.Reader
	if q.size > 0 {
		if body = bytes.NewReader(bytes.Repeat([]byte("highwater"), q.size/9+1)[:q.size]); q.chunks {
			body = io.MultiReader(body)
		}
	}
	req, err := http.NewRequestWithContext(ctx, q.method, scheme+"://"+addr+q.path, body)
	require.NoError(t, err)
	if q.expect {
		req.Header.Set("expect", "100-continue")
	}
	if q.again {
		req.Header.Set("x-again", rand.Text())
	}
	res, err := c.Do(req)
	if err != nil {
		return "no answer"
	}
	defer res.Body.Close()
	hash := sha256.New()
	n, err := io.Copy(hash, res.Body)
	ended := "whole"
	if err != nil {
		ended, n = "broken", 0
		hash.Reset()
	}
	require.Equal(t, c.Transport.(*http.Transport).Protocols.HTTP1(), res.ProtoMajor == 1)
	return fmt.Sprintf("%d %s%s %d %x seen %q lua %q trailer %q", res.StatusCode, ended, continued, n, hash.Sum(nil),
		res.Header.Get("x-seen"), res.Header.Get("x-lua-response"), res.Trailer.Get("x-sum"))
}

// secureClient is client, with TLS if encrypted, whoever it is at the other end.
func secureClient(t *testing.T, http2, encrypted bool) *http.Client {
	t.Helper()
	c := client(t, http2)
	tr := c.Transport.(*http.Transport)
	tr.ExpectContinueTimeout = 10 * time.Second
	if encrypted {
		tr.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} //nolint:gosec // its own certificate, on loopback
		tr.Protocols.SetUnencryptedHTTP2(false)
		tr.Protocols.SetHTTP2(http2)
	}
	return c
}

func selfSigned(t *testing.T) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	about := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	signed, err := x509.CreateCertificate(rand.Reader, about, about, &private.PublicKey, private)
	require.NoError(t, err)
	encoded, err := x509.MarshalECPrivateKey(private)
	require.NoError(t, err)
	block := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return block("CERTIFICATE", signed), block("EC PRIVATE KEY", encoded)
}
