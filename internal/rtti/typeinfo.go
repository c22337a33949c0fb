package rtti

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"slices"
)

// kind is how a class inherits: section 2.9.5 of the Itanium C++ ABI has a vtable of typeinfos for
// each.
type kind int

const (
	alone  kind = iota // from nobody
	single             // from one class, publicly, at its beginning
	many               // from any number
)

// kinds are the classes of these typeinfos, as they are mangled.
var kinds = [...]string{
	alone:  "N10__cxxabiv117__class_type_infoE",
	single: "N10__cxxabiv120__si_class_type_infoE",
	many:   "N10__cxxabiv121__vmi_class_type_infoE",
}

// Envoy 1.40 has 26,212 types of 59,859 lines together, the longest of 30, and 12 bases at most.
const (
	maxName  = 4 << 10 // bytes of a mangled name; a longer one is none
	maxBases = 64      // of one class
	maxTypes = 1 << 18
	maxNames = 32 << 20 // bytes, of all of them
	maxLine  = 1 << 8   // classes that one inherits from
	maxLines = 1 << 21  // of all of them; the rest is looked up each time
	maxScan  = 1 << 30  // bytes that are looked through for the names of kinds
)

// class is a type with a typeinfo.
type class struct {
	name  string   // mangled, without prefix
	bases []uint64 // addresses of their typeinfos
}

// typeinfos are the classes of a binary by the address of their typeinfo. Each begins with a
// pointer to the vtable of its kind, which is found first: by the name in its own typeinfo.
func (im *image) typeinfos() (map[uint64]*class, error) {
	vtables, err := im.kindVtables()
	if err != nil {
		return nil, err
	}
	found := map[uint64]*class{}
	left := maxNames
	im.words(func(at, word uint64) {
		k, ok := vtables[word]
		if !ok {
			k, ok = im.external[at]
		}
		if !ok || len(found) == maxTypes || left <= 0 {
			return
		}
		if c := im.readClass(at, k); c != nil {
			found[at] = c
			left -= len(c.name)
		}
	})
	return found, nil
}

// kindVtables are the values of the first word of a typeinfo of each kind. A binary that has the
// C++ library in another file has none.
func (im *image) kindVtables() (map[uint64]kind, error) {
	names := map[uint64]kind{}
	left := uint64(maxScan)
	for i := range im.loads {
		s := &im.loads[i]
		if elf.ProgFlag(s.Flags)&elf.PF_X != 0 {
			continue
		}
		if s.Filesz > left {
			return nil, fmt.Errorf("its data of more than %d bytes is not looked through", maxScan)
		}
		left -= s.Filesz
		err := im.findStrings(s, func(at uint64, k kind) { names[at] = k })
		if err != nil {
			return nil, err
		}
	}
	infos := map[uint64]kind{}
	im.words(func(at, word uint64) {
		if k, ok := names[word]; ok {
			infos[at-8] = k
		}
	})
	vtables := map[uint64]kind{}
	im.words(func(at, word uint64) {
		k, ok := infos[word]
		if !ok {
			return
		}
		if f, ok := im.word(at + 8); ok && im.executable(f) {
			vtables[at+8] = k
		}
	})
	return vtables, nil
}

// findStrings calls f with the address of each name in kinds in a segment.
func (im *image) findStrings(s *segment, f func(at uint64, k kind)) error {
	const piece, overlap = 1 << 20, 64
	buf := make([]byte, piece+overlap)
	for from := uint64(0); from < s.Filesz && s.Off+from < 1<<62; from += piece {
		n, err := im.file.ReadAt(buf[:min(uint64(len(buf)), s.Filesz-from)], int64(s.Off+from))
		if err != nil && err != io.EOF || n == 0 {
			return err // a file that ends here has no more of them
		}
		for k, name := range kinds {
			for at := 0; at < n; {
				i := bytes.Index(buf[at:n], append([]byte(name), 0))
				if i < 0 {
					break
				}
				f(s.Vaddr+from+uint64(at+i), kind(k))
				at += i + 1
			}
		}
	}
	return nil
}

// readClass reads a typeinfo: its vtable, a pointer to its name, and of those that inherit a
// pointer to the base, or flags, a number and that many pointers with flags; nil = it is none.
func (im *image) readClass(at uint64, k kind) *class {
	pointer, ok := im.word(at + 8)
	if !ok {
		return nil
	}
	name := im.text(pointer, 256)
	if name == "" {
		name = im.text(pointer, maxName)
	}
	if name != "" && name[0] == '*' { // of GCC: to be compared by address
		name = name[1:]
	}
	if !mangled(name) {
		return nil
	}
	c := &class{name: name}
	switch k {
	case single:
		if base, ok := im.word(at + 16); ok {
			c.bases = []uint64{base}
		}
	case many:
		numbers, _ := im.word(at + 16)
		for i := range min(numbers>>32, maxBases) {
			if base, ok := im.word(at + 24 + 16*i); ok {
				c.bases = append(c.bases, base)
			}
		}
	}
	return c
}

// mangled says whether a name can be that of a type.
func mangled(name string) bool {
	for _, r := range []byte(name) {
		switch {
		case r == '_', r == '$', r == '.', '0' <= r && r <= '9', 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z':
		default:
			return false
		}
	}
	return len(name) > 1
}

// family tells who inherits from whom.
type family struct {
	classes map[uint64]*class
	known   map[uint64][]uint64 // a class and all it inherits from, sorted
	size    int                 // of all that are known
}

// line is a class and all that it inherits from. A hostile binary may have cycles.
func (f *family) line(info uint64) []uint64 {
	if l, ok := f.known[info]; ok {
		return l
	}
	seen, next := map[uint64]bool{}, []uint64{info}
	for len(next) > 0 && len(next) < maxLine*maxBases && len(seen) < maxLine {
		at := next[len(next)-1]
		next = next[:len(next)-1]
		c := f.classes[at]
		if c == nil || seen[at] {
			continue
		}
		seen[at] = true
		next = append(next, c.bases...)
	}
	l := make([]uint64, 0, len(seen))
	for at := range seen {
		l = append(l, at)
	}
	slices.Sort(l)
	if f.size += len(l); f.size <= maxLines {
		f.known[info] = l
	}
	return l
}

// common is the class to which a function in the vtables of all of these belongs: the one from
// which all of them have it. That is one of them or a base that they have in common, the most
// derived of such; ok is false where there is none, or no single one. Then the linker has folded
// functions that do the same, or it is what stands for a pure virtual one.
func (f *family) common(infos []uint64) (info uint64, ok bool) {
	if len(infos) == 1 {
		return infos[0], true
	}
	shared := slices.Clone(f.line(infos[0]))
	for _, other := range infos[1:] {
		line := f.line(other)
		shared = slices.DeleteFunc(shared, func(at uint64) bool {
			_, has := slices.BinarySearch(line, at)
			return !has
		})
		if len(shared) == 0 {
			return 0, false
		}
	}
	longest, twice := 0, false
	for _, at := range shared {
		switch n := len(f.line(at)); {
		case n > longest:
			info, longest, twice = at, n, false
		case n == longest:
			twice = true
		}
	}
	return info, !twice
}
