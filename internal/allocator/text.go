package allocator

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// reader reads the text that google's tcmalloc and gperftools print, which have their totals in
// common. https://github.com/google/tcmalloc/blob/master/docs/stats.md
type reader struct {
	Report
	totals  map[string]int64 // of the lines MALLOC:, by what they say
	classes map[int64]*spans // by number
	// live is how many spans of so many pages the page allocators have handed out, and large the
	// bytes of those whose number of pages is given as a range.
	live     map[int64]int64
	large    int64
	google   bool // it has what only google's tcmalloc prints
	perCPU   bool
	maxCache int64
	ended    bool // it has its last section
}

// spans are a class as the text has it.
type spans struct {
	size, free, pages int64
	live              int64 // spans in the central list; 0 where they have one object each
}

var (
	totalLine = regexp.MustCompile(`^MALLOC:\s+[+=]?\s*(\d+)(?:\.\d+)?(?:\s+\([^)]*\))?\s+(\S.*)$`)
	classLine = regexp.MustCompile(`^class\s+(\d+) \[\s*(\d+) bytes \]\s*:\s*(\d+) objs;\s*[\d.]+ MiB;\s*[\d.]+ cum MiB;\s*` +
		`(?:(\d+) live pages; spans:\s*(\d+) ret /\s*(\d+) req|[\d.]+ overhead MiB)`)
	pageLine    = regexp.MustCompile(`^HugePageAware:\s+(?:(\d+)|[\[>][ \d,=]+\]?) page info:\s*\d+ /\s*\d+ a/f,\s*(\d+) \(\s*([\d.]+) MiB\) live`)
	sampledLine = regexp.MustCompile(`^MALLOC SAMPLED PROFILES: (\d+) bytes \(current\), (\d+) bytes \(internal fragmentation\)`)
)

func parseText(text []byte) (*Report, error) {
	r := &reader{totals: map[string]int64{}, classes: map[int64]*spans{}, live: map[int64]int64{}}
	for line := range bytes.Lines(text) {
		if len(line) > 1<<14 { // some of tcmalloc's time series have 8,000 characters
			r.Notes.unknown(line)
			continue
		}
		r.line(bytes.TrimRight(line, "\r\n"))
	}
	if _, ok := r.totals["Bytes in use by application"]; !ok {
		return nil, fmt.Errorf("%w: it has no line \"MALLOC: … Bytes in use by application\"", ErrParse)
	}
	r.sum()
	r.count()
	r.caches()
	if r.google && !r.ended {
		r.Notes.problem("the text breaks off before its last section, Parameters")
	}
	return &r.Report, r.settle()
}

func (r *reader) line(line []byte) {
	switch {
	case len(bytes.TrimSpace(line)) == 0:
	case bytes.HasPrefix(line, []byte("MALLOC SAMPLED PROFILES:")):
		r.sampled(line)
	case bytes.HasPrefix(line, []byte("MALLOC:")):
		r.total(line)
	case bytes.HasPrefix(line, []byte("class ")):
		r.class(line)
	case bytes.HasPrefix(line, []byte("HugePageAware:")) && bytes.Contains(line, []byte("page info:")):
		r.google = true
		r.page(line)
	case bytes.HasPrefix(line, []byte("PARAMETER ")):
		r.parameter(line)
	case !meant(line):
		r.Notes.unknown(line)
	}
}

// total keeps one of the sums. The first one counts: where texts are mixed up the second may be of
// another process.
func (r *reader) total(line []byte) {
	m := totalLine.FindSubmatch(line)
	if m == nil {
		if rest := bytes.TrimLeft(line[len("MALLOC:"):], " -"); len(rest) > 0 {
			r.Notes.unknown(line)
		}
		return
	}
	name := clip(m[2])
	n, ok := figure(m[1])
	if !ok && !strings.HasSuffix(name, " fragmentation (%)") { // which is nonsense in a young process
		r.Notes.problem("%q is no size of %q", clip(m[1]), name)
		return
	}
	if old, twice := r.totals[name]; twice {
		if old != n {
			r.Notes.problem("%q is there twice, %d and %d: the first counts", name, old, n)
		}
		return
	}
	if len(r.totals) < 128 {
		r.totals[name] = n
	}
}

func figure(text []byte) (int64, bool) {
	n, err := strconv.ParseInt(string(text), 10, 64)
	return n, err == nil && n <= maxFigure
}

// class keeps a class of the first section that has them; later ones tell of lists that are in it
// already.
func (r *reader) class(line []byte) {
	var m [][]byte
	if bytes.Contains(line, []byte(" live pages;")) || bytes.Contains(line, []byte(" overhead MiB;")) {
		m = classLine.FindSubmatch(line)
	}
	if m == nil {
		if !otherClassLine(line) {
			r.Notes.unknown(line)
		}
		return
	}
	number, c, ok := spansOf(m)
	if !ok {
		r.Notes.unknown(line)
		return
	}
	if c.size == 0 {
		return // a number that this allocator has no class for
	}
	if !possible(c.size, c.free) || !possible(1<<20, c.pages) {
		r.Notes.problem("class %d has an impossible number of objects", number)
		return
	}
	if old := r.classes[number]; old != nil && *old != *c {
		r.Notes.problem("class %d is there twice: the first counts", number)
	} else if old == nil && len(r.classes) < maxClasses {
		r.classes[number] = c
	}
}

