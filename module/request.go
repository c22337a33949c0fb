package main

// #include "abi.h"
import "C"

import (
	"runtime"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/httptext"
	"github.com/highwater-envoy/highwater/internal/reservoir"
)

var _ guard.Host = (*stream)(nil)

// attribute asks Envoy about the stream; the text is valid until the hook returns.
func (s *stream) attribute(id C.int) string {
	var text C.hw_text
	if s.c == nil || !bool(C.envoy_dynamic_module_callback_http_filter_get_attribute_string(s.c.envoy, id, &text)) {
		return ""
	}
	return viewOf(text)
}

// HTTP2 implements guard.Host.
func (s *stream) HTTP2() bool {
	protocol := s.attribute(C.HW_REQUEST_PROTOCOL)
	return protocol == "HTTP/2" || protocol == "HTTP/3"
}

// Arrived implements guard.Host.
func (s *stream) Arrived() *guard.Connection {
	if s.arrived == nil {
		return nil
	}
	return &s.arrived.Connection
}

// bare is a connection that the network filter has not seen: its listener has none. It can't be
// closed, but what waits on it is still bounded.
type bare struct {
	guard.Connection
	streams int
}

// Connection implements guard.Host.
func (s *stream) Connection() *guard.Connection {
	if s.known != nil {
		return &s.known.Connection
	}
	all := s.worker.mu.bare
	b := all[s.key]
	if b == nil {
		b = &bare{}
		all[s.key] = b
		module.setup.lacksConnections(s)
	}
	return &b.Connection
}

// forgetBare drops what was kept of a connection without a network filter, once nothing waits on
// it.
func (w *worker) forgetBare(key uint64) {
	if b := w.mu.bare[key]; b != nil && b.Waiting == 0 {
		delete(w.mu.bare, key)
	}
}

// Describe implements guard.Host.
func (s *stream) Describe(header string) (l reservoir.Labels) {
	name := func(id C.int) string {
		return string([]byte(s.attribute(id)))
	}
	l = reservoir.Labels{
		VirtualHost: name(C.HW_VIRTUAL_HOST_NAME), Route: name(C.HW_ROUTE_NAME), Cluster: name(C.HW_CLUSTER_NAME),
		Source: httptext.WithoutPort(name(C.HW_SOURCE_ADDRESS)), Protocol: name(C.HW_REQUEST_PROTOCOL), Method: name(C.HW_REQUEST_METHOD),
	}
	if header != "" {
		l.Key = s.Header(header)
	}
	return l
}

// Visibility implements guard.Host.
func (s *stream) Visibility(budget.Direction) budget.Visibility { return budget.Counted }

// HeaderBytes implements guard.Host.
func (s *stream) HeaderBytes() int64 {
	var n C.uint64_t
	if s.arrived == nil || s.c == nil || !bool(C.envoy_dynamic_module_callback_http_filter_get_attribute_int(s.c.envoy, C.HW_REQUEST_TOTAL_SIZE, &n)) {
		return 0
	}
	return int64(min(uint64(n), uint64(budget.Unlimited)))
}

// BodyLimit implements guard.Host.
func (s *stream) BodyLimit() int64 { return s.limit }

// Path implements guard.Host.
func (s *stream) Path() string { return s.Header(":path") }

// Header implements guard.Host.
func (s *stream) Header(name string) string {
	var text C.hw_text
	if s.c == nil || !bool(C.envoy_dynamic_module_callback_http_get_header(s.c.envoy, C.HW_REQUEST_HEADERS, textOf(name), &text, 0, nil)) {
		return ""
	}
	runtime.KeepAlive(name)
	return stringOf(text)
}

// VirtualHost implements guard.Host.
func (s *stream) VirtualHost() string { return s.attribute(C.HW_VIRTUAL_HOST_NAME) }

// Source implements guard.Host.
func (s *stream) Source() string { return httptext.WithoutPort(s.attribute(C.HW_SOURCE_ADDRESS)) }

// Route implements guard.Host.
func (s *stream) Route() string {
	name := s.attribute(C.HW_ROUTE_NAME)
	if name == "" {
		module.setup.unnamed(s)
	}
	return name
}

// Cluster implements guard.Host.
func (s *stream) Cluster() string { return s.attribute(C.HW_CLUSTER_NAME) }
