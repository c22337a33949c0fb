package sim

import (
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"time"
)

const (
	step  = time.Millisecond
	frame = 16 << 10 // the most that HTTP/2 sends at a time
)

// Conn is a downstream connection.
type Conn struct {
	ID     int
	Worker int
	HTTP2  bool
	Face   any // for the Filter

	owner   *client // HTTP/1: the client whose it is
	streams []*Stream
	cost    int64
	kernel  int64 // response bytes that the kernel holds for the client
	rest    int64 // of responses that have ended, unread in Envoy
	restAt  rate  // at which the client reads them
	unacked int64 // HTTP/2: bytes that take up the connection's window
	until   Time  // lingers so long after a reject; 0 = does not
	refused bool  // for what came first
	last    bool  // its client closes it when it has read all
	unread  int64 // of a rejected request
	sender  *Stream
	gone    bool
}

// Stream is a request and its response.
type Stream struct {
	Conn *Conn
	Call Call
	ID   int
	Face any // for the Filter
	// RetryAfter is what the Filter tells its client, in whole seconds, with Proxy.Answer; 0 = nothing.
	RetryAfter Time

	client  *client
	opened  bool // the filter has been told of its headers
	begun   Time
	sending rate
	sent    int64 // by the client, into Envoy
	wrote   int64 // by the client, into the kernel
	unacked int64 // HTTP/2: of its window
	paused  bool  // by the filter, at its headers
	since   Time  // paused since
	resumed bool
	held    int64 // of the request, in Envoy
	waits   int64 // of held, not yet passed by the filter, because it was paused
	taking  rate
	taken   int64 // by the upstream
	kernel  int64 // request bytes that the kernel holds for the upstream
	slots   int64 // of the buffers that the request went through
	reached Time  // when it came to the upstream, which then waits
	arrived Time  // when the upstream had it all
	ended   [2]bool

	started bool // the response has
	giving  rate
	given   int64 // by the upstream, into Envoy
	gave    int64 // by the upstream, into the kernel
	answer  int64 // of the response, in Envoy
	full    bool  // it is, and no more is read
	reading rate

	over bool // rejected, reset, finished or given up: nothing moves any more
	done bool // the filter has been told
}

// Paused says whether the filter has paused it.
func (s *Stream) Paused() bool { return s.paused }

// rate doles out bytes at so many a second; 0 = without a bound.
type rate struct {
	perSecond int64
	from      Time
	used      int64
}

func (r *rate) available(now Time) int64 {
	if r.perSecond == 0 {
		return math.MaxInt64
	}
	return int64(float64(now-r.from)*float64(r.perSecond)/1e9) - r.used
}

func (r *rate) use(n int64) { r.used += n }

type worker struct {
	conns []*Conn
	next  int
	tick  Time
	debt  Time // CPU time that it took beyond what it had
}

type reading struct {
	worker  int
	due     Time
	memory  Memory
	fails   bool
	sampled bool
	sample  Time
	unseen  int64
}

// Envoy is the model at work. Make it with New.
type Envoy struct {
	Settings
	filter  Filter
	random  *rand.Rand
	now     Time
	start   Time
	heap    heap
	unseen  int64 // ever sent by clients of rejected requests, seen by no filter
	known   int64 // and how much of it was when the last reading was taken
	workers []worker
	clients []*client
	shared  map[int]*Conn // HTTP/2 connections, by id
	reading *reading
	dying   []*Conn // linger
	closing []*Conn // by the filter
	waiting int
	nextID  int
	turn    int
	report  *Report
	limit   int64
	slots   map[int64]int // free ones of ended streams, by their number
	socket  int64         // bytes that the kernel holds for upstreams
	sockets int64         // the most that it ever held: it has pages for those
	peers   Time          // CPU that clients and upstream took, and workers don't have
	hash    uint64
	stuck   Time // since when somebody waits although there is room; 0 = not
	oldest  []*Stream
}

// New returns a model with nothing in it. limit is the budget that the report compares with; 0 = none.
func New(s Settings, limit int64, seed uint64) *Envoy {
	e := &Envoy{
		Settings: s, random: rand.New(rand.NewPCG(seed, 42)), now: time.Hour, shared: map[int]*Conn{}, slots: map[int64]int{}, limit: limit,
		workers: make([]worker, s.Workers), heap: heap{live: s.Base, mapped: s.Base, keep: s.Mapped, cacheMax: s.Cache, cacheShare: s.CacheShare},
		report: &Report{Classes: map[string]*Class{}, Limit: limit, Every: 20 * time.Millisecond},
	}
	e.heap.peak = s.Base
	for i := range e.workers {
		e.workers[i].tick = e.now + Time(i)*25*time.Millisecond/Time(s.Workers)
	}
	return e
}

