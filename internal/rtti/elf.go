package rtti

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Bounds of what is read of a file that may be anything. Envoy 1.40 has 4 MiB of data that is
// written, 9 MiB of relocations and 2 MiB of .eh_frame_hdr.
const (
	maxData        = 64 << 20 // of all segments that are written, kept in memory
	maxRelocations = 1 << 30  // bytes, read as they come
	maxNamed       = 1 << 18  // relocations that name a symbol, which is looked up
	maxFrameHeader = 16 << 20 // kept in memory
	maxDynamic     = 64 << 10
	maxNotes       = 64 << 10
	maxHeaders     = 1 << 10 // of program headers, and of sections
	maxLoads       = 32      // segments that are loaded; Envoy has 4
)

// ErrNoBinary is that a file is no binary that can be read here.
var ErrNoBinary = errors.New("not a 64-bit ELF binary of amd64 or arm64")

// segment is a part of a binary as it is loaded. Addresses are those of the link, before the
// process has moved them.
type segment struct {
	elf.Prog64
	data []byte // what is written, with relocations applied; nil = read from the file
}

func (s *segment) has(address uint64) bool {
	return address >= s.Vaddr && address-s.Vaddr < s.Filesz
}

// image is a binary's segments. Only those that are written are in memory: typeinfos and vtables
// are among them, for they hold pointers.
type image struct {
	file     io.ReaderAt
	machine  elf.Machine
	loads    []segment
	frames   elf.Prog64 // .eh_frame_hdr; zero = none
	dynamic  elf.Prog64
	buildID  []byte
	tables   map[elf.DynTag]uint64
	external map[uint64]kind // words that point to a vtable of another library's: where, and of what
}

// readHeaders reads a binary's header and program headers.
func readHeaders(file io.ReaderAt) (*image, error) {
	var header elf.Header64
	if err := read(file, 0, &header); err != nil {
		return nil, ErrNoBinary
	}
	machine := elf.Machine(header.Machine)
	if string(header.Ident[:4]) != elf.ELFMAG || header.Ident[elf.EI_CLASS] != byte(elf.ELFCLASS64) ||
		header.Ident[elf.EI_DATA] != byte(elf.ELFDATA2LSB) || machine != elf.EM_X86_64 && machine != elf.EM_AARCH64 {
		return nil, ErrNoBinary
	}
	if header.Phentsize != 56 || header.Phnum == 0 || header.Phnum > maxHeaders {
		return nil, fmt.Errorf("%w: %d program headers of %d bytes", ErrNoBinary, header.Phnum, header.Phentsize)
	}
	programs := make([]elf.Prog64, header.Phnum)
	if err := read(file, header.Phoff, programs); err != nil {
		return nil, fmt.Errorf("its program headers: %w", err)
	}
	im := &image{file: file, machine: machine}
	for _, p := range programs {
		switch elf.ProgType(p.Type) {
		case elf.PT_LOAD:
			if p.Vaddr+p.Filesz < p.Vaddr || p.Off+p.Filesz < p.Off {
				return nil, fmt.Errorf("%w: a segment ends before it begins", ErrNoBinary)
			}
			if im.loads = append(im.loads, segment{Prog64: p}); len(im.loads) > maxLoads {
				return nil, fmt.Errorf("%w: more than %d segments", ErrNoBinary, maxLoads)
			}
		case elf.PT_GNU_EH_FRAME:
			im.frames = p
		case elf.PT_DYNAMIC:
			im.dynamic = p
		case elf.PT_NOTE:
			if id := im.readBuildID(p); im.buildID == nil {
				im.buildID = id
			}
		}
	}
	return im, nil
}

// read reads a value of fixed size.
func read(file io.ReaderAt, at uint64, into any) error {
	size := binary.Size(into)
	if at > 1<<62 {
		return io.ErrUnexpectedEOF
	}
	return binary.Read(io.NewSectionReader(file, int64(at), int64(size)), binary.LittleEndian, into)
}

