package extproc

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const mib = 1 << 20

// gauge is a Reader whose readings a test sets.
type gauge struct {
	mu    sync.Mutex
	inUse int64 // 0 = there is none
}

func (g *gauge) Ask(answer func(memory.Reading, error)) {
	g.mu.Lock()
	n := g.inUse
	g.mu.Unlock()
	if n == 0 {
		go answer(memory.Reading{}, fmt.Errorf("no reading"))
		return
	}
	go answer(memory.Reading{InUse: n, Allocated: n}, nil)
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
			"streams": own.Streams, "waiting": own.Queue.Waiting, "fresh_bytes": own.Fresh, "coming_bytes": own.Coming, "exposure_bytes": own.Exposure,
			"in_use_bytes": s.mu.worker.Gauges(now)[metric.GaugeInUse],
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
