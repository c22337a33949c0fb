// Package introspect answers what a client asks below debug.path, for the faces inside Envoy: who
// waits for the samples as of now, what a process tells, and with which headers.
package introspect

import (
	"slices"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/peak"
	"github.com/highwater-envoy/highwater/internal/version"
)

// Question is what a request below debug.path asks.
type Question struct {
	Method string
	Text   string // see peak.Source
}

// Of is the question of a request, and whether it is one: its path is below base. An empty base has
// none. The method is asked of those alone, for it is a call of the host.
func Of(base, path string, method func() string) (q Question, below bool) {
	text, below := peak.Below(base, path)
	if !below {
		return q, false
	}
	return Question{method(), text}, true
}

const get = "GET" // as in net/http, which is too large for the plugin

// WantsCurrent says that all workers have to freeze their samples before it is answered.
func (q Question) WantsCurrent() bool { return q.Method == get && peak.WantsCurrent(q.Text) }

// Process is what answers.
type Process struct {
	Worker   *guard.Worker // any of the process: they share what they know
	Face     string
	Mode     guard.Mode
	Clock    peak.Clock
	Counters func(add func(name string, value int64))
}

// Ask answers a question.
func (p *Process) Ask(q Question) peak.Answer {
	source := peak.Source{
		Clock:    p.Clock,
		About:    [][2]string{{"version", version.String()}, {"face", p.Face}, {"mode", string(p.Mode)}},
		Level:    p.Worker.Account().Table().Level.String(),
		Figures:  func(add func(name string, value int64)) { p.Worker.Status(p.Clock.Monotonic, add) },
		Counters: p.Counters,
		Peaks:    p.Worker.Peaks,
		Current:  p.Worker.Current,
	}
	return source.Ask(q.Method, q.Text)
}

// Headers are those of an answer.
func Headers(a peak.Answer) [][2]string {
	all := [][2]string{{"content-type", a.ContentType}, {"cache-control", "no-store"}, {"x-content-type-options", "nosniff"}}
	if a.Status == 405 {
		all = append(all, [2]string{"allow", "GET"})
	}
	return all
}

// Waiting are the streams of a face that wait until all workers have frozen their samples, in the
// order in which they came. The zero value has none.
type Waiting[S comparable] struct{ list []Waiter[S] }

// Waiter is one of them.
type Waiter[S comparable] struct {
	Stream   S
	Question Question
	Since    guard.Time
}

// Any says that there are some.
func (w *Waiting[S]) Any() bool { return len(w.list) > 0 }

// Add has one wait.
func (w *Waiting[S]) Add(one Waiter[S]) { w.list = append(w.list, one) }

// Ready takes out those for whom all is there: looked says so of who has waited since then.
func (w *Waiting[S]) Ready(looked func(since guard.Time) bool) (ready []Waiter[S]) {
	w.list = slices.DeleteFunc(w.list, func(one Waiter[S]) bool {
		there := looked(one.Since)
		if there {
			ready = append(ready, one)
		}
		return there
	})
	return ready
}

// Forget drops a stream that has ended, or has its answer.
func (w *Waiting[S]) Forget(s S) {
	if len(w.list) > 0 {
		w.list = slices.DeleteFunc(w.list, func(one Waiter[S]) bool { return one.Stream == s })
	}
}
