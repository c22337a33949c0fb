package sim

func (e *Envoy) readResponse(s *Stream) (used Time) {
	if s.arrived == 0 || e.now-s.reached < s.Call.Wait || e.now-s.arrived < s.Call.Think || s.ended[Response] {
		return 0
	}
	call := &s.Call
	if !s.started {
		s.giving = rate{perSecond: call.GiveRate, from: e.now}
		s.reading = rate{perSecond: call.ReadRate, from: e.now}
		length := call.Response
		if call.Chunked && length > 0 {
			length = Unknown
		}
		if e.filter != nil {
			e.filter.Headers(s, Response, length)
		}
		if s.over {
			return e.PerEvent
		}
		s.started = true
		used = e.PerEvent
		if call.Response == 0 {
			s.ended[Response] = true
		}
	}
	limit := e.Downstream
	if s.Conn.HTTP2 {
		limit = max(limit, e.StreamWindow)
	}
	// A buffer that was full is read into again when half of it has gone: Envoy's low watermark. Of
	// a chunked response one read more is found in Envoy: bench/model shows 0.9 MiB each with
	// buffers of 512 KiB.
	s.full = (s.full || s.answer >= limit) && s.answer > limit/2
	if s.full || s.ended[Response] {
		return used
	}
	n := min(call.Response-s.given, s.giving.available(e.now), e.Upstream)
	if n <= 0 {
		return used
	}
	s.given += n
	e.write(&s.gave, s.given, call.Response, s.giving)
	s.answer += n
	s.full = s.answer >= limit && !call.Chunked
	e.heap.alloc(n)
	end := s.given == call.Response && !call.Idle
	if e.filter != nil {
		e.filter.Body(s, Response, n, end)
	}
	s.ended[Response] = end
	return used + e.moved(n)
}

func (e *Envoy) writeResponse(s *Stream) (used Time) {
	if !s.started {
		return 0
	}
	c := s.Conn
	stalled := s.Call.Stall != nil && s.Call.Stall(e.now-s.reading.from)
	if !stalled {
		c.kernel -= e.reads(&s.reading, c.kernel)
	}
	if n := min(s.answer, e.KernelDown-c.kernel); n > 0 {
		s.answer -= n
		c.kernel += n
		e.heap.free(n)
		used = e.moved(n)
	}
	if s.ended[Response] {
		// The stream ends here, for Envoy; what the client has not read stays with the connection.
		s.over = true
		class := e.report.class(s.client.Class)
		class.Done++
		class.Bytes += s.Call.Body + s.Call.Response
		if e.sourced == nil {
			class.Latency = append(class.Latency, e.now-s.client.begun)
		}
		e.tell(s, Done)
		if e.sourced != nil {
			e.workers[c.Worker].pool++
		}
		c.rest += s.answer
		s.answer = 0
		c.restAt = s.reading
		client := s.client
		e.returned(client, true)
		e.finish(s)
		client.made++
		client.pending, client.busy = false, false
		client.next = max(client.begun+client.Every, e.now)
		if client.Fresh && !c.HTTP2 {
			c.last, client.conn = true, nil
		}
		e.rests(client)
	}
	return used
}