// Use puts the filter in the request path. nil = none.
func (e *Envoy) Use(f Filter) { e.filter = f }

// Now implements Proxy.
func (e *Envoy) Now() Time { return e.now }

// Resume implements Proxy.
func (e *Envoy) Resume(s *Stream) {
	e.verdict("resume", s.ID)
	if s.paused && !s.done {
		s.resumed = true
	}
}

// Answer implements Proxy.
func (e *Envoy) Answer(s *Stream) {
	e.verdict("answer", s.ID)
	if s.over {
		return
	}
	s.over = true
	c := s.Conn
	if !s.paused {
		e.report.Ended += s.held + s.answer
	}
	if s.started {
		e.report.class(s.client.Class).Reset++
	} else {
		e.report.class(s.client.Class).Rejected++
	}
	e.retry(s.client, s.RetryAfter)
	switch {
	case c.HTTP2:
	case s.started, !s.ended[Request]:
		// It lingers, with what is in its buffers, and with up to a buffer limit that is read no more.
		c.until = e.now + max(e.Linger, step)
		c.unread, c.sender = s.held+s.answer, s
		s.held, s.answer, s.waits = 0, 0, 0
		e.dying = append(e.dying, c)
		s.client.conn = nil
	}
}

// CloseDownstream implements Proxy.
func (e *Envoy) CloseDownstream(c *Conn) {
	e.verdict("close", c.ID)
	if !c.gone {
		e.closing = append(e.closing, c)
	}
}

// Ask implements Proxy.
func (e *Envoy) Ask(worker int) {
	if e.reading != nil {
		return
	}
	e.report.Readings++
	d := e.ReadingTime(e.report.Readings, e.random)
	r := &reading{worker: worker, due: e.now + d}
	if d < 0 {
		r.fails, r.due = true, e.now+step
	}
	r.sample = e.now + Time(e.random.Float64()*float64(r.due-e.now))
	e.reading = r
}

// Hurry implements Proxy.
func (e *Envoy) Hurry(worker int, d Time) {
	w := &e.workers[worker]
	w.tick = min(w.tick, e.now+d)
}

func (e *Envoy) verdict(what string, id int) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %d %s %d", e.hash, e.now, what, id)
	e.hash = h.Sum64()
	e.report.Verdicts++
}

// Run puts the load in front of the proxy, lets it end, and reports.
func (e *Envoy) Run(l Load) *Report {
	e.report.Name = l.Name
	e.start = e.now
	for i := range l.Clients {
		c := &l.Clients[i]
		e.clients = append(e.clients, &client{Client: c, next: e.now + c.Start})
	}
	end := e.now + l.Duration
	for e.now < end {
		e.step(true)
		if l.Warm > 0 && e.now-e.start == l.Warm {
			e.report.Classes = map[string]*Class{}
		}
	}
	e.report.Stayed = e.heap.inUse()
	for limit := end + l.Drain; e.now < limit && e.busy(); {
		e.step(false)
	}
	for _, c := range e.all() {
		e.drop(c)
	}
	e.settle()
	for end := e.now + 11*time.Second; e.now < end && e.filter != nil; {
		e.step(false)
	}
	if e.filter != nil {
		e.report.Left = e.filter.Left()
	}
	e.report.Peak, e.report.Trace = e.heap.peak, e.hash
	return e.report
}

func (e *Envoy) all() []*Conn {
	var all []*Conn
	for i := range e.workers {
		all = append(all, e.workers[i].conns...)
	}
	return all
}

func (e *Envoy) busy() bool {
	for _, c := range e.clients {
		if c.busy {
			return true
		}
	}
	return false
}

