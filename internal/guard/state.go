package guard

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/events"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/forecast"
	"github.com/highwater-envoy/highwater/internal/idle"
	"github.com/highwater-envoy/highwater/internal/linger"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/retryafter"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// What has an identity is here, with what can be asked of it and changes nothing. It is one file,
// because a stream knows its guard, a guard its worker, and a worker its streams.

// Time is a reading of the host's CLOCK_MONOTONIC, the same for all workers of a process.
type Time = budget.Time

// Guard applies one plugin's configuration to the streams of one worker.
type Guard struct {
	config     config.Config
	worker     *Worker
	by         func(Host) string // tells requests apart; nil = they are not
	header     string            // if it is one by which they are
	exemptions exemptions
}

// Host answers what is needed of a request only now and then, because each answer is a call of the
// host. Names (of the route, the cluster, the virtual host, the source) are valid until the next
// such call: who keeps one clones it.
type Host interface {
	HTTP2() bool             // HTTP/2 or later
	Connection() *Connection // nil if it can't be told
	// Arrived is the connection whose bytes came last before the request's headers did, nil without
	// a network filter: no call. It is the request's own, unless a filter before this one held the
	// request back.
	Arrived() *Connection
	// HeaderBytes is the size of the request's headers, 0 if it can't be told. It is asked at the
	// headers, where much has come.
	HeaderBytes() int64
	// BodyLimit is how much of the request's body filters may hold, bytes, as far as its route and
	// they have said so at its headers; 0 if it can't be told. It is asked where the face has set
	// caps on its connection.
	BodyLimit() int64
	Path() string
	Route() string
	Cluster() string
	VirtualHost() string
	Source() string                    // address of the client, without its port
	Header(name string) (value string) // of the request; empty if it has none
	// Describe says whose the request is, of what is asked for at its first sample alone. header is
	// the request header that goes into Key, if it is not empty. What can't be told any more is
	// left empty. It may be called in a tick.
	Describe(header string) reservoir.Labels
	// Visibility says what will be told of the direction. It is asked at the headers of each, and
	// of a response at those of its request too.
	Visibility(d budget.Direction) budget.Visibility
}

// Verdict is what a request is told: see package verdict.
type Verdict = verdict.Verdict

// observesBeside says that this guard observes beside one that enforces. Its verdicts are counted
// alone, and requests that it would have rejected count as admitted.
func (g *Guard) observesBeside() bool { return g.config.Mode == config.Observe && g.worker.enforcing }

// observesAlone says that this guard's verdicts are carried out in the books alone.
func (g *Guard) observesAlone() bool { return g.config.Mode == config.Observe && !g.worker.enforcing }

// enforcesTCP says whether raw connections are refused and closed, and not counted alone.
func (g *Guard) enforcesTCP() bool {
	return g.config.Mode == config.Enforce && g.config.TCP == config.Enforce
}

// mayExempt says that a request whose first n bytes come at once may be exempt.
func (g *Guard) mayExempt(n int64) bool {
	x := &g.exemptions
	// Headers come with the body: half of n may be theirs.
	return len(x.routes)+len(x.clusters) > 0 || len(x.paths) > 0 && int64(g.worker.budget.Small) >= n/2
}

// exemption says how far a request is exempt.
type exemption uint8

const (
	notExempt  exemption = iota // it is not
	whileSmall                  // by its path, which the client says: up to budget.small each way
	always                      // by the operator's own routing: the size does not matter
)

// Worker is what one worker (in Envoy: one virtual machine) keeps: its account, its queue, its keys
// and its connections. The Guards of all plugins in it share it. It is not safe for concurrent use.
//
// Requests are judged as they come, by Guard.Open and what follows it. All else is done by Tick, in
// an order in which each step finds what it goes by:
//
//  1. What passes by itself passes: bytes that lingered, responses that were unread, reservations
//     for what did not come. It is this worker's own, and the others are told of it in step 2.
//  2. The account meets the others. From here on the table is the newest that this worker knows,
//     and all that follows decides by it. It also says who polls.
//  3. What was presumed while memory was calm is judged, if it is calm no more. It has its room
//     already, so that it goes before whoever asks for some now.
//  4. The sample is frozen, if a peak was seen, before anything ends that made it.
//  5. Shares are exchanged, before somebody is evicted or resumed by them.
//  6. Somebody is evicted, or else resumed or rejected after his timeout, never both. What is over
//     the limit has no room to give; and one call of the host that resumes a request must not end
//     another of the same connection, or Envoy crashes.
//  7. Connections are closed: those of rejected requests, to which step 6 may have added, and idle
//     ones. Neither is one on which this tick ended a stream; those wait for the next.
//  8. A reading is asked for last, so that it holds what this tick let in.
//  9. What is left to do says when the next tick is due.
type Worker struct {
	account *budget.Account
	random  func() float64
	policy
	pace

	queue
	rejects
	probing   int64  // what the responses of probes may hold and is not reserved
	futile    futile // large requests while shedding is futile
	back      retryafter.Desk
	leftovers // of ended requests
	evictions
	keyring
	idle idle.List[Connection]
	trials
	raws raws

	reader
	tracer  tracer
	telling events.Log
	actions Actions
	counts  [metric.NumCounters]uint64
}

