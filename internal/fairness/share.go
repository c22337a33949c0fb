package fairness

import "math"

// Demand is what one key wants of something that is shared out.
type Demand struct {
	Weight float64 // 0 = only what nobody else wants
	Bytes  int64   // what it has, and what it waits for
}

// maxDemands: each key's, the other's, and that of a key that is not there yet.
const maxDemands = MaxKeys + 2

// level is where weighted max-min sharing (progressive filling: Bertsekas and Gallager, Data
// Networks, 6.5.2) ends: each key has the smaller of its demand and its weight × the level, and
// together they have the capacity. order lists the demands by Bytes ÷ Weight, the key without is
// taken for one that wants all there is (-1 = none). It is +Inf if all that is wanted is there.
func level(capacity int64, demands []Demand, order []uint8, without int) float64 {
	left, weights := float64(capacity), 0.0
	for _, d := range demands {
		weights += d.Weight
	}
	for _, i := range order {
		d := demands[i]
		if int(i) == without || d.Weight == 0 {
			continue
		}
		if float64(d.Bytes)*weights > left*d.Weight {
			return max(left, 0) / weights
		}
		left -= float64(d.Bytes)
		weights -= d.Weight
	}
	if without >= 0 && demands[without].Weight > 0 {
		return max(left, 0) / demands[without].Weight
	}
	return math.Inf(1)
}

// sorted returns the order of at most MaxKeys+2 demands, by how much each has of its weight.
func sorted(demands []Demand, order []uint8) []uint8 {
	for i := range demands {
		order = append(order, uint8(i))
		for j := len(order) - 1; j > 0; j-- {
			a, b := demands[order[j-1]], demands[order[j]]
			if float64(a.Bytes)*b.Weight <= float64(b.Bytes)*a.Weight {
				break
			}
			order[j-1], order[j] = order[j], order[j-1]
		}
	}
	return order
}

// atMost is f as an integer from 0 to most. Where f is none (NaN) it is most.
func atMost(most int64, f float64) int64 {
	if !(f < float64(most)) {
		return most
	}
	return min(int64(max(f, 0)), most)
}

// Shares sets each share to what that key would have of the capacity if it wanted all there is and
// the others what they want: what an idle key does not want is the others' at once. There are at
// most MaxKeys+2 demands, and as many shares.
func Shares(capacity int64, demands []Demand, shares []int64) {
	var buf [maxDemands]uint8
	order := sorted(demands, buf[:0])
	for i, d := range demands {
		if d.Weight > 0 {
			// Beside a weight that is a million times as large, or more, a small one is lost in a
			// sum of both: then level may be anything.
			shares[i] = atMost(max(capacity, 0), d.Weight*level(capacity, demands, order, i))
			continue
		}
		left := max(capacity, 0)
		for j := range demands {
			if j != i {
				left -= min(demands[j].Bytes, left)
			}
		}
		shares[i] = left
	}
}

// Cuts sets each cut to what that key has to give up, so that together they keep no more than keep:
// nothing of those that have no more than their share of it, and the rest from those most above
// theirs. There are at most MaxKeys+1 demands, and as many cuts.
func Cuts(keep int64, demands []Demand, cuts []int64) {
	var buf [maxDemands]uint8
	level := level(keep, demands, sorted(demands, buf[:0]), -1)
	for i, d := range demands {
		cuts[i] = 0
		if most := d.Weight * level; d.Weight == 0 || float64(d.Bytes) > most {
			if d.Weight == 0 {
				most = 0
			}
			cuts[i] = d.Bytes - atMost(d.Bytes, most)
		}
	}
}
