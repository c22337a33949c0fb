package extproc

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// gauge is a Reader whose readings a test sets.
type gauge struct {
	mu    sync.Mutex
	inUse int64 // 0 = there is none
}

func (g *gauge) Ask(answer func(guard.Reading, error)) {
	g.mu.Lock()
	n := g.inUse
	g.mu.Unlock()
	if n == 0 {
		go answer(guard.Reading{}, fmt.Errorf("no reading"))
		return
	}
	go answer(guard.Reading{InUse: n, Allocated: n}, nil)
}

func (g *gauge) set(n int64) { g.mu.Lock(); g.inUse = n; g.mu.Unlock() }

func config(edit func(*guard.Config)) guard.Config {
	c := guard.Default()
	c.Budget.Limit = unit.Limit{Bytes: 200 * unit.MiB}
	c.Buffers.Downstream, c.Buffers.Upstream = 64*unit.KiB, 64*unit.KiB
	c.Buffers.HTTP2Window, c.Buffers.HTTP2ConnectionWindow = 64*unit.KiB, 16*unit.MiB
	c.Buffers.WholeRequest = 16 * unit.MiB
	if edit != nil {
		edit(&c)
	}
	return c
}

// serve is a server that runs, with a reading.
func serve(tb testing.TB, inUse int64, edit func(*guard.Config)) (*Server, *gauge) {
	tb.Helper()
	g := &gauge{inUse: inUse}
	s, err := New(config(edit), g, slog.New(slog.NewTextHandler(io.Discard, nil)))
	require.NoError(tb, err)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { s.Run(ctx) })
	tb.Cleanup(func() { cancel(); running.Wait() })
	if inUse > 0 {
		until(tb, func() bool { return s.Status().Gauges["highwater_in_use_bytes"] == inUse })
	}
	return s, g
}

func until(tb testing.TB, ok func() bool) {
	tb.Helper()
	require.Eventually(tb, ok, 10*time.Second, time.Millisecond)
}

// client is a stream's other end, without gRPC between: grpc_test.go has the wire.
type client struct {
	t       testing.TB
	stream  *stream
	answers chan *extprocv3.ProcessingResponse
}

// SendMsg implements sender.
func (c *client) SendMsg(v any) error {
	m := &extprocv3.ProcessingResponse{}
	require.NoError(c.t, proto.Unmarshal(v.(answer), m))
	c.answers <- m
	return nil
}

// finish implements sender.
func (c *client) finish(*status.Status) {}

// status is what the stream is ended with, if it is.
func (c *client) status() (bool, codes.Code, string) {
	c.stream.mu.Lock()
	defer c.stream.mu.Unlock()
	return c.stream.end != nil, c.stream.end.Code(), c.stream.end.Message()
}

func (s *Server) dial(tb testing.TB) *client {
	tb.Helper()
	c := &client{t: tb, answers: make(chan *extprocv3.ProcessingResponse, 1000)}
	c.stream = &stream{server: s, out: c}
	s.join(c.stream)
	return c
}

// message has the stream take what came, as its goroutine would.
func (c *client) message(data []byte) {
	c.t.Helper()
	m := messages.Get().(*message)
	require.NoError(c.t, newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, m))
	c.stream.take(m)
}

func (c *client) close() { c.stream.close() }

func (c *client) say(m *extprocv3.ProcessingRequest) {
	c.t.Helper()
	data, err := proto.Marshal(m)
	require.NoError(c.t, err)
	c.message(data)
}

// heard is the next answer.
func (c *client) heard() *extprocv3.ProcessingResponse {
	c.t.Helper()
	select {
	case m := <-c.answers:
		return m
	case <-time.After(10 * time.Second):
		require.FailNow(c.t, "no answer")
		return nil
	}
}

func (c *client) silent() { c.t.Helper(); require.Empty(c.t, c.answers) }

func headersOf(end bool, pairs ...string) *extprocv3.HttpHeaders {
	h := &extprocv3.HttpHeaders{EndOfStream: end, Headers: &corev3.HeaderMap{}}
	for i := 0; i < len(pairs); i += 2 {
		h.Headers.Headers = append(h.Headers.Headers, &corev3.HeaderValue{Key: pairs[i], RawValue: []byte(pairs[i+1])})
	}
	return h
}

