package guard

import (
	"fmt"
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/price"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// prices are what streams and connections cost beside their bytes, as it was learned. The worker that
// polls learns them from readings, and from how many streams each key has on all workers; it may have
// none itself. It publishes those that are in force, and all workers go by these.
//
// A price is asked for beside nothing: a request counts as what it brings, or as its key's price, the
// larger of both. So a compressor for each response, of which no byte passes, is not for free. A price
// lowers nothing that was announced, is forecast or has passed: who is taught in the calm that his
// streams cost little is not let in for less.
type prices struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	model     *price.Model // where this worker has polled; else nil
	learnedAt Time
	inherits  Time // until when those of the poller before stay in force that are not known here

	inForce    []fairness.Price // by id
	generation uint32           // of inForce
	dearKeys   int              // how many of those keys have a price of more than budget.small
	connection int64            // what one without a stream costs; 0 = it is not known

	exchanged Time  // when it last told, and heard
	toldLive  int64 // how many live streams it had then
	liveAt    int64 // and how many there were at all at the last reading
	startled  Time  // until when readings are to come soon, for one was another than expected by far

	named  Time // whoever came before has been asked whose he is, as far as that is of use
	ticked Time // the last tick that did not rest

	counts []price.Count    // of the last reading
	heard  []fairness.Price // to be used again
	totals []fairness.Total // likewise
	told   []uint64         // whose price was said to be other than configured
	toldAt Time
}

const (
	// A price matters where all streams of the key make this share of the limit more, or less, than
	// what is configured.
	mattersShare = 32 // TestACheapKeyHasNoPrice

	dearGuess = 512 << 10 // TestAKeyIsPricedWithinABurst

	startledFor = 250 * time.Millisecond // TestAFloodOfConnectionsIsPricedInTime

	// calmEvery is how often workers tell what they have while nobody is held back.
	calmEvery = 100 * time.Millisecond // TestCalmExchangesAreFew
	// burstShare: at once if they have so much more streams, or less. Else a reading has what nobody
	// has told of yet, and it is taken for another's.
	burstShare, burstLeast = 16, 2 // TestAKeyIsPricedWithinABurst

	// resettleShare: if a price has changed by so much, who is evicted is not to wait for the next sweep.
	resettleShare = 8 // scenario eviction

	// inheritFor is how long a poller goes by the prices of the one before, while it learns its own.
	inheritFor = 30 * time.Second // TestPricesSurviveTheirPoller

	// nameMost are asked for their key in a tick: each costs three calls of the host.
	nameMost = 32 // TestStreamsThatStayAreNamed

	// unnamedKey is the id of streams of which nobody has asked whose they are, and of those that wait.
	// They have a price, so that nobody else has theirs. It is never in force.
	unnamedKey = fairness.Connections - 1

	tellPriceEvery = time.Minute // TestAPriceIsToldOnce
	tellPriceOff   = 2           // times what is configured, or less than one in so many. TestAPriceIsToldOnce
)

// costs are what is configured. Where listeners differ, the most.
func (w *Worker) costs() (stream, connection int64) {
	for _, g := range w.guards {
		stream, connection = max(stream, int64(g.config.Costs.Stream)), max(connection, int64(g.config.Costs.Connection))
	}
	return stream, connection
}

// learnPrices takes a reading: the one who polls does.
func (w *Worker) learnPrices(now Time, inUse int64) {
	p := &w.prices
	if p.model == nil {
		p.model = &price.Model{}
	}
	if now-p.learnedAt > sharesFor {
		p.inherits = now + inheritFor
	}
	stream, connection := w.costs()
	all := w.account.Table().Sum()
	p.learnedAt, p.liveAt = now, all.Live
	w.countLive(stream, all.Streams)
	p.model.Matters = w.limits.Limit / mattersShare
	// What is likely held by a price alone must not explain it.
	p.model.Observe(now, inUse, max(all.Connections.Open-all.Streams, 0), connection, all.Bounds-all.Priced+all.Queue.Held, p.counts)
	if off := p.model.Innovation(); max(off, -off) >= p.model.Matters {
		p.startled = now + startledFor
	}
	w.putInForce(p.learned(now))
	if own := w.account.Own().Live; own > 0 || p.toldLive > 0 || len(p.inForce) > 0 {
		p.exchanged, p.toldLive = now, own
		w.tellTotals(now)
	}
}

