package sim

// next ends a call that failed for good.
func (e *Envoy) next(c *client) {
	c.made++
	c.pending, c.busy = false, false
	c.next = max(c.begun+c.Every, e.now+step)
	e.rests(c)
}

// retry lets the client make its call again, after told if it obeys and was told something.
func (e *Envoy) retry(c *client, told Time) {
	e.returned(c, false)
	if c.KeepCalls {
		e.next(c)
		return
	}
	c.busy = false
	c.next = e.now + max(c.Retry, step)
	if c.Obey && told > 0 {
		c.told, c.next = told, e.now+told
		class := e.report.class(c.Class)
		if e.sourced == nil {
			class.Told = append(class.Told, told)
		}
	}
	e.rests(c)
}

// returned notes what became of a client that came back when it was told to.
func (e *Envoy) returned(c *client, kept bool) {
	if c.told > 0 && e.sourced == nil {
		class := e.report.class(c.Class)
		class.Returns = append(class.Returns, Return{Told: c.told, Kept: kept})
		c.told = 0
	}
}

// finish ends a stream that is over.
func (e *Envoy) finish(s *Stream) {
	if s.done {
		return
	}
	s.done = true
	c := s.Conn
	for i := range c.streams {
		if c.streams[i] == s {
			c.streams = append(c.streams[:i], c.streams[i+1:]...)
			break
		}
	}
	e.unpause(s)
	if c.HTTP2 {
		c.unacked -= s.unacked
		s.unacked = 0
	}
	if s.opened {
		e.heap.free(s.held + s.answer + e.StreamCost)
		s.held, s.answer = 0, 0
		e.socket -= s.kernel
		s.kernel = 0
		switch {
		case s.slots > 0 && e.sourced != nil: // over hours the allocator makes others of them
			e.heap.free(s.slots * e.SlotCost)
		case s.slots > 0:
			e.slots[s.slots]++
		}
		if e.filter != nil {
			e.filter.Done(s)
		}
	}
}

func (e *Envoy) unpause(s *Stream) {
	if !s.paused {
		return
	}
	s.paused = false
	e.waiting--
	s.waited = e.now - s.since
	e.report.class(s.client.Class).Waited++
	e.report.LongestWait = max(e.report.LongestWait, s.waited)
	for i := range e.oldest {
		if e.oldest[i] == s {
			e.oldest = append(e.oldest[:i], e.oldest[i+1:]...)
			break
		}
	}
}

// drop closes a connection, and all that is on it.
func (e *Envoy) drop(c *Conn) {
	if c.gone {
		return
	}
	c.gone = true
	if e.filter != nil && !e.NoNetworkFilter {
		e.filter.CloseConnection(c)
	}
	for len(c.streams) > 0 {
		s := c.streams[0]
		if !s.over {
			e.retry(s.client, 0)
		}
		s.over = true
		e.finish(s)
	}
	e.heap.free(c.cost + c.rest + c.unread)
	c.rest, c.unread = 0, 0
	if e.sourced != nil && e.dropped(c) {
		return
	}
	conns := e.workers[c.Worker].conns
	for i := range conns {
		if conns[i] == c {
			conns[i] = conns[len(conns)-1]
			e.workers[c.Worker].conns = conns[:len(conns)-1]
			break
		}
	}
}

// settle carries out what the filter has done in its last call, and holds its estimate against the
// truth.
func (e *Envoy) settle() {
	if e.filter == nil {
		return
	}
	for changed := e.dirty; changed; {
		changed, e.dirty = false, false
		for i := 0; i < len(e.oldest); i++ {
			s := e.oldest[i]
			switch {
			case s.over:
				e.finish(s)
				changed = true
			case s.resumed:
				s.resumed, s.Conn.wake = false, 0
				e.unpause(s)
				e.admitted(s)
				n := s.waits
				s.waits = 0
				e.pass(s, n)
				changed = true
			default:
				continue
			}
			i--
		}
		for len(e.closing) > 0 {
			c := e.closing[0]
			e.closing = e.closing[1:]
			for _, s := range c.streams {
				switch {
				case s.over:
				case s.opened, c.refused:
					e.report.class(s.client.Class).Closed++
					e.tell(s, Closed)
				default:
					// Nothing of it was read: clients send it again.
					s.over, s.client.busy = true, false
					e.rests(s.client)
				}
			}
			e.drop(c)
			changed = true
		}
	}
	if e.sourced == nil {
		e.check()
	}
}