func request(end bool, pairs ...string) *extprocv3.ProcessingRequest {
	attributes, err := structpb.NewStruct(map[string]any{"xds.route_name": "all", "request.protocol": "HTTP/1.1", "connection.id": 7})
	if err != nil {
		panic(err)
	}
	return &extprocv3.ProcessingRequest{
		Request:        &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: headersOf(end, append([]string{":path", "/"}, pairs...)...)},
		Attributes:     map[string]*structpb.Struct{"envoy.filters.http.ext_proc": attributes},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{},
	}
}

func response(end bool, pairs ...string) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: headersOf(end, append([]string{":status", "200"}, pairs...)...)}}
}

func bodyOf(n int, end bool) *extprocv3.HttpBody {
	return &extprocv3.HttpBody{Body: make([]byte, n), EndOfStream: end}
}

func requestBody(n int, end bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: bodyOf(n, end)}}
}

func responseBody(n int, end bool) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseBody{ResponseBody: bodyOf(n, end)}}
}

func requestTrailers() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestTrailers{RequestTrailers: &extprocv3.HttpTrailers{}}}
}

func responseTrailers() *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_ResponseTrailers{ResponseTrailers: &extprocv3.HttpTrailers{}}}
}

// gauge is the policy's as of now; what /status tells is a tick old.
func (s *Server) gauge(name string) (n int64) {
	s.do(func(now guard.Time) {
		own := s.mu.worker.Account().Own()
		n = map[string]int64{
			"streams": own.Streams, "waiting": own.Waiting, "fresh_bytes": own.Fresh, "coming_bytes": own.Coming, "exposure_bytes": own.Exposure,
			"in_use_bytes": s.mu.worker.Gauges(now)[guard.GaugeInUse],
		}[name]
	})
	return n
}

func (s *Server) counter(name string) int64 { return s.Status().Counters["highwater_"+name] }

// drained waits until nothing is counted any more.
func (s *Server) drained(tb testing.TB) {
	tb.Helper()
	until(tb, func() bool {
		return s.gauge("streams")+s.gauge("waiting")+s.gauge("fresh_bytes")+s.gauge("coming_bytes")+s.gauge("exposure_bytes") == 0
	})
}

func TestLifeOfARequest(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	c := s.dial(t)
	c.say(request(false, "content-length", "1000000", ":method", "POST"))
	m := c.heard()
	require.NotNil(t, m.GetRequestHeaders())
	require.Nil(t, m.GetModeOverride(), "its length is known")
	require.Equal(t, int64(1), s.gauge("streams"))
	require.GreaterOrEqual(t, s.gauge("coming_bytes"), int64(1000000))
	c.say(response(false, "content-length", "5000"))
	require.NotNil(t, c.heard().GetResponseHeaders())
	require.Less(t, s.gauge("coming_bytes"), int64(1000000), "who is answered has sent all")
	require.GreaterOrEqual(t, s.gauge("fresh_bytes"), int64(1000000), "and that may be in no reading yet")
	require.NoError(t, s.outcome(io.EOF), "a request that ends, ends with OK")
	c.close()
	c.silent()
	s.drained(t)
	require.Equal(t, int64(1), s.counter("admitted_total"))
}

// What was announced counts as coming for a second, and as held for as long as it may be.
func TestWhatIsNotSeenLapses(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	c := s.dial(t)
	c.say(request(false, "content-length", "4000000"))
	c.heard()
	began := time.Now()
	until(t, func() bool { return s.gauge("coming_bytes") == 0 })
	require.InDelta(t, time.Second, time.Since(began), float64(400*time.Millisecond))
	c.say(response(false, "content-length", "100000000"))
	c.heard()
	until(t, func() bool { return s.gauge("coming_bytes") == 0 })
	var likely int64
	for _, k := range s.Status().Keys {
		likely += k.Likely
	}
	require.Equal(t, int64(4000000+128<<10), likely, "someone does not read: it holds what it can")
	c.close()
	s.drained(t)
}

