package check

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"

	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/worst"
)

// What is low: what Envoy's guide for edge proxies sets ("Configuring Envoy as an edge proxy": 32
// KiB buffers, 64 KiB stream windows, 1 MiB connection windows), and what the examples here do.
const (
	lowBuffer = 64 * unit.KiB
	lowWindow = 64 * unit.KiB
)

// mechanisms are what makes memory grow in this Envoy, with a guard and without.
func (c *checker) mechanisms() {
	for i := range c.guards {
		g := &c.guards[i]
		if g.listener.quic {
			c.tell("http3", g.listener.at, "HTTP/3 and other UDP are not counted here, and Highwater sees none of it", "")
		}
		if g.answers() || c.quiet(g) || g.listener.quic || g.manager == nil && g.proxy == nil && g.other == "" {
			continue
		}
		c.listenerBuffers(g)
		c.connections(g)
		c.silence(g)
		if g.manager != nil {
			c.windows(g)
			c.lingering(g)
			c.bodies(g)
			c.headerSizes(g)
		} else {
			c.raw(g)
		}
	}
	for _, n := range sorted(c.targets) {
		if cl := c.of[n]; cl != nil {
			c.clusterBuffers(cl)
		}
	}
	c.overload()
}

// told says that the guard of a chain counts with at least so many bytes.
func (g *guarded) told(of func(b *buffers) unit.Bytes, is unit.Bytes) bool {
	return g.config() != nil && of((*buffers)(&g.config().Buffers)) >= is
}

// understated says that there is a finding of the guard's own about it.
func (g *guarded) understated(of func(b *buffers) unit.Bytes, is unit.Bytes) bool {
	return g.config() != nil && !g.told(of, is)
}

func (c *checker) listenerBuffers(g *guarded) {
	n := g.buffer()
	set := "is not set, which is 1MiB"
	if g.listener.GetPerConnectionBufferLimitBytes() != nil {
		set = fmt.Sprintf("is %v", n)
	}
	what := fmt.Sprintf("per_connection_buffer_limit_bytes %s: one HTTP/1 request can hold %s, and a response %s beside what its cluster holds", set, (2 * n).Human(), n.Human())
	if g.manager == nil {
		what = fmt.Sprintf("per_connection_buffer_limit_bytes %s: one connection can hold %s, beside what its cluster holds", set, (2 * n).Human())
	}
	if n > lowBuffer && !g.understated(func(b *buffers) unit.Bytes { return b.Downstream }, n) {
		c.byGuard(g, "listener-buffer", g.listener.at, what, "per_connection_buffer_limit_bytes: 65536")
	}
	if g.listener.sendBuffer == 0 && g.listener.GetInternalListener() == nil {
		c.warn("send-buffer", g.listener.at, fmt.Sprintf("SO_SNDBUF is not set: the kernel keeps up to %v of what a client does not read, in no heap figure, and the container pays for it", worst.KernelSend), "socket_options: [{description: SO_SNDBUF, level: 1, name: 7, int_value: 65536, state: STATE_PREBIND}]")
	}
}

// byGuard warns where nobody counts it, and tells where the guard counts with it.
func (c *checker) byGuard(g *guarded, name, at, what, write string) {
	if g.by() != nil {
		c.tell(name, at, what, write)
		return
	}
	c.warn(name, at, what, write)
}

func (c *checker) clusterBuffers(cl *cluster) {
	set := "is not set, which is 1MiB"
	if cl.GetPerConnectionBufferLimitBytes() != nil {
		set = fmt.Sprintf("is %v", cl.buffer)
	}
	upstream := c.toldUpstream(cl.GetName())
	if what := fmt.Sprintf("per_connection_buffer_limit_bytes %s: one response can hold that much, beside what its listener holds", set); cl.buffer > lowBuffer {
		switch {
		case upstream < 0:
			c.warn("cluster-buffer", cl.at, what, "per_connection_buffer_limit_bytes: 65536")
		case upstream >= cl.buffer:
			c.tell("cluster-buffer", cl.at, what, "per_connection_buffer_limit_bytes: 65536")
		}
	}
	if most := max(lowWindow, upstream); cl.http2 && cl.window > most {
		what := fmt.Sprintf("it may speak HTTP/2, and initial_stream_window_size is %v: the upstream may send so much of each response ahead of its reader", cl.window)
		if upstream >= 0 {
			what += fmt.Sprintf(", and buffers.upstream is %v", upstream)
		}
		c.warn("http2-upstream-window", cl.at, what, "initial_stream_window_size: 65536, initial_connection_window_size: 16777216 in its http2_protocol_options")
	}
}

// toldUpstream is the lowest buffers.upstream of the guards whose requests go to a cluster; less
// than 0 where there is none.
func (c *checker) toldUpstream(name string) unit.Bytes {
	told := unit.Bytes(-1)
	for i := range c.guards {
		g := &c.guards[i]
		names, all := g.targets()
		if g.config() == nil || g.answers() || !all && !slices.Contains(names, name) {
			continue
		}
		if b := g.config().Buffers.Upstream; told < 0 || b < told {
			told = b
		}
	}
	return told
}

