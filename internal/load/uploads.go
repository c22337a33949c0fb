package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Uploads are clients that upload, again and again: who is served starts his next at once, who is
// rejected (or finds his connection closed) comes back after Retry. Over HTTP/2 all share one
// connection, or PerConnection each.
type Uploads struct {
	Addr          string
	Path          string // with its query; "/upload?delay=2s" if empty
	Tenant        string // the value of their header x-tenant; none if empty
	Count         int    // clients
	Size          int64  // bytes each
	Largest       int64  // if not 0, each has a size of its own between Size and Largest
	Seed          uint64 // of those sizes: the n-th upload of a client is as large in every run of the same seed
	Chunked       bool   // no Content-Length
	Protocol      Protocol
	PerConnection int           // HTTP/2: streams per connection; 0 = all
	Retry         time.Duration // 20 ms if 0
	Obey          time.Duration // if not 0: who is told when to come back does so then; those told less than this are counted
	Drain         time.Duration // how long those under way at the end may take to finish; 0 = cut off at once
	Once          bool          // each client uploads once, whatever it is told: what comes does not depend on what becomes of it

	tally
}

// Run implements Load.
func (u *Uploads) Run(ctx context.Context) {
	u.begin()
	hard, cancel := draining(ctx, u.Drain)
	defer cancel()
	path, retry := cmp.Or(u.Path, "/upload?delay=2s"), cmp.Or(u.Retry, 20*time.Millisecond)

	var clients sync.WaitGroup
	client := func(i int, once func(ctx context.Context, size int64) error) {
		clients.Go(func() {
			sizes := u.Sizes(i)
			size := sizes()
			var wait time.Duration // that it was told, and has waited
			for ctx.Err() == nil {
				err := once(hard, size)
				if hard.Err() == nil {
					u.came(wait, err == nil)
				}
				if u.Once {
					return
				}
				if wait = 0; err == nil {
					size = sizes()
					continue
				}
				if told := backAfter(0); errors.As(err, &told) && u.Obey > 0 {
					wait = time.Duration(told)
				}
				if !Sleep(ctx, cmp.Or(wait, retry)) {
					return
				}
			}
		})
	}
	if u.Protocol == HTTP2 {
		conns := http2Pool(u.Addr, u.Count, u.PerConnection, 0, 0)
		for i := range u.Count {
			client(i, func(ctx context.Context, size int64) error { return u.http2(ctx, conns[i%len(conns)], path, size) })
		}
		clients.Wait()
		for _, c := range conns {
			c.close()
		}
		return
	}
	conns := make([]*http1, u.Count) // each belongs to its client alone
	for i := range u.Count {
		client(i, func(ctx context.Context, size int64) error { return u.http1(ctx, &conns[i], path, size) })
	}
	clients.Wait()
	for _, c := range conns {
		c.close()
	}
}

// Sizes is what client i uploads, one after the other. Who is rejected comes back with the same, or
// the large ones would give way to small ones wherever large ones are rejected more. Each power of
// two has the same share of them, as in real traffic: many small ones and a few large ones.
func (u *Uploads) Sizes(i int) func() int64 {
	if u.Largest <= u.Size {
		return func() int64 { return u.Size }
	}
	random := rand.New(rand.NewPCG(u.Seed, uint64(i)))
	span := math.Log(float64(u.Largest) / float64(u.Size))
	return func() int64 {
		return min(u.Largest, int64(float64(u.Size)*math.Exp(span*random.Float64())))
	}
}

// errBack says that the client should wait before he comes again.
var errBack = errors.New("come back later")

// backAfter is the same where he was told how long.
type backAfter time.Duration

func (backAfter) Error() string { return errBack.Error() }

// came counts a client that has come back after so long, as he was told; 0 = he was not.
func (u *Uploads) came(told time.Duration, served bool) {
	switch {
	case told == 0:
	case told >= u.Obey:
		u.toldLonger.Add(1)
	case served:
		u.kept.Add(1)
		u.told.Add(int64(told))
	default:
		u.broken.Add(1)
		u.told.Add(int64(told))
	}
}

func (u *Uploads) http1(ctx context.Context, slot **http1, path string, size int64) error {
	u.started.Add(1)
	u.inFlight.Add(1)
	u.waiting.Add(1)
	defer u.inFlight.Add(-1)
	defer u.waiting.Add(-1)

	begun := time.Now()
	conn := *slot
	*slot = nil
	if conn == nil {
		var err error
		if conn, err = dialHTTP1(ctx, u.Addr, 0); err != nil {
			return u.lost(ctx, err)
		}
		conn.tenant = u.Tenant
	}
	release := conn.interruptible(ctx)
	resp, whole, err := conn.post(path, size, u.Chunked)
	if err != nil {
		release()
		conn.close()
		return u.lost(ctx, err)
	}
	latency := time.Since(begun)
	ended := discard(ctx, resp.Body, -1, nil)
	if release() && whole && ended == io.EOF && !resp.Close {
		*slot = conn
	} else {
		conn.close()
	}
	return u.judge(resp, size, latency)
}

func (u *Uploads) http2(ctx context.Context, conn *http2Conn, path string, size int64) error {
	u.started.Add(1)
	u.inFlight.Add(1)
	u.waiting.Add(1)
	defer u.inFlight.Add(-1)
	defer u.waiting.Add(-1)

	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+u.Addr+path, &zeroReader{left: size})
	if err != nil {
		return u.lost(ctx, err)
	}
	if !u.Chunked {
		req.ContentLength = size
	}
	setTenant(req, u.Tenant)
	begun := time.Now()
	resp, err := conn.do(req)
	if err != nil {
		return u.lost(ctx, err)
	}
	latency := time.Since(begun)
	_ = discard(ctx, resp.Body, 1<<20, nil)
	_ = resp.Body.Close()
	return u.judge(resp, size, latency)
}

func (u *Uploads) lost(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		u.fail(err)
	}
	return errBack
}

func (u *Uploads) judge(resp *http.Response, size int64, latency time.Duration) error {
	switch status := resp.StatusCode; {
	case status == http.StatusOK:
		u.serve(size, latency)
		return nil
	case rejects(status):
		u.rejected.Add(1)
		if told, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && told > 0 {
			return backAfter(time.Duration(told) * time.Second)
		}
	default:
		u.fail(statusError(status))
	}
	return errBack
}

func statusError(status int) error {
	return fmt.Errorf("answered %d %s", status, http.StatusText(status))
}
