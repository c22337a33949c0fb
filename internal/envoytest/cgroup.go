package envoytest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Cgroup is a memory cgroup for one Envoy, v1 or v2. It takes root.
type Cgroup struct {
	path string
	v2   bool
}

const cgroupRoot = "/sys/fs/cgroup"

// NewCgroup makes one with a limit in bytes, below the root of the hierarchy.
func NewCgroup(limit int64) (*Cgroup, error) {
	g := &Cgroup{}
	name := fmt.Sprintf("highwater-%d-%d", os.Getpid(), time.Now().UnixNano())
	switch {
	case exists(filepath.Join(cgroupRoot, "memory", "memory.limit_in_bytes")):
		g.path = filepath.Join(cgroupRoot, "memory", name)
	case exists(filepath.Join(cgroupRoot, "cgroup.controllers")):
		g.path, g.v2 = filepath.Join(cgroupRoot, name), true
	default:
		return nil, errors.New("a memory cgroup: no memory cgroups here")
	}
	if err := os.Mkdir(g.path, 0o755); err != nil {
		return nil, fmt.Errorf("a memory cgroup: %w (it takes root)", err)
	}
	file := "memory.limit_in_bytes"
	if g.v2 {
		file = "memory.max"
	}
	if err := g.write(file, limit); err != nil {
		g.Remove()
		return nil, fmt.Errorf("a memory cgroup: %w", err)
	}
	// Swap would hide what should kill. Where there is no such file there is no swap accounting.
	if g.v2 {
		_ = g.write("memory.swap.max", 0)
	} else {
		_ = g.write("memory.memsw.limit_in_bytes", limit)
	}
	return g, nil
}

// Dir is what Options want; empty for none.
func (g *Cgroup) Dir() string {
	if g == nil {
		return ""
	}
	return g.path
}

// SetLimit changes the limit while processes run in the group, bytes.
func (g *Cgroup) SetLimit(limit int64) error {
	if g.v2 {
		return g.write("memory.max", limit)
	}
	// Of memory and memory with swap the latter must never be the lower one, so that either goes
	// first.
	_ = g.write("memory.memsw.limit_in_bytes", limit)
	err := g.write("memory.limit_in_bytes", limit)
	_ = g.write("memory.memsw.limit_in_bytes", limit)
	return err
}

// Peak is the highest usage that the kernel saw, and whether it killed anything for it.
func (g *Cgroup) Peak() (peak int64, killed bool, err error) {
	file, events := "memory.max_usage_in_bytes", "memory.oom_control"
	if g.v2 {
		file, events = "memory.peak", "memory.events"
	}
	text, err := os.ReadFile(filepath.Join(g.path, file))
	if err != nil {
		return 0, false, err
	}
	if peak, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil {
		return 0, false, fmt.Errorf("%s: %w", file, err)
	}
	if text, err = os.ReadFile(filepath.Join(g.path, events)); err != nil {
		return 0, false, err
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			killed = n != "0"
		}
	}
	return peak, killed, nil
}

// Remove waits a moment for the last process to be gone.
func (g *Cgroup) Remove() {
	for range 50 {
		if err := os.Remove(g.path); err == nil || errors.Is(err, fs.ErrNotExist) {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	fmt.Fprintln(os.Stderr, "could not remove", g.path)
}

func (g *Cgroup) write(file string, n int64) error {
	return os.WriteFile(filepath.Join(g.path, file), strconv.AppendInt(nil, n, 10), 0o644)
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}