func TestMessagesWithoutALengthAreAskedFor(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	c := s.dial(t)
	c.say(request(false))
	m := c.heard().GetModeOverride()
	require.Equal(t, filterv3.ProcessingMode_STREAMED, m.GetRequestBodyMode())
	require.Equal(t, filterv3.ProcessingMode_NONE, m.GetResponseBodyMode())
	require.Equal(t, filterv3.ProcessingMode_SEND, m.GetRequestTrailerMode())
	for range 10 {
		c.say(requestBody(mib, false))
		require.NotNil(t, c.heard().GetRequestBody())
	}
	require.GreaterOrEqual(t, s.gauge("fresh_bytes"), int64(mib))
	c.say(requestTrailers())
	require.NotNil(t, c.heard().GetRequestTrailers())
	c.say(response(false))
	m = c.heard().GetModeOverride()
	require.Equal(t, filterv3.ProcessingMode_STREAMED, m.GetResponseBodyMode())
	require.Equal(t, filterv3.ProcessingMode_STREAMED, m.GetRequestBodyMode(), "the request may still be going on")
	c.say(responseBody(1000, false))
	require.NotNil(t, c.heard().GetResponseBody())
	c.say(responseTrailers())
	require.NotNil(t, c.heard().GetResponseTrailers())
	c.close()
	s.drained(t)

	// An upgrade is no body to be held up by answers.
	for _, kind := range [][]string{{"upgrade", "websocket"}, {":method", "CONNECT"}} {
		c := s.dial(t)
		c.say(request(false, kind...))
		require.Nil(t, c.heard().GetModeOverride())
		c.say(response(false))
		require.Nil(t, c.heard().GetModeOverride())
		c.close()
	}
}

// A filter that ignores what it is asked for is asked no more, and its bodies are forecast.
func TestOverridesThatAreIgnored(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	asked := 0
	for range 2 * guard.EnoughMissed {
		c := s.dial(t)
		c.say(request(false))
		if c.heard().GetModeOverride() != nil {
			asked++
		}
		c.say(response(true))
		c.heard()
		c.close()
	}
	require.Equal(t, guard.EnoughMissed, asked)
	c := s.dial(t)
	c.say(request(false))
	c.heard()
	require.Positive(t, s.gauge("coming_bytes"))
	c.close()
	s.drained(t)
}

// response_header_mode: SKIP. What nobody tells of is taken for as much as buffers can hold, until
// something is told.
func TestResponsesThatAreNotTold(t *testing.T) {
	const response128 = 128 << 10 // both buffers
	s, _ := serve(t, 40*mib, nil)
	for range guard.EnoughSilent {
		require.Zero(t, s.gauge("coming_bytes"))
		c := s.dial(t)
		c.say(request(true))
		require.NotNil(t, c.heard().GetRequestHeaders())
		c.close()
	}
	s.drained(t)
	upload := s.dial(t)
	upload.say(request(false, "content-length", "1000000"))
	upload.heard()
	require.Equal(t, int64(1000000+response128), s.gauge("coming_bytes"), "its request is still to come")
	get := s.dial(t)
	get.say(request(true))
	get.heard()
	until(t, func() bool { return s.gauge("coming_bytes") == 0 })
	require.Equal(t, int64(1000000+2*response128), s.gauge("exposure_bytes"))
	upload.close()
	get.close()
	s.drained(t)

	// Where they do not fit, requests wait, and none goes upstream for an answer that would be
	// refused.
	held := []*client{}
	for range 2000 {
		c := s.dial(t)
		c.say(request(true))
		held = append(held, c)
	}
	require.Positive(t, s.gauge("waiting"))
	require.LessOrEqual(t, s.gauge("coming_bytes"), int64(200*mib))
	for _, c := range held {
		c.close()
	}
	s.drained(t)

	told := s.dial(t)
	told.say(request(true))
	told.heard()
	told.say(response(true))
	told.heard()
	told.close()
	require.False(t, told.stream.Untold())
}

