package allocator

import (
	"encoding/json"
	"fmt"
)

// jeSizes are the classes as jemalloc numbers them, and jeCounts what is in them: slabs first, then
// those that have extents of their own.
type (
	jeSizes struct {
		Bin []struct {
			Size     int64 `json:"size"`
			Regions  int64 `json:"nregs"`
			SlabSize int64 `json:"slab_size"`
		} `json:"bin"`
		Extent []struct {
			Size int64 `json:"size"`
		} `json:"lextent"`
		Page int64 `json:"page"`
	}
	jeCounts struct {
		Bins []struct {
			Live  int64 `json:"curregs"`
			Slabs int64 `json:"curslabs"`
		} `json:"bins"`
		Extents []struct {
			Live int64 `json:"curlextents"`
		} `json:"lextents"`
		Cached int64 `json:"tcache_bytes"`
		Dirty  int64 `json:"pdirty"`
		Muzzy  int64 `json:"pmuzzy"`
	}
)

// parseJEMalloc reads malloc_stats_print with the option J. allocated are the application's bytes
// with what its threads have cached (tcache_bytes), active are the pages of both, and retained is
// what the system has back. resident counts the books in.
// http://jemalloc.net/jemalloc.3.html#stats.allocated
func parseJEMalloc(text []byte) (*Report, error) {
	var m struct {
		JEMalloc struct {
			Arenas jeSizes `json:"arenas"`
			Stats  struct {
				Allocated *int64 `json:"allocated"`
				Active    *int64 `json:"active"`
				Metadata  int64  `json:"metadata"`
				Retained  int64  `json:"retained"`
			} `json:"stats"`
			ByArena map[string]jeCounts `json:"stats.arenas"`
		} `json:"jemalloc"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%w: jemalloc's JSON: %w", ErrParse, err)
	}
	s, sizes := &m.JEMalloc.Stats, &m.JEMalloc.Arenas
	if s.Allocated == nil || s.Active == nil {
		return nil, fmt.Errorf("%w: jemalloc's JSON has no stats.allocated or no stats.active", ErrParse)
	}
	// Each arena and all of them together may be there; one is enough.
	counts, merged := m.JEMalloc.ByArena["merged"]
	if !merged {
		if len(m.JEMalloc.ByArena) > 64 {
			return nil, fmt.Errorf("%w: jemalloc's JSON has %d arenas and not their sum", ErrParse, len(m.JEMalloc.ByArena))
		}
		for _, a := range m.JEMalloc.ByArena {
			counts.add(&a)
		}
	}
	if len(sizes.Bin) > maxClasses || len(sizes.Extent) > maxClasses {
		return nil, fmt.Errorf("%w: jemalloc's JSON has %d classes", ErrParse, len(sizes.Bin)+len(sizes.Extent))
	}
	for _, n := range []int64{*s.Allocated, *s.Active, s.Metadata, s.Retained, counts.Cached, counts.Dirty, counts.Muzzy, sizes.Page} {
		if n < 0 || n > maxFigure {
			return nil, fmt.Errorf("%w: %d is no size of jemalloc's", ErrParse, n)
		}
	}
	page := min(max(sizes.Page, 4096), 1<<20)
	r := &Report{
		Kind: JEMalloc, Application: max(*s.Allocated-counts.Cached, 0), FrontEnd: min(counts.Cached, *s.Allocated),
		MiddleEnd: max(*s.Active-*s.Allocated, 0), Free: pages(counts.Dirty+counts.Muzzy, page), Unmapped: s.Retained, Metadata: s.Metadata,
		Caches: Caches{PerThread: true},
	}
	r.HeapSize = r.Application + r.FrontEnd + r.MiddleEnd + r.Free + r.Unmapped
	r.addJE(sizes, &counts)
	r.Counted = len(r.Classes) > 0
	if len(r.Classes) == 0 {
		r.Notes.problem("jemalloc's JSON has no counts of its classes: it was printed with the option a or b")
	}
	return r, r.settle()
}

// pages is n pages in bytes, bounded as every figure is.
func pages(n, size int64) int64 {
	if n < 0 || n > maxFigure/size {
		return maxFigure
	}
	return n * size
}

func (c *jeCounts) add(a *jeCounts) {
	for i, b := range a.Bins {
		if i == len(c.Bins) && i < maxClasses {
			c.Bins = append(c.Bins, b)
		} else if i < len(c.Bins) {
			c.Bins[i].Live += b.Live
			c.Bins[i].Slabs += b.Slabs
		}
	}
	for i, e := range a.Extents {
		if i == len(c.Extents) && i < maxClasses {
			c.Extents = append(c.Extents, e)
		} else if i < len(c.Extents) {
			c.Extents[i].Live += e.Live
		}
	}
	c.Cached, c.Dirty, c.Muzzy = c.Cached+a.Cached, c.Dirty+a.Dirty, c.Muzzy+a.Muzzy
}

func (r *Report) addJE(sizes *jeSizes, counts *jeCounts) {
	bad := 0
	add := func(size, live, free, waste int64) {
		if live == 0 && free == 0 {
			return
		}
		if !possible(size, live) || !possible(size, free) || waste < 0 || waste > maxFigure {
			bad++
		} else {
			r.Classes = append(r.Classes, Class{Size: size, Live: live, Free: free, Waste: waste})
		}
	}
	for i, c := range counts.Bins[:min(len(counts.Bins), len(sizes.Bin))] {
		b := sizes.Bin[i]
		if !possible(b.Size, b.Regions) || !possible(b.SlabSize, c.Slabs) || !possible(b.Regions, c.Slabs) {
			bad++
			continue
		}
		add(b.Size, c.Live, max(c.Slabs*b.Regions-c.Live, 0), c.Slabs*max(b.SlabSize-b.Regions*b.Size, 0))
	}
	for i, c := range counts.Extents[:min(len(counts.Extents), len(sizes.Extent))] {
		add(sizes.Extent[i].Size, c.Live, 0, 0)
	}
	if bad > 0 {
		r.Notes.problem("jemalloc's JSON: %d classes have impossible counts", bad)
	}
}

// possible says whether n objects of a size are some memory.
func possible(size, n int64) bool {
	return size >= 0 && n >= 0 && size <= maxFigure && (size == 0 || n <= maxFigure/size)
}
