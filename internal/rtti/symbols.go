package rtti

import (
	"bufio"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// ErrNoSymbols is that a binary has lost its symbols.
var ErrNoSymbols = errors.New("it has no symbols: name a binary of the same build that was not stripped")

const maxSymbols = 1 << 30 // bytes of the table, read as they come

// Symbols returns the names of the functions at some addresses, mangled, from a binary of the same
// build that has symbols, or from the file with its symbols alone.
func (t *Table) Symbols(file io.ReaderAt, addresses []uint64) (map[uint64]string, error) {
	im, err := readHeaders(file)
	if err != nil {
		return nil, err
	}
	if !t.same(newTable(im)) {
		return nil, fmt.Errorf("its symbols are of another build than the binary (%s): name the binary's own", t.BuildID)
	}
	sections, err := im.sections()
	if err != nil {
		return nil, err
	}
	for _, s := range sections {
		if elf.SectionType(s.Type) == elf.SHT_SYMTAB && s.Entsize == 24 && s.Size > 0 && int(s.Link) < len(sections) {
			return im.find(s, sections[s.Link], addresses)
		}
	}
	return nil, ErrNoSymbols
}

// same says whether two are of one build. The build id alone does not say so: Envoy's is a commit.
func (t *Table) same(other *Table) bool {
	code := func(t *Table) (all []uint64) {
		for _, s := range t.loads {
			if elf.ProgFlag(s.Flags)&elf.PF_X != 0 {
				all = append(all, s.Vaddr, s.Memsz)
			}
		}
		return all
	}
	return t.BuildID == other.BuildID && t.Machine == other.Machine && slices.Equal(code(t), code(other))
}

func (im *image) sections() ([]elf.Section64, error) {
	var header elf.Header64
	if err := read(im.file, 0, &header); err != nil {
		return nil, err
	}
	if header.Shnum == 0 || header.Shentsize != 64 || header.Shnum > maxHeaders {
		return nil, ErrNoSymbols
	}
	list := make([]elf.Section64, header.Shnum)
	if err := read(im.file, header.Shoff, list); err != nil {
		return nil, fmt.Errorf("its sections: %w", err)
	}
	return list, nil
}

// find reads a table of symbols through, for there may be many more of them than addresses.
func (im *image) find(table, texts elf.Section64, addresses []uint64) (map[uint64]string, error) {
	if table.Off > 1<<62 || table.Size > maxSymbols {
		return nil, fmt.Errorf("its symbols of %d bytes are more than is read (%d)", table.Size, maxSymbols)
	}
	sorted := slices.Clone(addresses)
	slices.Sort(sorted)
	list := bufio.NewReaderSize(io.NewSectionReader(im.file, int64(table.Off), int64(table.Size)), 256<<10)
	names := map[uint64]string{}
	var entry [24]byte
	for {
		if _, err := io.ReadFull(list, entry[:]); errors.Is(err, io.EOF) {
			return names, nil
		} else if err != nil {
			return nil, fmt.Errorf("its symbols: %w", err)
		}
		name, value, size := binary.LittleEndian.Uint32(entry[:]), binary.LittleEndian.Uint64(entry[8:]), binary.LittleEndian.Uint64(entry[16:])
		if elf.ST_TYPE(entry[4]) != elf.STT_FUNC {
			continue
		}
		first, _ := slices.BinarySearch(sorted, value)
		for _, at := range sorted[first:] {
			if at-value >= size {
				break
			}
			if names[at] == "" && uint64(name) < texts.Size {
				names[at] = im.textAt(texts.Off+uint64(name), maxName)
			}
		}
	}
}
