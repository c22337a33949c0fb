package envoyconfig

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"

	"github.com/highwater-envoy/highwater/internal/guard"
)

// What Envoy does where nothing is set.
const (
	defaultMessageTimeout = 200 * time.Millisecond
	defaultMaxRequests    = 1024
)

// enoughRequests in flight are more than a guarded Envoy has memory for.
const enoughRequests = 100000

type checker struct {
	Report
	config   guard.Config
	clusters map[string]any
	cds      bool            // there are others, which come by xDS
	seen     map[string]bool // clusters that were checked
}

func (c *checker) fail(name, at, format string, args ...any) {
	c.found(Finding{Name: name, Error: true, At: at, What: fmt.Sprintf(format, args...)})
}

func (c *checker) warn(name, at, format string, args ...any) {
	c.found(Finding{Name: name, At: at, What: fmt.Sprintf(format, args...)})
}

func (c *checker) found(f Finding) {
	f.At, f.What = oneLine(f.At), oneLine(f.What)
	c.Findings = append(c.Findings, f)
}

func (c *checker) filter(f filter) {
	for _, w := range f.wrong {
		c.fail("field", f.at, "%s", w)
	}
	if f.config == nil {
		return
	}
	c.answers(f.at, f.config)
	c.modes(f.at, f.config)
	for _, a := range attributes(&c.config) {
		if !slices.Contains(f.config.GetRequestAttributes(), a.name) {
			c.warn("request-attributes", f.at, "request_attributes: lacks %s: %s; add it", a.name, a.without)
		}
	}
	for _, bad := range badRegexes(f.config.GetForwardRules()) {
		c.fail("forward-rules", f.at, "%s", bad)
	}
	for _, h := range headers(&c.config) {
		if ok, write := forwards(f.config.GetForwardRules(), h.name); !ok {
			c.warn("forward-rules", f.at, "forward_rules: %s does not reach the server: %s; %s", h.name, h.without, write)
		}
	}
	c.source(f)
	c.service(f.at, f.config)
}

// source is about whether a client's address is its own. Without use_remote_address Envoy takes it
// from X-Forwarded-For, which the client may have written. An operator who has another extension
// find it out has thought of that, and Envoy refuses both together.
func (c *checker) source(f filter) {
	if c.config.Fairness.By != "source" || f.hcm == nil {
		return
	}
	if remote, _ := get(f.hcm, "use_remote_address"); remote == true {
		return
	}
	if list, _ := get(f.hcm, "original_ip_detection_extensions"); list != nil {
		return
	}
	c.warn("use-remote-address", f.at, "use_remote_address: not true in the HttpConnectionManager: fairness.by is source, and the source is what a client writes "+
		"into X-Forwarded-For; write use_remote_address: true, and behind proxies that are trusted xff_num_trusted_hops: how many they are")
}

// unanswered is what becomes of requests of which the server says nothing.
func unanswered(p *filterv3.ExternalProcessor, status int) string {
	if p.GetFailureModeAllow() {
		return "go on unguarded (failure_mode_allow)"
	}
	return fmt.Sprintf("are answered %d", status)
}

// answers is about whether Envoy waits for what the server says, and does it.
func (c *checker) answers(at string, p *filterv3.ExternalProcessor) {
	if p.GetObservabilityMode() {
		if c.config.Mode != guard.Observe {
			c.fail("observability-mode", at, "observability_mode: true: Envoy ignores what the server answers, and nothing is enforced; leave it out, or set mode: observe in the server's configuration")
		}
		return
	}
	if p.GetDisableImmediateResponse() && c.config.Mode != guard.Observe {
		c.fail("immediate-response", at, "disable_immediate_response: true: Envoy ignores rejects and evictions; leave it out")
	}
	timeout, text := defaultMessageTimeout, "not set, and so 200ms"
	if p.MessageTimeout != nil {
		timeout = p.GetMessageTimeout().AsDuration()
		text = timeout.String()
	}
	wait := time.Duration(c.config.Throttle.Timeout)
	if c.config.Throttle.Queue == 0 {
		wait = 0
	}
	timed := p.GetProcessingMode().GetRequestBodyMode() < filterv3.ProcessingMode_FULL_DUPLEX_STREAMED // else Envoy waits for as long as it takes
	if timed && timeout <= wait {
		c.fail("message-timeout", at, "message_timeout: %s, must be longer than throttle.timeout of the server (%v): requests that wait for longer %s; write message_timeout: %ds",
			text, wait, unanswered(p, 504), wait.Truncate(time.Second)/time.Second+2)
	}
	if !p.GetFailureModeAllow() {
		c.warn("failure-mode", at, "failure_mode_allow: not true: while the server is down or restarts, requests are answered 500; write failure_mode_allow: true")
	}
}

