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

const (
	// What was announced and does not come is not waited for: an upload's sender may pause, an
	// upstream that has sent its headers hardly ever does.
	requestLapse  = 2 * time.Second
	responseLapse = 300 * time.Millisecond
	// Of a message whose bytes nobody tells, what was reserved is in a reading by then, or does not
	// come: with the times above an Envoy that is told nothing but headers reached less than half
	// of its throughput.
	unseenLapse = time.Second
	// From trickleAfter on, a request's coming is bounded by what it has lately shown to bring.
	trickleAfter = 500 * time.Millisecond
	trickleFloor = 64 << 10

	recent = time.Second // who has moved within it likely still holds all of its bound
)

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

// Stream is one request and its response in a worker's account. The zero value is ready for
// Account.Open.
type Stream struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	free    int64 // so much of the response may pass before anything is to be booked: first, for most chunks need no more of the stream
	granted int64 // what free began with
	at      int   // place in Account.free; 0 = it is not there
	// Its response may hold all that is reserved for it, for all that is known: see
	// Account.Presume.
	presumed bool
	over     bool // and has ended
	shadow   bool // see Account.Shade

	prev, next *Stream
	dir        [2]message
	live       bool
	small      bool
	cost       int64  // of its existence, still fresh while gen is
	gen        uint32 // generation in which the cost was added
	sum        *Sum   // of its key
	owner      any    // what it is part of
	paused     int64  // pause cost while it is paused, else 0
	awaited    int64  // of it, what counts as coming, because what comes is not seen

	// What it has added to the sums of its account, so that they can be taken back exactly.
	likely, bounds, exposure, smallSum int64
}

// Presumed says whether what the response can hold is reserved for it, and nothing of it is looked
// at.
func (s *Stream) Presumed() bool { return s.presumed }

// EndsUnbooked notes that a presumed response has ended, and says whether that is all there is to do; else
// it is for Account.End.
func (s *Stream) EndsUnbooked() bool {
	s.over = s.presumed
	return s.presumed
}

// Small says whether the stream still counts as small.
func (s *Stream) Small() bool { return s.small }

// Seen is how many bytes of the direction have passed.
func (s *Stream) Seen(d Direction) int64 {
	if d == Response {
		return s.dir[d].seen + s.unbooked()
	}
	return s.dir[d].seen
}

// PassesUnbooked notes n more bytes of the response, and says whether that is all there is to do:
// they need no booking. Else they are for Account.Pass.
func (s *Stream) PassesUnbooked(n int64) bool {
	if s.free < n {
		return false
	}
	s.free -= n
	return true
}

// unbooked is what has passed of what is free.
func (s *Stream) unbooked() int64 { return s.granted - s.free }

// Likely is what the stream likely holds, bytes.
func (s *Stream) Likely() int64 { return s.likely }

// Length is what the headers of the direction have announced, bytes, or Unknown.
func (s *Stream) Length(d Direction) int64 { return s.dir[d].length }

// Held is the most that the stream can hold of what it has moved in the direction, bytes.
func (s *Stream) Held(d Direction) int64 {
	if m := &s.dir[d]; !m.unseen() {
		return min(s.Seen(d), m.cap)
	}
	return s.dir[d].bound()
}

// Expected says whether the headers of the direction have been seen.
func (s *Stream) Expected(d Direction) bool { return s.dir[d].expected }

// Ended says whether the direction has ended.
func (s *Stream) Ended(d Direction) bool { return s.dir[d].ended }

// Reserved is how many bytes are still reserved for the direction.
func (s *Stream) Reserved(d Direction) int64 { return s.dir[d].coming }

// Unbooked is how much of what has passed of the response is not booked yet, and part of what is
// reserved.
func (s *Stream) Unbooked() int64 { return min(s.unbooked(), s.dir[Response].coming) }

// Awaited is how many bytes are counted as coming while the request is paused, because nobody sees
// them come.
func (s *Stream) Awaited() int64 { return s.awaited }

