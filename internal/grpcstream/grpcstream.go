// Package grpcstream serves gRPC streams that live long and say little, without a goroutine for each: ten thousand of them
// are as many small structs. One goroutine per connection reads, and calls the handlers of its streams; what is sent is
// queued and never blocks, so that a peer that does not read holds up nobody else.
//
// It speaks what a gRPC server needs of HTTP/2 (on golang.org/x/net/http2's framer) and no more: no compression, no
// deadlines, no reflection.
package grpcstream

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
)

// Handler is one stream. Message and End are called one after the other; Closed may come at any time, even while one of them runs.
type Handler interface {
	// Message is called with each message. The bytes are the handler's for the time of the call.
	Message(data []byte)
	// End says that the client will send no more. The stream goes on until Finish.
	End()
	// Closed is called exactly once, however the stream ended. Nothing that is sent afterwards goes anywhere.
	Closed()
}

// Leaver is a Handler that knows when its stream may end, where the server does. Without it that is at once.
type Leaver interface {
	// Leave has the stream finished as soon as that does no harm.
	Leave()
}

// Method begins a stream.
type Method func(s *Stream) Handler

// Server serves streams. Its fields must not change once Serve is called.
type Server struct {
	Methods    map[string]Method // by path: /package.Service/Method
	MaxMessage int               // bytes of a message; 0 = 4 MiB
	Log        *slog.Logger      // of connections that break the protocol; nil = nowhere
	Handled    func(path string, code codes.Code)
	TLS        *tls.Config // nil = none

	mu struct {
		sync.Mutex
		listeners map[net.Listener]struct{}
		conns     map[*conn]struct{}
		closing   bool
	}
	running sync.WaitGroup
	stats   Stats
}

// Stats are counters of a server, since its start.
type Stats struct {
	Connections, Streams       atomic.Int64 // open now
	Started, Received, Sent    atomic.Int64 // streams, messages
	BrokenConnections, Refused atomic.Int64 // ended for breaking the protocol; streams of methods that there are not
}

// Stats returns the server's counters.
func (s *Server) Stats() *Stats { return &s.stats }

const (
	defaultMaxMessage = 4 << 20
	handshakeWithin   = 10 * time.Second
	// writeWithin: a peer that has taken nothing for so long, or lets maxQueued pile up, is gone.
	writeWithin = 30 * time.Second
	maxQueued   = 64 << 20
	// lastWords is how long the ends of streams may take to go out, at the end of the server.
	lastWords = time.Second
)

// ErrServerClosed is what Serve returns after Shutdown.
var ErrServerClosed = errors.New("the server is closed")

// Serve accepts connections until the listener fails or Shutdown is called.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.mu.closing {
		s.mu.Unlock()
		l.Close()
		return ErrServerClosed
	}
	if s.mu.listeners == nil {
		s.mu.listeners, s.mu.conns = map[net.Listener]struct{}{}, map[*conn]struct{}{}
	}
	s.mu.listeners[l] = struct{}{}
	s.mu.Unlock()
	for pause := time.Duration(0); ; {
		nc, err := l.Accept()
		switch {
		case err == nil:
			pause = 0
			s.start(nc)
		case s.closing():
			return ErrServerClosed
		case errors.Is(err, net.ErrClosed):
			return err
		default: // too many open files, say: what has been accepted goes on
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log().Warn("accept a connection", "error", err, "again in", pause)
			time.Sleep(pause)
		}
	}
}

func (s *Server) closing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.closing
}

func (s *Server) log() *slog.Logger {
	if s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return s.Log
}

func (s *Server) start(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	if s.mu.closing {
		s.mu.Unlock()
		nc.Close()
		return
	}
	s.mu.conns[c] = struct{}{}
	s.running.Add(2)
	s.mu.Unlock()
	s.stats.Connections.Add(1)
	go func() {
		defer s.running.Done()
		c.read()
		s.mu.Lock()
		delete(s.mu.conns, c)
		s.mu.Unlock()
		s.stats.Connections.Add(-1)
	}()
	go func() {
		defer s.running.Done()
		c.write()
	}()
}

// Shutdown accepts no more, has all streams finished with OK, waits for those that need some time for that until ctx ends, ends the
// rest with UNAVAILABLE, lets what is queued go out, closes the connections and returns when everything has ended.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.mu.closing = true
	for l := range s.mu.listeners {
		l.Close()
	}
	var conns []*conn
	for c := range s.mu.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.goAway()
	}
	for _, c := range conns {
		for _, st := range c.streams() {
			st.leave()
		}
	}
	for _, c := range conns {
		c.emptied(ctx)
		for _, st := range c.streams() {
			st.Finish(codes.Unavailable, "the server is ending")
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	for _, c := range conns {
		c.flushed(last)
		c.close()
	}
	s.running.Wait()
}
