// Package backlog bounds what the peers of a gRPC server have sent and have had no answer to.
//
// gRPC bounds a message, a stream's window and the streams of a connection, but not what they come
// to together: ten thousand streams that each begin a message and never finish it, or that ask and
// take no answer, hold gigabytes. Only the wire shows all of it. So a Bound looks at the frames
// that pass on each connection, by their headers, in both directions, and knows of each open stream
//
//	what it holds = bytes of its messages that were not answered
//	                + a fixed cost for each such message and for each of their frames,
//	                + what a stream costs, until its first message is there: that is nobody else's
//	                + its gRPC headers beyond what they usually are, for as long as it is open
//
// where each message of a peer is owed one answer, as in ext_proc. When all streams together hold
// more than the bound allows, a connection is closed: see Conn.blame. A peer that reads its answers
// holds next to nothing for long, however much it sends.
package backlog

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// streamCost is what a stream takes, its goroutine with it: 10,000 of them took 13 KiB each.
	streamCost = 14 << 10
	// messageCost is what a message takes beside its bytes: decoded, with its answer, until the
	// answer is written.
	messageCost = 512
	// frameCost is what a frame of a message takes beside its bytes. A message may come in frames
	// of one byte.
	frameCost = 256
	// plainHeaders are bytes of a stream's gRPC headers that cost nothing, as they are on the wire:
	// Envoy's are 200, and most are an index of the table that both sides keep.
	plainHeaders = 1 << 10
	headersCost  = 2 // bytes for each byte beyond: as it came, and decoded; 8,000 streams with 15 kB each took 91 MiB at 1

	// window is over how long it is looked at what a connection holds, and what it had answered:
	// see Conn.blame.
	window = 500 * time.Millisecond
	// breath is how long nothing is read from who has had no answer, once a connection was closed:
	// its memory comes back a moment later. A hundred connections that sent 1 MiB each at once took
	// three times the bound.
	breath = 10 * time.Millisecond
	little = 16 << 10 // who holds no more is not held back by it
	// most / modest is what a connection may hold for a moment without being blamed for it.
	modest = 16
)

// Bound is the bound of all connections that it watches. Set the fields before the first.
type Bound struct {
	Most   int64                         // bytes that all peers may hold together
	Closed func(peer net.Addr, by int64) // called for each connection that is closed, with what it held; nil = nobody is told

	held     atomic.Int64              // of all
	relieved atomic.Pointer[time.Time] // when the last was closed; nil = none was
	mu       struct {
		sync.Mutex
		conns map[*Conn]struct{}
	}
}

// Held is what all peers hold now, bytes.
func (b *Bound) Held() int64 { return b.held.Load() }

// Watch returns the connection with what passes on it watched. It must carry HTTP/2 in plain text:
// behind TLS, where there is any.
func (b *Bound) Watch(of net.Conn) *Conn {
	c := &Conn{Conn: of, bound: b, preface: len(clientPreface)}
	c.mu.streams, c.mu.since = map[uint32]*stream{}, time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.conns == nil {
		b.mu.conns = map[*Conn]struct{}{}
	}
	b.mu.conns[c] = struct{}{}
	return c
}

// relieve closes the connection that is to blame, if all hold too much.
func (b *Bound) relieve() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.held.Load() <= b.Most {
		return
	}
	var worst *Conn
	var most blame
	for c := range b.mu.conns {
		if of := c.blame(); worst == nil || most.less(of) {
			worst, most = c, of
		}
	}
	if worst == nil {
		return
	}
	by, now := worst.held.Load(), time.Now()
	b.relieved.Store(&now)
	b.forget(worst)
	if b.Closed != nil {
		b.Closed(worst.RemoteAddr(), by)
	}
	go worst.Conn.Close() // TLS may take a while to say goodbye
}

// forget takes a connection out of the books, with mu held.
func (b *Bound) forget(c *Conn) {
	if _, watched := b.mu.conns[c]; watched {
		delete(b.mu.conns, c)
		c.mu.Lock()
		c.mu.gone = true
		b.held.Add(-c.held.Load())
		c.mu.Unlock()
	}
}

// Conn is a connection that is watched.
type Conn struct {
	net.Conn
	bound   *Bound
	held    atomic.Int64 // changed with mu held
	preface int          // bytes of the client's preface that are still to come
	in, out scanner      // each of one goroutine at a time, as Read and Write are

	mu struct {
		sync.Mutex
		streams map[uint32]*stream // that are open
		last    uint32             // the newest
		spoken  int                // streams of which a message has come
		ever    bool               // there was one
		gone    bool               // what it holds counts no more

		since    time.Time // the beginning of the window
		least    [2]int64  // that it held in this window, and in the one before
		answered [2]int64  // what it held and was then answered, in these
	}
}

// blame is how much a connection is to blame for what all hold.
type blame struct{ lasting, now int64 }

func (b blame) less(than blame) bool {
	return b.lasting < than.lasting || b.lasting == than.lasting && b.now < than.now
}

// blame says how much the connection is to blame. Whoever spreads what he holds over a thousand
// connections has less on each than an Envoy that works has in flight; but he holds it all the
// time, and that is what counts. So it is the least that the connection has held of late, or what
// it holds now if that is a lot for one, less what it had answered meanwhile. Where all are alike
// it is what it holds now, without what it had answered.
func (c *Conn) blame() blame {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.roll()
	held := c.held.Load()
	answered := c.mu.answered[0] + c.mu.answered[1]
	lasting := max(min(c.mu.least[0], c.mu.least[1]), held-c.bound.Most/modest)
	return blame{max(lasting-answered, 0), held - answered}
}

