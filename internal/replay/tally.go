package replay

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/chart"
	"github.com/highwater-envoy/highwater/internal/recording"
	"github.com/highwater-envoy/highwater/internal/sim"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Counts are what became of requests. A request that comes back counts again, but in Served.
type Counts struct {
	Admitted int64            `json:"admitted"` // by the guard, at once or after waiting
	Waited   int64            `json:"waited"`
	WaitP50  unit.Duration    `json:"wait_p50"` // of those who waited, to two digits
	WaitP99  unit.Duration    `json:"wait_p99"`
	Rejected int64            `json:"rejected"` // by all reasons but evicted
	Reasons  map[string]int64 `json:"reasons,omitempty"`
	Evicted  int64            `json:"evicted"`
	Closed   int64            `json:"closed"`  // connections: at once, or under a request
	Served   int64            `json:"served"`  // whole
	Latency  unit.Duration    `json:"latency"` // of those on average, from the first try on
	GaveUp   int64            `json:"gave_up"`
	Bytes    int64            `json:"bytes"`   // of the served, both ways
	Goodput  int64            `json:"goodput"` // bytes a second
	Peak     unit.Bytes       `json:"peak"`    // of a key: held by its requests

	waits map[int64]int64
	took  time.Duration // by all that were served
}

// Lost is how many requests were rejected, evicted or had their connection closed.
func (c *Counts) Lost() int64 { return c.Rejected + c.Evicted + c.Closed }

// OfKey are the counts of one key.
type OfKey struct {
	Key string `json:"key"`
	Counts
}

// mostKeys is how many keys are counted by themselves.
const mostKeys = 1000

// tally counts what the model tells.
type tally struct {
	all    Counts
	keys   map[string]*Counts
	series chart.Series

	held map[string]int64
	lost func() // nil = nobody wants to know
	seen func(at time.Duration)
}

func newTally() *tally {
	return &tally{keys: map[string]*Counts{}, held: map[string]int64{}}
}

func (t *tally) of(key string) *Counts {
	c := t.keys[key]
	if c == nil {
		if len(t.keys) >= mostKeys {
			key = recording.Others
			if c = t.keys[key]; c != nil {
				return c
			}
		}
		c = &Counts{}
		t.keys[key] = c
	}
	return c
}

// Tell implements sim.Source.
func (t *tally) Tell(o sim.Outcome) {
	t.all.add(&o)
	t.of(o.Client.Class).add(&o)
	if t.lost != nil && t.all.Lost() > 0 {
		t.lost()
	}
}

func (c *Counts) add(o *sim.Outcome) {
	switch o.What {
	case sim.Admitted:
		c.Admitted++
		c.wait(o.Waited)
	case sim.Done:
		c.Served++
		c.took += o.Since
		c.Bytes += o.Bytes
	case sim.Rejected, sim.Cut:
		if o.What == sim.Rejected {
			c.wait(o.Waited) // else it was counted when it was admitted
		}
		if o.Reason == "evicted" {
			c.Evicted++
			return
		}
		c.Rejected++
		if c.Reasons == nil {
			c.Reasons = map[string]int64{}
		}
		c.Reasons[cmp.Or(o.Reason, "not told")]++
	case sim.Closed, sim.Refused:
		c.Closed++
	case sim.GaveUp:
		c.GaveUp++
	}
}

// wait counts one who waited. Times are rounded to two digits, so that there are few.
func (c *Counts) wait(d time.Duration) {
	if d <= 0 {
		return
	}
	if c.waits == nil {
		c.waits = map[int64]int64{}
	}
	c.Waited++
	ms := d.Milliseconds()
	for unit := int64(1); ; unit *= 10 {
		if ms/unit < 100 {
			ms = ms / unit * unit
			break
		}
	}
	c.waits[ms]++
}

// quantile of the times waited.
func (c *Counts) quantile(q float64) unit.Duration {
	left := int64(math.Ceil(q * float64(c.Waited)))
	for _, ms := range slices.Sorted(maps.Keys(c.waits)) {
		if left -= c.waits[ms]; left <= 0 {
			return unit.Duration(time.Duration(ms) * time.Millisecond)
		}
	}
	return 0
}

// See implements sim.Source.
func (t *tally) See(at sim.Time, m sim.Memory, held func(visit func(*sim.Client, int64))) {
	t.series.Add(at, m.InUse)
	if t.seen != nil {
		t.seen(at)
	}
	clear(t.held)
	held(func(c *sim.Client, bytes int64) { t.held[c.Class] += bytes })
	for key, bytes := range t.held {
		c := t.of(key)
		c.Peak = max(c.Peak, unit.Bytes(bytes))
	}
}

// finish computes what follows from the counts.
func (t *tally) finish(span time.Duration) (all Counts, keys []OfKey) {
	end := func(c *Counts) {
		c.WaitP50, c.WaitP99 = c.quantile(.5), c.quantile(.99)
		if c.Served > 0 {
			c.Latency = unit.Duration((c.took / time.Duration(c.Served)).Round(time.Millisecond))
		}
		c.Goodput = int64(float64(c.Bytes) / max(span.Seconds(), 1e-3))
	}
	end(&t.all)
	for _, key := range slices.Sorted(maps.Keys(t.keys)) {
		c := t.keys[key]
		end(c)
		keys = append(keys, OfKey{key, *c})
	}
	slices.SortStableFunc(keys, func(a, b OfKey) int {
		return cmp.Or(cmp.Compare(b.Lost(), a.Lost()), cmp.Compare(b.Waited, a.Waited), cmp.Compare(b.Bytes, a.Bytes))
	})
	return t.all, keys
}
