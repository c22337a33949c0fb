package guard

import (
	"slices"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/reservoir"
)

// A connection is raw where its bytes are no HTTP that Envoy parses: tcp_proxy and its like. Nobody
// announces what comes on it, nobody can be told to wait, and to be answered it has no protocol. So
// it is a Stream of its own, both of whose directions are of unknown length, and that is never
// rejected for what it brings. Two things bound what all of them hold:
//
//	new ones    are refused where what they will likely hold has no room, as far as that is known
//	heavy ones  are closed as requests are evicted, while memory is over the limit
//
// What a new one will hold is learnt by where it came to (place): which listener has HTTP and which
// has not, no filter says. A forecast per direction says what passes, up to what Envoy may hold.
// How much of that Envoy does hold depends on who reads, which only readings tell: a pool of
// database connections has moved gigabytes, and holds nothing. So the price is the forecast times
// the part of all bounds that readings have shown.

// SpeaksHTTP says that what passes needs no look: it is not raw.
func (c *rawness) SpeaksHTTP() bool { return c.kind == speaksHTTP }

// Ends says that the connection is closed for what it holds or would hold. Envoy does that when its
// client has read what is there: what comes on top is to be thrown away.
func (c *rawness) Ends() bool { return c.ends }

var _ Host = (*raw)(nil)

const (
	// rawAfter is what passes before a connection counts as raw: less costs no more than it does.
	rawAfter = 16 << 10 // TestARawConnectionIsCounted
	// maxPlaces: of more, those are forgotten that were used least lately.
	maxPlaces = 64 // TestPlacesAreBounded
	// Where HTTP has come within so long, nobody is refused for what raw ones hold.
	httpFor = 10 * time.Minute // TestWhereHTTPComesNobodyIsRefusedForRawOnes
	// What a raw connection has come to is learnt so long after it came, by when readings show it,
	// and each rawAgain.
	rawFirst = 250 * time.Millisecond // TestTheNextRawConnectionHasAPrice
	rawAgain = 2 * time.Second        // TestIdleRawConnectionsCostNothing
	// One that came before its price was known is refused within so long. Later it is none of a
	// burst.
	rawLate  = 2 * time.Second // TestABurstOfRawConnectionsIsRefusedAtItsFirstBytes
	heldGain = 8               // as of a forecast's mean; TestTheNextRawConnectionHasAPrice
)

// Carry counts n bytes of a connection that is raw, or perhaps so: ask SpeaksHTTP first. Where it
// says refused, these and all that follow are to be thrown away, and the next tick closes it.
func (g *Guard) Carry(now Time, c *Connection, d budget.Direction, n int64, p Peer) (refused bool) {
	if c.kind == speaksHTTP || c.ends || n == 0 {
		return c.ends
	}
	if d == budget.Request && c.reads < 2 {
		c.reads++
	}
	if c.kind == isRaw {
		if !c.unsure || c.reads < 2 || !g.worker.wasHTTP(now, c, p) {
			c.carries.grow(now, d, n)
		}
		return false
	}
	return g.carryUnsettled(now, c, d, n, p)
}

func (g *Guard) carryUnsettled(now Time, c *Connection, d budget.Direction, n int64, p Peer) (refused bool) {
	c.passed[d] += n
	if c.carries != nil {
		c.carries.grow(now, d, n)
	}
	// While Envoy parses its first read it does not tell the protocol yet, and may answer headers
	// that are too large. So until the second, what was sent counts no more than what was answered.
	passed := c.passed
	if c.reads < 2 {
		passed[budget.Request] = min(passed[budget.Request], passed[budget.Response])
	}
	if passed[0]+passed[1] > rawAfter && (d == budget.Response || c.reads == 2) {
		return g.find(now, c, p)
	}
	return false
}

// wasHTTP asks again, once, of a connection that was found raw too early to be sure.
func (w *Worker) wasHTTP(now Time, c *Connection, p Peer) bool {
	c.unsure = false
	if !p.ParsedAsHTTP() {
		return false
	}
	w.speaks(now, c)
	return true
}

// find decides whether an unsettled connection is raw, and refuses one that would have been when it
// came, had its price been known by then.
func (g *Guard) find(now Time, c *Connection, p Peer) (refused bool) {
	w := g.worker
	w.endTrial(c)
	if p.ParsedAsHTTP() {
		w.speaks(now, c)
		return false
	}
	c.kind, c.unsure = isRaw, c.reads < 2
	if c.carries != nil {
		return false
	}
	if c.place == nil {
		c.place = w.placeOf(now, p.Place(), true)
	}
	if now-c.came < rawLate && !g.admitRaw(now, c, p) {
		w.counts[metric.CountRefused]++
		if g.enforcesTCP() {
			c.ends = true
			w.raws.late = append(w.raws.late, c)
			return true
		}
	}
	g.carry(now, c, p)
	for d, n := range c.passed {
		c.carries.grow(now, budget.Direction(d), n)
	}
	return false
}

