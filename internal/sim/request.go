package sim

// reads is how much of n the client, or the upstream, reads now.
func (e *Envoy) reads(r *rate, n int64) int64 {
	n = min(n, max(r.available(e.now), 0))
	r.use(n)
	e.peer(n)
	return n
}

// bodyLimit is how much of a request may lie in Envoy before it reads no more of it.
func (e *Envoy) bodyLimit(s *Stream) int64 {
	switch {
	case !s.paused && e.WholeRequest > 0 && !s.ended[Request]:
		return e.WholeRequest
	case s.paused && s.Conn.HTTP2:
		return max(e.Downstream, e.StreamWindow)
	case s.paused:
		return e.Downstream
	}
	return e.Upstream
}

// room is how much of a request is read at once, at most.
func (e *Envoy) room(s *Stream) int64 {
	switch {
	case s.Conn.HTTP2:
		return min(e.Downstream, frame, e.StreamWindow-s.unacked, e.ConnectionWindow-s.Conn.unacked)
	case s.held > e.bodyLimit(s):
		return 0
	}
	return e.Downstream
}

func (e *Envoy) readRequest(s *Stream) (used Time) {
	c := s.Conn
	first := !s.opened
	if s.ended[Request] {
		return 0
	}
	n := int64(0)
	if rest := s.Call.Body - s.sent; rest > 0 {
		n = max(min(rest, s.sending.available(e.now), e.room(s)), 0)
	}
	if !first && n == 0 {
		return 0
	}
	if e.filter != nil && !e.NoNetworkFilter && e.filter.Data(c, n+200) {
		c.refused = true
		return used + e.moved(n)
	}
	if first {
		used += e.PerRequest
		if e.open(s) {
			return used
		}
	}
	s.sent += n
	s.sending.use(n)
	e.write(&s.wrote, s.sent, s.Call.Body, s.sending)
	s.held += n
	e.heap.alloc(n)
	if c.HTTP2 {
		s.unacked += n
		c.unacked += n
	}
	used += e.moved(n)
	if s.paused {
		s.waits += n
		e.credit(s)
		return used
	}
	e.pass(s, n)
	return used
}

// open has the filter judge the headers. It says whether nothing is read behind them: the request
// has no body, or is reset.
func (e *Envoy) open(s *Stream) (alone bool) {
	s.opened = true
	e.heap.alloc(e.StreamCost)
	e.reach(s)
	if e.filter != nil {
		length := s.Call.Announce
		if s.Call.Body == 0 && length <= 0 {
			length = 0
		}
		if e.filter.Headers(s, Request, length) {
			s.paused, s.since = true, e.now
			e.waiting++
			e.oldest = append(e.oldest, s)
			e.verdict("wait", s.ID)
		} else {
			e.admitted(s)
		}
		if s.over && s.Conn.HTTP2 { // the codec drops the frames of a stream that is reset
			e.finish(s)
			return true
		}
	} else {
		e.tell(s, Admitted)
	}
	if s.Call.Body == 0 && s.Call.Announce <= 0 {
		s.ended[Request], s.reached, s.arrived = true, e.now, e.now
		return true
	}
	return false
}

// complete says whether the client has sent the whole request.
func (s *Stream) complete() bool {
	return s.sent == s.Call.Body && (s.Call.Announce == Unknown || s.sent >= s.Call.Announce)
}

// pass hands bytes of the request through the filter.
func (e *Envoy) pass(s *Stream, n int64) {
	end := s.complete()
	if s.over || n == 0 && !end {
		return
	}
	if e.filter != nil {
		e.filter.Body(s, Request, n, end)
	}
	s.ended[Request] = end
	e.credit(s)
}

// credit gives an HTTP/2 client back the window that its bytes took, unless the stream is full.
func (e *Envoy) credit(s *Stream) {
	if s.Conn.HTTP2 && s.unacked > 0 && (s.held <= e.bodyLimit(s) || s.over) {
		s.Conn.unacked -= s.unacked
		s.unacked = 0
	}
}

// forward writes the request to the upstream.
func (e *Envoy) forward(s *Stream) (used Time) {
	if e.WholeRequest > 0 && !s.ended[Request] {
		return 0
	}
	if s.ready > e.workers[s.Conn.Worker].round {
		return 0
	}
	if s.reached == 0 {
		defer e.takeSlots(s)
		s.reached = e.now
		s.taking = rate{perSecond: s.Call.TakeRate, from: e.now + s.Call.Wait}
	}
	if s.kernel > 0 && e.now-s.reached >= s.Call.Wait {
		n := e.reads(&s.taking, s.kernel)
		s.kernel -= n
		e.socket -= n
		s.taken += n
	}
	if n := min(s.held, e.KernelUp-s.kernel); n > 0 {
		s.held -= n
		s.kernel += n
		e.socket += n
		e.heap.free(n)
		used = e.moved(n)
		if fresh := e.socket - e.sockets; fresh > 0 {
			e.sockets += fresh
			used += cost(fresh, e.FreshPerMs)
		}
		e.credit(s)
	}
	if s.ended[Request] && s.arrived == 0 && s.held == 0 && s.kernel == 0 {
		s.arrived = e.now
	}
	return used
}

// takeSlots: the buffers that a body goes through whole have a slot for each slice of it, doubled
// as they are needed, and keep them until the stream ends. Then they stay with the allocator for
// the next one of that size, and for no other.
func (e *Envoy) takeSlots(s *Stream) {
	const slice = 16 << 10
	if e.WholeRequest == 0 || e.SlotCost == 0 {
		return
	}
	s.slots = 1
	for s.slots <= s.sent/slice {
		s.slots *= 2
	}
	if e.slots[s.slots] > 0 {
		e.slots[s.slots]--
	} else {
		e.heap.alloc(s.slots * e.SlotCost)
	}
}
