package extproc

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/highwater-envoy/highwater/internal/backlog"
	"github.com/highwater-envoy/highwater/internal/quiet"
)

// What a peer of the gRPC port may have. Envoy needs one connection per worker and one stream per
// request in flight; it opens another connection where one has no stream left. TestAttacks shows
// what a hostile peer reaches within these.
const (
	maxConnections          = 1024
	maxStreams              = 32 << 10 // of all connections: a stream holds some 16 KiB here, and twice that in Envoy
	maxStreamsPerConnection = 8 << 10
	// maxMessage is the size of the largest message. Envoy sends what it has buffered of a held
	// request in one piece: more than 1 MiB with its default buffers, and as much as the window of
	// an HTTP/2 stream, which is 16 MiB unless it is lowered.
	maxMessage      = 16 << 20
	maxUnanswered   = 24 << 20 // what all messages together hold that came and were not answered: see package backlog
	maxHeaderList   = 16 << 10 // of the gRPC request itself, kept as long as its stream; those of the HTTP request are in a message
	handshakeWithin = 10 * time.Second
	// What a client may send before we ask for more. What does not fit waits in Envoy, in the
	// memory that is guarded: with 64 KiB a stream, 100 uploads without a length peaked at 1.10 of
	// the limit in place of 0.71. What it holds here is bounded by maxUnanswered.
	streamWindow = 1 << 20
	connWindow   = 16 << 20
	idleFor      = 5 * time.Minute
	pingAfter    = 30 * time.Second // a peer that says nothing for so long is asked whether it is there
	pingWithin   = 20 * time.Second // and gone without an answer in so long
	pingsEvery   = time.Second      // a peer that pings more often than this is closed
)

// GRPC serves a Server's streams, and gRPC health. Make it with NewGRPC.
type GRPC struct {
	server  *Server
	grpc    *grpc.Server
	health  *health.Server
	log     *quiet.Log                         // of what peers cause
	handled map[string]*[numCodes]atomic.Int64 // what ended, by method and status; "" = a method that is not known

	backlog             backlog.Bound
	connections, broken atomic.Int64 // open now; closed for what their peer did
	limited             atomic.Pointer[limited]
	ending              context.Context //nolint:containedctx // of the server: Watch ends with it
	end                 context.CancelFunc
}

const numCodes = int(codes.Unauthenticated) + 1

// ServiceName is the gRPC service that the server is.
var ServiceName = extprocv3.ExternalProcessor_ServiceDesc.ServiceName

// Settings are what bounds a peer of a gRPC server, and suit many streams that say little.
func Settings() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxConcurrentStreams(maxStreamsPerConnection), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxHeaderListSize(maxHeaderList),
		grpc.StaticStreamWindowSize(streamWindow), grpc.StaticConnWindowSize(connWindow), // else they grow to 16 MiB
		grpc.ConnectionTimeout(handshakeWithin),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleFor, Time: pingAfter, Timeout: pingWithin}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingsEvery, PermitWithoutStream: true}),
	}
}

// LogGRPC has what grpc-go logs of itself in log, for the whole process: its errors alone, and one
// a second.
func LogGRPC(log *slog.Logger) {
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, quiet.New(log, time.Second).Standard().Writer()))
}

// NewGRPC returns a gRPC server for s. secured is nil for plain text. Call Serve, and Shutdown
// once.
func NewGRPC(s *Server, secured *tls.Config) *GRPC {
	g := &GRPC{server: s, health: health.NewServer(), log: quiet.New(s.log, time.Second), handled: map[string]*[numCodes]atomic.Int64{}}
	security := insecure.NewCredentials()
	if secured != nil {
		security = credentials.NewTLS(secured)
	}
	g.backlog.Most, g.backlog.Closed = maxUnanswered, func(peer net.Addr, by int64) {
		g.broken.Add(1)
		g.log.Warn("a connection was closed: of all it had sent the most that was not answered, or not finished", "peer", peer.String(),
			"bytes", by, "all may have", maxUnanswered)
	}
	g.SetServing(false)
	g.grpc = grpc.NewServer(append(Settings(),
		grpc.Creds(handshake{security, g}), grpc.ForceServerCodecV2(newCodec()), grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(g.call), grpc.StreamInterceptor(g.stream),
		grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
			return status.Error(codes.Unimplemented, "there is no such method here: it is "+ServiceName+" and gRPC health")
		}),
	)...)
	g.grpc.RegisterService(&grpc.ServiceDesc{
		ServiceName: ServiceName, HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{StreamName: "Process", Handler: s.process, ServerStreams: true, ClientStreams: true}},
	}, s)
	g.ending, g.end = context.WithCancel(context.Background())
	healthpb.RegisterHealthServer(g.grpc, watched{g.health, g})
	for service, info := range g.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			g.handled["/"+service+"/"+m.Name] = &[numCodes]atomic.Int64{}
		}
	}
	g.handled[""] = &[numCodes]atomic.Int64{}
	return g
}

