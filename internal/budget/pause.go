package budget

// Pause notes that the stream's request is paused, or rejected unfinished, at the pause cost: so
// much it can leave unread. That comes within a round trip and unseen, so it is fresh from now on;
// where the network filter sees what comes, and it will soon be closed, only what has come already.
func (a *Account) Pause(now Time, s *Stream, cost, come int64) {
	s.pause.cost = cost
	m := &s.dir[Request]
	a.addPaused(m.fill(a.fresh.gen, min(come, cost)))
	s.settle(a, now)
}

// PauseUnseen is Pause where nobody sees what comes while the request is paused: at whatever speed,
// as much as that may come at any time until Unpause or the end.
func (a *Account) PauseUnseen(s *Stream, cost int64) {
	s.pause.cost, s.pause.coming = cost, cost
	a.own.Coming += cost
}

// Unpause notes that the request goes on, or that what it may leave unread is to be counted in
// another way.
func (a *Account) Unpause(s *Stream) {
	a.own.Coming -= s.pause.coming
	s.pause.cost, s.pause.coming = 0, 0
}

// PassPaused counts n bytes that the network filter saw for a paused request, as fresh: no more
// than its pause cost in each generation, with which the pause itself began.
func (a *Account) PassPaused(s *Stream, n int64) {
	m := &s.dir[Request]
	if m.gen != a.fresh.gen {
		m.gen, m.genBytes = a.fresh.gen, 0
	}
	n = max(min(n, s.pause.cost-m.genBytes), 0)
	m.genBytes += n
	a.addPaused(n)
}

// PassShared counts n bytes that the network filter saw on a connection with paused HTTP/2
// requests, as fresh: they may be of any of those, however slowly they come, but no more than what
// those can leave unread in each generation. What is of others is counted twice, then.
func (a *Account) PassShared(c *Connection, n, costs int64) {
	if c.shared.gen != a.fresh.gen {
		c.shared.gen, c.shared.bytes = a.fresh.gen, 0
	}
	n = max(min(n, costs-c.shared.bytes), 0)
	c.shared.bytes += n
	a.addPaused(n)
}

// Drop notes that what a paused or rejected request has sent is gone with it: what comes next is
// counted for it. A flood of clients that are rejected and come straight back would otherwise
// fill the estimate with what nobody holds.
func (a *Account) Drop(s *Stream) {
	m := &s.dir[Request]
	a.fresh.giveBack(m.gen, m.genBytes)
	m.genBytes = 0
}

// Linger hands what a rejected request has sent to its connection: it is gone when that is closed.
func (a *Account) Linger(s *Stream, c *Connection) {
	m := &s.dir[Request]
	switch age := m.gen - c.cost.gen; {
	case age == 0:
		c.cost.bytes += m.genBytes
	case age < 1<<31: // what the connection itself cost is older, and in a reading or about to be
		c.cost.gen, c.cost.bytes = m.gen, m.genBytes
	}
	m.genBytes = 0
}

// Uncredit ends the credit of a resumed request: what came while it was paused has passed, in one
// piece. The rest of the credit is still coming. Pass does this by itself; where nothing had come,
// nothing passes.
func (a *Account) Uncredit(now Time, s *Stream) {
	m := &s.dir[Request]
	if m.credit == 0 {
		return
	}
	a.reserve(s, m, m.credit)
	m.credit = 0
	a.Cover(now)
}
