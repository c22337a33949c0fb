package budget

import "time"

// Direction of a message.
type Direction uint8

// The two directions of a stream.
const (
	Request Direction = iota
	Response
)

// Unknown is the size of a message that announces none.
const Unknown int64 = -1

// message is one direction of a stream.
type message struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	cap      int64 // the most that Envoy may hold of it, from its own settings
	length   int64 // announced, or Unknown
	seen     int64 // passed so far, without what is unbooked
	reserved int64 // the most that was ever reserved for it
	coming   int64 // reserved and not yet passed
	credit   int64 // of what will pass, this much is counted already: it came while the request was paused

	gen      uint32 // generation of the account in which genBytes were added
	genBytes int64

	moved  Time // the latest of headers, resume and last byte
	begun  Time // headers or resume
	burst  [2]int64
	second Time // start of burst[0]; burst[1] is what passed in the second before

	expected   bool // headers have been seen
	ended      bool
	lapsed     bool // something of the reservation was taken back
	told       bool // and the owner was told, where it had no length: see Account.Lapses
	awaited    bool // something was reserved before its headers, be it no bytes, and has not lapsed
	visibility Visibility
}

func (m *message) begin(now Time, gen uint32, most int64) {
	m.cap, m.length, m.gen, m.moved, m.begun, m.second = most, Unknown, gen, now, now, now
}

// bound is the most that can be held of what has passed. Where nobody tells that, it is what was
// announced or forecast.
func (m *message) bound() int64 {
	if m.unseen() {
		return min(m.reserved, m.cap)
	}
	return min(m.seen, m.cap)
}

// open is what the direction can come to hold at all: its share of the exposure.
func (m *message) open() int64 {
	if m.ended {
		return 0
	}
	if m.length != Unknown {
		return min(m.cap, m.length)
	}
	return m.cap
}

// missing says that announced bytes have not come: someone does not write, or does not read.
func (m *message) missing() bool { return !m.ended && m.length != Unknown && m.seen < m.length }

// fill is how much of n the message may add to the generation: no more than its cap in each.
func (m *message) fill(gen uint32, n int64) int64 {
	if m.gen != gen {
		m.gen, m.genBytes = gen, 0
	}
	n = max(min(n, m.cap-m.genBytes), 0)
	m.genBytes += n
	return n
}

// full says that what passes changes nothing: the message has added to the generation all that it
// may, and holds all that it can.
func (m *message) full(gen uint32) bool {
	return m.genBytes >= m.cap && m.gen == gen && m.reserved >= m.cap && m.seen >= m.cap
}

// roll moves the two one-second buckets of what has lately passed.
func (m *message) roll(now Time) {
	switch age := now - m.second; {
	case age < time.Second:
	case age < 2*time.Second:
		m.burst[0], m.burst[1], m.second = 0, m.burst[0], m.second+time.Second
	default:
		m.burst[0], m.burst[1], m.second = 0, 0, now
	}
}
