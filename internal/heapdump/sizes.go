package heapdump

import (
	"bytes"
	"errors"
	"regexp"
	"slices"
	"strconv"

	"github.com/google/pprof/profile"
)

// Size says how much memory the objects of one size take together.
type Size struct {
	Bytes int64 // of an object, as TCMalloc rounds it up; 0 = all that are larger than the largest
	Live  int64 // bytes of all of them that are in use
}

const labelBytes = "bytes" // of a sample: what Size.Bytes is

// held is what a stack holds.
type held struct {
	objects, bytes int64
}

// weighed are what the stacks of a dump hold.
type weighed struct {
	stacks    []held // as the samples
	sampled   []held // the same before they were corrected
	corrected bool
	unsampled []Size // sizes that no stack is of
}

// weigh returns what the stacks of a dump hold: what the samples say, times what makes their sum
// right for each size.
func weigh(p *profile.Profile, sizes []Size) weighed {
	objects, space := index(p, "objects"), index(p, "space")
	w := weighed{corrected: sizes != nil}
	largest := int64(0)
	exact := map[int64]int64{}
	for _, s := range sizes {
		largest = max(largest, s.Bytes)
		exact[s.Bytes] += max(0, s.Live)
	}
	sizeOf := func(s *profile.Sample) int64 {
		n := s.NumLabel[labelBytes]
		if len(n) != 1 || n[0] <= 0 || n[0] > largest {
			return 0
		}
		return n[0]
	}
	estimates := map[int64]int64{}
	for _, s := range p.Sample {
		h := held{s.Value[objects], s.Value[space]}
		w.sampled = append(w.sampled, h)
		estimates[sizeOf(s)] += h.bytes
	}
	w.stacks = slices.Clone(w.sampled)
	if !w.corrected {
		return w
	}
	for i, s := range p.Sample {
		size := sizeOf(s)
		known, ok := exact[size]
		if !ok || estimates[size] == 0 {
			continue
		}
		// Samples of one size only tell how it is shared out among stacks.
		h := &w.stacks[i]
		share := float64(h.bytes) / float64(estimates[size])
		h.bytes = int64(share*float64(known) + 0.5)
		if w.sampled[i].bytes > 0 {
			h.objects = int64(float64(h.objects)*float64(h.bytes)/float64(w.sampled[i].bytes) + 0.5)
		}
	}
	for size, live := range exact {
		if estimates[size] == 0 && live > 0 {
			w.unsampled = append(w.unsampled, Size{size, live})
		}
	}
	slices.SortFunc(w.unsampled, func(a, b Size) int {
		if a.Live != b.Live {
			return int(min(1, max(-1, b.Live-a.Live)))
		}
		return int(min(1, max(-1, a.Bytes-b.Bytes)))
	})
	return w
}

// What is read of TCMalloc's statistics. Its own documentation is docs/stats.md of
// github.com/google/tcmalloc.
var (
	inUse     = regexp.MustCompile(`^MALLOC: +(\d+) \([^)]*\) Bytes in use by application`)
	pageBytes = regexp.MustCompile(`^MALLOC: +(\d+) +Tcmalloc page size`)
	classLine = regexp.MustCompile(`^class +\d+ \[ *(\d+) bytes \] : +(\d+) objs;[^;]*;[^;]*; +(\d+) live pages; spans: +(\d+) ret / +(\d+) req`)
	spanLine  = regexp.MustCompile(`^HugePageAware: +(\d+) page info: +\d+ / +\d+ a/f, +(\d+) `)
)

const (
	// maxLines is how many lines of a kind are read: there are 172 of classes, and of spans five
	// times 64.
	maxLines = 4096
	maxSize  = 1 << 20 // bytes of an object in a size class, and of a page; TCMalloc's largest are 256 KiB
)

var errOther = errors.New("it is not what google's TCMalloc says: another allocator has no sizes to correct by")

// statistics are the numbers that are read.
type statistics struct {
	application, page int64
	sizes             []int64 // of objects, as they come
	live, cached      map[int64]int64
	spans             map[int64]int64 // pages of a span to how many are in use, of sizes that are alone in theirs
}

// ParseSizes reads TCMalloc's statistics, as Envoy's /memory/tcmalloc has them.
//
// Of a size that has several objects in a span, the number of its pages is told, and with it how
// many objects they have room for. Of one that fills a span, no page is told: the spans of that
// many pages are told, and those are its own that no other size has. In both, the objects that wait
// in caches are not in use.
func ParseSizes(text []byte) ([]Size, error) {
	if !bytes.HasPrefix(text, []byte("See https://github.com/google/tcmalloc")) {
		return nil, errOther
	}
	s := statistics{live: map[int64]int64{}, cached: map[int64]int64{}, spans: map[int64]int64{}}
	var classes [][][]byte
	spans := 0
	for line := range bytes.Lines(text) {
		switch {
		case bytes.HasPrefix(line, []byte("MALLOC: ")):
			s.total(line)
		case bytes.HasPrefix(line, []byte("class ")) && len(classes) < maxLines:
			if m := classLine.FindSubmatch(line); m != nil {
				classes = append(classes, m)
			}
		case bytes.HasPrefix(line, []byte("HugePageAware: ")) && spans < maxLines:
			if m := spanLine.FindSubmatch(line); m != nil {
				s.spans[number(m[1])] += number(m[2])
				spans++
			}
		}
	}
	if s.application <= 0 || s.page <= 0 || s.page > maxSize || len(classes) == 0 {
		return nil, errOther
	}
	for _, m := range classes {
		s.class(number(m[1]), number(m[2]), number(m[3]), number(m[5])-number(m[4]))
	}
	return s.sums(), nil
}

// total reads a line with a sum, of which the first counts.
func (s *statistics) total(line []byte) {
	if m := inUse.FindSubmatch(line); m != nil && s.application == 0 {
		s.application = number(m[1])
	}
	if m := pageBytes.FindSubmatch(line); m != nil && s.page == 0 {
		s.page = number(m[1])
	}
}

// class adds a size class with so many objects in caches, pages, and spans.
func (s *statistics) class(size, cached, pages, spans int64) {
	if size <= 0 || size > maxSize {
		return
	}
	if _, known := s.cached[size]; !known {
		s.sizes = append(s.sizes, size)
	}
	s.cached[size] += cached
	if pages > 0 && spans > 0 {
		perSpan := pages / spans
		s.spans[perSpan] -= spans
		s.live[size] += spans * (perSpan * s.page / size)
	}
}

// sums are what the objects of each size take.
func (s *statistics) sums() []Size {
	sums := make([]Size, 0, len(s.sizes)+1)
	rest := s.application
	for _, size := range s.sizes {
		objects := s.live[size]
		if objects == 0 && size%s.page == 0 {
			objects = s.spans[size/s.page]
		}
		sum := Size{size, min(max(0, objects-s.cached[size]), rest/size) * size}
		rest -= sum.Live
		sums = append(sums, sum)
	}
	return append(sums, Size{0, rest})
}

// number is one of at most 13 digits, which is more than any process has of bytes; a longer one is
// 0.
func number(digits []byte) int64 {
	if len(digits) > 13 {
		return 0
	}
	n, _ := strconv.ParseInt(string(digits), 10, 64)
	return n
}
