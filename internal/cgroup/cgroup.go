// Package cgroup says what a container may use and uses: the memory cgroup of a process, version 1
// or 2, read from a file system that is handed in. It keeps nothing of what it has read: a limit
// that is changed while the process runs is in the next Read.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path"
	"strconv"
	"strings"
)

// NoLimit is a limit that does not bound anything.
const NoLimit = math.MaxInt64

// Errors to branch on; each is wrapped with what was looked for and what to do.
var (
	// ErrNone: there is no memory cgroup to be found here for the process.
	ErrNone = errors.New("no memory cgroup")
	// ErrGone: there was one, and its directory is no more.
	ErrGone = errors.New("the memory cgroup is gone")
	// ErrParse: a file of the kernel's is not what the kernel writes.
	ErrParse = errors.New("not understood")
)

// Version of the cgroup hierarchy that has the memory controller.
type Version int

// The versions. In a hybrid set-up the memory controller is in one of them.
const (
	V1 Version = 1
	V2 Version = 2
)

// Group is the memory cgroup of a process. Make it with Find or At.
type Group struct {
	root    fs.FS
	version Version
	dir     string // of the group, below root
	top     string // the highest directory of the hierarchy that can be seen; dir or above
}

// Version is that of the hierarchy.
func (g *Group) Version() Version { return g.version }

// Dir is the group's directory, as an absolute path.
func (g *Group) Dir() string { return "/" + g.dir }

// Stats is what a group says of itself. Sizes are bytes.
type Stats struct {
	// Limit is the tightest limit of the group and of all above it that can be seen; NoLimit
	// without one.
	Limit int64
	// High is the tightest memory.high: above it the kernel throttles and reclaims. NoLimit without
	// one, and in version 1.
	High int64
	// Usage is what is charged to the group, page cache included.
	Usage int64
	// WorkingSet is Usage without file pages that the kernel would take back first (inactive_file):
	// what kubelet evicts by, and near the limit what the kernel kills by.
	WorkingSet int64
	// Sock is memory of TCP buffers. Version 2: memory.stat sock, a part of Usage. Version 1:
	// memory.kmem.tcp, beside Usage and its limit, and 0 for as long as nobody has set a limit for
	// it.
	Sock int64
	// Pressure is how long tasks stalled for want of memory; nil where the kernel does not tell
	// (version 1, psi=0).
	Pressure *Pressure
	Events   Events
}

// Pressure is pressure stall information: shares of time, 0 to 1.
type Pressure struct {
	Some10 float64 // some task stalled, mean of 10 s
	Full10 float64 // all tasks did
}

// Events counts what has happened since the group was made.
type Events struct {
	OOM     int64 // the limit was reached and an allocation was about to fail; version 1: not told, 0
	OOMKill int64 // processes killed for it
	High    int64 // times that memory.high was exceeded; version 1: not told, 0
	Max     int64 // times that the limit was met: version 2 memory.events max, version 1 memory.failcnt
}

// Find returns the memory cgroup of a process; pid 0 is this one. root is the root of the machine's
// file system with proc and sys in it, as this process sees it. The error wraps ErrNone or
// ErrParse, or is the file system's.
func Find(root fs.FS, pid int) (*Group, error) {
	self := "self"
	if pid != 0 {
		self = strconv.Itoa(pid)
	}
	text, err := read(root, path.Join("proc", self, "cgroup"))
	if err != nil {
		return nil, fmt.Errorf("the cgroup of process %s: %w", self, err)
	}
	paths, err := parseMembership(text)
	if err != nil {
		return nil, fmt.Errorf("/proc/%s/cgroup: %w", self, err)
	}
	g, err := mounted(root, self, paths, "self", "")
	if err == nil || pid == 0 || !errors.Is(err, ErrNone) {
		return g, err
	}
	// Containers of a pod see each their own cgroup alone. The process itself has its own mounted.
	// Whoever may not look through its root (ptrace(2), PTRACE_MODE_READ) is told of the first.
	if theirs, hidden := mounted(root, self, paths, self, path.Join("proc", self, "root")); hidden == nil {
		return theirs, nil
	}
	return nil, err
}

