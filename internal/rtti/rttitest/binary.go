// Package rttitest writes small binaries as a C++ compiler and linker would: with classes, and
// without symbols. They can be read, and not run.
package rttitest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"slices"
)

// Class is one with virtual functions.
type Class struct {
	Name    string // mangled, without prefix: 3Foo
	Bases   []int  // of Binary.Classes
	Virtual []int  // its functions, of Binary.Functions, in the order of its vtable
}

// Binary says what is in one.
type Binary struct {
	Machine   elf.Machine // default: amd64
	BuildID   []byte      // empty = it has none
	Functions int
	Classes   []Class
	Symbols   map[int]string // names of functions, mangled; nil = it has been stripped of them

	Packed   bool // its relocations are packed (RELR)
	External bool // the C++ library is another file
	Static   bool // it is linked to where it is loaded, and has no relocations
}

// Where things are: addresses differ from places in the file, as those of a linker do.
const (
	codeAddress, dataAddress = 0x200_000, 0x400_000
	// CodeOffset is where in the file code begins.
	CodeOffset   = 0x100_000
	dataOffset   = 0x180_000
	functionSize = 16
)

// Function is where a function begins, as linked.
func Function(i int) uint64 { return codeAddress + uint64(i)*functionSize }

// Offset is where in the file that is.
func Offset(i int) uint64 { return CodeOffset + uint64(i)*functionSize }

var kinds = [3]string{"N10__cxxabiv117__class_type_infoE", "N10__cxxabiv120__si_class_type_infoE", "N10__cxxabiv121__vmi_class_type_infoE"}

// writer lays out the parts.
type writer struct {
	Binary
	low      bytes.Buffer // headers and what is only read
	data     []uint64     // words
	pointers []int        // words that are to be relocated
	symbolic map[int]int  // words that are pointers to the vtable of a kind in another library
}

const headers = 64 + 8*56

// text puts a string among what is only read.
func (w *writer) text(s string) uint64 {
	at := uint64(w.low.Len())
	w.low.WriteString(s + "\x00")
	return at
}

func (w *writer) align() {
	for w.low.Len()%8 != 0 {
		w.low.WriteByte(0)
	}
}

func (w *writer) put(word uint64)    { w.data = append(w.data, word) }
func (w *writer) point(at uint64)    { w.pointers = append(w.pointers, len(w.data)); w.put(at) }
func (w *writer) here() uint64       { return dataAddress + 8*uint64(len(w.data)) }
func (w *writer) function(i int)     { w.point(Function(i)) }
func (w *writer) le(v any)           { _ = binary.Write(&w.low, binary.LittleEndian, v) }
func (w *writer) at() (place uint64) { w.align(); return uint64(w.low.Len()) }

// typeinfo writes that of a class, whose kind's vtable is at an address; 0 = in another library.
func (w *writer) typeinfo(name string, vtables [3]uint64, bases []uint64) uint64 {
	kind := min(len(bases), 2)
	text := w.text(name)
	at := w.here()
	if vtables[kind] == 0 {
		w.symbolic[len(w.data)] = kind
		w.put(0)
	} else {
		w.point(vtables[kind])
	}
	w.point(text)
	switch kind {
	case 1:
		w.point(bases[0])
	case 2:
		w.put(uint64(len(bases)) << 32)
		for _, b := range bases {
			w.point(b)
			w.put(2) // public
		}
	}
	return at
}

func (w *writer) vtable(info uint64, functions []int) (address uint64) {
	w.put(0)
	w.point(info)
	address = w.here()
	for _, f := range functions {
		w.function(f)
	}
	return address
}

// Bytes is the binary's file.
func (b Binary) Bytes() []byte {
	if b.Machine == 0 {
		b.Machine = elf.EM_X86_64
	}
	w := &writer{Binary: b, symbolic: map[int]int{}}
	w.low.Write(make([]byte, headers))
	w.classes()
	tables := w.tables()
	frames := w.frames()
	note := w.note()
	w.align()
	dynamic := len(w.data)
	if !b.Static {
		w.data = append(w.data, tables...)
		w.put(0)
		w.put(0)
	}
	return w.file(frames, note, dynamic)
}

// classes writes typeinfos and vtables.
func (w *writer) classes() {
	var vtables [3]uint64
	if !w.External {
		// The vtable of the second kind comes behind its own typeinfo, which begins with a pointer
		// to it: it is written with what is known to come.
		const words = 3*3 + 3*3
		for k := range kinds {
			vtables[k] = dataAddress + 8*uint64(9+3*k+2)
		}
		var infos [3]uint64
		for k, name := range kinds {
			infos[k] = w.typeinfo(name, vtables, []uint64{dataAddress})
		}
		for k := range kinds {
			if at := w.vtable(infos[k], []int{0}); at != vtables[k] {
				panic("the vtables are not where they were to be")
			}
		}
		if len(w.data) != words {
			panic("the typeinfos of typeinfos are not as large as they were to be")
		}
	}
	infos := make([]uint64, len(w.Classes))
	for i, c := range w.Classes {
		var bases []uint64
		for _, b := range c.Bases {
			bases = append(bases, infos[b])
		}
		infos[i] = w.typeinfo(c.Name, vtables, bases)
	}
	for i, c := range w.Classes {
		if len(c.Virtual) > 0 {
			w.vtable(infos[i], c.Virtual)
		}
	}
}

