package check

import (
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"

	typedv3 "github.com/cncf/xds/go/xds/type/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/brotli/compressor/v3" // these are read as what an Any holds
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/compressor/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/decompressor/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/aws_lambda/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/aws_request_signing/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/compressor/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/decompressor/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_modules/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/file_system_buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_json_transcoder/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/dynamic_modules/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/connection_limit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/dynamic_modules/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

const (
	extensions  = "envoy.extensions.filters."
	extProcType = extensions + "http.ext_proc.v3.ExternalProcessor"
	managerType = extensions + "network.http_connection_manager.v3.HttpConnectionManager"
	proxyType   = extensions + "network.tcp_proxy.v3.TcpProxy"
	routerType  = extensions + "http.router.v3.Router"
)

// passing are filters that hold no bodies and keep no state that counts: they decide by headers, or
// count, or change what passes. By the last part of their package.
var passing = words(`
	http: adaptive_concurrency admission_control alternate_protocols_cache api_key_auth bandwidth_limit basic_auth body_size_limit cdn_loop
	connect_grpc_bridge cors credential_injector csrf custom_response dynamic_forward_proxy fault gcp_authn geoip grpc_http1_bridge grpc_stats
	grpc_web header_mutation header_to_metadata health_check ip_tagging jwt_authn kill_request local_ratelimit oauth2 on_demand original_src
	rate_limit_quota ratelimit rbac router set_filter_state set_metadata stateful_session tap upstream_codec
	network: direct_response echo ext_authz geoip local_ratelimit ratelimit rbac set_filter_state sni_cluster sni_dynamic_forward_proxy
	listener: http_inspector local_ratelimit original_dst original_src proxy_protocol set_filter_state tls_inspector
`)

// gathering are filters that read a whole message before they pass it on, up to the buffer limit;
// how much is not looked up. They are named.
var gathering = words(`http: a2a ai_protocol_manager cache cache_v2 grpc_field_extraction grpc_http1_reverse_bridge grpc_json_reverse_transcoder
	json_to_metadata mcp mcp_json_rest_bridge mcp_router proto_api_scrubber proto_message_extraction thrift_to_metadata transform`)

func words(text string) map[string]bool {
	all, in := map[string]bool{}, ""
	for w := range strings.FieldsSeq(text) {
		if kind, ok := strings.CutSuffix(w, ":"); ok {
			in = kind
			continue
		}
		all[in+"."+w] = true
	}
	return all
}

// filterOf is the kind and the package of a filter's type, such as http.buffer; empty where it is
// no filter of Envoy's.
func filterOf(typeName string) string {
	rest, ok := strings.CutPrefix(typeName, extensions)
	if !ok {
		return ""
	}
	parts := strings.Split(rest, ".")
	if len(parts) < 3 {
		return ""
	}
	return parts[0] + "." + parts[1]
}

// others are packages of Envoy's that are no filters: what they hold is not for each request, or is
// not memory.
var others = []string{
	"envoy.config.", "envoy.data.", "envoy.type.", "envoy.service.", "envoy.admin.", "envoy.watchdog.", "google.protobuf.", "xds.",
	"envoy.extensions.access_loggers.", "envoy.extensions.bootstrap.", "envoy.extensions.clusters.", "envoy.extensions.common.",
	"envoy.extensions.compression.", "envoy.extensions.config.", "envoy.extensions.content_parsers.", "envoy.extensions.early_data.",
	"envoy.extensions.fatal_actions.", "envoy.extensions.filters.udp.", "envoy.extensions.formatter.", "envoy.extensions.geoip_providers.",
	"envoy.extensions.grpc_service.", "envoy.extensions.health_check", "envoy.extensions.http.", "envoy.extensions.internal_redirect.",
	"envoy.extensions.key_value.", "envoy.extensions.load_balancing_policies.", "envoy.extensions.local_address_selectors.",
	"envoy.extensions.matching.", "envoy.extensions.network.", "envoy.extensions.outlier_detection_monitors.", "envoy.extensions.path.",
	"envoy.extensions.quic.", "envoy.extensions.rate_limit_descriptors.", "envoy.extensions.rbac.", "envoy.extensions.regex_engines.",
	"envoy.extensions.request_id.", "envoy.extensions.resource_monitors.", "envoy.extensions.retry.", "envoy.extensions.router.",
	"envoy.extensions.stat_sinks.", "envoy.extensions.string_matcher.", "envoy.extensions.tracers.", "envoy.extensions.transport_sockets.",
	"envoy.extensions.udp_packet_writer.", "envoy.extensions.upstreams.", "envoy.extensions.wasm.", "envoy.extensions.dynamic_modules.",
}

// lookedInto says whether a type is one that is read here, or that is known to hold nothing of a
// request.
func lookedInto(typeName string) bool {
	if f := filterOf(typeName); passing[f] || gathering[f] {
		return true
	}
	for _, prefix := range others {
		if strings.HasPrefix(typeName, prefix) {
			return true
		}
	}
	_, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(typeName))
	return err == nil
}

// held is what an Any holds: its type, and the message where that is known.
func held(a *anypb.Any) (typeName string, m proto.Message) {
	if a == nil {
		return "", nil
	}
	m, err := a.UnmarshalNew()
	if err != nil {
		return string(a.MessageName()), nil
	}
	if t, ok := m.(*typedv3.TypedStruct); ok { // one that is not known: see xdsread
		return t.GetTypeUrl()[strings.LastIndexByte(t.GetTypeUrl(), '/')+1:], nil
	}
	return string(a.MessageName()), m
}
