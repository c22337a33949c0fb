package extproc

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"sync"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/reservoir"
)

// stream is one HTTP stream, and the gRPC stream on which Envoy tells of it. Its phase says what
// becomes of the messages that come, its halves what has come, and its standing whether the policy
// has it.
//
// Two goroutines may send on it: its own, which takes the messages (process), and that of an order,
// which lets a held request go on or evicts it. mu has one of them at a time, and a send may block
// for as long as the peer gives no window. The server's lock is taken with mu held or without, and
// never the other way round; so whoever holds it only notes the orders.
type stream struct {
	guard.Stream
	server *Server
	guard  *guard.Guard
	out    sender

	mu       sync.Mutex // guards what is below: what has come and what is answered
	phase    phase
	pending  []*message     // came while the answer to the headers was held
	end      *status.Status // with which it ends; nil = the peer has yet to end it
	halves   [2]half        // by direction
	gRPC     bool           // the client speaks it
	upgrades bool
	leaving  bool // the server ends: the stream is to be closed as soon as that does no harm

	// With the server's lock held.
	standing standing
	traits
}

// phase is what becomes of the messages that come, and of our answers.
type phase uint8

const (
	phaseLive phase = iota // each message is judged and answered as it comes
	phaseHeld              // the request waits: the answer to its headers is held, and what comes is kept
	phaseOver              // it has had its last answer, or its peer is gone: nothing more is sent
)

// half is one direction: the request, or the response.
type half struct {
	mode     filterv3.ProcessingMode_BodySendMode // as the filter is configured
	asked    bool                                 // for the body, by an answer, because its length is not known
	headers  bool                                 // these have come
	bodiless bool                                 // they say that there is no body
	body     bool                                 // some of it has come
	ended    bool                                 // all of it has come
}

// hidden says whether nothing of the body is told.
func (h *half) hidden() bool { return h.mode == filterv3.ProcessingMode_NONE && !h.asked }

// streamed says whether the body is sent in pieces, with what has been asked for.
func (h *half) streamed() bool { return h.asked || h.mode == filterv3.ProcessingMode_STREAMED }

// missed says whether the body was asked for and has not come.
func (h *half) missed() bool { return h.asked && !h.body }

// unfinished says whether some of the body is still to come to us.
func (h *half) unfinished() bool { return !h.hidden() && h.headers && !h.ended && !h.bodiless }

// standing is whether the policy has the stream.
type standing uint8

const (
	standingNew    standing = iota // it was not judged: its headers have not come, or the server ends
	standingOpen                   // it was judged, and counts
	standingClosed                 // it has ended, and counts no more
)

