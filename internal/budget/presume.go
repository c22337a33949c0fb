package budget

// Presume reserves for the response of a stream that has just been opened the most that it can hold
// whatever it is, n bytes, for as long as it is presumed. What passes is booked at ticks, and
// nothing else has to be. The room has been asked for.
func (a *Account) Presume(s *Stream, n int64) {
	a.reserve(s, &s.dir[Response], n)
	s.state = presumed
	a.own.Presumed.Streams++
	a.own.Presumed.Bytes += n
	a.grant(s)
}

// Foretell notes the headers of a presumed response: its length or Unknown, and what Envoy may hold
// of it.
func (a *Account) Foretell(s *Stream, length, most int64) {
	m := &s.dir[Response]
	m.expected, m.length, m.cap = true, length, most
	if length != Unknown {
		most = min(most, length)
	}
	a.own.Presumed.Bytes -= a.narrow(s, m, most)
}

// Doubt ends that a stream is presumed: it is as it was when it was opened, and told of what has
// passed since. What is known of its response is to be expected, what has passed to be passed, and
// the end to be noted, again.
func (a *Account) Doubt(now Time, s *Stream) (passed int64, over bool) {
	m := &s.dir[Response]
	over = s.state == presumedEnded
	a.bookOne(now, s)
	a.unpresume(s)
	a.revoke(s)
	a.unreserve(s, m, m.coming)
	passed, m.seen = m.seen, 0
	s.settle(a, now)
	return passed, over
}

func (a *Account) unpresume(s *Stream) {
	if s.Presumed() {
		s.state = ordinary
		a.own.Presumed.Streams--
		a.own.Presumed.Bytes -= s.dir[Response].coming
	}
}

// EndsUnbooked notes that a presumed response has ended, and says whether that is all there is to
// do; else it is for Account.End.
func (s *Stream) EndsUnbooked() bool {
	if s.state == presumed {
		s.state = presumedEnded
	}
	return s.Presumed()
}

// Trim takes back what was reserved of a response beyond what it is entitled to.
func (a *Account) Trim(now Time, s *Stream) {
	m := &s.dir[Response]
	a.bookOne(now, s)
	if a.narrow(s, m, max(m.reserved-m.seen, 0)) > 0 {
		a.grant(s)
		s.settle(a, now)
	}
}

// narrow takes back what is reserved beyond n bytes, and says how much that is.
func (a *Account) narrow(s *Stream, m *message, n int64) (back int64) {
	back = max(m.coming-n, 0)
	a.unreserve(s, m, back)
	return back
}
