// Package worst computes the most that Envoy can hold for what its configuration allows: of one
// request, one connection, one listener and one cluster. It is arithmetic alone: nothing is read
// and nothing measured here. All sizes are bytes; a sum that is larger than any memory, or that
// nothing bounds, is Unbounded.
//
// The model is that of Envoy's flow control. A buffer is filled up to its limit before whoever
// fills it is told to stop, and each hop has its own:
//
//	client -> [codec: D or W] -> [filters: D or W, or whole bodies] -> upstream
//	client <- [codec: D or W] <- [upstream connection: U] <- upstream
//
// D is the listener's per_connection_buffer_limit_bytes, W the HTTP/2 stream window, C the HTTP/2
// connection window, U what one response can hold of its cluster. Sources: Envoy's "flow control"
// document (source/docs/flow_control.md), and measurements, in docs/envoy-facts.md.
package worst

import (
	"math"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// Unbounded is more than any memory.
const Unbounded = unit.Bytes(math.MaxInt64)

// NoLimit is how many connections, streams or requests are as good as none: 1<<31 - 1 is Envoy's
// own word for it.
const NoLimit = 1<<31 - 1

// Costs that are measured (docs/reference/configuration.md, costs).
const (
	Stream        = 30 * unit.KiB // a request beside its bytes
	TCP           = 8 * unit.KiB  // a connection
	TLSConnection = 13 * unit.KiB // a connection with TLS
)

// What the kernel keeps for a connection at most, unless the listener sets it: the third figure of
// net.ipv4.tcp_wmem and tcp_rmem as Linux has them on machines with 4 GiB and more
// (Documentation/networking/ip-sysctl.rst). No heap figure shows it, and a container pays for it.
const (
	KernelSend    = 4 * unit.MiB
	KernelReceive = 6 * unit.MiB
)

// HeaderFactor is how many times their size headers hold: 56 kB took 167 (docs/envoy-facts.md).
const HeaderFactor = 3

// What Envoy's base is made of: 4,000 clusters of one endpoint hold 220 MiB without traffic, 8,000
// hold 434 (docs/envoy-facts.md), of which Envoy itself has some 10.
const (
	Process    = 10 * unit.MiB
	PerCluster = 54 * unit.KiB
	Plugin     = 30 * unit.MiB // both of Highwater's filters, with two workers (docs/benchmarks.md)
)

// Sum adds, and stays Unbounded.
func Sum(all ...unit.Bytes) (sum unit.Bytes) {
	for _, b := range all {
		if b > Unbounded-sum {
			return Unbounded
		}
		sum += b
	}
	return sum
}

// Times multiplies, and stays Unbounded.
func Times(n int64, b unit.Bytes) unit.Bytes {
	switch {
	case n <= 0 || b <= 0:
		return 0
	case b > Unbounded/unit.Bytes(n):
		return Unbounded
	}
	return unit.Bytes(n) * b
}

// Connection is what one client's connection is set to.
type Connection struct {
	Downstream unit.Bytes // D: the listener's per_connection_buffer_limit_bytes
	Upstream   unit.Bytes // U: the largest that a response can hold of its cluster; 0 = there is none
	HTTP1      bool       // it may speak HTTP/1
	HTTP2      bool       // it may speak HTTP/2
	TLS        bool
	Window     unit.Bytes // W: initial_stream_window_size
	Connection unit.Bytes // C: initial_connection_window_size
	Streams    int64      // max_concurrent_streams
	SendBuffer unit.Bytes // SO_SNDBUF of the listener; 0 = not set
	Held       Held
}

// Held is what filters and routes hold of one request beside the buffers.
type Held struct {
	Headers unit.Bytes // max_request_headers_kb
	Whole   unit.Bytes // of its body: the most that a filter in the chain holds until it is complete
	Copies  unit.Bytes // of its body, kept for retries and mirrors, all of them
	Out     unit.Bytes // what a decompressor makes of what one read brings
	State   unit.Bytes // of its compressors
}

// Request is what a request can hold: 2 × D on HTTP/1, and 2 × max(D, W) on HTTP/2: once in the
// codec, once between the filters and the upstream. One paused upload held 26 to 34 MB with W = 16
// MiB, and 1.4 to 1.8 with D = 1 MiB on HTTP/1.
func (c *Connection) Request(http2 bool) unit.Bytes {
	if http2 {
		return 2 * max(c.Downstream, c.Window)
	}
	return 2 * c.Downstream
}

// Response is what a response can hold: U + D, and on HTTP/2 U + max(D, W). One stalled download
// held 17 to 18 MB with W = 16 MiB.
func (c *Connection) Response(http2 bool) unit.Bytes {
	if http2 {
		return Sum(c.Upstream, max(c.Downstream, c.Window))
	}
	return Sum(c.Upstream, c.Downstream)
}

// Beside is what one request holds beside its buffers.
func (h *Held) Beside() unit.Bytes {
	return Sum(Stream, Times(HeaderFactor, h.Headers), h.Whole, h.Copies, h.Out, h.State)
}

// OverHTTP1 is what a connection can hold that speaks HTTP/1: one request and one response at a
// time.
func (c *Connection) OverHTTP1() unit.Bytes {
	return Sum(c.idle(), c.Request(false), c.Response(false), c.Held.Beside())
}

// OverHTTP2 is what a connection can hold that speaks HTTP/2. All requests together bring no more
// than the connection's window before Envoy takes them: twice C, as for one request. A response's
// window is the client's to give, so that each stream may hold its own.
func (c *Connection) OverHTTP2() unit.Bytes {
	if c.Streams >= NoLimit {
		return Unbounded
	}
	requests := min(Times(c.Streams, c.Request(true)), 2*max(c.Downstream, c.Connection))
	return Sum(c.idle(), requests, Times(c.Streams, c.Response(true)), Times(c.Streams, c.Held.Beside()))
}

func (c *Connection) idle() unit.Bytes {
	if c.TLS {
		return TLSConnection
	}
	return TCP
}

// OverTCP is what a raw connection can hold: in each direction the buffers of both ends.
func (c *Connection) OverTCP() unit.Bytes {
	return Sum(c.idle(), 2*Sum(c.Downstream, c.Upstream))
}

// Most is what the worst of the protocols makes of it.
func (c *Connection) Most() (most unit.Bytes) {
	if c.HTTP1 {
		most = c.OverHTTP1()
	}
	if c.HTTP2 {
		most = max(most, c.OverHTTP2())
	}
	if !c.HTTP1 && !c.HTTP2 {
		most = c.OverTCP()
	}
	return most
}

// Kernel is what the kernel can hold for it, outside of Envoy's heap. It doubles what SO_SNDBUF is
// set to (socket(7)).
func (c *Connection) Kernel() unit.Bytes {
	if c.SendBuffer > 0 {
		return 2*c.SendBuffer + KernelReceive
	}
	return KernelSend + KernelReceive
}

// Cluster is what a cluster is set to.
type Cluster struct {
	Buffer unit.Bytes // per_connection_buffer_limit_bytes
	HTTP2  bool
	Window unit.Bytes // its initial_stream_window_size
	Most   int64      // connections of HTTP/1 and TCP, requests of HTTP/2, as the circuit breaker bounds them
}

// Response is U: what one response can hold before it is passed on. Over HTTP/2 the upstream may
// send a window ahead whatever the buffer's limit.
func (c *Cluster) Response() unit.Bytes {
	if c.HTTP2 {
		return max(c.Buffer, c.Window)
	}
	return c.Buffer
}

// All is what all requests to it can hold on its side: what is being sent to it (a buffer) and what
// has come of the response.
func (c *Cluster) All() unit.Bytes { return Times(c.Most, Sum(c.Buffer, c.Response())) }

// Base is what Envoy holds without traffic, roughly: it is a straight line through two
// measurements.
func Base(clusters int, plugin bool) unit.Bytes {
	b := Process + Times(int64(clusters), PerCluster)
	if plugin {
		b += Plugin
	}
	return b
}

// LeastLimit is the lowest budget.limit that can be held over a base: 10/9 of it, because Highwater
// calls a limit impossible of which the base is more than 9/10.
func LeastLimit(base unit.Bytes) unit.Bytes { return base/9*10 + base%9*10/9 }

// Gzip is the state of a gzip compressor: (1 << (window_bits+2)) + (1 << (memory_level+9)) (zlib's
// zconf.h), and the chunk that it writes into. Measured with memory level 9 and 15 bits: 467 KiB.
func Gzip(windowBits, memoryLevel, chunk int64) unit.Bytes {
	return power(windowBits+2) + power(memoryLevel+9) + unit.Bytes(chunk)
}

// Brotli is the ring buffer of a brotli compressor, which is the most of it: 1 << (1 + the larger
// of window and block bits); below quality 4 a block has 14 bits (brotli's encode.c and quality.h).
func Brotli(quality, windowBits, blockBits, chunk int64) unit.Bytes {
	if quality < 4 {
		blockBits = 14
	}
	return power(1+max(windowBits, blockBits)) + unit.Bytes(chunk)
}

// power is 2 to the n, of figures that nobody has checked.
func power(n int64) unit.Bytes { return 1 << min(max(n, 0), 40) }
