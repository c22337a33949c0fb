package check

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const mib = unit.MiB

func example(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../../examples/" + name)
	require.NoError(t, err)
	return string(text)
}

// edit replaces what must be there so many times as there are: all of them, or the first.
func edit(t *testing.T, text, from, to string, all bool) string {
	t.Helper()
	require.Contains(t, text, from)
	if all {
		return strings.ReplaceAll(text, from, to)
	}
	return strings.Replace(text, from, to, 1)
}

// report checks a text that can be read.
func report(t *testing.T, text string, o Options) Report {
	t.Helper()
	e, err := Read([]byte(text))
	require.NoError(t, err)
	r := Check(e, o)
	for _, f := range r.Findings {
		require.Contains(t, severities(f.Name), string(f.Severity), "%s: the reference explains it", f.Name)
		require.NotContains(t, f.What+f.Write+strings.Join(f.Places, ""), "\n")
	}
	return r
}

// severities are those that a finding may have.
func severities(name string) string {
	for _, k := range kinds {
		if k.name == name {
			return k.severities
		}
	}
	return ""
}

// short is a finding as the tests name it.
func short(r Report) (all []string) {
	for _, f := range r.Findings {
		all = append(all, string(f.Severity)+" "+f.Name)
	}
	return all
}

// The shipped example is clean, and with one setting broken there is exactly the finding of that.
func TestTheFiltersExample(t *testing.T) {
	text := example(t, "envoy.yaml")
	r := report(t, text, Options{})
	require.Empty(t, r.Findings)
	require.Empty(t, r.Paste)
	require.Equal(t, "Highwater guards all of 1 listener(s) with traffic.", r.Verdict)
	require.Equal(t, Most(-1), r.Listeners[0].All, "nothing but the guard limits its connections")
	require.Equal(t, "wasm, enforce, limit 200MiB", r.Listeners[0].Guard)

	const (
		network = "      - name: highwater.connections\n"
		breaker = "    circuit_breakers: &breakers\n      thresholds:\n      - {max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}\n"
		soft    = "memory_allocator_manager:\n  soft_memory_limit_bytes: 157286400\n"
		admins  = "        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}"
		window  = "            # * What a response may send ahead of its reader (default 16 MiB).\n            initial_stream_window_size: 65536\n"
		upload  = "                route: {cluster: upstream, timeout: 0s}\n                typed_per"
		late    = "          - name: envoy.filters.http.buffer\n            disabled: true\n"
	)
	for _, c := range []struct {
		name, from, to string
		all            bool // every place, not the first one
		want           []string
	}{
		{"the listener's buffer", "    per_connection_buffer_limit_bytes: 65536\n    socket_options:", "    socket_options:", false, []string{"error buffers-low"}},
		{"the listener's buffer is lower", "per_connection_buffer_limit_bytes: 65536\n    socket_options:", "per_connection_buffer_limit_bytes: 32768\n    socket_options:", false, []string{"warning buffers-high"}},
		{"a cluster's buffer", "    connect_timeout: 5s\n    # * What Envoy buffers of responses for one upstream connection (default 1 MiB).\n    per_connection_buffer_limit_bytes: 65536\n", "    connect_timeout: 5s\n", false, []string{"error buffers-low"}},
		{"the kernel's buffer", "name: 7 ", "name: 8 ", false, []string{"warning send-buffer"}},
		{"the window", "            initial_stream_window_size: 65536\n            # Streams", "            # Streams", false, []string{"error buffers-low"}},
		{"the connection's window", "starve their siblings.\n            initial_connection_window_size: 16777216\n", "starve their siblings.\n", false, []string{"error buffers-low"}},
		{"a cluster's window", window, "", false, []string{"warning http2-upstream-window"}},
		{"linger", "delayed_close_timeout: 0.1s", "delayed_close_timeout: 1s", false, []string{"error buffers-low"}},
		{"no linger", "delayed_close_timeout: 0.1s", "delayed_close_timeout: 0s", false, []string{"warning linger"}},
		{"failure_policy", "failure_policy: FAIL_RELOAD", "failure_policy: FAIL_CLOSED", false, []string{"error failure-policy"}},
		{"no failure_policy", "failure_policy: FAIL_RELOAD", "", true, []string{"error failure-policy"}},
		{"two machines", "vm_config: *vm", "vm_config: {vm_id: highwater2, runtime: envoy.wasm.runtime.v8, code: {local: {filename: build/highwater.wasm}}}", false, []string{"error vm-id"}},
		{"the network filter", "            root_id: connections", "            root_id: requests", false, []string{"error root-id"}},
		{"a route's name", "name: upload\n                match", "match", false, []string{"warning unnamed-routes"}},
		{"the readings' cluster", "- name: envoy_admin", "- name: envoy_admins", false, []string{"error readings"}},
		{"the readings' address", admins, strings.Replace(admins, "9901", "9902", 1), false, []string{"warning readings-elsewhere"}},
		{"the admin interface", "admin:\n  address: {socket_address: {address: 127.0.0.1, port_value: 9901}}\n", "", false, []string{"error admin"}},
		{"paths", "admin:\n", "admin:\n  allow_paths: [{exact: /stats}]\n", false, []string{"error allow-paths"}},
		{"paths with it", "admin:\n", "admin:\n  allow_paths: [{exact: /stats}, {safe_regex: {regex: \"/mem.*\"}}]\n", false, nil},
		{"circuit breakers", breaker, "    circuit_breakers: &breakers {}\n", false, []string{"warning circuit-breakers"}},
		{"soft limit", soft, "", false, []string{"warning soft-memory-limit"}},
		{"whole_request", `"whole_request": "16MiB"`, `"whole_request": "8MiB"`, true, []string{"error buffers-low"}},
		{"whole_request is too much", "max_request_bytes: 16777216", "max_request_bytes: 1048576", true, []string{"warning buffers-high"}},
		{"buffers", `"downstream": "64KiB"`, `"downstream": "32KiB"`, true, []string{"error buffers-low"}},
		{"the limits", `{"limit": "200MiB"}`, `{"limit": "100MiB"}`, false, []string{"error shared-keys"}},
		{"the configuration", `"budget": {"limit": "200MiB"}`, `"mode": "enforced", "budget": {"limit": "200MiB"}`, true, []string{"error configuration"}},
		{"a Struct", "\"@type\": type.googleapis.com/google.protobuf.StringValue\n              value: |\n", "\"@type\": type.googleapis.com/google.protobuf.Struct\n              value:\n", false, []string{"error configuration"}},
		{"exempt", `"budget": {"limit": "200MiB"}`, `"budget": {"limit": "200MiB"}, "exempt": [{"path_prefix": "/healthz"}]`, true, []string{"warning normalize-path"}},
		{"source", `"budget": {"limit": "200MiB"}`, `"budget": {"limit": "200MiB"}, "fairness": {"by": "source"}`, true, []string{"warning use-remote-address"}},
		{"a filter before it", "          # First: before any filter that buffers, so that what does not fit waits or is rejected before it is held.\n", late + "            typed_config:\n              \"@type\": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer\n              max_request_bytes: 16777216\n", false, []string{"warning order"}},
		{"disabled", "          - name: highwater.requests\n            typed_config:", "          - name: highwater.requests\n            disabled: true\n            typed_config:", false, []string{"error filter-disabled"}},
		{"disabled by a route", "                route: {cluster: upstream, timeout: 0s}\n                typed_per_filter_config:\n", "                route: {cluster: upstream, timeout: 0s}\n                typed_per_filter_config:\n                  highwater.requests: {\"@type\": type.googleapis.com/envoy.config.route.v3.FilterConfig, disabled: true}\n", false, []string{"warning filter-disabled"}},
		{"headers", "codec_type: AUTO", "max_request_headers_kb: 2048", false, []string{"warning headers"}},
		{"retries", upload, "                route: {cluster: upstream, timeout: 0s, retry_policy: {retry_on: 5xx}}\n                request_body_buffer_limit: 16777216\n                typed_per", false, []string{"warning retries"}},
		{"a mirror", upload, "                route: {cluster: upstream, timeout: 0s, request_mirror_policies: [{cluster: upstream}]}\n                typed_per", false, []string{"warning mirrors"}},
		{"another network filter", network, "      - {name: more, typed_config: {\"@type\": a/b.C}}\n" + network, false, []string{"note skipped"}},
		{"misspelt", "codec_type: AUTO", "codec_types: AUTO", false, []string{"warning unknown-field"}},
		{"no such codec", "codec_type: AUTO", "codec_type: AUTOS", false, []string{"error unreadable"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := short(report(t, edit(t, text, c.from, c.to, c.all), Options{}))
			require.Equal(t, c.want, got)
		})
	}
}

