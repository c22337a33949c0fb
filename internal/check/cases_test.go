package check

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// plain is an Envoy as people write it: nothing is set that concerns memory. %s are what a case has
// of its own: HTTP filters, routes, clusters, keys of the connection manager, of the listener, and
// more listeners.
const plain = `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  listeners:
  - name: ingress
    address: {socket_address: {address: 0.0.0.0, port_value: 10000}}
    %[5]s
    filter_chains:
    - filters:
      - name: manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          %[4]s
          http_filters: [%[1]s{name: router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [%[2]s]}]}
  %[6]s
  clusters:
  - name: upstream
    load_assignment: {cluster_name: upstream, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8080}}}}]}]}
  %[3]s
`

type parts struct{ filters, routes, clusters, manager, listener, listeners string }

func (p parts) text() string {
	if p.routes == "" {
		p.routes = "{name: all, match: {prefix: /}, route: {cluster: upstream}}"
	}
	return fmt.Sprintf(plain, p.filters, p.routes, p.clusters, p.manager, p.listener, p.listeners)
}

const filters = "type.googleapis.com/envoy.extensions.filters."

// What every plain Envoy has.
var stock = []string{"no-guard", "listener-buffer", "send-buffer", "http2-window", "cluster-buffer", "connections", "linger"}

// The mechanisms by which Envoys of public reports grew or were killed: in the configuration that
// anybody would write, check names it, and beside it nothing but what every stock Envoy has.
func TestCases(t *testing.T) {
	authz := `{name: authz, typed_config: {"@type": ` + filters + `http.ext_authz.v3.ExtAuthz, with_request_body: {max_request_bytes: 8388608}}}, `
	gunzip := `{name: gunzip, typed_config: {"@type": ` + filters + `http.decompressor.v3.Decompressor, decompressor_library: {name: gz, typed_config:
		{"@type": type.googleapis.com/envoy.extensions.compression.gzip.decompressor.v3.Gzip, max_inflate_ratio: 1032}}}}, `
	gzip := `{name: gzip, typed_config: {"@type": ` + filters + `http.compressor.v3.Compressor, compressor_library: {name: gz, typed_config:
		{"@type": type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip, memory_level: 9, window_bits: 15}}}}, `
	lua := `{name: lua, typed_config: {"@type": ` + filters + `http.lua.v3.Lua, default_source_code: {inline_string: "function envoy_on_request(h) h:body() end"}}}, `
	json := `{name: grpc_json, typed_config: {"@type": ` + filters + `http.grpc_json_transcoder.v3.GrpcJsonTranscoder, services: [a.B]}}, `
	buffer := `{name: buffer, typed_config: {"@type": ` + filters + `http.buffer.v3.Buffer, max_request_bytes: 16777216}}, `
	processor := `{name: processor, typed_config: {"@type": ` + filters + `http.ext_proc.v3.ExternalProcessor, grpc_service: {envoy_grpc: {cluster_name: p}}, processing_mode: {request_body_mode: BUFFERED}}}, `
	windows := `- name: big
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {initial_stream_window_size: 268435456, initial_connection_window_size: 268435456}}`
	proxy := `- name: tcp
    address: {socket_address: {address: 0.0.0.0, port_value: 10001}}
    filter_chains: [{filters: [{name: tcp, typed_config: {"@type": ` + filters + `network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: upstream}}]}]`
	var many strings.Builder
	for i := range 8000 {
		fmt.Fprintf(&many, "- {name: c%d}\n  ", i)
	}
	for name, c := range map[string]struct {
		parts
		want string
		says string
	}{
		"ext-authz-body":       {parts{filters: authz}, "warning holds-bodies", "with_request_body.max_request_bytes is 8MiB"},
		"retry-large":          {parts{routes: "{name: api, match: {prefix: /}, route: {cluster: upstream, retry_policy: {retry_on: 5xx}}, request_body_buffer_limit: 16777216}"}, "warning retries", "up to 16MiB"},
		"mirror-large":         {parts{routes: "{name: api, match: {prefix: /}, route: {cluster: upstream, request_mirror_policies: [{cluster: upstream}]}, request_body_buffer_limit: 16777216}"}, "warning mirrors", "up to 16MiB"},
		"gzip-bomb":            {parts{filters: gunzip}, "warning decompressor", "1.0GiB"},
		"tcp-push":             {parts{listeners: proxy}, "warning raw-tcp", "each connection can hold 2.0MiB"},
		"tls-inspector-silent": {parts{listener: `listener_filters_timeout: 0s, listener_filters: [{name: tls, typed_config: {"@type": ` + filters + `listener.tls_inspector.v3.TlsInspector}}]`}, "warning silent-connections", "64KiB in tls"},
		"h2-windows":           {parts{clusters: windows, routes: "{name: api, match: {prefix: /}, route: {cluster: big}}"}, "warning http2-upstream-window", "256MiB"},
		"clusters-over":        {parts{clusters: many.String()}, "warning base", "8001 clusters: Envoy holds some 431"},
		"headers-large":        {parts{manager: "max_request_headers_kb: 2048"}, "warning headers", "6.0MiB"},
		"lua-body":             {parts{filters: lua}, "warning holds-bodies", "calls body"},
		"grpc-json":            {parts{filters: json}, "warning holds-bodies", "transcoding"},
		"buffer":               {parts{filters: buffer}, "warning holds-bodies", "max_request_bytes is 16MiB"},
		"extproc-other":        {parts{filters: processor}, "warning holds-bodies", "BUFFERED"},
		"gzip-streams":         {parts{filters: gzip}, "warning compressor", "388.0KiB"},
		"http2-streams":        {parts{manager: "http2_protocol_options: {max_concurrent_streams: 2147483647}"}, "warning http2-streams", "without a limit"},
	} {
		t.Run(name, func(t *testing.T) {
			text := c.text()
			if name == "tls-inspector-silent" { // two keys of the listener
				text = strings.Replace(text, "listener_filters_timeout: 0s, listener_filters", "listener_filters_timeout: 0s\n    listener_filters", 1)
			}
			r := report(t, text, Options{})
			found := false
			for _, f := range r.Findings {
				if string(f.Severity)+" "+f.Name == c.want {
					found = true
					require.Contains(t, f.What, c.says)
					continue
				}
				require.Contains(t, stock, f.Name, "%+v", f)
			}
			require.True(t, found, short(r))
			require.Contains(t, r.Verdict, "Not bounded: nothing limits how many connections there are")
		})
	}
}