func TestOtherModes(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	for mode := range filterv3.ProcessingMode_BodySendMode_name {
		c := s.dial(t)
		r := request(false)
		mode := filterv3.ProcessingMode_BodySendMode(mode)
		r.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: mode, ResponseBodyMode: mode}
		c.say(r)
		m := c.heard()
		require.NotNil(t, m.GetRequestHeaders(), mode)
		require.Equal(t, mode == filterv3.ProcessingMode_NONE, m.GetModeOverride() != nil, mode)
		c.say(requestBody(100_000, true))
		body := c.heard().GetRequestBody()
		require.NotNil(t, body, mode)
		c.say(response(false))
		require.NotNil(t, c.heard().GetResponseHeaders(), mode)
		c.say(responseBody(50_000, true))
		require.NotNil(t, c.heard().GetResponseBody(), mode)
		echoes := mode == filterv3.ProcessingMode_FULL_DUPLEX_STREAMED || mode == filterv3.ProcessingMode_GRPC
		echo := body.GetResponse().GetBodyMutation().GetStreamedResponse()
		require.Equal(t, echoes, echo != nil, mode)
		if echoes {
			require.Len(t, echo.GetBody(), 100_000)
			require.True(t, echo.GetEndOfStream())
		}
		require.GreaterOrEqual(t, s.gauge("fresh_bytes"), int64(100_000), "%v: it is counted", mode)
		c.close()
		s.drained(t)
	}
	// Another filter's answer, before ours: there was no request.
	c := s.dial(t)
	c.say(response(false, "content-length", "5"))
	require.NotNil(t, c.heard().GetResponseHeaders())
	c.close()
	// response_header_mode: SKIP with bodies.
	c = s.dial(t)
	c.say(request(true))
	c.heard()
	c.say(responseBody(100_000, true))
	require.NotNil(t, c.heard().GetResponseBody())
	c.close()
	s.drained(t)
}

func TestWaiting(t *testing.T) {
	s, readings := serve(t, 40*mib, func(c *guard.Config) { c.Fairness.By = "none"; c.Fairness.Weights = nil })
	full := func() {
		t.Helper()
		readings.set(178 * mib)
		until(t, func() bool { return s.gauge("in_use_bytes") == 178*mib })
	}
	full()
	c := s.dial(t)
	c.say(request(false, "content-length", "16000000"))
	until(t, func() bool { return s.gauge("waiting") == 1 })
	c.silent()
	small := s.dial(t)
	small.say(request(true))
	require.NotNil(t, small.heard().GetRequestHeaders(), "small ones pass")
	small.close()
	readings.set(50 * mib)
	m := c.heard()
	require.NotNil(t, m.GetRequestHeaders())
	verdict := m.GetDynamicMetadata().GetFields()["highwater"].GetStructValue().GetFields()["verdict"].GetStringValue()
	require.Contains(t, verdict, "admitted waited=")
	c.close()
	s.drained(t)

	full()
	c = s.dial(t)
	c.say(request(false, "content-length", "16000000"))
	im := c.heard().GetImmediateResponse()
	require.EqualValues(t, 503, im.GetStatus().GetCode())
	require.Nil(t, im.GetGrpcStatus())
	require.Contains(t, im.GetDetails(), "highwater{rejected,timeout,waited=")
	require.NotContains(t, im.GetDetails(), " ")
	require.Equal(t, "timeout", mutation(im, "x-highwater-reason"))
	require.NotEmpty(t, mutation(im, "retry-after"))
	c.say(requestBody(1000, true)) // what it had sent before it knew
	c.silent()
	c.close()

	// A client that goes away while it waits, and one that speaks gRPC.
	c = s.dial(t)
	c.say(request(false, "content-length", "16000000"))
	until(t, func() bool { return s.gauge("waiting") == 1 })
	c.close()
	require.Zero(t, s.gauge("waiting"))
	c = s.dial(t)
	c.say(request(false, "content-length", "16000000", "content-type", "application/grpc+proto"))
	im = c.heard().GetImmediateResponse()
	require.EqualValues(t, 8, im.GetGrpcStatus().GetStatus())
	require.NotEmpty(t, mutation(im, "grpc-retry-pushback-ms"))
	require.Contains(t, string(im.GetBody()), "timeout")
	c.close()
	readings.set(40 * mib)
	s.drained(t)
	require.Empty(t, s.mu.connections, "nothing is kept of a connection that nobody waits on")
	require.Empty(t, s.mu.streams)
}

func mutation(im *extprocv3.ImmediateResponse, key string) string {
	for _, h := range im.GetHeaders().GetSetHeaders() {
		if h.GetHeader().GetKey() == key {
			return string(h.GetHeader().GetRawValue())
		}
	}
	return ""
}

