package allocator

import (
	"encoding/json"
	"fmt"
)

// ParseMemory reads the answer of Envoy's /memory, whose figures are strings. It has totals alone:
// allocated, and heap_size = allocated + caches + pageheap_free + pageheap_unmapped. What it calls
// total_thread_cache is the front end with per-thread caches; the rest of the caches is the middle
// end here.
func ParseMemory(text []byte) (*Report, error) {
	if len(text) > MaxText {
		return nil, fmt.Errorf("%w: /memory has %d bytes", ErrParse, len(text))
	}
	var m struct {
		Allocated   *int64 `json:"allocated,string"`
		HeapSize    *int64 `json:"heap_size,string"`
		Unmapped    int64  `json:"pageheap_unmapped,string"`
		Free        int64  `json:"pageheap_free,string"`
		ThreadCache int64  `json:"total_thread_cache,string"`
		Physical    int64  `json:"total_physical_bytes,string"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%w: /memory: %w", ErrParse, err)
	}
	if m.Allocated == nil || m.HeapSize == nil {
		return nil, fmt.Errorf("%w: /memory has no allocated or no heap_size", ErrParse)
	}
	for _, n := range []int64{*m.Allocated, *m.HeapSize, m.Unmapped, m.Free, m.ThreadCache, m.Physical} {
		if n < 0 || n > maxFigure {
			return nil, fmt.Errorf("%w: %d is no size of /memory", ErrParse, n)
		}
	}
	r := &Report{Kind: Memory, Application: *m.Allocated, HeapSize: *m.HeapSize, Free: m.Free, Unmapped: m.Unmapped}
	rest := r.HeapSize - r.Application - r.Free - r.Unmapped
	r.FrontEnd = min(m.ThreadCache, max(rest, 0))
	r.MiddleEnd = max(rest-r.FrontEnd, 0)
	r.Metadata = max(m.Physical-(r.HeapSize-r.Unmapped), 0)
	if rest < 0 {
		// The figures are not of one moment: Envoy asks for them one after the other.
		r.Notes.problem("/memory: its parts come to %d bytes more than its heap_size", -rest)
	}
	return r, r.settle()
}
