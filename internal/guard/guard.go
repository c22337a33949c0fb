// Package guard is the policy: it admits requests, lets them wait or rejects them, so that the
// memory of a proxy stays under its budget. It is a pure machine. It reads no clock and does no
// I/O: the time, readings of the allocator and the storage that the workers share are arguments,
// and what is to be done is returned. The faces (the Wasm filter, the ext_proc server) do it.
package guard

import (
	"math"
	"slices"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Guard applies one plugin's configuration to the streams of one worker.
type Guard struct {
	config Config
	worker *Worker
	by     func(Host) string // tells requests apart; nil = they are not
	header string            // if it is one by which they are

	exemptions exemptions
}

// New returns a guard on the worker, whose shared figures it sets to those of the configuration.
// The configuration must be valid. Streams of guards that were there before go on.
func New(c Config, w *Worker) (g *Guard, changed string) {
	g = &Guard{config: c, worker: w, exemptions: exemptionsOf(c.Exempt)}
	switch by := c.Fairness.By; by {
	case byNone:
	case byRoute:
		g.by = Host.Route
	case byCluster:
		g.by = Host.Cluster
	case byVirtualHost:
		g.by = Host.VirtualHost
	case bySource:
		g.by = Host.Source
	default:
		g.header = strings.ToLower(strings.TrimPrefix(by, byHeader)) // as Envoy has it
		g.by = func(h Host) string { return h.Header(g.header) }
	}
	for _, k := range w.keys.All() {
		if k.Name.By == c.Fairness.By {
			k.Weight = c.Fairness.weight(k.Name)
		}
	}
	w.guards = append(w.guards, g)
	w.keepPlaces()
	return g, w.Use(&c)
}

// Retire says that no more requests come to the guard: its configuration has gone. Those that are
// there go on.
func (g *Guard) Retire() {
	w := g.worker
	w.guards = slices.DeleteFunc(w.guards, func(other *Guard) bool { return other == g })
	w.keepPlaces()
}

// Disarm has all that is decided from now on be counted alone, of the requests that are there too,
// as in mode observe. Those that wait are not let go by it: see Release.
func (g *Guard) Disarm() { g.config.Mode = Observe }

// Release lets a request go on that waits, whatever room there is. It has no effect on others.
func (g *Guard) Release(now Time, s *Stream) {
	if !s.Waiting() {
		return
	}
	g.worker.leaveLine(s)
	g.worker.account.Ask(now, max(s.total()-s.credit(), 0), budget.Forced)
	g.resume(now, s)
	g.worker.publish()
}

// Config is the guard's configuration.
func (g *Guard) Config() *Config { return &g.config }

// KeyHeader is the header by which requests are told apart, in lower case; empty if it is something
// else.
func (g *Guard) KeyHeader() string { return g.header }

// Worker is the worker that the guard is on.
func (g *Guard) Worker() *Worker { return g.worker }

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
	// Hides says that what passes of the direction's body is not told. It is asked at the headers
	// of each.
	Hides(d budget.Direction) bool
	// Untold says that nothing at all is told of responses, not even their headers. It is asked
	// where they are hidden.
	Untold() bool
}

type phase uint8

const (
	done phase = iota
	live
	waiting
	closing
	rejected
)

// Stream is one request and its response. The zero value is ready for Open, and after Close it may
// be used again.
type Stream struct {
	budget.Stream
	guard      *Guard
	host       Host
	waiter     fairness.Waiter[Stream]
	connection *Connection // known only if it was asked for: it waited, was rejected or was the one to verify
	counted    *Connection // the one that counts it as live; nil = none, or there is no network filter
	key        *key        // the other, if not keyed
	length     int64
	wants      int64 // what the request brings, announced or forecast, at most its cap
	expects    int64 // what its response will, as far as that is to be reserved at its headers: see foresee
	pauseCost  int64
	window     int64 // of its HTTP/2 connection's window, while it waits
	phase      phase
	cold       int64 // what its response may hold, where that of its key's is not known and may be large; else 0
	ahead      int64 // and how much of a response may be there before its headers are answered
	probing    int64 // of what is cold, what is not reserved: see Worker.mayProbe
	unknown    int64 // of what is cold, what is in its key's sum
	admitted   Time
	exempt     exemption
	untold     bool // nothing will be told of its response
	shadow     bool // mode observe: it waits, or was turned away, in the books alone
	answers    bool // the headers of a shadow's response have come
	announced  int64
	http2      bool
	asked      bool // http2 is known
	keyed      bool // key is known
	marked     bool // mode observe: it would have been evicted
	inFloor    bool // large, but let into the floor: it stays in the small sum
	traced
}

