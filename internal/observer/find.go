package observer

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// finder finds the process that is to be observed: the one that answers at memory.url, for what it
// says of its memory is set beside what the kernel says of its process. Whoever is called envoy is
// a guess where that can't be seen; any user's process may be called so.
type finder struct {
	local func(netip.Addr) bool // whether an address is one of this machine's; nil = by its interfaces

	// What was found last, so that a look now and then costs next to nothing.
	at    net.Addr
	named []int
	held  held
}

// held is a socket in a process: /proc/<pid>/fd/<fd> is a link to it.
type held struct {
	pid      int
	fd, link string
}

const (
	byItsSocket = "its admin socket"
	byItsName   = "its name"
)

// find returns the process and what it is known by. at is where admin answered; nil = it never did.
func (f *finder) find(root fs.FS, at net.Addr) (pid int, how string, err error) {
	named, err := called(root, "envoy")
	if err != nil {
		return 0, "", fmt.Errorf("look for Envoy: %w", err)
	}
	if f.held.pid != 0 && same(at, f.at) && slices.Equal(named, f.named) {
		if link, err := fs.ReadLink(root, fdPath(f.held.pid, f.held.fd)); err == nil && link == f.held.link {
			return f.held.pid, byItsSocket, nil
		}
	}
	f.at, f.named, f.held = at, named, held{}
	sockets, err := f.listening(root, at)
	if err != nil {
		return 0, "", err
	}
	if len(named) == 0 {
		return 0, "", errors.New("no process here is called envoy: set envoy.pid, or let them share their processes")
	}
	if len(sockets) == 0 { // admin is in another network namespace, or the kernel shows none
		if len(named) == 1 {
			return named[0], byItsName, nil
		}
		return 0, "", fmt.Errorf("there are several Envoys here, %v, and who of them answers at memory.url is not to be seen: set envoy.pid", named)
	}
	holders, hidden := holding(root, named, sockets)
	if len(holders) > 0 {
		if f.held, err = youngest(root, holders); err != nil {
			return 0, "", err
		}
		return f.held.pid, byItsSocket, nil
	}
	// Other users' processes don't show what they hold, but the socket shows whose it is.
	hidden = slices.DeleteFunc(hidden, func(pid int) bool {
		uid, err := user(root, pid)
		return err != nil || !slices.ContainsFunc(sockets, func(s socket) bool { return s.uid == unknownUser || s.uid == uid })
	})
	switch len(hidden) {
	case 1:
		return hidden[0], byItsName, nil
	case 0:
		return 0, "", fmt.Errorf("of those called envoy here, %v, none answers at memory.url (%v): set envoy.pid if its process can be seen here", named, at)
	}
	return 0, "", fmt.Errorf("there are several Envoys here, %v, and what they listen on is not to be seen: set envoy.pid, or run as their user", hidden)
}

// maxProcesses is how many are looked through. A machine has some hundreds; those of a hostile
// container count too.
const maxProcesses = 1 << 16

// called returns the processes of a name, lowest first.
func called(root fs.FS, name string) ([]int, error) {
	var found []int
	err := entries(root, "proc", maxProcesses, func(entry string) bool {
		pid, err := strconv.Atoi(entry)
		if err != nil || pid <= 0 {
			return true
		}
		// Processes come and go; one that can't be read is none.
		if comm, err := readProc(root, pid, "comm"); err == nil && string(bytes.TrimSpace(comm)) == name {
			found = append(found, pid)
		}
		return true
	})
	slices.Sort(found)
	return found, err
}

// errMany: a directory has more in it than is looked through.
var errMany = errors.New("there are too many of them to look through: set envoy.pid")