// SetServing changes what gRPC health answers.
func (g *GRPC) SetServing(serving bool) {
	is := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		is = healthpb.HealthCheckResponse_SERVING
	}
	g.health.SetServingStatus("", is)
	g.health.SetServingStatus(ServiceName, is)
}

// Serve accepts connections until the listener fails, or until Shutdown: then it returns nil.
func (g *GRPC) Serve(l net.Listener) error {
	limited := &limited{Listener: l, of: g}
	g.limited.Store(limited)
	return g.grpc.Serve(limited)
}

// greetWithin is how long a connection has for its first request once the server is to end.
const greetWithin = time.Second

// Shutdown accepts no more, lets in who waits, ends each stream with OK as soon as that does no
// harm, and the rest when ctx ends. It returns when all has ended.
func (g *GRPC) Shutdown(ctx context.Context) {
	g.health.Shutdown()
	g.end()
	g.server.Drain()
	// grpc-go waits for each handshake, for as long as that may take: even Stop does.
	greeted := time.AfterFunc(greetWithin, func() {
		if l := g.limited.Load(); l != nil {
			l.closeUnused()
		}
	})
	defer greeted.Stop()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		g.grpc.GracefulStop()
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		g.grpc.Stop()
		<-ended
	}
}

func (g *GRPC) call(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (res any, err error) {
	g.server.counts.started.Add(1)
	defer g.ended(info.FullMethod, &err)
	return next(ctx, req)
}

func (g *GRPC) stream(srv any, st grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	c := &g.server.counts
	c.started.Add(1)
	defer c.open.Add(-1)
	defer g.ended(info.FullMethod, &err)
	if c.open.Add(1) > maxStreams {
		return status.Errorf(codes.Unavailable, "there are %d streams already", maxStreams)
	}
	return next(srv, st)
}

// ended counts a stream that has ended, and ends a panic with it.
func (g *GRPC) ended(method string, err *error) {
	if fault := recover(); fault != nil {
		g.server.faulted(method, fault)
		*err = status.Error(codes.Internal, "a fault of highwater's")
	}
	n := g.handled[method]
	if n == nil {
		n = g.handled[""] // a path is what the peer likes: it is no label
	}
	if code := int(status.Code(*err)); code < numCodes {
		n[code].Add(1)
	}
}

// watched is gRPC health. What is watched is kept as long as the stream, and its name is what the
// peer likes: so it is one of ours, or nothing is watched. At the end of the server nobody watches
// any longer.
type watched struct {
	*health.Server
	of *GRPC
}

// Watch implements healthpb.HealthServer.
func (w watched) Watch(in *healthpb.HealthCheckRequest, st healthpb.Health_WatchServer) error {
	known := &healthpb.HealthCheckRequest{}
	switch in.GetService() {
	case "":
	case ServiceName:
		known.Service = ServiceName
	default:
		return status.Error(codes.NotFound, "there is no such service here")
	}
	ctx, cancel := context.WithCancel(st.Context())
	defer cancel()
	defer context.AfterFunc(w.of.ending, cancel)()
	return w.Server.Watch(known, watching{st, ctx})
}

// watching is a stream of Watch with another context.
type watching struct {
	healthpb.Health_WatchServer
	ctx context.Context //nolint:containedctx // it is the stream's
}

// Context implements grpc.ServerStream.
func (w watching) Context() context.Context { return w.ctx }

// methodName is the last part of a method's path.
func methodName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

// wireStream is a stream that can be ended while its goroutine waits for the next message.
type wireStream struct {
	grpc.ServerStream
	transport interface {
		WriteStatus(st *status.Status) error
	}
}

// onWire returns the stream as one that can be ended. grpc-go has no call for that: a handler ends
// its stream by returning, and the one that waits in RecvMsg can't; ended by its context, the peer
// is told CANCELLED. A second goroutine for each stream would cost a fifth more memory. What is
// behind a ServerTransportStream has the method, and TestShutdown would see if it had it no more.
func onWire(g grpc.ServerStream) (wireStream, error) {
	st := wireStream{ServerStream: g}
	var ok bool
	if st.transport, ok = grpc.ServerTransportStreamFromContext(g.Context()).(interface {
		WriteStatus(st *status.Status) error
	}); !ok {
		return st, status.Error(codes.Internal, "this grpc-go can't end a stream that waits")
	}
	return st, nil
}

// finish ends the stream with a status. What it waits for then fails, and only the first status
// counts.
func (s wireStream) finish(with *status.Status) { _ = s.transport.WriteStatus(with) }

// limited is a listener with so many connections at most. Beyond that one has to go: the oldest
// that never had a request, so that a flood of connections that say nothing drives out itself; else
// the oldest without one, which Envoy soon opens again; else the newest.
type limited struct {
	net.Listener
	of *GRPC
	mu struct {
		sync.Mutex
		conns []*peer // oldest first
	}
}

// Accept implements net.Listener.
func (l *limited) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		p := &peer{Conn: raw, of: l}
		if l.admit(p) {
			return p, nil
		}
	}
}

