// Package adminhttp is the HTTP server of `highwater serve`, without what it answers: it holds its
// own against whoever can reach its port. Connections, their time and what a request may bring are
// bounded, and a request for a host that is not this one is refused: else any web page could read
// it through a name of its own that leads here (DNS rebinding).
package adminhttp

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/quiet"
)

const (
	maxConnections = 512 // one for each of Envoy's workers, and some for what scrapes, what probes, and people
	maxHeader      = 8 << 10
	// A socket's buffers are kernel memory of this process's container, and by default grow to
	// megabytes for a peer that does not read.
	socketBuffer = 32 << 10

	headerTimeout = 3 * time.Second
	writeTimeout  = 10 * time.Second
	idleTimeout   = time.Minute // a filter asks at least each half a second
)

// MemoryHost is the host that Highwater's plugin asks for, at MemoryPath alone: what is answered
// there names nobody.
const (
	MemoryHost = "highwater"
	MemoryPath = "/memory"
)

// New returns a server of h, for which Listen makes a listener. address is what is listened on, and
// hosts are the names beside it that a request may be for.
func New(h http.Handler, address string, hosts []string, log *slog.Logger) *http.Server {
	warnings := quiet.New(log, time.Second)
	guests := newGuests(maxConnections, warnings)
	return &http.Server{
		Handler:           &door{next: h, hosts: append(slices.Clone(hosts), hostOf(address)), log: warnings},
		ReadHeaderTimeout: headerTimeout, ReadTimeout: writeTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader, ConnState: guests.moved, ErrorLog: warnings.Standard(),
	}
}

// Bounded returns a listener whose connections have small buffers in the kernel.
func Bounded(l net.Listener) net.Listener { return listener{l} }

type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	tcp, ok := c.(*net.TCPConn)
	if err != nil || !ok {
		return c, err
	}
	// They are hints; a connection without them is one too.
	_ = tcp.SetWriteBuffer(socketBuffer)
	_ = tcp.SetReadBuffer(socketBuffer)
	return conn{tcp}, nil
}

// conn forgets what its peer does not read: else the kernel would keep that for minutes after the
// end, as often as a peer likes.
type conn struct{ *net.TCPConn }

func (c conn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.forget()
	}
	return n, err
}

func (c conn) forget() { _ = c.SetLinger(0) }

// Hosts reads a list of hosts with commas between them.
func Hosts(list string) ([]string, error) {
	var hosts []string
	for name := range strings.SplitSeq(list, ",") {
		name = strings.TrimSpace(name)
		if name == "" && list == "" {
			return nil, nil
		}
		_, err := netip.ParseAddr(name)
		if err != nil && (name == "" || len(name) > 253 || strings.ContainsAny(name, ":/[]*@ ")) {
			return nil, fmt.Errorf("%q must be names or addresses with commas between them and without ports, such as envoy-1.internal,10.0.0.5", list)
		}
		hosts = append(hosts, hostOf(name))
	}
	return hosts, nil
}

// hostOf is a Host header without its port, as hosts are compared.
func hostOf(header string) string {
	host, _, err := net.SplitHostPort(header)
	if err != nil {
		host = strings.TrimSuffix(strings.TrimPrefix(header, "["), "]")
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip, err := netip.ParseAddr(host); err == nil {
		return ip.Unmap().WithZone("").String()
	}
	return host
}

// door lets in who asks for this host, and brings nothing.
type door struct {
	next  http.Handler
	hosts []string
	log   *quiet.Log
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !d.mine(r) {
		d.log.Warn("a request for another host is refused; name it in -http-hosts if it is one of this server's", "host", clip(r.Host), "from", r.RemoteAddr)
		w.Header().Set("Connection", "close")
		http.Error(w, fmt.Sprintf("The host %q is not one that is answered here: ask for localhost or for the address that highwater serve "+
			"listens on, or name the host in its flag -http-hosts.", clip(r.Host)), http.StatusForbidden)
		return
	}
	if r.ContentLength != 0 || len(r.TransferEncoding) > 0 {
		w.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // else a part of it would be waited for
		http.Error(w, "A request has no body here.", http.StatusBadRequest)
		return
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	d.next.ServeHTTP(w, r)
}

// mine says whether the request is for this server: for the loopback interface, the address that it
// came to, or a name that is known. A page that leads a name of its own here asks for that name.
// HTTP/1.0 may have no host: that is none of these.
func (d *door) mine(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	if local.Network() == "unix" {
		return true // no name leads there
	}
	if r.Host == MemoryHost && r.URL.Path == MemoryPath {
		return true
	}
	host := hostOf(r.Host)
	if host == "" {
		return false
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() {
		return true
	}
	return host == "localhost" || host == hostOf(local.String()) || slices.Contains(d.hosts, host)
}

// longestHost is how much of a host is shown.
const longestHost = 100

func clip(s string) string { return s[:min(len(s), longestHost)] }
