package extproc

import (
	"errors"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc/codes"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/httptext"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

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
	case v.Action == verdict.Wait:
		s.phase = phaseHeld
		s.server.hurry(guard.FastTick)
		return
	case v.Action == verdict.Pass:
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
func (s *stream) open(r *extprocv3.ProcessingRequest, h *extprocv3.HttpHeaders, length int64) (v verdict.Verdict, woke bool) {
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

func (s *stream) responseHeaders(h *extprocv3.HttpHeaders) {
	if !s.begin(budget.Response, h) {
		return
	}
	length := budget.Unknown
	for _, f := range h.GetHeaders().GetHeaders() {
		if f.GetKey() == "content-length" {
			length = httptext.ContentLength(value(f))
		}
	}
	if h.GetEndOfStream() {
		length = 0
	}
	s.halves[budget.Response].bodiless = length == 0
	s.server.coverage.ResponseCame(s.server.now())
	if length == budget.Unknown {
		s.ask(budget.Response)
	}
	// A response without a request is the answer of another filter, before ours: it is none of our
	// business.
	s.judged(s.expect(length), s.passHeaders(budget.Response))
}

// wantsBody says whether the policy wants the response's body counted. That of gRPC always is: its
// messages are most often small.
func (s *stream) wantsBody() (wants bool) {
	s.server.do(func(now guard.Time) {
		wants = s.standing == standingOpen && s.guard.WantsBody(now, &s.Stream)
	})
	return wants
}

func (s *stream) expect(length int64) (v verdict.Verdict) {
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
		if v := s.expect(budget.Unknown); v.Action != verdict.Admit { // response_header_mode is SKIP
			s.judged(v, nil)
			return
		}
	}
	half.body = true
	if half.asked {
		s.server.coverage.BodyCame()
	}
	var v verdict.Verdict
	s.server.do(func(now guard.Time) {
		if s.standing != standingOpen {
			return
		}
		if s.Counted(d) {
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

// ask has the body of a message that announces no length sent to us, so that what passes is
// counted: a forecast is no bound.
func (s *stream) ask(d budget.Direction) {
	half, other := &s.halves[d], &s.halves[1-d]
	half.asked = half.mode == filterv3.ProcessingMode_NONE && other.mode <= filterv3.ProcessingMode_STREAMED && !s.upgrades && s.server.coverage.SendsBodies() &&
		(d == budget.Request || s.gRPC || s.wantsBody())
}

// judged answers a message that was let pass with pass, or carries the verdict out.
func (s *stream) judged(v verdict.Verdict, pass answer) {
	if v.Action != verdict.Admit && v.Action != verdict.Pass {
		s.refuse(v)
		return
	}
	s.send(pass)
}
