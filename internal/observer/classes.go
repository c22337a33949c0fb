package observer

import (
	"bytes"
	"errors"

	"github.com/highwater-envoy/highwater/internal/leak"
)

// parseClasses reads the live objects of each size class from TCMalloc's text. Of two lines for one
// size, such as those of its cold heap, the sum counts.
//
// A class's line has the free objects in all caches, the pages of its live spans, and how many
// spans were asked for and given back. A class with one object per span, such as the 16 KiB of
// Envoy's buffers, bypasses what these count and shows none. Its spans are in the page heap's lines
// instead, among those of all classes with spans of that length: what the others do not have is its
// own. Allocations above the largest class are such spans too, and have classes here as well.
func parseClasses(text []byte) ([]leak.Class, error) {
	spans, live := map[int64]int64{}, map[int64]int64{} // by pages; by size
	var single []row
	rows := false
	for line := range bytes.Lines(text) {
		if pages, n, is := pageLine(line); is {
			if spans[pages] += n; len(spans) > maxSizes {
				return nil, errNotClasses
			}
			continue
		}
		r, is := classLine(line)
		if !is {
			continue
		}
		if rows = true; r.size == 0 {
			continue
		}
		if _, known := live[r.size]; !known && len(live) >= maxSizes {
			return nil, errNotClasses
		}
		if r.spans <= 0 {
			live[r.size] += 0
			single = append(single, r)
			continue
		}
		each := r.pages * pageSize / r.spans / r.size // objects in a span
		live[r.size] += max(r.spans*each-r.free, 0)
		spans[r.pages/r.spans] -= r.spans
	}
	if !rows {
		return nil, errNotClasses
	}
	for _, r := range single {
		if pages := r.size / pageSize; r.size%pageSize == 0 && spans[pages] > 0 {
			live[r.size] += max(spans[pages]-r.free, 0)
			delete(spans, pages)
		}
	}
	for pages, n := range spans {
		if size := pages * pageSize; n > 0 && size > largestClass {
			live[size] += n
		}
	}
	list := make([]leak.Class, 0, len(live))
	for size, n := range live {
		list = append(list, leak.Class{Size: size, Live: n})
	}
	return list, nil
}

// row is what a class's line says.
type row struct{ size, free, pages, spans int64 }

const (
	pageSize     = 8 << 10   // TCMalloc's, in Envoy's builds
	largestClass = 256 << 10 // what is larger comes from the page heap
	maxSizes     = 4096      // of an answer that is TCMalloc's there are 90 or so
)

var errNotClasses = errors.New("not TCMalloc's text of size classes: only Envoy's release builds, which have google's TCMalloc, tell of them")

// classLine reads class 19 [ 896 bytes ] : 27 objs; ...; 20 live pages; spans: 0 ret / 20 req = 0.
func classLine(line []byte) (r row, is bool) {
	rest, is := bytes.CutPrefix(line, []byte("class "))
	if !is || !bytes.Contains(rest, []byte(" live pages; spans:")) {
		return r, false
	}
	_, rest, _ = bytes.Cut(rest, []byte("["))
	var returned, requested int64
	for _, f := range []struct {
		into   *int64
		before string
	}{
		{&r.size, " bytes ]"}, {&r.free, " objs;"}, {&r.pages, " live pages;"}, {&returned, " ret /"}, {&requested, " req"},
	} {
		if *f.into, rest, is = numberBefore(rest, f.before); !is {
			return r, false
		}
	}
	r.spans = requested - returned
	return r, true
}

// pageLine reads HugePageAware: 2 page info: 109 / 0 a/f, 109 ( 1.7 MiB) live, ...
func pageLine(line []byte) (pages, live int64, is bool) {
	rest, is := bytes.CutPrefix(line, []byte("HugePageAware: "))
	if !is {
		return 0, 0, false
	}
	if pages, rest, is = numberBefore(rest, " page info:"); !is {
		return 0, 0, false
	}
	_, rest, _ = bytes.Cut(rest, []byte(" a/f,"))
	live, _, is = numberBefore(rest, " (")
	return pages, live, is
}

// numberBefore reads the number that stands before a text, and returns what is behind that.
func numberBefore(line []byte, text string) (n int64, rest []byte, is bool) {
	head, rest, is := bytes.Cut(line, []byte(text))
	if !is {
		return 0, nil, false
	}
	digits := head[len(bytes.TrimRight(head, "0123456789")):]
	if len(digits) == 0 || len(digits) > maxDigits {
		return 0, nil, false
	}
	for _, d := range digits {
		n = n*10 + int64(d-'0')
	}
	return n, rest, true
}

// maxDigits of a number: with more a product of two could pass 64 bits.
const maxDigits = 12