// speaks notes that a connection has HTTP on it.
func (w *Worker) speaks(now Time, c *Connection) {
	c.kind = speaksHTTP
	if c.place != nil {
		c.place.http = now
	}
	if c.carries != nil {
		w.dropRaw(now, c)
	}
}

// carry opens the stream of a connection that is raw, or comes to where they are.
func (g *Guard) carry(now Time, c *Connection, p Peer) {
	w, a := g.worker, g.worker.account
	r := &raw{of: c, peer: p, place: c.place, teaches: now + rawFirst}
	s := &r.Stream
	s.guard, s.host, s.state, s.length, s.key, s.keyed, s.asked, s.connection = g, r, live, budget.Unknown, g.rawKey(now, r.place, p), true, true, c
	s.opened, s.waiter.Value = now, s
	s.key.Refs++
	// What its existence costs: its connection to the upstream is as large as its own.
	requestCap, responseCap := g.rawCaps(c)
	a.Open(now, &s.Stream, s, &s.key.Value.Sum, int64(g.config.Costs.Connection), 0, requestCap, responseCap)
	c.carries, r.at = r, len(w.raws.open)
	w.raws.open = append(w.raws.open, r)
	if c.price > int64(w.budget.Small) {
		a.Enlarge(now, &s.Stream)
		w.noteLarge(now, s.key)
	}
	request := min(int64(r.place.held*float64(r.place.forecasts[budget.Request].Known())), c.price)
	a.Expect(now, &s.Stream, budget.Request, budget.Unknown, request, 0)
	if c.price > request {
		a.Reserve(now, &s.Stream, budget.Response, c.price-request)
	}
	a.Cover(now)
}

// rawKey is whose a raw connection is: its source's, where requests are told apart by that. Else
// all of a place are one, as those of a route.
func (g *Guard) rawKey(now Time, at *place, p Peer) *key {
	switch g.config.Fairness.By {
	case config.ByNone:
		return &g.worker.keys.Other
	case config.BySource:
		return g.named(now, fairness.Name{By: config.BySource, Value: p.Source()})
	}
	return g.named(now, fairness.Name{By: "tcp", Value: at.name})
}

// grow counts what has passed. What it brings beyond its forecast is reserved, and teaches that at
// once: a burst is over before any of it has ended. It is not closed for it.
func (r *raw) grow(now Time, d budget.Direction, n int64) {
	s, a := &r.Stream, r.guard.worker.account
	if n == 0 || d == budget.Response && s.PassesUnbooked(n) {
		return
	}
	if d == budget.Response && !s.Expected(d) {
		a.Expect(now, &s.Stream, d, budget.Unknown, s.Reserved(d), 0)
	}
	a.Pass(now, &s.Stream, d, n)
	if s.Small() && s.Seen(d) > int64(r.guard.worker.budget.Small) {
		a.Enlarge(now, &s.Stream)
		r.guard.worker.noteLarge(now, s.key)
	}
	if s.Beyond(d) {
		next := min(2*s.Seen(d), s.Cap(d))
		r.place.forecasts[d].Learn(next)
		a.Reserve(now, &s.Stream, d, max(next-min(s.Seen(d), s.Cap(d))-s.Reserved(d), 0))
	}
	a.Cover(now)
}

// admitRaw says whether a new connection has room for what raw ones hold that came to the same
// place. Where there is none, it is still let in where raw ones are only observed.
func (g *Guard) admitRaw(now Time, c *Connection, p Peer) bool {
	w := g.worker
	if c.place == nil {
		if len(w.raws.places) == 0 {
			return true // no call of the host where all is HTTP
		}
		if c.place = w.placeOf(now, p.Place(), false); c.place == nil {
			return true
		}
	}
	c.price = c.place.price(now)
	if c.price == 0 {
		return true
	}
	k, claim := g.rawKey(now, c.place, p), w.claim
	if c.price <= int64(w.budget.Small) {
		claim = w.claimSmall
	}
	if out := claim(now, k, c.price); out != budget.Denied || w.account.Table().Futile {
		return true
	}
	return false
}

// letsRaw says that a raw connection without room is let in all the same, and counted as refused.
func (g *Guard) letsRaw() bool {
	return g.config.TCP == config.Observe && g.config.Mode == config.Enforce
}

// price is what one more raw connection will likely hold; 0 = it is not known, or need not be raw.
func (p *place) price(now Time) int64 {
	if p.http != 0 && now-p.http < httpFor {
		return 0
	}
	return int64(p.held * float64(p.forecasts[budget.Request].Known()+p.forecasts[budget.Response].Known()))
}

