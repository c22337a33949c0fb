package budget

// Stream is one request and its response in a worker's account.
//
// Of each message it knows what has passed (seen), and what was promised and has not (coming). What
// it can hold of the message is at most what has passed, and at most its cap; what it can come to
// hold is that and coming. As each byte that passes leaves coming and enters fresh in one step, the
// account's sums never miss it.
//
// What it likely holds is for comparisons alone, and no promise: an idle stream has most likely
// drained. The zero value is ready for Account.Open.
type Stream struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	allowed    allowance // first, for most chunks need no more of the stream
	state      state
	small      bool // it counts in the sum of small streams
	prev, next *Stream
	dir        [2]message
	cost       cost  // of its existence, with what it keeps
	kept       int64 // held for as long as it lives, whatever passes: its headers
	sum        *Sum  // of its key
	owner      any   // what it is part of
	pause      pause
	adds       part
}

// streams are the live ones of an account.
type streams struct {
	ring     Stream    // of which it is the neighbour of the first and of the last
	hidden   int       // of which not all is told that passes
	unbooked []*Stream // of whose responses something may pass unbooked
	swept    Time
	lapsed   []Lapse // in the last sweep
}

func (l *streams) init() { l.ring.prev, l.ring.next = &l.ring, &l.ring }

func (l *streams) add(s *Stream) {
	s.prev, s.next = l.ring.prev, &l.ring
	s.prev.next, s.next.prev = s, s
}

func (l *streams) remove(s *Stream) {
	s.prev.next, s.next.prev = s.next, s.prev
	s.prev, s.next = nil, nil
}

// list notes that something of the response may pass unbooked.
func (l *streams) list(s *Stream) {
	if s.allowed.at == 0 {
		l.unbooked = append(l.unbooked, s)
		s.allowed.at = len(l.unbooked)
	}
}

func (l *streams) unlist(s *Stream) {
	if s.allowed.at == 0 {
		return
	}
	last := l.unbooked[len(l.unbooked)-1]
	l.unbooked[s.allowed.at-1], last.allowed.at = last, s.allowed.at
	l.unbooked[len(l.unbooked)-1] = nil
	l.unbooked, s.allowed.at = l.unbooked[:len(l.unbooked)-1], 0
}

// state is what a stream is to the books.
//
//	closed → ordinary ↔ shadow → closed
//	         ordinary → presumed → presumedEnded → ordinary → …
//
// Ordinary: each byte is booked as it passes. Shadow: what passes counts apart. Presumed: all that
// its response can hold is reserved, and what passes needs no booking; presumedEnded: and it has
// ended.
type state uint8

const (
	closed state = iota
	ordinary
	shadow
	presumed
	presumedEnded
)

// allowance is how much of a response may pass before anything is to be booked.
type allowance struct {
	left    int64
	granted int64 // what left began with
	at      int   // place in streams.unbooked, from 1 on; 0 = it is not there
}

// part is what a stream has added to the sums of its account, so that it can be taken back exactly.
type part struct {
	likely, bounds, exposure, small int64
}

// pause is what a paused request may leave unread.
type pause struct {
	cost   int64 // 0 = it is not paused
	coming int64 // of it, what counts as coming, because what comes is not seen
}

// Sum is what the streams of one key have together, bytes. The zero value is a key without any.
type Sum struct {
	Coming  int64 // announced or forecast, and still to come
	Likely  int64 // likely held, what ended responses left unread included
	Small   int64 // coming and likely held of small streams
	Streams int64 // how many there are
}

// Open begins a stream, part of owner and in the sum of a key, with what its existence costs in
// bytes, and with what it keeps beside, for as long as it lives; caps are what Envoy may hold of
// its request, 0 if that has no body, and of its response. s must be the zero value.
func (a *Account) Open(now Time, s *Stream, owner any, sum *Sum, costs, kept, requestCap, responseCap int64) {
	s.state, s.small, s.cost, s.kept, s.sum, s.owner = ordinary, true, cost{costs + kept, a.fresh.gen}, kept, sum, owner
	s.dir[Request].begin(now, a.fresh.gen, requestCap)
	s.dir[Response].begin(now, a.fresh.gen, responseCap)
	s.dir[Request].ended = requestCap == 0
	a.streams.add(s)
	s.sum.Streams++
	a.own.Streams++
	a.addFresh(costs + kept)
	s.adds.exposure = kept + requestCap + responseCap
	a.own.Exposure += s.adds.exposure
	if kept > 0 {
		s.settle(a, now)
	}
}

