package load

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// Small are the bystanders: Rate small GETs (or uploads) a second, sent when they are due whether
// or not those before them have been answered (an open loop), over keep-alive connections. Latency
// counts from the moment a request was due, so that a stall shows in every request that it delayed.
//
// There are Connections to begin with; when none is idle a request opens one more, up to
// MaxConnections, as a connection pool does. A GET that finds its kept connection closed is sent
// again on a fresh one, once. An upload is not, as no client would: it looks before it sends.
type Small struct {
	Addr           string
	Path           string        // "/small" if empty
	Upload         int64         // not GETs, but uploads of as many bytes
	Rate           int           // per second
	Connections    int           // 8 if 0
	MaxConnections int           // 64 if 0
	Reconnect      bool          // each request comes on a new connection
	Timeout        time.Duration // 10 s if 0
	Drain          time.Duration // how long those under way at the end may take; Timeout if 0

	tally
}

// Run implements Load.
func (s *Small) Run(ctx context.Context) {
	s.begin()
	timeout := cmp.Or(s.Timeout, 10*time.Second)
	hard, cancel := draining(ctx, cmp.Or(s.Drain, timeout))
	defer cancel()
	path := cmp.Or(s.Path, "/small")

	// A slot is a connection that is idle, or nil for one that is not open. First in, first out:
	// all are used alike.
	slots := make(chan *http1, cmp.Or(s.MaxConnections, 64))
	opened := cmp.Or(s.Connections, 8)
	for range opened {
		slots <- nil
	}

	var requests sync.WaitGroup
	interval := time.Second / time.Duration(max(s.Rate, 1))
	for due := time.Now(); Sleep(ctx, time.Until(due)); due = due.Add(interval) {
		s.started.Add(1)
		var conn *http1
		queued := false
		select {
		case conn = <-slots:
		default:
			if queued = opened == cap(slots); !queued {
				opened++
			}
		}
		requests.Go(func() { s.one(hard, slots, conn, queued, path, due, timeout) })
	}
	requests.Wait()
	for range opened {
		(<-slots).close()
	}
}

// one makes one request on conn (nil: on a new connection), or if queued on the first that is idle.
func (s *Small) one(ctx context.Context, slots chan *http1, conn *http1, queued bool, path string, due time.Time, timeout time.Duration) {
	s.inFlight.Add(1)
	s.waiting.Add(1)
	defer s.inFlight.Add(-1)
	defer s.waiting.Add(-1)
	ctx, cancel := context.WithDeadline(ctx, due.Add(timeout))
	defer cancel()

	if queued {
		select {
		case conn = <-slots:
		case <-ctx.Done():
			s.fail(errNoAnswer)
			return
		}
	}
	if conn != nil && s.Upload > 0 && hungUp(conn.conn) {
		conn.close()
		conn = nil
	}
	kept := conn != nil
	status, err := s.ask(ctx, &conn, path)
	if kept && s.Upload == 0 && err != nil && isClosed(err) && ctx.Err() == nil {
		status, err = s.ask(ctx, &conn, path) // conn is nil by now: a fresh one
	}
	if s.Reconnect {
		conn.close()
		conn = nil
	}
	slots <- conn
	switch {
	case ctx.Err() != nil && status == 0:
		s.fail(errNoAnswer)
	case err != nil:
		s.fail(err)
	case status == http.StatusOK:
		s.serve(cmp.Or(s.Upload, smallBody), time.Since(due))
	case rejects(status):
		s.rejected.Add(1)
	default:
		s.fail(statusError(status))
	}
}

var errNoAnswer = errors.New("no answer in time")

