package guard

import (
	"math"
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
)

// keyed is what a worker knows of one key.
type keyed struct {
	budget.Sum
	forecasts   [2]budget.Forecast // of messages without a length
	responses   budget.Forecast    // of all responses
	queue       fairness.Queue[Stream]
	most        int64 // what one of its streams likely holds, while memory is over the limit
	turned      int64 // bytes for which requests were turned away, fewer and fewer since
	lastLarge   Time  // when its last large request or response came
	heavy       Time  // since when its responses are large, by the forecast; 0 = they are not
	lastSmall   Time  // when it last had a small one
	unknown     int64 // what the responses may hold of requests that went when nothing was known of any, and are not answered
	probing     int64 // what those of its probes may hold, and is not reserved
	probed      Time  // when the last of them went
	cameProbed  bool  // it had just come, and was not in line
	largest     int64 // of its large responses, when it was seen
	largestSeen Time

	at             Time  // of the exchange from which these are:
	share, floor   int64 // what it would have of the room, and of a quarter of the floor, if it wanted all of them
	reserve        int64 // and of what lies between soft and hard
	others, smalls int64 // what it has on other workers, and of it in small requests

	open, elsewhere int64 // connections of this source, here and on other workers
	part            int64 // of budget.connections, if every source that has any had the same, by weight
}

type key = fairness.Key[keyed]

func (k *keyed) use() int64 { return k.Coming + k.Likely }

// Names are cut to maxName bytes; the rest of a longer one does not count.
const maxName = 256

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

// keepPlaces has the keys that the guards' weights name keep their places, whatever names clients
// make up.
func (w *Worker) keepPlaces() {
	names := map[fairness.Name]bool{}
	for _, g := range w.guards {
		for name := range g.config.Fairness.Weights {
			names[fairness.Name{By: g.config.Fairness.By, Value: name}] = true
		}
	}
	w.keys.Name(names)
}

func (g *Guard) named(now Time, name fairness.Name) *key {
	if len(name.Value) > maxName {
		name.Value = name.Value[:maxName]
	}
	k := g.worker.keys.Get(now, name, g.config.Fairness.weight)
	if x := &g.worker.shares; k.Value.at != x.at {
		// It was not there at the last exchange.
		v := &k.Value
		v.at, v.share, v.floor, v.reserve, v.part, v.others, v.smalls, v.elsewhere = x.at, x.newShare, x.newFloor, x.newReserve, x.newPart, 0, 0, 0
	}
	return k
}

// learn teaches a key's forecasts what a message without a length came to.
func (w *Worker) learn(now Time, k *key, d budget.Direction, n int64) {
	k.Value.forecasts[d].Learn(n)
	if d == budget.Response {
		w.learnResponse(now, k, n)
	}
}

// teach teaches the forecast of all responses of a stream's key. Where the key is not known, it is
// one whose responses are small, and this one is too.
func (w *Worker) teach(now Time, s *Stream, n int64) {
	if s.keyed {
		w.learnResponse(now, s.key, n)
	}
}

func (w *Worker) learnResponse(now Time, k *key, n int64) {
	v := &k.Value
	v.responses.Learn(n)
	switch {
	case n <= int64(w.budget.Small):
		v.lastSmall = now
	case n >= v.largest || n >= v.largestAt(now):
		v.largest, v.largestSeen = n, now
	}
	switch heavy := v.responses.Least() > int64(w.budget.Small); {
	case heavy == (v.heavy != 0):
		return
	case heavy:
		v.heavy = now
	default:
		v.heavy = 0
	}
	w.countLarge()
}

// heavyFor is how long a key must have had no small response before its requests count as large. On
// a route that has both, small ones would wait for what the large ones bring: beside 300 slow
// readers a tenth of the bystanders on the same route were rejected.
const heavyFor = 2 * time.Second

// large says that what is asked for with this key is large, whatever the request.
func (k *keyed) large(now Time) bool {
	return k.heavy != 0 && now-max(k.heavy, k.lastSmall) >= heavyFor
}

// largestHalf: what the largest response says of the next is halved each so often.
const largestHalf = 10 * time.Second

// largestAt is how large a response of the key may be, for what has been seen of late, bytes.
func (k *keyed) largestAt(now Time) int64 {
	return int64(float64(k.largest) * math.Exp2(-float64(now-k.largestSeen)/float64(largestHalf)))
}

func (w *Worker) countLarge() {
	w.largeKeys = 0
	w.eachKey(func(k *key) {
		if k.Value.heavy != 0 {
			w.largeKeys++
		}
	})
}

// shares is the exchange of what keys have, between the workers of a process.
type shares struct {
	at         Time  // of the last exchange; 0 = there was none
	contended  bool  // more than one key has large requests
	newShare   int64 // what one that comes now would have if it wanted all
	newFloor   int64
	newReserve int64
	newPart    int64
	totals     []fairness.Total // of all workers
	before     []fairness.Total // of those with a lower id
	demands    []fairness.Demand
	parts      []int64
	buf        []byte
	own        []fairness.Total
}