// placeOf is the place of that name; nil where it is not known and not to be made.
func (w *Worker) placeOf(now Time, name string, make_ bool) *place {
	name = name[:min(len(name), fairness.MaxName)]
	x := &w.raws
	p := x.places[name]
	if p == nil && make_ {
		if x.places == nil {
			x.places = map[string]*place{}
		}
		if len(x.places) >= maxPlaces {
			x.forget()
		}
		p = &place{name: strings.Clone(name), held: 1}
		x.places[p.name] = p
	}
	if p != nil {
		p.used = now
	}
	return p
}

// forget drops the place that was used least lately.
func (x *raws) forget() {
	var oldest *place
	for _, p := range x.places {
		if oldest == nil || p.used < oldest.used || p.used == oldest.used && p.name < oldest.name {
			oldest = p
		}
	}
	delete(x.places, oldest.name)
}

// learnRaws learns, now and then, what raw connections have come to, those that are idle too.
func (w *Worker) learnRaws(now Time) {
	x := &w.raws
	if len(x.open) == 0 || now-x.looked < rawFirst/2 {
		return
	}
	x.looked = now
	held, known := w.heldOfBounds(now)
	for i := len(x.open) - 1; i >= 0; i-- {
		r := x.open[i]
		if now < r.teaches {
			continue
		}
		r.teach(held, known)
		r.teaches = now + rawAgain
		if c := r.of; c.kind == unsettled && now-r.opened >= rawAgain {
			c.price = 0
			w.dropRaw(now, c) // it says next to nothing: until it does it costs what a connection does
		}
	}
}

// teach has its place learn what it has come to.
func (r *raw) teach(held float64, known bool) {
	p, all := r.place, int64(0)
	for d := range p.forecasts {
		n := r.Held(budget.Direction(d))
		p.forecasts[d].Learn(n)
		all += n
	}
	if known && all > int64(r.guard.worker.budget.Small) {
		p.held += (held - p.held) / heldGain
	}
}

// heldOfBounds is how much of what all may hold of what has passed is held, by the last reading.
func (w *Worker) heldOfBounds(now Time) (part float64, known bool) {
	t := w.account.Table()
	bounds := t.Sum().Bounds
	if w.account.Stale(now) || bounds <= 0 {
		return 0, false
	}
	return min(max(float64(t.Reading-t.Base)/float64(bounds), 0), 1), true
}

// closeRaw ends what is counted of a raw connection that was closed.
func (w *Worker) closeRaw(now Time, c *Connection) {
	r := c.carries
	if r.Likely() > 0 && r.teaches == r.opened+rawFirst { // one that lived shorter has taught nothing yet
		held, known := w.heldOfBounds(now)
		r.teach(held, known)
	}
	w.dropRaw(now, c)
}

func (w *Worker) dropRaw(now Time, c *Connection) {
	r := c.carries
	c.carries = nil
	r.guard.Close(now, &r.Stream)
	last := len(w.raws.open) - 1
	w.raws.open[r.at] = w.raws.open[last]
	w.raws.open[r.at].at = r.at
	w.raws.open[last] = nil
	w.raws.open = w.raws.open[:last]
}

// closeLate has those closed that were refused at their first bytes. Not in their own callback:
// what Envoy would close there is in the midst of being written to.
func (w *Worker) closeLate(a *Actions) {
	w.raws.late = slices.DeleteFunc(w.raws.late, func(c *Connection) bool {
		if w.claimCut(c) {
			a.Cut = append(a.Cut, c)
			return true
		}
		return c.IsClosed
	})
}

// HTTP2 implements Host.
func (r *raw) HTTP2() bool { return false }

// Connection implements Host.
func (r *raw) Connection() *Connection { return r.of }

// Arrived implements Host: there is no request, and what is left goes with the connection.
func (r *raw) Arrived() *Connection { return nil }

// HeaderBytes implements Host.
func (r *raw) HeaderBytes() int64 { return 0 }

// BodyLimit implements Host.
func (r *raw) BodyLimit() int64 { return 0 }

// Path implements Host.
func (r *raw) Path() string { return "" }

// Route implements Host.
func (r *raw) Route() string { return "" }

// Cluster implements Host.
func (r *raw) Cluster() string { return "" }

// VirtualHost implements Host.
func (r *raw) VirtualHost() string { return "" }

// Source implements Host.
func (r *raw) Source() string { return r.peer.Source() }

// Header implements Host.
func (r *raw) Header(string) string { return "" }

// Describe implements Host.
func (r *raw) Describe(string) reservoir.Labels {
	return reservoir.Labels{Source: strings.Clone(r.peer.Source()), Protocol: "TCP"}
}

// Visibility implements Host.
func (r *raw) Visibility(budget.Direction) budget.Visibility { return budget.Counted }

// rawCaps are what Envoy may hold of a raw connection, by direction.
func (g *Guard) rawCaps(c *Connection) (request, response int64) {
	b := &g.config.Buffers
	if c.Read > 0 {
		return c.Read + int64(b.Upstream), c.Read + int64(b.Upstream)
	}
	return 2 * int64(b.Downstream), int64(b.Downstream + b.Upstream)
}