// What the container has is held against the budget, the overload manager and what Envoy holds.
func TestTheContainer(t *testing.T) {
	text := example(t, "envoy.yaml")
	for _, c := range []struct {
		container unit.Bytes
		want      []string
	}{
		{300 * mib, nil},
		{240 * mib, []string{"warning limit-over-container"}},
		{200 * mib, []string{"error limit-over-container"}},
		{128 * mib, []string{"error limit-over-container", "warning soft-memory-limit"}},
	} {
		require.Equal(t, c.want, short(report(t, text, Options{Container: c.container})), c.container)
	}
	heap := text + "overload_manager: {resource_monitors: [{name: envoy.resource_monitors.fixed_heap, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig, max_heap_size_bytes: 314572800}}]}\n"
	require.Equal(t, []string{"error fixed-heap"}, short(report(t, heap, Options{Container: 300 * mib})))
	require.Equal(t, []string{"warning fixed-heap"}, short(report(t, heap, Options{Container: 320 * mib})))
	require.Empty(t, report(t, heap, Options{Container: 400 * mib}).Findings)
	low := edit(t, text, `"limit": "200MiB"`, `"limit": "40MiB", "small": "1MiB"`, true)
	require.Equal(t, []string{"error limit-under-base"}, short(report(t, low, Options{})))
}