// Host is whom the stream asks.
func (s *Stream) Host() Host { return s.host }

// Waiting says whether the stream is in line, and not as a shadow.
func (s *Stream) Waiting() bool { return s.phase == waiting && !s.shadow }

func (s *Stream) isHTTP2() bool {
	if !s.asked {
		s.http2, s.asked = s.host.HTTP2(), true
	}
	return s.http2
}

func (s *Stream) conn() *Connection {
	if s.connection == nil {
		s.connection = s.host.Connection()
		s.guard.worker.compare(s.connection, s.host.Arrived())
	}
	return s.connection
}

// seen says whether the network filter sees what comes while the request is paused.
func (s *Stream) seen() bool { return s.connection != nil && s.connection.Context != 0 }

// credit is what a paused request's pause cost has become: bytes that were seen to come, and are
// counted. On HTTP/2 it can't be told of which request they are.
func (s *Stream) credit() int64 {
	if !s.seen() || s.http2 {
		return 0
	}
	return min(s.connection.arrived, s.pauseCost, s.wants)
}

// Open judges a request at its headers. length is its Content-Length or budget.Unknown; without a
// body it is 0. The stream must not be open.
func (g *Guard) Open(now Time, s *Stream, h Host, length int64) Verdict {
	w, a := g.worker, g.worker.account
	*s = Stream{}
	s.guard, s.host, s.phase, s.length, s.key, s.opened, s.waiter.Value = g, h, live, length, &w.keys.Other, now, s
	s.key.Refs++
	w.busy(now, s)
	b := &g.config.Buffers
	requestCap := 2 * int64(b.Downstream)
	switch {
	case length == 0:
		requestCap = 0
	case length == budget.Unknown || length > requestCap:
		requestCap = g.requestCap(s)
	}
	a.Open(now, &s.Stream, s, &s.key.Value.Sum, int64(g.config.Costs.Stream), requestCap, int64(b.Downstream+b.Upstream))
	if length != 0 && h.Hides(budget.Request) {
		a.Hide(&s.Stream, budget.Request)
	}
	s.exempt = g.exempts(h, length)
	hides := h.Hides(budget.Response)
	if length == 0 && !hides && g.presumes(now, s) {
		return Verdict{Action: Admit}
	}
	// A request without a body says nothing yet of its size: as long as nobody is held back and no
	// key's responses are large, whose it is does not matter, and is not asked.
	if length != 0 || w.largeKeys > 0 || hides || w.pressed() {
		g.keyOf(now, s)
	}
	n := length
	if n == budget.Unknown {
		n = s.key.Value.forecasts[budget.Request].Bytes()
	}
	s.wants = min(n, requestCap)
	g.foresee(now, s, hides)
	if small := int64(w.budget.Small); s.exempt == whileSmall {
		s.wants = min(s.wants, small) // with more it is judged
		if !hides {
			s.expects = min(s.expects, small)
		}
	}
	w.traceOpen(s)
	if s.exempt != judged {
		a.Ask(now, s.total(), budget.Forced)
		return g.admit(now, s, 0)
	}
	if s.cold > 0 && w.mayProbe(now, s) {
		w.probe(now, s)
	}
	if g.shadows() && w.doomed(s) {
		w.turnedAway(now, s)
		return Verdict{Action: Pass}
	}
	v := g.judge(now, s)
	switch {
	case v.Action == Admit:
		return g.admit(now, s, 0)
	case g.shadows():
		return Verdict{Action: Pass}
	}
	return v
}

