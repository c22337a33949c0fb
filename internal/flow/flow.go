// Package flow follows one HTTP/2 connection by the frames that pass a filter in front of its
// codec: how much of each response the codec holds, because its client does not take it (RFC 9113,
// 5.2: flow control).
//
// Frames name streams by their ids, and Envoy tells a filter of a request no id. So a request gets
// its id by order: within what was read at once, requests come to filters as their HEADERS frames
// do. And it is believed only when its response confirms it: the HEADERS frames of responses are
// written in the order in which their headers passed the filters. Where the two do not agree, or
// where a client would take more and nothing is written, the connection is lost: from then on
// nothing of it is held back. The second is so as well where another filter changes what passes
// behind this one.
package flow

import "encoding/binary"

// Frame types and flags of RFC 9113, 6.
const (
	data         = 0x0
	headers      = 0x1
	settings     = 0x4
	windowUpdate = 0x8
	ack          = 0x1
)

const (
	headerBytes   = 9     // RFC 9113, 4.1
	firstWindow   = 65535 // RFC 9113, 6.9.2
	initialWindow = 0x4   // RFC 9113, 6.5.2: the setting
	settingBytes  = 6
)

// Preface is what a client sends first on an HTTP/2 connection (RFC 9113, 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Connection is one connection. The zero value is not ready: see New. It is not safe for concurrent
// use.
type Connection struct {
	in, out   scanner
	initial   int64 // SETTINGS_INITIAL_WINDOW_SIZE of the client
	window    int64 // of the connection, that is left
	newest    uint32
	streams   map[uint32]*Stream
	coming    []uint32  // ids of this read whose requests have not come to the filter
	answering []*Stream // whose responses' headers have passed and are not written yet
	lost      bool
}

// Stream is one request and its response. The zero value is one that nothing is known of.
type Stream struct {
	id        uint32
	confirmed bool
	answered  bool  // its response's headers have passed
	passed    int64 // of its response, through the filter
	sent      int64 // and was written
	updates   int64 // of its window
}

// New is a connection whose client has sent nothing yet.
func New() *Connection {
	c := &Connection{initial: firstWindow, window: firstWindow, streams: map[uint32]*Stream{}}
	c.in.skip = len(Preface)
	return c
}

// maxComing: of one read no more requests are followed.
const maxComing = 1024 // TestRequestsOfAReadAreBounded

// BeginRead says that what follows was read at once. Requests of the read before that have not come
// do not come any more.
func (c *Connection) BeginRead() { c.coming = c.coming[:0] }

// Read takes a piece of what the client sent, before the codec does.
func (c *Connection) Read(p []byte) {
	if c.lost {
		return
	}
	c.in.scan(p, func(f *frame) {
		switch {
		case f.kind == headers && f.stream > c.newest:
			c.newest = f.stream
			if len(c.coming) < maxComing {
				c.coming = append(c.coming, f.stream)
			}
		case f.kind == windowUpdate:
			c.update(f.stream, int64(binary.BigEndian.Uint32(f.payload[:])&^(1<<31)))
		case f.kind == settings && f.flags&ack == 0:
			if binary.BigEndian.Uint16(f.payload[:]) == initialWindow {
				c.initial = int64(binary.BigEndian.Uint32(f.payload[2:]))
			}
		}
	})
}

func (c *Connection) update(stream uint32, n int64) {
	if stream == 0 {
		c.window += n
	} else if s := c.streams[stream]; s != nil {
		s.updates += n
	}
}

// Wrote takes a piece of what the codec has written.
func (c *Connection) Wrote(p []byte) {
	if c.lost {
		return
	}
	c.out.scan(p, func(f *frame) {
		switch f.kind {
		case data:
			c.window -= int64(f.length)
			if s := c.streams[f.stream]; s != nil {
				s.sent += int64(f.length)
			}
		case headers:
			c.confirm(c.streams[f.stream])
		}
	})
}