// With send_body_without_waiting_for_header_response the body comes while the answer to the headers
// is held. It is answered behind it.
func TestBodyThatDoesNotWait(t *testing.T) {
	s, readings := serve(t, 40*mib, func(c *guard.Config) { c.Throttle.Timeout = unit.Duration(10 * time.Second) })
	readings.set(178 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 178*mib })
	c := s.dial(t)
	r := request(false, "content-length", "16000000")
	r.ProtocolConfig = &extprocv3.ProtocolConfiguration{RequestBodyMode: filterv3.ProcessingMode_STREAMED, SendBodyWithoutWaitingForHeaderResponse: true}
	c.say(r)
	c.say(requestBody(1000, false))
	c.say(requestBody(1000, true))
	c.silent()
	readings.set(40 * mib)
	require.NotNil(t, c.heard().GetRequestHeaders())
	require.NotNil(t, c.heard().GetRequestBody())
	require.NotNil(t, c.heard().GetRequestBody())
	c.close()

	readings.set(178 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 178*mib })
	c = s.dial(t)
	c.say(r)
	for range 5 {
		c.say(requestBody(mib, false))
	}
	ended, code, text := c.status()
	require.True(t, ended)
	require.Equal(t, codes.ResourceExhausted, code, text)
	c.close()
	readings.set(40 * mib)
	s.drained(t)
}

func TestEvict(t *testing.T) {
	s, readings := serve(t, 40*mib, func(c *guard.Config) { c.Buffers.Downstream, c.Buffers.Upstream = 8*unit.MiB, 8*unit.MiB })
	waits, reads := s.dial(t), s.dial(t)
	waits.say(request(false, "content-length", "16000000"))
	waits.heard()
	reads.say(request(true))
	reads.heard()
	reads.say(response(false, "content-length", "16000000"))
	reads.heard()
	readings.set(230 * mib)
	for _, c := range []*client{waits, reads} {
		im := c.heard().GetImmediateResponse()
		require.Equal(t, "evicted", mutation(im, "x-highwater-reason"))
		c.close()
	}
	readings.set(40 * mib)
	s.drained(t)
	require.Equal(t, int64(2), s.counter("rejected_total.reason.evicted"))
}

// Whoever switches to mode observe has nothing done to the requests that are there already: those
// that wait go on, and the others are neither evicted nor rejected for what they bring.
func TestReloadToObserve(t *testing.T) {
	edit := func(c *guard.Config) {
		c.Buffers.Downstream, c.Buffers.Upstream = 8*unit.MiB, 8*unit.MiB
		c.Throttle.Timeout = unit.Duration(time.Second)
	}
	s, readings := serve(t, 40*mib, edit)
	uploads, reads, waits := s.dial(t), s.dial(t), s.dial(t)
	uploads.say(request(false))
	uploads.heard()
	reads.say(request(true))
	reads.heard()
	reads.say(response(false, "content-length", "16000000"))
	reads.heard()
	readings.set(172 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 172*mib })
	waits.say(request(false, "content-length", "4000000"))
	until(t, func() bool { return s.gauge("waiting") == 1 })
	s.Reload(config(func(c *guard.Config) { edit(c); c.Mode = guard.Observe }), readings)
	require.NotNil(t, waits.heard().GetRequestHeaders())
	require.Zero(t, s.gauge("waiting"))
	readings.set(230 * mib)
	until(t, func() bool { return s.counter("rejected_total.reason.evicted") > 0 })
	for range 8 {
		uploads.say(requestBody(2*mib, false))
		require.NotNil(t, uploads.heard().GetRequestBody())
	}
	time.Sleep(1200 * time.Millisecond) // beyond throttle.timeout
	for _, c := range []*client{uploads, reads, waits} {
		c.silent()
		c.close()
	}
	readings.set(40 * mib)
	s.drained(t)
}

// A filter in observability mode can carry nothing out: what is decided is counted.
func TestObservability(t *testing.T) {
	s, readings := serve(t, 40*mib, nil)
	readings.set(199 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 199*mib })
	c := s.dial(t)
	r := request(false, "content-length", "16000000")
	r.ObservabilityMode = true
	c.say(r)
	require.NotNil(t, c.heard().GetRequestHeaders())
	require.Positive(t, s.counter("throttled_total")+s.counter("rejected_total.reason.too_large"))
	c.close()
}

