package extproc

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/highwater-envoy/highwater/internal/guard"
)

// wire is a server with gRPC, on the loopback interface, and a client.
type wire struct {
	t      *testing.T
	server *Server
	grpc   *GRPC
	conn   *grpc.ClientConn
	end    func() // shuts it down, once
}

func serveGRPC(t *testing.T, inUse int64) (*wire, *gauge) {
	t.Helper()
	s, readings := serve(t, inUse, nil)
	w := &wire{t: t, server: s, grpc: NewGRPC(s, nil)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		if err := w.grpc.Serve(l); err != nil {
			t.Error(err)
		}
	})
	w.end = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		w.grpc.Shutdown(ctx)
		running.Wait()
		until(t, func() bool { return w.grpc.connections.Load() == 0 })
		require.Zero(t, s.counts.open.Load())
		require.Zero(t, w.grpc.backlog.Held())
	})
	t.Cleanup(w.end)
	w.conn, err = grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { w.conn.Close() })
	return w, readings
}

func (w *wire) open() extprocv3.ExternalProcessor_ProcessClient {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	w.t.Cleanup(cancel)
	st, err := extprocv3.NewExternalProcessorClient(w.conn).Process(ctx)
	require.NoError(w.t, err)
	return st
}

// answers sends messages and takes as many answers.
func (w *wire) answers(st extprocv3.ExternalProcessor_ProcessClient, messages ...*extprocv3.ProcessingRequest) {
	w.t.Helper()
	for _, m := range messages {
		require.NoError(w.t, st.Send(m))
		_, err := st.Recv()
		require.NoError(w.t, err)
	}
}

func TestRequestsOnTheWire(t *testing.T) {
	w, _ := serveGRPC(t, 40*mib)
	st := w.open()
	w.answers(st, request(false, "content-length", "5"), requestBody(5, false), requestTrailers(), response(false, "content-length", "9"), responseTrailers())
	require.NoError(t, st.CloseSend())
	_, err := st.Recv()
	require.ErrorIs(t, err, io.EOF, "the request has ended, and so does the stream, with OK")
	w.server.drained(t)
	require.Equal(t, int64(1), w.server.counter("admitted_total"))
	require.Equal(t, int64(5), w.server.counts.received.Load())
	require.Equal(t, int64(5), w.server.counts.sent.Load())
	until(t, func() bool {
		return w.grpc.handled[extprocv3.ExternalProcessor_Process_FullMethodName][codes.OK].Load() == 1
	})

	// One that is reset, as when a client hangs up.
	ctx, cancel := context.WithCancel(t.Context())
	gone, err := extprocv3.NewExternalProcessorClient(w.conn).Process(ctx)
	require.NoError(t, err)
	w.answers(gone, request(false, "content-length", "16000000"))
	require.Equal(t, int64(1), w.server.gauge("streams"))
	cancel()
	w.server.drained(t)
	require.Zero(t, w.server.counts.faults.Load())
}

// Whoever breaks the order of the protocol has his stream ended, with one status that says why.
func TestOrderOfMessages(t *testing.T) {
	w, _ := serveGRPC(t, 40*mib)
	for name, c := range map[string]struct {
		before []*extprocv3.ProcessingRequest
		wrong  *extprocv3.ProcessingRequest
		code   codes.Code
		text   string
	}{
		"request headers twice":        {[]*extprocv3.ProcessingRequest{request(false)}, request(false), codes.InvalidArgument, "request_headers came twice"},
		"response headers twice":       {[]*extprocv3.ProcessingRequest{request(true), response(false)}, response(false), codes.InvalidArgument, "response_headers came twice"},
		"request trailers twice":       {[]*extprocv3.ProcessingRequest{request(false), requestTrailers()}, requestTrailers(), codes.InvalidArgument, "request_trailers came behind the end of the request"},
		"response trailers twice":      {[]*extprocv3.ProcessingRequest{request(true), response(false), responseTrailers()}, responseTrailers(), codes.InvalidArgument, "response_trailers came behind the end of the response"},
		"a body behind the headers":    {[]*extprocv3.ProcessingRequest{request(true)}, requestBody(1, false), codes.InvalidArgument, "request_body came behind the end of the request"},
		"a body behind the body's end": {[]*extprocv3.ProcessingRequest{request(false), requestBody(1, true)}, requestBody(1, true), codes.InvalidArgument, "request_body came behind"},
		"a body behind the trailers":   {[]*extprocv3.ProcessingRequest{request(true), response(false), responseTrailers()}, responseBody(1, false), codes.InvalidArgument, "response_body came behind"},
	} {
		t.Run(name, func(t *testing.T) {
			st := w.open()
			w.answers(st, c.before...)
			require.NoError(t, st.Send(c.wrong))
			_ = st.Send(c.wrong)
			_, err := st.Recv()
			require.Equal(t, c.code, status.Code(err))
			require.ErrorContains(t, err, c.text)
			w.server.drained(t)
		})
	}
}

func TestWhatIsNoRequest(t *testing.T) {
	w, _ := serveGRPC(t, 40*mib)
	huge := w.open()
	_ = huge.Send(request(true, "x", strings.Repeat("x", 17*mib)))
	_, err := huge.Recv()
	require.Equal(t, codes.ResourceExhausted, status.Code(err))
	require.Equal(t, int64(1), w.server.counts.bad[badSize].Load())

	unknown, err := w.conn.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, "/made.up/Method")
	require.NoError(t, err)
	err = unknown.RecvMsg(&extprocv3.ProcessingResponse{})
	require.Equal(t, codes.Unimplemented, status.Code(err))
	require.ErrorContains(t, err, ServiceName)
	until(t, func() bool { return w.grpc.handled[""][codes.Unimplemented].Load() == 1 })
}

