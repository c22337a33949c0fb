package check

import (
	"fmt"
	"slices"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	proxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// Version is Envoy's, without the patch.
type Version struct{ Major, Minor int }

// latest is the one whose types this program knows.
var latest = Version{1, 40}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// ParseVersion reads one such as 1.38 or 1.38.2.
func ParseVersion(text string) (v Version, err error) {
	if _, err := fmt.Sscanf(strings.TrimPrefix(text, "v"), "%d.%d", &v.Major, &v.Minor); err != nil || v.Major != 1 || v.Minor < 0 {
		return v, fmt.Errorf("%q is no version of Envoy; write one such as %v", text, latest)
	}
	return v, nil
}

// What Envoy does where nothing is set (the API's documentation at each field).
const (
	defaultBuffer  = unit.MiB
	defaultLinger  = time.Second
	defaultHeaders = 60 // KiB
	defaultSilence = 15 * time.Second
	defaultBreaker = 1024
)

// http2 are the defaults of HTTP/2: they were lowered in 1.36 (its release notes).
func (v Version) http2() (window, connection unit.Bytes, streams int64) {
	if v.Minor < 36 {
		return 256 * unit.MiB, 256 * unit.MiB, 1<<31 - 1
	}
	return 16 * unit.MiB, 24 * unit.MiB, 1024
}

// listener is one of Envoy's, as far as memory depends on it.
type listener struct {
	*listenerv3.Listener
	at         string // for people: listener ingress
	chains     []chain
	sendBuffer unit.Bytes // SO_SNDBUF; 0 = not set
	quic       bool
}

// chain is one of a listener's filter chains.
type chain struct {
	at       string // for people
	listener *listener
	network  []filter // before the last one
	manager  *hcmv3.HttpConnectionManager
	proxy    *proxyv3.TcpProxy
	other    string   // the type of the last filter where it is neither of these
	http     []filter // of the manager
	routes   *routev3.RouteConfiguration
	rds      string // the name of the routes where they are not known
	tls      bool
}

// filter is a network filter or an HTTP filter.
type filter struct {
	name     string
	kind     string        // of its type: http.buffer; the whole type where it is not Envoy's
	message  proto.Message // nil = not known
	disabled bool
	ours     bool // it is Highwater's
}

func (l *listener) buffer() unit.Bytes {
	return sizeOr(l.GetPerConnectionBufferLimitBytes(), defaultBuffer)
}

func sizeOr(v *wrapperspb.UInt32Value, or unit.Bytes) unit.Bytes {
	if v == nil {
		return or
	}
	return unit.Bytes(v.GetValue())
}

// view makes of a listener what is looked at.
func (e *Envoy) view(l *listenerv3.Listener) *listener {
	v := &listener{Listener: l, at: "listener " + oneLine(l.GetName())}
	for _, o := range l.GetSocketOptions() {
		if o.GetLevel() == 1 && o.GetName() == 7 {
			v.sendBuffer = unit.Bytes(o.GetIntValue())
		}
	}
	v.quic = l.GetUdpListenerConfig() != nil || l.GetAddress().GetSocketAddress().GetProtocol() == corev3.SocketAddress_UDP
	chains := slices.Clone(l.GetFilterChains())
	if l.GetDefaultFilterChain() != nil {
		chains = append(chains, l.GetDefaultFilterChain())
	}
	for i, fc := range chains {
		at := v.at
		switch {
		case fc == l.GetDefaultFilterChain():
			at += ": default_filter_chain"
		case len(chains) > 1:
			at += strings.TrimRight(fmt.Sprintf(": filter_chains[%d] %s", i, oneLine(fc.GetName())), " ")
		}
		v.chains = append(v.chains, e.chain(v, at, fc))
	}
	return v
}

func (e *Envoy) chain(l *listener, at string, fc *listenerv3.FilterChain) chain {
	c := chain{at: at, listener: l, tls: fc.GetTransportSocket() != nil && !strings.Contains(fc.GetTransportSocket().GetName(), "raw_buffer")}
	for _, f := range fc.GetFilters() {
		typeName, m := held(f.GetTypedConfig())
		switch m := m.(type) {
		case *hcmv3.HttpConnectionManager:
			c.manager = m
		case *proxyv3.TcpProxy:
			c.proxy = m
		default:
			c.network = append(c.network, filter{name: f.GetName(), kind: kindOf(typeName, f.GetName()), message: m})
		}
	}
	if c.manager == nil {
		if n := len(c.network); c.proxy == nil && n > 0 {
			c.other, c.network = c.network[n-1].kind, c.network[:n-1]
		}
		return c
	}
	e.manage(&c)
	return c
}

// manage adds what is in the connection manager: HTTP filters and routes.
func (e *Envoy) manage(c *chain) {
	for _, f := range c.manager.GetHttpFilters() {
		typed := f.GetTypedConfig()
		if f.GetConfigDiscovery() != nil {
			if typed = e.filters[f.GetName()]; typed == nil {
				typed = f.GetConfigDiscovery().GetDefaultConfig()
			}
		}
		typeName, m := held(typed)
		c.http = append(c.http, filter{name: f.GetName(), kind: kindOf(typeName, f.GetName()), message: m, disabled: f.GetDisabled()})
	}
	c.routes = c.manager.GetRouteConfig()
	if rds := c.manager.GetRds(); rds != nil {
		if c.routes = e.routes[rds.GetRouteConfigName()]; c.routes == nil {
			c.rds = rds.GetRouteConfigName()
		}
	}
	if c.manager.GetScopedRoutes() != nil {
		c.rds = "scoped routes"
	}
}

// kindOf is what a filter is: by its type, or by its name where nothing else is known.
func kindOf(typeName, name string) string {
	if f := filterOf(typeName); f != "" {
		return f
	}
	if typeName == "" {
		return name
	}
	return typeName
}

// http2 are the windows of a connection manager, and whether it speaks HTTP/1 and HTTP/2.
func (c *chain) http2(v Version) (window, connection unit.Bytes, streams int64) {
	window, connection, streams = v.http2()
	return windows(c.manager.GetHttp2ProtocolOptions(), window, connection, streams)
}

func windows(o *corev3.Http2ProtocolOptions, window, connection unit.Bytes, streams int64) (unit.Bytes, unit.Bytes, int64) {
	if o.GetMaxConcurrentStreams() != nil {
		streams = int64(o.GetMaxConcurrentStreams().GetValue())
	}
	return sizeOr(o.GetInitialStreamWindowSize(), window), sizeOr(o.GetInitialConnectionWindowSize(), connection), streams
}

func (c *chain) speaksHTTP2() bool {
	t := c.manager.GetCodecType()
	return c.manager != nil && (t == hcmv3.HttpConnectionManager_AUTO || t == hcmv3.HttpConnectionManager_HTTP2)
}

func (c *chain) speaksHTTP1() bool {
	t := c.manager.GetCodecType()
	return c.manager != nil && (t == hcmv3.HttpConnectionManager_AUTO || t == hcmv3.HttpConnectionManager_HTTP1)
}

// linger is delayed_close_timeout; 0 = it is off.
func (c *chain) linger() time.Duration {
	if d := c.manager.GetDelayedCloseTimeout(); d != nil {
		return d.AsDuration()
	}
	return defaultLinger
}

// eachRoute visits the routes that are known.
func (c *chain) eachRoute(visit func(host *routev3.VirtualHost, r *routev3.Route)) {
	for _, host := range c.routes.GetVirtualHosts() {
		for _, r := range host.GetRoutes() {
			visit(host, r)
		}
	}
}

// perRoute visits what routes, virtual hosts and the whole configuration set for a filter.
func (c *chain) perRoute(name string, visit func(at string, a *anypb.Any)) {
	of := func(at string, all map[string]*anypb.Any) {
		if a := all[name]; a != nil {
			visit(at, a)
		}
	}
	of(c.at, c.routes.GetTypedPerFilterConfig())
	for _, host := range c.routes.GetVirtualHosts() {
		of(c.at+": virtual host "+oneLine(host.GetName()), host.GetTypedPerFilterConfig())
		for _, r := range host.GetRoutes() {
			of(c.at+": "+routeName(r), r.GetTypedPerFilterConfig())
			for _, w := range r.GetRoute().GetWeightedClusters().GetClusters() {
				of(c.at+": "+routeName(r), w.GetTypedPerFilterConfig())
			}
		}
	}
}

func routeName(r *routev3.Route) string {
	if n := r.GetName(); n != "" {
		return "route " + oneLine(n)
	}
	m := r.GetMatch()
	switch {
	case m.GetPath() != "":
		return "route " + oneLine(m.GetPath())
	case m.GetPathSeparatedPrefix() != "":
		return "route " + oneLine(m.GetPathSeparatedPrefix())
	case m.GetSafeRegex() != nil:
		return "route " + oneLine(m.GetSafeRegex().GetRegex())
	}
	return "route " + oneLine(m.GetPrefix())
}

// targets are the clusters that a chain sends to; all = it may be any.
func (c *chain) targets() (names []string, all bool) {
	add := func(n string) {
		if n != "" && !slices.Contains(names, n) {
			names = append(names, n)
		}
	}
	add(c.proxy.GetCluster())
	for _, w := range c.proxy.GetWeightedClusters().GetClusters() {
		add(w.GetName())
	}
	all = c.rds != ""
	c.eachRoute(func(_ *routev3.VirtualHost, r *routev3.Route) {
		a := r.GetRoute()
		add(a.GetCluster())
		for _, w := range a.GetWeightedClusters().GetClusters() {
			add(w.GetName())
			all = all || w.GetClusterHeader() != ""
		}
		all = all || a.GetClusterHeader() != "" || a.GetClusterSpecifierPlugin() != "" || a.GetInlineClusterSpecifierPlugin() != nil
		for _, m := range a.GetRequestMirrorPolicies() {
			add(m.GetCluster())
			all = all || m.GetClusterHeader() != ""
		}
	})
	return names, all
}

// cluster is one of Envoy's, as far as memory depends on it.
type cluster struct {
	*clusterv3.Cluster
	at       string
	buffer   unit.Bytes
	http2    bool
	window   unit.Bytes
	breaker  breaker
	breakers bool // they are set
}

// breaker is what a cluster's circuit breaker lets be at once, of the default priority.
type breaker struct{ connections, pending, requests int64 }

func (e *Envoy) viewCluster(c *clusterv3.Cluster) *cluster {
	v := &cluster{
		Cluster: c, at: "cluster " + oneLine(c.GetName()), buffer: sizeOr(c.GetPerConnectionBufferLimitBytes(), defaultBuffer),
		breaker: breaker{defaultBreaker, defaultBreaker, defaultBreaker},
	}
	options := c.GetHttp2ProtocolOptions()
	v.http2 = options != nil
	for _, a := range c.GetTypedExtensionProtocolOptions() {
		_, m := held(a)
		o, ok := m.(*httpv3.HttpProtocolOptions)
		if !ok {
			continue
		}
		switch {
		case o.GetAutoConfig() != nil:
			v.http2, options = true, o.GetAutoConfig().GetHttp2ProtocolOptions()
		case o.GetUseDownstreamProtocolConfig() != nil:
			v.http2, options = true, o.GetUseDownstreamProtocolConfig().GetHttp2ProtocolOptions()
		case o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil:
			v.http2, options = true, o.GetExplicitHttpConfig().GetHttp2ProtocolOptions()
		}
	}
	window, connection, streams := e.version.http2()
	v.window, _, _ = windows(options, window, connection, streams)
	for _, t := range c.GetCircuitBreakers().GetThresholds() {
		if t.GetPriority() != corev3.RoutingPriority_DEFAULT {
			continue
		}
		v.breakers = t.GetMaxRequests() != nil && t.GetMaxConnections() != nil && t.GetMaxPendingRequests() != nil
		set := func(to *int64, n *wrapperspb.UInt32Value) {
			if n != nil {
				*to = int64(n.GetValue())
			}
		}
		set(&v.breaker.connections, t.GetMaxConnections())
		set(&v.breaker.pending, t.GetMaxPendingRequests())
		set(&v.breaker.requests, t.GetMaxRequests())
	}
	return v
}
