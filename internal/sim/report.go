package sim

import (
	"fmt"
	"slices"
	"strings"
)

// Report is what a run showed.
type Report struct {
	Name    string
	Limit   int64 // the budget; 0 = none was given
	Classes map[string]*Class

	Peak          int64 // most bytes in use
	PeakAllocated int64
	Samples       []int64
	Every         Time // between samples

	Uncovered    int64 // most that was in use beyond the estimate
	UncoveredAt  Time
	Checks       int // at how many moments the estimate was held against the truth
	Excess       int64
	First        int64 // in use at the tenth reading, at least the limit
	LateExcess   int64 // most beyond First from the tenth reading on
	Connections  int   // most at once
	Readings     int
	Admissions   int   // of large ones that were held against the limit
	Overadmitted int64 // most that an admission of a large one went beyond the limit, as far as the truth was known
	Stuck        Time  // longest stretch in which room was free, somebody waited and nobody was admitted
	Left         string
	Trace        uint64 // hash of all verdicts, in order
	Verdicts     int
	LongestWait  Time
	Ended        int64 // bytes that streams held which were ended under way: growth without room, eviction
	Stayed       int64 // in use at the end of Load.Duration
}

// Class counts the calls of clients of one class.
type Class struct {
	Done     int
	Bytes    int64 // of bodies, both directions, of those done
	Rejected int   // tries answered with a reject
	Closed   int   // tries whose connection was closed
	Refused  int   // tries without a connection
	Reset    int   // responses cut
	Waited   int   // tries that waited in the queue
	GaveUp   int
	Latency  []Time // of those done, from the first try on
	Told     []Time // delays that those who obey were told, in order
	Returns  []Return
}

// Return is a client that came back when it was told to.
type Return struct {
	Told Time // the delay
	Kept bool // it was served, not rejected again
}

// Kept is the share of those who came back after less than most that were served, and how many they
// are; 1 for none.
func (c *Class) Kept(most Time) (share float64, n int) {
	kept := 0
	for _, r := range c.Returns {
		if r.Told < most {
			n++
			if r.Kept {
				kept++
			}
		}
	}
	if n == 0 {
		return 1, 0
	}
	return float64(kept) / float64(n), n
}

// Quantile of the latencies; 0 if there are none.
func (c *Class) Quantile(q float64) Time {
	if len(c.Latency) == 0 {
		return 0
	}
	l := slices.Sorted(slices.Values(c.Latency))
	return l[min(int(q*float64(len(l))), len(l)-1)]
}

// Class returns that of the name; one of zeros if nothing was counted.
func (r *Report) Class(name string) *Class {
	if c := r.Classes[name]; c != nil {
		return c
	}
	return &Class{}
}

func (r *Report) class(name string) *Class {
	c := r.Classes[name]
	if c == nil {
		c = &Class{}
		r.Classes[name] = c
	}
	return c
}

// String is the report in some lines.
func (r *Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: peak %.1f MiB", r.Name, float64(r.Peak)/(1<<20))
	if r.Limit > 0 {
		fmt.Fprintf(&b, " (%.2f × limit)", float64(r.Peak)/float64(r.Limit))
	}
	fmt.Fprintf(&b, ", uncovered %d of %d checks", r.Uncovered, r.Checks)
	names := make([]string, 0, len(r.Classes))
	for name := range r.Classes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		c := r.Classes[name]
		fmt.Fprintf(&b, "\n  %-8s %d done, %d MiB, rejected %d, closed %d, refused %d, reset %d, gave up %d; p50 %v p99 %v",
			name, c.Done, c.Bytes>>20, c.Rejected, c.Closed, c.Refused, c.Reset, c.GaveUp, c.Quantile(.5), c.Quantile(.99))
	}
	return b.String()
}
