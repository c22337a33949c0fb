package guard

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/decisions"
	"github.com/highwater-envoy/highwater/internal/unit"
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
	counts  [16][NumCounters]uint64
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
	e.base = int64(e.guards[0].config.Budget.Limit.Bytes) / 16 * (2 + e.byte()%14)
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
		n += int64(x.guard.config.Costs.Stream) + x.held[budget.Request] + x.held[budget.Response] + x.unread
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

func (e *envoy) connect() *link {
	b := e.byte()
	for _, c := range e.conns {
		if c.http2 && b%4 == 0 || !c.http2 && !c.used && b%4 == 1 {
			return c
		}
	}
	c := &link{worker: int(b) % len(e.workers), http2: b&8 != 0, cost: int64(e.guards[0].config.Costs.Connection)}
	if b&16 != 0 { // else there is no network filter, and what comes while a request is paused is not seen
		e.nextID++
		c.Context = e.nextID
	}
	g := e.guards[c.worker]
	if !g.OpenConnection(e.now, &c.Connection, peer("10.0.0.1")) {
		e.seen["refused"]++
		require.GreaterOrEqual(e.t, g.worker.account.Table().Level, budget.Hard)
		return nil
	}
	if b&0x60 == 0 {
		g.TLS(e.now, &c.Connection)
		e.workers[c.worker].account.Cover(e.now)
		c.cost = int64(g.config.Costs.TLSConnection)
	}
	e.conns = append(e.conns, c)
	return c
}

func (e *envoy) open1() string {
	c := e.connect()
	if c == nil {
		return "refused"
	}
	x := &exchange{link: c, length: budget.Unknown}
	x.request = request{http2: c.http2, connected: &c.Connection}
	c.used = true
	switch b := e.byte(); {
	case b < 64:
		x.length = 0
	case b < 96:
		x.length = e.size(64 * kib)
	case b < 160:
		x.length = e.size(4 * mib)
	case b < 176:
		x.length = e.size(150 * mib)
	}
	if e.byte() < 8 {
		x.path = "/healthz"
	}
	g, w := e.guards[c.worker], e.workers[c.worker]
	// The first read brings the headers and the beginning of the body.
	first := min(e.size(int64(g.config.Buffers.Downstream)), x.rest())
	if e.data(c, 500+first) {
		require.Greater(e.t, first+500, w.account.Share(1)-w.account.Estimate(e.now), "there is no room")
		e.seen["closed at its first bytes"]++
		e.closeLink(c)
		return "closed at its first bytes"
	}
	x.sent += first

	v := g.Open(e.now, &x.Stream, x, x.length)
	e.streams = append(e.streams, x)
	if v.Action == Admit && x.total() > int64(w.budget.Small) && x.exempt == judged && !x.letIn.is(inFloor) && !x.letIn.is(alone) {
		e.admitted(w)
	}
	e.seen["open "+v.String()[:7]+" "+v.Reason.String()]++
	switch v.Action {
	case Admit, Pass:
		e.pass(x, first)
	case Wait:
		x.unread = first
		if c.Context == 0 || c.http2 {
			e.comesUnseen(x)
		}
	default:
		x.unread = first
		e.rejected(x, v)
	}
	return fmt.Sprintf("open %d: %v", x.length, v)
}

// rest is what the client has not sent.
func (x *exchange) rest() int64 {
	if x.length == budget.Unknown {
		return 1 << 30
	}
	return x.length - x.sent
}

// data is a read from the connection, which the network filter sees.
func (e *envoy) data(c *link, n int64) (refused bool) {
	if !c.http2 {
		c.unread = 0 // the next request: the response before it has been read
	}
	return c.Context != 0 && e.workers[c.worker].Data(e.now, &c.Connection, n)
}

// comesUnseen is what a paused client sends within a round trip and no filter sees.
func (e *envoy) comesUnseen(x *exchange) {
	n := min(x.pauseCost-x.unread, x.rest())
	if n > 0 {
		x.unread += n
		x.sent += n
	}
}