func TestBadStreams(t *testing.T) {
	s, _ := serve(t, 40*mib, nil)
	attribute := func(name string, v any) *extprocv3.ProcessingRequest {
		r := request(true)
		a, err := structpb.NewStruct(map[string]any{name: v})
		require.NoError(t, err)
		r.Attributes = map[string]*structpb.Struct{"envoy.filters.http.ext_proc": a}
		return r
	}
	huge := request(true, "x", strings.Repeat("x", 10*mib))
	for name, c := range map[string]struct {
		say  []*extprocv3.ProcessingRequest
		code codes.Code
		kind bad
	}{
		"request headers twice":             {[]*extprocv3.ProcessingRequest{request(true), request(true)}, codes.InvalidArgument, badTwice},
		"response headers twice":            {[]*extprocv3.ProcessingRequest{request(true), response(true), response(true)}, codes.InvalidArgument, badTwice},
		"a body before the headers":         {[]*extprocv3.ProcessingRequest{requestBody(1, false)}, codes.InvalidArgument, badOrder},
		"trailers before the headers":       {[]*extprocv3.ProcessingRequest{requestTrailers()}, codes.InvalidArgument, badOrder},
		"request headers behind a response": {[]*extprocv3.ProcessingRequest{response(true), request(true)}, codes.InvalidArgument, badOrder},
		"no headers in the request":         {[]*extprocv3.ProcessingRequest{{Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{}}}}, codes.InvalidArgument, badHeaders},
		"none in the response":              {[]*extprocv3.ProcessingRequest{request(true), {Request: &extprocv3.ProcessingRequest_ResponseHeaders{ResponseHeaders: &extprocv3.HttpHeaders{}}}}, codes.InvalidArgument, badHeaders},
		"nothing at all":                    {[]*extprocv3.ProcessingRequest{{}}, codes.InvalidArgument, badUnknown},
		"10 MiB of headers":                 {[]*extprocv3.ProcessingRequest{huge}, codes.ResourceExhausted, badSize},
		"a route that is a number":          {[]*extprocv3.ProcessingRequest{attribute("xds.route_name", 5)}, codes.InvalidArgument, badAttribute},
		"a source that is a list":           {[]*extprocv3.ProcessingRequest{attribute("source.address", []any{"x"})}, codes.InvalidArgument, badAttribute},
		"a protocol that is null":           {[]*extprocv3.ProcessingRequest{attribute("request.protocol", nil)}, codes.InvalidArgument, badAttribute},
		"a connection that is text":         {[]*extprocv3.ProcessingRequest{attribute("connection.id", "x")}, codes.InvalidArgument, badAttribute},
		"a connection that is negative":     {[]*extprocv3.ProcessingRequest{attribute("connection.id", -1)}, codes.InvalidArgument, badAttribute},
	} {
		t.Run(name, func(t *testing.T) {
			before := s.counts.bad[c.kind].Load()
			peer := s.dial(t)
			for _, m := range c.say {
				peer.say(m)
			}
			ended, code, text := peer.status()
			require.True(t, ended)
			require.Equal(t, c.code, code, text)
			require.NotEmpty(t, text)
			require.Equal(t, before+1, s.counts.bad[c.kind].Load())
			peer.close()
			s.drained(t)
		})
	}
	// Of a oneof case that is not known here, and what is no message at all.
	for _, data := range [][]byte{protowire.AppendBytes(protowire.AppendTag(nil, 99, protowire.BytesType), []byte("x")), {0xff, 0xff}} {
		c := s.dial(t)
		c.message(data)
		ended, code, _ := c.status()
		require.True(t, ended)
		require.Equal(t, codes.InvalidArgument, code)
		c.close()
	}
	require.Zero(t, s.counts.faults.Load())
}

// Whatever messages come in whatever order, nothing panics, each message has at most one answer,
// and nothing stays charged.
func FuzzStream(f *testing.F) {
	messages := []*extprocv3.ProcessingRequest{
		request(false, "content-length", "1000000"), request(true), request(false), response(false, "content-length", "100000"), response(true), response(false),
		requestBody(1000, false), requestBody(0, true), responseBody(100_000, false), responseBody(5, true), requestTrailers(), responseTrailers(),
		{},
	}
	var all [][]byte
	for _, m := range messages {
		data, err := proto.Marshal(m)
		require.NoError(f, err)
		all = append(all, data)
		f.Add([]byte{0, byte(len(all) - 1)}, data)
	}
	f.Add([]byte{0, 3, 4, 255, 9, 10, 11}, []byte{})
	s, readings := serve(f, 40*mib, func(c *guard.Config) { c.Throttle.Timeout = unit.Duration(50 * time.Millisecond) })
	levels := []int64{40 * mib, 170 * mib, 230 * mib}
	f.Fuzz(func(t *testing.T, order, raw []byte) {
		c := s.dial(t)
		said := 0
		for _, i := range order {
			switch {
			case i == 255:
				c.message(raw)
				said++
			case i >= 250:
				readings.set(levels[int(i)%len(levels)])
			default:
				c.message(all[int(i)%len(all)])
				said++
			}
			if len(c.answers) > 900 {
				break
			}
		}
		c.close()
		require.LessOrEqual(t, len(c.answers), said+1, "and one that ends it")
		require.Zero(t, s.counts.faults.Load())
		for _, name := range []string{"streams", "coming_bytes", "waiting", "exposure_bytes"} {
			require.Zero(t, s.gauge(name), name)
		}
	})
}

