package guard

import (
	"encoding/json"
	"fmt"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
)

// Reading is what an allocator says of itself, and its container, bytes. Figures that nobody told
// are 0.
type Reading struct {
	// InUse is what the process needs of its container: heap_size − pageheap_unmapped −
	// pageheap_free. Where the companion tells of them, what is resident outside of the heap
	// (virtual machines, the allocator's own books, stacks) and the kernel's socket buffers are in
	// it.
	InUse     int64
	Allocated int64 // what the program has asked for
	Free      int64 // pageheap_free: the allocator could give it back to the system
	Mapped    int64 // heap_size − pageheap_unmapped: what may be resident of the heap

	// From the companion alone:
	Limit      int64 // of the container
	Resident   int64 // of the process, without file pages
	WorkingSet int64 // of the container: its usage without file pages that the kernel would take back first
	Sock       int64 // of the container: the kernel's buffers of its sockets
}

// maxReading: more is no memory, and sums of it could overflow into something that looks possible.
const maxReading = budget.Unlimited

// ParseReading reads the answer of Envoy's /memory, or of the companion's, which tells more. All
// numbers are JSON strings. An error is a Failure.
func ParseReading(text []byte) (Reading, error) {
	r, err := parseReading(text)
	if err != nil {
		return r, &Failure{CauseAnswer, err}
	}
	return r, nil
}

// answer is one of /memory.
type answer struct {
	Allocated        *int64 `json:"allocated,string"`
	HeapSize         *int64 `json:"heap_size,string"`
	PageheapUnmapped int64  `json:"pageheap_unmapped,string"`
	PageheapFree     int64  `json:"pageheap_free,string"`

	Limit      *int64 `json:"limit,string"`
	Resident   int64  `json:"resident,string"`
	WorkingSet int64  `json:"working_set,string"`
	Sock       int64  `json:"sock,string"`
}

func parseReading(text []byte) (Reading, error) {
	var m answer
	if err := json.Unmarshal(text, &m); err != nil {
		return Reading{}, fmt.Errorf("not the answer of /memory: %w", err)
	}
	if m.Allocated == nil || m.HeapSize == nil {
		return Reading{}, fmt.Errorf("not the answer of /memory: it has no allocated or no heap_size")
	}
	heap, unmapped, free := *m.HeapSize, m.PageheapUnmapped, m.PageheapFree
	if !m.possibleHeap() {
		return Reading{}, fmt.Errorf("not a possible answer of /memory: heap_size %d, pageheap_unmapped %d, pageheap_free %d, allocated %d",
			heap, unmapped, free, *m.Allocated)
	}
	if m.Limit != nil && *m.Limit <= 0 || !possible(m.Resident) || !possible(m.WorkingSet) || !possible(m.Sock) {
		return Reading{}, fmt.Errorf("not a possible answer of /memory: limit, resident, working_set and sock must be bytes, limit not 0: %s", config.Clip(string(text)))
	}
	r := Reading{
		InUse: heap - unmapped - free, Allocated: *m.Allocated, Free: free, Mapped: heap - unmapped,
		Resident: m.Resident, WorkingSet: m.WorkingSet, Sock: m.Sock,
	}
	if m.Limit != nil && *m.Limit < maxReading { // a container that may have more than any memory has no limit
		r.Limit = *m.Limit
	}
	r.InUse += max(r.Resident-r.Mapped, 0) + r.Sock
	return r, nil
}

// possibleHeap checks each figure of the heap by itself, because differences of nonsense can
// overflow into something that looks possible.
func (m *answer) possibleHeap() bool {
	heap, unmapped, free := *m.HeapSize, m.PageheapUnmapped, m.PageheapFree
	return heap > 0 && heap <= maxReading && unmapped >= 0 && unmapped <= heap && free >= 0 && free < heap-unmapped && possible(*m.Allocated)
}

func possible(n int64) bool { return n >= 0 && n <= maxReading }
