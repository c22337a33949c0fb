package heapdump

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// SampleEvery is how many bytes TCMalloc allocates between two samples, on average: its own
// default, which Envoy leaves as it is.
const SampleEvery = 2 << 20

// Summary is what is in a dump, in short. Sizes are bytes.
type Summary struct {
	Peak bool      `json:"peak"` // of when the heap was largest
	At   time.Time `json:"at"`   // when the dump was made; zero = it does not say

	Bytes     int64 `json:"bytes"`     // in use, as far as the dump tells
	Exact     bool  `json:"exact"`     // by the exact sums of the sizes, and not by samples alone
	Named     int64 `json:"named"`     // of Bytes: of stacks with a class
	Unsampled int64 `json:"unsampled"` // of Bytes: of sizes that no sample is of

	Classes []Class `json:"classes"` // that hold most, the first one most; at most maxClasses

	Binary    string        `json:"binary"` // by which it was read
	BuildID   string        `json:"build_id"`
	Functions int           `json:"functions"` // that it has
	WithClass int           `json:"with_class"`
	Cached    bool          `json:"cached"`  // its classes were known already
	Took      time.Duration `json:"took_ns"` // to know them

	Notes []string `json:"notes,omitempty"` // what could not be done
}

// Class is one that holds memory.
type Class struct {
	Name    string   `json:"name"`
	Via     []string `json:"via,omitempty"` // classes by which it was called in its largest stack, the next one first
	Bytes   int64    `json:"bytes"`
	Objects int64    `json:"objects"`
	Samples int64    `json:"samples"` // about how many it was found by: of few, its share is a guess
}

const maxClasses = 50

// Share is which part of the bytes has a class, 0 to 1; 0 of nothing.
func (s *Summary) Share() float64 {
	if s.Bytes == 0 {
		return 0
	}
	return float64(s.Named) / float64(s.Bytes)
}

func (s *Summary) note(format string, args ...any) {
	s.Notes = append(s.Notes, clean(fmt.Sprintf(format, args...)))
}

// comments are for who finds the profile later.
func (s *Summary) comments() []string {
	c := []string{"frames: Class#N is the function N of the class's vtable; other functions are folded into their callers"}
	if s.Exact {
		return append(c, "weights: samples, corrected by the exact size-class totals")
	}
	return append(c, "weights: samples alone")
}

// tally sums up by class.
type tally map[string]*summed

type summed struct {
	Class
	sampled int64 // bytes, before they were corrected
	largest int64 // of a stack
}

func (t tally) add(s stack, h held, sampled int64) {
	if s.owner == "" {
		return
	}
	c := t[s.owner]
	if c == nil {
		c = &summed{Class: Class{Name: s.owner}, largest: -1}
		t[s.owner] = c
	}
	c.Bytes += h.bytes
	c.Objects += h.objects
	c.sampled += sampled
	if h.bytes > c.largest {
		c.largest, c.Via = h.bytes, s.via
	}
}

func (t tally) largest() []Class {
	all := make([]Class, 0, len(t))
	for _, c := range t {
		c.Samples = max(1, (c.sampled+SampleEvery/2)/SampleEvery)
		all = append(all, c.Class)
	}
	slices.SortFunc(all, func(a, b Class) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), cmp.Compare(a.Name, b.Name))
	})
	return all[:min(len(all), maxClasses)]
}

// Write prints the summary as a table with so many classes.
func (s *Summary) Write(out io.Writer, lines int) error {
	var b strings.Builder
	what := "heap"
	if s.Peak {
		what = "heap at its peak"
	}
	how := "by samples alone"
	if s.Exact {
		how = "exact"
	}
	fmt.Fprintf(&b, "%s: %s in use (%s), %.1f%% of it with a class", what, bytesOf(s.Bytes), how, 100*s.Share())
	if s.Unsampled > 0 {
		fmt.Fprintf(&b, ", %.1f%% of sizes without a sample", 100*float64(s.Unsampled)/float64(max(1, s.Bytes)))
	}
	b.WriteString("\n")
	for _, n := range s.Notes {
		fmt.Fprintf(&b, "note: %s\n", n)
	}
	b.WriteString("\n")
	table := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(table, "held\tshare\tobjects\tsamples\t  class\n")
	for _, c := range s.Classes[:min(len(s.Classes), max(0, lines))] {
		fmt.Fprintf(table, "%s\t%.1f%%\t%d\t%d\t  %s\n", bytesOf(c.Bytes), 100*float64(c.Bytes)/float64(max(1, s.Bytes)), c.Objects, c.Samples, c.Name)
		for _, via := range c.Via {
			fmt.Fprintf(table, "\t\t\t\t    < %s\n", via)
		}
	}
	_ = table.Flush()
	from := "found"
	if s.Cached {
		from = "read from the cache"
	}
	fmt.Fprintf(&b, "\nclasses of %d of %d functions of %s, %s in %v\n", s.WithClass, s.Functions, clean(s.Binary), from, s.Took.Round(time.Millisecond))
	_, err := io.WriteString(out, b.String())
	return err
}

func bytesOf(n int64) string { return unit.Bytes(n).Human() }

// maxText is how much is shown of what a dump says.
const maxText = 300

// clean is text from a dump or of an error as it may be shown anywhere.
func clean(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), maxText)], "?")
	for _, r := range text {
		if !strconv.IsPrint(r) {
			quoted := strconv.Quote(text)
			return quoted[1 : len(quoted)-1]
		}
	}
	return text
}