// Connections that are limited make a figure of what they can hold.
func TestLimitedConnections(t *testing.T) {
	text := example(t, "envoy.yaml")
	monitor := text + "overload_manager: {resource_monitors: [{name: c, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig, max_active_downstream_connections: 1000}}]}\n"
	flat := text + "layered_runtime: {layers: [{name: a, static_layer: {overload.global_downstream_max_connections: 1000}}]}\n"
	nested := text + "layered_runtime: {layers: [{name: a, static_layer: {envoy: {resource_limits: {listener: {ingress: {connection_limit: 1000}}}}}}]}\n"
	filter := edit(t, text, "      - name: highwater.connections\n", "      - {name: l, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit, stat_prefix: x, max_connections: 1000}}\n      - name: highwater.connections\n", false)
	for _, text := range []string{monitor, flat, nested, filter} {
		l := report(t, text, Options{}).Listeners[0]
		require.Equal(t, int64(1000), l.Connections)
		require.Equal(t, 1000*(max(l.HTTP1, l.HTTP2)+l.Kernel), l.All)
	}
}

// The example of the server's face, with the server's configuration.
func TestTheServersExample(t *testing.T) {
	text := example(t, "envoy-extproc.yaml")
	server := guard.Default()
	server.Budget.Limit.Bytes = 200 * mib
	server.Buffers = guard.Buffers{Downstream: 64 * unit.KiB, Upstream: 64 * unit.KiB, HTTP2Window: 64 * unit.KiB, HTTP2ConnectionWindow: 16 * mib, Linger: 100e6, WholeRequest: 16 * mib}
	o := Options{Server: &server}
	require.Equal(t, []string{"note connections"}, short(report(t, text, o)))
	require.Equal(t, []string{"note server-unknown", "note holds-bodies", "note connections"}, short(report(t, text, Options{})))
	for _, c := range []struct{ from, to, want string }{
		{"message_timeout: 5s", "message_timeout: 1s", "error message-timeout"},
		{"failure_mode_allow: true", "", "warning failure-mode"},
		{"request_header_mode: SEND", "request_header_mode: SKIP", "error processing-mode"},
		{"allow_mode_override: true", "", "warning mode-override"},
		{"envoy_grpc: {cluster_name: highwater}", "envoy_grpc: {cluster_name: highwaters}", "error grpc-service"},
		{"request_attributes: [xds.route_name, ", "request_attributes: [", "warning request-attributes"},
		{"                  - {exact: content-length}\n", "", "warning forward-rules"},
		{"    connect_timeout: 1s\n    circuit_breakers: *breakers", "    connect_timeout: 1s", "warning server-breaker"},
		{"delayed_close_timeout: 0.1s", "delayed_close_timeout: 1s", "error buffers-low"},
	} {
		got := short(report(t, edit(t, text, c.from, c.to, false), o))
		require.Equal(t, []string{c.want, "note connections"}, got, c.from)
	}
}