// send is a read of the request's body.
func (e *envoy) send(x *exchange) {
	if x.state == queued || x.state == closing {
		// Reading has been stopped, but up to the pause cost comes; where there is a network filter
		// it sees that.
		if x.link.Context != 0 && !x.link.http2 {
			n := min(e.size(64*kib), x.rest(), x.pauseCost-x.unread)
			if n > 0 {
				x.unread += n
				x.sent += n
				require.False(e.t, e.data(x.link, n), "it has a request")
			}
		}
		return
	}
	if x.over || x.Ended(budget.Request) {
		return
	}
	n := min(e.size(256*kib), x.rest())
	if n == 0 {
		return
	}
	if !x.link.http2 {
		require.False(e.t, e.data(x.link, n), "it has a request")
	}
	x.sent += n
	e.pass(x, n)
}

// pass hands n bytes of the request through the filter.
func (e *envoy) pass(x *exchange, n int64) {
	if n == 0 || x.over || x.Ended(budget.Request) {
		return
	}
	v := e.guards[x.link.worker].Grow(e.now, &x.Stream, budget.Request, n)
	x.held[budget.Request] = min(x.held[budget.Request]+n, x.Cap(budget.Request))
	if v.Action != Admit && v.Action != Pass {
		e.seen["grow "+v.Reason.String()]++
		e.rejected(x, v)
		return
	}
	if x.rest() == 0 {
		x.finished = true
		e.guards[x.link.worker].End(e.now, &x.Stream, budget.Request)
	}
}

// rejected is a stream that was answered or reset, or whose connection will be closed.
func (e *envoy) rejected(x *exchange, v Verdict) {
	x.over = true
	require.Contains(e.t, []Action{Answer, Close, Reset}, v.Action)
	if v.Action == Close || v.Reason == Evicted || v.Reason == ResponseSize || v.Action == Reset {
		return // who is ended in mid-upload leaves nothing: see TestWhoIsEndedInMidUploadLeavesNothing of e2e
	}
	// What comes of an unfinished request, a round trip long, goes with the stream on HTTP/2, and
	// lingers with the connection on HTTP/1.
	var n int64
	if !x.finished {
		most := min(x.guard.pauseCap(&x.Stream), x.unread+x.rest())
		n = min(max(min(most, x.Cap(budget.Request)-x.held[budget.Request]), x.unread), most)
	}
	if x.unread = 0; x.link.http2 {
		x.unread = n
	} else if n > 0 {
		e.linger = append(e.linger, lingering{x.link, e.now + Time(x.guard.config.Buffers.Linger), n})
	}
}

func (e *envoy) respond(x *exchange) {
	if x.over || x.Waiting() || x.headers {
		return
	}
	x.headers, x.response = true, budget.Unknown
	switch b := e.byte(); {
	case b < 64:
		x.response = 0
	case b < 160:
		x.response = e.size(200 * kib)
	case b < 176:
		x.response = e.size(100 * mib)
	}
	w := e.workers[x.link.worker]
	had := x.Reserved(budget.Response) // at its request's headers
	v := e.guards[x.link.worker].Expect(e.now, &x.Stream, x.response)
	if v.Action == Admit && x.Reserved(budget.Response) > had && x.Reserved(budget.Response) > int64(w.budget.Small) && x.exempt == judged && !x.letIn.is(alone) && !x.letIn.is(inFloor) && !w.account.Table().Futile {
		e.admitted(w)
	}
	if v.Action != Admit {
		require.Equal(e.t, Answer, v.Action)
		e.seen["response rejected"]++
		e.rejected(x, v)
	}
}

func (e *envoy) serve(x *exchange) {
	if x.over || !x.headers || x.Ended(budget.Response) {
		return
	}
	n := e.size(256 * kib)
	if x.response != budget.Unknown {
		n = min(n, x.response-x.Seen(budget.Response))
	}
	v := e.guards[x.link.worker].Grow(e.now, &x.Stream, budget.Response, n)
	x.held[budget.Response] = min(x.held[budget.Response]+n, x.Cap(budget.Response))
	if v.Action != Admit {
		require.Equal(e.t, Reset, v.Action)
		e.seen["response reset"]++
		e.rejected(x, v)
		return
	}
	if x.Seen(budget.Response) == x.response || n == 1 && x.response == budget.Unknown {
		e.guards[x.link.worker].End(e.now, &x.Stream, budget.Response)
	}
}

