// Package sim is a model of Envoy that knows at every instant how much memory is really in use, and
// loads to put in front of it. Under them stands a Filter: the native guard, the compiled plugin,
// or none.
//
// It is deterministic: one goroutine, a virtual clock, and a seed. Time goes in steps of a
// millisecond, in each of which a worker has that much CPU time to read, pass on and write. What
// limits it are Settings of its own (what Envoy is set to, how fast it is, what its allocator
// keeps), never the guard's configuration: so a guard whose formulas leave something out is found
// out.
//
// It models what docs/envoy-facts.md and the floods of bench/ show to matter: reads of up to a
// buffer limit, after which a full buffer stops reading; HTTP/2 windows that let a client send
// although it is paused; a buffering filter; kernels that take what the other side has not read;
// responses that end unread; connections that linger after a reject; freed memory that the
// allocator keeps; a reading that is late; with a Source, the time until there is a connection to
// the upstream, in which a request is read and not passed on. What it does not: headers of any
// size, TLS records, retries and mirrors, fragmentation.
package sim

import (
	"math/rand/v2"
	"time"
)

// Time is the virtual CLOCK_MONOTONIC.
type Time = time.Duration

// Unknown is the length of a message that announces none.
const Unknown int64 = -1

// Direction of a message.
type Direction uint8

// The two directions of a stream.
const (
	Request Direction = iota
	Response
)

// Filter is what stands in the request path of all workers. Its calls never nest, and what it does
// to the proxy takes effect when its call has returned.
type Filter interface {
	// OpenConnection tells of a new downstream connection. It says whether it is refused: then
	// nothing more is told of it.
	OpenConnection(c *Conn) (refused bool)
	// Data tells of n bytes read from a connection. If it is refused for them they are thrown away,
	// and the filter has it closed.
	Data(c *Conn, n int64) (refused bool)
	// CloseConnection tells that it is gone.
	CloseConnection(c *Conn)
	// Headers of a message with a body of length bytes (Unknown; 0 = none) have come. It says
	// whether they are paused.
	Headers(s *Stream, d Direction, length int64) (pause bool)
	// Body tells of n more bytes of a message, the last of them if end.
	Body(s *Stream, d Direction, n int64, end bool)
	// Done tells that a stream has ended. Exactly once.
	Done(s *Stream)
	// Tick does what is due on a worker, and says when it is due again.
	Tick(worker int) (next Time)
	// Reading answers Proxy.Ask.
	Reading(worker int, m Memory, failed bool)
	// Estimate is the upper bound on memory that the filter knows of; known is false while it has
	// none.
	Estimate() (bytes int64, known bool)
	// Left is what the filter still counts, in words, when all is over; empty = nothing.
	Left() string
}

// Proxy is what a Filter can do.
type Proxy interface {
	Now() Time
	Resume(s *Stream)
	// Answer rejects a stream; one whose response has begun is reset.
	Answer(s *Stream)
	// CloseDownstream closes a connection.
	CloseDownstream(c *Conn)
	// Ask asks for a reading, which Filter.Reading brings.
	Ask(worker int)
	// Hurry makes the worker's next tick come within d.
	Hurry(worker int, d Time)
}

// Memory is a reading of the allocator, bytes.
type Memory struct{ InUse, Allocated int64 }

// Settings of the proxy that is modelled, and of the machine it runs on. They are the truth,
// whatever the guard's configuration says.
type Settings struct {
	Workers          int
	Downstream       int64 // the listener's buffer limit
	Upstream         int64 // the cluster's
	StreamWindow     int64 // of HTTP/2
	ConnectionWindow int64
	WholeRequest     int64 // max_request_bytes of a buffering filter; 0 = there is none
	Linger           Time  // delayed_close_timeout

	Base           int64 // in use without traffic
	StreamCost     int64
	SlotCost       int64 // for each 16 KiB of a body that was held whole, rounded up to a power of two of them
	ConnectionCost int64
	Cache          int64   // of what is freed, so much stays in use in the allocator's caches
	CacheShare     float64 // but no more than this share of the most that ever was allocated; 0 = no such bound

	Cores          float64 // CPU that workers share, with clients and upstream
	PerRequest     Time    // CPU of a request and its response, without their bytes
	PerEvent       Time    // CPU of a read or write
	BytesPerMs     int64   // what a worker reads or writes in a millisecond
	PeerBytesPerMs int64   // what clients and upstream write or read in a millisecond of those cores; 0 = on others
	FreshPerMs     int64   // of memory that Envoy, or the kernel for a socket, uses for the first time; 0 = as any other
	Mapped         int64   // soft_memory_limit_bytes: free memory above it goes back to the kernel

	KernelUp   int64 // what the kernel takes for an upstream that does not read
	KernelDown int64 // and for a client that does not

	// ReadingTime is how long the n-th reading takes; its figure is of a moment within. Negative:
	// it fails.
	ReadingTime func(n int, random *rand.Rand) Time
	// NoNetworkFilter leaves connections uncounted, and what a paused client sends unseen.
	NoNetworkFilter bool
}

// Example is how examples/envoy.yaml sets Envoy, on a machine like that of the floods of bench/:
// two workers.
func Example() Settings {
	return Settings{
		Workers: 2, Downstream: 64 << 10, Upstream: 64 << 10, StreamWindow: 64 << 10, ConnectionWindow: 16 << 20,
		WholeRequest: 16 << 20, Linger: 100 * time.Millisecond,
		Base: 11 << 20, StreamCost: 26 << 10, SlotCost: 640, ConnectionCost: 7 << 10, Cache: 16 << 20, CacheShare: .13,
		// Envoy takes 1.0 ms for a MiB of an upload while memory is warm, and 1.6 to 2.4 in a first
		// burst. The rest is laid to memory that is fresh, in Envoy and in the kernel alike: 0.5 to
		// 0.7 ms a MiB of either, of which page faults are 0.45; the kernel's part was not measured
		// by itself. Client and upstream take 0.45 ms a MiB each. An upstream that does not read
		// leaves 4 MiB in the sender's buffer (tcp_wmem) and 124 KiB in its own. Uploads that wait
		// hold 640 bytes more for each 16 KiB, to a power of two.
		Cores: 2, PerRequest: 100 * time.Microsecond, PerEvent: 10 * time.Microsecond, BytesPerMs: 2300 << 10,
		PeerBytesPerMs: 2 << 20, FreshPerMs: 1700 << 10, Mapped: 150 << 20,
		KernelUp: 4<<20 + 124<<10, KernelDown: 128 << 10,
		ReadingTime: func(_ int, random *rand.Rand) Time {
			return time.Duration(200+random.IntN(2800)) * time.Microsecond
		},
	}
}

// Scaled is s on cores that are so many times as fast.
func (s Settings) Scaled(speed float64) Settings {
	s.PerRequest, s.PerEvent = Time(float64(s.PerRequest)/speed), Time(float64(s.PerEvent)/speed)
	for _, rate := range []*int64{&s.BytesPerMs, &s.PeerBytesPerMs, &s.FreshPerMs} {
		*rate = int64(float64(*rate) * speed)
	}
	return s
}

// Defaults is Envoy as most people have it: 1 MiB buffers, 16 MiB windows, 1 s linger.
func Defaults() Settings {
	s := Example()
	s.Downstream, s.Upstream, s.StreamWindow, s.ConnectionWindow = 1<<20, 1<<20, 16<<20, 24<<20
	s.Linger = time.Second
	s.KernelDown = 2 << 20
	return s
}
