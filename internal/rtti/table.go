// Package rtti names the functions of a C++ binary without symbols by the classes that they belong
// to.
//
// A release binary of Envoy has lost its symbols, but not its runtime type information, which
// dynamic_cast and exceptions need: each class with a virtual function has a typeinfo, with its
// name and its bases, and a vtable, which begins with a pointer to that typeinfo and goes on with
// pointers to the functions. Relocations tell where pointers are. The layout is that of the Itanium
// C++ ABI, sections 2.5 and 2.9.
//
// What it can't name: functions that are not virtual, those of classes without any, those of C, and
// those that the linker has folded because they do the same. A virtual function has a number in its
// vtable (its slot) in place of a name.
package rtti

import (
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
)

// noClass is that of a function that is not known to belong to one.
const noClass = -1

// Table says to which class the functions of one binary belong. It is safe for concurrent use.
type Table struct {
	// BuildID is the binary's, in hex; empty = it has none. Envoy's is the commit that it was built
	// from: binaries of different machines and builds have the same.
	BuildID string
	Machine elf.Machine

	loads     []elf.Prog64
	functions []function // by address
	names     []string   // of classes, mangled
}

// function is where one begins, and whose it is.
type function struct {
	start uint64
	class int32 // of Table.names, or noClass
	slot  uint16
}

// Function is a part of a binary's code.
type Function struct {
	Start uint64 // where it begins, as linked
	Class string // to which it belongs, mangled without a prefix; empty = not known
	Slot  int    // in the class's vtable, from 0
}

// Build reads the classes of a binary. A binary without any gives a table without names.
func Build(file io.ReaderAt) (*Table, error) {
	im, err := readHeaders(file)
	if err != nil {
		return nil, err
	}
	if err := im.load(); err != nil {
		return nil, err
	}
	classes, err := im.typeinfos()
	if err != nil {
		return nil, err
	}
	starts, err := im.functionStarts()
	if err != nil {
		return nil, err
	}
	t := newTable(im)
	t.fill(starts, im.owners(classes), classes)
	return t, nil
}

func newTable(im *image) *Table {
	t := &Table{BuildID: hex.EncodeToString(im.buildID), Machine: im.machine}
	for _, s := range im.loads {
		t.loads = append(t.loads, s.Prog64)
	}
	return t
}

// Functions is how many there are, and of how many the class is known.
func (t *Table) Functions() (all, named int) {
	for _, f := range t.functions {
		if f.class != noClass {
			named++
		}
	}
	return len(t.functions), named
}

// EachClass calls f with each class that has a function, mangled.
func (t *Table) EachClass(f func(mangled string)) {
	for _, name := range t.names {
		f(name)
	}
}

// Address is where a byte of the binary's file is in memory, as linked.
func (t *Table) Address(offset uint64) (uint64, bool) { return address(t.loads, offset) }

// Maps says whether a process may have mapped the binary's code by so many bytes from a place in
// its file, but for what pages round. It tells binaries apart that have one build id.
func (t *Table) Maps(offset, size uint64) bool {
	const round = 64 << 10 // the largest page
	near := func(a, b uint64) bool { return a-b < round || b-a < round }
	return slices.ContainsFunc(t.loads, func(s elf.Prog64) bool {
		return elf.ProgFlag(s.Flags)&elf.PF_X != 0 && near(offset, s.Off) && near(offset+size, s.Off+s.Memsz)
	})
}

// Lookup returns the function at an address, as linked; false = there is no code.
func (t *Table) Lookup(address uint64) (Function, bool) {
	code := slices.ContainsFunc(t.loads, func(s elf.Prog64) bool {
		return elf.ProgFlag(s.Flags)&elf.PF_X != 0 && address >= s.Vaddr && address-s.Vaddr < s.Filesz
	})
	i, exact := slices.BinarySearchFunc(t.functions, address, func(f function, at uint64) int {
		if f.start < at {
			return -1
		}
		if f.start > at {
			return 1
		}
		return 0
	})
	if !exact {
		i--
	}
	if !code || i < 0 {
		return Function{}, false
	}
	f := Function{Start: t.functions[i].start, Slot: int(t.functions[i].slot)}
	if c := t.functions[i].class; c != noClass {
		f.Class = t.names[c]
	}
	return f, true
}

