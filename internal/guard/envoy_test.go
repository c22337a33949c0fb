package guard

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/decisions"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
)

// envoy is a model of what a proxy holds, driven by a sequence of operations. It holds as much as
// the configured buffers let it, or any part of that: whoever reads slowly, and whoever drains at
// once, are both in it. So the properties that step checks must hold whatever the clients do.
type envoy struct {
	*process
	source  source
	base    int64
	conns   []*link
	streams []*exchange
	linger  []lingering
	reading *inFlight // asked for, not yet answered
	trace   []string  // the last operations, for a failure
	seen    map[string]int
	record  *decisions.Record // nil = nothing is recorded
	counts  [16][metric.NumCounters]uint64
}

// source gives the operations and their arguments; ok is false at its end.
type source func() (n byte, ok bool)

// link is a downstream connection, with what a response that ended left unread in it.
type link struct {
	Connection
	worker int
	http2  bool
	cost   int64
	unread int64
	used   bool // HTTP/1: there is a request on it
	gone   bool
}

// exchange is a request and its response, with what Envoy holds of them.
type exchange struct {
	request
	link     *link
	length   int64 // announced, or budget.Unknown
	sent     int64 // by the client so far
	unread   int64 // sent, but not passed through the filter: it is paused
	held     [2]int64
	response int64 // announced, or budget.Unknown
	headers  bool  // of the response have come
	finished bool  // the request has passed whole
	over     bool  // answered, reset or closing: nothing moves any more
}

type lingering struct {
	link  *link
	until Time
	bytes int64
}

type inFlight struct {
	worker int
	inUse  int64 // when it was asked for
	due    Time
	fails  bool
}

func newEnvoy(t *testing.T, workers int, edit func(*Config), s source) *envoy {
	t.Helper()
	return newEnvoyOn(newProcess(t, workers, edit), s)
}

func newEnvoyOn(p *process, s source) *envoy {
	e := &envoy{process: p, source: s, seen: map[string]int{}}
	// From nearly all to nearly nothing is left to share out.
	e.base = int64(e.guards[0].Config().Budget.Limit.Bytes) / 16 * (2 + e.byte()%14)
	e.settle(e.base)
	return e
}

// random is a seeded source of n operations' bytes.
func random(seed uint64, n int) source {
	rng := rand.New(rand.NewPCG(seed, 10))
	return func() (byte, bool) {
		if n--; n < 0 {
			return 0, false
		}
		return byte(rng.Uint32()), true
	}
}

func (e *envoy) byte() int64 {
	b, _ := e.source()
	return int64(b)
}

// size is up to n, and often at its ends.
func (e *envoy) size(n int64) int64 {
	switch b := e.byte(); {
	case b < 16:
		return min(1, n)
	case b < 64:
		return n
	default:
		return n * b / 256
	}
}

// truth is the memory in use.
func (e *envoy) truth() int64 {
	n := e.base
	for _, c := range e.conns {
		n += c.cost + c.unread
	}
	for _, x := range e.streams {
		n += int64(e.guards[0].Config().Costs.Stream) + x.held[budget.Request] + x.held[budget.Response] + x.unread
	}
	for _, l := range e.linger {
		if !l.link.gone {
			n += l.bytes
		}
	}
	return n
}

func (e *envoy) shared() *budget.Table {
	value, _, err := e.store.Load()
	require.NoError(e.t, err)
	t := &budget.Table{}
	require.NoError(e.t, t.Decode(value))
	return t
}

// run does operations until the source ends, and checks after each. Then all is closed, and nothing
// may be left.
func (e *envoy) run() {
	for {
		op, ok := e.source()
		if !ok {
			break
		}
		e.now += Time(e.byte()) * 20 * time.Microsecond
		name := e.step(op)
		e.note("%v %s", e.now, name)
		e.trace = append(e.trace, name)
		if len(e.trace) > 24 {
			e.trace = e.trace[1:]
		}
		e.check()
	}
	e.finish()
}

