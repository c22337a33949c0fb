package check

import (
	"encoding/json"
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/worst"
)

// plan is what adding Highwater to this Envoy takes.
type plan struct {
	face    Face
	limit   unit.Bytes
	file    string        // of the plugin or the module, where Envoy finds it
	server  string        // the cluster of highwater serve
	largest guard.Buffers // of all chains, for highwater serve, which has one configuration
	cluster string        // of the readings
	address string        // of the admin interface as YAML; empty = the cluster is there already
	noAdmin bool          // it has to be added
	path    bool          // allow_paths has to let /memory through
	chains  []planned
}

// planned is a chain that gets the filters.
type planned struct {
	at       string
	listener int // which one of those in the file
	chain    int // which one of its chains
	http     bool
	buffers  string
}

func (c *checker) plan() plan {
	p := plan{face: c.options.face(), limit: c.plannedLimit(), file: c.options.File, server: "highwater"}
	if p.file == "" {
		p.file = defaultFiles[p.face]
	}
	if c.of[p.server] != nil {
		p.server = "highwater_serve"
	}
	if p.face == Wasm {
		c.planReadings(&p)
	}
	linger := unit.Duration(0)
	for i := range c.guards {
		if g := &c.guards[i]; c.guardable(g) && g.manager != nil {
			linger = max(linger, c.rightFor(g).Linger)
		}
	}
	for i := range c.guards {
		if g := &c.guards[i]; c.guardable(g) {
			p.chains = append(p.chains, c.planned(g, linger))
			p.largest = largest(p.largest, c.rightFor(g))
		}
	}
	return p
}

// largest takes of each buffer the larger one.
func largest(a, b guard.Buffers) guard.Buffers {
	return guard.Buffers{
		Downstream: max(a.Downstream, b.Downstream), Upstream: max(a.Upstream, b.Upstream), HTTP2Window: max(a.HTTP2Window, b.HTTP2Window),
		HTTP2ConnectionWindow: max(a.HTTP2ConnectionWindow, b.HTTP2ConnectionWindow), Linger: max(a.Linger, b.Linger), WholeRequest: max(a.WholeRequest, b.WholeRequest),
	}
}

// planReadings says by which cluster the plugin reads Envoy's memory.
func (c *checker) planReadings(p *plan) {
	p.cluster, p.path = c.adminCluster(), !c.allowed("/memory")
	if p.cluster == "" {
		p.cluster = defaultCluster
		if c.of[defaultCluster] != nil {
			p.cluster = "highwater_admin"
		}
		p.address = adminYAML(c.bootstrap.GetAdmin().GetAddress())
		if p.address == "" {
			p.noAdmin, p.address = true, defaultAdmin
		}
	}
}

// planned is where a chain is in the file, and what its plugins are told.
func (c *checker) planned(g *guarded, linger unit.Duration) planned {
	b := c.rightFor(g)
	b.Linger = linger // the plugins share it
	if linger == 0 {
		b.Linger = guard.Default().Buffers.Linger
	}
	of := planned{at: g.at, http: g.manager != nil, buffers: buffersText(b)}
	for n, l := range c.listening {
		if l == g.listener {
			of.listener = n
		}
	}
	for n := range g.listener.chains {
		if &g.listener.chains[n] == g.chain {
			of.chain = n
		}
	}
	return of
}

// plannedLimit is two thirds of the container; where that is not known, what is enough for most,
// and twice the base at least.
func (c *checker) plannedLimit() unit.Bytes {
	if c.options.Container > 0 {
		return max(twoThirds(c.options.Container), 32*unit.MiB)
	}
	return max(defaultLimit, roundMiB(2*worst.Base(len(c.clusters), c.options.face() == Wasm)))
}

