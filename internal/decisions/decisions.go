// Package decisions records what the policy decides and publishes under a load, for tests: as a
// hash, which says that nothing has changed, and as text, whose diff says what has.
package decisions

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// Record is one load's. The zero value is not usable: see New.
type Record struct {
	hash hash.Hash
	text *bufio.Writer
	file io.Closer
}

// New returns an empty record. Its text goes to the file name in dir, which is made; where dir is
// empty there is only a hash.
func New(dir, name string) (*Record, error) {
	r := &Record{hash: sha256.New()}
	if dir == "" {
		r.text = bufio.NewWriter(r.hash)
		return r, nil
	}
	path := filepath.Join(dir, strings.NewReplacer("/", "_", " ", "_").Replace(name)+".txt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	file, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	r.file, r.text = file, bufio.NewWriter(io.MultiWriter(r.hash, file))
	return r, nil
}

// Add appends a line.
func (r *Record) Add(format string, args ...any) { fmt.Fprintf(r.text, format+"\n", args...) }

// Sum ends the record, and returns 16 digits of its hash.
func (r *Record) Sum() (string, error) {
	err := r.text.Flush()
	if r.file != nil {
		err = errors.Join(err, r.file.Close())
	}
	return hex.EncodeToString(r.hash.Sum(nil)[:8]), err
}

// Store is a store whose writes are recorded: numbers as they are encoded, in decimal.
type Store struct {
	budget.Store
	To *Record
}

// Swap implements budget.Store.
func (s Store) Swap(value []byte, version uint32) error {
	err := s.Store.Swap(value, version)
	s.To.addNumbers(value, "table %v", err)
	return err
}

// Put implements budget.Store.
func (s Store) Put(worker uint32, value []byte) error {
	s.To.addNumbers(value, "totals of %d", worker)
	return s.Store.Put(worker, value)
}

// Keep implements budget.Store.
func (s Store) Keep(worker uint32, slot int, value []byte) error {
	sum := sha256.Sum256(value)
	s.To.Add("snapshot of %d in %d: %d bytes %x", worker, slot, len(value), sum[:6])
	return s.Store.Keep(worker, slot, value)
}

// addNumbers appends a line with the words of 64 bits of a value at its end, without the first,
// which says what it is and how long. Half of what a load took was once the formatting of these.
func (r *Record) addNumbers(value []byte, format string, args ...any) {
	fmt.Fprintf(r.text, format, args...)
	for rest := value[min(8, len(value)):]; len(rest) >= 8; rest = rest[8:] {
		number := append(r.text.AvailableBuffer(), ' ')
		_, _ = r.text.Write(strconv.AppendInt(number, int64(binary.LittleEndian.Uint64(rest)), 10))
	}
	_ = r.text.WriteByte('\n')
}

// Sums are the hashes of records, by name, and the file in which they are kept.
type Sums struct {
	path string
	kept map[string]string
}

// ReadSums reads a file of hashes; one that is not there has none.
func ReadSums(path string) (*Sums, error) {
	s := &Sums{path: path, kept: map[string]string{}}
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return s, nil
	}
	for line := range strings.Lines(string(text)) {
		if sum, name, ok := strings.Cut(strings.TrimSpace(line), "  "); ok {
			s.kept[name] = sum
		}
	}
	return s, err
}

// Of is the kept hash; empty = there is none.
func (s *Sums) Of(name string) string { return s.kept[name] }

// Len is how many are kept.
func (s *Sums) Len() int { return len(s.kept) }

// Write writes the file with these in place of what it had of the same names.
func (s *Sums) Write(sums map[string]string) error {
	maps.Copy(s.kept, sums)
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.kept)) {
		fmt.Fprintf(&b, "%s  %s\n", s.kept[name], name)
	}
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(s.path, []byte(b.String()), 0o644)
}