// foresee sets what the response is expected to come to: where all of its key's are large, as much
// as those, else nothing. But where a response is held at its headers until we have answered, it
// fills its buffers meanwhile, and a burst of requests for large ones is there before any of them
// can be refused (300 slow readers behind 1 MiB buffers made 2.2 times the limit): there the
// request is cold, and expects as much as it may come to, for all that is known of its key's.
func (g *Guard) foresee(now Time, s *Stream, hides bool) {
	w, k, limit := g.worker, &s.key.Value, int64(g.config.Buffers.Downstream+g.config.Buffers.Upstream)
	if hides {
		limit = g.responseCap(s) // no call of a host
	}
	s.expects, s.cold, s.ahead = 0, 0, 0
	large, lengthless := s.keyed && k.large(now), k.forecasts[budget.Response].Learned()
	switch {
	case hides && s.host.Untold():
		s.expects, s.untold, large = limit, true, true
	case large:
		s.expects = min(k.responses.Known(), limit)
	case !hides:
	case !k.responses.Learned() || k.unknown > w.account.Floor(): // nothing is known, or too much is under way from then
		s.expects, lengthless = limit, true
	default:
		if s.expects = min(k.largestAt(now), limit); s.expects <= int64(w.budget.Small) {
			s.expects = 0
		}
	}
	if hides && s.expects > 0 {
		if lengthless {
			s.expects *= 2 // as much lies in Envoy again on its way to us: 80 of those held 3.2 MiB each, of 2
		}
		s.ahead = s.expects
		if !large {
			s.cold = s.expects
		}
	}
}

// requestCap is what Envoy may hold of a request: on HTTP/1 twice the listener's buffer limit, on
// HTTP/2 twice the larger of that and the stream's window, behind a buffering filter the whole of
// it instead.
func (g *Guard) requestCap(s *Stream) int64 {
	if whole := int64(g.config.Buffers.WholeRequest); whole > 0 {
		return whole
	}
	return g.pauseCap(s)
}

// pauseCap is what a request can leave unread while it is paused.
func (g *Guard) pauseCap(s *Stream) int64 {
	b := &g.config.Buffers
	if b.HTTP2Window > b.Downstream && s.isHTTP2() {
		return 2 * int64(b.HTTP2Window)
	}
	return 2 * int64(b.Downstream)
}

// responseCap is the cluster's buffer limit and the larger of the listener's and, on HTTP/2, the
// stream's window.
func (g *Guard) responseCap(s *Stream) int64 {
	b := &g.config.Buffers
	if b.HTTP2Window > b.Downstream && s.isHTTP2() {
		return int64(b.Upstream + b.HTTP2Window)
	}
	return int64(b.Upstream + b.Downstream)
}

// mayHold is what Envoy may hold of a response of so many bytes, or of Unknown. Which protocol it
// has is asked only where it matters.
func (g *Guard) mayHold(s *Stream, length int64) int64 {
	most := int64(g.config.Buffers.Upstream + g.config.Buffers.Downstream)
	if length == budget.Unknown || length > most {
		return g.responseCap(s)
	}
	return most
}

// admit reserves what the request wants.
func (g *Guard) admit(now Time, s *Stream, credit int64) Verdict {
	w, a := g.worker, g.worker.account
	w.counts[CountAdmitted]++
	if s.cold > 0 {
		w.admitCold(now, s)
	}
	if s.total() > int64(w.budget.Small) && !s.inFloor {
		a.Enlarge(now, &s.Stream)
	}
	if s.expects > 0 {
		a.Anticipate(now, &s.Stream, s.expects)
	}
	if s.length != 0 {
		a.Expect(now, &s.Stream, budget.Request, s.length, s.wants-credit, credit)
	}
	if s.untold {
		g.expect(now, s, math.MaxInt64, false) // it is taken for as much as the buffers hold
	}
	a.Cover(now)
	if w.line.Len() > 0 || a.Others().Waiting > 0 {
		w.drain.add(s.total())
	}
	return Verdict{Action: Admit}
}

