// Package peak tells what the workers of a process froze at a high-water mark: as JSON for people
// and scripts, and as a profile for pprof. Names in it come from traffic, so whatever is not
// printable is escaped, and none is longer than reservoir.MaxLabel bytes.
package peak

import (
	"math"
	"sort"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/reservoir"
)

// Clock is now, as the host's CLOCK_MONOTONIC and as wall time: by both what was frozen at a
// monotonic time gets a date.
type Clock struct {
	Monotonic time.Duration
	Wall      int64 // nanoseconds since 1970
}

func (c *Clock) nanos(at time.Duration) int64 { return c.Wall + int64(at-c.Monotonic) }

// View is a peak in figures. Sizes are bytes. What is likely held is an estimate by the guard, of
// which the sum is made what was measured: see scale.
type View struct {
	Peak    int64  `json:"peak"`    // its number; 0 = as of now
	Highest bool   `json:"highest"` // of all
	AtMS    int64  `json:"at_unix_ms"`
	AgeMS   int64  `json:"age_ms"`
	SkewMS  int64  `json:"skew_ms"` // between the first worker that froze its sample and the last
	Level   string `json:"level"`
	Limit   int64  `json:"limit"`

	InUse       int64 `json:"in_use"` // measured
	Allocated   int64 `json:"allocated"`
	Base        int64 `json:"base"`        // what the process holds without traffic
	Held        int64 `json:"held"`        // likely, by all streams together
	Bounds      int64 `json:"bounds"`      // the most that they could hold
	Unexplained int64 `json:"unexplained"` // in_use − base − held: what no stream explains

	Likely   int64  `json:"likely"` // held, whatever was measured
	Estimate Figure `json:"estimate"`

	Streams     int64    `json:"streams"`
	Connections int64    `json:"connections"`
	Samples     int      `json:"samples"`
	Phases      Phases   `json:"phases"`
	Workers     []Worker `json:"workers"`
	Stacks      []Group  `json:"stacks"` // those that hold most
	Keys        []Group  `json:"keys"`
}

// Figure is an estimate from the sample: nine times of ten the truth is within Held ± Error.
type Figure struct {
	Held  int64 `json:"held"`
	Error int64 `json:"error"`
}

// Phases are what all streams in each phase likely hold, exactly summed up.
type Phases struct {
	Paused      int64 `json:"paused"`
	Uploading   int64 `json:"uploading"`
	Waiting     int64 `json:"waiting"`
	Downloading int64 `json:"downloading"`
}

// Worker is one worker's part.
type Worker struct {
	Worker  uint32  `json:"worker"`
	AfterMS int64   `json:"after_ms"` // the first one
	Streams int64   `json:"streams"`
	Likely  int64   `json:"likely"`
	Bounds  int64   `json:"bounds"`
	Samples int     `json:"samples"`
	Gap     float64 `json:"gap"` // one sample of so many bytes
}

// Group is the streams that have something in common.
type Group struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	VirtualHost string  `json:"virtual_host,omitempty"`
	Route       string  `json:"route,omitempty"`
	Cluster     string  `json:"cluster,omitempty"`
	Phase       string  `json:"phase,omitempty"`
	Key         *string `json:"key,omitempty"`
	Figure
	Requests float64 `json:"requests"` // estimated
	Bounds   int64   `json:"bounds"`   // estimated
	OldestMS int64   `json:"oldest_ms"`
}

// scale makes of what streams likely hold what they hold together as far as was measured, above the
// base. Less than likely: all hold less, in proportion. More: each holds so much of what lies
// between likely and its bound. It is those of whom the guard can't tell whether they have drained
// that have something there. What is measured beyond all bounds can be no stream's, as far as
// `buffers` tells the truth.
type scale struct{ likely, rest float64 }

