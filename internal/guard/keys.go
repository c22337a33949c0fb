package guard

import (
	"math"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
)

func (k *keyed) use() int64 { return k.Coming + k.Likely }

// keyOf asks the host once whose the stream is.
func (g *Guard) keyOf(now Time, s *Stream) *key {
	if !s.keyed {
		g.setKey(now, s)
	}
	return s.key
}

func (g *Guard) setKey(now Time, s *Stream) {
	s.keyed = true
	if g.by == nil {
		return
	}
	if k := g.named(now, fairness.Name{By: g.config.Fairness.By, Value: g.by(s.host)}); k != s.key {
		s.key.Refs--
		s.key = k
		k.Refs++
		g.worker.account.Move(&s.Stream, &k.Value.Sum)
	}
}

func (g *Guard) named(now Time, name fairness.Name) *key {
	if len(name.Value) > fairness.MaxName {
		name.Value = name.Value[:fairness.MaxName]
	}
	k := g.worker.keys.Get(now, name, g.config.Fairness.Weight)
	if x := &g.worker.shares; k.Value.At != x.at { // it was not there at the last exchange
		k.Value.Entitlement, k.Value.Part, k.Value.Elsewhere = x.newcomer, x.newPart, 0
	}
	return k
}

// learn teaches a key's forecasts what a message without a length came to.
func (w *Worker) learn(now Time, k *key, d budget.Direction, n int64) {
	k.Value.Bodies[d].Learn(n)
	if d == budget.Response {
		w.learnResponse(now, k, n)
	}
}

// learnLapses teaches the forecasts what messages without a length have come to that are still open
// and bring nothing: a stream of small messages may never end (case grpc-bidi).
func (w *Worker) learnLapses(now Time) {
	for _, l := range w.account.Lapses() {
		s := l.Owner.(*Stream)
		if !s.Expected(l.Direction) { // its upstream is slow: it is no burst
			w.proven(s)
			continue
		}
		if l.Direction == budget.Response && s.expects.Ahead > 0 && s.Seen(l.Direction) == 0 {
			continue // its first piece is on its way to us: on a busy machine that took a second
		}
		if _, tcp := s.host.(*raw); !tcp && s.admitted() {
			w.learn(now, s.key, l.Direction, s.Held(l.Direction))
		}
	}
}

const (
	openAfter = 200 * time.Millisecond // TestUpgradesHaveAPrice
	openEvery = 100 * time.Millisecond // TestUpgradesHaveAPrice
	openLeast = 4                      // fewer tell nothing: caches of the allocator move as much; TestUpgradesHaveAPrice
	openFalls = 8                      // it falls by 1/8 of the difference each openEvery, and rises at once; TestUpgradesHaveAPrice
)

// isOpenEnded says that nothing will be told of what the request brings, nor how much that is.
func (s *Stream) isOpenEnded() bool {
	return s.length == budget.Unknown && !s.Counted(budget.Request)
}

// learnOpenEnded learns, now and then, what those hold that are there. What the reading has beyond
// all that is known of others is theirs. Those that have only just come hold less than they will,
// so it is divided among those that are there for a while, where these are the half of all: while
// many come that is up to twice too dear.
func (w *Worker) learnOpenEnded(now Time) {
	x := &w.openEnded
	if !w.account.Hides() || now-x.looked < openEvery || w.account.Stale(now) {
		return
	}
	x.looked = now
	t := w.account.Table()
	rest, all, n := t.Reading-t.Base-t.Sum().Likely, int64(0), int64(0)
	w.account.Owners(func(owner any) {
		s, ok := owner.(*Stream)
		if !ok {
			return
		}
		rest -= int64(s.guard.config.Costs.Stream)
		if s.admitted() && s.isOpenEnded() && s.Expected(budget.Response) {
			all++
			rest += s.Likely()
			if now-s.opened >= openAfter {
				n++
			}
		}
	})
	if n < openLeast || 2*n < all {
		return
	}
	price := max(rest, 0) / n
	if x.known && price < x.price {
		price = x.price - (x.price-price)/openFalls
	}
	x.price, x.known = price, true
}

// teach teaches the forecast of all responses of a stream's key. Where the key is not known, it is
// one whose responses are small, and this one is too.
func (w *Worker) teach(now Time, s *Stream, n int64) {
	if s.keyed {
		w.learnResponse(now, s.key, n)
	}
}

func (w *Worker) learnResponse(now Time, k *key, n int64) {
	if k.Value.LearnResponse(now, n, int64(w.budget.Small)) {
		w.countHeavy()
	}
}

func (w *Worker) countHeavy() {
	w.heavyKeys = 0
	w.eachKey(func(k *key) {
		if k.Value.Heavy() {
			w.heavyKeys++
		}
	})
}