// step is a millisecond.
func (e *Envoy) step(calls bool) {
	e.now += step
	e.answerReading()
	if calls {
		for _, c := range e.clients {
			e.make(c)
		}
	}
	cpu := Time(e.Cores * float64(step))
	taken := min(e.peers, cpu/2) // the scheduler's fair share, while the workers want theirs
	cpu -= taken
	e.turn++
	for i := range e.workers {
		n := (e.turn + i) % len(e.workers)
		w := &e.workers[n]
		if e.filter != nil && e.now >= w.tick {
			w.tick = math.MaxInt64
			next := e.filter.Tick(n)
			w.tick = min(w.tick, next)
			e.settle()
		}
		mine := min(cpu, step)
		left := e.work(w, mine-w.debt)
		w.debt = max(-left, 0)
		cpu -= mine - max(left, 0)
	}
	e.peers = max(e.peers-taken-cpu, 0)
	for i := 0; i < len(e.dying); {
		if c := e.dying[i]; c.gone || e.now >= c.until {
			e.dying = append(e.dying[:i], e.dying[i+1:]...)
			e.drop(c)
			e.settle()
			continue
		}
		i++
	}
	if (e.now-e.start)%e.report.Every == 0 {
		e.report.Samples = append(e.report.Samples, e.heap.inUse())
	}
	e.watch()
}

func (e *Envoy) answerReading() {
	r := e.reading
	if r == nil {
		return
	}
	if !r.sampled && e.now >= r.sample {
		r.sampled, r.memory, r.unseen = true, Memory{InUse: e.heap.inUse(), Allocated: e.heap.live}, e.unseen
	}
	if e.now >= r.due {
		e.reading = nil
		if !r.fails {
			e.known = r.unseen
		}
		e.filter.Reading(r.worker, r.memory, r.fails)
		e.settle()
	}
}

// make begins the client's next call if it is time.
func (e *Envoy) make(c *client) {
	if c.busy || e.now < c.next || c.Stop > 0 && e.now >= e.start+c.Stop || c.Calls > 0 && c.made >= c.Calls {
		return
	}
	if !c.pending {
		c.call, c.pending, c.begun = c.MakeCall(e.random), true, e.now
	}
	conn := c.conn
	switch {
	case c.HTTP2 > 0:
		conn = e.shared[c.HTTP2]
		if conn == nil || conn.gone {
			conn = e.connect(c)
			e.shared[c.HTTP2] = conn
		}
	case conn == nil || conn.gone:
		conn = e.connect(c)
	case conn.rest > 0 || conn.kernel > 0:
		return // the response before has not been read
	}
	if conn == nil {
		return // refused
	}
	c.conn, c.busy = conn, true
	e.nextID++
	s := &Stream{
		Conn: conn, Call: c.call, ID: e.nextID, client: c, begun: e.now,
		sending: rate{perSecond: c.call.SendRate, from: e.now},
	}
	conn.streams = append(conn.streams, s)
}

func (e *Envoy) connect(c *client) *Conn {
	e.nextID++
	conn := &Conn{ID: e.nextID, Worker: c.Worker, HTTP2: c.HTTP2 > 0, owner: c, cost: e.ConnectionCost}
	if conn.Worker < 0 {
		conn.Worker = e.random.IntN(len(e.workers))
	}
	w := &e.workers[conn.Worker%len(e.workers)]
	conn.Worker %= len(e.workers)
	if e.filter != nil && !e.NoNetworkFilter && e.filter.OpenConnection(conn) {
		e.verdict("refuse", conn.ID)
		e.report.class(c.Class).Refused++
		e.retry(c, 0)
		return nil
	}
	w.conns = append(w.conns, conn)
	e.report.Connections = max(e.report.Connections, e.connections())
	e.heap.alloc(conn.cost)
	e.settle()
	return conn
}

// connections is how many are open.
func (e *Envoy) connections() (n int) {
	for i := range e.workers {
		n += len(e.workers[i].conns)
	}
	return n
}

// work lets a worker use the CPU time on its connections, and returns what is left of it: what is
// missing if negative.
func (e *Envoy) work(w *worker, cpu Time) Time {
	idle := 0
	for cpu > 0 && idle < len(w.conns) {
		if w.next >= len(w.conns) {
			w.next = 0
		}
		c := w.conns[w.next]
		w.next++
		fresh := e.heap.fresh
		used := e.serve(c)
		used += cost(e.heap.fresh-fresh, e.FreshPerMs)
		if used == 0 {
			idle++
		} else {
			idle = 0
			e.settle()
		}
		cpu -= used
	}
	return cpu
}

func (e *Envoy) moved(n int64) Time { return e.PerEvent + cost(n, e.BytesPerMs) }

