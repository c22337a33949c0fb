// Package allocator reads what an allocator says of itself: the text of google's tcmalloc (Envoy's
// /memory/tcmalloc), of gperftools, jemalloc's JSON, and Envoy's /memory, which all Envoys have.
// Each becomes one Report. A parser takes text and knows no paths. What it does not know it keeps
// and counts, and what is missing it names: a text that broke off still tells what was in it.
package allocator

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kind is whose text a Report was read from.
type Kind string

// The kinds.
const (
	TCMalloc   Kind = "tcmalloc"   // github.com/google/tcmalloc: release binaries of Envoy for Linux
	GPerfTools Kind = "gperftools" // own builds with --define tcmalloc=gperftools
	JEMalloc   Kind = "jemalloc"   // own builds that link it
	Memory     Kind = "memory"     // Envoy's /memory: totals alone, no classes
)

// ErrParse is wrapped by each error of Parse: it is no text of an allocator, or too large for one.
var ErrParse = errors.New("no text of an allocator that is known here")

// MaxText is the longest text that is read, bytes. tcmalloc's has some 340,000.
const MaxText = 4 << 20

// What is kept of a text, whoever wrote it.
const (
	maxClasses  = 512
	maxUnknown  = 32 // lines; the rest is counted
	maxLine     = 200
	maxProblems = 16
	maxFigure   = 1 << 50 // bytes: more is no memory
)

// Report is what an allocator says of itself; sizes are bytes, and what it does not tell is 0.
//
// The model is tcmalloc's. The heap is what was taken from the system in pages. A page is free in
// the back end or part of a span; a span holds objects of one size class. An object is in use, or
// free in the front end (the caches of processors or threads) or in the middle end (transfer and
// central lists). So
//
//	HeapSize = Application + FrontEnd + MiddleEnd + Free + Unmapped
//
// and Metadata, the allocator's own books, lies beside it. What jemalloc calls active without
// allocated is its middle end here, for it is free space within slabs.
type Report struct {
	Kind Kind `json:"kind"`

	Application int64 `json:"application"`      // in objects and spans that the program uses
	FrontEnd    int64 `json:"front_end"`        // free objects in the caches of processors or threads
	MiddleEnd   int64 `json:"middle_end"`       // free objects in transfer and central lists
	Free        int64 `json:"free"`             // free pages that the system still counts as used
	Unmapped    int64 `json:"unmapped"`         // free pages that were given back to the system
	Metadata    int64 `json:"metadata"`         // the allocator's own books
	Unallocated int64 `json:"unallocated"`      // of its books' space, what is not used yet
	HeapSize    int64 `json:"heap_size"`        // see above
	Peak        int64 `json:"peak,omitempty"`   // the most memory it has ever used
	Sample      int64 `json:"sample,omitempty"` // of the heap profile: bytes in it

	// Internal is what rounding up to size classes costs, bytes, as the sample tells; see
	// InternalFragmentation.
	Internal Estimate `json:"internal"`

	Caches  Caches  `json:"caches"`
	Classes []Class `json:"classes,omitempty"` // by size, smallest first
	// Counted says that the text tells how many objects are in use: else Class.Live is 0.
	Counted bool  `json:"counted"`
	Spans   Spans `json:"spans,omitempty"` // of Large: bytes of an object to how many, where that is told
	Large   int64 `json:"large,omitempty"` // in spans of their own that are larger than any class

	Notes Notes `json:"notes"`
}

// Spans are objects that are larger than any class: their size, rounded up to pages, to how many
// are in use.
type Spans map[int64]int64

// Estimate is a figure that may not be known.
type Estimate struct {
	Bytes int64 `json:"bytes"`
	Known bool  `json:"known"`
}

// Caches says which kind of front end is at work.
type Caches struct {
	// PerCPU says that the allocator was told to keep a cache per processor, and PerThread that it
	// keeps one per thread. Both: it wanted to and could not, as with a glibc from 2.35 on, which
	// registers rseq first.
	PerCPU    bool  `json:"per_cpu"`
	PerThread bool  `json:"per_thread"`
	Threads   int64 `json:"threads,omitempty"`    // that have a cache
	MaxThread int64 `json:"max_thread,omitempty"` // of all threads' caches together, bytes
	SlabBytes int64 `json:"slab_bytes,omitempty"` // of the processors' caches
}

// Class is a size class.
type Class struct {
	Size  int64 `json:"size"`            // of an object, bytes
	Live  int64 `json:"live"`            // objects in use
	Free  int64 `json:"free"`            // objects in front and middle end
	Waste int64 `json:"waste,omitempty"` // bytes of spans that no object fits into; they count as the middle end's
	// Whole says that a span has one object: then Live is taken from the page allocator's count of
	// spans, for the class itself says 0.
	Whole bool `json:"whole,omitempty"`
}

