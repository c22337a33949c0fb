package observer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/require"
)

// The sockets of testdata/net, which a kernel has shown.
const (
	loopbackV4 = 140516 // 127.0.0.1:9901
	anyV4      = 140517 // 0.0.0.0:10000
	loopbackV6 = 140518 // [::1]:9901
	anyV6      = 140519 // [::]:9902, for IPv4 too
	mappedV4   = 140520 // [::ffff:127.0.0.1]:9903
	adminUnix  = 140521 // /run/envoy/admin.sock
	spaceUnix  = 140522 // /run/envoy/with space.sock
)

// process is one of a made-up machine.
type process struct {
	pid, uid int
	comm     string
	start    int
	sockets  []int // that it holds
	hidden   bool  // it does not show what it holds
}

// machineOf has these processes, and the tables of sockets of testdata.
func machineOf(t *testing.T, processes ...process) shut {
	t.Helper()
	m := shut{fstest.MapFS{}, map[string]bool{}}
	for _, name := range []string{"tcp", "tcp6", "unix"} {
		text, err := os.ReadFile("testdata/net/" + name)
		require.NoError(t, err)
		m.MapFS["proc/net/"+name] = &fstest.MapFile{Data: text}
	}
	for _, p := range processes {
		dir := "proc/" + strconv.Itoa(p.pid)
		file := func(name, text string) { m.MapFS[dir+"/"+name] = &fstest.MapFile{Data: []byte(text)} }
		link := func(fd int, to string) {
			m.MapFS[dir+"/fd/"+strconv.Itoa(fd)] = &fstest.MapFile{Data: []byte(to), Mode: fs.ModeSymlink | 0o700}
		}
		file("comm", p.comm+"\n")
		file("status", fmt.Sprintf("Name:\t%s\nUid:\t%d\t%d\t%d\t%d\nRssAnon:\t  112640 kB\nRssShmem:\t 4 kB\n", p.comm, 0, p.uid, p.uid, p.uid))
		file("stat", fmt.Sprintf("%d (%s) S 1 %d 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 %d 100 200", p.pid, p.comm, p.pid, p.start))
		link(0, "/dev/null")
		link(1, "pipe:[140516]") // no socket of that number
		for i, inode := range p.sockets {
			link(3+i, "socket:["+strconv.Itoa(inode)+"]")
		}
		m.closed[dir+"/fd"] = p.hidden
	}
	return m
}

// shut is a file system with directories that may not be read.
type shut struct {
	fstest.MapFS
	closed map[string]bool
}

func (s shut) Open(name string) (fs.File, error) {
	if s.closed[name] {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return s.MapFS.Open(name)
}

func tcp(address string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address)) }

func unix(path string) net.Addr { return &net.UnixAddr{Name: path, Net: "unix"} }