// countLive counts how many streams each key has on all workers. A key is counted for each of them, and
// the model adds them up.
func (w *Worker) countLive(prior, streams int64) {
	p := &w.prices
	p.counts = p.counts[:0]
	count := func(id uint64, n int64) {
		if n > 0 {
			p.counts = append(p.counts, price.Count{ID: id, N: n, Prior: prior})
			streams -= n
		}
	}
	w.eachKey(func(k *key) { count(k.ID, k.Value.Live) })
	for _, e := range w.account.Table().Entries {
		if e.ID == w.account.ID() || e.Live == 0 {
			continue
		}
		published, err := w.account.Store().Get(e.ID)
		if err != nil {
			w.HostError()
			continue
		}
		if p.totals, _, err = fairness.DecodeTotals(published, p.totals[:0]); err != nil {
			continue // it has told nothing yet, or is of another version
		}
		for i := range p.totals {
			count(p.totals[i].ID, p.totals[i].Live)
		}
	}
	count(unnamedKey, streams)
}

// learned are the prices that are to be in force now, by id.
func (p *prices) learned(now Time) []fairness.Price {
	all := p.heard[:0]
	p.model.Known(func(id uint64, bytes int64) {
		if id != unnamedKey {
			all = append(all, fairness.Price{ID: id, Bytes: bytes})
		}
	})
	if bytes, known := p.model.Connection(); known {
		all = append(all, fairness.Price{ID: fairness.Connections, Bytes: bytes})
	}
	if now < p.inherits {
		fairness.SortPrices(all)
		n := len(all)
		for _, old := range p.inForce {
			if len(all) < fairness.MaxPrices && fairness.PriceOf(all[:n], old.ID) == 0 {
				all = append(all, old)
			}
		}
	}
	fairness.SortPrices(all)
	p.heard = all
	return all
}

// putInForce hands prices to this worker's keys. They are by id, and are copied.
func (w *Worker) putInForce(all []fairness.Price) {
	p := &w.prices
	if slices.Equal(all, p.inForce) && p.generation > 0 {
		return
	}
	p.inForce = append(p.inForce[:0], all...)
	p.generation++
	p.connection = fairness.PriceOf(all, fairness.Connections)
	p.dearKeys = 0
	for _, of := range all {
		if of.ID != fairness.Connections && of.Bytes > int64(w.budget.Small) {
			p.dearKeys++
		}
	}
	w.eachKey(func(k *key) {
		was := k.Value.Price
		if w.priceKey(k); max(was, k.Value.Price)-min(was, k.Value.Price) > was/resettleShare {
			w.account.Resettle()
		}
	})
	stream, connection := w.costs()
	w.eachKey(func(k *key) {
		w.tellPrice(k.ID, "a stream of "+w.keyName(k), k.Value.Price, "costs.stream", stream)
	})
	w.tellPrice(fairness.Connections, "a connection without a stream", p.connection, "costs.connection", connection)
}

// priceKey has a key go by what is in force.
func (w *Worker) priceKey(k *key) {
	k.Value.priced, k.Value.Price = w.prices.generation, fairness.PriceOf(w.prices.inForce, k.ID)
}

// exchangePrices tells the one who polls how many streams this worker has, and learns what they cost. A
// worker without any, while others have some, only learns, at its own pace.
func (w *Worker) exchangePrices(now Time) {
	p, own := &w.prices, w.account.Own()
	if w.polls || own.Streams == 0 && p.toldLive == 0 && w.account.Others().Streams == 0 {
		return // who polls does that with each reading
	}
	every := calmEvery
	if off := max(own.Live-p.toldLive, p.toldLive-own.Live); off >= max(burstLeast, p.toldLive/burstShare) {
		every = sharesEvery
	}
	if now-p.exchanged < every {
		return
	}
	if own.Live > 0 || p.toldLive > 0 {
		w.tellTotals(now)
	}
	w.hearPrices(now)
}

// hearPrices takes what the one who polls has learned.
func (w *Worker) hearPrices(now Time) {
	p, poller := &w.prices, w.account.Table().Poller.ID
	p.exchanged, p.toldLive = now, w.account.Own().Live
	if poller == 0 || w.polls {
		return
	}
	published, err := w.account.Store().Get(poller)
	if err != nil {
		w.HostError()
		return
	}
	if p.heard, err = fairness.DecodePrices(published, p.heard[:0]); err == nil {
		w.putInForce(p.heard)
	}
}

// nameOld counts those that were let in, and have lived longer than from one tick to the next: most
// requests are over by then. It asks those whose they are that were not asked. Where it is a header that
// tells, they were when they came, or can't be any more.
func (w *Worker) nameOld(now Time) {
	p := &w.prices
	since, before, left := p.named, p.ticked, nameMost
	p.ticked = now
	if w.account.Own().Streams == 0 {
		p.named = before
		return
	}
	w.account.Newest(func(owner any) (more bool) {
		s := owner.(*Stream)
		if s.opened < since {
			return false
		}
		if s.opened >= before || !s.admitted() && !s.Shadow() {
			return true
		}
		if !s.keyed && s.guard.by != nil && s.guard.header == "" {
			if left == 0 {
				return false
			}
			left--
			s.guard.keyOf(now, s)
		}
		s.goLive()
		return true
	})
	if left > 0 {
		p.named = before
	}
}