// ask asks on *slot, which it opens if it has to, and clears if it can't be kept. An answer that
// breaks off is an error that is not isClosed: it is not asked for again.
func (s *Small) ask(ctx context.Context, slot **http1, path string) (int, error) {
	conn := *slot
	*slot = nil
	if conn == nil {
		var err error
		if conn, err = dialHTTP1(ctx, s.Addr, 0); err != nil {
			return 0, err
		}
	}
	release := conn.interruptible(ctx)
	var resp *http.Response
	var err error
	whole := true
	if s.Upload > 0 {
		resp, whole, err = conn.post(path, s.Upload, false)
	} else {
		resp, err = conn.get(path)
	}
	if err != nil {
		release()
		conn.close()
		return 0, err
	}
	ended := discard(ctx, resp.Body, -1, nil)
	if release() && whole && ended == io.EOF && !resp.Close {
		*slot = conn
	} else {
		conn.close()
	}
	if ended != io.EOF {
		return 0, errors.New("answer broke off: " + ended.Error())
	}
	return resp.StatusCode, nil
}

// Downloads are healthy clients: each reads responses of Size as fast as it can, one after the
// other, on one keep-alive connection (over HTTP/2 on PerConnection streams of a shared one).
type Downloads struct {
	Addr          string
	Path          string // "/bytes" if empty; n is added
	Clients       int
	Size          int64
	Protocol      Protocol
	PerConnection int           // HTTP/2: streams per connection; 0 = all
	Retry         time.Duration // 20 ms if 0

	tally
}

// Run implements Load.
func (d *Downloads) Run(ctx context.Context) {
	d.begin()
	path := cmp.Or(d.Path, "/bytes")
	path = withSize(path, d.Size)

	conns := make([]*http1, d.Clients)
	once := func(i int) error { return d.http1(ctx, &conns[i], path) }
	if d.Protocol == HTTP2 {
		shared := http2Pool(d.Addr, d.Clients, d.PerConnection, 0, 0)
		defer func() {
			for _, c := range shared {
				c.close()
			}
		}()
		once = func(i int) error { return d.http2(ctx, shared[i%len(shared)], path) }
	}
	var clients sync.WaitGroup
	for i := range d.Clients {
		clients.Go(func() {
			for ctx.Err() == nil {
				if once(i) != nil && !Sleep(ctx, cmp.Or(d.Retry, 20*time.Millisecond)) {
					break
				}
			}
			conns[i].close()
		})
	}
	clients.Wait()
}

func (d *Downloads) http1(ctx context.Context, slot **http1, path string) error {
	d.started.Add(1)
	d.inFlight.Add(1)
	defer d.inFlight.Add(-1)
	begun := time.Now()
	conn := *slot
	*slot = nil
	if conn == nil {
		var err error
		if conn, err = dialHTTP1(ctx, d.Addr, 0); err != nil {
			return d.lost(ctx, err)
		}
		conn.in = bufio.NewReaderSize(conn.conn, 64<<10)
	}
	release := conn.interruptible(ctx)
	resp, err := conn.get(path)
	if err != nil {
		release()
		conn.close()
		return d.lost(ctx, err)
	}
	judged := d.read(ctx, resp, begun)
	if release() && judged == nil && !resp.Close {
		*slot = conn
	} else {
		conn.close()
	}
	return judged
}

func (d *Downloads) http2(ctx context.Context, conn *http2Conn, path string) error {
	d.started.Add(1)
	d.inFlight.Add(1)
	defer d.inFlight.Add(-1)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+d.Addr+path, nil)
	if err != nil {
		return d.lost(ctx, err)
	}
	begun := time.Now()
	resp, err := conn.do(req)
	if err != nil {
		return d.lost(ctx, err)
	}
	defer resp.Body.Close()
	return d.read(ctx, resp, begun)
}

func (d *Downloads) read(ctx context.Context, resp *http.Response, begun time.Time) error {
	var got int64
	ended := discard(ctx, resp.Body, -1, func(n int64) { got += n })
	switch {
	case ctx.Err() != nil:
		return errBack
	case rejects(resp.StatusCode):
		d.rejected.Add(1)
	case resp.StatusCode != http.StatusOK:
		d.fail(statusError(resp.StatusCode))
	case ended != io.EOF || got != d.Size:
		d.cut.Add(1)
	default:
		d.serve(got, time.Since(begun))
		return nil
	}
	return errBack
}

func (d *Downloads) lost(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		d.fail(err)
	}
	return errBack
}