// Who answers at memory.url is the one, whoever else is called envoy.
func TestFindEnvoy(t *testing.T) {
	envoy := func(pid int, sockets ...int) process {
		return process{pid: pid, comm: "envoy", start: pid * 100, sockets: sockets}
	}
	hidden := func(pid, uid int) process { return process{pid: pid, uid: uid, comm: "envoy", hidden: true} }
	shell := process{pid: 1, comm: "sh", sockets: []int{loopbackV4, adminUnix}}
	const v4 = "127.0.0.1:9901"
	for name, c := range map[string]struct {
		at        net.Addr
		processes []process
		pid       int
		how       string
		err       string
	}{
		"TCP":                                    {tcp(v4), []process{shell, envoy(7), envoy(8, 1, loopbackV4), envoy(9)}, 8, byItsSocket, ""},
		"IPv6":                                   {tcp("[::1]:9901"), []process{envoy(7, loopbackV4), envoy(8, loopbackV6)}, 8, byItsSocket, ""},
		"IPv4 as IPv6":                           {tcp("[::ffff:127.0.0.1]:9901"), []process{envoy(7, loopbackV4), envoy(8)}, 7, byItsSocket, ""},
		"at all addresses":                       {tcp("127.0.0.1:10000"), []process{envoy(7, anyV4), envoy(8)}, 7, byItsSocket, ""},
		"at all addresses of IPv6, by IPv4":      {tcp("127.0.0.1:9902"), []process{envoy(7, anyV6), envoy(8)}, 7, byItsSocket, ""},
		"at all addresses of IPv4, by IPv6":      {tcp("[::1]:10000"), []process{envoy(7, anyV4), envoy(8)}, 0, "", "there are several Envoys here, [7 8], and who of them answers at memory.url is not to be seen: set envoy.pid"},
		"at an IPv4 address of IPv6":             {tcp("127.0.0.1:9903"), []process{envoy(7, mappedV4), envoy(8)}, 7, byItsSocket, ""},
		"this machine's address":                 {tcp("192.0.2.1:10000"), []process{envoy(7, anyV4), envoy(8)}, 7, byItsSocket, ""},
		"another machine's":                      {tcp("192.0.2.2:10000"), []process{envoy(7, anyV4)}, 0, "", "memory.url (192.0.2.2:10000) is not on this machine: set envoy.pid or envoy.cgroup if its process can be seen here"},
		"a Unix socket":                          {unix("/run/envoy/admin.sock"), []process{envoy(7, spaceUnix), envoy(8, adminUnix)}, 8, byItsSocket, ""},
		"with a space in its path":               {unix("/run/envoy/with space.sock"), []process{envoy(7, spaceUnix), envoy(8, adminUnix)}, 7, byItsSocket, ""},
		"not reached yet":                        {nil, []process{envoy(7, loopbackV4)}, 0, "", "memory.url has not been reached yet"},
		"a hot restart":                          {tcp(v4), []process{envoy(900, loopbackV4), envoy(7, loopbackV4), envoy(8)}, 900, byItsSocket, ""},
		"one that was started by it":             {tcp(v4), []process{envoy(7, loopbackV4), {pid: 8, comm: "gzip", start: 9999, sockets: []int{loopbackV4}}}, 7, byItsSocket, ""},
		"of two users":                           {tcp(v4), []process{envoy(7, loopbackV4), {pid: 8, uid: 5, comm: "envoy", sockets: []int{loopbackV4}}}, 0, "", "processes of several users are called envoy and listen at memory.url, 7 and 8: set envoy.pid"},
		"none is called so":                      {tcp(v4), []process{shell}, 0, "", "no process here is called envoy: set envoy.pid, or let them share their processes"},
		"another one is called so":               {tcp(v4), []process{shell, envoy(8)}, 0, "", "of those called envoy here, [8], none answers at memory.url (127.0.0.1:9901): set envoy.pid if its process can be seen here"},
		"not to be seen, and the only one":       {tcp("127.0.0.1:4444"), []process{shell, envoy(8)}, 8, byItsName, ""},
		"not to be seen, one of several":         {tcp("127.0.0.1:4444"), []process{envoy(7), envoy(8)}, 0, "", "there are several Envoys here, [7 8], and who of them answers at memory.url is not to be seen: set envoy.pid"},
		"not to be seen, a Unix socket":          {unix("/elsewhere.sock"), []process{shell, envoy(8)}, 8, byItsName, ""},
		"hidden, the socket's user":              {tcp(v4), []process{hidden(7, 0), hidden(8, 5)}, 7, byItsName, ""},
		"hidden, another user's":                 {tcp(v4), []process{hidden(8, 5)}, 0, "", "none answers at memory.url"},
		"hidden, two of the socket's user":       {tcp(v4), []process{hidden(7, 0), hidden(8, 0)}, 0, "", "there are several Envoys here, [7 8], and what they listen on is not to be seen: set envoy.pid, or run as their user"},
		"hidden, a Unix socket":                  {unix("/run/envoy/admin.sock"), []process{hidden(7, 3)}, 7, byItsName, ""},
		"hidden, beside one that holds it":       {tcp(v4), []process{hidden(7, 0), envoy(8, loopbackV4)}, 8, byItsSocket, ""},
		"hidden, beside one that does not":       {tcp(v4), []process{hidden(7, 0), envoy(8)}, 7, byItsName, ""},
		"a name with a bracket, and much behind": {tcp(v4), []process{envoy(7, loopbackV4), {pid: 8, comm: "envoy) S 1 2", sockets: []int{loopbackV4}}}, 7, byItsSocket, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := finder{local: func(ip netip.Addr) bool { return ip == netip.MustParseAddr("192.0.2.1") }}
			root := machineOf(t, c.processes...)
			for range 2 { // the second time what was found is looked at alone, and nothing else comes of it
				pid, how, err := f.find(root, c.at)
				if c.err != "" {
					require.ErrorContains(t, err, c.err)
				} else {
					require.NoError(t, err)
				}
				require.Equal(t, c.pid, pid)
				require.Equal(t, c.how, how)
			}
		})
	}
}

