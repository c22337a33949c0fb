package load

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

// Hostile are clients that mean harm. Each makes one attempt after the other, on a connection of
// its own, every second client over HTTP/2; the kinds that only HTTP/2 knows are all over it. No
// attempt ends with a goodbye: connections are reset.
//
// Served are attempts that were answered 200 or run their course untroubled, as far as that can be
// told; Rejected are those answered 4xx or 5xx; the rest is as for any load.
type Hostile struct {
	Addr  string // of the loopback interface
	Kind  Kind
	Count int    // clients, 2,000 at most
	Seed  uint64 // of what they choose at random

	tally
}

// Kind is a way to do harm.
type Kind string

// The kinds of hostile clients.
const (
	LengthTooLong  Kind = "length-too-long"
	LengthTooShort Kind = "length-too-short"
	LengthMissing  Kind = "length-missing"
	Announce       Kind = "announce"
	ByteChunks     Kind = "byte-chunks"
	EndlessChunks  Kind = "endless-chunks"
	HugeHeaders    Kind = "huge-headers"
	Resets         Kind = "resets"
	ShutWindows    Kind = "shut-windows"
	ByteReaders    Kind = "byte-readers"
	Trickle        Kind = "trickle"
	RapidReset     Kind = "rapid-reset"
)

// Kinds are all kinds.
func Kinds() []Kind {
	var all []Kind
	for _, w := range ways {
		all = append(all, w.kind)
	}
	return all
}

// About says what clients of the kind do.
func (k Kind) About() string { return k.way().about }

// Crowd is how many of them make a flood.
func (k Kind) Crowd() int { return k.way().crowd }

// AllHostile are all kinds at once, of each the part of its crowd.
func AllHostile(addr string, part float64, seed uint64) Mix {
	var all Mix
	for _, k := range Kinds() {
		all = append(all, &Hostile{Addr: addr, Kind: k, Count: int(math.Ceil(part * float64(k.Crowd()))), Seed: seed})
	}
	return all
}

func (k Kind) way() way {
	for _, w := range ways {
		if w.kind == k {
			return w
		}
	}
	return way{}
}

// way is how a kind does it: what came of it is the status of an answer, or an error, or neither if
// the client was the one to go.
type way struct {
	kind  Kind
	crowd int // how many of them make a flood
	about string
	http1 func(*attempt) (status int, err error)
	http2 func(*attempt) (status int, err error)
}

var ways = []way{
	{LengthTooLong, 100, "announce 16 MiB, send up to 64 KiB and end", (*attempt).tooLong1, (*attempt).tooLong2},
	{LengthTooShort, 100, "announce 1,000 bytes and send more", (*attempt).tooShort1, (*attempt).tooShort2},
	{LengthMissing, 100, "send 1 MiB and announce nothing (over HTTP/1 not even chunks)", (*attempt).missing1, (*attempt).missing2},
	{Announce, 500, "announce 16 MiB and never send a byte", (*attempt).announce1, (*attempt).announce2},
	{ByteChunks, 16, "upload 256 KiB in chunks, or DATA frames, of one byte", (*attempt).byteChunks1, (*attempt).byteChunks2},
	{EndlessChunks, 32, "upload without an end, as fast as it is taken", (*attempt).endless1, (*attempt).endless2},
	{HugeHeaders, 200, "headers just below Envoy's limit of 60 KiB, above it, too many of them, and never ended", (*attempt).headers1, (*attempt).headers2},
	{Resets, 200, "uploads and downloads of 4 MiB that are reset within half a second", (*attempt).resets1, (*attempt).resets2},
	{ShutWindows, 40, "50 downloads of 16 MiB each over HTTP/2, in windows that never open", nil, (*attempt).shutWindows},
	{ByteReaders, 500, "downloads of 16 MiB that read one byte a second", (*attempt).byteReader1, (*attempt).byteReader2},
	{Trickle, 300, "uploads of 16 MiB that send one byte every 100 ms", (*attempt).trickle1, (*attempt).trickle2},
	{RapidReset, 4, "HTTP/2 streams that are reset as soon as they are opened, thousands a second", nil, (*attempt).rapidReset},
}

const (
	mostHostile = 2000
	// longestHostile is how long they go on, if nobody ends them before.
	longestHostile = 10 * time.Minute
	comeBack       = 100 * time.Millisecond

	announced    = 16 << 20
	slowly       = 100 * time.Millisecond
	soonAfter    = 500 * time.Millisecond
	headerLimit  = 60 << 10 // Envoy's max_request_headers_kb
	headersLimit = 100      // and max_headers_count
)

// attempt is one try of one client.
type attempt struct {
	*tally
	ctx    context.Context
	addr   string
	random *rand.Rand
}

// Run implements Load. What it may not do it does not begin, and says so in Snapshot.Problem.
func (h *Hostile) Run(ctx context.Context) {
	h.begin()
	how := h.Kind.way()
	switch err := onLoopback(h.Addr); {
	case err != nil:
		h.fail(err)
		return
	case how.http2 == nil:
		h.fail(fmt.Errorf("no kind of hostile clients is called %q", h.Kind))
		return
	case h.Count > mostHostile:
		h.fail(fmt.Errorf("%d hostile clients: %d are the most", h.Count, mostHostile))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, longestHostile)
	defer cancel()
	var clients sync.WaitGroup
	for i := range h.Count {
		once := how.http1
		if once == nil || i%2 == 1 {
			once = how.http2
		}
		random := rand.New(rand.NewPCG(h.Seed, uint64(i)))
		clients.Go(func() {
			for ctx.Err() == nil {
				h.once(&attempt{tally: &h.tally, ctx: ctx, addr: h.Addr, random: random}, once)
				if !Sleep(ctx, comeBack) {
					return
				}
			}
		})
	}
	clients.Wait()
}

func (h *Hostile) once(a *attempt, once func(*attempt) (int, error)) {
	h.started.Add(1)
	h.inFlight.Add(1)
	defer h.inFlight.Add(-1)
	begun := time.Now()
	status, err := once(a)
	switch {
	case a.ctx.Err() != nil:
	case err != nil:
		h.fail(err)
	default:
		a.judge(status, time.Since(begun))
	}
}

// judge counts an answer. Any refusal of what is meant as harm is a reject.
func (t *tally) judge(status int, latency time.Duration) {
	switch {
	case status >= http.StatusBadRequest:
		t.rejected.Add(1)
	default:
		t.serve(0, latency)
	}
}

// path is one that Envoy buffers whole in the example, or one that it streams to its upstream.
func (a *attempt) path() string {
	if a.random.IntN(2) == 0 {
		return "/upload"
	}
	return "/hostile/upload"
}

// upTo is a number from 1 to n.
func (a *attempt) upTo(n int) int { return 1 + a.random.IntN(n) }

// abort makes the coming Close a reset.
func abort(conn net.Conn) {
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
}
