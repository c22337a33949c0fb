package guard

import (
	"fmt"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

func (e *envoy) connect() *link {
	b := e.byte()
	for _, c := range e.conns {
		if c.http2 && b%4 == 0 || !c.http2 && !c.used && b%4 == 1 {
			return c
		}
	}
	c := &link{worker: int(b) % len(e.workers), http2: b&8 != 0, cost: int64(e.guards[0].Config().Costs.Connection)}
	if b&16 != 0 { // else there is no network filter, and what comes while a request is paused is not seen
		e.nextID++
		c.Context = e.nextID
	}
	g := e.guards[c.worker]
	if !g.OpenConnection(e.now, &c.Connection, peer("10.0.0.1")) {
		e.seen["refused"]++
		require.GreaterOrEqual(e.t, g.Worker().Account().Table().Level, budget.Hard)
		return nil
	}
	if b&0x60 == 0 {
		g.TLS(e.now, &c.Connection)
		e.workers[c.worker].Account().Cover(e.now)
		c.cost = int64(g.Config().Costs.TLSConnection)
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
	first := min(e.size(int64(g.Config().Buffers.Downstream)), x.rest())
	if e.data(c, 500+first) {
		require.Greater(e.t, first+500, w.Account().Share(1)-w.Account().Estimate(e.now), "there is no room")
		e.seen["closed at its first bytes"]++
		e.closeLink(c)
		return "closed at its first bytes"
	}
	x.sent += first

	v := g.Open(e.now, &x.Stream, x, x.length)
	e.streams = append(e.streams, x)
	if v.Action == verdict.Admit && !x.Small() && !x.Presumed() && !e.mayBeExempt(x) {
		e.admitted(w)
	}
	e.seen["open "+v.String()[:7]+" "+v.Reason.String()]++
	switch v.Action {
	case verdict.Admit, verdict.Pass:
		e.pass(x, first)
	case verdict.Wait:
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

// windows is what Envoy reads of a request before its client has to wait, on HTTP/1 or HTTP/2.
func (e *envoy) windows(x *exchange) int64 {
	b := &e.guards[0].Config().Buffers
	if x.link.http2 {
		return 2 * int64(max(b.HTTP2Window, b.Downstream))
	}
	return 2 * int64(b.Downstream)
}

// unreadCap is what of the request can lie unread while it is paused.
func (e *envoy) unreadCap(x *exchange) int64 {
	if x.length == budget.Unknown {
		return e.windows(x)
	}
	return min(e.windows(x), x.length)
}

// comesUnseen is what a paused client sends within a round trip and no filter sees.
func (e *envoy) comesUnseen(x *exchange) {
	n := min(e.unreadCap(x)-x.unread, x.rest())
	if n > 0 {
		x.unread += n
		x.sent += n
	}
}

// send is a read of the request's body.
func (e *envoy) send(x *exchange) {
	if isPaused(&x.Stream) {
		// Reading has been stopped, but up to the pause cost comes; where there is a network filter
		// it sees that.
		if x.link.Context != 0 && !x.link.http2 {
			n := min(e.size(64*kib), x.rest(), e.unreadCap(x)-x.unread)
			if n > 0 {
				x.unread += n
				x.sent += n
				if e.data(x.link, n) {
					e.seen["closed while it waits"]++
					e.closeLink(x.link)
				}
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
	if v.Action != verdict.Admit && v.Action != verdict.Pass {
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
	require.Contains(e.t, []verdict.Action{verdict.Answer, verdict.Close, verdict.Reset}, v.Action)
	if v.Action == verdict.Close || v.Reason == verdict.Evicted || v.Reason == verdict.ResponseSize || v.Action == verdict.Reset {
		return // who is ended in mid-upload leaves nothing: see TestWhoIsEndedInMidUploadLeavesNothing of e2e
	}
	// What comes of an unfinished request, a round trip long, goes with the stream on HTTP/2, and
	// lingers with the connection on HTTP/1.
	var n int64
	if !x.finished {
		most := min(e.windows(x), x.unread+x.rest())
		n = min(max(min(most, x.Cap(budget.Request)-x.held[budget.Request]), x.unread), most)
	}
	if x.unread = 0; x.link.http2 {
		x.unread = n
	} else if n > 0 {
		e.linger = append(e.linger, lingering{x.link, e.now + Time(e.guards[0].Config().Buffers.Linger), n})
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
	if v.Action == verdict.Admit && x.Reserved(budget.Response) > max(had, e.small()) && !e.mayBeExempt(x) {
		e.admitted(w)
	}
	if v.Action != verdict.Admit {
		require.Equal(e.t, verdict.Answer, v.Action)
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
	if v.Action != verdict.Admit {
		require.Equal(e.t, verdict.Reset, v.Action)
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
		e.workers[c.worker].CloseConnection(e.now, &c.Connection)
	}
	c.gone = true
	for i := len(e.streams) - 1; i >= 0; i-- {
		if e.streams[i].link == c {
			e.closeStream(e.streams[i])
		}
	}
	if !c.IsClosed {
		e.workers[c.worker].CloseConnection(e.now, &c.Connection)
	}
	for i := range e.conns {
		if e.conns[i] == c {
			e.conns = append(e.conns[:i], e.conns[i+1:]...)
			break
		}
	}
}
