package envoyconfig

import (
	"os"
	"strings"
	"testing"
	"time"

	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const at = "listener ingress: http_filters[0] highwater.requests"

func example(tb testing.TB) string {
	tb.Helper()
	text, err := os.ReadFile("../../examples/envoy-extproc.yaml")
	require.NoError(tb, err)
	return string(text)
}

// edit replaces what must be there once.
func edit(tb testing.TB, text, from, to string) string {
	tb.Helper()
	require.Equal(tb, 1, strings.Count(text, from), "%q", from)
	return strings.Replace(text, from, to, 1)
}

func config(edits ...func(*guard.Config)) guard.Config {
	c := guard.Default()
	for _, e := range edits {
		e(&c)
	}
	return c
}

func TestTheExampleIsClean(t *testing.T) {
	text := example(t)
	asJSON, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(t, err)
	for _, text := range []string{text, string(asJSON)} {
		report, err := Check([]byte(text), config())
		require.NoError(t, err)
		require.Equal(t, Report{Checked: []string{at}}, report)
	}
}

// What an ext_proc filter needs is in the lines of the example: without one of them there is a
// finding, and no other.
func TestFindings(t *testing.T) {
	const (
		cluster = "cluster highwater: "
		closed  = "failure_mode_allow: true\n              # How long an answer may take, and so how long a request may wait: longer than throttle.timeout.\n              message_timeout: 5s"
		trailer = "                response_trailer_mode: SEND"
		attrs   = "request_attributes: [xds.route_name, request.protocol, connection.id]"
		headers = "allowed_headers:\n                  patterns:"
		breaker = "    connect_timeout: 1s\n    circuit_breakers: *breakers"
		h2      = "          http2_protocol_options:\n            max_concurrent_streams: 100000"
		observe = "processing_mode:\n"
		noH2    = "error: " + cluster + "typed_extension_protocol_options: not set to HTTP/2, which gRPC needs: the server is never reached, and requests go on unguarded (failure_mode_allow); " +
			`write envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http2_protocol_options: {}}}`
		manager = "          codec_type: AUTO\n"
		forged  = "warning: use_remote_address: not true in the HttpConnectionManager: fairness.by is source, and the source is what a client writes into X-Forwarded-For; " +
			"write use_remote_address: true, and behind proxies that are trusted xff_num_trusted_hops: how many they are"
		alike    = "all requests count as one, and not as fairness.by says"
		trailed  = "processing_mode.response_trailer_mode: not SEND: Envoy ends the stream to the server behind the response's headers, so that downloads are not covered and cannot be evicted; write SEND"
		through  = "forward_rules: content-length does not reach the server: no length is known, and each message is forecast; "
		let      = "let forward_rules.disallowed_headers not match it"
		forecast = "allow_mode_override: not true: what messages without a length bring is only forecast, and not counted; write allow_mode_override: true"
	)
	by := func(by string) func(*guard.Config) { return func(c *guard.Config) { c.Fairness.By = by } }
	exempt := func(e ...guard.Exempt) func(*guard.Config) { return func(c *guard.Config) { c.Exempt = e } }
	timeout := func(d time.Duration) func(*guard.Config) {
		return func(c *guard.Config) { c.Throttle.Timeout = unit.Duration(d) }
	}
	for _, c := range []struct {
		name     string
		from, to string
		config   func(*guard.Config)
		want     []string // behind "error: " or "warning: " and, unless it is of the cluster, the place
	}{
		{"no timeout", "message_timeout: 5s", "", nil, []string{
			"error: message_timeout: not set, and so 200ms, must be longer than throttle.timeout of the server (2s): requests that wait for longer go on unguarded (failure_mode_allow); write message_timeout: 4s",
		}},
		{"the same timeout", "message_timeout: 5s", "message_timeout: 2s", nil, []string{
			"error: message_timeout: 2s, must be longer than throttle.timeout of the server (2s): requests that wait for longer go on unguarded (failure_mode_allow); write message_timeout: 4s",
		}},
		{"a longer timeout", "message_timeout: 5s", "message_timeout: 2.001s", nil, nil},
		{"failing closed, without a timeout", closed, "", nil, []string{
			"error: message_timeout: not set, and so 200ms, must be longer than throttle.timeout of the server (2s): requests that wait for longer are answered 504; write message_timeout: 4s",
			"warning: failure_mode_allow: not true: while the server is down or restarts, requests are answered 500; write failure_mode_allow: true",
		}},
		{"a long wait", "", "", timeout(5500 * time.Millisecond), []string{
			"error: message_timeout: 5s, must be longer than throttle.timeout of the server (5.5s): requests that wait for longer go on unguarded (failure_mode_allow); write message_timeout: 7s",
		}},
		{"nobody waits", "message_timeout: 5s", "", timeout(0), nil},
		{"not even for nobody", "message_timeout: 5s", "message_timeout: 0s", timeout(0), []string{
			"error: message_timeout: 0s, must be longer than throttle.timeout of the server (0s): requests that wait for longer go on unguarded (failure_mode_allow); write message_timeout: 2s",
		}},
		{"as Envoy writes it", "message_timeout: 5s", "messageTimeout: 5s", nil, nil},
		{"nor with no line", "message_timeout: 5s", "", func(c *guard.Config) { c.Throttle.Queue = 0 }, nil},

		{"failing closed", "failure_mode_allow: true", "failure_mode_allow: false", nil, []string{
			"warning: failure_mode_allow: not true: while the server is down or restarts, requests are answered 500; write failure_mode_allow: true",
		}},
		{"observability mode", observe, "observability_mode: true\n              " + observe, nil, []string{
			"error: observability_mode: true: Envoy ignores what the server answers, and nothing is enforced; leave it out, or set mode: observe in the server's configuration",
		}},
		{"observability mode, as the server", observe, "observability_mode: true\n              " + observe, func(c *guard.Config) { c.Mode = guard.Observe }, nil},
		{"no rejects", observe, "disable_immediate_response: true\n              " + observe, nil, []string{
			"error: disable_immediate_response: true: Envoy ignores rejects and evictions; leave it out",
		}},
		{"no rejects, as the server", observe, "disable_immediate_response: true\n              " + observe, func(c *guard.Config) { c.Mode = guard.Observe }, nil},

		{"no requests", "request_header_mode: SEND", "request_header_mode: SKIP", nil, []string{
			"error: processing_mode.request_header_mode: SKIP: the server hears of no request, and nothing is guarded; write SEND",
		}},
		{"requests by default", "request_header_mode: SEND", "request_header_mode: DEFAULT", nil, nil},
		{"no responses", "response_header_mode: SEND", "response_header_mode: SKIP", nil, []string{
			"warning: processing_mode.response_header_mode: SKIP: the server hears of no response, and takes each for as large as buffers allow; write SEND",
		}},
		{"no trailers, but asked for", trailer, "", nil, nil},
		{"trailers skipped, but asked for", trailer, "                response_trailer_mode: SKIP", nil, nil},
		{"trailers skipped, and only certain modes may be asked for", trailer + "\n", "                response_trailer_mode: SKIP\n              allowed_override_modes: [{response_header_mode: SEND}]\n", nil, []string{"warning: " + trailed}},
		{"no trailers, but bodies", "response_body_mode: NONE\n                request_trailer_mode: SKIP\n" + trailer, "response_body_mode: STREAMED", nil, nil},
		{"a buffered response", "response_body_mode: NONE\n                request_trailer_mode: SKIP\n" + trailer, "response_body_mode: BUFFERED_PARTIAL", nil, []string{
			"warning: processing_mode.response_body_mode: BUFFERED_PARTIAL: Envoy holds whole bodies before they go on, more than the guard saves; write NONE",
			"warning: " + trailed,
		}},
		{"a buffered request", "request_body_mode: NONE", "request_body_mode: BUFFERED", nil, []string{
			"warning: processing_mode.request_body_mode: BUFFERED: Envoy holds whole bodies before they go on, more than the guard saves; write NONE",
		}},
		{"no override", "allow_mode_override: true", "", nil, []string{"warning: " + forecast}},
		{"no override, and one body", "request_body_mode: NONE\n                response_body_mode: NONE\n                request_trailer_mode: SKIP\n" + trailer + "\n" +
			"              # Of messages without a length Highwater asks for the body too, in pieces, so that it is counted. Without this they are forecast.\n" +
			"              allow_mode_override: true", "request_body_mode: STREAMED\n" + trailer, nil, []string{"warning: " + forecast}},
		{"an override that is ignored", "allow_mode_override: true", "allow_mode_override: true\n              send_body_without_waiting_for_header_response: true", nil, []string{
			"warning: send_body_without_waiting_for_header_response: true: Envoy ignores mode overrides, so that what messages without a length bring is only forecast; leave it out",
		}},

		{"no route", attrs, "request_attributes: [request.protocol, connection.id]", nil, []string{"warning: request_attributes: lacks xds.route_name: " + alike + " (route); add it"}},
		{"no route, and none needed", attrs, "request_attributes: [request.protocol, connection.id]", by("none"), nil},
		{"a route to be exempt", attrs, "request_attributes: [request.protocol, connection.id]", func(c *guard.Config) { by("none")(c); exempt(guard.Exempt{Route: "r"})(c) }, []string{
			"warning: request_attributes: lacks xds.route_name: exempt[0].route matches nothing; add it",
		}},
		{"a cluster to be exempt", "", "", exempt(guard.Exempt{PathPrefix: "/"}, guard.Exempt{Cluster: "c"}), []string{
			"warning: request_attributes: lacks xds.cluster_name: exempt[1].cluster matches nothing; add it",
		}},
		{"by cluster", "", "", by("cluster"), []string{"warning: request_attributes: lacks xds.cluster_name: " + alike + " (cluster); add it"}},
		{"by virtual host", "", "", by("virtual_host"), []string{"warning: request_attributes: lacks xds.virtual_host_name: " + alike + " (virtual_host); add it"}},
		{"by source", "", "", by("source"), []string{"warning: request_attributes: lacks source.address: " + alike + " (source); add it", forged}},
		{"by source, which is there", attrs, "request_attributes: [source.address, request.protocol, connection.id]", by("source"), []string{forged}},
		{"by source, which is Envoy's", manager, manager + "          use_remote_address: true\n", by("source"), []string{
			"warning: request_attributes: lacks source.address: " + alike + " (source); add it",
		}},
		{"by source, as Envoy writes it", manager, manager + "          useRemoteAddress: true\n", by("source"), []string{
			"warning: request_attributes: lacks source.address: " + alike + " (source); add it",
		}},
		{"by source, which is the client's", manager, manager + "          use_remote_address: false\n", by("source"), []string{
			"warning: request_attributes: lacks source.address: " + alike + " (source); add it", forged,
		}},
		{"by source, which is found otherwise", manager, manager + "          original_ip_detection_extensions: [{name: x}]\n", by("source"), []string{
			"warning: request_attributes: lacks source.address: " + alike + " (source); add it",
		}},
		{"no protocol", attrs, "request_attributes: [xds.route_name, connection.id]", nil, []string{
			"warning: request_attributes: lacks request.protocol: every request is taken for HTTP/2, which can hold more; add it",
		}},
		{"no connection", attrs, "request_attributes: [xds.route_name, request.protocol]", nil, []string{
			"warning: request_attributes: lacks connection.id: what waits on one HTTP/2 connection is not bounded, and may starve its other requests; add it",
		}},

		{"no length", `                  - {exact: content-length}`, "", nil, []string{"warning: " + through + `add {exact: "content-length"} to forward_rules.allowed_headers.patterns`}},
		{"no type", `                  - {exact: content-type}`, "", nil, []string{
			`warning: forward_rules: content-type does not reach the server: gRPC clients are rejected as others are, without grpc-status; add {exact: "content-type"} to forward_rules.allowed_headers.patterns`,
		}},
		{"no method", `                  - {exact: ":method"}`, "", nil, []string{
			`warning: forward_rules: :method does not reach the server: tunnels (CONNECT) are taken for requests, and peaks don't tell methods; add {exact: ":method"} to forward_rules.allowed_headers.patterns`,
		}},
		{"no upgrade", `                  - {exact: upgrade}`, "", nil, []string{
			`warning: forward_rules: upgrade does not reach the server: WebSockets are taken for requests, and what passes on them goes through the server; add {exact: "upgrade"} to forward_rules.allowed_headers.patterns`,
		}},
		{"no status", `                  - {exact: ":status"}`, "", nil, []string{
			`warning: forward_rules: :status does not reach the server: a response that has none of the other headers is refused as one without any; add {exact: ":status"} to forward_rules.allowed_headers.patterns`,
		}},
		{"no path, and none needed", `                  - {exact: ":path"}`, "", nil, nil},
		{"no path to be exempt", `                  - {exact: ":path"}`, "", exempt(guard.Exempt{PathPrefix: "/a"}, guard.Exempt{GRPCService: "a.B"}), []string{
			`warning: forward_rules: :path does not reach the server: exempt[0].path_prefix matches nothing; add {exact: ":path"} to forward_rules.allowed_headers.patterns`,
			`warning: forward_rules: :path does not reach the server: exempt[1].grpc_service matches nothing; add {exact: ":path"} to forward_rules.allowed_headers.patterns`,
		}},
		{"by a header", "", "", by("header:X-Tenant"), []string{
			"warning: forward_rules: x-tenant does not reach the server: " + alike + `; add {exact: "x-tenant"} to forward_rules.allowed_headers.patterns`,
		}},
		{"by a header that is there", headers, headers + "\n                  - {exact: x-tenant}", by("header:X-Tenant"), nil},
		{"a header that is kept back", headers, "disallowed_headers: {patterns: [{prefix: content-l}]}\n                " + headers, nil, []string{"warning: " + through + let}},
		{"what only Envoy knows", headers, "disallowed_headers: {patterns: [{custom: {name: x, typed_config: {\"@type\": a/b.C}}}]}\n                " + headers, nil, nil},
		{"what only Envoy knows lets through", headers, headers + "\n                  - custom: {name: x, typed_config: {\"@type\": a/b.C}}", by("header:x-tenant"), nil},
		{"no pattern", headers, "disallowed_headers: {patterns: [{safe_regex: {regex: \"a)(b\"}}]}\n                " + headers, nil, []string{
			"error: forward_rules.disallowed_headers.patterns[0].safe_regex: error parsing regexp: unexpected ): `a)(b`",
		}},

		{"no cluster", "envoy_grpc: {cluster_name: highwater}", "envoy_grpc: {cluster_name: highwaters}", nil, []string{
			`error: grpc_service.envoy_grpc.cluster_name: there is no cluster "highwaters", the server is never reached, and requests go on unguarded (failure_mode_allow); ` +
				"write grpc_service: {envoy_grpc: {cluster_name: highwater}}, and that cluster as in examples/envoy-extproc.yaml",
		}},
		{"a client of its own", "envoy_grpc: {cluster_name: highwater}", "google_grpc: {target_uri: 127.0.0.1:9002, stat_prefix: x}", nil, nil},
		{"no service", "              grpc_service:\n                envoy_grpc: {cluster_name: highwater}", "", nil, []string{
			"error: grpc_service: names no server, and the guard's speaks gRPC alone; write grpc_service: {envoy_grpc: {cluster_name: highwater}}, and that cluster as in examples/envoy-extproc.yaml",
		}},
		{"no breaker", breaker, "    connect_timeout: 1s", nil, []string{
			"warning: " + cluster + "circuit_breakers.thresholds: max_requests is 1024 (1024 where none is set): each request in flight is one here too, and those above that go on unguarded (failure_mode_allow); write max_requests: 100000",
		}},
		{"a low breaker", breaker, "    connect_timeout: 1s\n    circuitBreakers: {thresholds: [{priority: HIGH, max_requests: 100000}, {priority: DEFAULT, maxRequests: \"99999\"}]}", nil, []string{
			"warning: " + cluster + "circuit_breakers.thresholds: max_requests is 99999 (1024 where none is set): each request in flight is one here too, and those above that go on unguarded (failure_mode_allow); write max_requests: 100000",
		}},
		{"a breaker by number", breaker, "    connect_timeout: 1s\n    circuit_breakers: {thresholds: [{priority: 0, max_requests: 100000}]}", nil, nil},
		{"a breaker of no number", breaker, "    connect_timeout: 1s\n    circuit_breakers: {thresholds: [{max_requests: many}]}", nil, []string{
			"warning: " + cluster + "circuit_breakers.thresholds: max_requests is 1024 (1024 where none is set): each request in flight is one here too, and those above that go on unguarded (failure_mode_allow); write max_requests: 100000",
		}},
		{"a breaker for others alone", breaker, "    connect_timeout: 1s\n    circuit_breakers: {thresholds: [{priority: 1, max_requests: 100000}]}", nil, []string{
			"warning: " + cluster + "circuit_breakers.thresholds: max_requests is 1024 (1024 where none is set): each request in flight is one here too, and those above that go on unguarded (failure_mode_allow); write max_requests: 100000",
		}},
		{"HTTP/1", h2, "          http_protocol_options: {}", nil, []string{noH2}},
		{"HTTP/2 by its defaults", h2, "          http2_protocol_options: {}", nil, nil},
		{"by what Envoy writes", "        explicit_http_config:\n" + h2, "        explicitHttpConfig: {http2ProtocolOptions: {}}", nil, nil},
		{"by ALPN", "        explicit_http_config:\n" + h2, "        auto_config: {}", nil, nil},
		// The client of a gRPC stream is Envoy itself, and is taken for one of HTTP/1.
		{"as the client's", "        explicit_http_config:\n" + h2, "        use_downstream_protocol_config: {http2_protocol_options: {}}", nil, []string{noH2}},

		{"unknown fields", "message_timeout: 5s", "message_timeouts: 5s\n              mutation_rules: {allow_everything: true}\n              filter_metadata: {any: thing}", timeout(0), []string{
			"error: message_timeouts: unknown field: it is misspelt, in the wrong place, or newer than this program",
			"error: mutation_rules.allow_everything: unknown field: it is misspelt, in the wrong place, or newer than this program",
		}},
		{"a type where there is none", "metadata_options:\n", "metadata_options:\n                \"@type\": x\n", nil, []string{
			"error: metadata_options.@type: unknown field: it is misspelt, in the wrong place, or newer than this program",
		}},
		{"unknown fields in a list", "- {exact: upgrade}", "- {exact: upgrade}\n                  - {exacts: upgrade}", nil, []string{
			"error: forward_rules.allowed_headers.patterns[6].exacts: unknown field: it is misspelt, in the wrong place, or newer than this program",
		}},
		{"no list", attrs, "request_attributes: xds.route_name", nil, []string{ // Envoy takes one for a list of one
			"warning: request_attributes: lacks request.protocol: every request is taken for HTTP/2, which can hold more; add it",
			"warning: request_attributes: lacks connection.id: what waits on one HTTP/2 connection is not bounded, and may starve its other requests; add it",
		}},
		{"no object", "envoy_grpc: {cluster_name: highwater}", "envoy_grpc: highwater", nil, []string{"error: grpc_service.envoy_grpc: must be an object: {...}"}},
		{"no bool", "failure_mode_allow: true", "failure_mode_allow: maybe", nil, []string{"error: failure_mode_allow: must be true or false"}},
		{"no duration", "message_timeout: 5s", "message_timeout: 5", nil, []string{"error: message_timeout: must be a duration with its unit, such as 5s"}},
		{"no duration in text", "message_timeout: 5s", "message_timeout: \"5\"", nil, []string{`error: message_timeout: invalid google.protobuf.Duration value "5"`}},
		{"not what the kind can be", "request_header_mode: SEND", "request_header_mode: SENT", nil, []string{"error: processing_mode.request_header_mode: must be one of DEFAULT, SEND, SKIP"}},
		{"no map", "envoy_grpc: {cluster_name: highwater}", "google_grpc: {channel_args: {args: 5}}", nil, []string{"error: grpc_service.google_grpc.channel_args.args: must be an object: {...}"}},
		{"a map of others", "envoy_grpc: {cluster_name: highwater}", "google_grpc: {channel_args: {args: {a: {int_values: 5}}}}", nil, []string{
			"error: grpc_service.google_grpc.channel_args.args.a.int_values: unknown field: it is misspelt, in the wrong place, or newer than this program",
		}},
		{"no text", "envoy_grpc: {cluster_name: highwater}", "envoy_grpc: {cluster_name: 5}", nil, []string{"error: grpc_service: invalid value for string field clusterName: 5"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := example(t)
			if c.from != "" {
				text = edit(t, text, c.from, c.to)
			}
			cfg := config()
			if c.config != nil {
				c.config(&cfg)
			}
			report, err := Check([]byte(text), cfg)
			require.NoError(t, err)
			var found []string
			for _, f := range report.Findings {
				found = append(found, strings.Replace(f.String(), ": "+at+": ", ": ", 1))
			}
			require.Equal(t, c.want, found)
		})
	}
}

// What one line alone does not show.
func TestFindingsOfMore(t *testing.T) {
	findings := func(text string) (found []string) {
		report, err := Check([]byte(text), config())
		require.NoError(t, err)
		for _, f := range report.Findings {
			found = append(found, f.String())
		}
		return found
	}
	text := example(t)

	// Where both bodies go through the server, nothing is to be asked for; in full duplex Envoy
	// waits for as long as it takes.
	duplex := edit(t, edit(t, text, "request_body_mode: NONE", "request_body_mode: FULL_DUPLEX_STREAMED"), "request_trailer_mode: SKIP", "request_trailer_mode: SEND")
	require.Nil(t, findings(edit(t, edit(t, duplex, "message_timeout: 5s", ""), "allow_mode_override: true", "")))

	// What is ignored anyway needs no override.
	ignored := edit(t, text, "processing_mode:\n", "observability_mode: true\n              processing_mode:\n")
	require.Len(t, findings(edit(t, ignored, "allow_mode_override: true", "")), 1)

	// Without allowed_headers all reach the server but what is disallowed.
	begin, end := strings.Index(text, "                allowed_headers:"), strings.Index(text, "              metadata_options:")
	require.Equal(t, []string{
		"warning: " + at + ": forward_rules: upgrade does not reach the server: WebSockets are taken for requests, and what passes on them goes through the server; let forward_rules.disallowed_headers not match it",
	}, findings(text[:begin]+"                disallowed_headers: {patterns: [{exact: upgrade}, {exact: cookie}]}\n"+text[end:]))

	// One body that is not sent is enough to ask for.
	half := edit(t, text, "response_body_mode: NONE", "response_body_mode: STREAMED")
	require.Len(t, findings(edit(t, half, "allow_mode_override: true", "")), 1)

	// A cluster that comes by xDS can't be looked at.
	elsewhere := edit(t, text, "cluster_name: highwater}", "cluster_name: other}")
	require.Equal(t, []string{
		"warning: " + at + `: grpc_service.envoy_grpc.cluster_name: "other" is not in this file, and can't be checked: it must speak HTTP/2, with max_requests: 100000 in its circuit breaker`,
	}, findings("dynamic_resources: {cds_config: {ads: {}}}\n"+elsewhere))

	// Two filters and one cluster: what is wrong with that is told once.
	two := edit(t, text, "          # Holds whole requests", "          - *guard\n          # Holds whole requests")
	two = edit(t, two, "- name: highwater.requests", "- &guard\n            name: highwater.requests")
	two = edit(t, two, "request_header_mode: SEND", "request_header_mode: SKIP")
	two = edit(t, two, "    connect_timeout: 1s\n    circuit_breakers: *breakers", "    connect_timeout: 1s")
	got := findings(two)
	require.Len(t, got, 3)
	require.Contains(t, got[0], at+": processing_mode.request_header_mode")
	require.Contains(t, got[1], "cluster highwater: circuit_breakers")
	require.Contains(t, got[2], "listener ingress: http_filters[1] highwater.requests: processing_mode.request_header_mode")

	// The old place of HTTP/2.
	old := edit(t, text, "        explicit_http_config:\n          http2_protocol_options:\n            max_concurrent_streams: 100000", "")
	require.Nil(t, findings(edit(t, old, "    connect_timeout: 1s\n", "    connect_timeout: 1s\n    http2_protocol_options: {}\n")))
}

// Filters of other servers are none of our business; where none can be told apart all are looked
// at.
func TestWhose(t *testing.T) {
	list := func(filters ...string) string {
		return "static_resources: {listeners: [{name: a, default_filter_chain: {filters: [{typed_config: {http_filters: [" + strings.Join(filters, ",") + "]}}]}}]}"
	}
	filter := func(name, cluster string) string {
		return "{name: " + name + ", typed_config: {\"@type\": type.googleapis.com/" + kind + ", grpc_service: {envoy_grpc: {cluster_name: " + cluster + "}}}}"
	}
	for _, c := range []struct {
		text                string
		checked, passedOver []string
	}{
		{list(filter("x", "y")), []string{"listener a: default_filter_chain: http_filters[0] x"}, nil},
		{list(filter("x", "y"), filter("v", "w")), []string{"listener a: default_filter_chain: http_filters[0] x", "listener a: default_filter_chain: http_filters[1] v"}, nil},
		{list(filter("x", "Highwater-1"), filter("v", "w")), []string{"listener a: default_filter_chain: http_filters[0] x"}, []string{"listener a: default_filter_chain: http_filters[1] v"}},
		{list(filter("x", "y"), filter("my.highwater", "w")), []string{"listener a: default_filter_chain: http_filters[1] my.highwater"}, []string{"listener a: default_filter_chain: http_filters[0] x"}},
		// Inside of another filter, in one of several chains, of a listener without a name, behind
		// a cluster.
		{"listeners: [{filter_chains: [{}, {name: tls, x: {httpFilters: [{name: outer, x: {y: [" + filter("inner", "z") + "]}}]}}]}]", []string{"listeners[0]: filter_chains[1] tls: httpFilters[0] outer"}, nil},
		{"clusters: [{name: c, x: {http_filters: [" + filter("f", "z") + "]}}]", []string{"cluster c: http_filters[0] f"}, nil},
		{filter("x", "y"), []string{"ext_proc filter"}, nil},
	} {
		report, err := Check([]byte(c.text), config())
		require.NoError(t, err)
		require.Equal(t, c.checked, report.Checked, c.text)
		require.Equal(t, c.passedOver, report.PassedOver, c.text)
	}
}

func TestNoFilter(t *testing.T) {
	for _, text := range []string{"admin: {}", "static_resources: 5", "static_resources: {listeners: 5, clusters: [5, {name: 5}, {}]}", `{"@type": 5}`} {
		report, err := Check([]byte(text), config())
		require.NoError(t, err)
		require.Len(t, report.Findings, 1, text)
		require.True(t, report.Findings[0].Error)
		require.Contains(t, report.Findings[0].What, "there is no ext_proc filter")
	}
}

func TestNoBootstrap(t *testing.T) {
	for text, want := range map[string]string{
		"":                         "it is empty",
		" \n":                      "it is empty",
		"- a\n- b\n":               "it must be an object",
		"5":                        "it must be an object",
		"null":                     "it must be an object",
		"# nothing\n":              "it must be an object",
		"a: b: c":                  "it is neither YAML nor JSON: yaml: mapping values are not allowed in this context",
		"a:\n\tb: c":               "found character that cannot start any token",
		"a: 1\nb: 2\na: 3\n":       `line 3: key "a" already set in map`,
		`{"a": 1`:                  "it is neither YAML nor JSON: yaml: line 1: did not find expected",
		"a: *b":                    "unknown anchor 'b' referenced",
		"\x00\x01":                 "control characters are not allowed",
		strings.Repeat("[", 1<<17): "exceeded max depth",
		strings.Repeat(`{"a":`, 20000) + "1" + strings.Repeat("}", 20000): "exceeded max depth",
		bomb():                            "it is too large from line 6 on where aliases (*name) are written out",
		"a: 1\n---\nb: 2\n":               "it has another document from line 2 on",
		"{a: 1}\nb: 2\n":                  "something follows behind the document",
		`{"a": 1} {"a": 2}`:               "something follows behind the document",
		`{"a": 1, "b": {"a": 1, "a": 2}}`: `key "a" is set twice, again at byte 26`,
	} {
		_, err := Check([]byte(text), config())
		require.ErrorContains(t, err, want, "%.60q", text)
		require.NotContains(t, err.Error(), "\n")
	}
}

// bomb is short, and would be 10^9 strings.
func bomb() string {
	b := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := range 9 {
		was := string(rune('0' + i))
		b += "a" + string(rune('1'+i)) + ": &a" + string(rune('1'+i)) + " [" + strings.TrimSuffix(strings.Repeat("*a"+was+",", 10), ",") + "]\n"
	}
	return b
}

// YAML has no such characters.
func TestJSONIsRead(t *testing.T) {
	_, err := Check([]byte(`{"admin": "\ud83d\ude00"}`), config())
	require.NoError(t, err)
}

func TestMatches(t *testing.T) {
	exact := func(s string) *matcherv3.StringMatcher {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
	}
	regex := func(s string) *matcherv3.StringMatcher {
		return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: s}}}
	}
	prefix := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: "x-A"}}
	suffix := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: "-Z"}}
	within := &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Contains{Contains: "-M-"}}
	fold := func(m *matcherv3.StringMatcher) *matcherv3.StringMatcher {
		return &matcherv3.StringMatcher{MatchPattern: m.GetMatchPattern(), IgnoreCase: true}
	}
	for _, c := range []struct {
		m      *matcherv3.StringMatcher
		header string
		want   bool
	}{
		{exact("x-a"), "x-a", true},
		{exact("x-a"), "x-ab", false},
		{exact("X-A"), "x-a", false},
		{fold(exact("X-A")), "x-a", true},
		{prefix, "x-ab", false},
		{fold(prefix), "x-ab", true},
		{fold(prefix), "ax-ab", false},
		{suffix, "a-z", false},
		{fold(suffix), "a-z", true},
		{fold(suffix), "a-z-", false},
		{within, "a-m-z", false},
		{fold(within), "a-m-z", true},
		{fold(within), "am-z", false},
		{regex("x-.*"), "x-a", true},
		{regex("x"), "x-a", false}, // all of it
		{regex("x|x-a"), "x-ab", false},
		{regex("a|x-a"), "x-a", true},
		{regex("x-A"), "x-a", false},
		{fold(regex("x-A")), "x-a", false}, // ignore_case is not for these
		{regex("(?i)x-A"), "x-a", true},
	} {
		for _, unknown := range []bool{false, true} {
			require.Equal(t, c.want, matches(c.m, c.header, unknown), "%v %s", c.m, c.header)
		}
	}
	for _, m := range []*matcherv3.StringMatcher{{}, {MatchPattern: &matcherv3.StringMatcher_Custom{}}, regex("(")} {
		require.True(t, matches(m, "x-a", true))
		require.False(t, matches(m, "x-a", false))
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte(example(f)))
	f.Add([]byte(`{"@type": "` + kind + `", "grpc_service": null, "forward_rules": {"allowed_headers": {"patterns": [null, {"safe_regex": {"regex": "("}}]}}}`))
	f.Add([]byte(`{"x": [{"@type": "/` + kind + `", "mutation_rules": [], "filter_metadata": {"a": {"@type": "b"}}, "message_timeout": "-1s"}]}`))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte(strings.Repeat("[", 200)))
	c := config(func(c *guard.Config) {
		c.Fairness.By = "header:x"
		c.Exempt = []guard.Exempt{{Route: "r"}, {Cluster: "c"}, {PathPrefix: "/"}, {GRPCService: "s"}}
	})
	f.Fuzz(func(t *testing.T, text []byte) {
		report, err := Check(text, c)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		require.NotZero(t, len(report.Checked)+len(report.Findings))
		for _, finding := range report.Findings {
			require.NotContains(t, finding.String(), "\n")
		}
	})
}
