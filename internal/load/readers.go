package load

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"
)

// SlowReaders are clients that ask for more than they read: each takes the headers, then Rate bytes
// a second, in one gulp a second. What Envoy has for them and may not send yet, it holds.
//
// A reader that still has its answer when the load ends counts as served, as does one that reads
// all of it (it then asks again). One that is rejected or cut comes back after Retry (but see
// Leave). A response that breaks off is noticed within a second, whatever is left to read of it.
type SlowReaders struct {
	Addr          string
	Path          string // "/bytes" if empty; n and length are added
	Tenant        string // the value of their header x-tenant; none if empty
	Count         int
	Size          int64 // bytes of each response
	Length        bool  // the response has a Content-Length
	Protocol      Protocol
	PerConnection int           // HTTP/2: streams per connection; 0 = 100
	Rate          int64         // bytes per second; 16 KiB if 0
	Fast          int64         // what each reads as fast as it comes before it slows down
	Leave         bool          // one that is cut does not come back
	Retry         time.Duration // 20 ms if 0

	tally
}

// readerWindow is both the kernel's receive buffer of an HTTP/1 reader and the stream window of an
// HTTP/2 one: what it may be sent ahead of its reading.
const readerWindow = 64 << 10

// Run implements Load.
func (r *SlowReaders) Run(ctx context.Context) {
	r.begin()
	// The end of the load is looked into before the connections go: see held.
	hard, cancel := draining(ctx, 2*time.Second)
	defer cancel()

	path := cmp.Or(r.Path, "/bytes")
	path = withSize(path, r.Size)
	if !r.Length {
		path += "&length=0"
	}
	once := func(int) error { return r.http1(ctx, hard, path) }
	if r.Protocol == HTTP2 {
		perConn := cmp.Or(r.PerConnection, 100)
		conns := http2Pool(r.Addr, r.Count, perConn, readerWindow, 0)
		defer func() {
			for _, c := range conns {
				c.close()
			}
		}()
		once = func(i int) error { return r.http2(ctx, hard, conns[i%len(conns)], path) }
	}

	var clients sync.WaitGroup
	for i := range r.Count {
		clients.Go(func() {
			for ctx.Err() == nil {
				err := once(i)
				if r.Leave && errors.Is(err, errCut) || err != nil && !Sleep(ctx, cmp.Or(r.Retry, 20*time.Millisecond)) {
					return
				}
			}
		})
	}
	clients.Wait()
}

func (r *SlowReaders) http1(ctx, hard context.Context, path string) error {
	r.started.Add(1)
	r.inFlight.Add(1)
	defer r.inFlight.Add(-1)
	begun := time.Now()

	r.waiting.Add(1)
	conn, err := dialHTTP1(ctx, r.Addr, readerWindow/2) // the kernel doubles it
	if err != nil {
		r.waiting.Add(-1)
		return r.lost(ctx, err)
	}
	defer conn.close()
	conn.tenant = r.Tenant
	headers := conn.interruptible(ctx)
	resp, err := conn.get(path)
	r.waiting.Add(-1)
	headers()
	if err != nil {
		return r.lost(ctx, err)
	}
	defer conn.interruptible(hard)()
	return r.read(ctx, resp, time.Since(begun), func(left int64) bool {
		// Behind a kernel buffer's worth of unread bytes a FIN may be the end of a response that
		// came whole.
		return left > 2*readerWindow && hungUp(conn.conn)
	})
}

func (r *SlowReaders) http2(ctx, hard context.Context, conn *http2Conn, path string) error {
	r.started.Add(1)
	r.inFlight.Add(1)
	defer r.inFlight.Add(-1)
	begun := time.Now()

	hard, cancel := context.WithCancel(hard) // resets the stream when the reader is done with it
	defer cancel()
	req, err := http.NewRequestWithContext(hard, http.MethodGet, "http://"+r.Addr+path, nil)
	if err != nil {
		return r.lost(ctx, err)
	}
	setTenant(req, r.Tenant)
	r.waiting.Add(1)
	headers := context.AfterFunc(ctx, cancel)
	resp, err := conn.do(req)
	r.waiting.Add(-1)
	headers()
	if err != nil {
		return r.lost(ctx, err)
	}
	defer resp.Body.Close()
	broken := func(int64) bool {
		if ctx.Err() == nil {
			return false
		}
		// A reset is seen only behind what the stream's window let through before it: read that
		// much.
		stop := time.AfterFunc(time.Second, cancel)
		defer stop.Stop()
		err := discard(hard, resp.Body, readerWindow+16<<10, nil)
		return err != nil && !errors.Is(err, io.EOF) && hard.Err() == nil
	}
	return r.read(ctx, resp, time.Since(begun), broken)
}

// errCut says that what a reader had begun to read broke off.
var errCut = errors.New("cut")

// read reads slowly. It looks every second, and at the end of the load, whether the rest is still
// to come.
func (r *SlowReaders) read(ctx context.Context, resp *http.Response, latency time.Duration, broken func(left int64) bool) error {
	if resp.StatusCode != http.StatusOK {
		if rejects(resp.StatusCode) {
			r.rejected.Add(1)
		} else {
			r.fail(statusError(resp.StatusCode))
		}
		return errBack
	}
	rate, left := cmp.Or(r.Rate, 16<<10), r.Size
	seen := func(n int64) { left -= n; r.bytes.Add(n) }
	next := max(rate, r.Fast)
	for {
		// What stalls here stalls for lack of bytes, which no reader can be blamed for, until the
		// load ends.
		err := discard(context.Background(), resp.Body, next, seen)
		next = rate
		switch {
		case errors.Is(err, io.EOF) && left == 0:
			r.serve(0, latency)
			return nil
		case err != nil && ctx.Err() != nil:
			r.serve(0, latency)
			return nil
		case err != nil:
			r.cut.Add(1)
			return errCut
		}
		going := Sleep(ctx, time.Second)
		if broken(left) {
			r.cut.Add(1)
			return errCut
		}
		if !going {
			r.serve(0, latency)
			return nil
		}
	}
}

func (r *SlowReaders) lost(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		r.fail(err)
	}
	return errBack
}