// traits are what the filter told of the request.
type traits struct {
	path, method, route, cluster, virtualHost, source, protocol string
	header                                                      string // that by which requests are told apart
	connection                                                  uint64 // Envoy's id; 0 = not told
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

var _ guard.Host = (*stream)(nil)

// sender is the way back to the peer.
type sender interface {
	SendMsg(answer any) error   // may block until the peer has room for it, or until finish
	finish(with *status.Status) // may be called at any time; the first counts, and what waits fails
}

const (
	maxName    = 1 << 10 // bytes of an attribute that are kept: Envoy's names are shorter
	maxKey     = 256     // bytes of a header that tells requests apart: more of it does not count
	maxPending = 4 << 20 // bytes that come while the answer to the headers is held
)

// process is the life of a stream: it takes one message after the other until the peer has sent the
// last, or until the stream ends.
func (s *Server) process(_ any, g grpc.ServerStream) error {
	out, err := onWire(g)
	if err != nil {
		return err
	}
	st := &stream{server: s, out: out}
	s.join(st)
	defer st.close()
	for end := false; !end; {
		m := messages.Get().(*message)
		if err = g.RecvMsg(m); err != nil {
			m.free()
			break
		}
		s.counts.received.Add(1)
		end = st.take(m)
	}
	err = s.outcome(err)
	out.finish(status.Convert(err)) // if nothing has: an order that is at sending has to stop
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.end != nil {
		return st.end.Err()
	}
	return err
}

// outcome is the status of a stream whose next message failed so; nil: there was none that failed.
func (s *Server) outcome(err error) error {
	switch code := status.Code(err); {
	case err == nil, errors.Is(err, io.EOF), code == codes.Canceled: // both are how requests end
		return nil
	case code == codes.ResourceExhausted:
		s.counts.bad[badSize].Add(1)
	case code == codes.Internal, code == codes.Unimplemented: // what gRPC says of what it can't read
		s.counts.bad[badMessage].Add(1)
	}
	return err
}

// take takes a message, and says that the stream is to end.
func (s *stream) take(m *message) (end bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == phaseHeld {
		s.keep(m)
	} else {
		s.judge(m)
		m.free()
	}
	return s.end != nil
}

// keep keeps a message for when the request goes on, with mu held. There is one only with
// send_body_without_waiting_for_header_response, and its answer is due behind that to the headers.
func (s *stream) keep(m *message) {
	n := m.size
	for _, p := range s.pending {
		n += p.size
	}
	if n > maxPending {
		s.fail(badSize, codes.ResourceExhausted, "more than %d bytes came before the request headers were answered", maxPending)
		m.free()
		return
	}
	s.pending = append(s.pending, m)
}

// judge has the policy judge a message, and answers it, with mu held.
func (s *stream) judge(m *message) {
	if s.phase == phaseOver {
		return
	}
	defer func() {
		if fault := recover(); fault != nil {
			s.server.faulted("a message", fault)
			s.finish(codes.Internal, "a fault of highwater's")
		}
	}()
	switch {
	case errors.Is(m.err, errTooLarge):
		s.fail(badSize, codes.ResourceExhausted, "%v", m.err)
	case m.err != nil:
		s.fail(badMessage, codes.InvalidArgument, "not a ProcessingRequest: %v", m.err)
	default:
		s.part(&m.request)
		s.left()
	}
}

// part takes the part of a request or a response that a message is.
func (s *stream) part(r *extprocv3.ProcessingRequest) {
	if c := r.GetProtocolConfig(); c != nil {
		s.halves[budget.Request].mode, s.halves[budget.Response].mode = c.GetRequestBodyMode(), c.GetResponseBodyMode()
	}
	switch of := r.GetRequest().(type) {
	case *extprocv3.ProcessingRequest_RequestHeaders:
		s.requestHeaders(r, of.RequestHeaders)
	case *extprocv3.ProcessingRequest_ResponseHeaders:
		s.responseHeaders(of.ResponseHeaders)
	case *extprocv3.ProcessingRequest_RequestBody:
		s.body(budget.Request, of.RequestBody)
	case *extprocv3.ProcessingRequest_ResponseBody:
		s.body(budget.Response, of.ResponseBody)
	case *extprocv3.ProcessingRequest_RequestTrailers:
		s.trailers(budget.Request)
	case *extprocv3.ProcessingRequest_ResponseTrailers:
		s.trailers(budget.Response)
	default:
		s.fail(badUnknown, codes.InvalidArgument, "the message is none that is known: neither headers nor body nor trailers of a request or a response")
	}
}

// begin notes the headers of a direction, where they may come now and are some. Else it refuses the
// stream, and says so.
func (s *stream) begin(d budget.Direction, h *extprocv3.HttpHeaders) (ok bool) {
	name := [...]string{"request_headers", "response_headers"}[d]
	half, response := &s.halves[d], &s.halves[budget.Response]
	switch {
	case half.headers:
		s.fail(badTwice, codes.InvalidArgument, "%s came twice", name)
	case d == budget.Request && (response.headers || response.body):
		s.fail(badOrder, codes.InvalidArgument, "%s came behind those of the response", name)
	case len(h.GetHeaders().GetHeaders()) == 0:
		s.fail(badHeaders, codes.InvalidArgument, "%s has no headers", name)
	default:
		half.headers, half.ended = true, h.GetEndOfStream()
		return true
	}
	return false
}

// inOrder says that more of a direction may come now. Else it refuses the stream. what is "body" or
// "trailers".
func (s *stream) inOrder(d budget.Direction, what string) bool {
	name := [...]string{"request", "response"}[d]
	switch {
	case d == budget.Request && !s.halves[budget.Request].headers && !s.halves[budget.Response].headers:
		s.fail(badOrder, codes.InvalidArgument, "%s_%s came before request_headers: set request_header_mode: SEND", name, what)
	case s.halves[d].ended:
		s.fail(badOrder, codes.InvalidArgument, "%s_%s came behind the end of the %s", name, what, name)
	default:
		return true
	}
	return false
}

func (s *stream) requestHeaders(r *extprocv3.ProcessingRequest, h *extprocv3.HttpHeaders) {
	if !s.begin(budget.Request, h) {
		return
	}
	if err := s.attributes(r); err != nil {
		s.fail(badAttribute, codes.InvalidArgument, "%v", err)
		return
	}
	length := s.readRequest(h)
	s.halves[budget.Request].bodiless = length == 0
	if length == budget.Unknown {
		s.ask(budget.Request)
	}
	s.warnOf(r)
	v, woke := s.open(r, h, length)
	switch {
	case v.Action == guard.Wait:
		s.phase = phaseHeld
		s.server.hurry(guard.FastTick)
		return
	case v.Action == guard.Pass:
		s.server.hurry(guard.FastTick)
	case woke:
		s.server.hurry(guard.Tick)
	}
	s.judged(v, s.passHeaders(budget.Request))
}

// warnOf tells once of what the filter's configuration costs.
func (s *stream) warnOf(r *extprocv3.ProcessingRequest) {
	srv := s.server
	for d := range s.halves {
		if mode := s.halves[d].mode; mode == filterv3.ProcessingMode_BUFFERED || mode == filterv3.ProcessingMode_BUFFERED_PARTIAL {
			srv.once.buffered.Do(func() {
				srv.log.Warn("the ext_proc filter buffers whole bodies before it sends them (body mode BUFFERED): that holds more memory than it saves; NONE is enough")
			})
		}
	}
	if r.GetObservabilityMode() {
		srv.once.observability.Do(func() {
			srv.log.Warn("an ext_proc filter is in observability_mode: what is decided for it is counted and not done")
		})
	}
}

// open has the policy judge the request. woke: ticks were rare until now.
func (s *stream) open(r *extprocv3.ProcessingRequest, h *extprocv3.HttpHeaders, length int64) (v guard.Verdict, woke bool) {
	srv := s.server
	srv.do(func(now guard.Time) {
		if s.standing == standingClosed || srv.mu.draining {
			return
		}
		w := srv.mu.worker
		if woke = w.Sleeps; woke {
			w.Wake(now)
		}
		s.guard = srv.mu.guard
		if r.GetObservabilityMode() {
			s.guard = srv.mu.observing
		}
		if by := s.guard.KeyHeader(); by != "" {
			s.header = clip(headerValue(h, by), maxKey)
		}
		s.standing = standingOpen
		v = s.guard.Open(now, &s.Stream, s, length)
		s.path = "" // nobody asks for it again, and it may be long
	})
	return v, woke
}

// readRequest takes what is needed of the headers, and returns the length of the body.
func (s *stream) readRequest(h *extprocv3.HttpHeaders) (length int64) {
	length = budget.Unknown
	for _, f := range h.GetHeaders().GetHeaders() {
		switch f.GetKey() {
		case ":path":
			s.path = value(f)
		case ":method":
			s.method = clip(value(f), maxKey)
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

func (s *stream) responseHeaders(h *extprocv3.HttpHeaders) {
	if !s.begin(budget.Response, h) {
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
	s.halves[budget.Response].bodiless = length == 0
	s.server.coverage.ResponseCame(s.server.now())
	if s.halves[budget.Request].missed() { // it must have come, if it was to
		s.server.bodyMissed()
	}
	if length == budget.Unknown {
		s.ask(budget.Response)
	}
	// A response without a request is the answer of another filter, before ours: it is none of our
	// business.
	s.judged(s.expect(length), s.passHeaders(budget.Response))
}

func (s *stream) expect(length int64) (v guard.Verdict) {
	s.server.do(func(now guard.Time) {
		if s.standing == standingOpen {
			v = s.guard.Expect(now, &s.Stream, length)
		}
	})
	return v
}

func (s *stream) body(d budget.Direction, b *extprocv3.HttpBody) {
	if !s.inOrder(d, "body") {
		return
	}
	half := &s.halves[d]
	if d == budget.Response && !half.headers && !half.body {
		if v := s.expect(budget.Unknown); v.Action != guard.Admit { // response_header_mode is SKIP
			s.judged(v, nil)
			return
		}
	}
	half.body = true
	if half.asked {
		s.server.coverage.BodyCame()
	}
	var v guard.Verdict
	s.server.do(func(now guard.Time) {
		if s.standing != standingOpen {
			return
		}
		if !s.Hidden(d) {
			v = s.guard.Grow(now, &s.Stream, d, int64(len(b.GetBody())))
		}
		if b.GetEndOfStream() {
			s.guard.End(now, &s.Stream, d)
		}
	})
	half.ended = b.GetEndOfStream()
	s.judged(v, s.passBody(d, b))
}

func (s *stream) trailers(d budget.Direction) {
	if !s.inOrder(d, "trailers") {
		return
	}
	s.server.do(func(now guard.Time) {
		if s.standing == standingOpen {
			s.guard.End(now, &s.Stream, d)
		}
	})
	s.halves[d].ended = true
	s.send(passTrailers[d])
}

// send sends an answer, with mu held. Where it fails the stream is gone, which its own goroutine is
// told too.
func (s *stream) send(a answer) {
	if s.out.SendMsg(a) == nil {
		s.server.counts.sent.Add(1)
	}
}

// leave has the stream end because the server does, as soon as that does no harm. Closed with OK
// between two pieces of a body, Envoy's filter never lets the rest of it go: the request hangs
// (seen in 1.40). So it is closed behind the last piece.
func (s *stream) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = true
	s.left()
}

// left closes a stream that is to be, with mu held.
func (s *stream) left() {
	if s.leaving && s.phase == phaseLive && !s.halves[budget.Request].unfinished() && !s.halves[budget.Response].unfinished() {
		s.finish(codes.OK, "")
	}
}

// ask has the body of a message that announces no length sent to us, so that what passes is
// counted: a forecast is no bound.
func (s *stream) ask(d budget.Direction) {
	half, other := &s.halves[d], &s.halves[1-d]
	half.asked = half.mode == filterv3.ProcessingMode_NONE && other.mode <= filterv3.ProcessingMode_STREAMED && !s.upgrades && s.server.coverage.SendsBodies()
}

// judged answers a message that was let pass with pass, or carries the verdict out.
func (s *stream) judged(v guard.Verdict, pass answer) {
	if v.Action != guard.Admit && v.Action != guard.Pass {
		s.refuse(v)
		return
	}
	s.send(pass)
}

// refuse answers in place of the upstream, or, when a response has begun, has Envoy end it.
func (s *stream) refuse(v guard.Verdict) {
	if s.phase == phaseOver {
		return
	}
	s.quit()
	s.send(s.immediate(v))
}

// resume lets a request go on that was held.
func (s *stream) resume(v guard.Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase != phaseHeld {
		return
	}
	s.phase = phaseLive
	if v.Waited > 0 {
		s.send(s.passWaited(v))
	} else {
		s.send(s.passHeaders(budget.Request))
	}
	pending := s.pending
	s.pending = nil
	for _, p := range pending {
		s.judge(p)
		p.free()
	}
	s.left()
}

// reject carries out what a tick decided: who has waited too long, or is evicted.
func (s *stream) reject(v guard.Verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse(v)
}

// fail ends the stream of a filter that breaks the protocol. What becomes of the request its
// failure_mode_allow says.
func (s *stream) fail(kind bad, code codes.Code, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	s.server.counts.bad[kind].Add(1)
	s.server.log.Debug("a stream is refused", "why", kind.String(), "text", text)
	s.finish(code, text)
}

// finish has the stream end with a status, with mu held. The first counts.
func (s *stream) finish(code codes.Code, text string) {
	if s.end == nil {
		s.quit()
		s.end = status.New(code, text)
		s.out.finish(s.end)
	}
}

// quit has nothing more judged or sent, with mu held.
func (s *stream) quit() { s.phase, s.pending = phaseOver, nil }

// close ends what the policy knows of the stream, however it ended. It is called once, by its own
// goroutine.
func (s *stream) close() {
	s.mu.Lock()
	if s.end == nil { // else it ends because of a message, or of us, and nothing was missed
		request, response := &s.halves[budget.Request], &s.halves[budget.Response]
		if response.missed() {
			s.server.bodyMissed()
		}
		if s.phase == phaseLive && request.headers && !response.headers && !response.body {
			s.server.responseMissed()
		}
	}
	s.quit()
	s.mu.Unlock()
	var waited float64
	s.server.do(func(now guard.Time) {
		delete(s.server.mu.streams, s)
		was := s.standing
		s.standing = standingClosed
		if was != standingOpen {
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
	passHeaders  [2]answer
	passAsking   [2][2][2]answer // and asks for bodies in pieces: by the headers' direction, and whether the request's and the response's are
	passBodies   [2]answer
	passTrailers = [2]answer{
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

func marshal(m *extprocv3.ProcessingResponse) answer {
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

func (s *stream) passHeaders(d budget.Direction) answer {
	if !s.halves[d].asked {
		return passHeaders[d]
	}
	return passAsking[d][index(s.halves[budget.Request].streamed())][index(s.halves[budget.Response].streamed())]
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// verdictNamespace is where access logs find what became of a request that waited:
// %DYNAMIC_METADATA(highwater:verdict)%.
const verdictNamespace = "highwater"

// passWaited is passHeaders of one who has waited, and tells that.
func (s *stream) passWaited(v guard.Verdict) answer {
	var mode *filterv3.ProcessingMode
	if s.halves[budget.Request].asked {
		mode = modeOf(true, s.halves[budget.Response].streamed())
	}
	m := headersAnswer(budget.Request, mode)
	m.DynamicMetadata = &structpb.Struct{Fields: map[string]*structpb.Value{
		verdictNamespace: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"verdict": structpb.NewStringValue(v.String())}}),
	}}
	return marshal(m)
}

func (s *stream) passBody(d budget.Direction, b *extprocv3.HttpBody) answer {
	if mode := s.halves[d].mode; mode == filterv3.ProcessingMode_FULL_DUPLEX_STREAMED || mode == filterv3.ProcessingMode_GRPC {
		return marshal(bodyAnswer(d, b)) // in these modes what is not sent back is gone
	}
	return passBodies[d]
}

// immediate is the answer in place of the upstream.
func (s *stream) immediate(v guard.Verdict) answer {
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

// details are what %RESPONSE_CODE_DETAILS% shows, in Envoy's manner:
// highwater{rejected,timeout,waited=2000ms}.
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

// Hides implements guard.Host: where the mode of a body is NONE, nothing of it is told, unless we
// ask for it.
func (s *stream) Hides(d budget.Direction) bool {
	return s.halves[d].hidden()
}

// Untold implements guard.Host: most likely the filter's response_header_mode is SKIP.
func (s *stream) Untold() bool { return !s.server.coverage.TellsResponses() }

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