// readPart reads bytes of a file. It takes memory as they come: a file may say that it has more
// than it has.
func readPart(file io.ReaderAt, at, size, most uint64, what string) ([]byte, error) {
	if size > most || at > 1<<62 {
		return nil, fmt.Errorf("%s of %d bytes is more than is read (%d)", what, size, most)
	}
	var b bytes.Buffer
	n, err := io.Copy(&b, io.NewSectionReader(file, int64(at), int64(size)))
	if err == nil && uint64(n) < size {
		err = fmt.Errorf("it ends within %s: %w", what, io.ErrUnexpectedEOF)
	}
	return b.Bytes(), err
}

// readBuildID is the note that the linker or the build wrote; nil = none.
func (im *image) readBuildID(p elf.Prog64) []byte {
	notes, err := readPart(im.file, p.Off, min(p.Filesz, maxNotes), maxNotes, "its notes")
	if err != nil {
		return nil
	}
	const header, gnuBuildID = 12, 3
	for len(notes) >= header {
		name, size := uint64(binary.LittleEndian.Uint32(notes)), uint64(binary.LittleEndian.Uint32(notes[4:]))
		is := binary.LittleEndian.Uint32(notes[8:])
		notes = notes[header:]
		nameEnd := (name + 3) &^ 3
		end := nameEnd + (size+3)&^3
		if nameEnd+size > uint64(len(notes)) {
			return nil
		}
		if is == gnuBuildID && string(notes[:name]) == "GNU\x00" {
			return slices.Clone(notes[nameEnd : nameEnd+size])
		}
		notes = notes[min(end, uint64(len(notes))):]
	}
	return nil
}

// load reads what is written of the binary, as it is when the dynamic linker has done its work.
func (im *image) load() error {
	left := uint64(maxData)
	for i := range im.loads {
		s := &im.loads[i]
		if elf.ProgFlag(s.Flags)&elf.PF_W == 0 || s.Filesz == 0 {
			continue
		}
		data, err := readPart(im.file, s.Off, s.Filesz, left, "its data")
		if err != nil {
			return err
		}
		s.data = data
		left -= s.Filesz
	}
	im.external = map[uint64]kind{}
	if im.dynamic.Filesz == 0 {
		return nil // linked in full: its words are what they will be
	}
	text, err := readPart(im.file, im.dynamic.Off, im.dynamic.Filesz, maxDynamic, "its dynamic section")
	if err != nil {
		return err
	}
	im.tables = map[elf.DynTag]uint64{}
	for ; len(text) >= 16; text = text[16:] {
		tag := elf.DynTag(binary.LittleEndian.Uint64(text))
		if tag == elf.DT_NULL {
			break
		}
		im.tables[tag] = binary.LittleEndian.Uint64(text[8:])
	}
	return im.relocate()
}

// offset is where in the file an address is.
func (im *image) offset(address uint64) (uint64, bool) {
	for i := range im.loads {
		if s := &im.loads[i]; s.has(address) {
			return s.Off + address - s.Vaddr, true
		}
	}
	return 0, false
}

// address is where a byte of the file is loaded.
func address(loads []elf.Prog64, offset uint64) (uint64, bool) {
	for _, s := range loads {
		if offset >= s.Off && offset-s.Off < s.Filesz {
			return s.Vaddr + offset - s.Off, true
		}
	}
	return 0, false
}

// executable says whether there is code at an address.
func (im *image) executable(address uint64) bool {
	for i := range im.loads {
		if s := &im.loads[i]; s.has(address) {
			return elf.ProgFlag(s.Flags)&elf.PF_X != 0
		}
	}
	return false
}

// place is where a word is in memory; nil = it is not among what is written.
func (im *image) place(address uint64) []byte {
	if address%8 != 0 {
		return nil
	}
	for i := range im.loads {
		s := &im.loads[i]
		if s.data != nil && s.has(address) && s.Filesz-(address-s.Vaddr) >= 8 {
			return s.data[address-s.Vaddr:]
		}
	}
	return nil
}

// word is the pointer or number at an address.
func (im *image) word(address uint64) (uint64, bool) {
	b := im.place(address)
	if b == nil {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b), true
}

// words calls f with each word that is written, by address.
func (im *image) words(f func(address, word uint64)) {
	for i := range im.loads {
		s := &im.loads[i]
		skip := -s.Vaddr & 7
		for at := skip; at+8 <= uint64(len(s.data)); at += 8 {
			f(s.Vaddr+at, binary.LittleEndian.Uint64(s.data[at:]))
		}
	}
}
