package guard

import (
	"math"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
)

const (
	// A key counts as one that has large requests for so long after its last.
	largeFor = 10 * time.Second
	// Those who were rejected come back: what they want is halved each rejectedHalf, for it may be
	// the same that wants it again. Where only those that wait counted, whoever was let in filled
	// memory up to the limit; no room was left to wait in, nobody seemed to want more than he had,
	// and so all had less than their share.
	rejectedHalf = 500 * time.Millisecond
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
	w.shares.due = true
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
	} else if !w.shares.due {
		return
	}
	if now-w.shares.at >= every {
		w.shares.due = false
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
	x.totals, x.before = append(x.totals[:0], x.own...), x.before[:0]
	for _, e := range w.account.Table().Entries {
		if e.ID == w.account.ID() {
			continue
		}
		switch published, err := store.Get(e.ID); {
		case err != nil:
			w.HostError()
		case len(published) > 0:
			x.add(published, now-sharesFor, now+budget.Ahead, e.ID < w.account.ID())
		}
	}
	x.merge()
	w.divide(now)
	w.divideConnections()
}

// total is what the others are told of a key.
func (v *keyed) total(now Time, k *key) fairness.Total {
	return fairness.Total{
		ID: k.ID, Weight: k.Weight, Use: v.use(), Small: v.Small, Likely: v.Likely, Waits: v.queue.Bytes() + v.rejected, Most: v.most, Open: v.open,
		Large: v.lastLarge != 0 && now-v.lastLarge < largeFor, Named: k.Named(),
	}
}

// divide sets what this worker's keys are entitled to, and one that comes next.
//
// The room is shared out up to soft, beside all that no key explains: what those that wait have
// sent, caches of the allocator, what has passed and may be in the reading too. Where shares were of
// all that is between base and soft, nobody had his before memory was full, and who came first had
// it.
func (w *Worker) divide(now Time) {
	x := &w.shares
	soft, hard := w.account.Share(w.limits.Soft), w.account.Share(w.limits.Hard)
	x.newcomer = entitlement{at: x.at}
	x.newcomer.share = x.split(max(soft-w.account.Estimate(now), 0)+x.used(), ofRoom)
	w.hand(func(v *keyed, t *fairness.Total, part int64) {
		v.at, v.share, v.others = x.at, part, max(t.Use-v.use(), 0)
	}, x.newcomer.share)
	x.newcomer.reserve = x.split(max(hard-soft, 0), ofRoom)
	w.hand(func(v *keyed, _ *fairness.Total, part int64) { v.reserve = part }, x.newcomer.reserve)
	x.newcomer.floor = x.split(w.account.Floor()/smallShare, ofFloor)
	w.hand(func(v *keyed, t *fairness.Total, part int64) {
		v.floor, v.smalls = part, max(t.Small-v.Small, 0)
	}, x.newcomer.floor)
}

// hand calls set with each of this worker's keys, its total in all workers and its part of what was
// split last; next is that of one that nobody knew then.
func (w *Worker) hand(set func(v *keyed, t *fairness.Total, part int64), next int64) {
	x := &w.shares
	w.eachKey(func(k *key) {
		if i := fairness.Find(x.totals, k.ID); i >= 0 {
			set(&k.Value, &x.totals[i], x.parts[i])
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
	for i := range x.totals {
		if x.totals[i].Open > 0 {
			sum += x.totals[i].Weight
		}
	}
	part := func(weight, sum float64) int64 { return int64(float64(w.limits.Connections) * weight / sum) }
	x.newPart = part(1, sum)
	w.eachKey(func(k *key) {
		v := &k.Value
		if t := x.find(k.ID); t != nil && t.Open > 0 {
			v.part, v.elsewhere = part(t.Weight, sum), max(t.Open-v.open, 0)
		} else {
			v.part, v.elsewhere = part(k.Weight, sum+k.Weight), 0
		}
	})
}