// modes is about what Envoy tells the server.
func (c *checker) modes(at string, p *filterv3.ExternalProcessor) {
	m := p.GetProcessingMode()
	if m.GetRequestHeaderMode() == filterv3.ProcessingMode_SKIP {
		c.fail("processing-mode", at, "processing_mode.request_header_mode: SKIP: the server hears of no request, and nothing is guarded; write SEND")
	}
	if m.GetResponseHeaderMode() == filterv3.ProcessingMode_SKIP {
		c.warn("processing-mode", at, "processing_mode.response_header_mode: SKIP: the server hears of no response, and takes each for as large as buffers allow; write SEND")
	}
	bodies := [2]filterv3.ProcessingMode_BodySendMode{m.GetRequestBodyMode(), m.GetResponseBodyMode()}
	for i, key := range []string{"request_body_mode", "response_body_mode"} {
		if buffered(bodies[i]) {
			c.warn("processing-mode", at, "processing_mode.%s: %v: Envoy holds whole bodies before they go on, more than the guard saves; write NONE", key, bodies[i])
		}
	}
	// A body that is sent keeps the stream as long. Where none is, the server asks for the trailers
	// itself, if it may.
	none := bodies == [2]filterv3.ProcessingMode_BodySendMode{}
	kept := bodies[1] != filterv3.ProcessingMode_NONE && !buffered(bodies[1]) ||
		none && p.GetAllowModeOverride() && !p.GetSendBodyWithoutWaitingForHeaderResponse() && len(p.GetAllowedOverrideModes()) == 0
	if !kept && m.GetResponseTrailerMode() != filterv3.ProcessingMode_SEND {
		c.warn("processing-mode", at, "processing_mode.response_trailer_mode: not SEND: Envoy ends the stream to the server behind the response's headers, so that downloads are not covered and cannot be evicted; write SEND")
	}
	asked := bodies[0] == filterv3.ProcessingMode_NONE && bodies[1] <= filterv3.ProcessingMode_STREAMED ||
		bodies[1] == filterv3.ProcessingMode_NONE && bodies[0] <= filterv3.ProcessingMode_STREAMED
	switch {
	case !asked || p.GetObservabilityMode():
	case !p.GetAllowModeOverride():
		c.warn("mode-override", at, "allow_mode_override: not true: what messages without a length bring is only forecast, and not counted; write allow_mode_override: true")
	case p.GetSendBodyWithoutWaitingForHeaderResponse():
		c.warn("mode-override", at, "send_body_without_waiting_for_header_response: true: Envoy ignores mode overrides, so that what messages without a length bring is only forecast; leave it out")
	}
}

func buffered(m filterv3.ProcessingMode_BodySendMode) bool {
	return m == filterv3.ProcessingMode_BUFFERED || m == filterv3.ProcessingMode_BUFFERED_PARTIAL
}

// service is about the way to the server.
func (c *checker) service(at string, p *filterv3.ExternalProcessor) {
	const write = "write grpc_service: {envoy_grpc: {cluster_name: highwater}}, and that cluster as in examples/envoy-extproc.yaml"
	switch p.GetGrpcService().GetTargetSpecifier().(type) {
	case *corev3.GrpcService_GoogleGrpc_:
		return // it needs no cluster
	case *corev3.GrpcService_EnvoyGrpc_:
	default:
		c.fail("grpc-service", at, "grpc_service: names no server, and the guard's speaks gRPC alone; %s", write)
		return
	}
	name := p.GetGrpcService().GetEnvoyGrpc().GetClusterName()
	tree, ok := c.clusters[name]
	switch {
	case c.seen[name]:
	case !ok && c.cds:
		c.warn("grpc-service", at, "grpc_service.envoy_grpc.cluster_name: %q is not in this file, and can't be checked: it must speak HTTP/2, with max_requests: %d in its circuit breaker", name, enoughRequests)
	case !ok:
		c.fail("grpc-service", at, "grpc_service.envoy_grpc.cluster_name: there is no cluster %q, the server is never reached, and requests %s; %s", name, unanswered(p, 500), write)
	default:
		c.cluster("cluster "+name, tree, unanswered(p, 500))
	}
	c.seen[name] = true
}

