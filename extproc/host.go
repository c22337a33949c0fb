package extproc

import (
	"strings"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/httptext"
	"github.com/highwater-envoy/highwater/internal/reservoir"
)

var _ guard.Host = (*stream)(nil)

// HTTP2 implements guard.Host. What is not known may be it: then more can be held.
func (s *stream) HTTP2() bool {
	return !strings.HasPrefix(s.wants(s.protocol, hasProtocol, "request.protocol"), "HTTP/1")
}

// Arrived implements guard.Host: nobody tells of bytes on connections here.
func (s *stream) Arrived() *guard.Connection { return nil }

// Connection implements guard.Host. It can't be closed, but what waits on it is bounded.
func (s *stream) Connection() *guard.Connection {
	if s.connection == 0 {
		return nil
	}
	c := s.server.mu.connections[s.connection]
	if c == nil {
		c = &guard.Connection{}
		s.server.mu.connections[s.connection] = c
	}
	return c
}

// Visibility implements guard.Host: where the mode of a body is NONE its headers alone are told,
// unless we ask for it; and where the filter's response_header_mode is SKIP, most likely nothing is
// told of responses.
func (s *stream) Visibility(d budget.Direction) budget.Visibility {
	switch {
	case !s.halves[d].hidden():
		return budget.Counted
	case d == budget.Response && !s.server.coverage.TellsResponses():
		return budget.Silent
	}
	return budget.Announced
}

// HeaderBytes implements guard.Host.
func (s *stream) HeaderBytes() int64 { return s.headers }

// BodyLimit implements guard.Host: no limit of Envoy is known here.
func (s *stream) BodyLimit() int64 { return 0 }

// Path implements guard.Host.
func (s *stream) Path() string { return s.path }

// Header implements guard.Host: the one by which requests are told apart.
func (s *stream) Header(string) string { return s.header }

// Route implements guard.Host.
func (s *stream) Route() string {
	if s.route == "" && s.cluster != "" && s.has&hasRoute != 0 && s.guard.Config().TellsRoutesApart() {
		s.server.once.unnamed.Do(func() { s.server.log.Warn(guard.UnnamedRoutes) })
	}
	return s.wants(s.route, hasRoute, "xds.route_name")
}

// Cluster implements guard.Host.
func (s *stream) Cluster() string { return s.wants(s.cluster, hasCluster, "xds.cluster_name") }

// VirtualHost implements guard.Host.
func (s *stream) VirtualHost() string {
	return s.wants(s.virtualHost, hasVirtualHost, "xds.virtual_host_name")
}

// Source implements guard.Host.
func (s *stream) Source() string {
	return httptext.WithoutPort(s.wants(s.source, hasSource, "source.address"))
}

// Describe implements guard.Host: with what was told, and nobody is asked for more.
func (s *stream) Describe(header string) reservoir.Labels {
	l := reservoir.Labels{
		VirtualHost: s.virtualHost, Route: s.route, Cluster: s.cluster, Source: httptext.WithoutPort(s.source), Protocol: s.protocol, Method: s.method,
	}
	if header != "" {
		l.Key = s.header
	}
	return l
}
