package grpcstream

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo sends each message back, and tells of its end.
type echo struct {
	s      *Stream
	seen   *seen
	closed atomic.Int32
}

type seen struct{ begun, ended, closed atomic.Int64 }

func (e *echo) Message(data []byte) { e.s.Send(data) }
func (e *echo) End()                { e.seen.ended.Add(1); e.s.Finish(codes.OK, "") }
func (e *echo) Closed() {
	if e.closed.Add(1) > 1 {
		panic("Closed came twice")
	}
	e.seen.closed.Add(1)
}

const method = "/test.Test/Echo"

// serve is a server that echoes, at an address.
func serve(t *testing.T, edit func(*Server)) (s *Server, address string, n *seen) {
	t.Helper()
	n = &seen{}
	health := &Health{Services: []string{"test.Test"}}
	s = &Server{Methods: health.Methods()}
	s.Methods[method] = func(st *Stream) Handler { n.begun.Add(1); return &echo{s: st, seen: n} }
	health.SetServing(true)
	if edit != nil {
		edit(s)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Shutdown(ctx)
		running.Wait()
		require.Equal(t, n.begun.Load(), n.closed.Load(), "each handler is told of the end")
		require.Zero(t, s.Stats().Streams.Load())
		require.Zero(t, s.Stats().Connections.Load())
	})
	return s, l.Addr().String(), n
}

func dial(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

func open(t *testing.T, c *grpc.ClientConn, path string) grpc.ClientStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, path, grpc.MaxCallRecvMsgSize(64<<20))
	require.NoError(t, err)
	return s
}

func TestMessagesOfAllSizesGoBothWays(t *testing.T) {
	_, address, _ := serve(t, func(s *Server) { s.MaxMessage = 16 << 20 })
	s := open(t, dial(t, address), method)
	// Beyond the frame's, the stream's and the connection's window.
	for _, n := range []int{0, 1, 100, 16379, 16380, 65_535, 70_000, 1 << 20, 9 << 20} {
		sent := wrapperspb.Bytes(bytes.Repeat([]byte{'x'}, n))
		require.NoError(t, s.SendMsg(sent))
		var got wrapperspb.BytesValue
		require.NoError(t, s.RecvMsg(&got), n)
		require.Len(t, got.Value, len(sent.Value))
	}
	// Many at once, unread.
	for range 1000 {
		require.NoError(t, s.SendMsg(wrapperspb.Bytes(make([]byte, 1000))))
	}
	for range 1000 {
		var got wrapperspb.BytesValue
		require.NoError(t, s.RecvMsg(&got))
	}
	require.NoError(t, s.CloseSend())
	require.ErrorIs(t, s.RecvMsg(&wrapperspb.BytesValue{}), io.EOF, "finished with OK")
}

func TestManyStreamsOfManyConnections(t *testing.T) {
	server, address, _ := serve(t, nil)
	var all sync.WaitGroup
	for range 4 {
		c := dial(t, address)
		for range 50 {
			all.Go(func() {
				for range 20 {
					ctx, cancel := context.WithCancel(context.Background())
					s, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
					if err == nil && s.SendMsg(wrapperspb.String("hello")) == nil {
						_ = s.RecvMsg(&wrapperspb.StringValue{})
					}
					cancel() // in whatever state it is
				}
			})
		}
	}
	all.Wait()
	require.Eventually(t, func() bool { return server.Stats().Streams.Load() == 0 }, 10*time.Second, time.Millisecond)
}

func TestWhatIsRefused(t *testing.T) {
	var mu sync.Mutex
	handled := map[string]codes.Code{}
	server, address, _ := serve(t, func(s *Server) {
		s.MaxMessage = 1000
		s.Handled = func(path string, code codes.Code) { mu.Lock(); handled[path] = code; mu.Unlock() }
	})
	c := dial(t, address)
	code := func(s grpc.ClientStream) codes.Code { return status.Code(s.RecvMsg(&wrapperspb.BytesValue{})) }

	require.Equal(t, codes.Unimplemented, code(open(t, c, "/no.Such/Method")))
	s := open(t, c, method)
	require.NoError(t, s.SendMsg(wrapperspb.Bytes(make([]byte, 2000))))
	require.Equal(t, codes.ResourceExhausted, code(s))
	compressed, err := c.NewStream(t.Context(), &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method, grpc.UseCompressor("test"))
	if err == nil { // no such compressor is known to the client
		require.Error(t, compressed.SendMsg(wrapperspb.String("x")))
	}
	require.Equal(t, int64(1), server.Stats().Refused.Load())
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, codes.ResourceExhausted, handled[method])
	require.Equal(t, codes.Unimplemented, handled[""], "a path of traffic is no label")
}

