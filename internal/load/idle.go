package load

import (
	"cmp"
	"context"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// IdleStreams are HTTP/2 streams that each moved Bytes and then stay open, idle, to the end.
// Parallel of them move theirs at a time. One counts as served once it has moved its bytes, and as
// cut if it ends before the load does.
type IdleStreams struct {
	Addr          string
	Path          string // "/bytes" if empty; n and hold are added
	Streams       int
	Bytes         int64
	PerConnection int // 100 if 0
	Parallel      int // 8 if 0

	tally
}

// Run implements Load.
func (s *IdleStreams) Run(ctx context.Context) {
	s.begin()
	path := cmp.Or(s.Path, "/bytes")
	path = withSize(path, s.Bytes) + "&hold=1"
	perConn, parallel := cmp.Or(s.PerConnection, 100), cmp.Or(s.Parallel, 8)
	conns := http2Pool(s.Addr, s.Streams, perConn, 0, 0)
	turn := make(chan struct{}, parallel)
	var streams sync.WaitGroup
	for i := range s.Streams {
		streams.Go(func() { s.one(ctx, conns[i%len(conns)], path, turn) })
	}
	streams.Wait()
	for _, c := range conns {
		c.close()
	}
}

func (s *IdleStreams) one(ctx context.Context, conn *http2Conn, path string, turn chan struct{}) {
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return
	}
	moved := sync.OnceFunc(func() { <-turn })
	defer moved()

	s.started.Add(1)
	s.inFlight.Add(1)
	defer s.inFlight.Add(-1)
	begun := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.Addr+path, nil)
	if err != nil {
		s.fail(err)
		return
	}
	resp, err := conn.do(req)
	if err != nil {
		if ctx.Err() == nil {
			s.fail(err)
		}
		return
	}
	defer resp.Body.Close()
	if rejects(resp.StatusCode) {
		s.rejected.Add(1)
		return
	} else if resp.StatusCode != http.StatusOK {
		s.fail(statusError(resp.StatusCode))
		return
	}
	if err := discard(ctx, resp.Body, s.Bytes, func(n int64) { s.bytes.Add(n) }); err != nil {
		if ctx.Err() == nil {
			s.cut.Add(1)
		}
		return
	}
	s.serve(0, time.Since(begun))
	moved()
	if _ = discard(ctx, resp.Body, 1, nil); ctx.Err() == nil {
		s.cut.Add(1)
	}
}

// Echoes are gRPC-like streams over HTTP/2: each sends a message of Size, waits until it has come
// back, pauses, and so on to the end. One exchange counts as one served.
type Echoes struct {
	Addr          string
	Path          string // "/echo" if empty
	Streams       int
	Size          int64
	Pause         time.Duration
	PerConnection int // 100 if 0

	tally
}

// Run implements Load.
func (e *Echoes) Run(ctx context.Context) {
	e.begin()
	perConn := cmp.Or(e.PerConnection, 100)
	conns := http2Pool(e.Addr, e.Streams, perConn, 0, 0)
	var streams sync.WaitGroup
	for i := range e.Streams {
		streams.Go(func() {
			for ctx.Err() == nil {
				e.one(ctx, conns[i%len(conns)])
				if !Sleep(ctx, 20*time.Millisecond) {
					return
				}
			}
		})
	}
	streams.Wait()
	for _, c := range conns {
		c.close()
	}
}

func (e *Echoes) one(ctx context.Context, conn *http2Conn) {
	e.started.Add(1)
	e.inFlight.Add(1)
	defer e.inFlight.Add(-1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	path := cmp.Or(e.Path, "/echo")
	messages := &messageReader{ctx: ctx, next: make(chan int64)}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+e.Addr+path, messages)
	if err != nil {
		e.fail(err)
		return
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("Te", "trailers")
	resp, err := conn.do(req)
	if err != nil {
		if ctx.Err() == nil {
			e.fail(err)
		}
		return
	}
	defer resp.Body.Close()
	// A gRPC reject is a 200 that has its status in the headers (a response without a body).
	if status := resp.Header.Get("Grpc-Status"); rejects(resp.StatusCode) || status == "8" {
		e.rejected.Add(1)
		return
	} else if resp.StatusCode != http.StatusOK || status != "" && status != "0" {
		e.fail(statusError(resp.StatusCode))
		return
	}
	for ctx.Err() == nil {
		begun := time.Now()
		select {
		case messages.next <- e.Size:
		case <-ctx.Done():
			return
		}
		if err := discard(ctx, resp.Body, e.Size, nil); err != nil {
			if ctx.Err() == nil {
				e.cut.Add(1)
			}
			return
		}
		e.serve(e.Size, time.Since(begun))
		if !Sleep(ctx, e.Pause) {
			return
		}
	}
}

// messageReader is a request body that has as many bytes as are asked for on next.
type messageReader struct {
	ctx  context.Context
	next chan int64
	left int64
}

func (m *messageReader) Read(p []byte) (int, error) {
	if m.left == 0 {
		select {
		case m.left = <-m.next:
		case <-m.ctx.Done():
			return 0, m.ctx.Err()
		}
	}
	n := copy(p[:min(int64(len(p)), m.left)], zeros)
	m.left -= int64(n)
	return n, nil
}

func (m *messageReader) Close() error { return nil }

// withSize adds n=size to a path's query.
func withSize(path string, size int64) string {
	separator := "?"
	if strings.Contains(path, "?") {
		separator = "&"
	}
	return path + separator + "n=" + strconv.FormatInt(size, 10)
}