// sharesEvery is how often what keys have is exchanged from soft on. What another worker published
// before that counts until its next tick, half a second later at most: who does not tick is dropped
// from the table.
const sharesEvery = 20 * time.Millisecond // scenario connections_of_a_source

// What a key wants of the room, and of the floor.
func ofRoom(t *fairness.Total) int64  { return t.Use + t.Waits }
func ofFloor(t *fairness.Total) int64 { return t.Small }

const (
	// A key counts as one that has large requests for so long after its last.
	largeFor = 10 * time.Second // TestAKeyAloneHasAll
	// Those who were rejected come back: what they want is halved each rejectedHalf, for it may be
	// the same that wants it again. Where only those that wait counted, whoever was let in filled
	// memory up to the limit; no room was left to wait in, nobody seemed to want more than he had,
	// and so all had less than their share.
	rejectedHalf = 500 * time.Millisecond // scenario weights
)

// noteLarge notes that a key has a large request or response. If it had none lately the shares are
// those of a time when it was not there.
func (w *Worker) noteLarge(now Time, k *key) {
	was := k.Value.lastLarge
	k.Value.lastLarge = now
	if was == 0 || now-was > largeFor {
		w.exchangeShares(now)
	}
}

// share exchanges what keys have, if it is time to. Below soft nobody is held back by his share;
// that a key begins to have large requests is told at once.
func (w *Worker) share(now Time) {
	if now-w.shares.at >= sharesEvery && (w.account.Table().Level >= budget.Soft || w.sources > 0 && w.scarce()) {
		w.exchangeShares(now)
	}
}

// exchangeShares tells the others what this worker's keys have, and learns from them what each
// key's share is.
func (w *Worker) exchangeShares(now Time) {
	x, store := &w.shares, w.account.Store()
	fade := math.Exp2(-float64(now-x.at) / float64(rejectedHalf))
	w.eachKey(func(k *key) { k.Value.rejected = int64(fade * float64(k.Value.rejected)) })
	x.at = now
	x.own = x.own[:0]
	if w.account.Table().Level == budget.Over {
		w.weigh()
	}
	w.eachKey(func(k *key) {
		if t := k.Value.total(now, k); t.Use > 0 || t.Waits > 0 || t.Large || k.Refs > 0 {
			x.own = append(x.own, t)
		}
	})
	x.buf = fairness.AppendTotals(x.buf[:0], now, x.own)
	if store.Put(w.account.ID(), x.buf) != nil {
		w.HostError()
	}
	x.Begin(x.own)
	for _, e := range w.account.Table().Entries {
		if e.ID == w.account.ID() {
			continue
		}
		switch published, err := store.Get(e.ID); {
		case err != nil:
			w.HostError()
		case len(published) > 0:
			x.Add(published, now+budget.Ahead, e.ID < w.account.ID())
		}
	}
	x.Merge()
	w.divide(now)
	w.divideConnections()
}

// total is what the others are told of a key.
func (k *keyed) total(now Time, of *key) fairness.Total {
	return fairness.Total{
		ID: of.ID, Weight: of.Weight, Use: k.use(), Small: k.Small, Likely: k.likelyPriced(), Waits: k.queue.Bytes() + k.rejected, Most: k.most, Open: k.Open,
		Large: k.lastLarge != 0 && now-k.lastLarge < largeFor, Named: of.Named(),
	}
}

// divide sets what this worker's keys are entitled to, and one that comes next.
//
// The room is shared out up to soft, beside all that no key explains: what those that wait have
// sent, caches of the allocator, what has passed and may be in the reading too. Where shares were
// of all that is between base and soft, nobody had his before memory was full, and who came first
// had it.
func (w *Worker) divide(now Time) {
	x := &w.shares
	soft, hard := w.account.Share(w.limits.Soft), w.account.Share(w.limits.Hard)
	x.newcomer = fairness.Entitlement{At: x.at}
	x.newcomer.Share = x.Split(max(soft-w.account.Estimate(now), 0)+x.Used(), ofRoom)
	w.hand(func(v *keyed, t *fairness.Total, part int64) {
		v.At, v.Share, v.Others = x.at, part, max(t.Use-v.use(), 0)
	}, x.newcomer.Share)
	x.newcomer.Reserve = x.Split(max(hard-soft, 0), ofRoom)
	w.hand(func(v *keyed, _ *fairness.Total, part int64) { v.Reserve = part }, x.newcomer.Reserve)
	x.newcomer.Floor = x.Split(w.account.Floor()/smallShare, ofFloor)
	w.hand(func(v *keyed, t *fairness.Total, part int64) {
		v.Floor, v.Smalls = part, max(t.Small-v.Small, 0)
	}, x.newcomer.Floor)
}

