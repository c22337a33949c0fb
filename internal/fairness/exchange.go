package fairness

import (
	"slices"
	"time"
)

// Exchange is the totals that all workers have published of their keys, and how something is shared
// out by them. The zero value has none.
type Exchange struct {
	All       []Total // of all workers, a key each after Merge
	Before    []Total // of those with a lower id
	Contended bool    // more than one key has large requests
	Parts     []int64 // of what was split last, bytes, in the order of All

	demands []Demand
}

// Begin takes this worker's own totals; those of others are added to them.
func (x *Exchange) Begin(own []Total) { x.All, x.Before = append(x.All[:0], own...), x.Before[:0] }

// Add takes the totals of another worker, which it has published. They are as of a time of its, at
// most until; low says that its id is lower.
func (x *Exchange) Add(published []byte, until time.Duration, low bool) {
	n := len(x.All)
	totals, at, err := DecodeTotals(published, x.All)
	if err != nil || at > until {
		x.All = totals[:n] // of another version of us, or of a time that has not been
		return
	}
	x.All = totals
	if low {
		x.Before = append(x.Before, totals[n:]...)
	}
}

// Merge sums the totals by key.
func (x *Exchange) Merge() {
	x.All, x.Before = Merge(x.All), Merge(x.Before)
	large := 0
	for i := range x.All {
		if x.All[i].Large {
			large++
		}
	}
	x.Contended = large > 1
}

// Used is what all keys have on all workers.
func (x *Exchange) Used() (sum int64) {
	for i := range x.All {
		sum += x.All[i].Use
	}
	return sum
}

// Find is the total of a key in all workers; nil = none has it.
func (x *Exchange) Find(id uint64) *Total {
	if i := Find(x.All, id); i >= 0 {
		return &x.All[i]
	}
	return nil
}

// ask makes a demand of each total, and room for as many parts.
func (x *Exchange) ask(wants func(*Total) int64) {
	x.demands = x.demands[:0]
	for i := range x.All {
		x.demands = append(x.demands, Demand{Weight: x.All[i].Weight, Bytes: wants(&x.All[i])})
	}
	x.Parts = slices.Grow(x.Parts[:0], len(x.demands)+1)[:len(x.demands)]
}

// Split divides the capacity by what each key wants of it, into parts in the order of totals, and
// returns the part of a key that comes next.
func (x *Exchange) Split(capacity int64, wants func(*Total) int64) (next int64) {
	x.ask(wants)
	x.demands = append(x.demands, Demand{Weight: 1})
	x.Parts = append(x.Parts, 0)
	Shares(capacity, x.demands, x.Parts)
	return x.Parts[len(x.Parts)-1]
}

// Cut sets as Parts what is to go of what each has, so that what is left has room in the capacity.
func (x *Exchange) Cut(capacity int64, has func(*Total) int64) {
	x.ask(has)
	Cuts(capacity, x.demands, x.Parts)
}