// entries calls f with each name in a directory, until it returns false.
func entries(root fs.FS, dir string, most int, f func(name string) bool) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	list, ok := d.(fs.ReadDirFile)
	if !ok {
		return fmt.Errorf("%s: %w", dir, errors.ErrUnsupported)
	}
	for n := 0; ; {
		some, err := list.ReadDir(256)
		for _, e := range some {
			if n++; n > most {
				return fmt.Errorf("/%s: %w", dir, errMany)
			}
			if !f(e.Name()) {
				return nil
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// socket is one that listens.
type socket struct {
	inode uint64
	uid   int // of who made it, or unknownUser
}

const unknownUser = -1

func (s socket) link() string { return "socket:[" + strconv.FormatUint(s.inode, 10) + "]" }

// listening returns the sockets that listen at an address of this machine, none if none is to be
// seen.
func (f *finder) listening(root fs.FS, at net.Addr) ([]socket, error) {
	switch at := at.(type) {
	case nil:
		return nil, errors.New("memory.url has not been reached yet")
	case *net.UnixAddr:
		var found []socket
		err := eachLine(root, "proc/net/unix", func(line string) bool {
			if s, path, ok := parseUnix(line); ok && path == at.Name {
				found = append(found, s)
			}
			return true
		})
		return found, err
	case *net.TCPAddr:
		address := at.AddrPort()
		address = netip.AddrPortFrom(address.Addr().Unmap().WithZone(""), address.Port())
		local := f.local
		if local == nil {
			local = ofThisMachine
		}
		if !address.Addr().IsLoopback() && !local(address.Addr()) {
			return nil, fmt.Errorf("memory.url (%v) is not on this machine: set envoy.pid or envoy.cgroup if its process can be seen here", at)
		}
		var exact, wild []socket
		for _, file := range []string{"proc/net/tcp", "proc/net/tcp6"} {
			seen := false
			err := eachLine(root, file, func(line string) bool {
				s, bound, ok := parseTCP(line)
				if !ok {
					return !seen // those that listen come first, and there may be very many others
				}
				seen = true
				switch ip := bound.Addr(); {
				case bound.Port() != address.Port():
				case ip.Unmap() == address.Addr():
					exact = append(exact, s)
				case ip == netip.IPv6Unspecified(), ip == netip.IPv4Unspecified() && address.Addr().Is4():
					wild = append(wild, s)
				}
				return len(exact) == 0
			})
			if err != nil {
				return nil, err
			}
		}
		if len(exact) > 0 {
			return exact, nil
		}
		return wild, nil
	}
	return nil, fmt.Errorf("memory.url is at %v, where nobody can be found", at)
}

func ofThisMachine(ip netip.Addr) bool {
	list, err := net.InterfaceAddrs()
	return err == nil && slices.ContainsFunc(list, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr().Unmap() == ip
	})
}

const (
	// maxLines is how many of a table of sockets are read. Those that listen come first.
	maxLines = 1 << 16
	maxLine  = 1 << 10
)

// eachLine calls f with each line of a file, until it returns false. A file that is not there, or
// not for us, has none.
func eachLine(root fs.FS, name string, f func(line string) bool) error {
	file, err := root.Open(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	scanner := bufio.NewScanner(file)
	scanner.Buffer(make([]byte, 0, maxLine), maxLine)
	for n := 0; scanner.Scan(); n++ {
		if n == maxLines {
			return fmt.Errorf("/%s has more than %d lines, and who answers at memory.url is not among the first: set envoy.pid", name, maxLines)
		}
		if !f(scanner.Text()) {
			return nil
		}
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	return nil
}

// parseTCP reads a line of /proc/net/tcp or tcp6, proc_net_tcp(5): of a socket that listens, where.
func parseTCP(line string) (s socket, at netip.AddrPort, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 10 || fields[3] != "0A" { // TCP_LISTEN
		return s, at, false
	}
	address, port, _ := strings.Cut(fields[1], ":")
	p, err := strconv.ParseUint(port, 16, 16)
	raw, hexErr := hex.DecodeString(address)
	if err != nil || hexErr != nil || len(raw) != 4 && len(raw) != 16 {
		return s, at, false
	}
	// The kernel prints words of four bytes as numbers of its own byte order.
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	uid, err := strconv.ParseUint(fields[7], 10, 32)
	if err != nil {
		return s, at, false
	}
	inode, err := strconv.ParseUint(fields[9], 10, 64)
	if err != nil || inode == 0 {
		return s, at, false
	}
	ip, _ := netip.AddrFromSlice(raw)
	return socket{inode, int(uid)}, netip.AddrPortFrom(ip, uint16(p)), true
}

// parseUnix reads a line of /proc/net/unix, proc_net_unix(5): of a socket that listens, its path.
func parseUnix(line string) (s socket, path string, ok bool) {
	rest := line
	var fields [7]string
	for i := range fields { // the path may have spaces in it
		rest = strings.TrimLeft(rest, " ")
		fields[i], rest, ok = strings.Cut(rest, " ")
		if !ok {
			return s, "", false
		}
	}
	flags, err := strconv.ParseUint(fields[3], 16, 32)
	inode, inodeErr := strconv.ParseUint(fields[6], 10, 64)
	if err != nil || flags&0x10000 == 0 || inodeErr != nil || inode == 0 { // __SO_ACCEPTCON
		return s, "", false
	}
	return socket{inode, unknownUser}, rest, true
}

// maxFiles is how many open files of a process are looked through. What it opened early, as it does
// its admin socket, comes first.
const maxFiles = 1 << 16

func fdDir(pid int) string { return "proc/" + strconv.Itoa(pid) + "/fd" }

func fdPath(pid int, fd string) string { return fdDir(pid) + "/" + fd }

// holding returns which processes hold one of the sockets, and those that don't show what they
// hold.
func holding(root fs.FS, pids []int, sockets []socket) (holders []held, hidden []int) {
	for _, pid := range pids {
		var linkErr error
		err := entries(root, fdDir(pid), maxFiles, func(fd string) bool {
			var link string
			if link, linkErr = fs.ReadLink(root, fdPath(pid, fd)); linkErr != nil {
				return !errors.Is(linkErr, fs.ErrPermission)
			}
			if !slices.ContainsFunc(sockets, func(s socket) bool { return s.link() == link }) {
				return true
			}
			holders = append(holders, held{pid, fd, link})
			return false
		})
		if errors.Is(err, fs.ErrPermission) || errors.Is(linkErr, fs.ErrPermission) {
			hidden = append(hidden, pid)
		}
	}
	return holders, hidden
}

// youngest is the one that started last: in a hot restart that is the one that takes over. Holders
// of several users are not one Envoy.
func youngest(root fs.FS, holders []held) (last held, err error) {
	var begun uint64
	var owner int
	for i, h := range holders {
		uid, err := user(root, h.pid)
		if err != nil {
			return held{}, fmt.Errorf("process %d: %w", h.pid, err)
		}
		start, err := started(root, h.pid)
		if err != nil {
			return held{}, fmt.Errorf("process %d: %w", h.pid, err)
		}
		if i > 0 && uid != owner {
			return held{}, fmt.Errorf("processes of several users are called envoy and listen at memory.url, %d and %d: set envoy.pid", last.pid, h.pid)
		}
		owner = uid
		if i == 0 || start > begun || start == begun && h.pid > last.pid {
			last, begun = h, start
		}
	}
	return last, nil
}

// user is the effective user of a process.
func user(root fs.FS, pid int) (int, error) {
	text, err := readProc(root, pid, "status")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if ids, ok := bytes.CutPrefix(line, []byte("Uid:")); ok {
			if fields := bytes.Fields(ids); len(fields) == 4 {
				n, err := strconv.ParseUint(string(fields[1]), 10, 32)
				return int(n), err
			}
		}
	}
	return 0, errors.New("its status does not say whose it is")
}

// started is when a process did, in ticks since the machine did: field 22 of proc_pid_stat(5).
func started(root fs.FS, pid int) (uint64, error) {
	text, err := readProc(root, pid, "stat")
	if err != nil {
		return 0, err
	}
	return parseStart(text)
}

func parseStart(text []byte) (uint64, error) {
	// The name is in brackets and may have anything in it.
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	if len(fields) < 20 {
		return 0, errors.New("its stat does not say when it started")
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