func TestReloadAndReady(t *testing.T) {
	s, readings := serve(t, 0, nil)
	require.ErrorContains(t, s.Ready(), "no reading")
	readings.set(40 * mib)
	until(t, func() bool { return s.Ready() == nil })
	require.Equal(t, int64(200*mib), s.Limit())
	changed := s.Reload(config(func(c *guard.Config) { c.Budget.Limit = unit.Limit{Bytes: 300 * unit.MiB} }), readings)
	require.NotEmpty(t, changed)
	until(t, func() bool { return s.Limit() == 300*mib })
	readings.set(0)
	until(t, func() bool { return s.Ready() != nil })
}

func TestAdmin(t *testing.T) {
	s, _ := serve(t, 40*mib, func(c *guard.Config) { c.Fairness.By = "header:x-tenant" })
	web := httptest.NewServer(s.Admin(s.Registry(NewGRPC(s, nil)), func() any { return map[string]int{"x": 1} }))
	defer web.Close()
	defer http.DefaultClient.CloseIdleConnections()
	get := func(path string) (int, string) {
		res, err := http.Get(web.URL + path)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(body)
	}
	c := s.dial(t)
	c.say(request(false, "content-length", "5", "x-tenant", "a\xffb\"c"))
	c.heard()
	defer c.close()
	other := s.dial(t)
	other.say(&extprocv3.ProcessingRequest{})
	for path, want := range map[string]string{"/healthz": "ok", "/readyz": "ready", "/status": `"x": 1`, "/": "/metrics"} {
		code, body := get(path)
		require.Equal(t, 200, code, path)
		require.Contains(t, body, want)
	}
	code, metrics := get("/metrics")
	require.Equal(t, 200, code)
	for _, line := range []string{
		"highwater_admitted_total 1", `highwater_rejected_total{reason="timeout"} 0`, "highwater_limit_bytes 2.097152e+08", `highwater_key_coming_bytes{key="a` + "\uFFFD" + `b\"c"} 5`,
		`highwater_key_coming_bytes{key="(other)"} 0`, `highwater_ext_proc_bad_streams_total{reason="unknown_message"} 1`, "go_goroutines", "grpc_server_started_total 0",
		"highwater_wait_milliseconds_count 0",
	} {
		require.Contains(t, metrics, line+map[bool]string{true: " ", false: "\n"}[line == "go_goroutines"])
	}
	code, _ = get("/nothing")
	require.Equal(t, 404, code)
}

// Which requests hold the memory is told here as the filter tells it below its debug.path.
func TestWhoHoldsTheMemory(t *testing.T) {
	s, readings := serve(t, 40*mib, func(c *guard.Config) {
		c.Fairness.By = "header:x-tenant"
		c.Buffers.WholeRequest = 16 * unit.MiB
	})
	web := httptest.NewServer(s.Admin(s.Registry(NewGRPC(s, nil)), nil))
	defer web.Close()
	defer http.DefaultClient.CloseIdleConnections()
	get := func(path string, status int) []byte {
		res, err := http.Get(web.URL + path)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		require.Equal(t, status, res.StatusCode, "%s: %s", path, body)
		return body
	}
	require.Contains(t, string(get("/debug/pprof/highwater?peak=highest", 404)), "no peak yet")
	// Unasked it is as of now, before the first peak too, and never of a time that it has had.
	scraped := func() *profile.Profile {
		before := time.Now().UnixNano()
		p, err := profile.ParseData(get("/debug/pprof/highwater", 200))
		require.NoError(t, err)
		require.Equal(t, &profile.ValueType{Type: "space", Unit: "bytes"}, p.PeriodType)
		require.Positive(t, p.Period)
		require.Zero(t, p.DurationNanos)
		require.Greater(t, p.TimeNanos, before)
		require.Contains(t, p.Comments[0], "now: in use 40.0MiB")
		return p
	}
	first := scraped()
	require.Empty(t, first.Sample)
	require.Greater(t, scraped().TimeNanos, first.TimeNanos)
	c := s.dial(t)
	c.say(request(false, "content-length", "8388608", "x-tenant", "noisy"))
	c.heard()
	defer c.close()
	readings.set(46 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 46*mib })
	require.Contains(t, string(get("/current", 200)), `"noisy"`)
	require.JSONEq(t, `{"peaks": []}`, string(get("/peaks", 200)))
	p, err := profile.ParseData(get("/debug/pprof/highwater?peak=current", 200))
	require.NoError(t, err)
	require.Len(t, p.Sample, 1)
	require.Equal(t, []string{"noisy"}, p.Sample[0].Label["key"])
	require.InDelta(t, 6*mib, p.Sample[0].Value[1], float64(mib), "as much as was measured")
}

