package observer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/cgroup"
)

// figures are what the kernel tells of Envoy. Sizes are bytes.
type figures struct {
	pid       int   // 0 = the process is not known
	resident  int64 // anonymous and shared memory, without file pages: those the kernel can take back
	container *cgroup.Stats
	dir       string // of the cgroup
}

type failures struct{ process, cgroup error }

// target is the process and its cgroup. They are looked for again when they are gone, and now and then: a process can be moved.
// It is not safe for concurrent use.
type target struct {
	root   fs.FS
	config Envoy

	pid      int
	pidErr   error
	group    *cgroup.Group
	groupErr error
	looked   time.Time
}

const lookAgain = 5 * time.Second

// look reads what there is to see. What fails is missing in the figures, and nothing else.
func (t *target) look(now time.Time) (f figures, failed failures) {
	if t.looked.IsZero() || now.Sub(t.looked) >= lookAgain {
		t.looked = now
		t.find()
	}
	if t.pid != 0 {
		var err error
		if f.resident, err = resident(t.root, t.pid); err == nil {
			f.pid = t.pid
		} else {
			t.pidErr = fmt.Errorf("process %d: %w", t.pid, err)
			t.forget(now)
		}
	}
	failed.process = t.pidErr
	if t.group != nil {
		s, err := t.group.Read()
		if err == nil {
			f.container, f.dir = &s, t.group.Dir()
		} else {
			t.groupErr = err
			t.forget(now)
		}
	}
	failed.cgroup = t.groupErr
	return f, failed
}

// forget has the next look but one begin anew: at once a process that is just being replaced is not there yet.
func (t *target) forget(now time.Time) {
	t.pid, t.group = 0, nil
	t.looked = now.Add(time.Second - lookAgain)
}

func (t *target) find() {
	t.group = nil
	t.pid, t.pidErr = t.config.PID, nil
	if t.pid == 0 {
		t.pid, t.pidErr = findEnvoy(t.root)
	}
	switch {
	case t.config.Cgroup != "":
		t.group, t.groupErr = cgroup.At(t.root, t.config.Cgroup)
	case t.pid != 0:
		t.group, t.groupErr = cgroup.Find(t.root, t.pid)
	default:
		t.groupErr = errors.New("it is that of the process, which is not known: set envoy.pid or envoy.cgroup")
	}
}

// findEnvoy returns the one process that is called envoy.
func findEnvoy(root fs.FS) (int, error) {
	entries, err := fs.ReadDir(root, "proc")
	if err != nil {
		return 0, fmt.Errorf("look for Envoy: %w", err)
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid <= 0 {
			continue
		}
		// Processes come and go; one that can't be read is none.
		if name, err := fs.ReadFile(root, "proc/"+e.Name()+"/comm"); err == nil && string(bytes.TrimSpace(name)) == "envoy" {
			found = append(found, pid)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return 0, errors.New("no process here is called envoy: set envoy.pid, or let them share their processes")
	}
	return 0, fmt.Errorf("there are several Envoys here, %v: set envoy.pid", found)
}

// resident is the anonymous and shared memory of a process, bytes: proc_pid_status(5).
func resident(root fs.FS, pid int) (int64, error) {
	text, err := fs.ReadFile(root, "proc/"+strconv.Itoa(pid)+"/status")
	if err != nil {
		return 0, err
	}
	return parseStatus(text)
}

func parseStatus(text []byte) (int64, error) {
	var sum int64
	var anonymous bool
	for line := range bytes.Lines(text) {
		key, value, _ := strings.Cut(string(line), ":")
		if key != "RssAnon" && key != "RssShmem" {
			continue
		}
		number, ok := strings.CutSuffix(strings.TrimSpace(value), " kB")
		n, err := strconv.ParseInt(number, 10, 64)
		if !ok || err != nil || n < 0 || n > 1<<50 {
			return 0, fmt.Errorf("the line %q of its status is no size", strings.TrimSpace(string(line)))
		}
		sum += n << 10
		anonymous = anonymous || key == "RssAnon"
	}
	if !anonymous {
		return 0, errors.New("its status has no RssAnon: it has ended, or the kernel is older than 4.5")
	}
	return sum, nil
}
