// Package memorymap says what the resident memory of an Envoy process is made of. It gathers
// nothing: the texts of /proc, of the allocator and of Envoy's gauges are handed in.
//
// The map has two levels. The first are the mappings that the kernel tells of, with the heap's
// split into the allocator's layers; it adds up to the resident size but for what is not explained,
// which is shown. The second looks into the application's part of the heap, where nobody counts:
// it is an estimate, and says so.
package memorymap

import (
	"cmp"
	"slices"

	"github.com/highwater-envoy/highwater/internal/allocator"
)

// Input is what a map is made of. What is not known is left out, and named in the Map.
type Input struct {
	Mappings  []Mapping
	Status    *Status
	Allocator *allocator.Report
	Gauges    *Gauges // nil = not known
	// Base is the allocator's report of when there was no load; nil = not known, then start-up and
	// configuration are estimated.
	Base *allocator.Report
	// Sockets is what the kernel holds for TCP sockets, bytes; nil = not known.
	Sockets *int64
}

// Part is a part of the memory.
type Part struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	About string `json:"about,omitempty"`
}

// The parts of the first level, in the order in which they are shown.
const (
	Binary      = "Envoy's binary"
	Libraries   = "libraries"
	Files       = "files that are mapped"
	Shared      = "shared memory"
	Stacks      = "stacks"
	WasmMemory  = "Wasm memories"
	WasmCode    = "Wasm machine code"
	V8          = "V8"
	Application = "the application"
	Caches      = "the allocator's caches"
	FreePages   = "free pages"
	Books       = "the allocator's books"
	Brk         = "glibc's heap"
	Unexplained = "not explained"
)

var order = []string{
	Binary, Libraries, Files, Shared, Stacks, WasmMemory, WasmCode, V8, Application, Caches, FreePages, Books, Brk, Unexplained,
}

// Names are those of the parts, in their order.
func Names() []string { return slices.Clone(order) }

// Map is where the memory is.
type Map struct {
	Resident int64  `json:"resident"` // of the process, bytes
	Parts    []Part `json:"parts"`    // the first level; they add up to Resident
	// Inside is what the application's part is made of, an estimate by sizes, gauges and prices.
	Inside []Part `json:"inside,omitempty"`
	// Untouched are pages of the heap that have never been written: they are in the allocator's
	// figures and not in the resident memory. Beside the parts.
	Untouched int64 `json:"untouched,omitempty"`
	// Sockets is the kernel's memory of TCP sockets of the network namespace: beside the resident
	// memory, and counted against a container too. nil = not known.
	Sockets *int64 `json:"sockets"`
	// Error of the first level: what is not explained, or explained and not there, ÷ Resident.
	Error float64 `json:"error"`
	// InsideError is that of the second level, by the same rule.
	InsideError float64  `json:"inside_error"`
	Missing     []string `json:"missing,omitempty"` // what could not be read, and what that leaves out
}

// Of returns the bytes of a part of the first level.
func (m *Map) Of(name string) int64 { return find(m.Parts, name) }

// In returns the bytes of a part of the second level.
func (m *Map) In(name string) int64 { return find(m.Inside, name) }

func find(list []Part, name string) int64 {
	for _, p := range list {
		if p.Name == name {
			return p.Bytes
		}
	}
	return 0
}

func (m *Map) missing(what string) { m.Missing = append(m.Missing, what) }

// Build makes the map of what is there. Without mappings the parts are those that the status and
// the allocator tell.
func Build(in Input) Map {
	m := Map{Sockets: in.Sockets}
	parts := map[string]int64{}
	if in.Status != nil {
		m.Resident = in.Status.Resident
	} else {
		m.missing("the process's status: what is resident is the sum of its mappings")
	}
	switch {
	case len(in.Mappings) > 0:
		m.mapped(in, parts)
	case in.Status != nil:
		m.missing("the process's smaps: its mappings are one part, and pages that were never touched count as free")
		parts[Binary] = in.Status.File
		parts[Shared] = in.Status.Shared
		m.layers(in.Allocator, min(heapOf(in.Allocator), in.Status.Anonymous), parts)
	default:
		m.missing("the process's smaps: the map has the allocator's layers alone")
		m.layers(in.Allocator, heapOf(in.Allocator), parts)
	}
	if m.Resident == 0 {
		m.Resident = total(parts)
	}
	m.close(parts)
	if in.Allocator == nil {
		m.missing("the allocator's figures: the heap is one part")
	} else if in.Allocator.Kind == allocator.Memory {
		m.missing("/memory/tcmalloc: there are no size classes")
	}
	m.inside(in, parts[Application])
	return m
}

func heapOf(r *allocator.Report) int64 {
	if r == nil {
		return 0
	}
	return r.HeapSize - r.Unmapped
}

func total(parts map[string]int64) (sum int64) {
	for _, n := range parts {
		sum += n
	}
	return sum
}

