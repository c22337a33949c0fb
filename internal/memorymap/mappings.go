package memorymap

import (
	"maps"
	"slices"
	"strings"
)

// kind is what a mapping is for.
type kind int

const (
	kindOther kind = iota // nobody's: not explained
	kindBinary
	kindData
	kindLibrary
	kindFile
	kindShared
	kindStack
	kindBrk
	kindHeap     // of tcmalloc
	kindBooks    // its metadata
	kindCode     // machine code that V8 made of Wasm
	kindWasm     // memory of a Wasm VM
	kindV8       // V8's own heap
	kindReserved // address space without memory
)

const (
	gib = 1 << 30
	// guardPage is what glibc leaves below a thread's stack; the kernel may have larger pages.
	guardPage = 64 << 10
	// cage: V8 reserves 8 GiB and more behind a Wasm memory, so that 32-bit indexes need no check.
	cage = 4 * gib
	// v8Range is what V8 reserves around its tables and code.
	v8Range = 64 << 20
	// tagShift: tcmalloc keeps in an address for what it is used. 3 are its own books.
	// github.com/google/tcmalloc/blob/master/tcmalloc/common.h, MemoryTag
	tagShift = 42
	tagBooks = 3
)

// classify says of each mapping what it is for. Names tell little: tcmalloc, V8 and stacks are all
// anonymous memory. Their shapes do:
//
//   - tcmalloc reserves whole GiB at whole GiB, and makes a part of each readable.
//   - A Wasm memory is readable memory in front of a cage of 8 GiB that nobody may touch.
//   - Machine code is executable memory of no file.
//   - A thread's stack lies above a guard page.
//   - V8's heap are pages of 256 KiB or less at addresses that it draws at random, far below those
//     that the kernel gives out; or it lies beside large reservations.
func classify(list []Mapping) []kind {
	kinds := make([]kind, len(list))
	binary, end := binaryOf(list)
	look := looker{list: list, blocks: heapBlocks(list)}
	for i := range list {
		look.v8 = look.v8 || list[i].Path == "" && list[i].executable()
	}
	for i := range list {
		m := &list[i]
		switch {
		case m.Path == binary && binary != "":
			kinds[i] = kindBinary
		case m.Path == "" && m.Start == end && binary != "":
			kinds[i], end = kindData, m.End // what the linker calls .bss
		case m.Path == "" || strings.HasPrefix(m.Path, "[anon"): // named by prctl(2)
			kinds[i] = look.anonymous(i)
		default:
			kinds[i] = named(m.Path)
		}
	}
	return kinds
}

// named says what a mapping is for by its name.
func named(path string) kind {
	switch {
	case path == "[heap]":
		return kindBrk
	case strings.HasPrefix(path, "[stack"):
		return kindStack
	case strings.HasPrefix(path, "["), strings.Contains(path, ".so"): // vdso and the like
		return kindLibrary
	case strings.HasPrefix(path, "/dev/shm/"), strings.HasPrefix(path, "/dev/zero"), strings.HasPrefix(path, "/memfd:"):
		return kindShared
	}
	return kindFile
}

// binaryOf is the program, and where its mappings end: the first file that has code in it and is no
// library.
func binaryOf(list []Mapping) (path string, end uint64) {
	for i := range list {
		m := &list[i]
		if path == "" && strings.HasPrefix(m.Path, "/") && m.executable() && !strings.Contains(m.Path, ".so") {
			path = m.Path
		}
		if path != "" && m.Path == path {
			end = m.End
		}
	}
	return path, end
}

// looker looks at memory of no file.
type looker struct {
	list   []Mapping
	blocks map[uint64]bool // see heapBlocks
	v8     bool            // there is executable memory: V8 is at work
}

// anonymous says what memory of no file is for.
func (l *looker) anonymous(i int) kind {
	m := &l.list[i]
	before, after := neighbour(l.list, i, -1), neighbour(l.list, i, +1)
	switch {
	case after.guards(cage + 1):
		return kindWasm
	case m.Size() > 0 && l.blocks[m.Start/gib] && l.blocks[(m.End-1)/gib]:
		return heapKind(m)
	case m.guard():
		return kindReserved
	case m.executable():
		return kindCode
	case stack(m, before):
		return kindStack
	case l.v8 && (beside(before) || beside(after) || smallV8(m, before)):
		return kindV8
	}
	return kindOther
}

func heapKind(m *Mapping) kind {
	if m.Start>>tagShift&7 == tagBooks {
		return kindBooks
	}
	return kindHeap
}

func stack(m, before *Mapping) bool {
	return m.Perm == "rw-p" && before != nil && before.guard() && before.Size() <= guardPage && !smallV8(m, before)
}

func beside(m *Mapping) bool {
	return m.guards(v8Range) || m != nil && m.Path == "" && m.executable()
}

// guards says whether there is a mapping of at least a size that nobody may touch.
func (m *Mapping) guards(least uint64) bool { return m != nil && m.guard() && m.Size() >= least }

// smallV8 says whether a mapping looks like pages of V8's heap: at whole 64 KiB, and below where
// the kernel puts what asks for no address. Of its read-only tables some have 64 KiB between
// guards of the same size.
func smallV8(m, before *Mapping) bool {
	const page, kernels = 64 << 10, 0x7e0000000000
	return m.Start%page == 0 && m.Start < kernels && (before == nil || !before.guard() || before.Size() == page)
}

// neighbour is the mapping right beside one, nil where there is a gap.
func neighbour(list []Mapping, i, step int) *Mapping {
	j := i + step
	if j < 0 || j >= len(list) || step < 0 && list[j].End != list[i].Start || step > 0 && list[j].Start != list[i].End {
		return nil
	}
	return &list[j]
}

// heapBlocks are the GiB that are full of mappings as tcmalloc has them.
func heapBlocks(list []Mapping) map[uint64]bool {
	covered, readable := map[uint64]uint64{}, map[uint64]bool{}
	for i := range list {
		m := &list[i]
		if !m.likeTCMalloc() {
			continue
		}
		first, last := m.Start/gib, (m.End-1)/gib
		// What lies between the first and the last is full, and its own ends decide for it.
		for _, b := range slices.Compact([]uint64{first, last}) {
			covered[b] += min(m.End, (b+1)*gib) - max(m.Start, b*gib)
			readable[b] = readable[b] || m.readable()
		}
	}
	maps.DeleteFunc(readable, func(b uint64, is bool) bool { return !is || covered[b] != gib })
	return readable
}

// likeTCMalloc says whether a mapping may be a part of a block of tcmalloc's.
func (m *Mapping) likeTCMalloc() bool {
	return (m.Path == "" || strings.HasPrefix(m.Path, "[anon")) && (m.Perm == "rw-p" || m.Perm == "---p") &&
		m.Size() > 0 && m.Size() <= cage && m.End <= 1<<48
}
