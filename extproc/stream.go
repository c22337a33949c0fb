package extproc

import (
	"errors"
	"fmt"
	"io"
	"sync"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/verdict"
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

// sender is the way back to the peer.
type sender interface {
	SendMsg(answer any) error   // may block until the peer has room for it, or until finish
	finish(with *status.Status) // may be called at any time; the first counts, and what waits fails
}

// maxPending is how many bytes may come while the answer to the headers is held.
const maxPending = 4 << 20

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

// refuse answers in place of the upstream, or, when a response has begun, has Envoy end it.
func (s *stream) refuse(v verdict.Verdict) {
	if s.phase == phaseOver {
		return
	}
	s.quit()
	s.send(s.immediate(v))
}

// resume lets a request go on that was held.
func (s *stream) resume(v verdict.Verdict) {
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
func (s *stream) reject(v verdict.Verdict) {
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
		// That of a request may come behind the headers of its response: gRPC.
		if response.missed() || request.missed() && response.headers {
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
		s.server.counts.waited(waited)
	}
}
