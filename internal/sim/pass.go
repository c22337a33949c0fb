package sim

import (
	"math"
	"time"
)

// Run puts the load in front of the proxy, lets it end, and reports.
func (e *Envoy) Run(l Load) *Report {
	e.report.Name = l.Name
	e.start = e.now
	e.from(l.Source)
	for i := range l.Clients {
		c := &l.Clients[i]
		e.clients = append(e.clients, &client{Client: c, next: e.now + c.Start})
	}
	end := e.now + l.Duration
	for e.now < end && !e.stopped() {
		e.skip(end)
		e.step(true)
		if l.Warm > 0 && e.now-e.start == l.Warm {
			e.report.Classes = map[string]*Class{}
		}
	}
	e.report.Stayed = e.heap.inUse()
	e.close()
	for limit := end + l.Drain; e.now < limit && e.busy() && !e.stopped(); {
		e.skip(limit)
		e.step(false)
	}
	for _, c := range e.all() {
		e.drop(c)
	}
	e.settle()
	for end := e.now + 11*time.Second; e.now < end && e.filter != nil; {
		e.skip(end)
		e.step(false)
	}
	if e.filter != nil {
		e.report.Left = e.filter.Left()
	}
	e.report.Peak, e.report.PeakAllocated, e.report.Trace = e.heap.peak, e.heap.highest, e.hash
	return e.report
}

func (e *Envoy) all() []*Conn {
	var all []*Conn
	for i := range e.workers {
		all = append(all, e.workers[i].conns...)
	}
	return append(all, e.parkedConns()...)
}

func (e *Envoy) busy() bool {
	if e.sourced != nil && e.under > 0 {
		return true
	}
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
		e.arrive()
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
	if e.sourced != nil {
		e.expire()
		e.show()
		return
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
	case c.Conn > 0:
		if conn = e.shared[c.Conn]; conn != nil && !conn.gone && (len(conn.streams) > 0 || conn.rest > 0 || conn.kernel > 0) {
			return // another call is under way there, or its response has not been read
		}
		if conn == nil || conn.gone {
			conn = e.connect(c)
			e.shared[c.Conn] = conn
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
	conn.wake = 0
	e.unpark(conn)
	e.nextID++
	s := &Stream{
		Conn: conn, Call: c.call, ID: e.nextID, client: c, begun: e.now,
		upload: upload{sending: rate{perSecond: c.call.SendRate, from: e.now}},
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
		e.tell(&Stream{Conn: conn, Call: c.call, client: c}, Refused)
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
	return n + e.parkedCount()
}

// work lets a worker use the CPU time on its connections, and returns what is left of it: what is
// missing if negative.
func (e *Envoy) work(w *worker, cpu Time) Time {
	idle := 0
	for cpu > 0 && idle < len(w.conns) {
		if w.next >= len(w.conns) {
			w.next = 0
			w.round++
		}
		c := w.conns[w.next]
		w.next++
		if c.wake > e.now {
			idle++
			continue
		}
		fresh := e.heap.fresh
		used := e.serve(c)
		used += cost(e.heap.fresh-fresh, e.FreshPerMs)
		if used == 0 {
			idle++
			e.sleep(w, c)
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

// write is peer for one who writes a message of total bytes of which Envoy has read so many.
// Without a rate of its own it is ahead by what the kernel takes: nearly all of its CPU goes before
// Envoy's.
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
		e.tell(s, GaveUp)
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
