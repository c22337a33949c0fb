package guard

import (
	"math"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
)

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
