package doctor

import (
	"fmt"

	"github.com/highwater-envoy/highwater/internal/memorymap"
)

// verdict is one sentence: what most of the memory is that could be less.
func verdict(r *Report) string {
	m := &r.Map
	if m.Resident == 0 {
		return "Nothing is known of this Envoy's memory."
	}
	load := m.In(memorymap.Buffers) + m.In(memorymap.Requests) + m.In(memorymap.Connections) + m.In(memorymap.TLS)
	config := m.In(memorymap.StartUp) + m.In(memorymap.Clusters)
	wasm := m.Of(memorymap.WasmMemory) + m.Of(memorymap.WasmCode) + m.Of(memorymap.V8) + m.In(memorymap.Plugins)
	kinds := []struct {
		bytes int64
		text  string
	}{
		{load, "load: requests and connections with their buffers"},
		{m.Of(memorymap.FreePages), "free pages that were not given back"},
		{m.Of(memorymap.Caches), "the allocator's caches"},
		{config, "configuration: what Envoy holds without traffic"},
		{wasm, "Wasm plugins and their machines"},
		{max(m.In(memorymap.Unexplained), 0), "in the heap, and not explained"},
		{m.Of(memorymap.Binary) + m.Of(memorymap.Libraries), "Envoy's own program"},
	}
	best := kinds[0]
	for _, k := range kinds[1:] {
		if k.bytes > best.bytes {
			best = k
		}
	}
	text := fmt.Sprintf("%s of %s are %s.", human(best.bytes), human(m.Resident), best.text)
	switch {
	case r.Has(WasmGrows):
		text += " A Wasm machine grows."
	case r.Has(LimitBelowBase):
		text += " The limit is too small for what Envoy needs without load."
	case r.Has(NearLimit):
		text += " The container is near its limit."
	}
	return text
}