// LiveBytes is what the objects in use take.
func (c Class) LiveBytes() int64 { return c.Size * c.Live }

// Notes are what the reader is to know of the text.
type Notes struct {
	Problems []string `json:"problems,omitempty"` // what is missing or contradicts itself
	Unknown  []string `json:"unknown,omitempty"`  // the first lines that mean nothing here
	Unread   int      `json:"unread,omitempty"`   // how many these are in all
}

func (n *Notes) problem(format string, args ...any) {
	if p := fmt.Sprintf(format, args...); len(n.Problems) < maxProblems && !slices.Contains(n.Problems, p) {
		n.Problems = append(n.Problems, p)
	}
}

func (n *Notes) unknown(line []byte) {
	if n.Unread++; len(n.Unknown) < maxUnknown {
		n.Unknown = append(n.Unknown, clip(line))
	}
}

// clip is a line as it may be shown: short, in UTF-8, without control characters.
func clip(line []byte) string {
	text := strings.ToValidUTF8(string(line[:min(len(line), maxLine)]), "\uFFFD")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '\uFFFD'
		}
		return r
	}, text)
}

// Physical is what the heap and its books may have resident: all but what was given back.
func (r *Report) Physical() int64 { return r.HeapSize - r.Unmapped + r.Metadata + r.Unallocated }

// Cached is what front and middle end hold.
func (r *Report) Cached() int64 { return r.FrontEnd + r.MiddleEnd }

// ExternalFragmentation is the share of the heap that is in no object in use, though the system
// counts it as used: (FrontEnd + MiddleEnd + Free) ÷ (HeapSize − Unmapped). It is tcmalloc's
// "external fragmentation" of docs/stats.md, with the caches counted in.
func (r *Report) ExternalFragmentation() float64 {
	return share(r.Cached()+r.Free, r.HeapSize-r.Unmapped)
}

// InternalFragmentation is the share of Application that lies between the size that was asked for
// and the size class: Internal ÷ Application. ok is false where the text has no sample of it.
func (r *Report) InternalFragmentation() (part float64, ok bool) {
	return share(r.Internal.Bytes, r.Application), r.Internal.Known
}

func share(part, whole int64) float64 {
	if whole <= 0 {
		return 0
	}
	return float64(part) / float64(whole)
}

// Largest returns the n classes that hold the most bytes in use, largest first.
func (r *Report) Largest(n int) []Class {
	list := slices.Clone(r.Classes)
	slices.SortStableFunc(list, func(a, b Class) int {
		switch x, y := a.LiveBytes(), b.LiveBytes(); {
		case x > y:
			return -1
		case x < y:
			return 1
		}
		return 0
	})
	list = list[:min(n, len(list))]
	return slices.DeleteFunc(list, func(c Class) bool { return c.Live == 0 })
}

// Live is how many objects of each size are in use, those of Spans included; nil where the text
// does not tell, as gperftools' and /memory, or breaks off before that.
func (r *Report) Live() map[int64]int64 {
	if !r.Counted {
		return nil
	}
	m := make(map[int64]int64, len(r.Classes)+len(r.Spans))
	for size, n := range r.Spans {
		m[size] += n
	}
	for _, c := range r.Classes {
		m[c.Size] += c.Live
	}
	return m
}

// Parse tells by the text itself whose it is, and reads it. The error wraps ErrParse; without one
// the Report has its totals at least.
func Parse(text []byte) (*Report, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("%w: it has %d bytes, and no more than %d are read", ErrParse, len(text), MaxText)
	}
	start := bytes.TrimLeft(text, " \t\r\n")
	switch {
	case len(start) == 0:
		return nil, fmt.Errorf("%w: it is empty", ErrParse)
	case start[0] == '{' && bytes.Contains(start[:min(len(start), 64)], []byte(`"jemalloc"`)):
		return parseJEMalloc(start)
	case start[0] == '{':
		return ParseMemory(start)
	}
	return parseText(text)
}

// settle checks what every Report has to fulfil, once it is read. It reports whether the totals are
// there.
func (r *Report) settle() error {
	if r.HeapSize <= 0 {
		return fmt.Errorf("%w: it does not tell how large the heap is", ErrParse)
	}
	parts := r.Application + r.FrontEnd + r.MiddleEnd + r.Free + r.Unmapped
	if off := parts - r.HeapSize; off > r.HeapSize/50 || -off > r.HeapSize/50 {
		r.Notes.problem("the parts of the heap come to %d bytes, and the heap to %d", parts, r.HeapSize)
	}
	return nil
}