// HostError counts a call of the host that failed.
func (w *Worker) HostError() { w.counts[metric.CountHostErrors]++ }

func (w *Worker) count(reason verdict.Reason) { w.counts[metric.CountRejected+int(reason)-1]++ }

// publish hands what the line and the rejects hold to the account.
func (w *Worker) publish() {
	w.account.SetWaiting(int64(w.line.Len()), w.held, w.come, w.line.Since())
	w.account.SetRate(w.line.Bytes(), w.back.Admitted.PerSecond())
	w.account.SetLeft(w.rejectedUnread.Bytes())
	w.account.SetLeaving(w.leaving.Bytes())
}

func (w *Worker) eachKey(do func(k *key)) {
	do(&w.keys.Other)
	for _, k := range w.keys.All() {
		do(k)
	}
}

// warm says that memory is where a mark can come, so that what is sampled is worth its calls of the
// host.
func (w *Worker) warm() bool {
	t := w.account.Table()
	return w.trace.Capacity > 0 && t.InUse-t.Base >= int64(w.trace.Floor)
}

// measuresSoft says that the reading itself has reached soft, or that there is none. Before that no
// connection is closed for an estimate.
func (w *Worker) measuresSoft(now Time) bool {
	return w.account.Stale(now) || w.account.Table().Reading >= w.account.Share(w.limits.Soft)
}

// queue is where a worker's requests wait. Small ones go first, then large ones. Among
// either, the next is of the key that has least for its weight. Others wait on other workers, and
// all count as one queue.
type queue struct {
	line     fairness.Line[Stream]
	held     int64   // pause cost of those in it, and their headers
	come     int64   // what of it is there already, as far as that is seen
	resumed  bool    // the last tick that served them resumed one
	credited *Stream // the one resumed since the last tick
}

// rejects is what is left of those that a worker rejected.
type rejects struct {
	closing        []*Stream  // their connections are to be closed
	rejectedUnread linger.Sum // what the others left unread, until their connections are closed
}

// letIn says by which of the two a large request was let in, or both: its response may be let in by
// another than the request was.
type letIn uint8

const (
	inFloor letIn = 1 << iota // it stays in the small sum; TestFutile
	alone                     // one that is larger than the floor finds no way in else; TestFutileLargerThanTheFloor
)

func (l letIn) is(way letIn) bool { return l&way != 0 }

// leaves notes that a request ends that was let in while shedding was futile.
func (f *futile) leaves(now Time, l letIn) {
	if l == 0 {
		return
	}
	f.ended = now
	if l.is(alone) {
		f.taken = false
	}
}

// leftovers is what ended responses may still hold, because their clients have not read it yet.
type leftovers struct {
	residual []*Connection // with an ended response that may be unread
	settled  Time          // when those were looked at last
}

// evictions is what a worker evicts.
type evictions struct {
	leaving   linger.Sum  // what was evicted, and may still be there
	evictable []candidate // of one key, while it is decided who goes
}

// candidate is something that can be evicted: a stream, or what an ended response left unread on a
// connection.
type candidate struct {
	stream     *Stream
	connection *Connection
	likely     int64
	shared     bool // a connection with other streams on it
}

// trials are the connections that are on trial: see Guard.letIn.
type trials struct {
	tried []*Connection // in the order in which they came; those whose trial is over too
	onTry int64         // those whose trial is not

	triedFor int64 // what the last costs, bytes
	reads    int64 // what a new one may read ahead, bytes, as of the last tick
}

