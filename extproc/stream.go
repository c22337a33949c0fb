package extproc

import (
	"fmt"
	"math"
	"strings"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/grpcstream"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/reservoir"
)

// stream is one HTTP stream. What the policy knows of it is guarded by the server's lock, which is taken with mu held or without,
// and never the other way round.
type stream struct {
	guard.Stream
	server *Server
	guard  *guard.Guard
	grpc   sender

	mu       sync.Mutex // guards what is below: what has come and what is answered
	pending  [][]byte   // came while the answer to the headers was held
	held     bool
	over     bool // it has had its last answer
	gRPC     bool // the client speaks it
	upgrades bool
	modes    [2]filterv3.ProcessingMode_BodySendMode
	asked    [2]bool // for the body, by an answer, because its length is not known
	came     [2]bool // some of the body has
	headers  [2]bool // these have
	ended    [2]bool // all of it has, or there is none
	leaving  bool    // the server ends: the stream is to be closed as soon as that does no harm

	// With the server's lock held.
	open, closed, waits bool
	told
}

// told is what the filter told of the request.
type told struct {
	path, method, route, cluster, virtualHost, source, protocol string
	header                                                      string // that by which requests are told apart
	connection                                                  uint64 // Envoy's id; 0 = not told
	has                                                         attribute
}

// attribute is one of those that were told, or several: a route, for one, may be told and have no name.
type attribute uint8

const (
	hasRoute attribute = 1 << iota
	hasCluster
	hasVirtualHost
	hasSource
	hasProtocol
)

var (
	_ grpcstream.Handler = (*stream)(nil)
	_ grpcstream.Leaver  = (*stream)(nil)
	_ guard.Host         = (*stream)(nil)
)

// sender is a stream of gRPC. Its methods are safe for concurrent use and never block.
type sender interface {
	Send(message []byte)
	Finish(code codes.Code, message string)
}

func (s *Server) process(g *grpcstream.Stream) grpcstream.Handler {
	return &stream{server: s, grpc: g}
}

// requests are used again: each holds what was in the one before until then.
var requests = sync.Pool{New: func() any { return &extprocv3.ProcessingRequest{} }}

const (
	maxHeaders = 1 << 20 // bytes: Envoy takes 60 KiB of a client, unless told otherwise
	maxKey     = 256     // bytes of a header that tells requests apart: more of it does not count
	maxPending = 4 << 20 // bytes that come while the answer to the headers is held
)

// Message implements grpcstream.Handler.
func (s *stream) Message(data []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held {
		// Only with send_body_without_waiting_for_header_response, and its answer is due behind that to the headers.
		n := len(data)
		for _, p := range s.pending {
			n += len(p)
		}
		if n > maxPending {
			s.fail(badOrder, codes.ResourceExhausted, "more than %d bytes came before the request headers were answered", maxPending)
			return
		}
		s.pending = append(s.pending, append([]byte(nil), data...))
		return
	}
	s.take(data)
}

// take takes a message, with mu held.
func (s *stream) take(data []byte) {
	if s.over {
		return
	}
	defer func() {
		if fault := recover(); fault != nil {
			defer s.server.survive("a message")
			s.finish(codes.Internal, "a fault of highwater's")
			panic(fault) // for survive, which tells
		}
	}()
	r := requests.Get().(*extprocv3.ProcessingRequest)
	defer requests.Put(r)
	if err := proto.Unmarshal(data, r); err != nil {
		s.fail(badMessage, codes.InvalidArgument, "not a ProcessingRequest: %v", err)
		return
	}
	if c := r.GetProtocolConfig(); c != nil {
		s.modes = [2]filterv3.ProcessingMode_BodySendMode{c.GetRequestBodyMode(), c.GetResponseBodyMode()}
	}
	switch m := r.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		s.requestHeaders(r, m.RequestHeaders, len(data))
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		s.responseHeaders(m.ResponseHeaders, len(data))
	case *extprocv3.ProcessingRequest_RequestBody:
		s.body(budget.Request, m.RequestBody)
	case *extprocv3.ProcessingRequest_ResponseBody:
		s.body(budget.Response, m.ResponseBody)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		s.trailers(budget.Request)
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		s.trailers(budget.Response)
	default:
		s.fail(badUnknown, codes.InvalidArgument, "the message is none that is known: neither headers nor body nor trailers of a request or a response")
	}
}

