package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Upstream is what stands behind Envoy. It speaks HTTP/1 and HTTP/2 without TLS on one port and
// answers
//
//	POST /upload[?delay=2s][?think=2s]
//	                         200 after it waited (delay), read the whole body, and waited (think)
//	GET  /bytes?n=N[&length=0][&hold=1][&delay=2s]
//	                         N bytes, without a Content-Length if length=0; hold: the response does
//	                         not end until its client goes away
//	POST /echo               each piece of the body as it comes, with a grpc-status trailer
//	GET  /small              100 bytes
//
// with any path in front of those (/demo/upload is an upload).
//
// An upload waits before it reads: until then what Envoy has of it stays with Envoy, but for what
// the kernel takes.
type Upstream struct {
	listener net.Listener
	server   *http.Server
	done     chan struct{}

	mu struct {
		sync.Mutex
		requests map[string]int64
	}
}

// NewUpstream starts an Upstream on a free loopback port.
func NewUpstream() (*Upstream, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	u := &Upstream{listener: listener, done: make(chan struct{})}
	u.mu.requests = map[string]int64{}

	mux := http.NewServeMux()
	for _, prefix := range []string{"", "/{tenant}"} {
		mux.HandleFunc(prefix+"/upload", u.counted("/upload", upload))
		mux.HandleFunc(prefix+"/bytes", u.counted("/bytes", serveBytes))
		mux.HandleFunc(prefix+"/echo", u.counted("/echo", echo))
		mux.HandleFunc(prefix+"/small", u.counted("/small", small))
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	u.server = &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: time.Minute}
	go func() {
		defer close(u.done)
		_ = u.server.Serve(listener) // always ErrServerClosed: Close ends it
	}()
	return u, nil
}

// Addr is the host:port of the upstream.
func (u *Upstream) Addr() string { return u.listener.Addr().String() }

// Requests is how many requests for path (/upload, /bytes, /echo, /small) have reached the
// upstream.
func (u *Upstream) Requests(path string) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.mu.requests[path]
}

// Total is how many requests have reached the upstream.
func (u *Upstream) Total() (n int64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, requests := range u.mu.requests {
		n += requests
	}
	return n
}

// Close ends the upstream and every connection to it.
func (u *Upstream) Close() error {
	err := u.server.Close()
	<-u.done
	return err
}

func (u *Upstream) counted(path string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		u.mu.requests[path]++
		u.mu.Unlock()
		if pauses(w, r, "delay") {
			h(w, r)
		}
	}
}

// pauses waits for as long as a key of the query says, if it does, and says whether to go on.
func pauses(w http.ResponseWriter, r *http.Request, key string) bool {
	text := r.URL.Query().Get(key)
	if text == "" {
		return true
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return Sleep(r.Context(), d)
}

func upload(w http.ResponseWriter, r *http.Request) {
	buffer := scratch.Get().(*[]byte)
	defer scratch.Put(buffer)
	for {
		if _, err := r.Body.Read(*buffer); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return
		}
	}
	if pauses(w, r, "think") {
		_, _ = io.WriteString(w, "ok\n")
	}
}

func small(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(zeros[:smallBody]) }

func serveBytes(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	n, err := strconv.ParseInt(query.Get("n"), 10, 64)
	if err != nil || n < 0 {
		http.Error(w, "n: how many bytes?", http.StatusBadRequest)
		return
	}
	hold := query.Get("hold") != ""
	if query.Get("length") != "0" && !hold {
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	for n > 0 {
		sent, err := w.Write(zeros[:min(n, int64(len(zeros)))])
		if err != nil {
			return
		}
		n -= int64(sent)
	}
	// Without the flush the server would add a Content-Length to a short response by itself.
	_ = http.NewResponseController(w).Flush()
	if hold {
		<-r.Context().Done()
	}
}

func echo(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	_ = control.EnableFullDuplex()
	w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
	w.Header().Set("Trailer", "Grpc-Status")
	w.WriteHeader(http.StatusOK)
	_ = control.Flush()
	buffer := scratch.Get().(*[]byte)
	defer scratch.Put(buffer)
	for {
		n, err := r.Body.Read(*buffer)
		if n > 0 {
			if _, werr := w.Write((*buffer)[:n]); werr != nil || control.Flush() != nil {
				return
			}
		}
		if err != nil {
			break
		}
	}
	w.Header().Set("Grpc-Status", "0")
}

const smallBody = 100

// zeros is what all bodies are made of.
var zeros = make([]byte, 64<<10)

// scratch has buffers to read into what nobody wants.
var scratch = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// zeroReader reads n zeros and remembers nothing else.
type zeroReader struct{ left int64 }

func (z *zeroReader) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.left)
	n = int64(copy(p[:n], zeros))
	z.left -= n
	return int(n), nil
}

func (z *zeroReader) Close() error { return nil }

// discard reads up to n bytes of body (all of it if n < 0) and counts them in read.
func discard(ctx context.Context, body io.Reader, n int64, read func(int64)) error {
	buffer := scratch.Get().(*[]byte)
	defer scratch.Put(buffer)
	for n != 0 {
		p := *buffer
		if n > 0 {
			p = p[:min(n, int64(len(p)))]
		}
		got, err := body.Read(p)
		if got > 0 && read != nil {
			read(int64(got))
		}
		if n > 0 {
			n -= int64(got)
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}