// adminYAML is the admin interface's address as one connects to it; empty where there is none.
func adminYAML(a *corev3.Address) string {
	if p := a.GetPipe(); p != nil {
		return fmt.Sprintf("{pipe: {path: %s}}", quoted(p.GetPath()))
	}
	s := a.GetSocketAddress()
	if s == nil {
		return ""
	}
	host := s.GetAddress()
	switch host {
	case "0.0.0.0", "":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return fmt.Sprintf("{socket_address: {address: %s, port_value: %d}}", quoted(host), s.GetPortValue())
}

// quoted is a text as YAML and JSON read it.
func quoted(text string) string {
	out, _ := json.Marshal(text)
	return string(out)
}

// list is one of Envoy's lists of filters that gets one of Highwater's.
type list struct {
	root  string // the filter's name there
	where string // the list's key
	kind  string // of the filter, in the name of its type
}

// lists are those of the face.
func (p *plan) lists() []list {
	requests, connections := list{"requests", "http_filters", "http"}, list{"connections", "filters", "network"}
	switch p.face {
	case ExtProc:
		return []list{requests}
	case Module:
		return []list{requests, connections, {"accepts", "listener_filters", "listener"}}
	default:
		return []list{requests, connections}
	}
}

// clusterYAML is the cluster that the face needs; empty where there is one already, or none is
// needed.
func (p *plan) clusterYAML() string {
	switch {
	case p.face == ExtProc:
		return p.serverYAML()
	case p.address == "":
		return ""
	}
	return fmt.Sprintf(`- name: %s
  type: STATIC
  connect_timeout: 1s
  load_assignment:
    cluster_name: %[1]s
    endpoints:
    - lb_endpoints:
      - endpoint: {address: %s}
`, p.cluster, p.address)
}

// serverYAML is the cluster of highwater serve.
func (p *plan) serverYAML() string {
	return fmt.Sprintf(`- name: %s
  type: STATIC
  connect_timeout: 1s
  circuit_breakers:
    thresholds:
    - {max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}
  typed_extension_protocol_options:
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
      "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
      explicit_http_config: {http2_protocol_options: {max_concurrent_streams: 100000}}
  load_assignment:
    cluster_name: %[1]s
    endpoints:
    - lb_endpoints:
      - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9002}}}
`, p.server)
}

// config is what the plugin is told: nothing that is Envoy's default.
func (p *plan) config(of planned) string {
	text := fmt.Sprintf(`{"mode": "observe", "budget": {"limit": %q}`, p.limit)
	if of.buffers != "{}" {
		text += `, "buffers": ` + of.buffers
	}
	if p.face == Wasm && p.cluster != defaultCluster {
		text += fmt.Sprintf(`, "memory": {"cluster": %s}`, quoted(p.cluster))
	}
	return text + "}"
}

// serveConfig is what highwater serve is told.
func (p *plan) serveConfig() string {
	text := fmt.Sprintf("mode: observe\nbudget: {limit: %v}\n", p.limit)
	if b := buffersText(p.largest); b != "{}" {
		text += "buffers: " + b + "\n"
	}
	return text + "memory: {url: http://127.0.0.1:9901}  # Envoy's admin interface\n"
}

// filterYAML is the filter for a list.
func (p *plan) filterYAML(l list, of planned) string {
	switch p.face {
	case Module:
		return p.moduleYAML(l, of)
	case ExtProc:
		return p.processorYAML()
	default:
		return p.pluginYAML(l, of)
	}
}

func (p *plan) pluginYAML(l list, of planned) string {
	return fmt.Sprintf(`- name: highwater.%s
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.%s.wasm.v3.Wasm
    config:
      name: highwater
      root_id: %[1]s
      failure_policy: FAIL_RELOAD
      vm_config:
        vm_id: highwater
        runtime: envoy.wasm.runtime.v8
        code: {local: {filename: %[3]s}}
      configuration:
        "@type": type.googleapis.com/google.protobuf.StringValue
        value: |
          %[4]s
`, l.root, l.kind, quoted(p.file), p.config(of))
}

func (p *plan) moduleYAML(l list, of planned) string {
	kind := map[string]string{"http": "DynamicModuleFilter", "network": "DynamicModuleNetworkFilter", "listener": "DynamicModuleListenerFilter"}[l.kind]
	return fmt.Sprintf(`- name: highwater.%s
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.%s.dynamic_modules.v3.%s
    filter_name: %[1]s
    dynamic_module_config:
      module: {local: {filename: %[4]s}}
      do_not_close: true
      metrics_namespace: wasmcustom
    filter_config:
      "@type": type.googleapis.com/google.protobuf.StringValue
      value: |
        %[5]s
`, l.root, l.kind, kind, quoted(p.file), p.config(of))
}

func (p *plan) processorYAML() string {
	return fmt.Sprintf(`- name: highwater.requests
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor
    grpc_service: {envoy_grpc: {cluster_name: %s}}
    failure_mode_allow: true
    message_timeout: 5s
    processing_mode:
      request_header_mode: SEND
      response_header_mode: SEND
      request_body_mode: NONE
      response_body_mode: NONE
      request_trailer_mode: SKIP
      response_trailer_mode: SEND
    allow_mode_override: true
    request_attributes: [xds.route_name, request.protocol, connection.id]
    forward_rules:
      allowed_headers:
        patterns: [{exact: ":path"}, {exact: ":method"}, {exact: ":status"}, {exact: content-length}, {exact: content-type}, {exact: upgrade}]
    metadata_options:
      receiving_namespaces: {untyped: [highwater]}
`, p.server)
}