// begins says that the headers of a direction may come now, and are some; else the stream is refused.
func (s *stream) begins(d budget.Direction, h *extprocv3.HttpHeaders, size int) bool {
	name := [...]string{"request_headers", "response_headers"}[d]
	switch {
	case s.headers[d]:
		s.fail(badTwice, codes.InvalidArgument, "%s came twice", name)
	case d == budget.Request && (s.headers[budget.Response] || s.came[budget.Response]):
		s.fail(badOrder, codes.InvalidArgument, "%s came behind those of the response", name)
	case size > maxHeaders:
		s.fail(badSize, codes.ResourceExhausted, "the headers are %d bytes, more than %d", size, maxHeaders)
	case len(h.GetHeaders().GetHeaders()) == 0:
		s.fail(badHeaders, codes.InvalidArgument, "%s has no headers", name)
	default:
		s.headers[d] = true
		return true
	}
	return false
}

func (s *stream) requestHeaders(r *extprocv3.ProcessingRequest, h *extprocv3.HttpHeaders, size int) {
	if !s.begins(budget.Request, h, size) {
		return
	}
	if err := s.attributes(r); err != nil {
		s.fail(badAttribute, codes.InvalidArgument, "%v", err)
		return
	}
	length := s.readRequest(h)
	s.ended[budget.Request] = length == 0
	if length == budget.Unknown {
		s.ask(budget.Request)
	}
	for _, mode := range s.modes {
		if mode == filterv3.ProcessingMode_BUFFERED || mode == filterv3.ProcessingMode_BUFFERED_PARTIAL {
			s.server.once.buffered.Do(func() {
				s.server.log.Warn("the ext_proc filter buffers whole bodies before it sends them (body mode BUFFERED): that holds more memory than it saves; NONE is enough")
			})
		}
	}
	var v guard.Verdict
	var sleeps bool
	srv := s.server
	srv.do(func(now guard.Time) {
		if s.closed || srv.mu.draining {
			return
		}
		w := srv.mu.worker
		if sleeps = w.Sleeps; sleeps {
			w.Wake(now)
		}
		s.guard = srv.mu.guard
		if r.GetObservabilityMode() {
			s.guard = srv.mu.observing
		}
		if by := s.guard.KeyHeader(); by != "" {
			s.header = headerValue(h, by)
			s.header = strings.Clone(s.header[:min(len(s.header), maxKey)])
		}
		s.open = true
		v = s.guard.Open(now, &s.Stream, s, length)
		s.path = "" // nobody asks for it again, and it may be long
		if v.Action == guard.Wait {
			srv.waits(s, true)
		}
	})
	if r.GetObservabilityMode() {
		srv.once.observability.Do(func() {
			srv.log.Warn("an ext_proc filter is in observability_mode: what is decided for it is counted and not done")
		})
	}
	switch {
	case v.Action == guard.Wait:
		s.held = true
		srv.hurry(guard.FastTick)
		return
	case v.Action == guard.Pass:
		srv.hurry(guard.FastTick)
	case sleeps:
		srv.hurry(guard.Tick)
	}
	s.judged(v, s.passHeaders(budget.Request))
}

// readRequest takes what is needed of the headers, and returns the length of the body.
func (s *stream) readRequest(h *extprocv3.HttpHeaders) (length int64) {
	length = budget.Unknown
	for _, f := range h.GetHeaders().GetHeaders() {
		switch f.GetKey() {
		case ":path":
			s.path = value(f)
		case ":method":
			s.method = value(f)
			s.upgrades = s.upgrades || s.method == "CONNECT"
		case "upgrade":
			s.upgrades = true
		case "content-type":
			s.gRPC = guard.IsGRPC(value(f))
		case "content-length":
			length = guard.ContentLength(value(f))
		}
	}
	if h.GetEndOfStream() {
		length = 0
	}
	return length
}

func (s *stream) responseHeaders(h *extprocv3.HttpHeaders, size int) {
	if !s.begins(budget.Response, h, size) {
		return
	}
	length := budget.Unknown
	for _, f := range h.GetHeaders().GetHeaders() {
		if f.GetKey() == "content-length" {
			length = guard.ContentLength(value(f))
		}
	}
	if h.GetEndOfStream() {
		length = 0
	}
	s.ended[budget.Response] = length == 0
	s.server.responseTold()
	s.missed(budget.Request)
	if length == budget.Unknown {
		s.ask(budget.Response)
	}
	// A response without a request is the answer of another filter, before ours: it is none of our business.
	s.judged(s.expect(length), s.passHeaders(budget.Response))
}

func (s *stream) expect(length int64) (v guard.Verdict) {
	s.server.do(func(now guard.Time) {
		if s.open && !s.closed {
			v = s.guard.Expect(now, &s.Stream, length)
		}
	})
	return v
}

