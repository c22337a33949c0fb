package backlog

import "encoding/binary"

// Kinds of frames, RFC 9113 section 6.
const (
	dataFrame         = 0x0
	headersFrame      = 0x1
	resetFrame        = 0x3
	continuationFrame = 0x9
)

const (
	endStream = 0x1 // of DATA and HEADERS
	padded    = 0x8
)

// scanner finds the frames in a stream of bytes. Its fields tell of the frame that it is in.
type scanner struct {
	header [9]byte
	have   int // bytes of the header
	kind   byte
	flags  byte
	stream uint32
	left   int  // bytes of the frame that are still to come
	data   int  // of these, those that are neither the length of padding nor padding
	pads   bool // the length of its padding is still to come
}

// next takes one step in p: the end of a frame's header, where begins is true, or a piece of the
// frame. data is what p has of the frame's data, if it is DATA.
func (s *scanner) next(p []byte) (data, rest []byte, begins bool) {
	if s.left == 0 {
		n := copy(s.header[s.have:], p)
		if s.have += n; s.have < len(s.header) {
			s.kind = 0xff // none, until the header is whole
			return nil, nil, false
		}
		s.have = 0
		s.left = int(s.header[0])<<16 | int(s.header[1])<<8 | int(s.header[2])
		s.kind, s.flags = s.header[3], s.header[4]
		s.stream = binary.BigEndian.Uint32(s.header[5:]) & (1<<31 - 1)
		s.data, s.pads = s.left, s.kind == dataFrame && s.flags&padded != 0
		return nil, p[n:], true
	}
	n := min(s.left, len(p))
	data, rest = p[:n], p[n:]
	s.left -= n
	if s.pads {
		s.pads = false
		s.data = max(s.data-1-int(data[0]), 0)
		data = data[1:]
	}
	data = data[:min(len(data), s.data)]
	s.data -= len(data)
	return data, rest, false
}

// ends says whether the frame is the last that its sender sends on the stream.
func (s *scanner) ends() bool {
	return (s.kind == dataFrame || s.kind == headersFrame) && s.flags&endStream != 0
}

// messages finds the ends of gRPC messages in the data of one direction of a stream: each has a
// prefix of five bytes, a flag and the length.
type messages struct {
	prefix [5]byte
	have   int
	left   int64
}

// pass returns how many messages end in the data.
func (m *messages) pass(data []byte) (ended int64) {
	for len(data) > 0 {
		if m.left == 0 {
			n := copy(m.prefix[m.have:], data)
			data = data[n:]
			if m.have += n; m.have < len(m.prefix) {
				return ended
			}
			m.have = 0
			if m.left = int64(binary.BigEndian.Uint32(m.prefix[1:])); m.left == 0 {
				ended++
				continue
			}
		}
		n := min(m.left, int64(len(data)))
		data = data[n:]
		if m.left -= n; m.left == 0 {
			ended++
		}
	}
	return ended
}
