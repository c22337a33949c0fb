package main

import (
	"slices"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"

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
		machine.worker.Look(machine.now)
		machine.looking = append(machine.looking, looking{s, method, question, machine.now})
		s.plugin.hurry(guard.FastTick)
		return true
	}
	s.tell(method, question)
	return true
}

// answerLooking answers those for whom all is there, in a tick, and says whether others still wait.
func (p *plugin) answerLooking(t budget.Time) (waits bool) {
	if len(machine.looking) == 0 {
		return false
	}
	kept := machine.looking[:0]
	for _, l := range machine.looking {
		switch {
		case !machine.worker.Looked(t, l.since):
			kept = append(kept, l)
		case p.on(l.stream.id):
			l.stream.tell(l.method, l.question)
		}
	}
	clear(machine.looking[len(kept):])
	machine.looking = kept
	p.on(p.id)
	return len(kept) > 0
}

// forget drops the stream from those that wait: its client has gone, or it has its answer.
func (v *vm) forget(s *stream) {
	if len(v.looking) > 0 {
		v.looking = slices.DeleteFunc(v.looking, func(l looking) bool { return l.stream == s })
	}
}

func (s *stream) tell(method, question string) {
	w := machine.worker
	source := peak.Source{
		Clock:    peak.Clock{Monotonic: now(), Wall: wall()},
		About:    [][2]string{{"version", version.String()}, {"face", face}, {"mode", string(machine.setup.mode())}},
		Level:    w.Account().Table().Level.String(),
		Figures:  func(add func(name string, value int64)) { w.Status(machine.now, add) },
		Counters: machine.stats.counted,
		Prices:   func() any { return w.Prices() },
		Peaks:    w.Peaks,
		Current:  w.Current,
	}
	a := source.Ask(method, question)
	headers := [][2]string{{"content-type", a.ContentType}, {"cache-control", "no-store"}, {"x-content-type-options", "nosniff"}}
	if a.Status == 405 {
		headers = append(headers, [2]string{"allow", "GET"})
	}
	if proxywasm.SendHttpResponse(uint32(a.Status), headers, a.Body, -1) != nil {
		machine.hostError()
	}
}