func (s *stream) body(d budget.Direction, b *extprocv3.HttpBody) {
	switch {
	case d == budget.Request && !s.headers[d] && !s.headers[budget.Response]:
		s.fail(badOrder, codes.InvalidArgument, "request_body came before request_headers: set request_header_mode: SEND")
		return
	case d == budget.Response && !s.headers[d] && !s.came[d]:
		if v := s.expect(budget.Unknown); v.Action != guard.Admit { // response_header_mode is SKIP
			s.judged(v, nil)
			return
		}
	}
	s.came[d] = true
	if s.asked[d] {
		s.server.bodyCame()
	}
	var v guard.Verdict
	s.server.do(func(now guard.Time) {
		if !s.open || s.closed {
			return
		}
		if !s.Hidden(d) {
			v = s.guard.Grow(now, &s.Stream, d, int64(len(b.GetBody())))
		}
		if b.GetEndOfStream() {
			s.guard.End(now, &s.Stream, d)
		}
	})
	s.ended[d] = s.ended[d] || b.GetEndOfStream()
	s.judged(v, s.passBody(d, b))
	s.left()
}

func (s *stream) trailers(d budget.Direction) {
	if d == budget.Request && !s.headers[d] && !s.headers[budget.Response] {
		s.fail(badOrder, codes.InvalidArgument, "request_trailers came before request_headers: set request_header_mode: SEND")
		return
	}
	s.server.do(func(now guard.Time) {
		if s.open && !s.closed {
			s.guard.End(now, &s.Stream, d)
		}
	})
	s.ended[d] = true
	s.grpc.Send(passTrailers[d])
	s.left()
}

// Leave implements grpcstream.Leaver. Closed with OK between two pieces of a body, Envoy's filter never lets the rest of it go: the
// request hangs (seen in 1.40). So it is closed behind the last piece.
func (s *stream) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = true
	s.left()
}

// left closes a stream that is to be, with mu held.
func (s *stream) left() {
	if !s.leaving || s.over || s.held {
		return
	}
	for d := range s.modes {
		if (s.asked[d] || s.modes[d] != filterv3.ProcessingMode_NONE) && s.headers[d] && !s.ended[d] {
			return
		}
	}
	s.finish(codes.OK, "")
}

// ask has the body of a message that announces no length sent to us, so that what passes is counted: a forecast is no bound.
func (s *stream) ask(d budget.Direction) {
	const streamed = filterv3.ProcessingMode_STREAMED
	s.asked[d] = s.modes[d] == filterv3.ProcessingMode_NONE && s.modes[1-d] <= streamed && !s.upgrades && !s.server.modes.refused.Load()
}

// missed notes that a body that was asked for has not come, where it must have if it was to.
func (s *stream) missed(d budget.Direction) {
	if s.asked[d] && !s.came[d] {
		s.server.bodyMissed()
	}
}

// judged answers a message that was let pass with pass, or carries the verdict out.
func (s *stream) judged(v guard.Verdict, pass []byte) {
	if v.Action != guard.Admit && v.Action != guard.Pass {
		s.refuse(v)
		return
	}
	s.grpc.Send(pass)
}

// refuse answers in place of the upstream, or, when a response has begun, has Envoy end it.
func (s *stream) refuse(v guard.Verdict) {
	if s.over {
		return
	}
	s.over, s.held, s.pending = true, false, nil
	s.grpc.Send(s.immediate(v))
}

// resume lets a request go on that was held.
func (s *stream) resume(v guard.Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server.do(func(guard.Time) { s.server.waits(s, false) })
	if s.over || !s.held {
		return
	}
	s.held = false
	if v.Waited > 0 {
		s.grpc.Send(s.passWaited(v))
	} else {
		s.grpc.Send(s.passHeaders(budget.Request))
	}
	pending := s.pending
	s.pending = nil
	for _, p := range pending {
		s.take(p)
	}
	s.left()
}

// reject carries out what a tick decided: who has waited too long, or is evicted.
func (s *stream) reject(v guard.Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server.do(func(guard.Time) { s.server.waits(s, false) })
	s.refuse(v)
}

// waits notes that a stream waits, or no longer, with the server's lock held.
func (s *Server) waits(st *stream, waits bool) {
	switch {
	case waits == st.waits:
	case waits:
		if s.mu.streams == nil {
			s.mu.streams = map[*stream]struct{}{}
		}
		s.mu.streams[st] = struct{}{}
	default:
		delete(s.mu.streams, st)
	}
	st.waits = waits
}

// fail ends the stream of a filter that breaks the protocol. What becomes of the request its failure_mode_allow says.
func (s *stream) fail(kind bad, code codes.Code, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.server.counts.bad[kind].Add(1)
	s.server.log.Debug("a stream is refused", "why", kind.String(), "text", text)
	s.finish(code, text)
}