func (c *checker) windows(g *guarded) {
	if !g.speaksHTTP2() {
		return
	}
	window, connection, streams := g.http2(c.version)
	h2 := g.manager.GetHttp2ProtocolOptions()
	set := fmt.Sprintf("is not set, which is %v in Envoy %v", window, c.version)
	if h2.GetInitialStreamWindowSize() != nil {
		set = fmt.Sprintf("is %v", window)
	}
	if window > lowWindow && !g.understated(func(b *buffers) unit.Bytes { return b.HTTP2Window }, window) {
		c.byGuard(g, "http2-window", g.at, fmt.Sprintf("initial_stream_window_size %s: one HTTP/2 upload can hold %s, and one download %s", set, (2*window).Human(), window.Human()),
			"http2_protocol_options: {initial_stream_window_size: 65536, initial_connection_window_size: 16777216}")
	}
	if connection < 16*unit.MiB && g.requests != nil {
		c.tell("http2-connection-window", g.at, fmt.Sprintf("initial_connection_window_size is %v: requests that wait use it up, and the others of their connection starve meanwhile", connection), "initial_connection_window_size: 16777216")
	}
	if streams > 1024 {
		n := fmt.Sprint(streams)
		if streams >= worst.NoLimit {
			n = "without a limit"
		}
		c.byGuard(g, "http2-streams", g.at, "max_concurrent_streams is "+n+": one connection may have so many requests, and each its buffers", "max_concurrent_streams: 100")
	}
}

func (c *checker) lingering(g *guarded) {
	if d := g.linger(); d >= time.Second && g.config() == nil {
		c.tell("linger", g.at, fmt.Sprintf("delayed_close_timeout is %v: a request that is answered before it is complete keeps its connection and what it has sent for so long", d), "delayed_close_timeout: 0.1s")
	} else if d == 0 && g.requests == nil {
		c.tell("linger", g.at, "delayed_close_timeout is 0s: clients whose upload is answered early see a reset, not the answer", "delayed_close_timeout: 0.1s")
	}
}

// bodies is about what holds more of a request than the buffers.
func (c *checker) bodies(g *guarded) {
	c.holding(g)
	for i, f := range g.http {
		if !f.ours && g.inUse(f) && slices.Contains([]string{"http.wasm", "http.dynamic_modules", "http.golang", "http.composite"}, f.kind) {
			c.tell("others-code", fmt.Sprintf("%s: http_filters[%d] %s", g.at, i, oneLine(f.name)), "it runs code that nobody can look into here: it may hold bodies up to the buffer limit, and memory of its own that is in no reading", "")
		}
	}
	for _, k := range g.kept() {
		c.copiesOf(k)
	}
	c.packing(g)
}

// holding tells of filters that hold bodies, where that is not compared with whole_request.
func (c *checker) holding(g *guarded) {
	for _, h := range g.holders() {
		unknown := g.requests != nil && g.config() == nil && g.requests.err == nil // the server's
		if g.requests != nil && !unknown {
			continue // compared with whole_request
		}
		what := fmt.Sprintf("it holds bodies before they go on: %s. So much is held for each request in flight", h.what)
		if h.bytes > lowBuffer && !unknown {
			c.warn("holds-bodies", h.at, what, fmt.Sprintf("as little as the largest body needs; with Highwater whole_request: %v", h.bytes))
		} else {
			c.tell("holds-bodies", h.at, what, "")
		}
	}
}

// packing tells of decompressors and compressors.
func (c *checker) packing(g *guarded) {
	for _, d := range g.decompressors() {
		who, say := "an upstream's response", c.tell
		if d.up {
			who, say = "a client's request", c.warn
		}
		say("decompressor", d.at, fmt.Sprintf("it makes up to %d bytes of one of %s: %s of what one read of a full buffer brings", d.ratio, who, d.bytes.Human()), "a lower max_inflate_ratio, and a lower listener buffer limit, which bounds what one read brings")
	}
	for _, k := range g.compressors() {
		switch {
		case k.bytes == 0:
			c.tell("compressor", k.at, "it keeps its state for each response; how much is not computed for this library", "")
		case k.bytes > 128*unit.KiB:
			c.warn("compressor", k.at, fmt.Sprintf("it keeps a state of some %s for each response in flight, which no buffer limit bounds", k.bytes.Human()), "a lower memory_level and window_bits (gzip), or quality below 4 (brotli)")
		default:
			c.tell("compressor", k.at, fmt.Sprintf("it keeps a state of some %s for each response in flight, which no buffer limit bounds", k.bytes.Human()), "")
		}
	}
}

func (c *checker) copiesOf(k copies) {
	const write = "a request_body_buffer_limit that is as low as the largest body that is worth to be sent twice"
	if k.retries {
		what := fmt.Sprintf("it retries, and keeps each request's body for that until the response begins, up to %v", k.limit)
		if k.raised {
			c.warn("retries", k.at, what+", which is more than its connection's buffer", write)
		} else {
			c.tell("retries", k.at, what, write)
		}
	}
	if k.mirrors > 0 {
		c.warn("mirrors", k.at, fmt.Sprintf("it mirrors each request to %d more cluster(s), and keeps a copy of its body for each, up to %v: one that hangs keeps it after the request has been answered", k.mirrors, k.limit), write+"; a timeout on the route, which ends the mirrored request too")
	}
}