const (
	// sharesEvery is how often what keys have is exchanged while somebody may be held back, and
	// calmEvery how often else, so that when it begins it is known who is there.
	sharesEvery = 20 * time.Millisecond
	calmEvery   = 500 * time.Millisecond
	// A key counts as one that has large requests for so long after its last.
	largeFor = 10 * time.Second
	// Those who were turned away come back: what they want is halved each turnedHalf, for it may be
	// the same that wants it again. Where only those in line counted, whoever was let in filled
	// memory up to the limit; no room was left to wait in, nobody seemed to want more than he had,
	// and so all had less than their share.
	turnedHalf = 500 * time.Millisecond
	// What a worker has published is of no use any more after so long.
	sharesFor = time.Second
)

// pressed says that somebody may be held back: the level is soft, or somebody waits.
func (w *Worker) pressed() bool {
	return w.account.Table().Level >= budget.Soft || w.line.Len() > 0 || w.account.Others().Waiting > 0
}

// noteLarge notes that a key has a large request or response. If it had none lately the shares are
// those of a time when it was not there.
func (w *Worker) noteLarge(now Time, k *key) {
	was := k.Value.lastLarge
	k.Value.lastLarge = now
	w.stirred = true
	if was == 0 || now-was > largeFor {
		w.exchangeShares(now)
	}
}

// share exchanges what keys have, if it is time to: where nobody has had large requests, or new
// connections that are told apart, there is nothing to share out.
func (w *Worker) share(now Time) {
	every := calmEvery
	if w.pressed() || w.sources > 0 && w.scarce() {
		every = sharesEvery
	} else if !w.stirred {
		return
	}
	if now-w.shares.at >= every {
		w.stirred = false
		w.exchangeShares(now)
	}
}

// exchangeShares tells the others what this worker's keys have, and learns from them what each
// key's share is.
func (w *Worker) exchangeShares(now Time) {
	x := &w.shares
	fade := math.Exp2(-float64(now-x.at) / float64(turnedHalf))
	w.eachKey(func(k *key) { k.Value.turned = int64(fade * float64(k.Value.turned)) })
	x.at = now
	x.own = x.own[:0]
	if w.account.Table().Level == budget.Over {
		w.weigh()
	}
	w.eachKey(func(k *key) { w.addTotal(now, k) })
	x.buf = fairness.AppendTotals(x.buf[:0], now, x.own)
	store := w.account.Store()
	if store.Put(w.account.ID(), x.buf) != nil {
		w.HostError()
	}
	x.totals, x.before = append(x.totals[:0], x.own...), x.before[:0]
	for _, e := range w.account.Table().Entries {
		if e.ID != w.account.ID() {
			w.addOther(now, store, e.ID)
		}
	}
	x.totals, x.before = fairness.Merge(x.totals), fairness.Merge(x.before)
	w.divide(now)
}

func (w *Worker) addTotal(now Time, k *key) {
	v := &k.Value
	t := fairness.Total{
		ID: k.ID, Weight: k.Weight, Use: v.use(), Small: v.Small, Likely: v.Likely, Waits: v.queue.Bytes() + v.turned, Most: v.most, Open: v.open,
		Large: v.lastLarge != 0 && now-v.lastLarge < largeFor, Named: k.Named(),
	}
	if t.Use > 0 || t.Waits > 0 || t.Large || k.Refs > 0 {
		w.shares.own = append(w.shares.own, t)
	}
}

func (w *Worker) addOther(now Time, store budget.Store, id uint32) {
	x := &w.shares
	value, err := store.Get(id)
	if err != nil {
		w.HostError()
		return
	}
	if len(value) == 0 {
		return
	}
	n := len(x.totals)
	totals, at, err := fairness.DecodeTotals(value, x.totals)
	switch {
	case err != nil, at < now-sharesFor, at > now+budget.Ahead:
		x.totals = totals[:n] // of another version of us, or of a time that is over, or of none that there was
	default:
		x.totals = totals
		if id < w.account.ID() {
			x.before = append(x.before, totals[n:]...)
		}
	}
}