func (e *envoy) closeStream(x *exchange) {
	for i := range e.streams {
		if e.streams[i] == x {
			e.streams = append(e.streams[:i], e.streams[i+1:]...)
			break
		}
	}
	e.guards[x.link.worker].Close(e.now, &x.Stream)
	x.link.used = false
	if !x.link.gone {
		x.link.unread += x.held[budget.Response] // in the codec
	}
}

// closeLink closes a connection: its context first, as often as its streams first.
func (e *envoy) closeLink(c *link) {
	if e.byte()&1 == 0 {
		e.workers[c.worker].CloseConnection(&c.Connection)
	}
	c.gone = true
	for i := len(e.streams) - 1; i >= 0; i-- {
		if e.streams[i].link == c {
			e.closeStream(e.streams[i])
		}
	}
	if !c.IsClosed {
		e.workers[c.worker].CloseConnection(&c.Connection)
	}
	for i := range e.conns {
		if e.conns[i] == c {
			e.conns = append(e.conns[:i], e.conns[i+1:]...)
			break
		}
	}
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
			if x.total() > int64(w.budget.Small) && !x.letIn.is(inFloor) && !x.letIn.is(alone) {
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
			require.Equal(e.t, closing, s.state)
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
	e.workers[r.worker].Observe(e.now, Reading{InUse: r.inUse, Allocated: r.inUse}, failure)
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
	e.t.Fatalf("a stream that is closed: %v", s.state)
	return nil
}

// upperBound is the upper bound on memory in use, as of now, with what each worker has not told
// yet.
func (e *envoy) upperBound() int64 {
	sum := e.shared().Reading
	for _, w := range e.workers {
		own := w.account.Own()
		sum += own.Fresh + own.Coming
	}
	return sum
}

// admitted checks an admission of a large request or response: as far as its worker can know, all
// that all workers were promised stays under hard.
func (e *envoy) admitted(w *Worker) {
	if w.account.Stale(e.now) || e.guards[0].config.Mode == Observe {
		return
	}
	e.seen["checked admission"]++
	if got, most := w.account.Estimate(e.now), w.account.Share(w.limits.Hard); got > most {
		e.fail("an admission makes the estimate %d, more than T = %d", got, most)
	}
}

func (e *envoy) fail(format string, args ...any) {
	e.t.Helper()
	e.t.Fatalf("%s\nbehind %q", fmt.Sprintf(format, args...), e.trace)
}

// check is what holds at every moment.
func (e *envoy) check() {
	e.t.Helper()
	table := e.shared()
	if table.Sequence > 0 && e.now-table.Asked <= time.Second && e.guards[0].config.Mode != Observe { // there it leaves shadows out
		if est, truth := e.upperBound(), e.truth(); est < truth {
			e.fail("estimate %d, but %d are in use", est, truth)
		}
	}
	var coming, bounds, unbooked, shadows [16]int64
	var count [16]int64
	for _, x := range e.streams {
		i := x.link.worker
		count[i]++
		coming[i] += x.Awaited()
		unbooked[i] += x.Unbooked()
		if x.Shadow() {
			shadows[i] += x.Likely()
		}
		for d := budget.Request; d <= budget.Response; d++ {
			coming[i] += x.Reserved(d)
			if !x.Shadow() {
				bounds[i] += x.Held(d)
			}
			if small := int64(e.workers[i].budget.Small); x.exempt == whileSmall && !x.Presumed() && x.state == live && x.Seen(d)-x.Unbooked() > small {
				e.fail("exempt by its path, and not small: %d bytes of %d", x.Seen(d), small)
			}
		}
	}
	for i, w := range e.workers {
		own := w.account.Own()
		if min(own.Lease, own.Fresh, own.Coming, own.Small, own.Likely, own.Bounds, own.Exposure, own.Left, own.Queue.Held,
			own.Queue.Waiting, own.Connections.Open, w.line.Bytes(), w.left.Bytes()) < 0 {
			e.fail("worker %d: something is negative: %+v, line %d, left %d", i, own, w.line.Bytes(), w.left.Bytes())
		}
		switch {
		case own.Streams != count[i]:
			e.fail("worker %d: %d streams, not %d", i, own.Streams, count[i])
		case own.Shadows.Likely != shadows[i]:
			e.fail("worker %d: shadows hold %d, not %d", i, own.Shadows.Likely, shadows[i])
		case own.Coming != coming[i]:
			e.fail("worker %d: coming %d, but its streams' %d", i, own.Coming, coming[i])
		case own.Bounds < bounds[i]-unbooked[i] || unbooked[i] > own.Coming || own.Likely > own.Bounds: // what is not booked counts as coming
			e.fail("worker %d: bounds %d, likely %d, but its streams' bounds %d", i, own.Bounds, own.Likely, bounds[i])
		}
		// Nobody comes to hold more than the others count for him.
		for _, entry := range table.Entries {
			if entry.ID == own.ID && own.Fresh+own.Coming > max(entry.Lease, entry.Fresh+entry.Coming) {
				e.fail("worker %d: fresh %d + coming %d, but the others know of %d", i, own.Fresh, own.Coming, entry.Lease)
			}
		}
	}
}

// finish closes all: then nothing may be left of it.
func (e *envoy) finish() {
	for len(e.conns) > 0 {
		e.closeLink(e.conns[0])
		e.check()
	}
	require.Empty(e.t, e.streams)
	for end := e.now + 11*time.Second; e.now < end; {
		e.tick(100 * ms)
		if e.reading != nil {
			e.reading.fails = false
		}
	}
	for i, w := range e.workers {
		own := w.account.Own()
		require.LessOrEqual(e.t, own.Lease, 4*int64(w.budget.Small))
		own.ID, own.Beat, own.Lease, own.Passed, own.Shadows.Passed, own.Queue.Rate, own.Evicted.Sequence, own.Connections.Lease = 0, 0, 0, 0, 0, 0, 0, 0
		require.Equal(e.t, budget.Entry{}, own, "worker %d", i)
		require.Zero(e.t, w.held)
		require.Zero(e.t, w.line.Len())
		require.Zero(e.t, w.line.Bytes())
		require.Zero(e.t, w.left.Bytes())
		require.Empty(e.t, w.closing)
		require.Empty(e.t, w.residual)
		require.False(e.t, w.futile.taken)
	}
	require.Equal(e.t, e.base, e.shared().InUse)
}

// settings are those that the sequences run with: the shipped example's, Envoy's defaults, and some
// that make rare paths common.
var settings = []struct {
	name string
	edit func(*Config)
}{
	{"example", func(c *Config) { c.Exempt = []Exempt{{PathPrefix: "/healthz"}} }},
	{"defaults", func(c *Config) { c.Buffers = Default().Buffers }},
	{"no waiting", func(c *Config) {
		c.Throttle.Timeout = 0
		c.Buffers = Default().Buffers
		c.Budget.Limit.Bytes = 128 * unit.MiB
	}},
	{"tight", func(c *Config) {
		c.Budget.Limit.Bytes = 48 * unit.MiB
		c.Throttle.Timeout = unit.Duration(100 * ms)
		c.Buffers.WholeRequest = 0
		c.Buffers.Linger = unit.Duration(time.Second)
	}},
	{"observe", func(c *Config) { c.Mode = Observe; c.Budget.Limit.Bytes = 64 * unit.MiB }},
}

// The one promise: as long as buffers tell the truth, reading + fresh + coming is never less than
// the memory in use, and no admission exceeds what there is room for, whatever clients and
// upstreams do, and however readings come.
func TestEstimateIsNeverBelowTheTruth(t *testing.T) {
	seen, sums := map[string]int{}, map[string]string{}
	defer func() { t.Log(seen) }()
	for _, workers := range []int{1, 2, 8} {
		for i, s := range settings {
			t.Run(fmt.Sprintf("%d workers, %s", workers, s.name), func(t *testing.T) {
				name := fmt.Sprintf("%d workers, %s", workers, s.name)
				record, err := decisions.New(*texts, "sequences, "+name)
				require.NoError(t, err)
				for seed := range uint64(20) {
					p := newProcessOn(t, decisions.Store{Store: &budget.Memory{}, To: record}, workers, s.edit)
					e := newEnvoyOn(p, random(100*seed+uint64(10*i+workers), 6000))
					e.record = record
					e.run()
					for name, n := range e.seen {
						seen[name] += n
					}
				}
				sums[name], err = record.Sum()
				require.NoError(t, err)
			})
		}
	}
	kept, err := decisions.ReadSums("testdata/decisions.sum")
	require.NoError(t, err)
	switch {
	case *rewriteSums:
		require.NoError(t, kept.Write(sums))
	case runtime.GOARCH == "amd64": // others fuse multiplications and additions, and round otherwise
		for name, sum := range sums {
			require.Equal(t, kept.Of(name), sum, "%s: it decides otherwise than it did", name)
		}
	}
}

// What is decided in the random sequences is kept, as hashes, as that in the random loads of
// internal/sim is: a refactoring changes none.
var (
	rewriteSums = flag.Bool("rewrite-sums", false, "keep the hashes of what is decided now in the random sequences")
	texts       = flag.String("decisions", "", "folder for what is decided in the random sequences, as text")
)

func FuzzSequence(f *testing.F) {
	for seed := range uint64(4) {
		var ops []byte
		for next := random(seed, 300); ; {
			b, ok := next()
			if !ok {
				break
			}
			ops = append(ops, b)
		}
		f.Add(byte(seed), ops)
	}
	f.Fuzz(func(t *testing.T, setting byte, ops []byte) {
		if len(ops) > 4000 {
			return // longer ones are only slower
		}
		next := func() (byte, bool) {
			if len(ops) == 0 {
				return 0, false
			}
			b := ops[0]
			ops = ops[1:]
			return b, true
		}
		newEnvoy(t, 1+int(setting>>4)%3, settings[int(setting&15)%len(settings)].edit, next).run()
	})
}

// Workers run at once in Envoy. Whatever they admit at the same moment, each from its own lease, is
// together no more than what lies under hard.
func TestWorkersAtOnceNeverAdmitMoreThanHard(t *testing.T) {
	const workers = 6
	for round := range uint64(8) {
		p := newProcess(t, workers, func(c *Config) { c.Throttle.Queue = 100_000 })
		p.settle(40 * mib)
		room := p.workers[0].account.Share(p.workers[0].limits.Hard) - 40*mib

		var admitted [workers]int64
		start, done := make(chan struct{}), sync.WaitGroup{}
		for i, g := range p.guards {
			done.Go(func() {
				rng := rand.New(rand.NewPCG(round, uint64(i)))
				now := p.now
				var live []*request
				<-start
				for range 300 {
					r := &request{connected: &Connection{}}
					length := 65*kib + rng.Int64N(2*mib)
					switch v := g.Open(now, &r.Stream, r, length); v.Action {
					case Admit:
						admitted[i] += length
					case Wait:
						live = append(live, r)
					default:
					}
					// Those who gave up waiting let others in, and who waits is resumed.
					if rng.IntN(4) == 0 && len(live) > 0 {
						g.Close(now, &live[0].Stream)
						live = live[1:]
					}
					if rng.IntN(8) == 0 {
						now += time.Microsecond
						if s := p.workers[i].Tick(now).Resume; s != nil {
							admitted[i] += s.length
							for j := range live {
								if &live[j].Stream == s {
									live = append(live[:j], live[j+1:]...)
									break
								}
							}
						}
					}
				}
			})
		}
		close(start)
		done.Wait()
		var sum int64
		for _, n := range admitted {
			sum += n
		}
		require.LessOrEqual(t, sum, room)
		require.Greater(t, sum, room/2, "and not much less")
	}
}