func (c *checker) cluster(at string, tree any, unanswered string) {
	const extension = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
	explicit, _ := get(tree, "typed_extension_protocol_options", extension, "explicit_http_config", "http2_protocol_options")
	auto, _ := get(tree, "typed_extension_protocol_options", extension, "auto_config")
	old, _ := get(tree, "http2_protocol_options") // deprecated, and Envoy still takes it
	if explicit == nil && auto == nil && old == nil {
		c.fail("server-http2", at, `typed_extension_protocol_options: not set to HTTP/2, which gRPC needs: the server is never reached, and requests %s; `+
			`write %s: {"@type": type.googleapis.com/%[2]s, explicit_http_config: {http2_protocol_options: {}}}`, unanswered, extension)
	}
	if requests := maxRequests(tree); requests < enoughRequests {
		c.warn("server-breaker", at, "circuit_breakers.thresholds: max_requests is %v (1024 where none is set): each request in flight is one here too, and those above that %s; write max_requests: %d", requests, unanswered, enoughRequests)
	}
}

// maxRequests is what the circuit breaker lets be in flight.
func maxRequests(cluster any) float64 {
	list, _ := get(cluster, "circuit_breakers", "thresholds")
	thresholds, _ := list.([]any)
	for _, t := range thresholds {
		if priority, _ := get(t, "priority"); priority != nil && priority != "DEFAULT" && priority != json.Number("0") {
			continue
		}
		if v, ok := get(t, "max_requests"); ok {
			if n, err := strconv.ParseFloat(fmt.Sprint(v), 64); err == nil {
				return n
			}
		}
		break
	}
	return defaultMaxRequests
}

// need is something that the server must be told, and what it does without.
type need struct{ name, without string }

// keyAttributes tell by what requests are told apart.
var keyAttributes = map[string]string{
	"route": "xds.route_name", "cluster": "xds.cluster_name", "virtual_host": "xds.virtual_host_name", "source": "source.address",
}

// attributes are those that the server needs.
func attributes(c *guard.Config) []need {
	needs := []need{
		{"request.protocol", "every request is taken for HTTP/2, which can hold more"},
		{"connection.id", "what waits on one HTTP/2 connection is not bounded, and may starve its other requests"},
	}
	if name := keyAttributes[c.Fairness.By]; name != "" {
		needs = append(needs, need{name, fmt.Sprintf("all requests count as one, and not as fairness.by says (%s)", c.Fairness.By)})
	}
	return append(needs, exempts(c, func(e guard.Exempt) (what, key string) {
		switch {
		case e.Route != "":
			return keyAttributes["route"], "route"
		case e.Cluster != "":
			return keyAttributes["cluster"], "cluster"
		}
		return "", ""
	})...)
}

// headers are those that the server needs.
func headers(c *guard.Config) []need {
	needs := []need{
		{"content-length", "no length is known, and each message is forecast"},
		{"content-type", "gRPC clients are rejected as others are, without grpc-status"},
		{":method", "tunnels (CONNECT) are taken for requests, and peaks don't tell methods"},
		{"upgrade", "WebSockets are taken for requests, and what passes on them goes through the server"},
		{":status", "a response that has none of the other headers is refused as one without any"},
	}
	needs = append(needs, exempts(c, func(e guard.Exempt) (what, key string) {
		switch {
		case e.PathPrefix != "":
			return ":path", "path_prefix"
		case e.GRPCService != "":
			return ":path", "grpc_service"
		}
		return "", ""
	})...)
	if header, ok := strings.CutPrefix(c.Fairness.By, "header:"); ok {
		needs = append(needs, need{strings.ToLower(header), "all requests count as one, and not as fairness.by says"})
	}
	return needs
}

// exempts are what the rules of exempt need, by what each is of.
func exempts(c *guard.Config, of func(e guard.Exempt) (what, key string)) (needs []need) {
	for i, e := range c.Exempt {
		if what, key := of(e); what != "" {
			needs = append(needs, need{what, fmt.Sprintf("exempt[%d].%s matches nothing", i, key)})
		}
	}
	return needs
}
