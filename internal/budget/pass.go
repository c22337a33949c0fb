package budget

// SetCap changes what Envoy may hold of a message, when it turns out which protocol it has.
func (a *Account) SetCap(now Time, s *Stream, d Direction, n int64) {
	s.dir[d].cap = n
	s.settle(a, now)
}

// Raise lets Envoy hold more of a message, when it turns out that a filter keeps it, and reserves n
// bytes beside what is reserved for it. The room has been asked for.
func (a *Account) Raise(now Time, s *Stream, d Direction, limit, n int64) {
	m := &s.dir[d]
	m.cap = limit
	a.reserve(s, m, n)
	m.reserved += n
	s.settle(a, now)
}

// Expect notes the headers of a message: its length or Unknown, and reserves n bytes for it, of
// which credit are counted already. The room has been asked for.
func (a *Account) Expect(now Time, s *Stream, d Direction, length, n, credit int64) {
	m := &s.dir[d]
	if d == Response {
		a.bookOne(now, s) // bytes may come before its headers do
	}
	m.expected, m.awaited, m.length, m.moved, m.begun = true, false, length, now, now
	m.credit = credit
	a.unreserve(s, m, m.coming) // a forecast, until now
	a.reserve(s, m, n)
	m.reserved = max(m.reserved, n+credit)
	s.settle(a, now)
	if d == Response {
		a.grant(s)
	}
}

// Reserve adds n bytes to what is coming, or none. Where a message has passed its forecast, it is
// entitled to twice of what it has passed. Before anything has passed it is entitled to no more
// than before, and the first that passes of a response tells how much there is. The room has been
// asked for.
func (a *Account) Reserve(now Time, s *Stream, d Direction, n int64) {
	m := &s.dir[d]
	if m.seen == 0 && d == Response {
		m.moved, m.awaited = now, !m.expected
		a.revoke(s)
	}
	a.reserve(s, m, n)
	m.reserved = max(m.reserved, min(2*m.seen, m.cap))
	s.settle(a, now)
}

// Pass counts n bytes of a message that have passed, and what is unbooked of it. It returns how
// many of them were beyond what was coming.
func (a *Account) Pass(now Time, s *Stream, d Direction, n int64) (beyond int64) {
	m := &s.dir[d]
	full := m.seen >= m.cap && s.adds.likely == s.adds.bounds && !s.small
	if d == Response {
		n += s.unbooked()
	}
	beyond = a.pass(now, s, d, n)
	if !full { // else the chunk changes none of the stream's sums: most chunks of a large message
		s.settle(a, now)
	}
	if m.credit > 0 {
		a.Uncredit(now, s)
	}
	if d == Response {
		a.grant(s)
	}
	return beyond
}

// pass is Pass without what the stream then holds, and may do.
func (a *Account) pass(now Time, s *Stream, d Direction, n int64) (beyond int64) {
	m := &s.dir[d]
	m.seen += n
	m.moved = now
	if d == Request {
		m.roll(now)
		m.burst[0] += n
	}
	counted := min(n, m.credit)
	m.credit -= counted
	n -= counted
	k := min(n, m.coming)
	if s.Presumed() {
		k = 0 // all that it can hold stays reserved
	}
	a.unreserve(s, m, k)
	a.addFresh(m.fill(a.fresh.gen, n))
	return n - k
}

// End notes that the message has ended: what has not come will not.
func (a *Account) End(now Time, s *Stream, d Direction) {
	a.finish(now, s, d)
	s.settle(a, now)
}

func (a *Account) finish(now Time, s *Stream, d Direction) {
	m := &s.dir[d]
	if d == Response {
		if n := s.unbooked(); n > 0 {
			a.pass(now, s, d, n)
			s.allowed.granted = s.allowed.left
		}
		a.revoke(s)
	}
	m.ended = true
	m.credit = 0
	if m.unseen() && m.expected && s.state != shadow {
		a.addFresh(m.fill(a.fresh.gen, m.coming)) // it may have passed just now
	}
	a.unreserve(s, m, m.coming)
}

func (a *Account) reserve(s *Stream, m *message, n int64) {
	m.coming += n
	s.sum.Coming += n
	a.own.Coming += n
}

func (a *Account) unreserve(s *Stream, m *message, n int64) {
	m.coming -= n
	s.sum.Coming -= n
	a.own.Coming -= n
}

// freeMost is how much of a response may have passed and still count as coming.
const freeMost = 256 << 10 // TestUnbookedBytesStayComing

// always is more than can pass between two readings.
const always = 1 << 50

// grant lets of a response that was announced so much pass unbooked as counts as coming, which is
// as much: until more has passed, the next tick, or the end. And when the stream has added to the
// generation all that it may, and holds all that it can, what passes changes nothing until the next
// reading. So most chunks of a large response cost one subtraction: with caches that its bytes have
// emptied, each pointer that is followed counts.
func (a *Account) grant(s *Stream) {
	m := &s.dir[Response]
	var n int64
	switch {
	case s.Presumed():
		n = always
	case s.small || m.ended || s.state == shadow:
	case m.coming > 0:
		n = min(m.coming, freeMost)
	case m.full(a.fresh.gen) && s.adds.likely == s.adds.bounds:
		n = always
	}
	s.allowed.left, s.allowed.granted = n, n
	if n > 0 {
		a.streams.list(s)
	}
}

// revoke has the next bytes of a response be booked. Those that are not are of one that holds all
// that it can.
func (a *Account) revoke(s *Stream) {
	s.dir[Response].seen += s.unbooked()
	s.allowed.left, s.allowed.granted = 0, 0
	a.streams.unlist(s)
}

// book counts what has passed unbooked.
func (a *Account) book(now Time) {
	for _, s := range a.streams.unbooked {
		a.bookOne(now, s)
	}
}

func (a *Account) bookOne(now Time, s *Stream) {
	if s.unbooked() > 0 {
		a.Pass(now, s, Response, 0)
	}
}

// PassesUnbooked notes n more bytes of the response, and says whether that is all there is to do:
// they need no booking. Else they are for Account.Pass.
func (s *Stream) PassesUnbooked(n int64) bool {
	if s.allowed.left < n {
		return false
	}
	s.allowed.left -= n
	return true
}

// Allowance is what PassesUnbooked takes from, bytes: for a face that counts where no Go runs. It
// may take n from it where there is as much.
func (s *Stream) Allowance() *int64 { return &s.allowed.left }
