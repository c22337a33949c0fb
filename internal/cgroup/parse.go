package cgroup

import (
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// maxFile is how much of a file is read. A node with thousands of mounts has a mountinfo of some
// MiB.
const maxFile = 16 << 20

func read(root fs.FS, name string) (string, error) {
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxFile {
		return "", fmt.Errorf("%w: /%s has more than %d bytes", ErrParse, name, maxFile)
	}
	return string(text), nil
}

// parseLimit reads a file with one figure, or the word max for none. Version 1 shows for none the
// largest whole number of pages, which depends on the page's size.
func parseLimit(text string) (int64, error) {
	if strings.TrimSuffix(text, "\n") == "max" {
		return NoLimit, nil
	}
	n, err := parseNumber(text)
	return bound(n), err
}

func bound(n int64) int64 {
	if n >= 1<<62 {
		return NoLimit
	}
	return n
}

// parseNumber reads a file with one figure.
func parseNumber(text string) (int64, error) {
	text = strings.TrimSuffix(text, "\n")
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%w: %q is no number of bytes", ErrParse, clip(text))
	}
	return n, nil
}

// parseKeyed reads lines of a key and a figure.
func parseKeyed(text string) (map[string]int64, error) {
	m := map[string]int64{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		n, err := strconv.ParseInt(value, 10, 64)
		if !ok || key == "" || err != nil || n < 0 {
			return nil, fmt.Errorf("%w: the line %q is no key with a figure", ErrParse, clip(line))
		}
		m[key] = n
	}
	if len(m) == 0 {
		return nil, fmt.Errorf("%w: it is empty", ErrParse)
	}
	return m, nil
}

// parsePressure reads memory.pressure: https://docs.kernel.org/accounting/psi.html
func parsePressure(text string) (*Pressure, error) {
	p, found := Pressure{}, 0
	for line := range strings.Lines(text) {
		var into *float64
		switch fields := strings.Fields(line); {
		case len(fields) > 1 && fields[0] == "some":
			into = &p.Some10
		case len(fields) > 1 && fields[0] == "full":
			into = &p.Full10
		default:
			continue
		}
		value, ok := strings.CutPrefix(strings.Fields(line)[1], "avg10=")
		percent, err := strconv.ParseFloat(value, 64)
		if !ok || err != nil || !(percent >= 0 && percent <= 100) {
			return nil, fmt.Errorf("%w: the line %q has no avg10 between 0 and 100", ErrParse, clip(line))
		}
		*into = percent / 100
		found++
	}
	if found == 0 {
		return nil, fmt.Errorf("%w: it has no line of some or full", ErrParse)
	}
	return &p, nil
}

// parseMembership reads /proc/<pid>/cgroup: the group's path by version, of the hierarchies that
// can have the memory controller.
func parseMembership(text string) (map[Version]string, error) {
	m := map[Version]string{}
	for line := range strings.Lines(text) {
		// The path may have colons of its own.
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			return nil, fmt.Errorf("%w: the line %q is not number:controllers:/path", ErrParse, clip(line))
		}
		at := strings.TrimSuffix(parts[2], " (deleted)")
		switch {
		case parts[0] == "0" && parts[1] == "":
			m[V2] = at
		case slices.Contains(strings.Split(parts[1], ","), "memory"):
			m[V1] = at
		}
	}
	if len(m) == 0 {
		return nil, fmt.Errorf("%w: no line is of the memory controller, nor of version 2", ErrNone)
	}
	return m, nil
}

// mount is one of a cgroup hierarchy: what of it (root) is seen where (point).
type mount struct {
	version     Version
	root, point string
}

// parseMounts reads /proc/self/mountinfo for hierarchies that can have the memory controller.
// Format: proc_pid_mountinfo(5).
func parseMounts(text string) ([]mount, error) {
	var list []mount
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		dash := slices.Index(fields, "-") // behind a number of optional fields
		if dash < 6 || len(fields) < dash+4 {
			return nil, fmt.Errorf("%w: the line %q is no mount", ErrParse, clip(line))
		}
		m := mount{root: unescape(fields[3]), point: unescape(fields[4])}
		switch kind, options := fields[dash+1], fields[dash+3]; {
		case kind == "cgroup2":
			m.version = V2
		case kind == "cgroup" && slices.Contains(strings.Split(options, ","), "memory"):
			m.version = V1
		default:
			continue
		}
		list = append(list, m)
	}
	return list, nil
}

// unescape undoes the kernel's octal escapes of space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+4 <= len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// within says where the group at lies below the root of a mount. Both are as the reader's cgroup
// namespace sees them: what lies outside of it begins with /.. in either.
func within(at, root string) (below string, ok bool) {
	if at == root {
		return "/", true
	}
	below, ok = strings.CutPrefix(at, strings.TrimSuffix(root, "/")+"/")
	return "/" + below, ok && !slices.Contains(strings.Split(below, "/"), "..")
}

func clip(s string) string {
	s = strings.TrimSuffix(s, "\n")
	if len(s) > 80 {
		return s[:80] + "..."
	}
	return s
}
