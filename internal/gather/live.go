package gather

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/doctor"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/memorymap"
	"github.com/highwater-envoy/highwater/internal/observer"
)

// answerWithin is how long Envoy's main thread may take for one answer, and infoEvery how often it
// is asked who it is.
const (
	answerWithin = 3 * time.Second
	infoEvery    = 5 * time.Minute
)

// Live reads from an Envoy that runs. It is not safe for concurrent use.
type Live struct {
	admin *observer.Admin
	root  fs.FS
	given int // the pid that the caller knows; 0 = it is looked for

	info   []byte // of /server_info
	asked  time.Time
	infoOf int // the process that it was of
}

// NewLive returns a reader for the admin interface at an address, such as http://127.0.0.1:9901 or
// unix:/run/envoy/admin.sock. pid is that of Envoy; 0 = the process that listens there.
func NewLive(address string, pid int) (*Live, error) {
	admin, err := observer.NewAdmin(address)
	if err != nil {
		return nil, err
	}
	return &Live{admin: admin, root: os.DirFS("/"), given: pid}, nil
}

// Close forgets its connections.
func (l *Live) Close() { l.admin.Close() }

// Read reads all there is, in a few tens of milliseconds. An admin interface that does not answer
// costs answerWithin, once: then it is not asked for the rest.
func (l *Live) Read(ctx context.Context) doctor.Sample {
	r := newRaw(time.Now())
	var dead error
	for _, q := range []struct{ name, path string }{
		{Memory, "/memory"}, {ServerInfo, "/server_info"}, {Stats, memorymap.StatsPath}, {TCMalloc, "/memory/tcmalloc"},
	} {
		switch {
		case dead != nil:
			r.put(q.name, nil, dead)
		case q.name == ServerInfo && l.info != nil && r.at.Sub(l.asked) < infoEvery:
			r.put(q.name, l.info, nil)
		default:
			text, err := l.ask(ctx, q.path, most[q.name])
			r.put(q.name, text, err)
			switch cause := memory.CauseOf(err); {
			case cause == memory.CauseUnreachable, cause == memory.CauseSlow:
				dead = err
			case q.name == ServerInfo && err == nil:
				l.info, l.asked = text, r.at
			}
		}
	}
	l.process(r)
	return r.sample()
}

// process reads what the kernel tells.
func (l *Live) process(r *raw) {
	var err error
	if r.pid = l.given; r.pid == 0 {
		if r.pid, err = l.admin.Process(); err != nil {
			err = fmt.Errorf("which process it is, is not to be seen (use -pid): %w", err)
		}
	}
	if r.pid != l.infoOf {
		l.infoOf, l.info = r.pid, nil // another one: its version is asked for the next time
	}
	if err != nil {
		for _, name := range []string{Smaps, Status, Sockstat, Cgroup} {
			r.put(name, nil, err)
		}
		return
	}
	dir := "proc/" + strconv.Itoa(r.pid) + "/"
	for name, file := range map[string]string{Status: "status", Sockstat: "net/sockstat"} {
		text, err := l.read(dir+file, most[name])
		r.put(name, text, ended(r.pid, err))
	}
	text, err := l.read(dir+"smaps", most[Smaps])
	r.put(Smaps, text, ended(r.pid, err))
	// What is resident moves: the status nearest to smaps counts.
	if text, err := l.read(dir+"status", most[Status]); err == nil {
		r.put(Status, text, nil)
	}
	group, err := cgroup.Find(l.root, r.pid)
	if err == nil {
		var stats cgroup.Stats
		if stats, err = group.Read(); err == nil {
			r.group = &stats
			return
		}
	}
	r.put(Cgroup, nil, err)
}

// ended says what a file of /proc that cannot be read means.
func ended(pid int, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no process %d (any more)", pid)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("process %d is another user's: run as that user, or with CAP_SYS_PTRACE", pid)
	}
	return fmt.Errorf("process %d: %w", pid, err)
}

func (l *Live) read(name string, most int64) ([]byte, error) {
	f, err := l.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := readAll(f, most)
	if err == nil && len(text) == 0 {
		err = fs.ErrNotExist // of a process that is ending
	}
	return text, err
}

func (l *Live) ask(ctx context.Context, path string, most int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	return l.admin.Get(ctx, path, most)
}