// functionStarts are where functions begin, sorted: .eh_frame_hdr has a table of them for whoever
// unwinds the stack (Linux Standard Base, 10.6.2).
func (im *image) functionStarts() ([]uint64, error) {
	if im.frames.Filesz < 12 {
		return nil, errors.New("it has no .eh_frame_hdr, which tells where functions begin")
	}
	text, err := readPart(im.file, im.frames.Off, im.frames.Filesz, maxFrameHeader, "its .eh_frame_hdr")
	if err != nil {
		return nil, err
	}
	// Version 1, its count as 4 bytes, and its table of pairs of 4 bytes from its own beginning.
	const udata4, relativeSdata4 = 0x03, 0x3b
	if text[0] != 1 || text[2] != udata4 || text[3] != relativeSdata4 {
		return nil, fmt.Errorf("its .eh_frame_hdr is of a kind that is not read (%x)", text[:4])
	}
	count := binary.LittleEndian.Uint32(text[8:])
	if text = text[12:]; uint64(count)*8 > uint64(len(text)) {
		return nil, fmt.Errorf("its .eh_frame_hdr has %d functions in %d bytes", count, len(text))
	}
	starts := make([]uint64, count)
	for i := range starts {
		starts[i] = im.frames.Vaddr + uint64(int64(int32(binary.LittleEndian.Uint32(text[8*i:]))))
	}
	slices.Sort(starts)
	return starts, nil
}

// entry is a function in a vtable.
type entry struct {
	function uint64
	info     uint64 // the typeinfo of the vtable's class
	slot     uint16
}

const (
	maxSlots   = 1 << 12 // of one vtable
	maxEntries = 1 << 20 // of all of them; Envoy 1.40 has some 370,000
)

// owners are the functions in vtables with the class that each belongs to, by address.
func (im *image) owners(classes map[uint64]*class) []entry {
	var entries []entry
	im.words(func(at, word uint64) {
		if classes[word] == nil {
			return
		}
		// In front of the typeinfo a vtable has how far to the object's beginning.
		const farthest = 1 << 30
		if top, ok := im.word(at - 8); !ok || top+farthest > 2*farthest {
			return
		}
		for slot := range uint64(maxSlots) {
			f, ok := im.word(at + 8 + 8*slot)
			if !ok || !im.executable(f) || len(entries) == maxEntries {
				return
			}
			entries = append(entries, entry{f, word, uint16(slot)})
		}
	})
	slices.SortFunc(entries, func(a, b entry) int {
		switch {
		case a.function != b.function:
			return sign(a.function > b.function)
		case a.info != b.info:
			return sign(a.info > b.info)
		}
		return int(a.slot) - int(b.slot)
	})
	f := &family{classes: classes, known: map[uint64][]uint64{}}
	owned := entries[:0]
	for from := 0; from < len(entries); {
		to := from
		var infos []uint64
		slot := entries[from].slot
		for ; to < len(entries) && entries[to].function == entries[from].function; to++ {
			if info := entries[to].info; len(infos) == 0 || infos[len(infos)-1] != info {
				infos = append(infos, info)
			}
			slot = min(slot, entries[to].slot)
		}
		function := entries[from].function
		if info, ok := f.common(infos); ok {
			owned = append(owned, entry{function, info, slot})
		}
		from = to
	}
	return owned
}

func sign(greater bool) int {
	if greater {
		return 1
	}
	return -1
}

// fill merges the functions with those that have a class.
func (t *Table) fill(starts []uint64, owned []entry, classes map[uint64]*class) {
	indices := map[string]int32{}
	t.functions = make([]function, 0, len(starts))
	for len(starts) > 0 || len(owned) > 0 {
		if len(owned) == 0 || len(starts) > 0 && starts[0] < owned[0].function {
			if n := len(t.functions); n == 0 || t.functions[n-1].start != starts[0] {
				t.functions = append(t.functions, function{starts[0], noClass, 0})
			}
			starts = starts[1:]
			continue
		}
		for len(starts) > 0 && starts[0] == owned[0].function {
			starts = starts[1:]
		}
		name := classes[owned[0].info].name
		i, ok := indices[name]
		if !ok {
			i = int32(len(t.names))
			indices[name] = i
			t.names = append(t.names, name)
		}
		t.functions = append(t.functions, function{owned[0].function, i, owned[0].slot})
		owned = owned[1:]
	}
}