// What was found stays while it holds the socket, without a look at the tables, and no longer.
func TestFindEnvoyAgain(t *testing.T) {
	at := tcp("127.0.0.1:9901")
	root := machineOf(t, process{pid: 7, comm: "envoy", sockets: []int{loopbackV4}})
	var f finder
	find := func() int {
		t.Helper()
		pid, _, err := f.find(root, at)
		require.NoError(t, err)
		return pid
	}
	require.Equal(t, 7, find())
	table := root.MapFS["proc/net/tcp"]
	root.MapFS["proc/net/tcp"] = &fstest.MapFile{Data: nil}
	require.Equal(t, 7, find(), "it still holds the socket")
	root.MapFS["proc/net/tcp"] = table

	// A hot restart: another one with the socket is there, and then the first one lets go of it.
	next := machineOf(t, process{pid: 8, comm: "envoy", start: 5, sockets: []int{loopbackV4}})
	for name, file := range next.MapFS {
		root.MapFS[name] = file
	}
	require.Equal(t, 8, find())
	delete(root.MapFS, "proc/8/fd/3")
	require.Equal(t, 7, find())

	// The same number, and another socket.
	root.MapFS["proc/7/fd/3"] = &fstest.MapFile{Data: []byte("socket:[1]"), Mode: fs.ModeSymlink}
	_, _, err := f.find(root, at)
	require.ErrorContains(t, err, "none answers at memory.url")

	// Another address.
	root.MapFS["proc/7/fd/3"] = &fstest.MapFile{Data: []byte("socket:[" + strconv.Itoa(loopbackV6) + "]"), Mode: fs.ModeSymlink}
	pid, _, err := f.find(root, tcp("[::1]:9901"))
	require.NoError(t, err)
	require.Equal(t, 7, pid)
	_, _, err = f.find(root, at)
	require.ErrorContains(t, err, "none answers at memory.url")
}

// What is huge is read in part, and says so rather than to name another process.
func TestFindEnvoyInAHugeMachine(t *testing.T) {
	at := tcp("127.0.0.1:9901")
	one := process{pid: 7, comm: "envoy", sockets: []int{loopbackV4}}
	root := machineOf(t, one)
	head, rest, _ := strings.Cut(string(root.MapFS["proc/net/tcp"].Data), "\n")
	listener := "   0: 0100007F:0001 00000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 5 2 00000000eb07fb05 100 0 0 10 0\n"
	stranger := strings.Replace(listener, " 0A ", " 06 ", 1)

	root.MapFS["proc/net/tcp"].Data = []byte(head + "\n" + rest + strings.Repeat(stranger, 2*maxLines))
	var f finder
	pid, _, err := f.find(root, at)
	require.NoError(t, err, "those that listen come first")
	require.Equal(t, 7, pid)
	root.MapFS["proc/net/tcp"].Data = []byte(head + "\n" + strings.Repeat(listener, maxLines) + rest)
	f = finder{}
	_, _, err = f.find(root, at)
	require.EqualError(t, err, "/proc/net/tcp has more than 65536 lines, and who answers at memory.url is not among the first: set envoy.pid")

	root = machineOf(t, one)
	root.MapFS["proc/net/tcp"].Data = []byte(head + "\n" + strings.Repeat("x", 3*maxLine) + "\n" + rest)
	_, _, err = f.find(root, at)
	require.ErrorContains(t, err, "/proc/net/tcp: ", "a line without end")

	// The 65,537th of anything is not looked at: neither files of a process nor processes.
	root = shut{}
	many := crowd{shut: machineOf(t, one), dir: "proc/7/fd", n: maxFiles + 1}
	_, _, err = f.find(many, at)
	require.NoError(t, err, "its admin socket was opened early")
	delete(many.MapFS, "proc/7/fd/3")
	f = finder{}
	_, _, err = f.find(many, at)
	require.ErrorContains(t, err, "none answers at memory.url")
	many = crowd{shut: machineOf(t, one), dir: "proc", n: maxProcesses + 1}
	f = finder{}
	_, _, err = f.find(many, at)
	require.EqualError(t, err, "look for Envoy: /proc: there are too many of them to look through: set envoy.pid")
}

// crowd is a file system where a directory has so many more names in it.
type crowd struct {
	shut
	dir string
	n   int
}

func (c crowd) Open(name string) (fs.File, error) {
	f, err := c.shut.Open(name)
	if err == nil && name == c.dir {
		return &crowded{ReadDirFile: f.(fs.ReadDirFile), left: c.n}, nil
	}
	return f, err
}

type crowded struct {
	fs.ReadDirFile
	left int
}

func (c *crowded) ReadDir(n int) ([]fs.DirEntry, error) {
	list, err := c.ReadDirFile.ReadDir(n)
	for err == io.EOF && len(list) < n && c.left > 0 {
		c.left--
		list = append(list, fs.FileInfoToDirEntry(name(strconv.Itoa(1000+c.left))))
	}
	if len(list) > 0 {
		return list, nil
	}
	return list, err
}

// name is a file of which nothing else is known.
type name string

func (n name) Name() string     { return string(n) }
func (name) Size() int64        { return 0 }
func (name) Mode() fs.FileMode  { return 0 }
func (name) ModTime() time.Time { return time.Time{} }
func (name) IsDir() bool        { return false }
func (name) Sys() any           { return nil }