// Move takes the stream from its key's sum into that of another.
func (a *Account) Move(s *Stream, to *Sum) {
	coming := s.dir[Request].coming + s.dir[Response].coming
	from := s.sum
	from.Coming -= coming
	to.Coming += coming
	from.Streams--
	to.Streams++
	if s.state != shadow {
		from.Likely -= s.adds.likely
		from.Small -= s.adds.small
		to.Likely += s.adds.likely
		to.Small += s.adds.small
	}
	s.sum = to
}

// Enlarge takes the stream out of the small sum for good.
func (a *Account) Enlarge(now Time, s *Stream) {
	if s.small {
		s.small = false
		s.settle(a, now)
	}
}

// Close ends the stream. Exactly once; a second one does nothing.
func (a *Account) Close(now Time, s *Stream) {
	if s.state == closed {
		return
	}
	a.unpresume(s)
	if s.hides() {
		a.streams.hidden--
	}
	a.Unpause(s)
	a.finish(now, s, Request)
	a.finish(now, s, Response)
	a.fresh.giveBack(s.cost.gen, s.cost.bytes-s.kept)
	a.fresh.giveBackLater(s.cost.gen, s.kept)
	s.uncount(a)
	a.own.Exposure -= s.adds.exposure
	s.adds = part{}
	s.sum.Streams--
	a.own.Streams--
	a.streams.remove(s)
	s.state = closed
}

// Presumed says whether what the response can hold is reserved for it, and nothing of it is looked
// at.
func (s *Stream) Presumed() bool { return s.state >= presumed }

// Shadow says that the stream is one: see Account.Shade.
func (s *Stream) Shadow() bool { return s.state == shadow }

// Small says whether the stream still counts as small.
func (s *Stream) Small() bool { return s.small }

// Seen is how many bytes of the direction have passed.
func (s *Stream) Seen(d Direction) int64 {
	if d == Response {
		return s.dir[d].seen + s.unbooked()
	}
	return s.dir[d].seen
}

// unbooked is what has passed of what is free.
func (s *Stream) unbooked() int64 { return s.allowed.granted - s.allowed.left }

// Unbooked is how much of what has passed of the response is not booked yet, and part of what is
// reserved.
func (s *Stream) Unbooked() int64 { return min(s.unbooked(), s.dir[Response].coming) }

// Kept is what the stream holds for as long as it lives, whatever passes, bytes.
func (s *Stream) Kept() int64 { return s.kept }

// Likely is what the stream likely holds, bytes.
func (s *Stream) Likely() int64 { return s.adds.likely }

// Length is what the headers of the direction have announced, bytes, or Unknown.
func (s *Stream) Length(d Direction) int64 { return s.dir[d].length }

// Lengthless says that the message has a body and announced no length: it teaches the forecast.
func (s *Stream) Lengthless(d Direction) bool {
	m := &s.dir[d]
	return m.expected && m.length == Unknown && !m.unseen()
}

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

// Beyond says that a message has outgrown its entitlement: it has passed what was ever reserved for
// it, and what was reserved is less than Envoy could hold of it anyway.
func (s *Stream) Beyond(d Direction) bool {
	m := &s.dir[d]
	return m.seen > m.reserved && m.reserved < m.cap
}

// Lapsed says that something of the message's reservation was taken back because it did not come.
func (s *Stream) Lapsed(d Direction) bool { return s.dir[d].lapsed }

// Cap is what Envoy may hold of the message.
func (s *Stream) Cap(d Direction) int64 { return s.dir[d].cap }

// Awaited is how many bytes are counted as coming while the request is paused, because nobody sees
// them come.
func (s *Stream) Awaited() int64 { return s.pause.coming }