func (e *envoy) step(op byte) string {
	switch op % 16 {
	case 0, 1, 2:
		return e.open1()
	case 3, 4:
		return e.each("send", e.send)
	case 5:
		return e.each("end of request", func(x *exchange) {
			if !x.over && !x.Waiting() && x.length == budget.Unknown {
				x.finished = true
				e.guards[x.link.worker].End(e.now, &x.Stream, budget.Request)
			}
		})
	case 6:
		return e.each("response headers", e.respond)
	case 7, 8, 9:
		return e.each("response body", e.serve)
	case 10:
		return e.each("close", func(x *exchange) {
			// Most end in time; some hang up, in whatever phase.
			if x.over || x.Ended(budget.Request) && x.Ended(budget.Response) || e.byte() < 16 {
				e.closeStream(x)
			}
		})
	case 11:
		return e.each("drain", func(x *exchange) {
			for d := range x.held {
				x.held[d] -= e.size(x.held[d])
			}
			x.link.unread -= e.size(x.link.unread)
		})
	case 12:
		if len(e.conns) == 0 || e.byte() >= 16 {
			return "-"
		}
		c := e.conns[int(e.byte())%len(e.conns)]
		e.closeLink(c)
		return "close connection"
	case 13:
		e.now += 5 * ms
		e.answer() // and requests before the next tick
		return "answer"
	default:
		d := 5 * ms
		if op >= 128 {
			d = Time(1+e.byte()%50) * ms
		}
		e.tick(d)
		return fmt.Sprintf("tick %v", d)
	}
}

func (e *envoy) each(name string, do func(*exchange)) string {
	if len(e.streams) == 0 {
		return "-"
	}
	i := (int(e.byte())<<8 + int(e.byte())) % len(e.streams)
	do(e.streams[i])
	return fmt.Sprintf("%s of %d", name, i)
}

// tick lets all workers tick, one after the other, and carries out what they say.
func (e *envoy) tick(d Time) {
	e.now += d
	kept := e.linger[:0]
	for _, l := range e.linger {
		if e.now < l.until && !l.link.gone {
			kept = append(kept, l)
		}
	}
	e.linger = kept
	e.answer()
	for i, w := range e.workers {
		e.now += 100 * time.Microsecond
		a := w.Tick(e.now)
		e.note("tick of %d: ask %v, polls %v, next %v %s; rejected %d, close %d, cut %d, idle %d", i, a.Ask, a.Polls, a.Next, a.Event,
			len(a.Rejected), len(a.Close), len(a.Cut), len(a.Idle))
		if a.Resume != nil {
			x := e.find(a.Resume)
			e.note("resume %d bytes after %v", x.length, a.Waited)
			require.False(e.t, x.Waiting())
			e.seen["resumed"]++
			if !x.Small() {
				e.admitted(w)
			}
			n := x.unread
			x.unread = 0
			e.pass(x, n)
			if x.rest() == 0 && !x.over {
				e.guards[i].End(e.now, &x.Stream, budget.Request)
			}
		}
		for _, d := range a.Rejected {
			e.seen["timeout"]++
			e.note("%v for %d bytes", d.Verdict, e.find(d.Stream).length)
			e.rejected(e.find(d.Stream), d.Verdict)
		}
		for _, s := range a.Close {
			require.True(e.t, e.find(s).over)
			e.seen["closed"]++
			e.closeLink(e.find(s).link)
		}
		for _, c := range a.Idle {
			e.seen["idle"]++
			for _, x := range e.streams {
				require.NotSame(e.t, c, &x.link.Connection, "it is in use")
			}
			for _, l := range e.conns {
				if &l.Connection == c {
					e.closeLink(l)
					break
				}
			}
			require.True(e.t, c.IsClosed)
		}
		if a.Ask && e.reading == nil {
			b := e.byte()
			e.reading = &inFlight{worker: i, inUse: e.truth(), due: e.now + Time(b%64)*ms, fails: b == 255}
			if b >= 128 { // what an allocator keeps for itself comes and goes
				e.reading.inUse += e.size(4 * mib)
			}
		} else if a.Ask {
			e.t.Fatal("asked for while one is outstanding")
		}
		e.check()
	}
}

// answer brings the reading that was asked for, if it is due.
func (e *envoy) answer() {
	r := e.reading
	if r == nil || e.now < r.due {
		return
	}
	e.reading = nil
	var failure error
	if r.fails {
		failure = errors.New("403")
	}
	e.workers[r.worker].Observe(e.now, memory.Reading{InUse: r.inUse, Allocated: r.inUse}, failure)
	e.check()
}

// note records an operation, and what it did to the counters.
func (e *envoy) note(format string, args ...any) {
	if e.record == nil {
		return
	}
	e.record.Add(format, args...)
	for i, w := range e.workers {
		if n := *w.Counts(); n != e.counts[i] {
			e.counts[i] = n
			e.record.Add("counters of %d: %d", i, n)
		}
	}
}

func (e *envoy) find(s *Stream) *exchange {
	for _, x := range e.streams {
		if &x.Stream == s {
			return x
		}
	}
	e.t.Fatal("a stream that is closed")
	return nil
}
