package main

import (
	"encoding/binary"
	"strings"
	"unsafe"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/httptext"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// stream is one HTTP stream. Streams are used again, so that a request allocates none.
type stream struct {
	guard.Stream // first: streamOf relies on it
	types.DefaultHttpContext
	plugin  *plugin
	id      uint32
	arrived *guard.Connection
	network uint32 // context of its connection's network filter; 0 = not known, or there is none
	key     uint64 // Envoy's id of its connection, if connected
	open    bool
	keyed   bool
}

var (
	_ types.HttpContext = (*stream)(nil)
	_ guard.Host        = (*stream)(nil)
)

// streamOf returns the stream that the guard's is part of.
func streamOf(s *guard.Stream) *stream { return (*stream)(unsafe.Pointer(s)) }

func newStream(p *plugin, id uint32) *stream {
	n := len(machine.free)
	if n == 0 {
		return &stream{plugin: p, id: id}
	}
	s := machine.free[n-1]
	machine.free = machine.free[:n-1]
	s.plugin, s.id, s.arrived, s.network, s.keyed = p, id, nil, 0, false // the guard's part is ready to be used again
	return s
}

// OnHttpRequestHeaders implements types.HttpContext.
func (s *stream) OnHttpRequestHeaders(_ int, end bool) (action types.Action) {
	defer survive()
	g := s.plugin.guard
	if g == nil {
		return types.ActionContinue
	}
	s.plugin.wake()
	if path := g.Config().Debug.Path; path != "" && s.introspect(path) {
		return types.ActionPause
	}
	s.open, s.arrived = true, machine.arrived
	trapRequest()
	if s.arrived == nil && !s.plugin.looked {
		s.plugin.looked = true
		s.Connection() // else nobody asks before one has to wait
	}
	n := length(end, requestHeaders)
	if n != 0 {
		machine.mark()
	}
	return s.do(g.Open(machine.now, &s.Stream, s, n))
}

// OnHttpRequestBody implements types.HttpContext.
func (s *stream) OnHttpRequestBody(n int, end bool) types.Action {
	return s.body(budget.Request, n, end)
}

// OnHttpRequestTrailers implements types.HttpContext: trailers end a body too.
func (s *stream) OnHttpRequestTrailers(int) types.Action { return s.body(budget.Request, 0, true) }

// OnHttpResponseHeaders implements types.HttpContext.
func (s *stream) OnHttpResponseHeaders(_ int, end bool) (action types.Action) {
	defer survive()
	if !s.open {
		return types.ActionContinue
	}
	return s.do(s.plugin.guard.Expect(machine.now, &s.Stream, length(end, responseHeaders)))
}

// OnHttpResponseBody implements types.HttpContext.
func (s *stream) OnHttpResponseBody(n int, end bool) types.Action {
	if (!end || s.EndsUnbooked()) && s.PassesUnbooked(int64(n)) { // most chunks: it touches one line of memory
		return types.ActionContinue
	}
	return s.body(budget.Response, n, end)
}

// OnHttpResponseTrailers implements types.HttpContext.
func (s *stream) OnHttpResponseTrailers(int) types.Action { return s.body(budget.Response, 0, true) }

func (s *stream) body(d budget.Direction, n int, end bool) (action types.Action) {
	defer survive()
	if !s.open {
		return types.ActionContinue
	}
	g, t := s.plugin.guard, machine.now
	var v verdict.Verdict
	if n > 0 {
		v = g.Grow(t, &s.Stream, d, int64(n))
	}
	if end {
		g.End(t, &s.Stream, d)
	}
	return s.do(v)
}

// OnHttpStreamDone implements types.HttpContext. It comes exactly once, and for requests that Envoy
// itself refused it is the only one.
func (s *stream) OnHttpStreamDone() {
	defer survive()
	machine.looking.Forget(s)
	if s.open {
		s.open = false
		if waited := s.plugin.guard.Close(machine.now, &s.Stream); waited > 0 {
			machine.stats.wait.Record(uint64(waited.Milliseconds()))
		}
		if s.keyed && s.network == 0 {
			if c := machine.connections[s.key]; c != nil && c.Context == 0 && c.Waiting == 0 {
				delete(machine.connections, s.key)
			}
		}
	}
	machine.done = append(machine.done, s)
}

// do carries a verdict out, in the stream's own callback.
func (s *stream) do(v verdict.Verdict) types.Action {
	if v.Action == verdict.Admit {
		return types.ActionContinue
	}
	return s.stop(v)
}

func (s *stream) stop(v verdict.Verdict) types.Action {
	if v.Action == verdict.Pass {
		s.plugin.hurry(guard.FastTick)
		return types.ActionContinue
	}
	s.mark(v)
	switch v.Action {
	case verdict.Wait, verdict.Close:
		s.plugin.hurry(guard.FastTick)
	case verdict.Answer, verdict.Reset:
		// With the response begun, Envoy can't answer any more and resets the stream.
		if !s.answer(v) {
			return types.ActionContinue // a reject that fails must not hang: the traffic goes on
		}
	}
	return types.ActionPause
}

// mark leaves the verdict where access logs find it: %FILTER_STATE(wasm.highwater.verdict:PLAIN)%.
func (s *stream) mark(v verdict.Verdict) {
	if proxywasm.SetProperty([]string{"highwater.verdict"}, []byte(v.String())) != nil {
		machine.hostError()
	}
}

func (s *stream) answer(v verdict.Verdict) (sent bool) {
	r := &s.plugin.guard.Config().Reject
	headers, body := v.Answer(r, httptext.IsGRPC(s.Header("content-type")))
	if err := proxywasm.SendHttpResponse(uint32(r.Status), headers, []byte(body), verdict.GRPCResourceExhausted); err != nil {
		machine.hostError()
		return false
	}
	return true
}

// length is that of a message's body: 0 where the headers end it, its content-length, else
// budget.Unknown.
func length(end bool, of headerMap) int64 {
	if end {
		return 0
	}
	text, _ := header(of, "content-length")
	return httptext.ContentLength(text)
}

// HTTP2 implements guard.Host.
func (s *stream) HTTP2() bool {
	protocol, _ := propertyOf("request\x00protocol")
	return protocol == "HTTP/2" || protocol == "HTTP/3"
}

// Arrived implements guard.Host.
func (s *stream) Arrived() *guard.Connection { return s.arrived }

// Connection implements guard.Host.
func (s *stream) Connection() *guard.Connection {
	if !s.reach() {
		return nil
	}
	key, ok := connectionID()
	leave()
	if !ok {
		return nil
	}
	s.key, s.keyed = key, true
	c := machine.connections[key]
	if c == nil {
		// The listener has no network filter. Its connections can't be closed, but what waits on
		// one is still bounded.
		c = &guard.Connection{}
		machine.connections[key] = c
		s.plugin.unknown(key)
	}
	s.network = c.Context
	return c
}

// Describe implements guard.Host.
func (s *stream) Describe(header string) (l reservoir.Labels) {
	if !s.reach() {
		return l
	}
	defer leave()
	l = reservoir.Labels{
		VirtualHost: property(virtualHostName), Route: property(routeName), Cluster: property(clusterName),
		Source: httptext.WithoutPort(property(sourceAddress)), Protocol: property("request\x00protocol"),
		Method: s.Header(":method"), // Envoy tells it only at the headers, and while they are paused
	}
	if header != "" {
		l.Key = s.Header(header)
	}
	return l
}

// Visibility implements guard.Host.
func (s *stream) Visibility(budget.Direction) budget.Visibility { return budget.Counted }

// HeaderBytes implements guard.Host. Without the network filter nobody tells that it is worth a
// call.
func (s *stream) HeaderBytes() int64 {
	if s.arrived == nil {
		return 0
	}
	text, _ := propertyOf("request\x00total_size") // of which no body has come yet
	if len(text) != 8 {
		return 0
	}
	return max(int64(binary.LittleEndian.Uint64([]byte(text))), 0)
}

// BodyLimit implements guard.Host: a plugin is not told.
func (s *stream) BodyLimit() int64 { return 0 }

// Path implements guard.Host.
func (s *stream) Path() string { return s.Header(":path") }

// Header implements guard.Host.
func (s *stream) Header(name string) string {
	text, _ := header(requestHeaders, name)
	return strings.Clone(text)
}

// VirtualHost implements guard.Host.
func (s *stream) VirtualHost() string { return s.name(virtualHostName) }

// Source implements guard.Host.
func (s *stream) Source() string { return httptext.WithoutPort(s.name(sourceAddress)) }

// Route implements guard.Host.
func (s *stream) Route() (name string) {
	if s.reach() {
		if name, _ = propertyOf(routeName); name == "" {
			s.plugin.unnamed()
		}
		leave()
	}
	return name
}

// Cluster implements guard.Host.
func (s *stream) Cluster() string { return s.name(clusterName) }

const (
	virtualHostName = "xds\x00virtual_host_name"
	routeName       = "xds\x00route_name"
	clusterName     = "xds\x00cluster_name"
	sourceAddress   = "source\x00address"
)

func (s *stream) name(path string) (text string) {
	if s.reach() {
		text, _ = propertyOf(path)
		leave()
	}
	return text
}

// reach makes the stream's context the one that calls of the host are for, in a tick; elsewhere it
// is. It has to be left again.
func (s *stream) reach() bool {
	p := machine.ticking
	return p == nil || p.on(s.id)
}

func leave() {
	if p := machine.ticking; p != nil {
		p.on(p.id)
	}
}