func TestDrainLetsThoseInWhoWait(t *testing.T) {
	s, readings := serve(t, 40*mib, nil)
	readings.set(178 * mib)
	until(t, func() bool { return s.gauge("in_use_bytes") == 178*mib })
	c := s.dial(t)
	c.say(request(false, "content-length", "16000000"))
	until(t, func() bool { return s.gauge("waiting") == 1 })
	s.Drain()
	require.NotNil(t, c.heard().GetRequestHeaders())
	require.Zero(t, s.gauge("waiting"), "else it is rejected as soon as it would have waited too long")
	require.Error(t, s.Ready())
	late := s.dial(t)
	late.say(request(false, "content-length", "16000000"))
	require.NotNil(t, late.heard().GetRequestHeaders())
	late.close()
	c.close()
	require.Zero(t, s.gauge("streams"))
}

// Streams that come, wait, are answered and go, all at once and at any moment.
func TestHammer(t *testing.T) {
	s, readings := serve(t, 40*mib, func(c *guard.Config) { c.Throttle.Timeout = unit.Duration(20 * time.Millisecond) })
	stop := make(chan struct{})
	var level sync.WaitGroup
	level.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(5 * time.Millisecond):
				readings.set([]int64{40 * mib, 172 * mib, 230 * mib}[i%3])
			}
		}
	})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := range 300 {
				c := s.dial(t)
				c.say(request(false, "content-length", []string{"5", "16000000"}[(i+j)%2]))
				if j%3 > 0 {
					select {
					case <-c.answers:
						c.say(response(false, "content-length", "4000000"))
					case <-time.After(time.Duration(j%30) * time.Millisecond):
					}
				}
				c.close()
			}
		})
	}
	all.Wait()
	close(stop)
	level.Wait()
	readings.set(40 * mib)
	s.drained(t)
	require.Zero(t, s.counts.faults.Load())
}

// A path exempts what is small, and no other path is taken for it.
func TestExemptPaths(t *testing.T) {
	s, _ := serve(t, 230*mib, func(c *guard.Config) {
		c.Throttle.Timeout = 0
		c.Exempt = []guard.Exempt{{PathPrefix: "/healthz"}}
	})
	says := func(m ...*extprocv3.ProcessingRequest) (last *extprocv3.ProcessingResponse) {
		t.Helper()
		c := s.dial(t)
		defer c.close()
		for _, m := range m {
			c.say(m)
			last = c.heard()
		}
		return last
	}
	const large = "16000000"
	for _, path := range []string{"/healthz", "/healthzzz", "/healthz/../upload", "/healthz%2f..%2fupload", "/healthz/x"} {
		require.NotNil(t, says(request(false, ":path", path, "content-length", large)).GetImmediateResponse(), path)
	}
	require.NotNil(t, says(request(false, ":path", "/healthz?x", "content-length", "60000")).GetRequestHeaders())
	get := request(true, ":path", "/healthz/x")
	require.NotNil(t, says(get, response(false, "content-length", "60000")).GetResponseHeaders())
	require.NotNil(t, says(get, response(false, "content-length", large)).GetImmediateResponse(), "its response is large")
	chunked := request(false, ":path", "/healthz")
	require.NotNil(t, says(chunked, requestBody(60_000, false)).GetRequestBody())
	require.NotNil(t, says(chunked, requestBody(60_000, false), requestBody(60_000, false)).GetImmediateResponse(), "it has grown")
	s.drained(t)
}