// judge decides on a request that is not exempt: admit it, let it wait or reject it.
func (g *Guard) judge(now Time, s *Stream) Verdict {
	w, a := g.worker, g.worker.account
	if w.limits.OnStale == budget.StaleReject && a.Stale(now) {
		return g.turnAway(now, s, NoReading)
	}
	if s.total() <= int64(w.budget.Small) {
		if w.claimSmall(now, s.key, s.wants) != budget.Denied {
			return Verdict{Action: Admit}
		}
		return g.wait(now, s, true)
	}
	cold := s.cold > 0 && s.wants <= int64(w.budget.Small) // it waits among the small ones: it may be one
	t := a.Table()
	if alone := a.Share(w.limits.Hard) - t.Low; s.total() > alone && !t.Futile && t.Sequence > 0 && !a.Stale(now) {
		if s.length != budget.Unknown && s.wants > alone {
			return g.turnAway(now, s, TooLarge)
		}
		// It is a forecast: what others have brought is no reason to tell this one that it can
		// never fit.
		s.expects = max(min(s.expects, alone-s.wants), 0)
		s.wants = min(s.wants, max(alone, int64(w.budget.Small)+1))
	}
	w.noteLarge(now, s.key)
	claim := w.largeClaim(s.key, s.total())
	// Who comes while others wait waits too, else who has no line takes what others wait for. But
	// one whose key has less than its share does not stand behind those that have more.
	if (w.line.Len() > 0 || a.Others().Waiting > 0) && (claim != budget.Full || s.key.Value.queue.Len() > 0) {
		return g.wait(now, s, cold)
	}
	if w.claim(now, s.key, s.total()) == budget.Granted || w.futile(now, s, s.total()) {
		return Verdict{Action: Admit}
	}
	return g.wait(now, s, cold)
}

// total is what the request is expected to come to, with its response.
func (s *Stream) total() int64 { return s.wants + s.expects }

const (
	heldShare = 4 // the line's pause costs may hold 1/4 of what traffic can have
	leftShare = 8 // and what rejected requests leave unread 1/8
	// Of the line a key that has more than its share leaves 1/8 to the others.
	spareShare = 8
)

// wait puts the request in line, among the small ones or the large, or rejects it if the line has
// no room for it.
func (g *Guard) wait(now Time, s *Stream, small bool) Verdict {
	w := g.worker
	if g.lets() {
		w.counts[CountThrottled]++
		w.account.Ask(now, s.total(), budget.Forced)
		return Verdict{Action: Admit}
	}
	if s.probing > 0 {
		w.answered(s) // it is none as long as it waits
		s.expects = s.cold
	}
	cost := g.cost(s)
	others := w.account.Others()
	c := s.conn()
	var window int64
	if c != nil && s.length != 0 && s.isHTTP2() {
		window = int64(g.config.Buffers.HTTP2Window)
		if s.length != budget.Unknown {
			window = min(window, s.length)
		}
	}
	// One whose key has more than its share leaves something of the line, and of what lies under
	// the limit, to the others.
	queue, held, claim := int64(w.throttle.Queue), w.account.Room()/heldShare, budget.Full
	if w.greedy(s.key) {
		queue, held, claim = queue-queue/spareShare, held-held/spareShare, budget.Large
	}
	switch {
	case w.throttle.Timeout == 0,
		int64(w.line.Len())+others.Waiting >= queue,
		cost > held-w.held-others.Held,
		!small && cost > 0 && w.largeClaim(s.key, s.total()) != budget.Full && w.turnsAwayEarly(now), // to wait costs a GET nothing
		window > 0 && window > int64(g.config.Buffers.HTTP2ConnectionWindow)/2-c.window,
		cost > 0 && w.account.Ask(now, cost, claim) == budget.Denied:
		return g.turnAway(now, s, QueueFull)
	}
	w.counts[CountThrottled]++
	s.phase, s.pauseCost, s.window = waiting, cost, window
	g.shade(now, s)
	w.held += cost
	if s.seen() {
		w.account.Pause(now, &s.Stream, cost, cost)
	} else {
		w.account.PauseUnseen(&s.Stream, cost)
	}
	if c != nil {
		c.Waiting++
		c.window += window
		if s.isHTTP2() {
			c.costs += cost
		} else {
			c.paused, c.arrived = s, c.last
		}
	}
	s.waiter.Size = s.total()
	if small {
		s.waiter.Size = s.wants // what it expects is a guess, by which others must not be told how long the line takes
	}
	w.line.Join(now, &s.key.Value.queue, &s.waiter, small)
	w.publish()
	w.account.Cover(now)
	return Verdict{Action: Wait}
}

