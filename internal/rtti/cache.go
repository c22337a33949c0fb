package rtti

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Cache keeps tables in files of one directory, so that a binary is read once. Each file is written
// whole or not at all, has a checksum, and is made again where it is damaged.
type Cache struct {
	Dir string // made where it is not there; empty = nothing is kept
}

const (
	// format is that of the files, and of what is found: raise it with each change of either.
	format = "highwater classes 1\n"
	suffix = ".classes"

	maxFiles = 8        // Envoy 1.40's has 3 MiB
	maxTable = 32 << 20 // bytes of one; a larger one is not kept
)

// Opened is what Open did.
type Opened struct {
	Cached bool  // the table was in the cache
	Kept   error // why it could not be kept; nil = it could
}

// Open returns the table of a binary, from the cache if it is there. Only regular files are read.
func (c Cache) Open(path string) (*Table, Opened, error) {
	file, err := openRegular(path)
	if err != nil {
		return nil, Opened{}, err
	}
	defer file.Close()
	name, err := c.name(file)
	if err != nil {
		return nil, Opened{}, fmt.Errorf("%s: %w", path, err)
	}
	if t, err := c.load(name); err == nil {
		return t, Opened{Cached: true}, nil
	}
	t, err := Build(file)
	if err != nil {
		return nil, Opened{}, fmt.Errorf("%s: %w", path, err)
	}
	return t, Opened{Kept: c.store(name, t)}, nil
}

// OpenSymbols is Table.Symbols of a file.
func (t *Table) OpenSymbols(path string, addresses []uint64) (map[uint64]string, error) {
	file, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	names, err := t.Symbols(file, addresses)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return names, nil
}

// openRegular opens a file, and waits for nobody who might write into a pipe.
func openRegular(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}

// name is that of a binary's table: its build id, for people, and what makes it unlike others of
// that id. Where all functions begin is that; it is read in milliseconds.
func (c Cache) name(file io.ReaderAt) (string, error) {
	im, err := readHeaders(file)
	if err != nil {
		return "", err
	}
	frames, err := readPart(file, im.frames.Off, im.frames.Filesz, maxFrameHeader, "its .eh_frame_hdr")
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	_, _ = sum.Write([]byte(format))
	_ = binary.Write(sum, binary.LittleEndian, uint64(im.machine))
	for _, s := range im.loads {
		_ = binary.Write(sum, binary.LittleEndian, s.Prog64)
	}
	_, _ = sum.Write(frames)
	id := hex.EncodeToString(im.buildID[:min(len(im.buildID), 20)])
	return id + "-" + hex.EncodeToString(sum.Sum(nil)[:8]) + suffix, nil
}

var errDamaged = errors.New("the file of a table is damaged")

func (c Cache) load(name string) (*Table, error) {
	if c.Dir == "" {
		return nil, os.ErrNotExist
	}
	path := filepath.Join(c.Dir, name)
	file, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxTable+1))
	if err != nil {
		return nil, err
	}
	return decode(data)
}

// store keeps a table, and drops those that were made the longest ago.
func (c Cache) store(name string, t *Table) error {
	if c.Dir == "" {
		return nil
	}
	data := t.encode()
	if len(data) > maxTable {
		return fmt.Errorf("the table of classes has %d bytes, and no more than %d are kept", len(data), maxTable)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return err
	}
	file, err := os.CreateTemp(c.Dir, ".new-*"+suffix)
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	err = errors.Join(err, file.Close())
	if err == nil {
		err = os.Rename(file.Name(), filepath.Join(c.Dir, name))
	}
	if err != nil {
		_ = os.Remove(file.Name())
		return err
	}
	c.prune()
	return nil
}

// prune leaves the newest files. Those that a process began and did not rename count too.
func (c Cache) prune() {
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return
	}
	type kept struct {
		name string
		at   int64
	}
	var all []kept
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), suffix) {
			all = append(all, kept{e.Name(), info.ModTime().UnixNano()})
		}
	}
	slices.SortFunc(all, func(a, b kept) int { return sign(a.at < b.at) })
	for _, k := range all[min(len(all), maxFiles):] {
		_ = os.Remove(filepath.Join(c.Dir, k.name))
	}
}

// encode is a table as a file: format, SHA-256 of what follows, and numbers as varints.
func (t *Table) encode() []byte {
	b := make([]byte, 0, 1<<20)
	text := func(s string) { b = append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	text(t.BuildID)
	b = binary.AppendUvarint(b, uint64(t.Machine))
	b = binary.AppendUvarint(b, uint64(len(t.loads)))
	for _, s := range t.loads {
		for _, v := range [...]uint64{uint64(s.Flags), s.Off, s.Vaddr, s.Filesz, s.Memsz} {
			b = binary.AppendUvarint(b, v)
		}
	}
	b = binary.AppendUvarint(b, uint64(len(t.names)))
	for _, name := range t.names {
		text(name)
	}
	b = binary.AppendUvarint(b, uint64(len(t.functions)))
	last := uint64(0)
	for _, f := range t.functions {
		b = binary.AppendUvarint(b, f.start-last)
		last = f.start
		b = binary.AppendUvarint(b, uint64(f.class+1))
		if f.class != noClass {
			b = binary.AppendUvarint(b, uint64(f.slot))
		}
	}
	sum := sha256.Sum256(b)
	return slices.Concat([]byte(format), sum[:], b)
}

// decode is the table of a file.
func decode(data []byte) (*Table, error) {
	rest, ok := bytes.CutPrefix(data, []byte(format))
	if !ok || len(rest) < sha256.Size {
		return nil, errDamaged
	}
	sum, rest := rest[:sha256.Size], rest[sha256.Size:]
	if has := sha256.Sum256(rest); !bytes.Equal(has[:], sum) {
		return nil, errDamaged
	}
	r := reader{rest: rest}
	t := &Table{BuildID: r.text(), Machine: elf.Machine(r.number())}
	for range r.count(5) {
		flags := r.number()
		t.loads = append(t.loads, elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(flags), Off: r.number(), Vaddr: r.number(), Filesz: r.number(), Memsz: r.number(),
		})
	}
	t.names = make([]string, r.count(1))
	for i := range t.names {
		t.names[i] = r.text()
	}
	t.functions = make([]function, r.count(2))
	last := uint64(0)
	for i := range t.functions {
		last += r.number()
		f := function{start: last, class: int32(r.number()) - 1}
		if f.class != noClass {
			f.slot = uint16(r.number())
		}
		if f.class < noClass || int(f.class) >= len(t.names) {
			return nil, errDamaged
		}
		t.functions[i] = f
	}
	if r.failed || len(r.rest) > 0 {
		return nil, errDamaged
	}
	return t, nil
}

// reader reads what encode wrote. After a failure all is zero.
type reader struct {
	rest   []byte
	failed bool
}

func (r *reader) number() uint64 {
	v, n := binary.Uvarint(r.rest)
	if n <= 0 {
		r.failed, r.rest = true, nil
		return 0
	}
	r.rest = r.rest[n:]
	return v
}

// count is a number of things of which each takes so many bytes at least.
func (r *reader) count(least int) int {
	v := r.number()
	if v > uint64(len(r.rest)/least) {
		r.failed, r.rest = true, nil
		return 0
	}
	return int(v)
}

func (r *reader) text() string {
	n := r.count(1)
	text := string(r.rest[:n])
	r.rest = r.rest[n:]
	return text
}