// roll begins a new window when it is time, with mu held.
func (c *Conn) roll() {
	now := time.Now()
	passed := now.Sub(c.mu.since)
	if passed < window {
		return
	}
	held := c.held.Load()
	c.mu.least, c.mu.answered = [2]int64{held, c.mu.least[0]}, [2]int64{0, c.mu.answered[0]}
	if passed >= 2*window { // nothing has happened in the one before, nor since
		c.mu.least[1], c.mu.answered[1] = held, 0
	}
	c.mu.since = now
}

const clientPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// stream is what an open stream holds.
type stream struct {
	in, out messages
	owed    int64 // messages that were not answered
	whole   int64 // their bytes, and their frames' cost
	partial int64 // the same of a message that has not all come
	headers int64 // bytes of its gRPC headers, on the wire
	spoken  bool  // a message has come
}

func (s *stream) holds() int64 {
	held := s.whole + s.partial + s.owed*messageCost + headersCost*max(s.headers-plainHeaders, 0)
	if !s.spoken {
		held += streamCost
	}
	return held
}

// Uses says what a connection is for: how many of its streams have a message now, and whether one
// ever had.
func (c *Conn) Uses() (streams int, ever bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.spoken, c.mu.ever
}

// Read implements net.Conn.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	seen := p[:n]
	if skip := min(c.preface, n); skip > 0 {
		c.preface -= skip
		seen = seen[skip:]
	}
	if c.pass(&c.in, seen, c.came) > c.bound.Most {
		c.bound.relieve()
	}
	c.wait()
	return n, err
}

// wait holds back a connection that holds something, of which nothing was answered of late, when
// another was closed a moment ago.
func (c *Conn) wait() {
	relieved := c.bound.relieved.Load()
	if relieved == nil {
		return
	}
	rest := time.Until(relieved.Add(breath))
	if rest <= 0 {
		return
	}
	c.mu.Lock()
	c.roll()
	works := c.mu.gone || c.held.Load() <= little || c.mu.answered[0]+c.mu.answered[1] > 0
	c.mu.Unlock()
	if !works {
		time.Sleep(rest)
	}
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.pass(&c.out, p[:n], c.went)
	return n, err
}

// Close implements net.Conn.
func (c *Conn) Close() error {
	c.bound.mu.Lock()
	c.bound.forget(c)
	c.bound.mu.Unlock()
	return c.Conn.Close()
}

// pass has each frame in p seen, and returns what all connections hold then.
func (c *Conn) pass(s *scanner, p []byte, see func(s *scanner, begins bool, data []byte) (more int64)) int64 {
	if len(p) == 0 {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var more int64
	for len(p) > 0 {
		var data []byte
		var begins bool
		data, p, begins = s.next(p)
		more += see(s, begins, data)
	}
	if more == 0 || c.mu.gone {
		return 0
	}
	c.roll()
	c.mu.least[0] = min(c.mu.least[0], c.held.Add(more))
	return c.bound.held.Add(more)
}

// came sees a piece of what the peer sent, with mu held.
func (c *Conn) came(s *scanner, begins bool, data []byte) (more int64) {
	if begins {
		switch {
		case s.kind == headersFrame && s.stream > c.mu.last:
			c.mu.last = s.stream
			st := &stream{headers: int64(s.left)}
			c.mu.streams[s.stream] = st
			return st.holds()
		case s.kind == continuationFrame:
			if st := c.mu.streams[s.stream]; st != nil {
				before := st.holds()
				st.headers += int64(s.left)
				return st.holds() - before
			}
		case s.kind == resetFrame:
			return -c.drop(s.stream)
		}
	}
	if s.kind != dataFrame {
		return 0
	}
	st := c.mu.streams[s.stream]
	if st == nil {
		return 0 // it has ended: what still comes is thrown away
	}
	before := st.holds()
	if begins {
		st.partial += frameCost
	}
	st.partial += int64(len(data))
	if n := st.in.pass(data); n > 0 {
		if !st.spoken {
			st.spoken = true
			c.mu.spoken++
			c.mu.ever = true
		}
		st.owed += n
		st.whole += st.partial
		st.partial = 0
	}
	return st.holds() - before
}

// went sees a piece of what the server sent, with mu held.
func (c *Conn) went(s *scanner, begins bool, data []byte) (more int64) {
	st := c.mu.streams[s.stream]
	if st == nil {
		return 0
	}
	if s.kind == dataFrame {
		before := st.holds()
		for range st.out.pass(data) {
			if st.owed > 0 {
				st.whole -= st.whole / st.owed // of several that are owed each counts for as much
				st.owed--
			}
		}
		more = st.holds() - before
		c.mu.answered[0] -= more
	}
	if begins && (s.kind == resetFrame || s.ends()) {
		more -= c.drop(s.stream)
	}
	return more
}

// drop forgets a stream and returns what it held.
func (c *Conn) drop(id uint32) (held int64) {
	if st := c.mu.streams[id]; st != nil {
		held = st.holds()
		if st.spoken {
			c.mu.spoken--
		}
		delete(c.mu.streams, id)
	}
	return held
}