// The shipped example of the module is clean. The module sets the buffers of connections itself,
// and reads memory itself unless it is told where; what else it is told is compared.
func TestTheModulesExample(t *testing.T) {
	text := example(t, "envoy-module.yaml")
	r := report(t, text, Options{})
	require.Empty(t, r.Findings)
	require.Equal(t, "dynamic module, enforce, limit 200MiB", r.Listeners[0].Guard)
	observed := report(t, edit(t, text, `"budget": {`, `"mode": "observe", "budget": {`, true), Options{})
	require.Less(t, r.Listeners[0].HTTP1, observed.Listeners[0].HTTP1, "then the listener's own limit counts")
	for _, c := range []struct{ name, from, to, want string }{
		{"the window", "            initial_stream_window_size: 65536\n            # Streams", "            # Streams", "error buffers-low"},
		{"linger", "delayed_close_timeout: 0.1s", "delayed_close_timeout: 1s", "error buffers-low"},
		{"what the clusters hold", `"upstream": "64KiB"`, `"upstream": "1MiB"`, "warning buffers-high"},
		{"a cluster that is not there", `"budget": {"limit": "200MiB"}`, `"memory": {"cluster": "envoy_admin"}, "budget": {"limit": "200MiB"}`, "error readings"},
		{"the configuration", `"budget": {"limit": "200MiB"}`, `"mode": "enforced", "budget": {"limit": "200MiB"}`, "error configuration"},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Contains(t, short(report(t, edit(t, text, c.from, c.to, true), Options{})), c.want)
		})
	}
}

// Envoy's names for a module that it finds by its name.
func TestTheModule(t *testing.T) {
	text := example(t, "envoy.yaml")
	for _, kind := range []string{"http", "network"} {
		of := map[string]string{"http": "DynamicModuleFilter", "network": "DynamicModuleNetworkFilter"}[kind]
		head := "\"@type\": type.googleapis.com/envoy.extensions.filters." + kind + ".wasm.v3.Wasm\n"
		require.Contains(t, text, head)
		for strings.Contains(text, head) {
			at := strings.Index(text, head)
			rest := text[at:]
			end := strings.Index(rest, "\n      - name: envoy.filters.network.http_connection_manager")
			if kind == "http" {
				end = strings.Index(rest, "\n          - name: ")
				if c := strings.Index(rest, "\n          # Holds"); c >= 0 && c < end {
					end = c
				}
			}
			module := "\"@type\": type.googleapis.com/envoy.extensions.filters." + kind + ".dynamic_modules.v3." + of + ", dynamic_module_config: {name: highwater}, filter_name: requests, " +
				`filter_config: {"@type": type.googleapis.com/google.protobuf.StringValue, value: "{\"budget\": {\"limit\": \"200MiB\"}, \"buffers\": {\"whole_request\": \"16MiB\"}}"}}`
			before := strings.TrimRight(text[:at], " \n")
			before = strings.TrimSuffix(before, "typed_config:") + "typed_config: {"
			text = before + module + rest[end:]
		}
	}
	r := report(t, text, Options{})
	require.Equal(t, "dynamic module, enforce, limit 200MiB", r.Listeners[0].Guard)
	for _, f := range r.Findings {
		require.NotEqual(t, Error, f.Severity, "%+v", f)
	}
}
