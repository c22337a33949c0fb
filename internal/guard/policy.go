package guard

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// policy is what all plugins of a process have in common, and is in force in all of it: the plugin
// that started last sets it. The zero value is that before any has started.
type policy struct {
	inForce   bool
	enforcing bool // verdicts are carried out on a listener at least: see SetEnforcing
	budget    Budget
	throttle  Throttle
	memory    Memory
	trace     Trace
	reject    RetryAfter
	linger    unit.Duration
	evicts    bool
	limits    *budget.Limits // what budget comes to, as the account has it
}

// shared are the same figures under the keys that they have in a configuration.
type shared struct {
	Budget     Budget        `json:"budget"`
	Throttle   Throttle      `json:"throttle"`
	Memory     Memory        `json:"memory"`
	Trace      Trace         `json:"trace"`
	RetryAfter RetryAfter    `json:"reject.retry_after"`
	Linger     unit.Duration `json:"buffers.linger"`
	Evict      bool          `json:"evict"`
}

func (p *policy) shared() shared {
	return shared{p.budget, p.throttle, p.memory, p.trace, p.reject, p.linger, p.evicts}
}

// set puts a configuration's part of it in force, and returns what that changes.
func (p *policy) set(c *Config) (changed string) {
	was, before := p.shared(), p.inForce
	p.inForce = true
	p.budget, p.throttle, p.memory, p.trace = c.Budget, c.Throttle, c.Memory, c.Trace
	p.reject, p.linger, p.evicts = c.Reject.RetryAfter, c.Buffers.Linger, c.Evict
	if is := p.shared(); before && was != is {
		changed = differences(&was, &is)
	}
	return changed
}

// Use puts the parts of a configuration in force that all plugins share, and returns what that
// changes, such as "budget.limit 200MiB → 150MiB"; empty if nothing, or if it is the first.
func (w *Worker) Use(c *Config) (changed string) {
	changed = w.policy.set(c)
	w.account.SetLimits(c.Limits())
	return changed
}

// Memory says where readings come from.
func (w *Worker) Memory() Memory { return w.memory }

// differences lists what is not the same, such as "budget.limit 200MiB → 150MiB, evict true →
// false".
func differences(was, is *shared) string {
	var all []string
	compareFields("", reflect.ValueOf(was).Elem(), reflect.ValueOf(is).Elem(), &all)
	return strings.Join(all, ", ")
}

func compareFields(path string, was, is reflect.Value, all *[]string) {
	for i := range was.NumField() {
		key, _, _ := strings.Cut(was.Type().Field(i).Tag.Get("json"), ",")
		a, b := was.Field(i), is.Field(i)
		if _, text := a.Interface().(fmt.Stringer); a.Kind() == reflect.Struct && !text {
			compareFields(path+key+".", a, b, all)
		} else if x, y := fmt.Sprint(a.Interface()), fmt.Sprint(b.Interface()); x != y {
			*all = append(*all, fmt.Sprintf("%s%s %s → %s", path, key, orNone(x), orNone(y)))
		}
	}
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}