// two-listeners: one is guarded, and the flood comes by the other.
func TestOneOfTwoListeners(t *testing.T) {
	text := edit(t, example(t, "envoy.yaml"), "  - name: debug\n", strings.TrimPrefix(strings.ReplaceAll(`
  - name: egress
    address: {socket_address: {address: 127.0.0.1, port_value: 10002}}
    filter_chains: [{filters: [{name: m, typed_config: {"@type": TYPEnetwork.http_connection_manager.v3.HttpConnectionManager, stat_prefix: e,
      http_filters: [{name: router, typed_config: {"@type": TYPEhttp.router.v3.Router}}],
      route_config: {virtual_hosts: [{name: e, domains: ["*"], routes: [{name: e, match: {prefix: /}, route: {cluster: upstream}}]}]}}}]}]
  - name: debug
`, "TYPE", filters), "\n"), false)
	r := report(t, text, Options{})
	require.Equal(t, "Highwater guards 1 of 2 listeners with traffic: what the others take is not held back.", r.Verdict)
	require.Contains(t, short(r), "warning unguarded-listener")
	require.Equal(t, "warning unguarded-listener", short(r)[0])
	require.Equal(t, []string{"listener egress"}, r.Findings[0].Places)
	_, _, err := Write([]byte(text), Options{})
	require.ErrorContains(t, err, "there is Highwater in it already")
}

// Where all that may come fits into the container, Highwater is not worth it; where there is
// nothing to guard, it says so.
func TestVerdicts(t *testing.T) {
	limited := parts{manager: "codec_type: HTTP1"}.text() + "layered_runtime: {layers: [{name: a, static_layer: {overload.global_downstream_max_connections: 20}}]}\n"
	r := report(t, limited, Options{Container: 1024 * mib})
	require.Contains(t, r.Verdict, "Highwater is not worth it here")
	require.Contains(t, report(t, limited, Options{Container: 128 * mib}).Verdict, "Not bounded by what is known")
	require.Contains(t, report(t, parts{}.text(), Options{}).Verdict, "Highwater would take filters in 1 filter chain(s)")
	require.Contains(t, report(t, parts{routes: "{match: {prefix: /}, direct_response: {status: 200}}"}.text(), Options{}).Verdict, "there is nothing to guard")
	require.Contains(t, report(t, "dynamic_resources: {lds_config: {ads: {}}}", Options{}).Verdict, "highwater check -admin URL")
}

// Before 1.36 a window was 256 MiB, and streams were not limited.
func TestVersions(t *testing.T) {
	old := Version{1, 35}
	r := report(t, parts{}.text(), Options{Version: &old})
	require.Contains(t, short(r), "warning http2-streams")
	for _, f := range r.Findings {
		if f.Name == "http2-window" {
			require.Contains(t, f.What, "256MiB in Envoy 1.35")
		}
	}
	require.Equal(t, Most(-1), r.Listeners[0].HTTP2)
	for text, want := range map[string]Version{"1.38": {1, 38}, "1.38.2": {1, 38}, "v1.40.0": {1, 40}} {
		v, err := ParseVersion(text)
		require.NoError(t, err)
		require.Equal(t, want, v)
	}
	for _, text := range []string{"", "2", "1", "latest", "2.0"} {
		_, err := ParseVersion(text)
		require.ErrorContains(t, err, "no version of Envoy")
	}
}
