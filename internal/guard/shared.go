package guard

import (
	"fmt"
	"reflect"
	"strings"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// shared is what all plugins of a process have in common of their configurations, under the keys
// that it has there.
type shared struct {
	Budget     Budget        `json:"budget"`
	Throttle   Throttle      `json:"throttle"`
	Memory     Memory        `json:"memory"`
	Trace      Trace         `json:"trace"`
	RetryAfter RetryAfter    `json:"reject.retry_after"`
	Linger     unit.Duration `json:"buffers.linger"`
	Evict      bool          `json:"evict"`
}

func (c *Config) shared() shared {
	return shared{c.Budget, c.Throttle, c.Memory, c.Trace, c.Reject.RetryAfter, c.Buffers.Linger, c.Evict}
}

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
