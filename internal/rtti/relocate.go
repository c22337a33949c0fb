package rtti

import (
	"bufio"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// table is a part of the binary that its dynamic section tells of: where in the file, and its size.
func (im *image) table(at, size elf.DynTag, most uint64) (io.Reader, error) {
	address, n := im.tables[at], im.tables[size]
	if n == 0 {
		return bytes.NewReader(nil), nil
	}
	offset, ok := im.offset(address)
	if !ok || offset > 1<<62 || n > most {
		return nil, fmt.Errorf("%v: %d bytes at %#x can't be read", at, n, address)
	}
	return bufio.NewReaderSize(io.NewSectionReader(im.file, int64(offset), int64(n)), 256<<10), nil
}

// relocate writes what the dynamic linker would: of R_*_RELATIVE the address, and of those that
// name a vtable of the C++ library's, of what kind it is (System V ABI, AMD64 and AArch64).
// Relocations that are packed as bitmaps (DT_RELR of the generic ABI) need nothing: what they are
// to add to is in place, and addresses are those of the link here.
func (im *image) relocate() error {
	const size = 24
	relative, absolute := uint32(elf.R_X86_64_RELATIVE), uint32(elf.R_X86_64_64)
	if im.machine == elf.EM_AARCH64 {
		relative, absolute = uint32(elf.R_AARCH64_RELATIVE), uint32(elf.R_AARCH64_ABS64)
	}
	list, err := im.table(elf.DT_RELA, elf.DT_RELASZ, maxRelocations) //nolint:misspell // its name
	if err != nil {
		return err
	}
	var entry [size]byte
	for named := 0; ; {
		if _, err := io.ReadFull(list, entry[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("its relocations: %w", err)
		}
		at, info, addend := binary.LittleEndian.Uint64(entry[:]), binary.LittleEndian.Uint64(entry[8:]), binary.LittleEndian.Uint64(entry[16:])
		place := im.place(at)
		if place == nil {
			continue
		}
		switch uint32(info) {
		case relative:
			binary.LittleEndian.PutUint64(place, addend)
		case absolute:
			if named++; named > maxNamed {
				return fmt.Errorf("more than %d of its relocations name a symbol", maxNamed)
			}
			value, name := im.symbol(info >> 32)
			if value != 0 {
				binary.LittleEndian.PutUint64(place, value+addend)
				continue
			}
			for k, class := range kinds {
				if name == "_ZTV"+class && addend == 16 {
					im.external[at] = kind(k)
				}
			}
		}
	}
}

// symbol is the value of a dynamic symbol and its name; 0 = it is another library's.
func (im *image) symbol(index uint64) (value uint64, name string) {
	const size = 24
	at, ok := im.offset(im.tables[elf.DT_SYMTAB] + index*size)
	if !ok {
		return 0, ""
	}
	var s elf.Sym64
	if read(im.file, at, &s) != nil || s.Value != 0 || uint64(s.Name) >= im.tables[elf.DT_STRSZ] {
		return s.Value, ""
	}
	return 0, im.text(im.tables[elf.DT_STRTAB]+uint64(s.Name), 64)
}

// text is the string at an address that ends with a NUL before most bytes; empty = there is none.
func (im *image) text(address uint64, most int) string {
	at, ok := im.offset(address)
	if !ok {
		return ""
	}
	return im.textAt(at, most)
}

// textAt is the same by its place in the file.
func (im *image) textAt(at uint64, most int) string {
	if at > 1<<62 {
		return ""
	}
	b := make([]byte, most)
	n, _ := im.file.ReadAt(b, int64(at))
	end := max(0, bytes.IndexByte(b[:n], 0))
	return string(b[:end])
}