// On a real machine, by real sockets: two processes are called envoy, and the one that answers at
// memory.url is found.
func TestFindEnvoyOnThisMachine(t *testing.T) {
	a, b := pretend(t), pretend(t)
	root := os.DirFS("/")
	for _, p := range []*pretender{a, b, a} {
		for _, at := range []net.Addr{tcp(p.tcp), unix(p.unix)} {
			f := finder{}
			pid, how, err := f.find(root, at)
			require.NoError(t, err)
			require.Equal(t, p.pid, pid, at)
			require.Equal(t, byItsSocket, how)
		}
	}
	// The test process answers too, but it is not called envoy: that is not taken for one of those
	// that are.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, _, err = new(finder).find(root, l.Addr())
	require.ErrorContains(t, err, "none answers at memory.url")

	// The observer measures who it asks, and when that one is gone nobody.
	w := newWatch(t, Options{URL: "http://" + b.tcp, Root: root})
	s := w.until("its process", func(s Status) bool { return s.PID == b.pid })
	require.Positive(t, s.Resident)
	require.Equal(t, 1, w.log.count("Envoy's process is known"))
	b.stop()
	w.until("it is gone", func(s Status) bool { return s.PID == 0 && s.Failing["process"] != "" })
}

// pretender is a process that is called envoy and answers as its admin does.
type pretender struct {
	pid       int
	tcp, unix string
	stop      func()
}

// pretend runs this test's own program under that name.
func pretend(t *testing.T) *pretender {
	t.Helper()
	dir := t.TempDir()
	self, err := os.Executable()
	require.NoError(t, err)
	text, err := os.ReadFile(self)
	require.NoError(t, err)
	program := filepath.Join(dir, "envoy")
	require.NoError(t, os.WriteFile(program, text, 0o700))
	ctx, cancel := context.WithCancel(context.Background())
	c := exec.CommandContext(ctx, program)
	c.Env = append(os.Environ(), pretendVariable+"="+filepath.Join(dir, "admin.sock"))
	out, err := c.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, c.Start())
	p := &pretender{pid: c.Process.Pid, unix: filepath.Join(dir, "admin.sock"), stop: sync.OnceFunc(func() { cancel(); _ = c.Wait() })}
	t.Cleanup(p.stop)
	_, err = fmt.Fscanln(out, &p.tcp)
	require.NoError(t, err)
	return p
}

const pretendVariable = "HIGHWATER_TEST_PRETEND"

// pretending is main of a pretender. It ends with its parent's patience.
func pretending(socket string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	u, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: answersMemory(100*mib, 0), ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(u) }()
	time.AfterFunc(time.Minute, func() { _ = server.Close() })
	fmt.Println(l.Addr())
	return server.Serve(l)
}

// In a hot restart the Envoy that goes still answers on the connections that it has. Its successor
// is asked soon all the same.
func TestHotRestart(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	server := func(mapped int64, l net.Listener) *http.Server {
		s := &http.Server{Handler: answersMemory(mapped, 0), ReadHeaderTimeout: time.Second}
		go func() { _ = s.Serve(l) }()
		return s
	}
	old := server(100*mib, l)
	defer old.Close()
	w := newWatch(t, Options{URL: "http://" + address})
	w.until("a reading", func(s Status) bool { return s.Reading.Mapped == 100*mib })
	require.NoError(t, l.Close()) // and no connection
	l, err = net.Listen("tcp", address)
	require.NoError(t, err)
	defer server(200*mib, l).Close()
	began := time.Now()
	w.until("a reading of its successor", func(s Status) bool { return s.Reading.Mapped == 200*mib })
	require.Less(t, time.Since(began), reconnect+2*time.Second)
	require.Zero(t, w.Status().Failures["memory"])
}

func TestParseStart(t *testing.T) {
	start, err := parseStart([]byte("7 (a) b) c) S 1 7 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 100 200"))
	require.NoError(t, err)
	require.EqualValues(t, 12345, start)
	for _, text := range []string{"", ")", "7 (envoy) S 1", "7 (envoy) S 1 7 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 x 100"} {
		_, err := parseStart([]byte(text))
		require.Error(t, err, text)
	}
}

func FuzzParseTables(f *testing.F) {
	for _, name := range []string{"tcp", "tcp6", "unix"} {
		text, err := os.ReadFile("testdata/net/" + name)
		require.NoError(f, err)
		for line := range strings.Lines(string(text)) {
			f.Add(strings.TrimSuffix(line, "\n"))
		}
	}
	f.Fuzz(func(t *testing.T, line string) {
		if s, at, ok := parseTCP(line); ok && (s.inode == 0 || !at.IsValid()) {
			t.Fatalf("%q is taken for %v at %v", line, s, at)
		}
		if s, path, ok := parseUnix(line); ok && (s.inode == 0 || !strings.HasSuffix(line, path)) {
			t.Fatalf("%q is taken for %v at %q", line, s, path)
		}
		if _, err := parseStart([]byte(line)); errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	})
}