// hand calls set with each of this worker's keys, its total in all workers and its part of what was
// split last; next is that of one that nobody knew then.
func (w *Worker) hand(set func(v *keyed, t *fairness.Total, part int64), next int64) {
	x := &w.shares
	w.eachKey(func(k *key) {
		if i := fairness.Find(x.All, k.ID); i >= 0 {
			set(&k.Value, &x.All[i], x.Parts[i])
		} else {
			set(&k.Value, &fairness.Total{}, next)
		}
	})
}

// divideConnections sets the part of each source: as much as every other's, by weight, and that of
// one that is still to come, whatever it wants, for who connects does not say how often he will.
func (w *Worker) divideConnections() {
	if w.limits.Connections == 0 {
		return
	}
	x := &w.shares
	sum := 1. // the one to come
	for i := range x.All {
		if x.All[i].Open > 0 {
			sum += x.All[i].Weight
		}
	}
	part := func(weight, sum float64) int64 { return int64(float64(w.limits.Connections) * weight / sum) }
	x.newPart = part(1, sum)
	w.eachKey(func(k *key) {
		v := &k.Value
		if t := x.Find(k.ID); t != nil && t.Open > 0 {
			v.Part, v.Elsewhere = part(t.Weight, sum), max(t.Open-v.Open, 0)
		} else {
			v.Part, v.Elsewhere = part(k.Weight, sum+k.Weight), 0
		}
	})
}

// largeClaim is what a large request of n bytes may have. From soft on, what is left is for keys
// that have less than their share; where only one key has large requests there is nobody to leave
// it to.
func (w *Worker) largeClaim(k *key, n int64) budget.Claim {
	v := &k.Value
	switch {
	case !w.shares.Contended:
		return budget.UpToHard
	case n <= v.Share-v.Others-v.use():
		return budget.UpToLimit
	}
	return budget.UpToSoft
}

// claim asks for room for a large request. A key that has less than its share may have what lies
// between soft and hard even where the estimate has no room: the others were held to soft, so that
// it is there. What moves fast counts for two readings in both the reading and fresh, and a burst
// of one key turned the others away.
func (w *Worker) claim(now Time, k *key, n int64) budget.Outcome {
	claim := w.largeClaim(k, n)
	out := w.account.Ask(now, n, claim)
	if v := &k.Value; out == budget.Denied && claim == budget.UpToLimit && n <= v.Reserve-v.Others-v.use() {
		out = w.account.Ask(now, n, budget.Forced)
	}
	return out
}

// smallShare of the floor is kept for keys that have little of it: it comes on top.
const smallShare = 4 // scenario small_requests

// claimSmall is the same for a small one and the floor: a crowd of one key may have all of it, and
// the others a quarter more.
func (w *Worker) claimSmall(now Time, k *key, n int64) budget.Outcome {
	out := w.account.Ask(now, n, budget.Floor)
	if v := &k.Value; out == budget.Denied && n <= v.Floor-v.Smalls-v.Small {
		out = w.account.Ask(now, n, budget.Forced)
	}
	return out
}

// greedy says that a key has its share, or more, while others want theirs.
func (w *Worker) greedy(k *key) bool {
	return w.largeClaim(k, 1) == budget.UpToSoft
}

// rank is how much the key of one who waits has, of its weight: who has least is served first.
func rank(c *fairness.Waiter[Stream]) float64 {
	k := c.Value.key
	if k.Weight == 0 {
		return math.Inf(1)
	}
	return float64(k.Value.Others+k.Value.use()) / k.Weight
}

// scarce says that connections may soon be short: it is worth to know who has how many.
func (w *Worker) scarce() bool {
	return w.account.FreeConnections() <= 2*w.limits.Connections/othersShare
}

// KeyUse is what a key has on this worker, bytes.
type KeyUse struct {
	Name    string  `json:"name"`
	Weight  float64 `json:"weight"`
	Coming  int64   `json:"coming"`
	Likely  int64   `json:"likely"`
	Waiting int64   `json:"waiting"` // what those in the queue are expected to bring
	Price   int64   `json:"price"`   // what one of its requests holds beside the bytes that pass; 0 = nothing is known
}

// OtherKey is the name of all that are not told apart.
const OtherKey = "(other)"

// Keys are the worker's keys as of now; all that are not told apart are one, and first.
func (w *Worker) Keys() []KeyUse {
	var all []KeyUse
	w.eachKey(func(k *key) {
		name := k.Name.Value
		if k == &w.keys.Other {
			name = OtherKey
		}
		all = append(all, KeyUse{Name: name, Weight: k.Weight, Coming: k.Value.Coming, Likely: k.Value.Likely, Waiting: k.Value.queue.Bytes(), Price: k.Value.price})
	})
	return all
}

// othersShare: of the line, and of connections, a key that has more than its share leaves 1/8 to
// the others.
const othersShare = 8 // scenario connections_of_a_source
