package main

// #include "abi.h"
import "C"

import (
	"github.com/highwater-envoy/highwater/internal/budget"
)

// holding is how much of a request Envoy may hold.
type holding struct {
	limit    int64 // of it filters may hold so much; 0 = not known
	stops    bool  // it waits, and Envoy does not read its connection
	narrowed bool  // it waits, and filters may hold less of it meanwhile
}

// reading is how far Envoy reads a connection.
type reading struct {
	waiting int  // requests of HTTP/1 on it that wait, whose clients have more to send
	stopped bool // Envoy does not read it
}

// restore has filters hold as much of the request as its listener lets them, though its connection
// reads less ahead.
func (s *stream) restore(t budget.Time) {
	c := s.known
	if c == nil || c.Read == 0 {
		return
	}
	s.limit = limitOf(C.hw_restore(s.c.envoy, C.uint64_t(c.Read), C.uint64_t(c.Own)))
	if limit := s.worker.relimitFor(c); limit > 0 && c.isOpen() {
		c.setLimit(limit)
	}
}

// limitOf is a limit of Envoy as the policy has it: 0 is none there.
func limitOf(n C.uint64_t) int64 {
	if n == 0 {
		return budget.Unlimited
	}
	return int64(min(uint64(n), uint64(budget.Unlimited)))
}

// envoysLimit is the reverse.
func envoysLimit(n int64) C.uint64_t {
	if n >= budget.Unlimited {
		return 0
	}
	return C.uint64_t(n)
}

// hwLimit notes what filters may hold of a request, as the first of its body comes.
//
//export hwLimit
func hwLimit(c *C.hw_stream, limit C.uint64_t) {
	defer survive()
	workerOf(c.worker).limitBody(c, limitOf(limit))
}

func (w *worker) limitBody(c *C.hw_stream, limit int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.mu.streams.all[c.slot]
	s.guard.LimitBody(now(), &s.Stream, limit)
}

// relimitFor is relimit as a request begins.
func (w *worker) relimitFor(c *connection) (limit int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.relimit(c, 0)
}

// relimit is the buffer limit that a connection gets now; 0 = it keeps its own. The caller has the
// lock.
func (w *worker) relimit(c *connection, n int64) (limit int64) {
	if c.Read == 0 {
		return 0
	}
	if limit = w.mu.policy.Relimit(&c.Connection, n); limit == c.Read {
		return 0
	}
	c.Read = limit
	return limit
}

// lower is which connections get a lower limit now. The caller has the lock.
func (w *worker) lower() (all []*connection) {
	for _, c := range w.mu.byID {
		if w.relimit(c, c.Read) > 0 {
			all = append(all, c)
		}
	}
	return all
}

func (c *connection) setLimit(n int64) {
	C.envoy_dynamic_module_callback_network_filter_set_buffer_limits(c.c.envoy, C.uint32_t(n))
}

// waitingLimit is what filters may hold of an HTTP/2 request that waits. Beyond that its client is
// told to send no more than its window lets it.
const waitingLimit = 64 << 10

// holdBack has the rest of a request that waits stay with its client, as far as that can be. On
// HTTP/1 Envoy stops to read its connection. On HTTP/2 that would keep others from coming.
func (s *stream) holdBack() {
	c := s.known
	switch {
	case c == nil || c.Read == 0 || s.Ended(budget.Request):
	case !s.HTTP2():
		s.stops = true
		c.waiting++
		c.settle()
	case s.limit > waitingLimit:
		s.narrowed = true
		C.envoy_dynamic_module_callback_http_set_buffer_limit(s.c.envoy, waitingLimit)
	}
}

// letOn ends that.
func (s *stream) letOn() {
	if s.stops {
		s.stops = false
		s.known.waiting--
		s.known.settle()
	}
	if s.narrowed && s.open() {
		C.envoy_dynamic_module_callback_http_set_buffer_limit(s.c.envoy, envoysLimit(s.limit))
	}
	s.narrowed = false
}

// leave notes that it ends.
func (s *stream) leave() {
	if s.known != nil {
		s.letOn()
		s.unmeter()
	}
}

// settle has Envoy read the connection, or not.
func (c *connection) settle() {
	stop := c.waiting > 0
	if stop == c.stopped || !c.isOpen() {
		return
	}
	c.stopped = stop
	C.envoy_dynamic_module_callback_network_filter_read_disable(c.c.envoy, C.bool(stop))
}