// cost is what the request leaves unread while it is paused, or when it is rejected unfinished: it
// comes within a round trip, unseen by the HTTP filter.
func (g *Guard) cost(s *Stream) int64 {
	if s.Ended(budget.Request) {
		return 0
	}
	limit := g.pauseCap(s)
	if s.length != budget.Unknown {
		limit = min(limit, s.length)
	}
	return limit
}

// resume admits a request that has waited; the room has been asked for.
func (g *Guard) resume(now Time, s *Stream) {
	credit := s.credit()
	g.worker.account.Unpause(&s.Stream)
	if !s.shadow {
		g.admit(now, s, credit)
		return
	}
	g.unshade(now, s, credit)
}

// turnAway rejects a request, in line or not, or one that grew. A reject costs memory too: until
// its connection is closed, which takes Envoy's delayed_close_timeout, what an unfinished HTTP/1
// request has sent lies unread. Where that has no room there is no answer, and the connection is
// closed instead.
func (g *Guard) turnAway(now Time, s *Stream, reason Reason) Verdict {
	w := g.worker
	v := Verdict{Action: Answer, Reason: reason}
	if g.lets() {
		w.count(reason)
		w.account.Ask(now, s.total(), budget.Forced)
		return Verdict{Action: Admit}
	}
	if s.length == budget.Unknown && s.Seen(budget.Request) > 0 {
		s.key.Value.forecasts[budget.Request].Learn(s.Held(budget.Request))
	}
	paused := s.phase == waiting
	if paused {
		w.leaveLine(s)
	}
	if reason == QueueFull || reason == Timeout {
		s.key.Value.turned += s.total()
	}
	if s.Awaited() > 0 {
		w.account.Unpause(&s.Stream)
		paused = false // what it leaves unread counts no more, and is to be counted
	}
	s.phase = rejected
	cost := g.cost(s)
	unfinished := !s.Ended(budget.Request)
	if unfinished && !s.isHTTP2() {
		limit := 1.0
		if w.greedy(s.key) {
			limit = w.limits.Hard // as for its place in line: the rest is for the others
		}
		fresh := cost // not yet counted
		if paused {
			fresh = 0
		}
		full := cost > w.account.Room()/leftShare-w.left.Bytes()-w.account.Others().Left ||
			fresh > w.account.Share(limit)-w.account.Estimate(now)+s.Held(budget.Request)
		if c := s.conn(); full && c != nil && c.Context != 0 {
			s.phase = closing
			v.Action = Close
			w.counts[CountClosedConnections]++
			c.paused, c.arrived = s, c.last
			w.closing = append(w.closing, s)
		} else {
			w.left.Add(now, Time(g.config.Buffers.Linger), cost)
		}
	}
	s.pauseCost = cost
	if v.Action == Close {
		w.count(Closed) // in place of the reason: each is counted once
	} else {
		w.count(reason)
	}
	g.shade(now, s)
	switch {
	case paused:
	case v.Action == Close:
		w.account.Pause(now, &s.Stream, cost, s.connection.arrived)
	default:
		w.account.Pause(now, &s.Stream, cost, cost)
	}
	if v.Action == Answer && !s.shadow {
		w.account.End(now, &s.Stream, budget.Request)
	}
	w.publish()
	w.account.Cover(now)
	if v.Action == Answer && reason != TooLarge {
		v.RetryAfter = g.retryAfter(now, max(s.wants, s.Held(budget.Request)))
	}
	return v
}

