package budget

// Shade makes the stream a shadow: a verdict that is not carried out says that it would not be
// there, or not yet. Nothing is reserved for it any more, what passes of it is not fresh, and what
// it holds is summed up apart.
func (a *Account) Shade(now Time, s *Stream) {
	if s.state == shadow || s.state == closed {
		return
	}
	a.unpresume(s)
	a.bookOne(now, s)
	a.revoke(s)
	for d := range s.dir {
		m := &s.dir[d]
		m.credit = 0
		a.unreserve(s, m, m.coming)
	}
	a.own.Shadows.Passed += s.adds.bounds - s.adds.priced // it was no shadow yet when that passed
	s.uncount(a)
	s.adds = part{exposure: s.adds.exposure}
	s.state = shadow
	s.settle(a, now)
}

// Unshade ends that. What has passed since counts as passed just now.
func (a *Account) Unshade(now Time, s *Stream) {
	if s.state != shadow {
		return
	}
	s.uncount(a)
	s.adds = part{exposure: s.adds.exposure}
	s.state = ordinary
	s.settle(a, now)
}

// PassShadow is Pass for a shadow.
func (a *Account) PassShadow(now Time, s *Stream, d Direction, n int64) {
	m := &s.dir[d]
	m.seen += n
	m.moved = now
	n = min(n, m.cap)
	a.own.Passed += n
	a.own.Shadows.Passed += n
	s.settle(a, now)
}

// CatchUp takes from what was reserved for a message that has been a shadow what has passed
// meanwhile: it is as if it passed now.
func (a *Account) CatchUp(now Time, s *Stream, d Direction) {
	m := &s.dir[d]
	counted := min(m.seen, m.credit)
	m.credit -= counted
	n := min(m.seen-counted, m.coming)
	a.unreserve(s, m, n)
	a.addFresh(m.fill(a.fresh.gen, n))
	a.Uncredit(now, s)
	if m.ended {
		a.unreserve(s, m, m.coming)
	}
	s.settle(a, now)
}

// Supposes notes what a shadow's message likely comes to, bytes, where nobody tells what passes of
// it.
func (a *Account) Supposes(now Time, s *Stream, d Direction, n int64) {
	if m := &s.dir[d]; s.state == shadow && m.unseen() {
		m.reserved = min(max(m.reserved, n), m.cap)
		m.moved = now
		s.settle(a, now)
	}
}