// cost is the CPU time of n bytes at so many a millisecond; 0 = without a bound.
func cost(n, perMs int64) Time {
	if perMs == 0 {
		return 0
	}
	return Time(float64(n) / float64(perMs) * float64(time.Millisecond))
}

// peer takes the CPU with which a client or the upstream reads or writes n bytes.
func (e *Envoy) peer(n int64) { e.peers += cost(n, e.PeerBytesPerMs) }

// write is peer for one who writes a message of total bytes of which Envoy has read so many. Without a rate of its own it
// is ahead by what the kernel takes: nearly all of its CPU goes before Envoy's.
func (e *Envoy) write(written *int64, read, total int64, r rate) {
	if r.perSecond == 0 {
		read = min(total, read+e.KernelUp)
	}
	if n := read - *written; n > 0 {
		*written = read
		e.peer(n)
	}
}

// serve does what can be done on a connection, once, and returns the CPU time that took.
func (e *Envoy) serve(c *Conn) (used Time) {
	if c.gone {
		return 0
	}
	if c.until > 0 {
		return e.linger(c)
	}
	for i := 0; i < len(c.streams); i++ {
		s := c.streams[i]
		used += e.serveStream(s)
		if c.gone || c.until > 0 {
			return used
		}
		if s.over && s.done {
			i--
		}
	}
	// The client reads: first what responses that have ended left.
	if c.rest > 0 || c.kernel > 0 && len(c.streams) == 0 {
		c.kernel -= e.reads(&c.restAt, c.kernel)
		n := min(c.rest, e.KernelDown-c.kernel)
		if n > 0 {
			c.rest -= n
			c.kernel += n
			e.heap.free(n)
			used += e.moved(n)
		}
	}
	if c.last && c.rest == 0 && c.kernel == 0 && len(c.streams) == 0 {
		e.drop(c)
	}
	return used
}

// reads is how much of n the client, or the upstream, reads now.
func (e *Envoy) reads(r *rate, n int64) int64 {
	n = min(n, max(r.available(e.now), 0))
	r.use(n)
	e.peer(n)
	return n
}

// linger reads what the client of a rejected request goes on to send: up to a buffer limit.
func (e *Envoy) linger(c *Conn) Time {
	s := c.sender
	if s == nil || s.started {
		return 0
	}
	n := min(e.Downstream-c.unread, s.Call.Body-s.sent, s.sending.available(e.now))
	if n <= 0 {
		return 0
	}
	s.sent += n
	s.sending.use(n)
	e.write(&s.wrote, s.sent, s.Call.Body, s.sending)
	c.unread += n
	e.unseen += n
	e.heap.alloc(n)
	return e.moved(n)
}

func (e *Envoy) serveStream(s *Stream) (used Time) {
	c := s.Conn
	if s.over {
		e.finish(s)
		return 0
	}
	if s.Call.HangUp > 0 && e.now-s.begun >= s.Call.HangUp {
		e.report.class(s.client.Class).GaveUp++
		s.over = true
		e.next(s.client)
		if c.HTTP2 {
			e.finish(s)
		} else {
			e.drop(c)
		}
		return e.PerEvent
	}
	used += e.readRequest(s)
	if s.over || c.gone || c.refused || s.paused {
		return used
	}
	used += e.forward(s)
	used += e.readResponse(s)
	if s.over || c.gone {
		return used
	}
	return used + e.writeResponse(s)
}

// bodyLimit is how much of a request may lie in Envoy before it reads no more of it.
func (e *Envoy) bodyLimit(s *Stream) int64 {
	switch {
	case !s.paused && e.WholeRequest > 0 && !s.ended[Request]:
		return e.WholeRequest
	case s.paused && s.Conn.HTTP2:
		return max(e.Downstream, e.StreamWindow)
	case s.paused:
		return e.Downstream
	}
	return e.Upstream
}