// divide sets the shares of this worker's keys, and that of one that comes next.
func (w *Worker) divide(now Time) {
	x := &w.shares
	large := 0
	for i := range x.totals {
		if x.totals[i].Large {
			large++
		}
	}
	x.contended = large > 1
	soft, hard := w.account.Share(w.limits.Soft), w.account.Share(w.limits.Hard)
	all := func(t *fairness.Total) int64 { return t.Use + t.Waits }
	// What they have already, and what is left of soft beside all that no key explains: what those
	// in line have sent, caches of the allocator, what has passed and may be in the reading too.
	// Where shares were of all that is between base and soft, nobody had his before memory was
	// full, and who came first had it.
	capacity := max(soft-w.account.Estimate(now), 0)
	for i := range x.totals {
		capacity += x.totals[i].Use
	}
	x.newShare = w.split(capacity, all, func(k *keyed, t *fairness.Total, part int64) {
		k.at, k.share, k.others = x.at, part, max(t.Use-k.use(), 0)
	})
	x.newReserve = w.split(max(hard-soft, 0), all, func(k *keyed, _ *fairness.Total, part int64) { k.reserve = part })
	w.divideConnections()
	small := func(t *fairness.Total) int64 { return t.Small }
	x.newFloor = w.split(w.account.Floor()/smallShare, small, func(k *keyed, t *fairness.Total, part int64) {
		k.floor, k.smalls = part, max(t.Small-k.Small, 0)
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
	for i := range x.totals {
		if x.totals[i].Open > 0 {
			sum += x.totals[i].Weight
		}
	}
	part := func(weight, sum float64) int64 { return int64(float64(w.limits.Connections) * weight / sum) }
	x.newPart = part(1, sum)
	w.eachKey(func(k *key) {
		v := &k.Value
		i := fairness.Find(x.totals, k.ID)
		if i < 0 || x.totals[i].Open == 0 {
			v.part, v.elsewhere = part(k.Weight, sum+k.Weight), 0
			return
		}
		v.part, v.elsewhere = part(x.totals[i].Weight, sum), max(x.totals[i].Open-v.open, 0)
	})
}

// split divides the capacity by what each key wants of it, hands each of this worker's keys its
// part with its total in all workers, and returns the part of a key that comes next.
func (w *Worker) split(capacity int64, wants func(*fairness.Total) int64, hand func(k *keyed, t *fairness.Total, part int64)) (next int64) {
	x := &w.shares
	x.ask(wants)
	x.demands = append(x.demands, fairness.Demand{Weight: 1})
	x.parts = append(x.parts, 0)
	fairness.Shares(capacity, x.demands, x.parts)
	next = x.parts[len(x.parts)-1]
	w.eachKey(func(k *key) {
		if i := fairness.Find(x.totals, k.ID); i >= 0 {
			hand(&k.Value, &x.totals[i], x.parts[i])
		} else {
			hand(&k.Value, &fairness.Total{}, next)
		}
	})
	return next
}

// ask makes a demand of each total, and room for as many parts.
func (x *shares) ask(wants func(*fairness.Total) int64) {
	x.demands = x.demands[:0]
	for i := range x.totals {
		x.demands = append(x.demands, fairness.Demand{Weight: x.totals[i].Weight, Bytes: wants(&x.totals[i])})
	}
	x.parts = slices.Grow(x.parts[:0], len(x.demands)+1)[:len(x.demands)]
}

func (w *Worker) eachKey(do func(k *key)) {
	do(&w.keys.Other)
	for _, k := range w.keys.All() {
		do(k)
	}
}

// largeClaim is what a large request of n bytes may have. From soft on, what is left is for keys
// that have less than their share; where only one key has large requests there is nobody to leave
// it to.
func (w *Worker) largeClaim(k *key, n int64) budget.Claim {
	v := &k.Value
	switch {
	case !w.shares.contended:
		return budget.Large
	case n <= v.share-v.others-v.use():
		return budget.Full
	}
	return budget.Shared
}

// claim asks for room for a large request. A key that has less than its share may have what lies
// between soft and hard even where the estimate has no room: the others were held to soft, so that
// it is there. What moves fast counts for two readings in both the reading and fresh, and a burst
// of one key turned the others away.
func (w *Worker) claim(now Time, k *key, n int64) budget.Outcome {
	claim := w.largeClaim(k, n)
	out := w.account.Ask(now, n, claim)
	if v := &k.Value; out == budget.Denied && claim == budget.Full && n <= v.reserve-v.others-v.use() {
		out = w.account.Ask(now, n, budget.Forced)
	}
	return out
}

// smallShare of the floor is kept for keys that have little of it: it comes on top.
const smallShare = 4

// claimSmall is the same for a small one and the floor: a crowd of one key may have all of it, and
// the others a quarter more.
func (w *Worker) claimSmall(now Time, k *key, n int64) budget.Outcome {
	out := w.account.Ask(now, n, budget.Floor)
	if v := &k.Value; out == budget.Denied && n <= v.floor-v.smalls-v.Small {
		out = w.account.Ask(now, n, budget.Forced)
	}
	return out
}

// greedy says that a key has its share, or more, while others want theirs.
func (w *Worker) greedy(k *key) bool {
	return w.largeClaim(k, 1) == budget.Shared
}

// rank is how much the key of one who waits would have with it, of its weight: who has least is
// served first.
func rank(c *fairness.Waiter[Stream]) float64 {
	k := c.Value.key
	if k.Weight == 0 {
		return math.Inf(1)
	}
	return float64(k.Value.others+k.Value.use()+c.Size) / k.Weight
}