// spansOf reads what classLine has matched. What is not there is 0.
func spansOf(m [][]byte) (number int64, c *spans, ok bool) {
	var v [6]int64
	for i, text := range m[1:] {
		if len(text) == 0 {
			continue
		}
		if v[i], ok = figure(text); !ok {
			return 0, nil, false
		}
	}
	return v[0], &spans{size: v[1], free: v[2], pages: v[3], live: max(v[5]-v[4], 0)}, true
}

// page keeps how many spans of a size the page allocators have handed out. There are three of them,
// for plain, sampled and cold objects, which are added up.
func (r *reader) page(line []byte) {
	m := pageLine.FindSubmatch(line)
	if m == nil {
		r.Notes.unknown(line)
		return
	}
	n, ok := figure(m[2])
	if len(m[1]) == 0 { // a range of sizes: what it comes to is told in MiB alone
		if mib, err := strconv.ParseFloat(string(m[3]), 64); err == nil && mib < 1<<30 {
			r.large = min(r.large+int64(mib*(1<<20)), maxFigure)
		}
		return
	}
	size, sizeOK := figure(m[1])
	if !ok || !sizeOK || size == 0 || !possible(size<<13, n) || len(r.live) > maxClasses {
		r.Notes.problem("%q is no count of spans", clip(line))
		return
	}
	r.live[size] = min(r.live[size]+n, maxFigure/(size<<13))
}

func (r *reader) sampled(line []byte) {
	m := sampledLine.FindSubmatch(line)
	if m == nil {
		r.Notes.unknown(line)
		return
	}
	all, ok := figure(m[1])
	lost, lostOK := figure(m[2])
	if ok && lostOK && all > 0 && lost <= all && !r.Internal.Known {
		r.Sample, r.Internal = all, Estimate{lost, true}
	}
}

func (r *reader) parameter(line []byte) {
	f := bytes.Fields(line)
	if len(f) != 3 {
		r.Notes.unknown(line)
		return
	}
	switch string(f[1]) {
	case "tcmalloc_per_cpu_caches":
		r.google, r.perCPU = true, string(f[2]) == "1"
	case "tcmalloc_max_total_thread_cache_bytes":
		if n, ok := figure(f[2]); ok {
			r.maxCache = n
		}
	case "size_class_config", "madvise", "percpu_vcpu_type":
		r.ended = true
	}
}

// sum makes the totals of the Report.
func (r *reader) sum() {
	t := r.totals
	r.Kind = GPerfTools
	if _, ok := t["Tcmalloc hugepage size"]; ok || r.google {
		r.Kind, r.google = TCMalloc, true
	}
	r.Application = t["Bytes in use by application"]
	r.FrontEnd = t["Bytes in per-CPU cache freelist"] + t["Bytes in thread cache freelists"]
	r.MiddleEnd = t["Bytes in central cache freelist"] + t["Bytes in transfer cache freelist"] + t["Bytes in Sharded cache freelist"]
	r.Free, r.Unmapped = t["Bytes in page heap freelist"], t["Bytes released to OS (aka unmapped)"]
	r.Metadata = t["Bytes in malloc metadata"]
	r.Unallocated = t["Bytes in malloc metadata Arena unallocated"]
	r.Peak = t["Actual memory used at peak"]
	r.HeapSize = r.Application + r.FrontEnd + r.MiddleEnd + r.Free + r.Unmapped
	for _, name := range []string{"Bytes in page heap freelist", "Bytes in central cache freelist", "Bytes in malloc metadata", "Virtual address space used"} {
		if _, ok := t[name]; !ok {
			r.Notes.problem("it does not tell the %q", name)
		}
	}
	// Its own sum says whether a part was misread, or is new.
	if all, ok := t["Actual memory used (physical + swap)"]; ok {
		if off := r.Physical() - all; off > all/50 || -off > all/50 {
			r.Notes.problem("its parts come to %d bytes, and its own sum to %d", r.Physical(), all)
		}
	}
	if r.Internal.Known { // of the sample; what it is of all
		r.Internal.Bytes = int64(float64(r.Application) * share(r.Internal.Bytes, r.Sample))
	}
}

// caches says which front end is at work: with caches per processor there are slabs.
func (r *reader) caches() {
	t := r.totals
	slabs := t["per-CPU slab bytes used"]
	r.Caches = Caches{
		PerCPU: r.perCPU, SlabBytes: slabs, Threads: t["Thread heaps in use"], MaxThread: r.maxCache,
		PerThread: !r.google || slabs == 0 && t["Bytes in per-CPU cache freelist"] == 0 && t["Bytes in thread cache freelists"] > 0,
	}
}