// close puts the parts in order, with what is missing of the resident memory.
func (m *Map) close(parts map[string]int64) {
	other := parts[Unexplained] // mappings of nobody
	rest := m.Resident - total(parts)
	parts[Unexplained] = other + rest
	// Too much explained is an error too, and is not to be made up for by what nobody explains.
	if m.Resident > 0 {
		m.Error = float64(other+max(rest, -rest)) / float64(m.Resident)
	}
	for _, name := range order {
		if n := parts[name]; n != 0 || name == Unexplained {
			m.Parts = append(m.Parts, Part{Name: name, Bytes: n, About: abouts[name]})
		}
	}
}

var abouts = map[string]string{
	Binary:     "code and constants, which the kernel may drop and read again, and what was written of its data",
	WasmMemory: "what the plugins' own programs use, a memory for each VM",
	WasmCode:   "what V8 made of the plugins",
	V8:         "V8's own heap and tables",
	Caches:     "free objects that threads, processors and lists keep",
	FreePages:  "pages of the heap that could be given back to the system",
}

// names of the kinds of mappings that are parts as they are.
var names = map[kind]string{
	kindBinary: Binary, kindData: Binary, kindLibrary: Libraries, kindFile: Files, kindShared: Shared, kindStack: Stacks, kindBrk: Brk,
	kindCode: WasmCode, kindWasm: WasmMemory, kindV8: V8, kindOther: Unexplained, kindReserved: Unexplained, kindBooks: Books,
}

// mapped takes the parts from the mappings, and the heap's from the allocator.
func (m *Map) mapped(in Input, parts map[string]int64) {
	kinds := classify(in.Mappings)
	var blocks []block
	for i := range in.Mappings {
		v := &in.Mappings[i]
		if kinds[i] == kindHeap {
			blocks = add(blocks, v)
		} else {
			parts[names[kinds[i]]] += v.Resident
		}
	}
	if in.Allocator != nil && in.Allocator.Kind != allocator.TCMalloc && in.Allocator.Kind != allocator.Memory || len(blocks) == 0 {
		// Another allocator: its heap is among what is anonymous.
		heap := min(parts[Unexplained]+parts[Brk], heapOf(in.Allocator))
		for _, name := range []string{Unexplained, Brk} {
			n := min(parts[name], heap)
			parts[name] -= n
			heap -= n
			parts[Application] += n
		}
		heap = parts[Application]
		parts[Application] = 0
		m.layers(in.Allocator, heap, parts)
		return
	}
	m.heap(in.Allocator, blocks, parts)
}

// block is a GiB of tcmalloc's.
type block struct {
	at                 uint64 // GiB
	readable, resident int64
}

func add(list []block, v *Mapping) []block {
	n := int64(0)
	if v.readable() {
		n = int64(min(v.Size(), maxBytes)) //nolint:gosec // it is bounded
	}
	if last := len(list) - 1; last >= 0 && list[last].at == v.Start/gib {
		list[last].readable += n
		list[last].resident += v.Resident
		return list
	}
	return append(list, block{v.Start / gib, n, v.Resident})
}

// heap splits what is resident of tcmalloc's blocks into its layers.
//
// tcmalloc counts pages from when it takes them, the kernel from when they are first touched. So
//
//	readable = heap_size, and untouched = readable − resident − unmapped.
//
// Where tcmalloc's heap_size is less than what is readable the difference is an error of this map,
// but for blocks that it has only just begun and does not count yet.
func (m *Map) heap(r *allocator.Report, blocks []block, parts map[string]int64) {
	var readable, resident int64
	for _, b := range blocks {
		readable, resident = readable+b.readable, resident+b.resident
	}
	if r == nil {
		parts[Application] += resident
		return
	}
	slices.SortFunc(blocks, func(a, b block) int { return cmp.Compare(a.resident, b.resident) })
	for _, b := range blocks {
		if b.resident*8 < b.readable && readable-r.HeapSize >= b.readable {
			readable, resident = readable-b.readable, resident-b.resident
			parts[Books] += b.resident
		}
	}
	m.Untouched = max(readable-resident-r.Unmapped, 0)
	m.layers(r, r.HeapSize-r.Unmapped-m.Untouched, parts)
}

// layers adds the allocator's layers, of which so much is resident: pages that were never touched
// are missing first of the free ones, then of large objects that nobody has filled.
func (m *Map) layers(r *allocator.Report, resident int64, parts map[string]int64) {
	if r == nil {
		parts[Application] += resident
		return
	}
	lack := max(heapOf(r)-resident, 0)
	free := min(lack, r.Free)
	parts[FreePages] += r.Free - free
	lack -= free
	app := min(lack, r.Application)
	parts[Application] += r.Application - app
	parts[Caches] += max(r.Cached()-(lack-app), 0)
}