// tables writes symbols and relocations, and returns the words of the dynamic section.
func (w *writer) tables() (dynamic []uint64) {
	if w.Static {
		return nil
	}
	texts := w.at()
	w.low.WriteByte(0)
	var names [3]uint32
	for k, name := range kinds {
		names[k] = uint32(w.text("_ZTV"+name) - texts)
	}
	end := uint64(w.low.Len())
	symbols := w.at()
	w.le(elf.Sym64{})
	for k := range kinds {
		w.le(elf.Sym64{Name: names[k], Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_OBJECT)})
	}
	dynamic = []uint64{uint64(elf.DT_SYMTAB), symbols, uint64(elf.DT_STRTAB), texts, uint64(elf.DT_STRSZ), end - texts}
	relative, absolute := uint64(elf.R_X86_64_RELATIVE), uint64(elf.R_X86_64_64)
	if w.Machine == elf.EM_AARCH64 {
		relative, absolute = uint64(elf.R_AARCH64_RELATIVE), uint64(elf.R_AARCH64_ABS64)
	}
	relocations := w.at()
	for _, i := range w.pointers {
		if !w.Packed {
			w.le([3]uint64{dataAddress + 8*uint64(i), relative, w.data[i]})
			w.data[i] = 0 // a linker leaves nothing in place
		}
	}
	for i := range w.data {
		if kind, ok := w.symbolic[i]; ok {
			w.le([3]uint64{dataAddress + 8*uint64(i), uint64(kind+1)<<32 | absolute, 16})
		}
	}
	dynamic = append(dynamic, uint64(elf.DT_RELA), relocations, uint64(elf.DT_RELASZ), uint64(w.low.Len())-relocations) //nolint:misspell // its name
	if w.Packed {
		relr := w.at()
		for _, i := range w.pointers {
			w.le(dataAddress + 8*uint64(i))
		}
		dynamic = append(dynamic, 36, relr, 35, uint64(w.low.Len())-relr)
	}
	return dynamic
}

// frames writes .eh_frame_hdr.
func (w *writer) frames() elf.Prog64 {
	at := w.at()
	w.le([4]byte{1, 0x1b, 3, 0x3b})
	w.le(int32(0))
	w.le(uint32(w.Functions))
	for i := range w.Functions {
		w.le([2]int32{int32(Function(i) - at), 0})
	}
	n := uint64(w.low.Len()) - at
	return elf.Prog64{Type: uint32(elf.PT_GNU_EH_FRAME), Off: at, Vaddr: at, Filesz: n, Memsz: n}
}

func (w *writer) note() elf.Prog64 {
	at := w.at()
	if len(w.BuildID) > 0 {
		w.le([3]uint32{4, uint32(len(w.BuildID)), 3})
		w.low.WriteString("GNU\x00")
		w.low.Write(w.BuildID)
	}
	n := uint64(w.low.Len()) - at
	return elf.Prog64{Type: uint32(elf.PT_NOTE), Off: at, Vaddr: at, Filesz: n, Memsz: n}
}

// file puts the parts together.
func (w *writer) file(frames, note elf.Prog64, dynamic int) []byte {
	low := w.low.Bytes()
	if len(low) > CodeOffset {
		panic("the classes have no room")
	}
	data := make([]byte, 8*len(w.data))
	for i, word := range w.data {
		binary.LittleEndian.PutUint64(data[8*i:], word)
	}
	load := func(flags elf.ProgFlag, off, address, size uint64) elf.Prog64 {
		return elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(flags), Off: off, Vaddr: address, Filesz: size, Memsz: size}
	}
	programs := []elf.Prog64{
		load(elf.PF_R, 0, 0, uint64(len(low))),
		load(elf.PF_R|elf.PF_X, CodeOffset, codeAddress, uint64(w.Functions)*functionSize),
		load(elf.PF_R|elf.PF_W, dataOffset, dataAddress, uint64(len(data))),
		frames, note,
	}
	if !w.Static {
		programs = append(programs, elf.Prog64{
			Type: uint32(elf.PT_DYNAMIC), Off: dataOffset + 8*uint64(dynamic), Vaddr: dataAddress + 8*uint64(dynamic), Filesz: 8 * uint64(len(w.data)-dynamic),
		})
	}
	header := elf.Header64{
		Type: uint16(elf.ET_DYN), Machine: uint16(w.Machine), Version: 1, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: uint16(len(programs)),
	}
	copy(header.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	whole := slices.Concat(low, make([]byte, dataOffset-len(low)), data)
	if w.Symbols != nil {
		header.Shoff, header.Shentsize, header.Shnum = uint64(len(whole)), 64, 3
		whole = slices.Concat(whole, w.sections(uint64(len(whole))))
	}
	var head bytes.Buffer
	_ = binary.Write(&head, binary.LittleEndian, header)
	_ = binary.Write(&head, binary.LittleEndian, programs)
	copy(whole, head.Bytes())
	return whole
}

// sections are those of the symbols, at a place in the file.
func (w *writer) sections(at uint64) []byte {
	var texts, symbols, out bytes.Buffer
	texts.WriteByte(0)
	for i := range w.Functions {
		if name := w.Symbols[i]; name != "" {
			_ = binary.Write(&symbols, binary.LittleEndian, elf.Sym64{
				Name: uint32(texts.Len()), Info: elf.ST_INFO(elf.STB_GLOBAL, elf.STT_FUNC), Shndx: 1, Value: Function(i), Size: functionSize,
			})
			texts.WriteString(name + "\x00")
		}
	}
	at += 3 * 64
	_ = binary.Write(&out, binary.LittleEndian, []elf.Section64{
		{},
		{Type: uint32(elf.SHT_SYMTAB), Off: at, Size: uint64(symbols.Len()), Link: 2, Entsize: 24},
		{Type: uint32(elf.SHT_STRTAB), Off: at + uint64(symbols.Len()), Size: uint64(texts.Len())},
	})
	out.Write(symbols.Bytes())
	out.Write(texts.Bytes())
	return out.Bytes()
}
