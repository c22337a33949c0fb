package sim

import (
	"container/list"
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
	wake    Time  // nothing moves on it until then; 0 = it may
	parked  *list.Element
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
	// RetryAfter is what the Filter tells its client, in whole seconds, with Proxy.Answer; 0 =
	// nothing.
	RetryAfter Time
	// Reason is why the Filter ends it, with Proxy.Answer; empty = it does not say.
	Reason string

	client *client
	begun  Time
	waited Time // in the queue
	upload
	download
	ended [2]bool
	over  bool // rejected, reset, finished or given up: nothing moves any more
	done  bool // the filter has been told
}

// upload is the way of the request, from the client to the upstream.
type upload struct {
	opened  bool // the filter has been told of its headers
	ready   int  // the worker's round in which there is a connection to the upstream
	paused  bool // by the filter, at its headers
	since   Time // paused since
	resumed bool
	sending rate
	sent    int64 // by the client, into Envoy
	wrote   int64 // by the client, into the kernel
	unacked int64 // HTTP/2: of its window
	held    int64 // of the request, in Envoy
	waits   int64 // of held, not yet passed by the filter, because it was paused
	taking  rate
	taken   int64 // by the upstream
	kernel  int64 // request bytes that the kernel holds for the upstream
	slots   int64 // of the buffers that the request went through
	reached Time  // when it came to the upstream, which then waits
	arrived Time  // when the upstream had it all
}

// download is the way of the response, from the upstream to the client.
type download struct {
	started bool // the response has
	giving  rate
	given   int64 // by the upstream, into Envoy
	gave    int64 // by the upstream, into the kernel
	answer  int64 // of the response, in Envoy
	full    bool  // it is, and no more is read
	reading rate
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
	round int  // how often it has been at all its connections
	pool  int  // free connections to the upstream, with a Source
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
	workers []worker
	clients []*client
	links
	upstreams
	readings
	waiting int
	turn    int
	report  *Report
	limit   int64
	peers   Time // CPU that clients and upstream took, and workers don't have
	hash    uint64
	stuck   Time // since when somebody waits although there is room; 0 = not
	oldest  []*Stream
	dirty   bool // the filter has ended or resumed something
	*sourced
}

// links are the connections of clients.
type links struct {
	shared  map[int]*Conn // HTTP/2 connections, by id
	dying   []*Conn       // linger
	closing []*Conn       // by the filter
	nextID  int
}

// upstreams are what the ways to them hold.
type upstreams struct {
	slots   map[int64]int // free ones of ended streams, by their number
	socket  int64         // bytes that the kernel holds for upstreams
	sockets int64         // the most that it ever held: it has pages for those
}

// readings are what is asked for and what no reading tells.
type readings struct {
	reading *reading
	unseen  int64 // ever sent by clients of rejected requests, seen by no filter
	known   int64 // and how much of it was when the last reading was taken
}

// New returns a model with nothing in it. limit is the budget that the report compares with; 0 =
// none.
func New(s Settings, limit int64, seed uint64) *Envoy {
	e := &Envoy{
		Settings: s, random: rand.New(rand.NewPCG(seed, 42)), now: time.Hour, links: links{shared: map[int]*Conn{}}, upstreams: upstreams{slots: map[int64]int{}}, limit: limit,
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
	e.dirty = true
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
	s.over, e.dirty = true, true
	c := s.Conn
	c.wake = 0
	if !s.paused {
		e.report.Ended += s.held + s.answer
	}
	if s.started {
		e.report.class(s.client.Class).Reset++
		e.tell(s, Cut)
	} else {
		e.report.class(s.client.Class).Rejected++
		e.tell(s, Rejected)
	}
	e.retry(s.client, s.RetryAfter)
	switch {
	case c.HTTP2:
	case s.started, !s.ended[Request]:
		// It lingers, with what is in its buffers, and with up to a buffer limit that is read no
		// more.
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
		e.dirty = true
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
	if e.sourced != nil {
		e.report.Verdicts++
		return
	}
	h := fnv.New64a()
	fmt.Fprintf(h, "%d %d %s %d", e.hash, e.now, what, id)
	e.hash = h.Sum64()
	e.report.Verdicts++
}