// mounted finds a process' group among what is mounted where a reader is, itself or the process:
// below at.
func mounted(root fs.FS, self string, paths map[Version]string, reader, below string) (*Group, error) {
	text, err := read(root, path.Join("proc", reader, "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("where cgroups are mounted: %w", err)
	}
	mounts, err := parseMounts(text)
	if err != nil {
		return nil, fmt.Errorf("/proc/%s/mountinfo: %w", reader, err)
	}
	var outside error
	for _, version := range []Version{V1, V2} { // hybrid: version 1 has the controller, unless version 2 shows that it does
		at, ok := paths[version]
		if !ok {
			continue
		}
		for _, m := range mounts {
			if m.version != version {
				continue
			}
			rest, ok := within(at, m.root)
			if !ok {
				outside = fmt.Errorf("%w for process %s: its group %s lies outside of what is mounted at %s (%s): name the group's directory, "+
					"if it is mounted anywhere, or run as the process' user, with its process namespace shared", ErrNone, self, at, m.point, m.root)
				continue
			}
			point := clean(path.Join(below, m.point))
			g := &Group{root: root, version: version, dir: clean(path.Join(point, rest)), top: point}
			if g.has(g.usageFile()) {
				return g, nil
			}
		}
	}
	if outside != nil {
		return nil, outside
	}
	return nil, fmt.Errorf("%w for process %s: no mounted hierarchy has the memory controller for it", ErrNone, self)
}

// At returns the memory cgroup at a directory, an absolute path such as /sys/fs/cgroup/envoy.slice.
// Limits above it count as far as the directories above are cgroups too. The error wraps ErrNone.
func At(root fs.FS, dir string) (*Group, error) {
	g := &Group{root: root, dir: clean(dir)}
	for _, g.version = range []Version{V2, V1} {
		if g.has(g.usageFile()) {
			g.top = g.dir
			for above := path.Dir(g.top); above != "." && exists(root, above, "cgroup.procs"); above = path.Dir(above) {
				g.top = above
			}
			return g, nil
		}
	}
	return nil, fmt.Errorf("%w at %s: it has neither memory.current (version 2) nor memory.usage_in_bytes (version 1)", ErrNone, dir)
}

// clean makes a path of io/fs of an absolute one.
func clean(dir string) string {
	if dir = strings.Trim(path.Clean("/"+dir), "/"); dir == "" {
		return "."
	}
	return dir
}

func (g *Group) has(file string) bool { return exists(g.root, g.dir, file) }

func exists(root fs.FS, dir, file string) bool {
	_, err := fs.Stat(root, path.Join(dir, file))
	return err == nil
}

func (g *Group) usageFile() string {
	if g.version == V1 {
		return "memory.usage_in_bytes"
	}
	return "memory.current"
}

// Read reads the group as it is now. The error wraps ErrGone, ErrParse, or is the file system's;
// then nothing is known.
func (g *Group) Read() (Stats, error) {
	read := g.readV2
	if g.version == V1 {
		read = g.readV1
	}
	s, err := read()
	if err == nil {
		return s, nil
	}
	if !g.has(g.usageFile()) { // not the file's fault: files of a cgroup do not go one by one
		return Stats{}, fmt.Errorf("%w: %s", ErrGone, g.Dir())
	}
	return Stats{}, fmt.Errorf("the memory cgroup %s: %w", g.Dir(), err)
}

// readV2 reads the files of version 2.
// https://docs.kernel.org/admin-guide/cgroup-v2.html#memory-interface-files
func (g *Group) readV2() (s Stats, err error) {
	if s.Usage, err = g.number("memory.current"); err != nil {
		return s, err
	}
	stat, err := g.keyed("memory.stat")
	if err != nil {
		return s, err
	}
	s.WorkingSet, s.Sock = max(s.Usage-stat["inactive_file"], 0), stat["sock"]
	if s.Limit, err = g.tightest("memory.max"); err != nil {
		return s, err
	}
	if s.High, err = g.tightest("memory.high"); err != nil {
		return s, err
	}
	events, err := g.keyed("memory.events")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // the root of a machine has none
		return s, err
	}
	s.Events = Events{OOM: events["oom"], OOMKill: events["oom_kill"], High: events["high"], Max: events["max"]}
	// A kernel without psi has no such file, or one that can't be read.
	if text, err := read(g.root, path.Join(g.dir, "memory.pressure")); err == nil {
		if s.Pressure, err = parsePressure(text); err != nil {
			return s, fmt.Errorf("memory.pressure: %w", err)
		}
	}
	return s, nil
}

// readV1 reads the files of version 1. https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
func (g *Group) readV1() (s Stats, err error) {
	s.High = NoLimit
	if s.Usage, err = g.number("memory.usage_in_bytes"); err != nil {
		return s, err
	}
	stat, err := g.keyed("memory.stat")
	if err != nil {
		return s, err
	}
	inactive, ok := stat["total_inactive_file"] // with the groups below, as usage is
	if !ok {
		inactive = stat["inactive_file"]
	}
	s.WorkingSet = max(s.Usage-inactive, 0)
	// The kernel tells the tightest limit of all above, of those that can't be seen here too, and
	// minds use_hierarchy.
	if limit, ok := stat["hierarchical_memory_limit"]; ok {
		s.Limit = bound(limit)
	} else if s.Limit, err = g.tightest("memory.limit_in_bytes"); err != nil {
		return s, err
	}
	if s.Sock, err = g.number("memory.kmem.tcp.usage_in_bytes"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s, err // a kernel without kmem has none
	}
	control, err := g.keyed("memory.oom_control")
	if err != nil {
		return s, err
	}
	s.Events.OOMKill = control["oom_kill"] // from Linux 4.13 on
	s.Events.Max, err = g.number("memory.failcnt")
	return s, err
}

// tightest is the smallest value of a limit from the group up to the top.
func (g *Group) tightest(file string) (int64, error) {
	limit := int64(NoLimit)
	for dir := g.dir; ; dir = path.Dir(dir) {
		n, err := g.figure(dir, file, parseLimit)
		switch {
		case err == nil:
			limit = min(limit, n)
		case !errors.Is(err, fs.ErrNotExist): // the root of a machine has no limit, and a group may be without the controller
			return 0, err
		}
		if dir == g.top || dir == "." {
			return limit, nil
		}
	}
}

func (g *Group) number(file string) (int64, error) { return g.figure(g.dir, file, parseNumber) }

func (g *Group) figure(dir, file string, parse func(string) (int64, error)) (int64, error) {
	text, err := read(g.root, path.Join(dir, file))
	if err != nil {
		return 0, err
	}
	n, err := parse(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path.Join("/", dir, file), err)
	}
	return n, nil
}

func (g *Group) keyed(file string) (map[string]int64, error) {
	text, err := read(g.root, path.Join(g.dir, file))
	if err != nil {
		return nil, err
	}
	m, err := parseKeyed(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return m, nil
}
