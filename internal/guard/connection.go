package guard

import (
	"math"
	"sort"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/idle"
	"github.com/highwater-envoy/highwater/internal/linger"
)

// Peer tells whose a connection is.
type Peer interface {
	Source() string // address of the client, without its port
	// Uploads says that what comes first is an upload over HTTP/1. It is asked while it comes, and
	// seldom.
	Uploads() bool
	// Place is the address of this Envoy that the client has connected to. It is asked once, and
	// only where there are raw connections.
	Place() string
	// ParsedAsHTTP says that Envoy parses what comes as HTTP, as far as it has. It is asked twice
	// at most, while bytes pass.
	ParsedAsHTTP() bool
}

// arrivals is what has come on a connection, bytes.
type arrivals struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	last    int64 // in the last read
	since   int64 // since its last request began, or ended
	arrived int64 // for the paused HTTP/1 request, before and since
	from    int64 // of what comes first, so much can be refused: see burdens
}

// Connection is one downstream connection. The zero value is ready.
type Connection struct {
	budget.Connection
	Context uint32 // the network filter's context, by which it can be closed; 0 = there is no network filter
	arrivals
	silent Peer // whose it is, while nothing has come that might be refused
	paused *Stream
	window int64 // what paused HTTP/2 requests take of the connection's window
	costs  int64 // and what they can leave unread
	spared bool  // mode observe: that would have been evicted
	doomed bool  // and that it would have been closed at its first bytes
	source *key  // that it counts for; nil = connections are not told apart
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

// ended are the ticks in which something of a connection was.
type ended struct {
	endedIn uint64 // a stream of it
	cut     uint64 // itself
}

// TLS notes that the connection turned out to be a TLS one.
func (g *Guard) TLS(now Time, c *Connection) {
	g.worker.account.RaiseConnection(&c.Connection, int64(g.config.Costs.TLSConnection))
	g.worker.account.Cover(now)
}

// Data notes n bytes that came on the connection. The HTTP filter does not see what a paused
// request's client sends. Where it says refused, they are to be thrown away, and the connection
// closed: see burdens.
func (w *Worker) Data(now Time, c *Connection, n int64) (refused bool) {
	if (c.silent != nil || c.onTrial) && w.refuses(now, c, n) {
		return true
	}
	c.last = n
	c.since += n
	w.idle.Touch(now, &c.use)
	if c.unread {
		// The next request: on HTTP/1 the response before it has been read.
		w.account.Leave(now, &c.Connection, 0, nil)
	}
	switch {
	case c.paused != nil:
		s := c.paused
		if s.Shadow() {
			n = max(min(n, s.pauseCost-c.arrived), 0) // it is not paused, and the rest passes
		} else if s.state == queued && s.total() > int64(w.budget.Small) && w.overflows(now, n) {
			w.refuseWaiting(now, s)
			return true
		}
		c.arrived += n
		c.paused.sends(n)
		w.account.PassPaused(&c.paused.Stream, n)
		w.account.Cover(now)
	case c.costs > 0 && !c.observed:
		w.account.PassShared(&c.Connection, n, c.costs)
		w.account.Cover(now)
	}
	return false
}

// CloseConnection takes it away again.
func (w *Worker) CloseConnection(now Time, c *Connection) {
	c.IsClosed = true
	w.endTrial(c)
	if c.carries != nil {
		w.closeRaw(now, c)
	}
	c.paused = nil
	c.use.Leave()
	if c.source != nil {
		c.source.Value.open--
		w.sources--
		c.source.Refs--
		c.source = nil
	}
	w.account.CloseConnection(&c.Connection)
}

// OpenConnection says whether a new connection is admitted, and counts it if so. One that is not is
// to be closed, and is none of ours any more.
func (g *Guard) OpenConnection(now Time, c *Connection, p Peer) (admitted bool) {
	w := g.worker
	cost := int64(g.config.Costs.Connection)
	var source *key // if that is what connections are told apart by, and there is a limit to share out
	if g.config.Fairness.By == config.BySource && w.limits.Connections > 0 {
		source = g.named(now, fairness.Name{By: config.BySource, Value: p.Source()})
	}
	if !g.letIn(now, c, p, source, cost) {
		w.counts[CountRefused]++
		if g.config.Mode != Observe {
			return false
		}
	}
	if source != nil {
		c.source = source
		source.Refs++
		source.Value.open++
		w.sources++
	}
	c.observed = g.config.Mode == Observe
	if !g.lets() && !g.mayExempt(burden) { // whose requests are never rejected is not known at their first bytes
		c.silent, c.from = p, burden
		if !g.mayExempt(modest) {
			c.from = modest
		}
	}
	c.came = now
	w.account.OpenConnection(&c.Connection, cost)
	w.account.Cover(now)
	if c.price > 0 {
		g.carry(now, c, p)
	}
	return true
}

// admitConnection asks for a connection by number. The last eighth of all is for sources that have
// less than their part, so that one that takes what it gets does not lock the others out.
func (w *Worker) admitConnection(now Time, source *key) bool {
	if source != nil && w.scarce() {
		w.countConnections(now)
		if w.lastConnections() && source.Value.hasItsPart() {
			return false
		}
	}
	return w.account.AskConnection(now) == budget.Granted
}

// fits says whether one more connection has room.
func (w *Worker) fits(now Time, cost int64) bool {
	// There is none only above hard, and only where it does not fit under the limit, and only where
	// all connections together cost more than the floor: refused above hard by itself, a fifth of
	// the bystanders that reconnect were lost, and in the same floor with small requests, a crowd
	// of those kept others from connecting. Without a recent reading the level is that of another
	// time.
	t := w.account.Table()
	open := w.account.Own().Connections.Open + w.account.Others().Connections.Open
	return t.Level < budget.Hard || t.Futile || w.account.Stale(now) || !w.measuresSoft(now) ||
		(open+1)*cost <= w.account.Floor() || w.account.Ask(now, cost, budget.Full) != budget.Denied
}

// countConnections learns how many connections the other workers have, and, where the last are
// given out, who has them.
func (w *Worker) countConnections(now Time) {
	if w.account.Refresh(now) != nil {
		w.HostError()
	}
	if w.lastConnections() && now-w.shares.at >= sharesEvery {
		w.exchangeShares(now)
	}
}

// lastConnections says that no more are left than are kept for others.
func (w *Worker) lastConnections() bool {
	return w.account.FreeConnections() <= w.limits.Connections/othersShare
}

// How long a connection must have been idle to be closed, and how many are in a tick.
const (
	idleAtSoft = time.Second            // TestIdleConnectionsAreClosed
	idleAtHard = 250 * time.Millisecond // TestIdleConnectionsAreClosed
	maxIdle    = 64                     // TestIdleConnectionsAreClosed
)

// busy counts a request on its connection, which Host.Arrived tells without a call of the host.
func (w *Worker) busy(now Time, s *Stream) {
	if w.onTry > 0 {
		if c := s.conn(); c != nil {
			w.endTrial(c)
		}
	}
	c := s.host.Arrived()
	if c == nil || w.idle.Mistaken() || w.idle.Verifies(&c.use) && s.conn() != c {
		return
	}
	c.use.Begin(now, c)
	s.busyOn = c
	if c.kind != speaksHTTP {
		w.speaks(now, c)
	}
}

// unbusy takes it away again.
func (w *Worker) unbusy(now Time, s *Stream) {
	c := s.busyOn
	if c == nil {
		return
	}
	s.busyOn = nil
	c.since = 0
	// After a request that was not all sent Envoy closes an HTTP/1 connection by itself, and not
	// before delayed_close_timeout, so that the client reads its answer.
	unfinished := !s.http2 && (!s.Ended(budget.Request) || s.state == rejected && s.pauseCost > 0 && !s.Shadow())
	w.idle.End(now, &c.use, !c.IsClosed && !unfinished)
}

// compare holds the connection that a request is on against the one that was taken for it.
func (w *Worker) compare(exact, arrived *Connection) {
	if exact == nil || exact.Context == 0 || exact == arrived || w.idle.Mistaken() {
		return // without the network filter nothing is counted on it
	}
	w.idle.Mistake()
	w.telling.later("another filter holds requests back before they come to highwater: which connections are idle can't be told, and this worker closes none any more; put highwater first of http_filters")
}

// closeIdle picks connections to close, where memory is short. What a large response has left in
// one may be unread for 10 s.
func (w *Worker) closeIdle(now Time, a *Actions) {
	level, least := w.account.Table().Level, idleAtSoft
	if level >= budget.Hard {
		least = idleAtHard
	}
	least = w.idle.Tick(now, least)
	if len(w.tried) > 0 {
		w.closeTried(now, least, a)
	}
	if level < budget.Soft || w.idle.Mistaken() || w.account.Stale(now) {
		return
	}
	for range maxIdle - len(a.Idle) {
		c := w.idle.First(now, least)
		if c == nil {
			return
		}
		if c.unread || c.use.Pauses(now) {
			w.idle.Postpone(&c.use)
			continue
		}
		c.use.Leave()
		w.counts[CountClosedIdle]++
		if !c.observed && w.claimCut(c) {
			a.Idle = append(a.Idle, c)
		}
	}
}

// leftovers is what ended responses may still hold, because their clients have not read it yet.
type leftovers struct {
	residual []*Connection // with an ended response that may be unread
	settled  Time          // when those were looked at last
}

// leave notes what an ended response may still hold, unread, on its connection.
func (w *Worker) leave(now Time, c *Connection, n int64, k *key) {
	w.account.Leave(now, &c.Connection, n, &k.Value.Sum)
	if c.key != nil {
		c.key.Refs--
	}
	c.key, c.spared = k, false
	k.Refs++
	if !c.unread {
		c.unread = true
		w.residual = append(w.residual, c)
	}
}

// settle lets what ended responses left become less likely with time.
func (w *Worker) settle(now Time) {
	if now-w.settled < 500*time.Millisecond {
		return
	}
	w.settled = now
	kept := w.residual[:0]
	for _, c := range w.residual {
		if !c.IsClosed && w.account.Settle(now, &c.Connection) {
			kept = append(kept, c)
		} else {
			c.unread = false
			c.key.Refs--
			c.key = nil
			c.traced = traced{}
		}
	}
	clear(w.residual[len(kept):])
	w.residual = kept
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

// lingerMore: what was evicted counts as leaving for so much longer than the linger. By then there
// is a reading that can show that it has gone.
const lingerMore = 50 * 1e6 // scenario eviction

// evict does this worker's part of what the one who polls has found to be too much, and says
// whether it ended anything. All workers come to the same plan: of the keys, those most above their
// share give up what is too much (fairness.Cuts); of a key, the streams that likely hold most go
// first, each worker's in proportion to what it has of them. What is likely held is scaled to what
// was measured: where `buffers` understate, eight times too much would go otherwise.
func (w *Worker) evict(now Time, a *Actions) (ended bool) {
	n := w.account.ToEvict()
	if n == 0 {
		return false
	}
	w.exchangeShares(now)
	x, t := &w.shares, w.account.Table()
	var likely int64
	for i := range x.totals {
		likely += x.totals[i].Likely
	}
	held := t.Reading - t.Base - t.Sum().Evicted.Leaving
	if likely <= 0 || held <= 0 {
		return false
	}
	scale := float64(held) / float64(likely)
	x.ask(func(t *fairness.Total) int64 { return int64(scale * float64(t.Likely)) })
	fairness.Cuts(max(held-n, 0), x.demands, x.parts)
	w.eachKey(func(k *key) {
		i := fairness.Find(x.totals, k.ID)
		if i < 0 || x.parts[i] == 0 || x.totals[i].Likely <= 0 {
			return
		}
		var before int64
		if j := fairness.Find(x.before, k.ID); j >= 0 && x.before[j].ID == k.ID {
			before = x.before[j].Likely
		}
		perByte := float64(x.parts[i]) / float64(x.totals[i].Likely)
		ended = w.evictOf(now, a, k, scale, x.totals[i].Most, perByte*float64(before), perByte*float64(before+k.Value.Likely)) || ended
	})
	w.publish()
	return ended
}

// candidates calls do with each that can be evicted.
func (w *Worker) candidates(do func(k *key, c candidate)) {
	w.account.Owners(func(owner any) {
		// What has ended is out of reach: Envoy ignores a local reply then, and the rest stays with
		// the connection.
		if s, ok := owner.(*Stream); ok && s.admitted() && s.exempt == judged && !s.spared && s.Likely() > 0 && !s.Ended(budget.Response) && !mayBeIdle(s) {
			do(s.key, candidate{stream: s, likely: s.Likely()})
		}
	})
	for _, c := range w.residual {
		if c.Left() > 0 && !c.spared {
			do(c.key, candidate{connection: c, likely: c.Left(), shared: c.use.Requests() > 0})
		}
	}
}

// weigh finds what one stream of each key likely holds at most.
func (w *Worker) weigh() {
	w.eachKey(func(k *key) { k.Value.most = 0 })
	w.candidates(func(k *key, c candidate) { k.Value.most = max(k.Value.most, c.likely) })
}

// evictOf evicts a key's part from one byte to another of what is cut from it on all workers. As
// many streams go on all of them together as one worker alone would take: the cut is counted in
// streams, and each takes those that begin in its part. What holds less than half of most, of what
// one stream of the key holds anywhere, stays for another time: 500 idle streams that may hold a
// tenth of their bound each would go for the sake of 50 stalled readers, who hold all of what is
// too much.
func (w *Worker) evictOf(now Time, a *Actions, k *key, scale float64, most int64, from, to float64) (ended bool) {
	w.evictable = w.evictable[:0]
	w.candidates(func(of *key, c candidate) {
		if of == k && 2*c.likely >= most {
			w.evictable = append(w.evictable, c)
		}
	})
	sort.Slice(w.evictable, func(i, j int) bool { return sooner(&w.evictable[i], &w.evictable[j]) })
	for _, c := range w.evictable {
		size := max(scale*float64(c.likely), 1)
		if math.Ceil(to/size) <= math.Ceil(from/size) {
			break
		}
		if c.stream != nil && !w.evictStream(now, a, c.stream) || c.connection != nil && !w.evictLeft(a, c.connection) {
			continue
		}
		w.count(Evicted)
		w.leaving.Add(now, Time(w.linger)+lingerMore, int64(size))
		from += size
		ended = true
	}
	clear(w.evictable)
	return ended
}

// sooner says that a goes before b: those first that share their connection with nobody, and of
// those the ones that hold most (TestAConnectionThatIsSharedIsCutLast).
func sooner(a, b *candidate) bool {
	if a.shared != b.shared {
		return b.shared
	}
	return a.likely > b.likely
}

func (w *Worker) evictStream(now Time, a *Actions, s *Stream) bool {
	if r, ok := s.host.(*raw); ok {
		return w.evictRaw(a, r)
	}
	c := s.conn()
	if c != nil && c.cut == w.ticks {
		return false
	}
	begun := s.Expected(budget.Response)
	if begun {
		w.counts[CountRejectedResponses]++
	}
	if s.guard.lets() {
		s.spared = true
		return true
	}
	if shadow := s.reject(now); shadow {
		return true
	}
	w.end(c)
	v := Verdict{Action: Answer, Reason: Evicted}
	if begun {
		v.Action = Reset
	} else {
		v.RetryAfter = s.guard.retryAfter(now, s.total())
	}
	w.account.End(now, &s.Stream, budget.Request)
	w.account.End(now, &s.Stream, budget.Response)
	a.Rejected = append(a.Rejected, Decision{s, v})
	return true
}

func (w *Worker) evictLeft(a *Actions, c *Connection) bool {
	if c.observed {
		c.spared = true
		return true
	}
	if !w.claimCut(c) {
		return false
	}
	a.Cut = append(a.Cut, c)
	return true
}