func TestHealth(t *testing.T) {
	var health *Health
	_, address, _ := serve(t, func(s *Server) {
		health = &Health{Services: []string{"test.Test"}}
		for path, m := range health.Methods() {
			s.Methods[path] = m
		}
	})
	client := healthpb.NewHealthClient(dial(t, address))
	check := func(service string) (healthpb.HealthCheckResponse_ServingStatus, error) {
		r, err := client.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
		return r.GetStatus(), err
	}
	got, err := check("")
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, got)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	watch, err := client.Watch(ctx, &healthpb.HealthCheckRequest{Service: "test.Test"})
	require.NoError(t, err)
	next := func() healthpb.HealthCheckResponse_ServingStatus {
		r, err := watch.Recv()
		require.NoError(t, err)
		return r.GetStatus()
	}
	require.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, next())
	health.SetServing(true)
	require.Equal(t, healthpb.HealthCheckResponse_SERVING, next())
	got, err = check("test.Test")
	require.NoError(t, err)
	require.Equal(t, healthpb.HealthCheckResponse_SERVING, got)
	_, err = check("no.Such")
	require.Equal(t, codes.NotFound, status.Code(err))
}

func TestShutdownFinishesStreamsWithOK(t *testing.T) {
	server, address, seen := serve(t, nil)
	c := dial(t, address)
	var streams []grpc.ClientStream
	for range 20 {
		s := open(t, c, method)
		require.NoError(t, s.SendMsg(wrapperspb.String("hello")))
		require.NoError(t, s.RecvMsg(&wrapperspb.StringValue{}))
		streams = append(streams, s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	server.Shutdown(ctx)
	for _, s := range streams {
		require.ErrorIs(t, s.RecvMsg(&wrapperspb.StringValue{}), io.EOF)
	}
	require.Equal(t, int64(20), seen.closed.Load())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.ErrorIs(t, server.Serve(l), ErrServerClosed)
}

// A peer that takes nothing holds up nobody: sending returns at once, and when too much has piled up its connection ends.
func TestPeerThatDoesNotRead(t *testing.T) {
	handlers := make(chan *Stream, 1)
	server, address, _ := serve(t, func(s *Server) {
		inner := s.Methods[method]
		s.Methods[method] = func(st *Stream) Handler { handlers <- st; return inner(st) }
	})
	p := rawDial(t, address)
	p.headers(1, method, false)
	st := <-handlers
	require.NoError(t, p.fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1<<31 - 1}))
	require.NoError(t, p.fr.WriteWindowUpdate(0, 1<<31-1-65535))
	require.NoError(t, p.fr.WritePing(false, [8]byte{})) // its answer says that the settings were seen
	for {
		f, err := p.fr.ReadFrame()
		require.NoError(t, err)
		if ping, ok := f.(*http2.PingFrame); ok && ping.IsAck() {
			break
		}
	}
	piece := make([]byte, 1<<20)
	require.Eventually(t, func() bool {
		began := time.Now()
		st.Send(piece)
		require.Less(t, time.Since(began), 5*time.Second)
		return server.Stats().Streams.Load() == 0
	}, 20*time.Second, time.Microsecond)
}

// raw is a client by hand.
type raw struct {
	t   *testing.T
	nc  net.Conn
	fr  *http2.Framer
	buf bytes.Buffer
	enc *hpack.Encoder
}

func rawDial(t *testing.T, address string) *raw {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close() })
	require.NoError(t, nc.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(nc, http2.ClientPreface)
	require.NoError(t, err)
	r := &raw{t: t, nc: nc, fr: http2.NewFramer(nc, nc)}
	r.enc = hpack.NewEncoder(&r.buf)
	require.NoError(t, r.fr.WriteSettings())
	return r
}

func (r *raw) headers(id uint32, path string, end bool) {
	r.t.Helper()
	r.buf.Reset()
	for _, f := range []hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: path},
		{Name: "content-type", Value: "application/grpc"},
	} {
		require.NoError(r.t, r.enc.WriteField(f))
	}
	require.NoError(r.t, r.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.buf.Bytes(), EndHeaders: true, EndStream: end}))
}

// until reads frames until one satisfies, or the connection ends: then it is nil.
func (r *raw) until(ok func(http2.Frame) bool) http2.Frame {
	for {
		f, err := r.fr.ReadFrame()
		if err != nil {
			return nil
		}
		if ok(f) {
			return f
		}
	}
}

