package main

// #include "abi.h"
import "C"

import (
	"runtime"
	"slices"
	"time"
	"unsafe"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/peak"
	"github.com/highwater-envoy/highwater/internal/version"
)

// looking is a request for the samples as of now, which waits until all workers have frozen theirs.
type looking struct {
	stream   *stream
	method   string
	question string
	since    budget.Time
}

// introspect answers what is asked below debug.path, and says whether it does. Such a request is
// none of the guard's: it is answered whatever the memory.
func (s *stream) introspect(base string) bool {
	question, below := peak.Below(base, s.Path())
	if !below {
		return false
	}
	method := s.Header(":method")
	if method == "GET" && peak.WantsCurrent(question) {
		s.worker.look(looking{s, method, question, now()})
		return true
	}
	s.tell(method, question)
	return true
}

func (w *worker) look(l looking) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.policy.Look(l.since)
	w.mu.looking = append(w.mu.looking, l)
	w.hurry(l.since, guard.FastTick)
}

// looked takes out those for whom all is there. The caller has the lock.
func (w *worker) looked(t budget.Time) (ready []looking) {
	if len(w.mu.looking) == 0 {
		return nil
	}
	w.mu.looking = slices.DeleteFunc(w.mu.looking, func(l looking) bool {
		there := w.mu.policy.Looked(t, l.since)
		if there {
			ready = append(ready, l)
		}
		return there
	})
	return ready
}

// forget drops the stream from those that wait: its client has gone, or it has its answer.
func (w *worker) forget(s *stream) {
	if len(w.mu.looking) > 0 {
		w.mu.looking = slices.DeleteFunc(w.mu.looking, func(l looking) bool { return l.stream == s })
	}
}

// tell answers a question.
func (s *stream) tell(method, question string) {
	if !s.open() {
		return
	}
	a := s.worker.ask(method, question)
	headers := [][2]string{{"content-type", a.ContentType}, {"cache-control", "no-store"}, {"x-content-type-options", "nosniff"}}
	if a.Status == 405 {
		headers = append(headers, [2]string{"allow", "GET"})
	}
	s.answer(a.Status, headers, string(a.Body))
}

func (w *worker) ask(method, question string) peak.Answer {
	w.mu.Lock()
	defer w.mu.Unlock()
	mode := guard.Observe
	if module.plugins.enforcing() {
		mode = guard.Enforce
	}
	p, t := w.mu.policy, now()
	source := peak.Source{
		Clock:    peak.Clock{Monotonic: t, Wall: time.Now().UnixNano()},
		About:    [][2]string{{"version", version.String()}, {"face", face}, {"mode", string(mode)}},
		Level:    p.Account().Table().Level.String(),
		Figures:  func(add func(name string, value int64)) { p.Status(t, add) },
		Counters: module.metrics.counted,
		Peaks:    p.Peaks,
		Current:  p.Current,
	}
	return source.Ask(method, question)
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
	question, below := peak.Below(adminBase, stringOf(path))
	if !below || len(module.workers) == 0 {
		return 404
	}
	a := peak.Answer{Status: 400, Body: []byte("ask for pprof?peak=highest, latest or a number of peaks; as of now it is told below debug.path alone\n")}
	if !peak.WantsCurrent(question) {
		a = module.workers[0].ask(stringOf(method), question)
	}
	body := string(a.Body)
	C.envoy_dynamic_module_callback_bootstrap_extension_admin_set_response(config, textOf(body))
	runtime.KeepAlive(body)
	return C.uint32_t(a.Status)
}
