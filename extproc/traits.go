package extproc

import (
	"fmt"
	"math"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/httptext"
)

// traits are what the filter told of the request.
type traits struct {
	path, method, route, cluster, virtualHost, source, protocol string
	header                                                      string // that by which requests are told apart
	connection                                                  uint64 // Envoy's id; 0 = not told
	headers                                                     int64  // bytes of all of them
	has                                                         attribute
}

// attribute is one of those that were told, or several: a route, for one, may be told and have no
// name.
type attribute uint8

const (
	hasRoute attribute = 1 << iota
	hasCluster
	hasVirtualHost
	hasSource
	hasProtocol
)

const (
	maxName = 1 << 10 // bytes of an attribute that are kept: Envoy's names are shorter
	maxKey  = 256     // bytes of a header that tells requests apart: more of it does not count
)

// readRequest takes what is needed of the headers, and returns the length of the body.
func (s *stream) readRequest(h *extprocv3.HttpHeaders) (length int64) {
	length = budget.Unknown
	for _, f := range h.GetHeaders().GetHeaders() {
		s.headers += int64(len(f.GetKey()) + len(f.GetRawValue()) + len(f.GetValue()))
		switch f.GetKey() {
		case ":path":
			s.path = value(f)
		case ":method":
			s.method = clip(value(f), maxKey)
			s.upgrades = s.upgrades || s.method == "CONNECT"
		case "upgrade":
			s.upgrades = true
		case "content-type":
			s.gRPC = httptext.IsGRPC(value(f))
		case "content-length":
			length = httptext.ContentLength(value(f))
		}
	}
	if h.GetEndOfStream() {
		length = 0
	}
	return length
}

// value is a header's: Envoy sends it as bytes.
func value(h *corev3.HeaderValue) string {
	if len(h.GetRawValue()) > 0 {
		return string(h.GetRawValue())
	}
	return h.GetValue()
}

// clip is a text of at most so many bytes, which does not keep the rest in memory.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return strings.Clone(text[:most])
}

func headerValue(h *extprocv3.HttpHeaders, name string) string {
	for _, f := range h.GetHeaders().GetHeaders() {
		if f.GetKey() == name {
			return value(f)
		}
	}
	return ""
}

// attributes takes what request_attributes has the filter tell.
func (t *traits) attributes(r *extprocv3.ProcessingRequest) error {
	for _, a := range r.GetAttributes() {
		for name, v := range a.GetFields() {
			if err := t.set(name, v); err != nil {
				return err
			}
		}
	}
	return nil
}

// set keeps an attribute, unless it is none of those that are used.
func (t *traits) set(name string, v *structpb.Value) error {
	if name == "connection.id" {
		n, ok := v.GetKind().(*structpb.Value_NumberValue)
		if !ok || !(n.NumberValue >= 0 && n.NumberValue < math.MaxUint64) {
			return fmt.Errorf("attribute %s is not a whole number", name)
		}
		t.connection = uint64(n.NumberValue)
		return nil
	}
	into, has := t.named(name)
	if into == nil {
		return nil
	}
	text, ok := v.GetKind().(*structpb.Value_StringValue)
	if !ok {
		return fmt.Errorf("attribute %s is not text", name)
	}
	*into = clip(text.StringValue, maxName)
	t.has |= has
	return nil
}

// named is where an attribute that is text is kept; nil: it is none of those that are used.
func (t *traits) named(name string) (into *string, has attribute) {
	switch name {
	case "xds.route_name":
		return &t.route, hasRoute
	case "xds.cluster_name":
		return &t.cluster, hasCluster
	case "xds.virtual_host_name":
		return &t.virtualHost, hasVirtualHost
	case "source.address":
		return &t.source, hasSource
	case "request.protocol":
		return &t.protocol, hasProtocol
	}
	return nil, 0
}

// wants says once which attribute the filter should tell and does not.
func (s *stream) wants(value string, has attribute, name string) string {
	if s.has&has == 0 {
		s.server.once.attribute.Do(func() {
			s.server.log.Warn("a request came without an attribute that is needed: add it to request_attributes of the ext_proc filter", "attribute", name)
		})
	}
	return value
}
