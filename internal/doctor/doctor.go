// Package doctor says what an Envoy's memory is made of, what is wrong with it, and which setting
// to change to what. It is pure: it gathers nothing, and knows no clock. Samples of one moment or
// of many come in, and a Report goes out, which it also writes as text and as a page.
package doctor

import (
	"cmp"
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/allocator"
	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/heapdump"
	"github.com/highwater-envoy/highwater/internal/memorymap"
)

// Envoy is who is examined.
type Envoy struct {
	Version string        `json:"version,omitempty"`
	Workers int           `json:"workers,omitempty"`
	Uptime  time.Duration `json:"uptime,omitempty"`
	PID     int           `json:"pid,omitempty"`
}

// Sample is what was gathered at one moment. What is nil could not be read, and Missing says why.
type Sample struct {
	Time      time.Time
	Envoy     Envoy
	Totals    *allocator.Report // of /memory
	Allocator *allocator.Report // of /memory/tcmalloc, or what stands for it
	Gauges    *memorymap.Gauges
	Mappings  []memorymap.Mapping
	Status    *memorymap.Status
	Container *cgroup.Stats
	Sockets   *int64 // the kernel's TCP memory of the network namespace, bytes
	Missing   []string
}

// report is the allocator's, whichever there is.
func (s *Sample) report() *allocator.Report {
	if s.Allocator != nil {
		return s.Allocator
	}
	return s.Totals
}

// Input is what is examined.
type Input struct {
	Now Sample
	// First is the sample with which watching began; nil = there is one moment alone.
	First *Sample
	// Growth is what is to be said of the time since; nil = nobody watched.
	Growth *Growth
	// Base is the allocator's report of when there was no load; nil = not known.
	Base *allocator.Report
	// Limit is the memory that Envoy may have, bytes, in place of its container's; 0 = that.
	Limit int64
	Keys  []Key              // of the guard, where it runs
	Heaps []heapdump.Summary // what heap dumps have, if any were read
	More  []string           // commands that show what else there is
}

// Key is who holds memory, as the guard counts it.
type Key struct {
	Name    string `json:"name"`
	Coming  int64  `json:"coming"` // bytes reserved for what is announced or foreseen
	Likely  int64  `json:"likely"` // of these, what is likely to come
	Waiting int64  `json:"waiting"`
}

// Finding is something that is so.
type Finding struct {
	ID    string `json:"id"`    // such as limit-below-base
	Text  string `json:"text"`  // one or two sentences
	Bytes int64  `json:"bytes"` // that it is about
}

// Advice is what to change.
type Advice struct {
	For     string `json:"for"`     // the ID of its finding
	Setting string `json:"setting"` // where and which
	Value   string `json:"value"`
	Brings  string `json:"brings"` // what is to be expected of it
	Bytes   int64  `json:"bytes"`  // the same as a figure; 0 = it bounds what may come
}

// Report is the result.
type Report struct {
	Time      time.Time          `json:"time"`
	Envoy     Envoy              `json:"envoy"`
	Verdict   string             `json:"verdict"`
	Limit     int64              `json:"limit,omitempty"` // bytes; 0 = there is none
	Map       memorymap.Map      `json:"map"`
	Allocator *allocator.Report  `json:"allocator,omitempty"`
	Largest   []allocator.Class  `json:"largest,omitempty"`
	Gauges    *memorymap.Gauges  `json:"gauges,omitempty"`
	Growth    *Growth            `json:"growth,omitempty"`
	Findings  []Finding          `json:"findings,omitempty"`
	Advice    []Advice           `json:"advice,omitempty"` // five at most, those that bring the most first
	Heaps     []heapdump.Summary `json:"heaps,omitempty"`
	Keys      []Key              `json:"keys,omitempty"`
	More      []string           `json:"more,omitempty"`    // commands that show what else there is
	Missing   []string           `json:"missing,omitempty"` // what could not be read or understood
}

const (
	maxAdvice   = 5
	maxFindings = 12
	maxKeys     = 20
	largest     = 6
)

// Examine says what is to be said of the samples. It always returns a Report, of whatever is there.
func Examine(in Input) Report {
	s := &in.Now
	r := Report{
		Time: s.Time, Envoy: s.Envoy, Limit: limitOf(in), Allocator: s.report(), Gauges: s.Gauges, Growth: in.Growth,
		Missing: slices.Clone(s.Missing), Keys: in.Keys[:min(len(in.Keys), maxKeys)],
		Heaps: in.Heaps, More: in.More,
	}
	r.Map = memorymap.Build(memorymap.Input{
		Mappings: s.Mappings, Status: s.Status, Allocator: s.report(), Gauges: s.Gauges, Base: in.Base, Sockets: s.Sockets,
	})
	r.Missing = append(r.Missing, r.Map.Missing...)
	r.Map.Missing = nil
	if a := r.Allocator; a != nil {
		r.Largest = a.Largest(largest)
		r.Missing = append(r.Missing, a.Notes.Problems...)
	}
	p := &patient{in: in, now: s, report: &r}
	for _, rule := range rules {
		rule(p)
	}
	slices.SortStableFunc(r.Findings, func(a, b Finding) int { return cmp.Compare(b.Bytes, a.Bytes) })
	r.Findings = r.Findings[:min(len(r.Findings), maxFindings)]
	// Advice in the order of its findings: the worst first.
	rank := map[string]int{}
	for i, f := range r.Findings {
		rank[f.ID] = i
	}
	slices.SortStableFunc(r.Advice, func(a, b Advice) int { return cmp.Compare(rank[a.For], rank[b.For]) })
	r.Advice = r.Advice[:min(len(r.Advice), maxAdvice)]
	r.Verdict = verdict(&r)
	return r
}

// limitOf is what Envoy may have: what the caller says, else its container's limit; 0 = there is
// none.
func limitOf(in Input) int64 {
	if in.Limit > 0 {
		return in.Limit
	}
	if c := in.Now.Container; c != nil && c.Limit > 0 && c.Limit < cgroup.NoLimit {
		return c.Limit
	}
	return 0
}

// Has says whether there is a finding.
func (r *Report) Has(id string) bool {
	return slices.ContainsFunc(r.Findings, func(f Finding) bool { return f.ID == id })
}

// patient is what the rules look at.
type patient struct {
	in     Input
	now    *Sample
	report *Report
}

func (p *patient) find(id string, bytes int64, text string, advice ...Advice) {
	p.report.Findings = append(p.report.Findings, Finding{ID: id, Text: text, Bytes: bytes})
	for _, a := range advice {
		a.For = id
		p.report.Advice = append(p.report.Advice, a)
	}
}

// whole is what shares are of: the limit, else what is resident.
func (p *patient) whole() int64 {
	if p.report.Limit > 0 {
		return p.report.Limit
	}
	return p.report.Map.Resident
}

func (p *patient) gauges() *memorymap.Gauges {
	if p.now.Gauges != nil {
		return p.now.Gauges
	}
	return &memorymap.Gauges{}
}
