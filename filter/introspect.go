package main

import (
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"

	"github.com/highwater-envoy/highwater/internal/budget"
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
		machine.worker.Look(machine.now)
		machine.looking.Add(introspect.Waiter[*stream]{Stream: s, Question: q, Since: machine.now})
		s.plugin.hurry(guard.FastTick)
	default:
		s.tell(q)
	}
	return true
}

// answerLooking answers those for whom all is there, in a tick, and says whether others still wait.
func (p *plugin) answerLooking(t budget.Time) (waits bool) {
	if !machine.looking.Any() {
		return false
	}
	for _, l := range machine.looking.Ready(func(since budget.Time) bool { return machine.worker.Looked(t, since) }) {
		if p.on(l.Stream.id) {
			l.Stream.tell(l.Question)
		}
	}
	p.on(p.id)
	return machine.looking.Any()
}

func (s *stream) tell(q introspect.Question) {
	process := introspect.Process{
		Worker: machine.worker, Face: face, Mode: machine.setup.mode(),
		Clock:    peak.Clock{Monotonic: now(), Wall: wall()},
		Counters: machine.stats.counted,
	}
	a := process.Ask(q)
	if proxywasm.SendHttpResponse(uint32(a.Status), introspect.Headers(a), a.Body, -1) != nil {
		machine.hostError()
	}
}
