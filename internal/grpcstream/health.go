package grpcstream

import (
	"sync"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
)

// Health is the gRPC health service of the whole server (service "") and of the services that it is told. The zero value
// says NOT_SERVING.
type Health struct {
	Services []string // known beside ""; must not change once it is served

	mu struct {
		sync.Mutex
		serving  bool
		watchers map[*watcher]struct{}
	}
}

// Methods are the service's.
func (h *Health) Methods() map[string]Method {
	return map[string]Method{
		healthpb.Health_Check_FullMethodName: func(s *Stream) Handler { return &checker{health: h, stream: s} },
		healthpb.Health_Watch_FullMethodName: func(s *Stream) Handler { return &watcher{health: h, stream: s} },
	}
}

// SetServing changes what is answered, and tells those who watch.
func (h *Health) SetServing(serving bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.serving == serving {
		return
	}
	h.mu.serving = serving
	for w := range h.mu.watchers {
		w.stream.Send(h.answer())
	}
}

// answer is a message, with the lock held.
func (h *Health) answer() []byte {
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if h.mu.serving {
		status = healthpb.HealthCheckResponse_SERVING
	}
	out, err := proto.Marshal(&healthpb.HealthCheckResponse{Status: status})
	if err != nil {
		panic(err) // there is nothing in it that could fail
	}
	return out
}

func (h *Health) known(data []byte, s *Stream) bool {
	var request healthpb.HealthCheckRequest
	if err := proto.Unmarshal(data, &request); err != nil {
		s.Finish(codes.InvalidArgument, "not a HealthCheckRequest: "+err.Error())
		return false
	}
	known := request.GetService() == ""
	for _, name := range h.Services {
		known = known || name == request.GetService()
	}
	return known
}

type checker struct {
	health *Health
	stream *Stream
}

func (c *checker) Message(data []byte) {
	if !c.health.known(data, c.stream) {
		c.stream.Finish(codes.NotFound, "unknown service")
		return
	}
	c.health.mu.Lock()
	answer := c.health.answer()
	c.health.mu.Unlock()
	c.stream.Send(answer)
	c.stream.Finish(codes.OK, "")
}

func (c *checker) End() { c.stream.Finish(codes.Internal, "no request came") }

func (c *checker) Closed() {}

type watcher struct {
	health *Health
	stream *Stream
	gone   bool // with health.mu held
}

func (w *watcher) Message(data []byte) {
	h := w.health
	known := h.known(data, w.stream)
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.gone {
		return
	}
	if !known {
		out, err := proto.Marshal(&healthpb.HealthCheckResponse{Status: healthpb.HealthCheckResponse_SERVICE_UNKNOWN})
		if err == nil {
			w.stream.Send(out)
		}
		return
	}
	if h.mu.watchers == nil {
		h.mu.watchers = map[*watcher]struct{}{}
	}
	h.mu.watchers[w] = struct{}{}
	w.stream.Send(h.answer())
}

// End implements Handler: a client of a server's stream sends one message and ends its side. It is told on.
func (w *watcher) End() {}

func (w *watcher) Closed() {
	w.health.mu.Lock()
	defer w.health.mu.Unlock()
	w.gone = true
	delete(w.health.mu.watchers, w)
}