// admit adds a connection, and closes one that has to go for it.
func (l *limited) admit(p *peer) bool {
	l.mu.Lock()
	l.mu.conns = append(l.mu.conns, p)
	var goes *peer
	if len(l.mu.conns) > maxConnections {
		goes = p
		least := inUse
		for _, other := range l.mu.conns {
			if w := other.worth(); w < least {
				goes, least = other, w
			}
		}
	}
	l.mu.Unlock()
	l.of.connections.Add(1)
	if goes == nil {
		return true
	}
	l.of.broken.Add(1)
	l.of.log.Warn("a connection was closed: there are too many, and it had no request", "peer", goes.RemoteAddr().String(), "connections", maxConnections)
	_ = goes.Close()
	return goes != p
}

// closeUnused closes each connection that never had a request.
func (l *limited) closeUnused() {
	var unusedOnes []*peer
	l.mu.Lock()
	for _, p := range l.mu.conns {
		if p.worth() == unused {
			unusedOnes = append(unusedOnes, p)
		}
	}
	l.mu.Unlock()
	for _, p := range unusedOnes {
		_ = p.Close()
	}
}

// peer is a connection of a limited listener.
type peer struct {
	net.Conn
	of      *limited
	watched atomic.Pointer[backlog.Conn] // nil until the handshake
}

const (
	unused = iota // there never was a request
	idle
	inUse
)

func (p *peer) worth() int {
	w := p.watched.Load()
	if w == nil {
		return unused
	}
	switch streams, ever := w.Uses(); {
	case streams > 0:
		return inUse
	case ever:
		return idle
	}
	return unused
}

// Close implements net.Conn.
func (p *peer) Close() error {
	l := p.of
	l.mu.Lock()
	i := slices.Index(l.mu.conns, p)
	if i >= 0 {
		l.mu.conns = slices.Delete(l.mu.conns, i, i+1)
	}
	l.mu.Unlock()
	if i >= 0 {
		l.of.connections.Add(-1)
	}
	return p.Conn.Close()
}

// handshake tells of handshakes that fail, and has what passes on the others watched.
type handshake struct {
	credentials.TransportCredentials
	of *GRPC
}

// ServerHandshake implements credentials.TransportCredentials.
func (h handshake) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, info, err := h.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		h.of.broken.Add(1)
		h.of.log.Warn("a TLS handshake failed", "peer", raw.RemoteAddr().String(), "error", err)
		return nil, nil, err
	}
	watched := h.of.backlog.Watch(c)
	if p, ok := raw.(*peer); ok {
		p.watched.Store(watched)
	}
	return watched, info, nil
}

// Clone implements credentials.TransportCredentials.
func (h handshake) Clone() credentials.TransportCredentials {
	return handshake{h.TransportCredentials.Clone(), h.of}
}