func (w *Worker) count(reason Reason) { w.counts[CountRejected+int(reason)-1]++ }

// toldShare: those who are told to come back get an eighth of what is admitted. The others come
// without being told, and clients that are served come at once: they take it all. The line can't
// tell the two apart, so that of those who come back with n others for each of them n/(n+1) are
// admitted.
const toldShare = 8

// retryAfter books the next place in the queue of those who are told to come back, as long as n
// bytes take, and says when it begins.
func (g *Guard) retryAfter(now Time, n int64) unit.Duration {
	w := g.worker
	others := w.account.Others()
	// Never slower than what traffic can have in max: else an idle start would tell everyone the
	// longest delay.
	least := float64(w.account.Share(w.limits.Soft)-w.account.Table().Base) / Time(w.reject.Max).Seconds()
	own := w.drain.perSecond()
	rate := float64(others.Rate + own)
	// What its existence costs too: else a thousand requests without a body would have one place.
	size := float64(n + int64(g.config.Costs.Stream))
	span := seconds(size / max(rate/toldShare, least, 1))
	lowest, highest := Time(w.reject.Min), Time(w.reject.Max)
	if others.Waiting > 0 || w.line.Len() > 0 {
		// Behind those in line, who are admitted or rejected by the timeout.
		ahead := seconds(float64(others.Wanted+w.line.Bytes()) / max(rate, 1))
		lowest = max(lowest, min(ahead, Time(w.throttle.Timeout), highest))
	}
	start, booked := w.account.Book(now, now+lowest, span, now+highest)
	if !booked {
		// The queue is full, and nothing can be promised. All are told the longest delay, unless so
		// many at once would come back as one: a crowd is spread before that, by half of what this
		// worker admits, and what is left of it anywhere.
		lowest = max(lowest, highest/4)
		before := max(w.crowd-now, 0)
		if before > highest-lowest {
			return unit.Duration(highest - Time(w.random()*float64(highest-lowest)))
		}
		w.crowd = now + before + seconds(size/max(float64(own)/2, least, 1))
		return unit.Duration(highest - before)
	}
	// Spread within the place, but not into another second: a header holds whole ones, rounded up.
	d := start - now
	second := (d + time.Second - 1).Truncate(time.Second)
	return unit.Duration(min(d+Time(w.random()*float64(min(span, second-d))), highest))
}

// seconds is a duration of so many, at most an hour: the longest that retry_after.max may be.
func seconds(s float64) Time { return Time(min(s, 3600) * float64(time.Second)) }

// Expect judges a response at its headers. length is its Content-Length or budget.Unknown; without
// a body it is 0.
func (g *Guard) Expect(now Time, s *Stream, length int64) Verdict {
	w := g.worker
	if s.phase != live {
		if s.shadow {
			s.answers, s.announced = true, length
			w.account.Supposes(now, &s.Stream, budget.Response, g.supposes(now, s, length))
		}
		return Verdict{}
	}
	if s.Presumed() {
		if w.account.Calm(now) {
			w.account.Foretell(&s.Stream, length, g.mayHold(s, length))
			return Verdict{}
		}
		g.doubt(now, s)
	}
	w.answered(s)
	s.untold = false
	if s.Hidden(budget.Request) {
		w.account.End(now, &s.Stream, budget.Request) // who is answered has most likely sent all
	}
	return g.expect(now, s, length, false)
}