// confirm notes that headers of a response are written. Where those of its response have not passed
// yet they are informational (1xx), and where they were written already these are trailers.
func (c *Connection) confirm(s *Stream) {
	if s == nil || s.confirmed || !s.answered {
		return
	}
	if c.answering[0] != s {
		c.lost = true
		return
	}
	s.confirmed = true
	c.answering = c.answering[1:]
}

// Open notes that a request has come to the filter.
func (c *Connection) Open(s *Stream) {
	*s = Stream{}
	if len(c.coming) > 0 && !c.lost {
		s.id, c.coming = c.coming[0], c.coming[1:]
		c.streams[s.id] = s
	}
}

// Answer notes that the headers of its response pass.
func (c *Connection) Answer(s *Stream) {
	if s.id != 0 && !s.answered {
		s.answered = true
		c.answering = append(c.answering, s)
	}
}

// Pass notes that n bytes of its response pass.
func (c *Connection) Pass(s *Stream, n int64) { s.passed += n }

// Close notes that it has ended.
func (c *Connection) Close(s *Stream) {
	if s.id == 0 {
		return
	}
	delete(c.streams, s.id)
	for i, a := range c.answering {
		if a == s {
			c.answering = append(c.answering[:i:i], c.answering[i+1:]...)
			break
		}
	}
	s.id = 0
}

// Backlog is how much of what has passed of its response the codec holds, bytes; 0 where that is
// not known.
func (c *Connection) Backlog(s *Stream) int64 {
	if c.lost || !s.confirmed {
		return 0
	}
	return max(s.passed-s.sent, 0)
}

// Takes says that the client would take more of its response: the codec has no reason to hold any.
func (c *Connection) Takes(s *Stream) bool {
	return c.window > 0 && c.initial+s.updates-s.sent > 0
}

// Lose has nothing of the connection be held back any more.
func (c *Connection) Lose() { c.lost = true }

// Lost says that it is.
func (c *Connection) Lost() bool { return c.lost }

// frame is one frame's header, and of its payload what is needed, once in each settingBytes for
// SETTINGS.
type frame struct {
	kind, flags byte
	stream      uint32
	length      int
	payload     [settingBytes]byte
}

// scanner takes frames apart, in whatever pieces they come.
type scanner struct {
	frame  frame
	header [headerBytes]byte
	has    int // of the header, or of the payload's part that is needed
	left   int // of the payload
	needs  int // of it next; 0 = none
	skip   int
}

func (x *scanner) scan(p []byte, each func(f *frame)) {
	for len(p) > 0 {
		switch {
		case x.skip > 0:
			n := min(x.skip, len(p))
			p, x.skip = p[n:], x.skip-n
		case x.needs > 0:
			n := copy(x.frame.payload[x.has:x.needs], p)
			p, x.has = p[n:], x.has+n
			if x.has == x.needs {
				each(&x.frame)
				x.left -= x.needs
				x.next()
			}
		default:
			n := copy(x.header[x.has:], p)
			p, x.has = p[n:], x.has+n
			if x.has == headerBytes {
				x.begin(each)
			}
		}
	}
}

// begin takes the header that is there.
func (x *scanner) begin(each func(f *frame)) {
	h := &x.header
	x.frame = frame{kind: h[3], flags: h[4], stream: binary.BigEndian.Uint32(h[5:]) &^ (1 << 31), length: int(h[0])<<16 | int(h[1])<<8 | int(h[2])}
	x.left = x.frame.length
	if k := x.frame.kind; k != windowUpdate && k != settings {
		each(&x.frame)
	}
	x.next()
}

// next says what of the rest of the payload is needed, and what is skipped.
func (x *scanner) next() {
	x.has, x.needs = 0, 0
	switch k := x.frame.kind; {
	case k == windowUpdate && x.left >= 4 && x.left == x.frame.length:
		x.needs = 4
	case k == settings && x.left >= settingBytes:
		x.needs = settingBytes
	default:
		x.skip = x.left
	}
}
