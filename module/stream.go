package main

// #include "abi.h"
import "C"

import (
	"runtime"
	"unsafe"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/httptext"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// stream is one HTTP stream. Streams are used again, so that a request allocates none.
type stream struct {
	guard.Stream // first: streamOf relies on it
	node
	c       *C.hw_stream // nil = it has ended
	worker  *worker
	plugin  *plugin
	guard   *guard.Guard
	arrived *connection // on which bytes came last before it
	known   *connection // its own; nil = not asked for, or there is no network filter
	key     uint64      // Envoy's id of that
	holding
	metered
	replied bool // it has its answer
	pinned  runtime.Pinner
	allowed *C.int64_t // of its response so much may pass without us
}

// pin has C count what needs no booking. The stream is used again for as long as the process lives.
func (s *stream) pin() {
	s.pinned.Pin(s)
	s.allowed = (*C.int64_t)(unsafe.Pointer(s.Allowance()))
}

// streamOf returns the stream that the guard's is part of.
func streamOf(s *guard.Stream) *stream { return (*stream)(unsafe.Pointer(s)) }

func (s *stream) open() bool { return s.c != nil && bool(s.c.open) }

// hwRequestHeaders judges a request. id is that of its connection.
//
//export hwRequestHeaders
func hwRequestHeaders(c *C.hw_stream, id C.uint64_t, length C.int64_t) (status C.int) {
	defer survive()
	w, p := workerOf(c.worker), module.plugins.of(uintptr(c.config))
	if w == nil || p == nil {
		return C.HW_CONTINUE
	}
	t := now()
	w.yield(t)
	s := w.openStream(c, p, uint64(id), t)
	s.restore(t)
	if path := p.config.Debug.Path; path != "" && s.introspect(path) {
		return C.HW_STOP_ALL_AND_WATERMARK
	}
	trapRequest(s)
	v := s.judge(t, known(int64(length)))
	if v.Action == verdict.Wait {
		s.holdBack()
	}
	return s.do(v, C.HW_STOP_ALL_AND_WATERMARK)
}

// known is a length as the policy has it.
func known(length int64) int64 {
	if length < 0 {
		return budget.Unknown
	}
	return min(length, budget.Unlimited)
}

func (w *worker) openStream(c *C.hw_stream, p *plugin, id uint64, t budget.Time) *stream {
	w.mu.Lock()
	defer w.mu.Unlock()
	place, s := w.mu.streams.take()
	if s.allowed == nil {
		s.pin()
	}
	c.slot, c.open, c.free = C.uint32_t(place), true, s.allowed
	s.c, s.worker, s.plugin, s.guard, s.key = c, w, p, p.guards[w.index], id // the guard's part is ready to be used again
	s.arrived, s.known, s.holding, s.replied = w.mu.arrived, w.mu.byID[id], holding{}, false
	s.metered = metered{}
	s.meter()
	w.begin(&s.node, c.envoy, true)
	w.wake(t)
	return s
}

func (s *stream) judge(t budget.Time, length int64) guard.Verdict {
	w := s.worker
	w.mu.Lock()
	defer w.mu.Unlock()
	if length != 0 && w.mu.policy.Marks() {
		w.mu.policy.Mark(t)
	}
	return s.guard.Open(t, &s.Stream, s, length)
}

//export hwResponseHeaders
func hwResponseHeaders(c *C.hw_stream, length C.int64_t) (status C.int) {
	defer survive()
	s, v := workerOf(c.worker).expect(c, known(int64(length)))
	s.answers()
	return s.do(v, C.HW_STOP)
}

func (w *worker) expect(c *C.hw_stream, length int64) (s *stream, v guard.Verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s = w.mu.streams.all[c.slot]
	return s, s.guard.Expect(now(), &s.Stream, length)
}

// hwBody counts what passes of a body, and its end; n is 0 at trailers.
//
//export hwBody
func hwBody(c *C.hw_stream, response C.bool, n C.size_t, end C.bool) (status C.int) {
	defer survive()
	d := budget.Request
	if response {
		d = budget.Response
	}
	s, v := workerOf(c.worker).body(c, d, int64(n), bool(end))
	return s.do(v, C.HW_STOP_WITHOUT_BUFFERING)
}

func (w *worker) body(c *C.hw_stream, d budget.Direction, n int64, end bool) (s *stream, v guard.Verdict) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s = w.mu.streams.all[c.slot]
	if d == budget.Response && end && s.EndsUnbooked() && s.PassesUnbooked(n) {
		return s, v
	}
	t := now()
	if n > 0 {
		v = s.guard.Grow(t, &s.Stream, d, n)
	}
	if end {
		s.guard.End(t, &s.Stream, d)
	}
	return s, v
}

