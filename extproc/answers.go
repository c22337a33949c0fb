package extproc

import (
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

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
	if !s.halves[d].asked && !s.keeps(d) {
		return passHeaders[d]
	}
	return passAsking[d][index(s.halves[budget.Request].streamed())][index(s.halves[budget.Response].streamed())]
}

// keeps says whether the answer has Envoy keep this stream until the request has ended, by the mode
// of the response's trailers: Envoy Gateway has no setting for that, and always skips them. A mode
// of an answer is the whole mode, so that it is left alone where bodies are sent. Where
// allow_mode_override is not set, Envoy ignores it.
func (s *stream) keeps(d budget.Direction) bool {
	return d == budget.Request && s.halves[budget.Request].mode == filterv3.ProcessingMode_NONE && s.halves[budget.Response].mode == filterv3.ProcessingMode_NONE
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
func (s *stream) passWaited(v verdict.Verdict) answer {
	var mode *filterv3.ProcessingMode
	if s.halves[budget.Request].asked || s.keeps(budget.Request) {
		mode = modeOf(s.halves[budget.Request].asked, s.halves[budget.Response].streamed())
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
func (s *stream) immediate(v verdict.Verdict) answer {
	r := &s.guard.Config().Reject
	headers, body := v.Answer(r, s.gRPC)
	m := &extprocv3.ImmediateResponse{
		Status: &typev3.HttpStatus{Code: typev3.StatusCode(r.Status)}, Headers: &extprocv3.HeaderMutation{}, Body: []byte(body), Details: details(v),
	}
	if s.gRPC {
		m.GrpcStatus = &extprocv3.GrpcStatus{Status: verdict.GRPCResourceExhausted}
	}
	for _, h := range headers {
		m.Headers.SetHeaders = append(m.Headers.SetHeaders, header(h[0], h[1]))
	}
	return marshal(&extprocv3.ProcessingResponse{Response: &extprocv3.ProcessingResponse_ImmediateResponse{ImmediateResponse: m}})
}

// details are what %RESPONSE_CODE_DETAILS% shows, in Envoy's manner:
// highwater{rejected,timeout,waited=2000ms}.
func details(v verdict.Verdict) string {
	return "highwater{" + strings.ReplaceAll(v.String(), " ", ",") + "}"
}

func header(key, value string) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header:       &corev3.HeaderValue{Key: key, RawValue: []byte(value)},
		AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}
}
