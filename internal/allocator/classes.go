package allocator

import (
	"bytes"
	"cmp"
	"maps"
	"regexp"
	"slices"
)

// count makes the classes of the Report.
//
// A class has spans of so many pages, and each span floor(its bytes ÷ size) objects. The text tells
// the pages of spans and the objects that are free, so that
//
//	live = spans × objects in a span − free.
//
// Classes with one object in a span never keep spans in the central list, and say 0 pages: 8 KiB,
// 16 KiB (the slices of Envoy's buffers), 32 KiB and so on. Of these the page allocator tells,
// which counts all spans of so many pages: what is left of them without those of other classes.
func (r *reader) count() {
	if !r.google { // gperftools tells what is free alone
		for _, c := range r.classes {
			r.Classes = append(r.Classes, Class{Size: c.size, Free: c.free})
		}
		sortClasses(r.Classes)
		return
	}
	page := r.totals["Tcmalloc page size"]
	if page < 4096 || page > 1<<20 {
		page = 8192
	}
	// Without the counts of spans nobody knows what the classes with one object in a span have.
	r.Counted = len(r.classes) > 0 && len(r.live) > 0
	left := maps.Clone(r.live)  // spans by their pages, without those that are told of by a class
	whole := map[int64]*Class{} // classes with one object in a span, by its pages
	for _, c := range r.classes {
		switch {
		case c.pages > 0:
			r.Classes = append(r.Classes, c.packed(page, left))
		case c.size%page == 0:
			w := whole[c.size/page] // cold objects have classes of their own, of the same sizes
			if w == nil {
				w = &Class{Size: c.size, Whole: true}
				whole[c.size/page] = w
			}
			w.Free += c.free
		case c.free > 0:
			r.Classes = append(r.Classes, Class{Size: c.size, Free: c.free})
		}
	}
	r.unpacked(page, whole, left)
	sortClasses(r.Classes)
	r.Classes = merged(r.Classes)
}

// unpacked adds the classes with one object in a span, of the spans that are left to them, and what
// is in spans of no class.
func (r *reader) unpacked(page int64, whole map[int64]*Class, left map[int64]int64) {
	for pages, c := range whole {
		c.Live = max(left[pages]-c.Free, 0)
		delete(left, pages)
		if c.Live > 0 || c.Free > 0 {
			r.Classes = append(r.Classes, *c)
		}
	}
	r.Large = r.large
	for pages, n := range left { // of one page: sampled small objects
		if n > 0 && pages > 1 {
			r.Large = min(r.Large+n*pages*page, maxFigure)
			if r.Spans == nil {
				r.Spans = Spans{}
			}
			r.Spans[pages*page] = n
		}
	}
}

// packed is a class with several objects in a span. Its spans are taken from those that are left.
func (c *spans) packed(page int64, left map[int64]int64) Class {
	span := c.pages // one span, where the text does not tell how many there are
	if c.live > 0 {
		span = (c.pages + c.live - 1) / c.live
		left[span] -= c.live
	}
	objects := c.pages / span * (span * page / c.size)
	// The lists were read one after the other, and objects moved meanwhile: there may be too few.
	return Class{Size: c.size, Live: max(objects-c.free, 0), Free: c.free, Waste: max(c.pages*page-objects*c.size, 0)}
}

// merged adds up neighbours of one size.
func merged(list []Class) []Class {
	var out []Class
	for _, c := range list {
		if n := len(out); n > 0 && out[n-1].Size == c.Size {
			out[n-1].Live, out[n-1].Free, out[n-1].Waste = out[n-1].Live+c.Live, out[n-1].Free+c.Free, out[n-1].Waste+c.Waste
			continue
		}
		out = append(out, c)
	}
	return out
}

func sortClasses(list []Class) {
	slices.SortFunc(list, func(a, b Class) int { return cmp.Compare(a.Size, b.Size) })
}

// otherClassLine says whether a line is of the sections that list classes for something that is not
// needed here: class 7 [ 112 bytes ] : ..., live spans: ..., completed spans: ...
func otherClassLine(line []byte) bool {
	_, rest, ok := bytes.Cut(line, []byte(" bytes ]"))
	rest = bytes.TrimLeft(rest, " ")
	return ok && slices.ContainsFunc([]string{":", "live spans:", "completed spans:", "in "}, func(p string) bool {
		return bytes.HasPrefix(rest, []byte(p))
	})
}

// meant says whether a line is one that tcmalloc prints and nothing is taken from: histograms, time
// series, headings. These begin as follows.
func meant(line []byte) bool {
	return slices.ContainsFunc(others, func(p string) bool { return bytes.HasPrefix(line, []byte(p)) }) || listed.Match(line)
}

var others = []string{
	"---", "Huge", "TOTAL:", "MALLOC EXPERIMENTS:", "MALLOC HOOKS:", ">>>>>>>", "See https://github.com/google/tcmalloc/", "Total process stats",
	"Call Release", "Bytes released to the OS", "Bytes in per-CPU caches", "Total size of freelists", "transfer cache, and central cache", "live pages, returned/requested",
	"Central cache freelist:", "Non-cumulative number of spans", "Used bytes, current capacity", "of the transfer cache", "of the sharded transfer",
	"It also reports insert", "Cumulative sharded", "Sharded transfer cache state", "Number of ", "Total number of pages", "Size class capacity statistics",
	"GWP-ASan", "Successful Allocations", "Failed Allocations", "Skipped Allocations", "Currently ", "Allocated High-Watermark", "Object Pages Touched",
	"Configured limits", "Parameters", "Per-CPU cache slab", "Current shift", "shift ", "Low-level allocator", "MmapSysAllocator", "Memory Release Failures",
	"PageHeap:", "PageAllocator:", "Fragmentation estimate", "Total  :", "Begin ", "End ", "Sampling", "Lifetime",
}

// listed are lines of lists: cpu 0: ..., 31 pages * ..., >=128 large * ...
var listed = regexp.MustCompile(`^(cpu\s+\d+:|numa |vcpu |\s*\d+ pages \*|\s*>=?\s*\d+\s+large \*|\s*\d)`)
