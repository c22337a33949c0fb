package memorymap

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// ErrParse is wrapped by each error of the Parse functions.
var ErrParse = errors.New("not understood")

// What is read of a file of /proc, whoever wrote it.
const (
	// MaxSmaps is the longest smaps that is read, bytes: some 25,000 mappings.
	MaxSmaps    = 16 << 20
	maxMappings = 1 << 16 // the kernel's own bound, vm.max_map_count, is 65,530
	maxBytes    = 1 << 50
)

// Mapping is one of a process's, of /proc/PID/smaps. Sizes are bytes.
type Mapping struct {
	Start, End uint64
	Perm       string // such as rw-p
	Path       string // of what is mapped, or what the kernel calls it; empty = anonymous memory
	Resident   int64
	Anonymous  int64 // of Resident, what is no page of a file
	Swap       int64
}

// Size is what the mapping has of the address space.
func (m *Mapping) Size() uint64 { return m.End - m.Start }

func (m *Mapping) readable() bool   { return m.Perm[0] == 'r' }
func (m *Mapping) executable() bool { return m.Perm[2] == 'x' }
func (m *Mapping) guard() bool      { return m.Perm[0] == '-' && m.Perm[1] == '-' }

// ParseSmaps reads /proc/PID/smaps, proc_pid_smaps(5). A text that broke off is an error, with the
// mappings before it.
func ParseSmaps(text []byte) ([]Mapping, error) {
	if len(text) > MaxSmaps {
		return nil, fmt.Errorf("%w: smaps has %d bytes, and no more than %d are read", ErrParse, len(text), MaxSmaps)
	}
	var list []Mapping
	n, complete := 0, true
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimRight(line, "\n")
		var err error
		if key, value, ok := bytes.Cut(line, []byte(":")); ok && len(key) > 0 && key[0] >= 'A' && key[0] <= 'Z' {
			err = figure(list, string(key), value)
			complete = complete || string(key) == "Locked" || string(key) == "VmFlags"
		} else {
			list, err = begin(list, string(line))
			complete = false
		}
		if err != nil {
			return list, fmt.Errorf("line %d of smaps: %w", n, err)
		}
	}
	switch {
	case len(list) == 0:
		return nil, fmt.Errorf("%w: smaps is empty: the process has ended", ErrParse)
	case !complete:
		return list, fmt.Errorf("%w: smaps breaks off in its line %d", ErrParse, n)
	}
	return list, nil
}

// begin adds a mapping.
func begin(list []Mapping, line string) ([]Mapping, error) {
	m, err := parseHeader(line)
	switch {
	case err != nil:
		return list, err
	case len(list) > 0 && m.Start < list[len(list)-1].End:
		return list, fmt.Errorf("%w: a mapping begins before the last one ends; are these two processes?", ErrParse)
	case len(list) == maxMappings:
		return list, fmt.Errorf("%w: there are more than %d mappings", ErrParse, maxMappings)
	}
	return append(list, m), nil
}

// parseHeader reads the first line of a mapping, as in proc_pid_maps(5).
func parseHeader(line string) (m Mapping, err error) {
	bad := fmt.Errorf("%w: %q is no mapping", ErrParse, line[:min(len(line), 80)])
	var f [5]string
	rest := line
	for i := range f {
		rest = strings.TrimLeft(rest, " ")
		f[i], rest, _ = strings.Cut(rest, " ")
	}
	from, to, ok := strings.Cut(f[0], "-")
	start, err1 := strconv.ParseUint(from, 16, 64)
	end, err2 := strconv.ParseUint(to, 16, 64)
	if !ok || err1 != nil || err2 != nil || end < start || len(f[1]) != 4 || f[4] == "" {
		return m, bad
	}
	return Mapping{Start: start, End: end, Perm: f[1], Path: strings.TrimSpace(rest)}, nil
}

// figure keeps a figure of the last mapping.
func figure(list []Mapping, key string, value []byte) error {
	if len(list) == 0 {
		return fmt.Errorf("%w: %s belongs to no mapping", ErrParse, clip(key))
	}
	m, at := &list[len(list)-1], (*int64)(nil)
	switch key {
	case "Rss":
		at = &m.Resident
	case "Anonymous":
		at = &m.Anonymous
	case "Swap":
		at = &m.Swap
	default:
		return nil
	}
	n, err := kilobytes(string(value))
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if uint64(n) > m.Size() { //nolint:gosec // it is not negative
		return fmt.Errorf("%w: %s is %d bytes of a mapping that has %d", ErrParse, key, n, m.Size())
	}
	*at = n
	return nil
}

func kilobytes(text string) (int64, error) {
	number, ok := strings.CutSuffix(strings.TrimSpace(text), " kB")
	n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
	if !ok || err != nil || n < 0 || n > maxBytes>>10 {
		return 0, fmt.Errorf("%w: %q is no size", ErrParse, clip(text))
	}
	return n << 10, nil
}

func clip(text string) string { return strings.ToValidUTF8(text[:min(len(text), 80)], "\uFFFD") }

// Status is what /proc/PID/status says of a process's memory, bytes: proc_pid_status(5).
type Status struct {
	Name      string `json:"name"`
	Resident  int64  `json:"resident"`  // VmRSS
	Highest   int64  `json:"highest"`   // VmHWM, the most that was ever resident
	Anonymous int64  `json:"anonymous"` // RssAnon
	File      int64  `json:"file"`      // RssFile
	Shared    int64  `json:"shared"`    // RssShmem
	Swapped   int64  `json:"swapped"`   // VmSwap
	Threads   int64  `json:"threads"`
}

// ParseStatus reads /proc/PID/status.
func ParseStatus(text []byte) (s Status, err error) {
	if len(text) > 1<<20 {
		return s, fmt.Errorf("%w: the status has %d bytes", ErrParse, len(text))
	}
	at := map[string]*int64{
		"VmRSS": &s.Resident, "VmHWM": &s.Highest, "RssAnon": &s.Anonymous, "RssFile": &s.File, "RssShmem": &s.Shared, "VmSwap": &s.Swapped,
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		switch {
		case key == "Name":
			s.Name = clip(strings.TrimSpace(value))
		case key == "Threads":
			s.Threads, _ = strconv.ParseInt(strings.TrimSpace(value), 10, 32)
		case at[key] != nil:
			if *at[key], err = kilobytes(value); err != nil {
				return s, fmt.Errorf("%s of the status: %w", key, err)
			}
		}
	}
	if s.Resident == 0 {
		return s, fmt.Errorf("%w: the status has no VmRSS: the process has ended", ErrParse)
	}
	return s, nil
}

// ParseSockstat reads /proc/PID/net/sockstat: what the kernel holds for all TCP sockets of a
// network namespace, bytes. page is the system's.
func ParseSockstat(text []byte, page int64) (int64, error) {
	for line := range strings.Lines(string(text[:min(len(text), 1<<16)])) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] != "TCP:" {
			continue
		}
		for i := 1; i+1 < len(f); i += 2 {
			if f[i] != "mem" {
				continue
			}
			n, err := strconv.ParseInt(f[i+1], 10, 64)
			if err != nil || n < 0 || n > maxBytes/page {
				return 0, fmt.Errorf("%w: %q of sockstat is no number of pages", ErrParse, clip(f[i+1]))
			}
			return n * page, nil
		}
	}
	return 0, fmt.Errorf("%w: sockstat has no line of TCP with mem in it", ErrParse)
}
