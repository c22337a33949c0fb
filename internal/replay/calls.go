package replay

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/recording"
	"github.com/highwater-envoy/highwater/internal/sim"
)

// A recording says what came of a client, its upstream and Envoy together. What each of them did is
// taken from that as follows; docs/reference/replay.md tells it to those who read a result.
const (
	// short is what is not told from "at once": Envoy logs milliseconds, and a busy one is late by
	// some.
	short = 20 * time.Millisecond
	// A response without a length that came slower is one that its upstream streams, such as
	// events; one that came faster is a download of a client that reads no faster.
	streamed = 64 << 10 // bytes a second
	// followsWithin: on HTTP/2 a request that begins so soon after another on its connection has
	// ended is the next of the same client.
	followsWithin = 50 * time.Millisecond
)

// shaper makes calls of what was recorded.
type shaper struct {
	sim.Settings
	busy *busy
}

func (s *shaper) call(q *recording.Request) sim.Call {
	c := sim.Call{Body: q.Body, Announce: q.Announced}
	local := q.Flags&recording.Local != 0
	broken := q.Flags&recording.Broken != 0
	switch {
	case q.Announced >= 0 && !broken:
		c.Body = q.Announced // also where Envoy answered before it had come
	case q.Announced < 0 && q.Body == 0:
		c.Announce = 0
	}
	if rate, bound := s.sending(q); bound {
		c.SendRate = rate
	}
	received := max(q.Received, 0)
	taken := time.Duration(0)
	if q.Forwarded >= 0 && q.Forwarded-received > short && c.Body > 0 {
		// Envoy had it all, and could not yet pass it on: the upstream did not read.
		beyond := c.Body - s.KernelUp
		if beyond <= 0 {
			beyond = c.Body
		}
		c.TakeRate = perSecond(beyond, q.Forwarded-received)
		taken = time.Duration(float64(c.Body) / float64(c.TakeRate) * float64(time.Second))
	}
	if q.Answered >= 0 {
		c.Think = max(q.Answered-received-taken, 0)
	}
	if broken {
		c.HangUp = max(q.Duration, time.Millisecond)
	}
	if local {
		c.Response = 200
		return c
	}
	s.response(&c, q)
	return c
}

// response is how the response came, and went.
func (s *shaper) response(c *sim.Call, q *recording.Request) {
	broken := q.Flags&recording.Broken != 0
	c.Response, c.Chunked = q.Response, q.Length < 0
	if q.Length > 0 && (broken || q.Response == q.Length) {
		c.Response = q.Length
	}
	lasts := q.Sending
	if lasts < 0 {
		lasts = q.Duration - max(q.Answered, 0)
	}
	if lasts <= short || q.Response == 0 {
		c.Idle = c.Chunked && broken
		return
	}
	if c.Chunked && perSecond(q.Response, lasts) < streamed {
		c.GiveRate, c.Idle = perSecond(q.Response, lasts), broken
		return
	}
	// The client reads no faster. What lay in Envoy and in the kernel at the end it had not read.
	read := max(q.Response-s.Downstream-s.KernelDown, q.Response/16)
	c.ReadRate, c.Idle = perSecond(read, lasts), c.Chunked && broken
}

func perSecond(bytes int64, in time.Duration) int64 {
	return max(int64(float64(bytes)/in.Seconds()), 1)
}

// sending is how fast the client sends at most; there is no bound where it was Envoy that was slow.
func (s *shaper) sending(q *recording.Request) (rate int64, bound bool) {
	if q.Received <= short || q.Body == 0 {
		return 0, false
	}
	if s.busy.during(q.Start, q.Start+q.Received) {
		return 0, false
	}
	return perSecond(q.Body, q.Received), true
}

// busy knows when Envoy moved so much that its clients waited for it, and not it for them: more
// than half of what the model's machine can move.
type busy struct {
	step  time.Duration
	bytes []float64 // of requests that came in each step
	most  float64   // a step
}

// mostSteps is how many steps are kept: where a recording is longer they are.
const mostSteps = 1 << 20

// busyOf goes through a recording.
func busyOf(r *recording.Recording, s sim.Settings) (*busy, error) {
	b := &busy{step: 100 * time.Millisecond}
	for r.Span/b.step >= mostSteps {
		b.step *= 2
	}
	b.bytes = make([]float64, r.Span/b.step+1)
	// What a byte of an upload costs: to read and to write it, and its client and its upstream.
	perByte := 2/float64(s.BytesPerMs) + 1/float64(max(s.FreshPerMs, 1)) + 2/float64(max(s.PeerBytesPerMs, 1))
	b.most = s.Cores / perByte * float64(b.step) / float64(time.Millisecond) / 2
	return b, r.Each(func(q *recording.Request) bool {
		if q.Body > 0 && q.Received >= 0 {
			b.add(q.Start, q.Start+q.Received, float64(q.Body))
		}
		return true
	})
}

// add spreads bytes over the steps of a time.
func (b *busy) add(from, to time.Duration, bytes float64) {
	first, last := b.at(from), b.at(to)
	for i := first; i <= last; i++ {
		b.bytes[i] += bytes / float64(last-first+1)
	}
}

func (b *busy) at(t time.Duration) int { return min(max(int(t/b.step), 0), len(b.bytes)-1) }

// during says whether Envoy was busy for half of a time.
func (b *busy) during(from, to time.Duration) bool {
	first, last := b.at(from), b.at(to)
	n := 0
	for i := first; i <= last; i++ {
		if b.bytes[i] > b.most {
			n++
		}
	}
	return 2*n > last-first
}