// Actions is what Tick wants done. It is valid until the next Tick.
type Actions struct {
	Resume   *Stream // continue it; at most one per call of the host: more would crash Envoy
	Waited   unit.Duration
	Rejected []Decision      // or evicted
	Close    []*Stream       // close their connections
	Cut      []*Connection   // close them: what ended responses left there is evicted, or they are raw and hold most
	Idle     []*Connection   // close them: there is no stream on them
	Lower    bool            // connections may read less ahead than before: see Relimit
	Ask      bool            // ask for a reading now
	Polls    bool            // this worker asks for readings and publishes the gauges
	Next     time.Duration   // tick again after so long: FastTick, SlowTick or one between
	Event    string          // to be logged; empty = nothing
	Severity events.Severity // of that
}

// Decision is a verdict on a stream that had been waiting.
type Decision struct {
	Stream  *Stream
	Verdict Verdict
}

// How long it is from one tick to the next.
const (
	FastTick = 2 * time.Millisecond   // while somebody waits or is to be closed: one is resumed per tick; TestHiddenBurstIsKnown
	Tick     = 25 * time.Millisecond  // else; TestWithoutReadingsTheGuardIsBlind
	CalmTick = 50 * time.Millisecond  // where this one has no request: the one who polls, as long as no reading is due before; TestAnIdleWorkerTicksSeldom
	SlowTick = 500 * time.Millisecond // and where this one has had none for calmAfter: the others; TestAnIdleWorkerStaysInTheTable
)

// keyring is the keys of a worker, and what follows from all of them.
type keyring struct {
	keys      *fairness.Keys[keyed]
	guards    []*Guard // that requests come to: their weights name keys
	shares    shares
	sources   int // connections that are told apart by their source
	heavyKeys int // how many keys have large responses
	openEnded openEnded
	prices    prices
}

type key = fairness.Key[keyed]

// keyed is what a worker knows of one key.
type keyed struct {
	budget.Sum // what its streams have
	queue      fairness.Queue[Stream]
	forecast.History
	kept forecast.Kept // what its requests come to that filters keep
	probes
	fairness.Entitlement
	fairness.Sockets
	most      int64 // what one of its streams likely holds, while memory is over the limit
	price     int64 // and beside what is counted of it: see learnPrices; 0 = nothing is known
	holds     int64 // the same, where it tells more than its bytes
	rejected  int64 // bytes that were rejected and may come back, fewer and fewer since
	lastLarge Time  // when its last large request or response came
}

// state is where a request is in its life. Each arrow is one method of Stream, which begins the
// books that the new state keeps and ends those of the old one:
//
//	done ── begin ──▶ live ◀── unpresume ────── presumed
//	                  live ─── presume ───────▶ presumed
//
//	                  live ◀── leaveLine ────── queued
//	                  live ─── joinLine ──────▶ queued
//
//	                  live ─── reject ────────▶ rejected   nothing of it is left unread
//	                  live ─── rejectUnread ──▶ rejected   until its client has read the answer
//	                  live ─── rejectClosing ─▶ closing    until its connection is closed
//	                                            closing ── vanish ──▶ rejected
//
//	any of them ───── Close ──▶ done
//
// In mode observe queued, rejected and closing are in the books alone: Envoy lets such a request
// go, and the account calls it a shadow. It is in the same state, by the same transitions; it alone
// vanishes, for its connection is not closed.
type state uint8

const (
	done     state = iota
	presumed       // let in unjudged: its response may hold all that is reserved for it
	live           // let in, and what it brings is counted
	queued         // paused at its headers, in the queue
	rejected       // answered, reset or evicted
	closing        // rejected without an answer: paused until its connection is closed
)

// Stream is one request and its response. The zero value is ready for Open, and after Close it may
// be used again.
//
// What Envoy can hold of it, at any moment, is
//
//	request    min(passed, cap) + what is reserved for it and has not come
//	response   min(passed, cap) + what is reserved for it and has not come
//	pause      what it leaves unread in Envoy's codec, where no HTTP filter counts it
//
// The account keeps the first two, in budget.Stream. The policy decides what is reserved: before
// anything has come what the two are expected to bring (wants, expects), for which there has to be
// room, and from then on twice of what each has brought. The pause lasts as long as Envoy does not
// read: in the queue until the request goes on, and rejected until its connection is closed.
//
// What only a call of the host can tell is asked once, and only where something depends on it: the
// key, the connection, the protocol.
type Stream struct {
	budget.Stream
	guard      *Guard
	host       Host
	connection *Connection // known only if it was asked for: it waited, was rejected or was the one to verify
	busyOn     *Connection // the one that is not idle because of it; nil = none, or there is no network filter
	key        *key        // the other, if not keyed
	body
	expects forecast.Prediction // and what its response will
	unproven
	pause
	meanwhile   meanwhile // where it is a shadow
	state       state
	exempt      exemption
	letIn       letIn
	http2       bool
	asked       bool // http2 is known
	keyed       bool // key is known
	evictedOnce bool // it is no candidate any more: it was evicted, or would have been in mode enforce
	traced
}

