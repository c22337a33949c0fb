package main

// #include "abi.h"
import "C"

import (
	"slices"
	"strings"
	"unsafe"

	"github.com/highwater-envoy/highwater/internal/flow"
)

// Envoy's HTTP/2 codec takes of a response as much as Envoy's own stream window comes to, whether
// the client takes it or not: 16 MiB by default. Here what passes waits in front of the codec while
// that has enough, so that Envoy reads the upstream no further. It has enough where it has as much
// as the connection may read ahead.

// meter is how far the responses of an HTTP/2 connection are ahead of its client.
type meter struct {
	looked    bool             // it is known whether it is HTTP/2
	frames    *flow.Connection // nil = it is not, or its buffers are not set
	held      []*stream        // whose responses wait
	scheduler unsafe.Pointer   // to the connection's thread; nil = none was needed yet
	posted    bool             // by that: they may go on
	listed    bool             // it is looked at in each tick
}

// metered is how far one response is.
type metered struct {
	response flow.Stream
	ahead    bool  // something of it waits
	kept     int64 // so much
	backlog  int64 // what the codec had at the last tick
	idle     int   // ticks since that has become less, though its client takes more
}

// follow takes what the connection is just reading.
func (c *connection) follow() {
	if c.c == nil || c.Read == 0 || c.looked && c.frames == nil {
		return
	}
	if c.frames != nil {
		c.frames.BeginRead()
	}
	all := c.eachPiece(readBuffer, func(p []byte) {
		if !c.looked {
			c.looked = true
			if strings.HasPrefix(flow.Preface, string(p[:min(len(p), len(flow.Preface))])) {
				c.frames, c.Metered, c.c.flow = flow.New(), true, true
			}
		}
		if c.frames != nil {
			c.frames.Read(p)
		}
	})
	if !all && c.frames != nil {
		c.lose()
	}
}

// hwWrote takes what the codec has just written, before it leaves.
//
//export hwWrote
func hwWrote(c *C.hw_connection) {
	defer survive()
	k := workerOf(c.worker).connectionAt(c)
	if !k.eachPiece(writeBuffer, k.frames.Wrote) {
		k.lose()
	}
	if !k.posted && slices.ContainsFunc(k.held, k.mayLetOn) {
		k.letOnSoon()
	}
}

func (w *worker) connectionAt(c *C.hw_connection) *connection {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.links.all[c.slot]
}

// lose ends metering on the connection: what its frames tell is not of its streams.
func (c *connection) lose() {
	c.frames.Lose()
	c.Metered, c.c.flow = false, false
	c.letOnSoon()
}

// meter begins to follow the response of a request that comes.
func (s *stream) meter() {
	if c := s.known; c != nil && c.frames != nil && !c.frames.Lost() {
		c.frames.Open(&s.response)
		s.c.metered = true
	}
}

// answers notes that the headers of its response pass.
func (s *stream) answers() {
	if bool(s.c.metered) && s.known.isOpen() {
		s.known.frames.Answer(&s.response)
	}
}

// hwMeter says whether so much of a response goes on to the codec.
//
//export hwMeter
func hwMeter(c *C.hw_stream, n C.size_t) (status C.int) {
	defer survive()
	s := workerOf(c.worker).streamAt(c)
	k := s.known
	switch {
	case k.c == nil:
		return C.HW_CONTINUE
	case s.ahead:
		s.kept += int64(n)
		return C.HW_STOP_AND_WATERMARK
	}
	if has := k.frames.Backlog(&s.response); has > 0 && has+int64(n) > k.Read {
		s.hold(int64(n), has)
		return C.HW_STOP_AND_WATERMARK
	}
	k.frames.Pass(&s.response, int64(n))
	return C.HW_CONTINUE
}

// hwHeld says whether trailers of a response have to wait behind its body.
//
//export hwHeld
func hwHeld(c *C.hw_stream) (held C.bool) {
	defer survive()
	return C.bool(workerOf(c.worker).streamAt(c).ahead)
}

// hold has n bytes of its response wait, where the codec has so many.
func (s *stream) hold(n, has int64) {
	k := s.known
	s.ahead, s.kept, s.backlog, s.idle = true, n, has, 0
	k.held = append(k.held, s)
	s.worker.doubt(k)
	if k.Own > 0 && k.Own < s.limit {
		C.envoy_dynamic_module_callback_http_set_buffer_limit(s.c.envoy, C.uint64_t(k.Own))
	}
}

// doubt has ticks look whether the connection's frames tell the truth.
func (w *worker) doubt(c *connection) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !c.listed {
		c.listed = true
		w.mu.metered = append(w.mu.metered, c)
	}
}

// mayLetOn says that the codec has so little of the response that it gets what waits.
func (c *connection) mayLetOn(s *stream) bool { return c.frames.Backlog(&s.response) <= c.Read/4 }

// letOnSoon has those go on that may, but not in a call of the codec.
func (c *connection) letOnSoon() {
	if c.posted || len(c.held) == 0 || !c.isOpen() {
		return
	}
	if c.scheduler == nil {
		c.scheduler = C.envoy_dynamic_module_callback_network_filter_scheduler_new(c.c.envoy)
	}
	c.posted = true
	C.envoy_dynamic_module_callback_network_filter_scheduler_commit(c.scheduler, C.HW_LET_ON)
}

// hwLetOn has those responses go on that may.
//
//export hwLetOn
func hwLetOn(c *C.hw_connection) {
	defer survive()
	k := workerOf(c.worker).connectionAt(c)
	k.posted = false
	held := k.held
	k.held = nil // one pass, for a client may have many; and each that goes on may end others
	for _, s := range held {
		switch {
		case !s.ahead || s.known != k || !k.isOpen():
		case k.mayLetOn(s):
			s.release()
		default:
			k.held = append(k.held, s)
		}
	}
}

// release has what waits of its response go on.
func (s *stream) release() {
	k := s.known
	k.forget(s)
	k.frames.Pass(&s.response, s.kept)
	if k.Own > 0 && k.Own < s.limit {
		C.envoy_dynamic_module_callback_http_set_buffer_limit(s.c.envoy, envoysLimit(s.limit))
	}
	C.envoy_dynamic_module_callback_http_filter_continue_encoding(s.c.envoy)
}

func (c *connection) forget(s *stream) {
	s.ahead = false
	c.held = slices.DeleteFunc(c.held, func(other *stream) bool { return other == s })
}

// unmeter ends it with its stream.
func (s *stream) unmeter() {
	if bool(s.c.metered) && s.known.frames != nil {
		s.known.forget(s)
		s.known.frames.Close(&s.response)
	}
}

// stuckAfter: a codec that writes nothing for so many ticks, though its client would take more, has
// nothing.
const stuckAfter = 4

// doubtMeters gives those connections up whose codecs have less than was passed to them, as where
// another filter makes less of it. The caller has the lock.
func (w *worker) doubtMeters() (lost []*connection) {
	w.mu.metered = slices.DeleteFunc(w.mu.metered, func(c *connection) (ends bool) {
		stuck := false
		for _, s := range c.held {
			stuck = s.isStuck() || stuck
		}
		if stuck {
			lost = append(lost, c)
		}
		ends = stuck || c.c == nil || len(c.held) == 0
		c.listed = !ends
		return ends
	})
	return lost
}

// isStuck notes what the codec has at a tick.
func (s *stream) isStuck() bool {
	frames := s.known.frames
	has := frames.Backlog(&s.response)
	if has < s.backlog || !frames.Takes(&s.response) {
		s.idle = 0
	} else {
		s.idle++
	}
	s.backlog = has
	return s.idle >= stuckAfter
}