func TestHealthOnTheWire(t *testing.T) {
	w, _ := serveGRPC(t, 40*mib)
	client := healthpb.NewHealthClient(w.conn)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: ServiceName})
	require.NoError(t, err)
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{healthpb.HealthCheckResponse_NOT_SERVING, healthpb.HealthCheckResponse_SERVING} {
		w.grpc.SetServing(want == healthpb.HealthCheckResponse_SERVING)
		got, err := watch.Recv()
		require.NoError(t, err)
		require.Equal(t, want, got.GetStatus())
		for _, service := range []string{"", ServiceName} {
			got, err = client.Check(ctx, &healthpb.HealthCheckRequest{Service: service})
			require.NoError(t, err)
			require.Equal(t, want, got.GetStatus())
		}
	}
	_, err = client.Check(ctx, &healthpb.HealthCheckRequest{Service: "made.up"})
	require.Equal(t, codes.NotFound, status.Code(err))

	// What is no service is not watched: its name, which may be megabytes, would be kept as long as
	// the stream.
	unknown, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: strings.Repeat("x", mib)})
	require.NoError(t, err)
	_, err = unknown.Recv()
	require.Equal(t, codes.NotFound, status.Code(err))

	// Nobody who watches holds up the end.
	w.answers(w.open(), request(true))
	began := time.Now()
	w.end()
	require.Less(t, time.Since(began), 500*time.Millisecond)
	got, err := watch.Recv()
	if err == nil { // that it is not serving may be told before
		require.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, got.GetStatus())
		_, err = watch.Recv()
	}
	require.Equal(t, codes.Canceled, status.Code(err))
}

// Who has connected and says nothing holds up the end no longer than for a moment: grpc-go waits
// for each handshake.
func TestShutdownWaitsForNoHandshake(t *testing.T) {
	w, _ := serveGRPC(t, 40*mib)
	st := w.open()
	w.answers(st, request(true))
	for range 3 {
		c, err := net.Dial("tcp", w.conn.Target())
		require.NoError(t, err)
		defer c.Close()
	}
	until(t, func() bool { return w.grpc.connections.Load() == 4 })
	began := time.Now()
	w.end()
	require.Less(t, time.Since(began), greetWithin+2*time.Second)
	_, err := st.Recv()
	require.ErrorIs(t, err, io.EOF)
}

// At the end of the server each stream ends with OK: who waits is let in first, and a body that is
// asked for in pieces ends before. What takes too long for that ends with an error.
func TestShutdown(t *testing.T) {
	w, readings := serveGRPC(t, 40*mib)
	silent, pieces, stuck, waits := w.open(), w.open(), w.open(), w.open()
	w.answers(silent, request(true))
	w.answers(pieces, request(false), requestBody(1000, false))
	w.answers(stuck, request(false), requestBody(1000, false))
	readings.set(178 * mib)
	until(t, func() bool { return w.server.gauge("in_use_bytes") == 178*mib })
	require.NoError(t, waits.Send(request(false, "content-length", "16000000")))
	until(t, func() bool { return w.server.gauge("waiting") == 1 })
	ended := make(chan struct{})
	go func() { w.end(); close(ended) }()

	_, err := silent.Recv()
	require.ErrorIs(t, err, io.EOF)
	got, err := waits.Recv()
	require.NoError(t, err)
	require.NotNil(t, got.GetRequestHeaders())
	_, err = waits.Recv()
	require.ErrorIs(t, err, io.EOF)
	w.answers(pieces, requestBody(1000, false), requestBody(1000, true))
	_, err = pieces.Recv()
	require.ErrorIs(t, err, io.EOF)
	_, err = stuck.Recv()
	require.Equal(t, codes.Unavailable, status.Code(err))
	<-ended
	w.server.drained(t)
}

// A fault of ours ends the stream that it is in, and no other.
func TestFault(t *testing.T) {
	w, _ := serveGRPC(t, 40*mib)
	other := w.open()
	w.answers(other, request(false, "content-length", "5"))
	var there *guard.Guard
	w.server.do(func(guard.Time) { there, w.server.mu.guard = w.server.mu.guard, nil })
	st := w.open()
	require.NoError(t, st.Send(request(true)))
	_, err := st.Recv()
	require.Equal(t, codes.Internal, status.Code(err))
	w.server.do(func(guard.Time) { w.server.mu.guard = there })
	require.Equal(t, int64(1), w.server.counts.faults.Load())
	w.answers(other, response(true))

	// And one outside of any message.
	err = w.grpc.stream(nil, nil, &grpc.StreamServerInfo{FullMethod: "/x"}, func(any, grpc.ServerStream) error { panic("a fault") })
	require.Equal(t, codes.Internal, status.Code(err))
	require.Equal(t, int64(2), w.server.counts.faults.Load())
}

// Too many connections: those go first that never had a request, then those that have none, then
// the newest.
func TestConnectionsAreBounded(t *testing.T) {
	w, _ := serveGRPC(t, 40*mib)
	st := w.open()
	w.answers(st, request(false, "content-length", "5"))
	require.Equal(t, int64(1), w.grpc.connections.Load())
	var all []net.Conn
	for range maxConnections + 50 {
		c, err := net.Dial("tcp", w.conn.Target())
		require.NoError(t, err)
		all = append(all, c)
		defer c.Close()
	}
	until(t, func() bool { return w.grpc.broken.Load() >= 51 && w.grpc.connections.Load() <= maxConnections })
	require.NoError(t, all[0].SetReadDeadline(time.Now().Add(10*time.Second)))
	_, err := io.Copy(io.Discard, all[0])
	require.NotErrorIs(t, err, context.DeadlineExceeded, "the oldest that said nothing is closed")
	w.answers(st, response(true))
}
