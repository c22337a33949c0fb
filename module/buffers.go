package main

// #include "abi.h"
import "C"

import (
	"github.com/highwater-envoy/highwater/internal/budget"
)

// holding is how much of a request Envoy may hold.
type holding struct {
	limit    int64 // of it filters may hold so much; 0 = not known
	waits    bool  // it waits, and nothing of it is let on
	unsent   bool  // and its client has more to send
	narrowed bool  // and filters may hold less of it meanwhile
}

// reading is how far Envoy reads a connection.
type reading struct {
	streams int  // that are open on it
	waiting int  // those of them that wait
	unsent  int  // and those of these whose clients have more to send
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
// HTTP/1 Envoy stops to read its connection. On HTTP/2 it does so where all who are on it wait, for
// others would starve.
func (s *stream) holdBack() {
	c := s.known
	if c == nil || c.Read == 0 {
		return
	}
	s.waits, s.unsent = true, !s.Ended(budget.Request)
	c.waiting++
	if s.unsent {
		c.unsent++
		if s.HTTP2() && s.limit > waitingLimit {
			s.narrowed = true
			C.envoy_dynamic_module_callback_http_set_buffer_limit(s.c.envoy, waitingLimit)
		}
	}
	c.settle()
}

// letOn ends that.
func (s *stream) letOn() {
	if !s.waits {
		return
	}
	c := s.known
	s.waits = false
	c.waiting--
	if s.unsent {
		c.unsent--
	}
	if s.narrowed && s.open() {
		C.envoy_dynamic_module_callback_http_set_buffer_limit(s.c.envoy, envoysLimit(s.limit))
	}
	s.narrowed = false
	c.settle()
}

// leave notes that it ends.
func (s *stream) leave() {
	if c := s.known; c != nil {
		c.streams--
		s.letOn()
		c.settle()
		s.unmeter()
	}
}

// settle has Envoy read the connection, or not.
func (c *connection) settle() {
	stop := c.unsent > 0 && c.waiting == c.streams
	if stop == c.stopped || !c.isOpen() || stop && c.frames != nil && !c.worker.mayStopHTTP2() {
		return
	}
	c.stopped = stop
	C.envoy_dynamic_module_callback_network_filter_read_disable(c.c.envoy, C.bool(stop))
}

func (w *worker) mayStopHTTP2() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.policy.MayStopHTTP2()
}