func (e *Envoy) readRequest(s *Stream) (used Time) {
	c := s.Conn
	first := !s.opened
	if s.ended[Request] {
		return 0
	}
	n := int64(0)
	if rest := s.Call.Body - s.sent; rest > 0 {
		n = min(rest, s.sending.available(e.now), e.Downstream)
		full := s.held > e.bodyLimit(s)
		if c.HTTP2 {
			n = min(n, frame, e.StreamWindow-s.unacked, e.ConnectionWindow-c.unacked)
		} else if full {
			n = 0
		}
		n = max(n, 0)
	}
	if !first && n == 0 {
		return 0
	}
	if e.filter != nil && !e.NoNetworkFilter && e.filter.Data(c, n+200) {
		c.refused = true
		return used + e.moved(n)
	}
	if first {
		s.opened = true
		used += e.PerRequest
		e.heap.alloc(e.StreamCost)
		if e.filter != nil {
			length := s.Call.Announce
			if s.Call.Body == 0 && length <= 0 {
				length = 0
			}
			if e.filter.Headers(s, Request, length) {
				s.paused, s.since = true, e.now
				e.waiting++
				e.oldest = append(e.oldest, s)
				e.verdict("wait", s.ID)
			} else {
				e.admitted(s)
			}
			if s.over && c.HTTP2 { // the codec drops the frames of a stream that is reset
				e.finish(s)
				return used
			}
		}
		if s.Call.Body == 0 && s.Call.Announce <= 0 {
			s.ended[Request], s.reached, s.arrived = true, e.now, e.now
			return used
		}
	}
	s.sent += n
	s.sending.use(n)
	e.write(&s.wrote, s.sent, s.Call.Body, s.sending)
	s.held += n
	e.heap.alloc(n)
	if c.HTTP2 {
		s.unacked += n
		c.unacked += n
	}
	used += e.moved(n)
	if s.paused {
		s.waits += n
		e.credit(s)
		return used
	}
	e.pass(s, n)
	return used
}

// complete says whether the client has sent the whole request.
func (s *Stream) complete() bool {
	return s.sent == s.Call.Body && (s.Call.Announce == Unknown || s.sent >= s.Call.Announce)
}

// pass hands bytes of the request through the filter.
func (e *Envoy) pass(s *Stream, n int64) {
	end := s.complete()
	if s.over || n == 0 && !end {
		return
	}
	if e.filter != nil {
		e.filter.Body(s, Request, n, end)
	}
	s.ended[Request] = end
	e.credit(s)
}

// credit gives an HTTP/2 client back the window that its bytes took, unless the stream is full.
func (e *Envoy) credit(s *Stream) {
	if s.Conn.HTTP2 && s.unacked > 0 && (s.held <= e.bodyLimit(s) || s.over) {
		s.Conn.unacked -= s.unacked
		s.unacked = 0
	}
}

// forward writes the request to the upstream.
func (e *Envoy) forward(s *Stream) (used Time) {
	if e.WholeRequest > 0 && !s.ended[Request] {
		return 0
	}
	if s.reached == 0 {
		defer e.takeSlots(s)
		s.reached = e.now
		s.taking = rate{perSecond: s.Call.TakeRate, from: e.now + s.Call.Wait}
	}
	if s.kernel > 0 && e.now-s.reached >= s.Call.Wait {
		n := e.reads(&s.taking, s.kernel)
		s.kernel -= n
		e.socket -= n
		s.taken += n
	}
	if n := min(s.held, e.KernelUp-s.kernel); n > 0 {
		s.held -= n
		s.kernel += n
		e.socket += n
		e.heap.free(n)
		used = e.moved(n)
		if fresh := e.socket - e.sockets; fresh > 0 {
			e.sockets += fresh
			used += cost(fresh, e.FreshPerMs)
		}
		e.credit(s)
	}
	if s.ended[Request] && s.arrived == 0 && s.held == 0 && s.kernel == 0 {
		s.arrived = e.now
	}
	return used
}

// takeSlots: the buffers that a body goes through whole have a slot for each slice of it, doubled as they are needed, and
// keep them until the stream ends. Then they stay with the allocator for the next one of that size, and for no other.
func (e *Envoy) takeSlots(s *Stream) {
	const slice = 16 << 10
	if e.WholeRequest == 0 || e.SlotCost == 0 {
		return
	}
	s.slots = 1
	for s.slots <= s.sent/slice {
		s.slots *= 2
	}
	if e.slots[s.slots] > 0 {
		e.slots[s.slots]--
	} else {
		e.heap.alloc(s.slots * e.SlotCost)
	}
}