// weight is how much of its bound a stream likely holds: all while bytes moved within the last
// second or announced ones are missing, else half of it for each second, down to a tenth: an idle
// stream has most likely drained.
func weight(idle Time) float64 {
	switch {
	case idle < recent:
		return 1
	case idle < 2*recent:
		return 0.5
	case idle < 3*recent:
		return 0.25
	case idle < 4*recent:
		return 0.125
	}
	return 0.1
}

// settle brings the stream's part in the sums of its account up to date.
func (s *Stream) settle(a *Account, now Time) {
	if s.shadow {
		s.settleShadow(a, now)
		return
	}
	req, res := &s.dir[Request], &s.dir[Response]
	bounds := req.bound() + res.bound()
	likely := bounds
	if !req.missing() && !res.missing() {
		if w := weight(now - max(req.moved, res.moved)); w < 1 {
			likely = int64(w * float64(bounds))
		}
	}
	var smallSum int64
	if s.small && !s.presumed {
		smallSum = req.coming + res.coming + likely
	}
	exposure := req.open() + res.open()
	a.own.Likely += likely - s.likely
	a.own.Bounds += bounds - s.bounds
	a.own.Exposure += exposure - s.exposure
	a.own.Small += smallSum - s.smallSum
	s.sum.Likely += likely - s.likely
	s.sum.Small += smallSum - s.smallSum
	s.likely, s.bounds, s.exposure, s.smallSum = likely, bounds, exposure, smallSum
}

// settleShadow is settle of a shadow: what it holds is in a sum of its own.
func (s *Stream) settleShadow(a *Account, now Time) {
	req, res := &s.dir[Request], &s.dir[Response]
	bounds := req.bound() + res.bound()
	likely := bounds
	if !req.missing() && !res.missing() {
		likely = int64(weight(now-max(req.moved, res.moved)) * float64(bounds))
	}
	exposure := req.open() + res.open()
	a.own.Shadows.Likely += likely - s.likely
	a.own.Exposure += exposure - s.exposure
	s.likely, s.bounds, s.exposure = likely, bounds, exposure
}

// uncount takes the stream's part in the sums back, but for its exposure.
func (s *Stream) uncount(a *Account) {
	if s.shadow {
		a.own.Shadows.Likely -= s.likely
		return
	}
	a.own.Likely -= s.likely
	a.own.Bounds -= s.bounds
	a.own.Small -= s.smallSum
	s.sum.Likely -= s.likely
	s.sum.Small -= s.smallSum
}

// Shadow says that the stream is one: see Account.Shade.
func (s *Stream) Shadow() bool { return s.shadow }

// lapse takes back what is reserved and does not come.
func (s *Stream) lapse(a *Account, now Time) {
	if s.paused > 0 || s.presumed {
		return
	}
	late := responseLapse
	switch m := &s.dir[Response]; {
	case !m.expected:
		late = requestLapse // anticipated at the request's headers: the upstream may take its time
	case m.unseen():
		late = unseenLapse
	}
	if m := &s.dir[Response]; m.coming > 0 && now-m.moved >= late {
		a.unreserve(s, m, m.coming)
		m.lapsed = true
		a.revoke(s)
	}
	m := &s.dir[Request]
	switch idle := now - m.moved; {
	case m.coming == 0:
	case m.unseen():
		if idle >= unseenLapse {
			a.unreserve(s, m, m.coming)
			m.lapsed = true
			m.seen = max(m.length, m.reserved) // so that it does not seem to be missing as long as its upstream works
		}
	case idle >= requestLapse:
		a.unreserve(s, m, m.coming)
		m.lapsed = true
	case now-m.begun >= trickleAfter:
		m.roll(now)
		// Neither who announces and never sends nor who trickles may lock the others out.
		if most := 2*(m.burst[0]+m.burst[1]) + trickleFloor; m.coming > most {
			a.unreserve(s, m, m.coming-most)
			m.lapsed = true
		}
	}
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