func (c *checker) headerSizes(g *guarded) {
	kib := g.headers()
	if kib <= defaultHeaders*unit.KiB {
		return
	}
	say := c.warn
	if kib <= 96*unit.KiB {
		say = c.tell
	}
	say("headers", g.at, fmt.Sprintf("max_request_headers_kb is %d: the headers of one request can hold %s for as long as it lives, and no buffer limit bounds them", kib/unit.KiB, (worst.HeaderFactor*kib).Human()), "max_request_headers_kb: 60")
}

// silence is about connections that say nothing, before any filter chain is chosen.
func (c *checker) silence(g *guarded) {
	l := g.listener
	wait := defaultSilence
	if l.GetListenerFiltersTimeout() != nil {
		wait = l.GetListenerFiltersTimeout().AsDuration()
	}
	var names []string
	inspects := unit.Bytes(0)
	for _, f := range l.GetListenerFilters() {
		typeName, m := held(f.GetTypedConfig())
		kind := kindOf(typeName, f.GetName())
		if !strings.Contains(kind, "tls_inspector") && !strings.Contains(kind, "http_inspector") && !strings.Contains(kind, "proxy_protocol") {
			continue
		}
		names = append(names, oneLine(f.GetName()))
		inspects = max(inspects, 64*unit.KiB)
		if t, ok := m.(*inspectorv3.TlsInspector); ok && t.GetMaxClientHelloSize() != nil {
			inspects = sizeOr(t.GetMaxClientHelloSize(), inspects)
		}
	}
	if len(names) == 0 || wait > 0 && wait <= time.Minute {
		return
	}
	set := fmt.Sprintf("listener_filters_timeout is %v", wait)
	if wait == 0 {
		set = "listener_filters_timeout is 0s, which is for ever"
	}
	c.warn("silent-connections", l.at, fmt.Sprintf("%s: a connection that says nothing keeps up to %v in %s, before any filter chain, and so before Highwater, sees it", set, inspects, strings.Join(names, ", ")), "listener_filters_timeout: 5s")
}

// raw is about listeners that pass on what is no HTTP.
func (c *checker) raw(g *guarded) {
	n := g.buffer()
	what := fmt.Sprintf("it passes raw TCP on: each connection can hold %s beside what its cluster holds, for as long as one end does not read", (2 * n).Human())
	if g.proxy == nil {
		what = fmt.Sprintf("it speaks %s: each connection can hold %s, and what a message can hold beside that is not computed", g.other, (2 * n).Human())
	}
	const write = "TCP_USER_TIMEOUT on the listener: {level: 6, name: 18, int_value: 30000, state: STATE_LISTENING}, which ends who reads nothing for 30 s"
	if g.connections != nil {
		c.tell("raw-tcp", g.at, what+". Highwater counts it and refuses new ones; one that is full cannot be freed by closing it", write)
		return
	}
	c.warn("raw-tcp", g.at, what, write)
}

// connections tells of listeners to which as many may connect as like to.
func (c *checker) connections(g *guarded) {
	if c.limits[g.listener.GetName()] > 0 || g.connections != nil || g.listener.GetInternalListener() != nil {
		return
	}
	c.tell("connections", g.listener.at, fmt.Sprintf("nothing limits how many connections there may be: an idle one costs %v, or %v with TLS, and each can hold what its listener lets it", worst.TCP, worst.TLSConnection),
		"overload_manager: the monitor envoy.resource_monitors.global_downstream_max_connections, or Highwater's network filter")
}

// ownClusters are those to which Envoy itself sends, and no listener: for xDS, for authorization,
// logs and the like.
func (c *checker) ownClusters() map[string]bool {
	own := map[string]bool{c.adminCluster(): true}
	add := func(s *corev3.GrpcService) { own[s.GetEnvoyGrpc().GetClusterName()] = true }
	sources := []*corev3.ApiConfigSource{c.bootstrap.GetDynamicResources().GetAdsConfig()}
	for _, s := range []*corev3.ConfigSource{c.bootstrap.GetDynamicResources().GetCdsConfig(), c.bootstrap.GetDynamicResources().GetLdsConfig()} {
		sources = append(sources, s.GetApiConfigSource())
	}
	for _, s := range sources {
		for _, g := range s.GetGrpcServices() {
			add(g)
		}
		for _, n := range s.GetClusterNames() {
			own[n] = true
		}
	}
	for _, g := range c.guards {
		for _, f := range g.http {
			switch m := f.message.(type) {
			case interface{ GetGrpcService() *corev3.GrpcService }:
				add(m.GetGrpcService())
			}
		}
		if by := g.by(); by != nil && by.asks() {
			own[by.config.Memory.Cluster] = true
		}
	}
	return own
}