func TestBrokenProtocol(t *testing.T) {
	message := append([]byte{0, 0, 0, 0, 5}, "hello"...)
	goAway := func(f http2.Frame) bool { _, ok := f.(*http2.GoAwayFrame); return ok }
	reset := func(f http2.Frame) bool { _, ok := f.(*http2.RSTStreamFrame); return ok }
	for name, c := range map[string]struct {
		do   func(r *raw)
		ends func(http2.Frame) bool // what the server answers; nil = it closes the connection
	}{
		"data on a stream that never was":      {func(r *raw) { _ = r.fr.WriteData(7, false, message) }, goAway},
		"a reset of one":                       {func(r *raw) { _ = r.fr.WriteRSTStream(7, http2.ErrCodeCancel) }, goAway},
		"a window of one":                      {func(r *raw) { _ = r.fr.WriteWindowUpdate(7, 1) }, goAway},
		"an even stream":                       {func(r *raw) { r.headers(2, method, false) }, goAway},
		"a window beyond all bounds":           {func(r *raw) { _ = r.fr.WriteWindowUpdate(0, 1<<31-1) }, goAway},
		"a window of a stream beyond all":      {func(r *raw) { r.headers(1, method, false); _ = r.fr.WriteWindowUpdate(1, 1<<31-1) }, goAway},
		"a push promise":                       {func(r *raw) { _ = r.fr.WriteRawFrame(http2.FramePushPromise, 4, 1, make([]byte, 8)) }, goAway},
		"headers that don't decode":            {func(r *raw) { _ = r.fr.WriteRawFrame(http2.FrameHeaders, 4, 1, []byte{0xff, 0xff, 0xff}) }, goAway},
		"a frame that is too large":            {func(r *raw) { _, _ = r.nc.Write([]byte{0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1}) }, goAway},
		"headers again that don't end it":      {func(r *raw) { r.headers(1, method, false); r.headers(1, method, false) }, reset},
		"no HTTP/2":                            {func(r *raw) { _, _ = r.nc.Write([]byte("GET / HTTP/1.1\r\n\r\n")) }, goAway},
		"a stream that ends within a message":  {func(r *raw) { r.headers(1, method, false); _ = r.fr.WriteData(1, true, message[:7]) }, ends},
		"data that says it is compressed":      {func(r *raw) { r.headers(1, method, false); _ = r.fr.WriteData(1, false, []byte{1, 0, 0, 0, 0}) }, ends},
		"a message of four gigabytes":          {func(r *raw) { r.headers(1, method, false); _ = r.fr.WriteData(1, false, []byte{0, 255, 255, 255, 255}) }, ends},
		"headers that end a stream of nothing": {func(r *raw) { r.headers(1, method, true) }, ends},
	} {
		t.Run(name, func(t *testing.T) {
			server, address, _ := serve(t, nil)
			r := rawDial(t, address)
			c.do(r)
			require.NotNil(t, r.until(c.ends))
			if c.do != nil && server.Stats().BrokenConnections.Load() == 0 {
				// The connection goes on.
				r.headers(3, method, false)
				require.NoError(t, r.fr.WriteData(3, true, message))
				require.NotNil(t, r.until(func(f http2.Frame) bool {
					d, ok := f.(*http2.DataFrame)
					return ok && d.StreamID == 3 && bytes.Equal(d.Data(), message)
				}))
			}
		})
	}
}

func ends(f http2.Frame) bool { h, ok := f.(*http2.HeadersFrame); return ok && h.StreamEnded() }

// Whatever bytes come, the server neither panics nor leaves anything behind, and each handler is told of its end.
func FuzzConnection(f *testing.F) {
	var good bytes.Buffer
	fr := http2.NewFramer(&good, nil)
	_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":path", method}, {"content-type", "application/grpc"}} {
		_ = enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]})
	}
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true})
	_ = fr.WriteData(1, false, append([]byte{0, 0, 0, 0, 20}, make([]byte, 20)...))
	_ = fr.WriteWindowUpdate(1, 100)
	_ = fr.WritePing(false, [8]byte{})
	_ = fr.WriteData(1, true, []byte{0, 0, 0, 0, 0})
	f.Add(good.Bytes())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		n := &seen{}
		s := &Server{Methods: map[string]Method{method: func(st *Stream) Handler { n.begun.Add(1); return &echo{s: st, seen: n} }}}
		s.mu.conns = map[*conn]struct{}{}
		client, server := net.Pipe()
		s.start(server)
		go func() { _, _ = io.Copy(io.Discard, client) }()
		_ = client.SetWriteDeadline(time.Now().Add(10 * time.Second))
		_, err := client.Write(append([]byte(http2.ClientPreface), data...))
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, "it hangs")
		client.Close()
		s.running.Wait()
		require.Equal(t, n.begun.Load(), n.closed.Load())
	})
}