// expect is Expect of one that is not presumed. Who is entitled to its response is not rejected for
// it.
func (g *Guard) expect(now Time, s *Stream, length int64, entitled bool) Verdict {
	w, a := g.worker, g.worker.account
	if length == 0 {
		w.teach(now, s, 0)
		a.End(now, &s.Stream, budget.Response)
		return Verdict{}
	}
	limit := g.mayHold(s, length)
	if limit != s.Cap(budget.Response) {
		a.SetCap(now, &s.Stream, budget.Response, limit)
	}
	if s.host.Hides(budget.Response) {
		a.Hide(&s.Stream, budget.Response)
	} else {
		a.Tell(&s.Stream, budget.Response)
	}
	n := length
	if length == budget.Unknown {
		n = g.keyOf(now, s).Value.forecasts[budget.Response].Bytes()
	}
	n = min(n, limit)
	if length == budget.Unknown && s.exempt == whileSmall && !s.Hidden(budget.Response) {
		n = min(n, int64(w.budget.Small)) // with more it is judged
	}
	claim := budget.Forced // a small response always passes
	if n > int64(w.budget.Small) {
		w.noteLarge(now, g.keyOf(now, s))
		a.Enlarge(now, &s.Stream)
		s.outgrows()
		if s.exempt == judged && !s.untold && !entitled {
			// Its upstream has done the work: it may have what lies under hard even if its key has
			// more than its share.
			claim = max(w.largeClaim(s.key, 0), budget.Large)
		}
	}
	if length != budget.Unknown && !s.untold {
		w.teach(now, s, n)
	}
	// What was reserved for it at the request's headers, and has not lapsed, it has already.
	more := max(n-s.Reserved(budget.Response), 0)
	if more > 0 && a.Ask(now, more, claim) == budget.Denied && !w.futile(now, s, more) {
		w.count(ResponseSize)
		w.counts[CountRejectedResponses]++
		if !g.lets() {
			v := Verdict{Action: Answer, Reason: ResponseSize, RetryAfter: g.retryAfter(now, n)}
			s.phase = rejected
			if g.shadows() {
				g.shade(now, s)
				w.account.Supposes(now, &s.Stream, budget.Response, n)
				return Verdict{}
			}
			a.End(now, &s.Stream, budget.Response)
			return v
		}
		a.Ask(now, more, budget.Forced)
	}
	a.Expect(now, &s.Stream, budget.Response, length, n, 0)
	if left := s.ahead - n; length == budget.Unknown && left > 0 && !s.Hidden(budget.Response) {
		// So much may be there already, behind the headers: it stays reserved until it has passed,
		// or does not come.
		a.Ask(now, left, budget.Forced)
		a.Anticipate(now, &s.Stream, left)
	}
	a.Cover(now)
	return Verdict{}
}

// Grow counts n more body bytes of a message, and judges it if it has outgrown what was reserved
// for it. Who has asked Free itself, for a response, need not call it where that says yes.
func (g *Guard) Grow(now Time, s *Stream, d budget.Direction, n int64) Verdict {
	if s.phase != live || n == 0 || d == budget.Response && s.Free(n) {
		if s.shadow {
			g.worker.account.PassShadow(now, &s.Stream, d, n)
		}
		return Verdict{}
	}
	return g.pass(now, s, d, n, false)
}

// pass is Grow with what there is to book. Who is entitled to what passes is not rejected for it.
func (g *Guard) pass(now Time, s *Stream, d budget.Direction, n int64, entitled bool) Verdict {
	v := g.grow(now, s, d, n, entitled)
	if d == budget.Response && s.ahead > 0 && v.Action == Admit {
		g.firstPiece(now, s)
	}
	return v
}

func (g *Guard) grow(now Time, s *Stream, d budget.Direction, n int64, entitled bool) Verdict {
	w, a := g.worker, g.worker.account
	beyond := a.Pass(now, &s.Stream, d, n)
	large := s.Seen(d) > int64(w.budget.Small)
	if large && s.Small() && !s.inFloor {
		a.Enlarge(now, &s.Stream)
	}
	lost := large && s.outgrows()
	if beyond == 0 && !s.Beyond(d) && !lost {
		return Verdict{}
	}
	v, free := Verdict{}, entitled || s.exempt != judged
	switch {
	case s.Beyond(d):
		more := max(min(2*s.Seen(d), s.Cap(d))-min(s.Seen(d), s.Cap(d))-s.Reserved(d), 0)
		if d == budget.Response || s.length == budget.Unknown {
			// Who passes his forecast teaches it at once: slow readers never complete.
			w.learn(now, g.keyOf(now, s), d, min(2*s.Seen(d), s.Cap(d)))
		}
		if free || more == 0 && beyond == 0 || a.Ask(now, more, budget.Full) != budget.Denied {
			a.Reserve(now, &s.Stream, d, more)
		} else if beyond > 0 { // else all that has passed was reserved
			v = g.outgrown(now, s, d)
		}
	case (lost || d == budget.Request && s.Lapsed(d)) && !free && a.Ask(now, 0, budget.Full) == budget.Denied:
		v = g.outgrown(now, s, d)
	}
	a.Cover(now)
	return v
}

