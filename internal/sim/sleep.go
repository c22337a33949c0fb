package sim

import "math"

const never = Time(math.MaxInt64)

// skip goes on to the step before the next in which something happens, no farther than end.
func (e *Envoy) skip(end Time) {
	if e.sourced == nil {
		return
	}
	at := min(e.nextEvent(), end)
	n := (at - e.now - 1) / step
	if n <= 0 {
		return
	}
	e.now += n * step
	e.peers = max(e.peers-Time(e.Cores*float64(n*step)), 0)
	for i := range e.workers {
		w := &e.workers[i]
		w.debt = max(w.debt-n*step, 0)
	}
}

// nextEvent is when something happens next.
func (e *Envoy) nextEvent() Time {
	at := never
	if e.ahead != nil {
		at = e.ahead.next
	}
	if len(e.due) > 0 {
		at = min(at, e.due[0].next)
	}
	if r := e.reading; r != nil {
		at = min(at, r.due)
		if !r.sampled {
			at = min(at, r.sample)
		}
	}
	for _, c := range e.dying {
		at = min(at, c.until)
	}
	if p := e.parked.Front(); p != nil {
		at = min(at, e.used[p.Value.(*Conn)]+keepAlive)
	}
	for i := range e.workers {
		w := &e.workers[i]
		if e.filter != nil {
			at = min(at, w.tick)
		}
		for _, c := range w.conns {
			if at <= e.now+step {
				return at
			}
			at = min(at, c.wake)
		}
	}
	return at
}

// expire closes connections that have not been used for long.
func (e *Envoy) expire() {
	for p := e.parked.Front(); p != nil; p = e.parked.Front() {
		c := p.Value.(*Conn)
		if e.now-e.used[c] < keepAlive {
			return
		}
		e.drop(c)
		e.settle()
	}
}

// soonest is when something may move on a connection on which nothing does now, if no filter steps
// in.
func (e *Envoy) soonest(c *Conn) Time {
	at := never
	if c.rest > 0 || c.kernel > 0 && len(c.streams) == 0 {
		at = c.restAt.at(e.now, c.rest+c.kernel)
	}
	for _, s := range c.streams {
		at = min(at, e.soonestOf(s))
	}
	return at
}

func (e *Envoy) soonestOf(s *Stream) Time {
	call := &s.Call
	at := never
	if call.HangUp > 0 {
		at = s.begun + call.HangUp
	}
	switch {
	case s.over, !s.opened, call.Stall != nil, !s.paused && s.ready > e.workers[s.Conn.Worker].round:
		return e.now
	case !s.ended[Request]:
		if rest := call.Body - s.sent; rest > 0 && e.room(s) > 0 {
			at = min(at, s.sending.at(e.now, rest))
		}
	}
	if s.paused || s.reached == 0 {
		return at
	}
	at = after(at, e.now, s.reached+call.Wait)
	if s.kernel > 0 {
		at = min(at, s.taking.at(e.now, s.kernel))
	}
	if s.arrived > 0 {
		at = after(at, e.now, s.arrived+call.Think)
	}
	if !s.started {
		return at
	}
	if !s.full && !s.ended[Response] && s.given < call.Response {
		at = min(at, s.giving.at(e.now, call.Response-s.given))
	}
	if s.answer > 0 || s.Conn.kernel > 0 {
		at = min(at, s.reading.at(e.now, s.answer+s.Conn.kernel))
	}
	return at
}

// after is the sooner of at and when, if when is to come.
func after(at, now, when Time) Time {
	if when > now {
		return min(at, when)
	}
	return at
}

// at is when the rate has 20 ms' worth of bytes, or all of n, if that is less.
func (r *rate) at(now Time, n int64) Time {
	if r.perSecond == 0 {
		return now
	}
	n = min(n, max(r.perSecond/50, 1))
	return max(now, r.from+Time(float64(r.used+n)*1e9/float64(r.perSecond))+1)
}
