package grpcstream

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
)

// Stream is one gRPC stream. Its methods are safe for concurrent use and never block.
type Stream struct {
	conn    *conn
	id      uint32
	path    string
	handler Handler // nil until it has begun

	// Of the reading goroutine alone.
	consumed int64  // bytes since the last WINDOW_UPDATE
	partial  []byte // of a message that has not all come
	ended    bool   // its client sends no more

	// With conn.mu held.
	send    int64  // what may be sent on it
	queue   []byte // what the windows do not allow yet
	status  string // of the trailers, behind the queue; empty = they are not due
	message string
	begun   bool // the response's headers are out
	over    bool // all is out, or it is gone
	told    bool // Closed was called, or is to be
}

var (
	contentType = hpack.HeaderField{Name: "content-type", Value: "application/grpc"}
	ok200       = hpack.HeaderField{Name: ":status", Value: "200"}
)

// begin gives the stream its handler. It may have been finished meanwhile, by Shutdown.
func (s *Stream) begin(h Handler) {
	s.conn.mu.Lock()
	s.handler = h
	told := s.told
	s.conn.mu.Unlock()
	if told {
		h.Closed()
	}
}

// receive takes bytes of the body, and hands each message to the handler as soon as all of it is there.
func (s *Stream) receive(data []byte) {
	most := s.conn.server.MaxMessage
	if most == 0 {
		most = defaultMaxMessage
	}
	if len(s.partial) > 0 {
		s.partial = append(s.partial, data...)
		data = s.partial
	}
	for len(data) >= 5 {
		size := binary.BigEndian.Uint32(data[1:5])
		n := int(size)
		switch {
		case uint64(size) > uint64(most): // an int may have 32 bits, and be negative then
			s.Finish(codes.ResourceExhausted, fmt.Sprintf("a message of %d bytes is more than %d", size, most))
			s.partial = nil
			return
		case data[0] != 0:
			s.Finish(codes.Unimplemented, "a compressed message: compression is not supported")
			s.partial = nil
			return
		}
		if len(data) < 5+n {
			break
		}
		s.conn.server.stats.Received.Add(1)
		if s.live() {
			s.handler.Message(data[5 : 5+n])
		}
		data = data[5+n:]
	}
	switch {
	case len(data) == 0:
		s.partial = nil // most messages come in one piece: nothing is kept between them
	case len(s.partial) > 0:
		s.partial = s.partial[:copy(s.partial, data)]
	default:
		s.partial = append([]byte(nil), data...)
	}
}

func (s *Stream) live() bool {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	return !s.told
}

// end notes that the client sends no more.
func (s *Stream) end() {
	if s.ended {
		return
	}
	s.ended = true
	switch {
	case len(s.partial) > 0:
		s.Finish(codes.Internal, "the stream ended within a message")
	case s.live():
		s.handler.End()
	}
}

// Send sends a message.
func (s *Stream) Send(data []byte) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.over || s.status != "" || c.mu.ended {
		return
	}
	c.server.stats.Sent.Add(1)
	if !s.begun {
		s.begun = true
		c.fields(s.id, false, ok200, contentType)
	}
	p := prefix(len(data))
	if n := int64(len(p) + len(data)); len(s.queue) == 0 && n <= s.send && n <= c.mu.window {
		s.send -= n
		c.mu.window -= n
		c.mu.scratch = append(append(c.mu.scratch[:0], p[:]...), data...)
		c.frames(s.id, c.mu.scratch)
	} else {
		s.queue = append(append(s.queue, p[:]...), data...)
		s.unblock()
	}
	c.queued()
}

// queued has what was just queued written, with the lock held.
func (c *conn) queued() {
	if c.mu.out.Len() > maxQueued {
		c.end() // its reader will see that and end
		return
	}
	if !c.mu.reading {
		c.signal()
	}
}

// unblock sends what the windows allow, with the lock held.
func (s *Stream) unblock() {
	c := s.conn
	if s.over {
		delete(c.mu.blocked, s)
		return
	}
	if n := min(int64(len(s.queue)), s.send, c.mu.window); n > 0 {
		s.send -= n
		c.mu.window -= n
		c.frames(s.id, s.queue[:n])
		if s.queue = s.queue[n:]; len(s.queue) == 0 {
			s.queue = nil
		}
	}
	switch {
	case len(s.queue) > 0:
		c.mu.blocked[s] = struct{}{}
	case s.status != "":
		s.trailers()
	default:
		delete(c.mu.blocked, s)
	}
}

// trailers end the stream, with the lock held.
func (s *Stream) trailers() {
	c := s.conn
	fields := make([]hpack.HeaderField, 0, 4)
	if !s.begun {
		s.begun = true
		fields = append(fields, ok200, contentType)
	}
	fields = append(fields, hpack.HeaderField{Name: "grpc-status", Value: s.status})
	if s.message != "" {
		fields = append(fields, hpack.HeaderField{Name: "grpc-message", Value: percent(s.message)})
	}
	c.fields(s.id, true, fields...)
	if !s.ended {
		_ = c.framer.WriteRSTStream(s.id, http2.ErrCodeNo) // what it may still send is not wanted
	}
	c.forget(s)
}

// Finish ends the stream with a status, behind what was sent. Only the first counts.
func (s *Stream) Finish(code codes.Code, message string) {
	c := s.conn
	c.mu.Lock()
	if s.over || s.status != "" {
		c.mu.Unlock()
		return
	}
	s.status, s.message = strconv.Itoa(int(code)), message
	s.unblock()
	c.queued()
	c.mu.Unlock()
	s.closed(code)
}

// leave ends a stream because the server does.
func (s *Stream) leave() {
	s.conn.mu.Lock()
	h := s.handler
	s.conn.mu.Unlock()
	if l, ok := h.(Leaver); ok {
		l.Leave()
		return
	}
	s.Finish(codes.OK, "")
}

// gone ends a stream whose connection is.
func (s *Stream) gone() {
	s.conn.take(s.id)
	s.closed(codes.Unavailable)
}

// closed tells the handler, once.
func (s *Stream) closed(code codes.Code) {
	s.conn.mu.Lock()
	told, h := s.told, s.handler
	s.told = true
	s.conn.mu.Unlock()
	if told {
		return
	}
	server := s.conn.server
	server.stats.Streams.Add(-1)
	if server.Handled != nil {
		server.Handled(s.path, code)
	}
	if h != nil {
		h.Closed()
	}
}

// percent encodes a grpc-message (gRPC over HTTP/2: printable ASCII but % stays).
func percent(text string) string {
	var b strings.Builder
	for i := range len(text) {
		if c := text[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