// hwStreamDone comes exactly once for each stream that is open.
//
//export hwStreamDone
func hwStreamDone(c *C.hw_stream) {
	c.open = false
	defer survive()
	w := workerOf(c.worker)
	defer w.closeStream(c) // whatever happens before
	w.streamAt(c).leave()  // a call of Envoy, which may call in again: without the lock
}

func (w *worker) streamAt(c *C.hw_stream) *stream {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.streams.all[c.slot]
}

func (w *worker) closeStream(c *C.hw_stream) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.mu.streams.all[c.slot]
	// A fault in the policy must leave nothing here that Envoy has freed.
	w.end(&s.node)
	w.mu.looking.Forget(s)
	defer func() { s.c, s.known, s.arrived = nil, nil, nil }()
	if waited := s.guard.Close(now(), &s.Stream); waited > 0 {
		module.metrics.waited(waited)
	}
	w.forgetBare(s.key)
	w.mu.streams.give(uint32(c.slot))
}

// do carries a verdict out in a hook of the stream's own, and returns what stops it there.
func (s *stream) do(v guard.Verdict, stop C.int) C.int {
	switch v.Action {
	case verdict.Admit:
		return C.HW_CONTINUE
	case verdict.Pass:
		s.worker.soon()
		return C.HW_CONTINUE
	case verdict.Wait, verdict.Close:
		s.mark(v)
		s.worker.soon()
		return stop
	}
	if !s.carryOut(v) {
		return C.HW_CONTINUE // a reject that fails must not hang: the traffic goes on
	}
	return stop
}

// soon has a tick come soon.
func (w *worker) soon() { w.hurry(now(), guard.FastTick) }

// carryOut rejects or evicts it: with an answer, or with a reset where its response has begun. It
// says whether it did.
func (s *stream) carryOut(v guard.Verdict) bool {
	s.mark(v)
	if v.Action == verdict.Close {
		return true // its connection is closed by the tick
	}
	// Where Envoy has stopped to read it, that stays so: it closes the connection of a request that
	// is not all there when it has been answered.
	if v.Action == verdict.Reset {
		details := "highwater"
		C.envoy_dynamic_module_callback_http_filter_reset_stream(s.c.envoy, C.HW_LOCAL_RESET, textOf(details))
		return true
	}
	r := &s.guard.Config().Reject
	grpc := httptext.IsGRPC(s.Header("content-type"))
	headers, body := v.Answer(r, grpc)
	if grpc {
		s.answerGRPC(headers, body)
	} else {
		s.answer(r.Status, headers, body)
	}
	return true
}

// mark leaves the verdict where access logs find it, under the plugin's name:
// %FILTER_STATE(wasm.highwater.verdict:PLAIN)%.
func (s *stream) mark(v guard.Verdict) {
	key, text := "wasm.highwater.verdict", v.String()
	if !bool(C.envoy_dynamic_module_callback_http_set_filter_state_bytes(s.c.envoy, textOf(key), textOf(text))) {
		s.worker.hostError()
	}
	runtime.KeepAlive(text)
}

func (w *worker) hostError() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.policy.HostError()
}

func (s *stream) answer(status int, headers [][2]string, body string) {
	var pin runtime.Pinner
	defer pin.Unpin()
	s.replied = true
	all, details := headersOf(&pin, headers), "highwater"
	C.envoy_dynamic_module_callback_http_send_response(s.c.envoy, C.uint32_t(status), unsafe.SliceData(all), C.size_t(len(all)),
		textOf(body), textOf(details))
	runtime.KeepAlive(body)
}

// answerGRPC answers by headers alone: Envoy's own replies to gRPC know status 14 for a 503, and
// not 8.
func (s *stream) answerGRPC(headers [][2]string, message string) {
	var pin runtime.Pinner
	defer pin.Unpin()
	s.replied = true
	all := headersOf(&pin, append([][2]string{
		{":status", "200"}, {"content-type", "application/grpc"}, {"grpc-status", grpcStatus}, {"grpc-message", message},
	}, headers...))
	C.envoy_dynamic_module_callback_http_send_response_headers(s.c.envoy, unsafe.SliceData(all), C.size_t(len(all)), true)
}

const grpcStatus = "8" // verdict.GRPCResourceExhausted