func scaleTo(measured, likely, bounds float64) scale {
	switch {
	case likely <= 0 && bounds <= 0 || measured <= 0:
		return scale{}
	case measured <= likely:
		return scale{likely: measured / likely}
	case measured >= bounds:
		return scale{likely: 1, rest: 1}
	}
	return scale{likely: 1, rest: (measured - likely) / (bounds - likely)}
}

func (s scale) of(likely, bound int64) float64 {
	return s.likely*float64(likely) + s.rest*max(float64(bound)-float64(likely), 0)
}

func (s scale) sample(x *reservoir.Sample) float64 { return s.of(x.Likely, x.Request+x.Response) }

// merged is a peak with what is needed of it more than once.
type merged struct {
	reservoir.Peak
	last  *reservoir.Snapshot // by which the process is described
	first time.Duration
	skew  time.Duration
	sum   reservoir.Totals
	scale scale
}

func merge(p reservoir.Peak) merged {
	m := merged{Peak: p, last: &reservoir.Snapshot{}}
	var likely, bounds float64
	var last time.Duration
	for i := range p.Snapshots {
		s := &p.Snapshots[i]
		if i == 0 || s.Epoch > m.last.Epoch || s.Epoch == m.last.Epoch && s.InUse > m.last.InUse {
			m.last = s
		}
		if i == 0 {
			m.first, last = s.At, s.At
		}
		m.first, last = min(m.first, s.At), max(last, s.At)
		m.sum.Streams += s.Totals.Streams
		m.sum.Connections += s.Totals.Connections
		m.sum.Likely += s.Totals.Likely
		m.sum.Bound += s.Totals.Bound
		for j := range m.sum.Phases {
			m.sum.Phases[j] += s.Totals.Phases[j]
			m.sum.PhaseBounds[j] += s.Totals.PhaseBounds[j]
		}
		likely += float64(s.Totals.Likely)
		bounds += float64(s.Totals.Bound)
	}
	m.skew = last - m.first
	m.scale = scaleTo(float64(m.last.InUse)-float64(m.last.Base), likely, bounds)
	return m
}

// held is what all streams hold together.
func (m *merged) held() int64 { return whole(m.scale.of(m.sum.Likely, m.sum.Bound)) }

func (m *merged) phase(p reservoir.Phase) int64 {
	return whole(m.scale.of(m.sum.Phases[p], m.sum.PhaseBounds[p]))
}

func (m *merged) unexplained() int64 { return max(m.last.InUse-m.last.Base-m.held(), 0) }

// gap is the mean of the workers' gaps, bytes.
func (m *merged) gap() int64 {
	sum := 0.
	for i := range m.Snapshots {
		sum += m.Snapshots[i].Gap
	}
	return max(whole(sum/float64(len(m.Snapshots))), 0) // of none it is 0
}

// whole is f as an integer; what is read from shared data may be anything.
func whole(f float64) int64 {
	if math.IsNaN(f) {
		return 0
	}
	return int64(math.Round(max(min(f, 1<<62), -1<<62)))
}

