// Package load is what the demo, the floods and the end-to-end tests throw at an Envoy: uploads,
// slow readers, small requests, downloads and idle streams, and the upstream that answers them.
//
// Every load is a struct with the fields that say what to do, a Run that does it until its context
// is done, and a Snapshot that may be taken at any time. A load keeps no message in memory: bodies
// are written from one shared buffer of zeros and read into a scratch buffer, so that a thousand
// uploads of 16 MiB cost the generator its sockets and little else. Everything a load starts has
// ended when Run returns.
//
// What a client counts follows what its user would say. Served: answered 200, whole. Rejected: 503
// or 429, whether or not the request had been written to its end. Cut: answered 200, but the body
// broke off. Closed: the connection went away under the request before any answer. Errors:
// everything else (other statuses, stream resets, refused connections, timeouts). Nothing that is
// still under way when the load is told to stop counts as any of these.
package load

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"time"
)

// Protocol is what a client speaks to Envoy.
type Protocol string

// HTTP1 uses one connection per client, HTTP2 shares connections (see each load).
const (
	HTTP1 Protocol = "h1"
	HTTP2 Protocol = "h2"
)

// Load is what runs: each of the types of this package that make requests.
type Load interface {
	// Run makes requests until ctx is done, gives those under way the time that the load's Drain
	// allows, and returns when all its connections and goroutines are gone.
	Run(ctx context.Context)
	// Snapshot says what came of it so far.
	Snapshot() Snapshot
}

// Snapshot is what came of a load so far.
type Snapshot struct {
	Started  int64 // requests begun
	Served   int64 // answered 200 and whole
	Rejected int64 // answered 503 or 429
	Cut      int64 // answered 200, then broken off
	Closed   int64 // connection closed before an answer
	Errors   int64 // anything else
	InFlight int64 // under way now
	Waiting  int64 // of those, not answered yet

	Bytes   int64         // body bytes of the served (of readers and downloads: all that were read)
	Elapsed time.Duration // from the start to the last answer that was served

	P50, P99, Max time.Duration // time to the answer, of the served

	// Clients that came back when they were told to (Uploads.Obey): Kept were served then and
	// Broken were not, after Told on average; ToldLonger are those that had been told the longest
	// delay, which promises nothing.
	Kept, Broken, ToldLonger int64
	Told                     time.Duration

	// Problem is the first thing that was counted under Errors, for people.
	Problem string
}

// Answered is the share of the finished requests that were served, 1 when none has finished.
func (s Snapshot) Answered() float64 {
	finished := s.Served + s.Rejected + s.Cut + s.Closed + s.Errors
	if finished == 0 {
		return 1
	}
	return float64(s.Served) / float64(finished)
}

// Truth is the share of those who came back when they were told to that were served then, 1 when
// none has.
func (s Snapshot) Truth() float64 {
	if s.Kept+s.Broken == 0 {
		return 1
	}
	return float64(s.Kept) / float64(s.Kept+s.Broken)
}

// Goodput is the bytes per second of those that were served, up to the last of them.
func (s Snapshot) Goodput() float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return float64(s.Bytes) / s.Elapsed.Seconds()
}

// tally is what a load counts with. All of it may be used from any goroutine.
type tally struct {
	started, served, rejected, cut, closed, errors atomic.Int64
	inFlight, waiting, bytes                       atomic.Int64
	kept, broken, toldLonger, told                 atomic.Int64 // told: nanoseconds, all together
	begun, last                                    atomic.Int64 // Unix nanoseconds
	latency                                        histogram
	problem                                        atomic.Pointer[string]
}

func (t *tally) begin() { t.begun.CompareAndSwap(0, time.Now().UnixNano()) }

func (t *tally) serve(bytes int64, latency time.Duration) {
	t.bytes.Add(bytes)
	t.latency.add(latency)
	t.served.Add(1)
	t.last.Store(time.Now().UnixNano())
}

// fail counts a request that got no usable answer.
func (t *tally) fail(err error) {
	if isClosed(err) {
		t.closed.Add(1)
		return
	}
	t.errors.Add(1)
	if t.problem.Load() == nil {
		text := err.Error()
		t.problem.CompareAndSwap(nil, &text)
	}
}

// Snapshot implements Load.
func (t *tally) Snapshot() Snapshot {
	s := Snapshot{
		Started: t.started.Load(), Served: t.served.Load(), Rejected: t.rejected.Load(), Cut: t.cut.Load(),
		Closed: t.closed.Load(), Errors: t.errors.Load(), InFlight: t.inFlight.Load(), Waiting: t.waiting.Load(),
		Bytes: t.bytes.Load(), Kept: t.kept.Load(), Broken: t.broken.Load(), ToldLonger: t.toldLonger.Load(),
	}
	if n := s.Kept + s.Broken; n > 0 {
		s.Told = time.Duration(t.told.Load() / n)
	}
	s.P50, s.P99, s.Max = t.latency.quantile(0.5), t.latency.quantile(0.99), t.latency.max()
	if begun, last := t.begun.Load(), t.last.Load(); begun != 0 && last > begun {
		s.Elapsed = time.Duration(last - begun)
	}
	if p := t.problem.Load(); p != nil {
		s.Problem = *p
	}
	return s
}

// isClosed says whether err is the peer closing the connection, as opposed to anything it did on
// it.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, errConnectionLost)
}

func rejects(status int) bool {
	return status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests
}

// draining returns a context that is done when ctx has been done for grace, and what releases it.
func draining(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	hard, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		if grace <= 0 {
			cancel()
			return
		}
		t := time.AfterFunc(grace, cancel)
		context.AfterFunc(hard, func() { t.Stop() })
	})
	return hard, func() { stop(); cancel() }
}

// Sleep waits for d, and says whether it could do so before ctx was done.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