// firstPiece notes that the first piece of a response has passed that was held at its headers. It
// has brought all that was there: more is not waited for, and where nothing is known of the key yet
// it tells something.
func (g *Guard) firstPiece(now Time, s *Stream) {
	s.ahead = 0
	g.worker.account.Trim(now, &s.Stream)
	if !s.key.Value.responses.Learned() {
		g.worker.learn(now, s.key, budget.Response, s.Held(budget.Response))
	}
}

// outgrown rejects a request whose growth has no room, and resets a large response.
func (g *Guard) outgrown(now Time, s *Stream, d budget.Direction) Verdict {
	w := g.worker
	if d == budget.Request {
		if v := g.turnAway(now, s, Growth); !s.shadow {
			return v
		}
		return Verdict{Action: Pass}
	}
	if s.Seen(d) <= int64(w.budget.Small) {
		return Verdict{}
	}
	w.count(Growth)
	w.counts[CountRejectedResponses]++
	if g.lets() {
		return Verdict{}
	}
	s.phase = rejected
	if g.shadows() {
		g.shade(now, s)
		return Verdict{}
	}
	w.account.End(now, &s.Stream, d)
	return Verdict{Action: Reset, Reason: Growth}
}

// End notes that a message has ended, with its body or with its trailers.
func (g *Guard) End(now Time, s *Stream, d budget.Direction) {
	if s.phase == done || d == budget.Response && s.Ends() || s.Ended(d) {
		return
	}
	if s.phase == live && s.Lengthless(d) {
		g.worker.learn(now, s.key, d, s.Held(d))
	}
	g.worker.account.End(now, &s.Stream, d)
}

// Close ends the stream, however it came to that. It returns what a waiting one had waited, else 0.
func (g *Guard) Close(now Time, s *Stream) (waited unit.Duration) {
	w, a := g.worker, g.worker.account
	switch s.phase {
	case done:
		return 0
	case waiting:
		if !s.shadow {
			waited = unit.Duration(now - s.waiter.Since)
		}
		w.leaveLine(s)
		a.Drop(&s.Stream)
	case closing:
		a.Drop(&s.Stream)
		for i, c := range w.closing {
			if c == s {
				w.closing = append(w.closing[:i], w.closing[i+1:]...)
				break
			}
		}
	case rejected:
		switch c := s.connection; {
		case s.pauseCost == 0, s.shadow:
		case s.isHTTP2():
			a.Drop(&s.Stream)
		case c != nil && c.Context != 0 && !c.IsClosed:
			a.Linger(&s.Stream, &c.Connection)
		}
	case live:
		if n := s.Held(budget.Response); n > int64(w.budget.Small) {
			if c := s.host.Arrived(); c != nil && !c.IsClosed {
				g.keyOf(now, s)
				w.leave(now, c, n, s.key)
				w.traceLeave(s, c)
			}
		}
	}
	if c := s.connection; c != nil && c.paused == s {
		c.paused = nil
	}
	if w.credited == s {
		w.credited = nil
	}
	if w.alone == s {
		w.alone = nil
		w.letIn = now
	}
	if s.inFloor {
		w.letIn = now
	}
	w.unbusy(now, s)
	w.answered(s)
	s.phase = done
	a.Close(now, &s.Stream)
	s.key.Refs--
	return waited
}
