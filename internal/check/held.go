package check

import (
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	brotliv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/brotli/compressor/v3"
	gzipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/compressor/v3"
	gunzipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/decompressor/v3"
	lambdav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/aws_lambda/v3"
	signingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/aws_request_signing/v3"
	bufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	compressorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/compressor/v3"
	decompressorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/decompressor/v3"
	authzv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	filebufferv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/file_system_buffer/v3"
	transcoderv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_json_transcoder/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/worst"
)

// holder is a filter that holds bodies of requests, whole or nearly so.
type holder struct {
	at    string // for people
	what  string // it does: key and figure
	index int    // in http_filters
	bytes unit.Bytes
}

// holders are the filters of a chain that hold bodies, with the most that each holds of one. A
// filter that is disabled counts where a route enables it.
func (c *chain) holders() (all []holder) {
	for i, f := range c.http {
		if f.ours {
			continue
		}
		at := fmt.Sprintf("%s: http_filters[%d] %s", c.at, i, oneLine(f.name))
		most := holder{at: at, index: i}
		take := func(m proto.Message) {
			if what, n := c.holds(m); n > most.bytes {
				most.what, most.bytes = what, n
			}
		}
		if c.inUse(f) {
			take(f.message)
			if gathering[f.kind] {
				most.what, most.bytes = "it reads whole messages, up to the buffer limit", c.listener.buffer()
			}
		}
		c.perRoute(f.name, func(_ string, a *anypb.Any) {
			_, m := held(a)
			if fc, ok := m.(*routev3.FilterConfig); ok {
				_, m = held(fc.GetConfig())
			}
			take(m)
		})
		if most.bytes > 0 {
			all = append(all, most)
		}
	}
	return all
}

// inUse says that a filter is not disabled, or that a route enables it.
func (c *chain) inUse(f filter) bool {
	used := !f.disabled
	c.perRoute(f.name, func(_ string, a *anypb.Any) {
		_, m := held(a)
		fc, ok := m.(*routev3.FilterConfig)
		used = used || !ok || !fc.GetDisabled()
	})
	return used
}

// holds is what a filter of that configuration holds of a body.
func (c *chain) holds(m proto.Message) (what string, n unit.Bytes) {
	limit := c.listener.buffer()
	switch m := m.(type) {
	case *bufferv3.Buffer:
		n = sizeOr(m.GetMaxRequestBytes(), 0)
		return fmt.Sprintf("max_request_bytes is %v", n), n
	case *bufferv3.BufferPerRoute:
		return c.holds(m.GetBuffer())
	case *authzv3.ExtAuthz:
		return authz(m.GetWithRequestBody())
	case *authzv3.ExtAuthzPerRoute:
		return authz(m.GetCheckSettings().GetWithRequestBody())
	case *luav3.Lua:
		return lua(limit, append([]*corev3.DataSource{inline(m.GetInlineCode()), m.GetDefaultSourceCode()}, values(m.GetSourceCodes())...)...)
	case *luav3.LuaPerRoute:
		return lua(limit, m.GetSourceCode())
	case *transcoderv3.GrpcJsonTranscoder:
		n = max(limit, sizeOr(m.GetMaxRequestBodySize(), 0), sizeOr(m.GetMaxResponseBodySize(), 0))
		return "gRPC-JSON transcoding reads whole messages, up to the buffer limit or max_request_body_size", n
	case *filebufferv3.FileSystemBufferFilterConfig:
		n = unit.Bytes(m.GetRequest().GetMemoryBufferBytesLimit().GetValue())
		return fmt.Sprintf("request.memory_buffer_bytes_limit is %v", n), max(n, limit)
	case *lambdav3.Config:
		return "it reads the whole body, for there is no streaming to a function", limit
	case *signingv3.AwsRequestSigning:
		if !m.GetUseUnsignedPayload() {
			return "it reads the whole body to sign it (use_unsigned_payload)", limit
		}
	case *extprocv3.ExternalProcessor:
		return processor(m, limit)
	}
	return "", 0
}

func authz(s *authzv3.BufferSettings) (string, unit.Bytes) {
	n := unit.Bytes(s.GetMaxRequestBytes())
	return fmt.Sprintf("with_request_body.max_request_bytes is %v", n), n
}

func processor(m *extprocv3.ExternalProcessor, limit unit.Bytes) (string, unit.Bytes) {
	switch mode := m.GetProcessingMode().GetRequestBodyMode(); mode {
	case extprocv3.ProcessingMode_BUFFERED, extprocv3.ProcessingMode_BUFFERED_PARTIAL:
		return fmt.Sprintf("request_body_mode is %v", mode), limit
	case extprocv3.ProcessingMode_STREAMED, extprocv3.ProcessingMode_FULL_DUPLEX_STREAMED:
		return fmt.Sprintf("request_body_mode is %v: what the processor has not answered is held", mode), limit
	}
	return "", 0
}

func inline(code string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: code}}
}

func values(m map[string]*corev3.DataSource) (all []*corev3.DataSource) {
	for _, v := range m {
		all = append(all, v)
	}
	return all
}

// lua reads scripts for calls that hold the body: body() waits for all of it, and a httpCall that
// is answered lets it come meanwhile. Both hold up to the buffer limit.
func lua(limit unit.Bytes, sources ...*corev3.DataSource) (string, unit.Bytes) {
	for _, s := range sources {
		code := s.GetInlineString() + string(s.GetInlineBytes())
		for _, call := range []string{":body(", ":httpCall("} {
			if strings.Contains(code, call) {
				return "the Lua code calls " + strings.Trim(call, ":(") + ", and the body is held meanwhile, up to the buffer limit", limit
			}
		}
		if s.GetFilename() != "" {
			return "the Lua code is in a file, and may hold bodies, up to the buffer limit", limit
		}
	}
	return "", 0
}