func (s *stream) finish(code codes.Code, text string) {
	s.over = true
	s.grpc.Finish(code, text)
}

// End implements grpcstream.Handler: the HTTP stream has ended.
func (s *stream) End() { s.grpc.Finish(codes.OK, "") }

// Closed implements grpcstream.Handler.
func (s *stream) Closed() {
	defer s.server.survive("the end of a stream")
	if s.mu.TryLock() { // else it ends because of a message, and nothing was missed
		s.missed(budget.Response)
		if s.headers[budget.Request] && !s.headers[budget.Response] && !s.came[budget.Response] && !s.over && !s.held {
			s.server.responseUntold()
		}
		s.mu.Unlock()
	}
	var waited float64
	s.server.do(func(now guard.Time) {
		s.closed = true
		s.server.waits(s, false)
		if !s.open {
			return
		}
		waited = float64(s.guard.Close(now, &s.Stream).Milliseconds())
		if c := s.server.mu.connections[s.connection]; c != nil && c.Waiting == 0 {
			delete(s.server.mu.connections, s.connection)
		}
	})
	if waited > 0 {
		s.server.counts.wait.Observe(waited)
	}
}

// The answers that let a message pass. They are always the same.
var (
	passHeaders  [2][]byte
	passAsking   [2][2][2][]byte // and asks for bodies in pieces: by the headers' direction, and whether the request's and the response's are
	passBodies   [2][]byte
	passTrailers = [2][]byte{
		marshal(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestTrailers{RequestTrailers: &extprocv3.TrailersResponse{}}}),
		marshal(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extprocv3.TrailersResponse{}}}),
	}
)

func init() {
	for _, d := range []budget.Direction{budget.Request, budget.Response} {
		passHeaders[d], passBodies[d] = marshal(headersAnswer(d, nil)), marshal(bodyAnswer(d, nil))
		for i := range passAsking[d] {
			for j := range passAsking[d][i] {
				passAsking[d][i][j] = marshal(headersAnswer(d, modeOf(i == 1, j == 1)))
			}
		}
	}
}

// modeOf has bodies sent in pieces, and a request's trailers, which end it too.
func modeOf(request, response bool) *filterv3.ProcessingMode {
	m := &filterv3.ProcessingMode{
		RequestHeaderMode: filterv3.ProcessingMode_SEND, ResponseHeaderMode: filterv3.ProcessingMode_SEND, ResponseTrailerMode: filterv3.ProcessingMode_SEND,
	}
	if request {
		m.RequestBodyMode, m.RequestTrailerMode = filterv3.ProcessingMode_STREAMED, filterv3.ProcessingMode_SEND
	}
	if response {
		m.ResponseBodyMode = filterv3.ProcessingMode_STREAMED
	}
	return m
}

// streamed says of each direction whether its body is sent in pieces, with what has been asked for.
func (s *stream) streamed() (m [2]bool) {
	for d := range m {
		m[d] = s.asked[d] || s.modes[d] == filterv3.ProcessingMode_STREAMED
	}
	return m
}

func marshal(m *extprocv3.ProcessingResponse) []byte {
	out, err := proto.Marshal(m)
	if err != nil {
		panic(err) // only of text that is not UTF-8, and there is none
	}
	return out
}

func headersAnswer(d budget.Direction, mode *filterv3.ProcessingMode) *extprocv3.ProcessingResponse {
	if d == budget.Request {
		return &extprocv3.ProcessingResponse{ModeOverride: mode, Response: &extprocv3.ProcessingResponse_RequestHeaders{RequestHeaders: &extprocv3.HeadersResponse{}}}
	}
	return &extprocv3.ProcessingResponse{ModeOverride: mode, Response: &extprocv3.ProcessingResponse_ResponseHeaders{ResponseHeaders: &extprocv3.HeadersResponse{}}}
}

func bodyAnswer(d budget.Direction, echo *extprocv3.HttpBody) *extprocv3.ProcessingResponse {
	b := &extprocv3.BodyResponse{}
	if echo != nil {
		b.Response = &extprocv3.CommonResponse{BodyMutation: &extprocv3.BodyMutation{Mutation: &extprocv3.BodyMutation_StreamedResponse{
			StreamedResponse: &extprocv3.StreamedBodyResponse{Body: echo.GetBody(), EndOfStream: echo.GetEndOfStream()},
		}}}
	}
	if d == budget.Request {
		return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_RequestBody{RequestBody: b}}
	}
	return &extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ResponseBody{ResponseBody: b}}
}

