package main

// #include "abi.h"
import "C"

import (
	"runtime"
	"time"
	"unsafe"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/introspect"
	"github.com/highwater-envoy/highwater/internal/peak"
)

// introspect answers what is asked below debug.path, and says whether it does. Such a request is
// none of the guard's: it is answered whatever the memory.
func (s *stream) introspect(base string) bool {
	q, below := introspect.Of(base, s.Path(), func() string { return s.Header(":method") })
	switch {
	case !below:
		return false
	case q.WantsCurrent():
		s.worker.look(introspect.Waiter[*stream]{Stream: s, Question: q, Since: now()})
	default:
		s.tell(q)
	}
	return true
}

func (w *worker) look(l introspect.Waiter[*stream]) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.policy.Look(l.Since)
	w.mu.looking.Add(l)
	w.hurry(l.Since, guard.FastTick)
}

// tell answers a question.
func (s *stream) tell(q introspect.Question) {
	if s.open() {
		a := s.worker.ask(q)
		s.answer(a.Status, introspect.Headers(a), string(a.Body))
	}
}

func (w *worker) ask(q introspect.Question) peak.Answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	process := introspect.Process{
		Worker: w.mu.policy, Face: face, Mode: module.plugins.mode(),
		Clock:    peak.Clock{Monotonic: now(), Wall: time.Now().UnixNano()},
		Counters: module.metrics.counted,
	}
	return process.Ask(q)
}

// adminBase is where Envoy's admin interface has our pages: see hooks.c.
const adminBase = "/highwater"

// hwAdmin answers on Envoy's admin interface, on its main thread. That can't wait until all workers
// have frozen their samples, so that what is asked for as of now is told below debug.path alone.
//
//export hwAdmin
func hwAdmin(config unsafe.Pointer, method, path C.hw_text) (status C.uint32_t) {
	status = 500
	defer survive()
	q, below := introspect.Of(adminBase, stringOf(path), func() string { return stringOf(method) })
	if !below || len(module.workers) == 0 {
		return 404
	}
	a := peak.Answer{Status: 400, Body: []byte("ask for pprof?peak=highest, latest or a number of peaks; as of now it is told below debug.path alone\n")}
	if !q.WantsCurrent() {
		a = module.workers[0].ask(q)
	}
	body := string(a.Body)
	C.envoy_dynamic_module_callback_bootstrap_extension_admin_set_response(config, textOf(body))
	runtime.KeepAlive(body)
	return C.uint32_t(a.Status)
}