// copies is what a route keeps of each request's body.
type copies struct {
	at      string
	retries bool
	mirrors int
	limit   unit.Bytes // of each copy
	raised  bool       // the route sets it above the listener's buffer limit
}

// kept are the routes that keep bodies: for retries, and for each mirror. How much: the API's
// documentation of request_body_buffer_limit.
func (c *chain) kept() (all []copies) {
	c.eachRoute(func(host *routev3.VirtualHost, r *routev3.Route) {
		action := r.GetRoute()
		if action == nil {
			return
		}
		policy := action.GetRetryPolicy()
		if policy == nil {
			policy = host.GetRetryPolicy()
		}
		k := copies{at: c.at + ": " + routeName(r), retries: policy.GetRetryOn() != "", limit: c.listener.buffer()}
		mirrors := action.GetRequestMirrorPolicies()
		if len(mirrors) == 0 {
			mirrors = host.GetRequestMirrorPolicies()
		}
		if len(mirrors) == 0 {
			mirrors = c.routes.GetRequestMirrorPolicies()
		}
		k.mirrors = len(mirrors)
		switch {
		case r.GetRequestBodyBufferLimit() != nil:
			k.limit = unit.Bytes(min(r.GetRequestBodyBufferLimit().GetValue(), uint64(worst.Unbounded)))
		case r.GetPerRequestBufferLimitBytes() != nil:
			k.limit = min(k.limit, sizeOr(r.GetPerRequestBufferLimitBytes(), k.limit))
		case host.GetRequestBodyBufferLimit() != nil:
			k.limit = unit.Bytes(min(host.GetRequestBodyBufferLimit().GetValue(), uint64(worst.Unbounded)))
		case host.GetPerRequestBufferLimitBytes() != nil:
			k.limit = min(k.limit, sizeOr(host.GetPerRequestBufferLimitBytes(), k.limit))
		}
		k.raised = k.limit > c.listener.buffer()
		if k.retries || k.mirrors > 0 {
			all = append(all, k)
		}
	})
	return all
}

// inflating is a decompressor.
type inflating struct {
	at    string
	ratio int64
	bytes unit.Bytes // what it can make of what one read brings
	up    bool       // of requests: of what clients send
}

// defaultRatio is how much a decompressor may make of a byte (the API's documentation of
// max_inflate_ratio; the other libraries have no setting, and the same in their code).
const defaultRatio = 100

func (c *chain) decompressors() (all []inflating) {
	for i, f := range c.http {
		m, ok := f.message.(*decompressorv3.Decompressor)
		if !ok || !c.inUse(f) {
			continue
		}
		d := inflating{at: fmt.Sprintf("%s: http_filters[%d] %s", c.at, i, oneLine(f.name)), ratio: defaultRatio}
		if _, g := held(m.GetDecompressorLibrary().GetTypedConfig()); g != nil {
			if g, ok := g.(*gunzipv3.Gzip); ok && g.GetMaxInflateRatio() != nil {
				d.ratio = int64(g.GetMaxInflateRatio().GetValue())
			}
		}
		d.bytes = worst.Times(d.ratio, c.listener.buffer())
		d.up = enabled(m.GetRequestDirectionConfig().GetCommonConfig().GetEnabled())
		all = append(all, d)
	}
	return all
}

// enabled is what a flag says; where there is none it is on.
func enabled(f *corev3.RuntimeFeatureFlag) bool {
	return f.GetDefaultValue() == nil || f.GetDefaultValue().GetValue()
}

// compressing is a compressor.
type compressing struct {
	at    string
	bytes unit.Bytes // its state, for each stream; 0 = not known
}

func (c *chain) compressors() (all []compressing) {
	for i, f := range c.http {
		m, ok := f.message.(*compressorv3.Compressor)
		if !ok || !c.inUse(f) {
			continue
		}
		k := compressing{at: fmt.Sprintf("%s: http_filters[%d] %s", c.at, i, oneLine(f.name))}
		switch _, l := held(m.GetCompressorLibrary().GetTypedConfig()); l := l.(type) {
		case *gzipv3.Gzip:
			k.bytes = worst.Gzip(or(l.GetWindowBits(), 12), or(l.GetMemoryLevel(), 5), or(l.GetChunkSize(), 4096))
		case *brotliv3.Brotli:
			k.bytes = worst.Brotli(or(l.GetQuality(), 3), or(l.GetWindowBits(), 18), or(l.GetInputBlockBits(), 24), or(l.GetChunkSize(), 4096))
		}
		all = append(all, k)
	}
	return all
}

func or(v *wrapperspb.UInt32Value, or int64) int64 {
	if v == nil {
		return or
	}
	return int64(v.GetValue())
}

// beside is what one request holds beside its buffers, at most.
func (c *chain) beside() (h worst.Held) {
	if c.manager == nil {
		return h
	}
	h.Headers = c.headers()
	for _, k := range c.holders() {
		if k.bytes > 2*c.listener.buffer() {
			h.Whole = max(h.Whole, k.bytes)
		}
	}
	for _, k := range c.kept() {
		n := int64(k.mirrors)
		if k.retries {
			n++
		}
		h.Copies = max(h.Copies, worst.Times(n, k.limit))
	}
	for _, d := range c.decompressors() {
		h.Out = max(h.Out, d.bytes)
	}
	for _, k := range c.compressors() {
		h.State = worst.Sum(h.State, k.bytes)
	}
	return h
}

func (c *chain) headers() unit.Bytes {
	if kb := c.manager.GetMaxRequestHeadersKb(); kb != nil {
		return unit.Bytes(kb.GetValue()) * unit.KiB
	}
	return defaultHeaders * unit.KiB
}