func (s *stream) passHeaders(d budget.Direction) []byte {
	if !s.asked[d] {
		return passHeaders[d]
	}
	m := s.streamed()
	return passAsking[d][index(m[budget.Request])][index(m[budget.Response])]
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// verdictNamespace is where access logs find what became of a request that waited: %DYNAMIC_METADATA(highwater:verdict)%.
const verdictNamespace = "highwater"

// passWaited is passHeaders of one who has waited, and tells that.
func (s *stream) passWaited(v guard.Verdict) []byte {
	var mode *filterv3.ProcessingMode
	if s.asked[budget.Request] {
		m := s.streamed()
		mode = modeOf(m[budget.Request], m[budget.Response])
	}
	m := headersAnswer(budget.Request, mode)
	m.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{
		verdictNamespace: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"verdict": structpb.NewStringValue(v.String())}}),
	}}
	return marshal(m)
}

func (s *stream) passBody(d budget.Direction, b *extprocv3.HttpBody) []byte {
	if mode := s.modes[d]; mode == filterv3.ProcessingMode_FULL_DUPLEX_STREAMED || mode == filterv3.ProcessingMode_GRPC {
		return marshal(bodyAnswer(d, b)) // in these modes what is not sent back is gone
	}
	return passBodies[d]
}

// immediate is the answer in place of the upstream.
func (s *stream) immediate(v guard.Verdict) []byte {
	r := &s.guard.Config().Reject
	headers, body := r.Answer(v, s.gRPC)
	m := &extprocv3.ImmediateResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(r.Status)}, Headers: &extprocv3.HeaderMutation{}, Body: []byte(body), Details: details(v),
	}
	if s.gRPC {
		m.GrpcStatus = &extprocv3.GrpcStatus{Status: guard.GRPCResourceExhausted}
	}
	for _, h := range headers {
		m.Headers.SetHeaders = append(m.Headers.SetHeaders, header(h[0], h[1]))
	}
	return marshal(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: m}})
}

// details are what %RESPONSE_CODE_DETAILS% shows, in Envoy's manner: highwater{rejected,timeout,waited=2000ms}.
func details(v guard.Verdict) string {
	return "highwater{" + strings.ReplaceAll(v.String(), " ", ",") + "}"
}

func header(key, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: key, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}

// value is a header's: Envoy sends it as bytes.
func value(h *corev3.HeaderValue) string {
	if len(h.GetRawValue()) > 0 {
		return string(h.GetRawValue())
	}
	return h.GetValue()
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
func (s *stream) attributes(r *extprocv3.ProcessingRequest) error {
	for _, a := range r.GetAttributes() {
		for name, v := range a.GetFields() {
			var into *string
			var has attribute
			switch name {
			case "xds.route_name":
				into, has = &s.route, hasRoute
			case "xds.cluster_name":
				into, has = &s.cluster, hasCluster
			case "xds.virtual_host_name":
				into, has = &s.virtualHost, hasVirtualHost
			case "source.address":
				into, has = &s.source, hasSource
			case "request.protocol":
				into, has = &s.protocol, hasProtocol
			case "connection.id":
				n, ok := v.GetKind().(*structpb.Value_NumberValue)
				if !ok || !(n.NumberValue >= 0 && n.NumberValue < math.MaxUint64) {
					return fmt.Errorf("attribute %s is not a whole number", name)
				}
				s.connection = uint64(n.NumberValue)
				continue
			default:
				continue
			}
			text, ok := v.GetKind().(*structpb.Value_StringValue)
			if !ok {
				return fmt.Errorf("attribute %s is not text", name)
			}
			*into = text.StringValue
			s.has |= has
		}
	}
	return nil
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

// Hides implements guard.Host: where the mode of a body is NONE, nothing of it is told, unless we ask for it.
func (s *stream) Hides(d budget.Direction) bool {
	return s.modes[d] == filterv3.ProcessingMode_NONE && !s.asked[d]
}

// Untold implements guard.Host: most likely the filter's response_header_mode is SKIP.
func (s *stream) Untold() bool { return s.server.modes.untold.Load() >= enoughUntold }

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
	return guard.WithoutPort(s.wants(s.source, hasSource, "source.address"))
}

// Describe implements guard.Host: with what was told, and nobody is asked for more.
func (s *stream) Describe(header string) reservoir.Labels {
	l := reservoir.Labels{
		VirtualHost: s.virtualHost, Route: s.route, Cluster: s.cluster, Source: guard.WithoutPort(s.source), Protocol: s.protocol, Method: s.method,
	}
	if header != "" {
		l.Key = s.header
	}
	return l
}