// ViewOf is the peak in figures, with no more than most groups of each kind.
func ViewOf(p reservoir.Peak, clock Clock, most int) View {
	m := merge(p)
	v := View{
		Peak: p.Number, Highest: p.Highest, AtMS: clock.nanos(m.first) / 1e6, AgeMS: (clock.Monotonic - m.first).Milliseconds(),
		SkewMS: m.skew.Milliseconds(), Level: budget.Level(m.last.Level).String(), Limit: m.last.Limit,
		InUse: m.last.InUse, Allocated: m.last.Allocated, Base: m.last.Base, Held: m.held(), Bounds: m.sum.Bound, Unexplained: m.unexplained(),
		Likely: m.sum.Likely, Streams: m.sum.Streams, Connections: m.sum.Connections,
		Phases: Phases{
			Paused: m.phase(reservoir.Paused), Uploading: m.phase(reservoir.Uploading),
			Waiting: m.phase(reservoir.Waiting), Downloading: m.phase(reservoir.Downloading),
		},
		Workers: make([]Worker, 0, len(p.Snapshots)),
	}
	stacks, keys := groups[stack]{}, groups[string]{}
	var all tally
	for i := range p.Snapshots {
		s := &p.Snapshots[i]
		v.Samples += len(s.Samples)
		v.Workers = append(v.Workers, Worker{
			Worker: s.Worker, AfterMS: (s.At - m.first).Milliseconds(), Streams: s.Totals.Streams, Likely: s.Totals.Likely, Bounds: s.Totals.Bound,
			Samples: len(s.Samples), Gap: s.Gap,
		})
		for j := range s.Samples {
			x, w := &s.Samples[j], s.Weight(j)
			held := m.scale.sample(x)
			all.add(x, held, w)
			stacks.of(stackOf(x)).add(x, held, w)
			keys.of(x.Labels.Key).add(x, held, w)
		}
	}
	v.Estimate = all.figure()
	v.Stacks = stacks.largest(most, func(g *Group, s stack) {
		g.VirtualHost, g.Route, g.Cluster, g.Phase = Clean(s.virtualHost), Clean(s.route), Clean(s.cluster), s.phase.String()
	})
	v.Keys = keys.largest(most, func(g *Group, key string) { key = Clean(key); g.Key = &key })
	return v
}

// stack is what a profile shows of a stream, from the outside in.
type stack struct {
	virtualHost, route, cluster string
	phase                       reservoir.Phase
}

func stackOf(x *reservoir.Sample) stack {
	return stack{x.Labels.VirtualHost, x.Labels.Route, x.Labels.Cluster, x.Phase}
}

// tally sums up sampled streams.
type tally struct {
	held     reservoir.Estimate
	requests float64
	bounds   float64
	oldest   time.Duration
}

func (t *tally) add(x *reservoir.Sample, held, weight float64) {
	t.held.Add(held, weight)
	t.requests += weight
	t.bounds += weight * float64(x.Request+x.Response)
	t.oldest = max(t.oldest, x.Age)
}

func (t *tally) figure() Figure { return Figure{Held: whole(t.held.Sum), Error: whole(t.held.Error())} }

type groups[K comparable] map[K]*tally

func (g groups[K]) of(k K) *tally {
	t := g[k]
	if t == nil {
		t = &tally{}
		g[k] = t
	}
	return t
}

// largest are those that hold most, first.
func (g groups[K]) largest(most int, name func(g *Group, k K)) []Group {
	list := make([]Group, 0, len(g))
	for k, t := range g {
		x := Group{Figure: t.figure(), Requests: math.Round(10*t.requests) / 10, Bounds: whole(t.bounds), OldestMS: t.oldest.Milliseconds()}
		name(&x, k)
		list = append(list, x)
	}
	sort.Slice(list, func(i, j int) bool { // generic sorting would be larger in the plugin by 40 KiB
		a, b := &list[i], &list[j]
		if a.Held != b.Held {
			return a.Held > b.Held
		}
		return a.name() < b.name() // always in the same order
	})
	return list[:min(len(list), most)]
}

func (g *Group) name() string {
	if g.Key != nil {
		return *g.Key
	}
	return g.VirtualHost + "\x00" + g.Route + "\x00" + g.Cluster + "\x00" + g.Phase
}

// Clean is text from traffic as it may be shown anywhere: what is not printable (control
// characters, escape sequences of terminals, marks that turn the writing round) is escaped as in
// Go, and bytes that are no UTF-8 too. It is no longer than reservoir.MaxLabel bytes before that.
func Clean(text string) string {
	text = text[:min(len(text), reservoir.MaxLabel)]
	plain := true
	for _, r := range text {
		if !strconv.IsPrint(r) || r == utf8.RuneError {
			plain = false
			break
		}
	}
	if plain {
		return text
	}
	quoted := strconv.Quote(text)
	// Quotes are harmless, and stay as they are where nothing is escaped.
	return strings.ReplaceAll(quoted[1:len(quoted)-1], `\"`, `"`)
}
