package gather

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"strconv"
	"time"

	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/doctor"
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
	client *http.Client
	base   string
	root   fs.FS
	given  int // the pid that the caller knows; 0 = it is looked for

	at     net.Addr // where admin answered
	info   []byte   // of /server_info
	asked  time.Time
	infoOf int // the process that it was of
}

// NewLive returns a reader for the admin interface at an address, such as http://127.0.0.1:9901 or
// unix:/run/envoy/admin.sock. pid is that of Envoy; 0 = the process that listens there.
func NewLive(address string, pid int) (*Live, error) {
	client, base, err := observer.Client(address)
	if err != nil {
		return nil, err
	}
	return &Live{client: client, base: base, root: os.DirFS("/"), given: pid}, nil
}

// Close forgets its connections.
func (l *Live) Close() { l.client.CloseIdleConnections() }

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
			var status statusError
			if err != nil && !errors.As(err, &status) && !errors.Is(err, errTooLarge) {
				dead = err
			} else if q.name == ServerInfo && err == nil {
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
	switch r.pid = l.given; {
	case r.pid != 0:
	case l.at == nil:
		err = errors.New("which process it is shows only where its admin interface answers: use -pid")
	default:
		if r.pid, _, err = observer.Process(l.root, l.at); err != nil {
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

// statusError is an answer that is no 200: the next question may have one.
type statusError struct{ path, status, hint string }

func (e statusError) Error() string { return e.path + " answers " + e.status + e.hint }

func (l *Live) ask(ctx context.Context, path string, most int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { l.at = c.Conn.RemoteAddr() }})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, l.base+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("User-Agent", "highwater")
	res, err := l.client.Do(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, fmt.Errorf("the admin interface at %s does not answer within %v", l.base, answerWithin)
		}
		return nil, fmt.Errorf("the admin interface: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		hint := ""
		if res.StatusCode == http.StatusForbidden {
			hint = " (with admin.allow_paths, the path must be among them)"
		}
		return nil, statusError{req.URL.Path, res.Status, hint}
	}
	text, err := readAll(res.Body, most)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("the admin interface at %s does not finish its answer within %v", l.base, answerWithin)
	}
	return text, err
}