func (e *Envoy) readResponse(s *Stream) (used Time) {
	if s.arrived == 0 || e.now-s.reached < s.Call.Wait || s.ended[Response] {
		return 0
	}
	call := &s.Call
	if !s.started {
		s.giving = rate{perSecond: call.GiveRate, from: e.now}
		s.reading = rate{perSecond: call.ReadRate, from: e.now}
		length := call.Response
		if call.Chunked && length > 0 {
			length = Unknown
		}
		if e.filter != nil {
			e.filter.Headers(s, Response, length)
		}
		if s.over {
			return e.PerEvent
		}
		s.started = true
		used = e.PerEvent
		if call.Response == 0 {
			s.ended[Response] = true
		}
	}
	limit := e.Downstream
	if s.Conn.HTTP2 {
		limit = max(limit, e.StreamWindow)
	}
	// A buffer that was full is read into again when half of it has gone: Envoy's low watermark. Of a chunked response one
	// read more is found in Envoy: bench/model shows 0.9 MiB each with buffers of 512 KiB.
	s.full = (s.full || s.answer >= limit) && s.answer > limit/2
	if s.full || s.ended[Response] {
		return used
	}
	n := min(call.Response-s.given, s.giving.available(e.now), e.Upstream)
	if n <= 0 {
		return used
	}
	s.given += n
	e.write(&s.gave, s.given, call.Response, s.giving)
	s.answer += n
	s.full = s.answer >= limit && !call.Chunked
	e.heap.alloc(n)
	end := s.given == call.Response && !call.Idle
	if e.filter != nil {
		e.filter.Body(s, Response, n, end)
	}
	s.ended[Response] = end
	return used + e.moved(n)
}

func (e *Envoy) writeResponse(s *Stream) (used Time) {
	if !s.started {
		return 0
	}
	c := s.Conn
	stalled := s.Call.Stall != nil && s.Call.Stall(e.now-s.reading.from)
	if !stalled {
		c.kernel -= e.reads(&s.reading, c.kernel)
	}
	if n := min(s.answer, e.KernelDown-c.kernel); n > 0 {
		s.answer -= n
		c.kernel += n
		e.heap.free(n)
		used = e.moved(n)
	}
	if s.ended[Response] {
		// The stream ends here, for Envoy; what the client has not read stays with the connection.
		s.over = true
		class := e.report.class(s.client.Class)
		class.Done++
		class.Bytes += s.Call.Body + s.Call.Response
		class.Latency = append(class.Latency, e.now-s.client.begun)
		c.rest += s.answer
		s.answer = 0
		c.restAt = s.reading
		client := s.client
		e.returned(client, true)
		e.finish(s)
		client.made++
		client.pending, client.busy = false, false
		client.next = max(client.begun+client.Every, e.now)
		if client.Fresh && !c.HTTP2 {
			c.last, client.conn = true, nil
		}
	}
	return used
}

// next ends a call that failed for good.
func (e *Envoy) next(c *client) {
	c.made++
	c.pending, c.busy = false, false
	c.next = max(c.begun+c.Every, e.now+step)
}

// retry lets the client make its call again, after told if it obeys and was told something.
func (e *Envoy) retry(c *client, told Time) {
	e.returned(c, false)
	if c.KeepCalls {
		e.next(c)
		return
	}
	c.busy = false
	c.next = e.now + max(c.Retry, step)
	if c.Obey && told > 0 {
		c.told, c.next = told, e.now+told
		class := e.report.class(c.Class)
		class.Told = append(class.Told, told)
	}
}

// returned notes what became of a client that came back when it was told to.
func (e *Envoy) returned(c *client, kept bool) {
	if c.told > 0 {
		class := e.report.class(c.Class)
		class.Returns = append(class.Returns, Return{Told: c.told, Kept: kept})
		c.told = 0
	}
}

// finish ends a stream that is over.
func (e *Envoy) finish(s *Stream) {
	if s.done {
		return
	}
	s.done = true
	c := s.Conn
	for i := range c.streams {
		if c.streams[i] == s {
			c.streams = append(c.streams[:i], c.streams[i+1:]...)
			break
		}
	}
	e.unpause(s)
	if c.HTTP2 {
		c.unacked -= s.unacked
		s.unacked = 0
	}
	if s.opened {
		e.heap.free(s.held + s.answer + e.StreamCost)
		s.held, s.answer = 0, 0
		e.socket -= s.kernel
		s.kernel = 0
		if s.slots > 0 {
			e.slots[s.slots]++
		}
		if e.filter != nil {
			e.filter.Done(s)
		}
	}
}

