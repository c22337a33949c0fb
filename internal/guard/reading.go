package guard

import (
	"encoding/json"
	"fmt"
)

// Reading is what an allocator says of itself, bytes.
type Reading struct {
	InUse     int64 // heap_size − pageheap_unmapped − pageheap_free: what the process needs of its container
	Allocated int64 // what the program has asked for
}

// ParseReading reads the answer of Envoy's /memory, whose numbers are JSON strings.
func ParseReading(text []byte) (Reading, error) {
	var m struct {
		Allocated        *int64 `json:"allocated,string"`
		HeapSize         *int64 `json:"heap_size,string"`
		PageheapUnmapped int64  `json:"pageheap_unmapped,string"`
		PageheapFree     int64  `json:"pageheap_free,string"`
	}
	if err := json.Unmarshal(text, &m); err != nil {
		return Reading{}, fmt.Errorf("not the answer of /memory: %w", err)
	}
	if m.Allocated == nil || m.HeapSize == nil {
		return Reading{}, fmt.Errorf("not the answer of /memory: it has no allocated or no heap_size")
	}
	r := Reading{InUse: *m.HeapSize - m.PageheapUnmapped - m.PageheapFree, Allocated: *m.Allocated}
	// Each is checked by itself, because differences of nonsense can overflow into something that looks possible.
	if *m.HeapSize <= 0 || m.PageheapUnmapped < 0 || m.PageheapUnmapped > *m.HeapSize ||
		m.PageheapFree < 0 || m.PageheapFree >= *m.HeapSize-m.PageheapUnmapped || r.Allocated < 0 {
		return Reading{}, fmt.Errorf("not a possible answer of /memory: heap_size %d, pageheap_unmapped %d, pageheap_free %d, allocated %d",
			*m.HeapSize, m.PageheapUnmapped, m.PageheapFree, r.Allocated)
	}
	return r, nil
}