// goLive counts the stream among those that cost its key's price, where it is known whose it is, and it
// holds it: it was let in, or as a shadow.
func (s *Stream) goLive() {
	if s.keyed || s.guard.by == nil {
		s.guard.worker.account.SetLive(&s.Stream, true)
	}
}

// isStopped ends that: it is paused or ended, unless it is a shadow.
func (s *Stream) isStopped() {
	if !s.Shadow() {
		s.guard.worker.account.SetLive(&s.Stream, false)
	}
}

// reprice has one who waits go by what is known now.
func (w *Worker) reprice(now Time, s *Stream) {
	n := s.key.Value.PriceBeside(max(s.wants, s.length))
	if n == s.price {
		return
	}
	if most, known := w.mostAlone(now); known {
		n = min(n, max(most, 0))
	}
	s.price = n
}

// stirs says that a reading would tell more of prices. Streams that stay have come or gone since the
// last one, as many as would matter if they were dear; a constant number tells nothing of what they cost.
// Or a reading was another than expected by far, as when raw connections flood.
func (w *Worker) stirs(now Time, all *budget.Entry) bool {
	if now < w.prices.startled {
		return true
	}
	off := max(all.Live-w.prices.liveAt, w.prices.liveAt-all.Live)
	return off > 0 && off*dearGuess >= w.limits.Limit/mattersShare
}

// isDear says that a stream of the key costs more than n. While no key's streams cost more than a small
// request may bring, nobody is asked whose he is.
func (g *Guard) isDear(now Time, s *Stream, n int64) bool {
	return g.worker.prices.dearKeys > 0 && g.keyOf(now, s).Value.Price > n
}

// connectionCost is what a new connection costs.
func (g *Guard) connectionCost() int64 {
	if n := g.worker.prices.connection; n > 0 {
		return n
	}
	return int64(g.config.Costs.Connection)
}

// tlsCost is what one costs that has TLS. What is learned is one price for all: where few have it, a
// connection with TLS may cost more than that.
func (g *Guard) tlsCost() int64 {
	n := int64(g.config.Costs.TLSConnection)
	if known := g.worker.prices.connection; known > 0 {
		return max(known, n/2)
	}
	return n
}

// tellPrice says that a price is another than what is configured by far. The first worker with streams
// does: it most likely knows what the key is called.
func (w *Worker) tellPrice(id uint64, what string, bytes int64, setting string, configured int64) {
	p := &w.prices
	switch {
	case bytes == 0, bytes <= tellPriceOff*configured && tellPriceOff*bytes >= configured:
		return
	case !w.speaks(), slices.Contains(p.told, id), len(p.told) >= fairness.MaxPrices:
		return
	case p.toldAt > 0 && p.ticked-p.toldAt < tellPriceEvery:
		return // it counts all the same, and is told when it changes
	}
	p.toldAt, p.told = p.ticked, append(p.told, id)
	w.telling.later(fmt.Sprintf("%s costs Envoy %s, as its readings tell, and %s says %s: from now on it counts as that",
		what, unit.Bytes(bytes).Human(), setting, unit.Bytes(configured).Human()))
}

// speaks says that this worker is the first that has streams.
func (w *Worker) speaks() bool {
	entries := w.account.Table().Entries
	i := slices.IndexFunc(entries, func(e budget.Entry) bool { return e.Streams > 0 })
	return i >= 0 && entries[i].ID == w.account.ID()
}

// Prices are what streams and connections cost beside their bytes, in force on this worker.
type Prices struct {
	Connection Price      `json:"connection"` // of one without a stream
	Keys       []KeyPrice `json:"keys"`       // of one stream of each
}

// Price is what one costs.
type Price struct {
	Bytes int64 `json:"price"`
	Known bool  `json:"known"` // it was learned; else it is what is configured
}

// KeyPrice is that of a key.
type KeyPrice struct {
	Name string `json:"name"`
	Price
	Streams int64 `json:"streams"` // on this worker, as far as they stay
}

// Prices are those of the keys that this worker has; all that are not told apart are one, and first.
func (w *Worker) Prices() Prices {
	stream, connection := w.costs()
	p := Prices{Connection: priceOf(w.prices.connection, connection)}
	w.eachKey(func(k *key) {
		p.Keys = append(p.Keys, KeyPrice{w.keyName(k), priceOf(k.Value.Price, stream), k.Value.Live})
	})
	return p
}

func priceOf(learned, configured int64) Price {
	if learned > 0 {
		return Price{learned, true}
	}
	return Price{configured, false}
}