// pause is what a paused request costs: one in the queue, or one that was rejected unfinished.
type pause struct {
	waiter    fairness.Waiter[Stream]
	pauseCost int64 // what it can leave unread
	come      int64 // what it holds while it is in the queue: its headers and what has come, as far as that is seen, else its pause cost
	window    int64 // of its HTTP/2 connection's window, while it waits
}

// admitted says that the request was let in, and goes on.
func (s *Stream) admitted() bool { return s.state == presumed || s.state == live }

// total is what the request is expected to come to, with its headers and its response.
func (s *Stream) total() int64 { return s.Kept() + s.asks() }

// asks is what it asks room for: its headers are there.
func (s *Stream) asks() int64 { return s.wants + s.expects.Bytes }

func (s *Stream) isHTTP2() bool {
	if !s.asked {
		s.http2, s.asked = s.host.HTTP2(), true
	}
	return s.http2
}

// seen says whether the network filter sees what comes while the request is paused.
func (s *Stream) seen() bool { return s.connection != nil && s.connection.Context != 0 }

// seesItsOwn says whether what the network filter sees come is the request's own: on HTTP/2 it
// can't be told of which request it is.
func (s *Stream) seesItsOwn() bool { return s.seen() && !s.isHTTP2() }

// Peer tells whose a connection is.
type Peer interface {
	Source() string // address of the client, without its port
	// Uploads says that what comes first is an upload over HTTP/1. It is asked while it comes, and
	// seldom.
	Uploads() bool
	// Method is that of what comes first over HTTP/1, or empty. It is asked seldom.
	Method() string
	// Place is the address of this Envoy that the client has connected to. It is asked once, and
	// only where there are raw connections.
	Place() string
	// ParsedAsHTTP says that Envoy parses what comes as HTTP, as far as it has. It is asked twice
	// at most, while bytes pass.
	ParsedAsHTTP() bool
}

// Connection is one downstream connection. The zero value is ready.
type Connection struct {
	budget.Connection
	Context uint32 // the network filter's context, by which it can be closed; 0 = there is no network filter
	arrivals
	peer        Peer // whose it is, where what comes may be refused
	silent      Peer // the same, while nothing has come that might be refused
	paused      *Stream
	window      int64 // what paused HTTP/2 requests take of the connection's window
	costs       int64 // and what they can leave unread
	evictedOnce bool  // what is left there was evicted, or would have been in mode enforce
	doomed      bool  // and that it would have been closed at its first bytes
	source      *key  // that it counts for; nil = connections are not told apart
	Caps
	ended
	rawness
	Waiting  int // requests of it in the queue
	IsClosed bool
	observed bool // mode observe: it is never closed
	onTrial  bool // it has no room, and has to show that its request is small: see trials
	use      idle.Use[Connection]
	residue
}

// residue is the response that ended last, as long as it may be unread.
type residue struct {
	unread bool // is in Worker.residual
	key    *key // of the response that it is there for
	traced
}

// raws are a worker's raw connections, and what is known of where they come to.
type raws struct {
	open   []*raw
	late   []*Connection // to be closed: they came before their price was known, and it has no room
	places map[string]*place
	looked Time // when what they came to was learnt last
}

// place is where raw connections come to: an address of this Envoy.
type place struct {
	name      string
	forecasts [2]forecast.Forecast // what passes on one, up to what may be held, by direction
	held      float64              // the part of that which is held
	http      Time                 // when HTTP came there last; 0 = never
	used      Time
}

// raw is what passes on one raw connection: the Stream's host too.
type raw struct {
	Stream
	of      *Connection
	peer    Peer
	place   *place
	teaches Time // when what it has come to is to be learnt next
	at      int  // its place in raws.open
}

// rawness is what a connection has for being raw, or perhaps so.
type rawness struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	kind    kind
	unsure  bool     // it was found raw before Envoy could have told otherwise
	ends    bool     // it is to be closed, or that was asked for
	reads   uint8    // of its client, as far as they matter
	passed  [2]int64 // while it is unsettled
	place   *place   // that it came to, where raw ones are known there
	came    Time
	price   int64 // that was asked for when it came
	carries *raw  // nil = nothing is counted
}

// kind is what is known of a connection's protocol.
type kind uint8

const (
	unsettled kind = iota
	speaksHTTP
	isRaw
)
