package guard

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// settings are those that the sequences run with: the shipped example's, Envoy's defaults, and some
// that make rare paths common.
var settings = []struct {
	name string
	edit func(*Config)
}{
	{"example", func(c *Config) { c.Exempt = []Exempt{{PathPrefix: "/healthz"}} }},
	{"defaults", func(c *Config) { c.Buffers = Default().Buffers }},
	{"no waiting", func(c *Config) {
		c.Throttle.Timeout = 0
		c.Buffers = Default().Buffers
		c.Budget.Limit.Bytes = 128 * unit.MiB
	}},
	{"tight", func(c *Config) {
		c.Budget.Limit.Bytes = 48 * unit.MiB
		c.Throttle.Timeout = unit.Duration(100 * ms)
		c.Buffers.WholeRequest = 0
		c.Buffers.Linger = unit.Duration(time.Second)
	}},
	{"observe", func(c *Config) { c.Mode = Observe; c.Budget.Limit.Bytes = 64 * unit.MiB }},
}

func FuzzSequence(f *testing.F) {
	for seed := range uint64(4) {
		var ops []byte
		for next := random(seed, 300); ; {
			b, ok := next()
			if !ok {
				break
			}
			ops = append(ops, b)
		}
		f.Add(byte(seed), ops)
	}
	f.Fuzz(func(t *testing.T, setting byte, ops []byte) {
		if len(ops) > 4000 {
			return // longer ones are only slower
		}
		next := func() (byte, bool) {
			if len(ops) == 0 {
				return 0, false
			}
			b := ops[0]
			ops = ops[1:]
			return b, true
		}
		newEnvoy(t, 1+int(setting>>4)%3, settings[int(setting&15)%len(settings)].edit, next).run()
	})
}

// check is what holds at every moment.
func (e *envoy) check() {
	e.t.Helper()
	table := e.shared()
	if table.Sequence > 0 && e.now-table.Asked <= time.Second && e.guards[0].Config().Mode != Observe { // there it leaves shadows out
		if est, truth := e.upperBound(), e.truth(); est < truth {
			e.fail("estimate %d, but %d are in use", est, truth)
		}
	}
	var coming, bounds, unbooked, shadows [16]int64
	var count [16]int64
	for _, x := range e.streams {
		i := x.link.worker
		count[i]++
		coming[i] += x.Awaited()
		unbooked[i] += x.Unbooked()
		if x.Shadow() {
			shadows[i] += x.Likely()
		}
		for d := budget.Request; d <= budget.Response; d++ {
			coming[i] += x.Reserved(d)
			if !x.Shadow() {
				bounds[i] += x.Held(d)
			}
			if small := e.small(); isExemptWhileSmall(&x.Stream) && !x.Presumed() && x.Seen(d)-x.Unbooked() > small {
				e.fail("exempt by its path, and not small: %d bytes of %d", x.Seen(d), small)
			}
		}
	}
	for i, w := range e.workers {
		own := w.Account().Own()
		if min(own.Lease, own.Fresh, own.Coming, own.Small, own.Likely, own.Bounds, own.Exposure, own.Left, own.Queue.Held,
			own.Queue.Waiting, own.Connections.Open, own.Queue.Wanted) < 0 {
			e.fail("worker %d: something is negative: %+v", i, own)
		}
		switch {
		case own.Streams != count[i]:
			e.fail("worker %d: %d streams, not %d", i, own.Streams, count[i])
		case own.Shadows.Likely != shadows[i]:
			e.fail("worker %d: shadows hold %d, not %d", i, own.Shadows.Likely, shadows[i])
		case own.Coming != coming[i]:
			e.fail("worker %d: coming %d, but its streams' %d", i, own.Coming, coming[i])
		case own.Bounds < bounds[i]-unbooked[i] || unbooked[i] > own.Coming || own.Likely > own.Bounds: // what is not booked counts as coming
			e.fail("worker %d: bounds %d, likely %d, but its streams' bounds %d", i, own.Bounds, own.Likely, bounds[i])
		}
		// Nobody comes to hold more than the others count for him.
		for _, entry := range table.Entries {
			if entry.ID == own.ID && own.Fresh+own.Coming > max(entry.Lease, entry.Fresh+entry.Coming) {
				e.fail("worker %d: fresh %d + coming %d, but the others know of %d", i, own.Fresh, own.Coming, entry.Lease)
			}
		}
	}
}

// upperBound is the upper bound on memory in use, as of now, with what each worker has not told
// yet.
func (e *envoy) upperBound() int64 {
	sum := e.shared().Reading
	for _, w := range e.workers {
		own := w.Account().Own()
		sum += own.Fresh + own.Coming
	}
	return sum
}

// admitted checks an admission of a large request or response: as far as its worker can know, all
// that all workers were promised stays under hard.
func (e *envoy) admitted(w *Worker) {
	if w.Account().Stale(e.now) || e.guards[0].Config().Mode == Observe {
		return
	}
	if w.Account().Table().Futile {
		return // it may have been let in beside what there is room for
	}
	e.seen["checked admission"]++
	if got, most := w.Account().Estimate(e.now), w.Account().Share(float64(e.guards[0].Config().Budget.Hard)); got > most {
		e.fail("an admission makes the estimate %d, more than T = %d", got, most)
	}
}

// small is up to what a message is small.
func (e *envoy) small() int64 { return int64(e.guards[0].Config().Budget.Small) }

// mayBeExempt says that the request may be exempt by its path.
func (e *envoy) mayBeExempt(x *exchange) bool {
	return x.path != "" && len(e.guards[0].Config().Exempt) > 0
}

func (e *envoy) fail(format string, args ...any) {
	e.t.Helper()
	e.t.Fatalf("%s\nbehind %q", fmt.Sprintf(format, args...), e.trace)
}

// finish closes all: then nothing may be left of it.
func (e *envoy) finish() {
	for len(e.conns) > 0 {
		e.closeLink(e.conns[0])
		e.check()
	}
	require.Empty(e.t, e.streams)
	for end := e.now + 11*time.Second; e.now < end; {
		e.tick(100 * ms)
		if e.reading != nil {
			e.reading.fails = false
		}
	}
	for i, w := range e.workers {
		own := w.Account().Own()
		require.LessOrEqual(e.t, own.Lease, 4*e.small())
		own.ID, own.Beat, own.Lease, own.Passed, own.Paused, own.Shadows.Passed, own.Queue.Rate, own.Evicted.Sequence, own.Connections.Lease = 0, 0, 0, 0, 0, 0, 0, 0, 0
		require.Equal(e.t, budget.Entry{}, own, "worker %d", i)
		requireNothingLeft(e.t, w)
	}
	require.Equal(e.t, e.base, e.shared().InUse)
}