func (e *Envoy) unpause(s *Stream) {
	if !s.paused {
		return
	}
	s.paused = false
	e.waiting--
	e.report.class(s.client.Class).Waited++
	e.report.LongestWait = max(e.report.LongestWait, e.now-s.since)
	for i := range e.oldest {
		if e.oldest[i] == s {
			e.oldest = append(e.oldest[:i], e.oldest[i+1:]...)
			break
		}
	}
}

// drop closes a connection, and all that is on it.
func (e *Envoy) drop(c *Conn) {
	if c.gone {
		return
	}
	c.gone = true
	if e.filter != nil && !e.NoNetworkFilter {
		e.filter.CloseConnection(c)
	}
	for len(c.streams) > 0 {
		s := c.streams[0]
		if !s.over {
			e.retry(s.client, 0)
		}
		s.over = true
		e.finish(s)
	}
	e.heap.free(c.cost + c.rest + c.unread)
	c.rest, c.unread = 0, 0
	conns := e.workers[c.Worker].conns
	for i := range conns {
		if conns[i] == c {
			conns[i] = conns[len(conns)-1]
			e.workers[c.Worker].conns = conns[:len(conns)-1]
			break
		}
	}
}

// settle carries out what the filter has done in its last call, and holds its estimate against the truth.
func (e *Envoy) settle() {
	if e.filter == nil {
		return
	}
	for changed := true; changed; {
		changed = false
		for i := 0; i < len(e.oldest); i++ {
			s := e.oldest[i]
			switch {
			case s.over:
				e.finish(s)
				changed = true
			case s.resumed:
				s.resumed = false
				e.unpause(s)
				e.admitted(s)
				n := s.waits
				s.waits = 0
				e.pass(s, n)
				changed = true
			default:
				continue
			}
			i--
		}
		for len(e.closing) > 0 {
			c := e.closing[0]
			e.closing = e.closing[1:]
			for _, s := range c.streams {
				switch {
				case s.over:
				case s.opened, c.refused:
					e.report.class(s.client.Class).Closed++
				default:
					// Nothing of it was read: clients send it again.
					s.over, s.client.busy = true, false
				}
			}
			e.drop(c)
			changed = true
		}
	}
	e.check()
}

// check holds the estimate against the truth, but for what clients of rejected requests have sent since the reading: no
// filter sees it come. The guard counts it for a round trip, and closes connections where it could be more than an eighth
// of what traffic can have.
func (e *Envoy) check() {
	truth := e.heap.inUse()
	if e.limit > 0 {
		e.report.Excess = max(e.report.Excess, truth-e.limit)
		if e.report.Readings <= 10 {
			e.report.First = max(truth, e.limit)
		} else {
			e.report.LateExcess = max(e.report.LateExcess, truth-e.report.First)
		}
	}
	estimate, known := e.filter.Estimate()
	if !known {
		return
	}
	e.report.Checks++
	if d := truth - estimate - (e.unseen - e.known); d > e.report.Uncovered {
		e.report.Uncovered, e.report.UncoveredAt = d, e.now-e.start
	}
}

// small: a request that announces no more may be admitted beyond the limit, by the floor.
const small = 64 << 10

// admitted holds the estimate at the admission of a large request against the limit.
func (e *Envoy) admitted(s *Stream) {
	e.stuck = 0
	if s.over || s.Call.Announce <= small {
		return
	}
	if estimate, known := e.filter.Estimate(); known && e.limit > 0 {
		e.report.Admissions++
		e.report.Overadmitted = max(e.report.Overadmitted, estimate-e.limit)
	}
}

// watch looks for a stretch in which there is room for who has waited longest and nobody is admitted.
func (e *Envoy) watch() {
	if len(e.oldest) == 0 || e.limit == 0 {
		e.stuck = 0
		return
	}
	want := e.oldest[0].Call.Announce
	if want == Unknown {
		want = 64 << 10
	}
	var coming int64
	for _, w := range e.workers {
		for _, c := range w.conns {
			for _, s := range c.streams {
				if !s.paused && !s.over && !s.ended[Request] {
					coming += s.Call.Body - s.sent
				}
			}
		}
	}
	free := e.Base + int64(.8*float64(e.limit-e.Base)) - e.limit/10 - e.heap.inUse() - coming - want
	if free < 0 {
		e.stuck = 0
		return
	}
	if e.stuck == 0 {
		e.stuck = e.now
	}
	e.report.Stuck = max(e.report.Stuck, e.now-e.stuck)
}
