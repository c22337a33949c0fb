package observer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/cgroup"
)

// figures are what the kernel tells of Envoy. Sizes are bytes.
type figures struct {
	pid       int    // 0 = the process is not known
	how       string // it is known by
	resident  int64  // anonymous and shared memory, without file pages: those the kernel can take back
	container *cgroup.Stats
	dir       string // of the cgroup
}

type failures struct{ process, cgroup error }

// target is the process and its cgroup. They are looked for again when they are gone, and now and
// then: a process can be moved. It is not safe for concurrent use.
type target struct {
	root   fs.FS
	config Envoy

	finder   finder
	at       net.Addr // where admin was found when they were looked for
	pid      int
	how      string // the process is known by
	pidErr   error
	group    *cgroup.Group
	groupErr error
	looked   time.Time
}

const lookAgain = 5 * time.Second

// look reads what there is to see of who answers at an address of Envoy's admin interface; nil =
// nobody has yet. What fails is missing in the figures, and nothing else.
func (t *target) look(now time.Time, at net.Addr) (f figures, failed failures) {
	if t.looked.IsZero() || now.Sub(t.looked) >= lookAgain || !same(at, t.at) {
		t.looked, t.at = now, at
		t.find()
	}
	if t.pid != 0 {
		var err error
		if f.resident, err = resident(t.root, t.pid); err == nil {
			f.pid, f.how = t.pid, t.how
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

func same(a, b net.Addr) bool {
	return a == nil && b == nil || a != nil && b != nil && a.Network() == b.Network() && a.String() == b.String()
}

// forget has the next look but one begin again: at once a process that is just being replaced is
// not there yet.
func (t *target) forget(now time.Time) {
	t.pid, t.group = 0, nil
	t.looked = now.Add(time.Second - lookAgain)
}

func (t *target) find() {
	t.group = nil
	t.pid, t.pidErr = t.config.PID, nil
	if t.how = "envoy.pid"; t.pid == 0 {
		t.pid, t.how, t.pidErr = t.finder.find(t.root, t.at)
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

// resident is the anonymous and shared memory of a process, bytes: proc_pid_status(5).
func resident(root fs.FS, pid int) (int64, error) {
	text, err := readProc(root, pid, "status")
	if err != nil {
		return 0, err
	}
	return parseStatus(text)
}

// maxProc is how much of a file of a process is read. Its status names all groups of its user,
// 65,536 at most.
const maxProc = 1 << 20

func readProc(root fs.FS, pid int, file string) ([]byte, error) {
	f, err := root.Open("proc/" + strconv.Itoa(pid) + "/" + file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxProc))
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
