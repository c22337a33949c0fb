package guard

import (
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/fairness"
)

// entitlement is what a key may have on this worker beside what it has anywhere, bytes. It is as of
// the last exchange of shares.
type entitlement struct {
	at             Time  // of that exchange
	share, floor   int64 // what it would have of the room, and of a quarter of the floor, if it wanted all of them
	reserve        int64 // and of what lies between soft and hard
	others, smalls int64 // what it has on other workers, and of it in small requests
}

// sockets are the connections of a key, where connections are told apart by their source.
type sockets struct {
	open, elsewhere int64 // here and on other workers
	part            int64 // of budget.connections, if every source that has any had the same, by weight
}

// hasItsPart says that a new connection would be more than its part.
func (s *sockets) hasItsPart() bool { return s.open+s.elsewhere >= s.part }

// shares is what the workers of a process tell each other of their keys, and what follows.
//
// Each worker publishes a total for each of its keys: what it has, what it waits for, how many
// connections. From all totals each reckons the same: by weighted max-min, what a key would have if
// it wanted all there is. That is done for the room, for what lies between soft and hard, for a
// quarter of the floor and for connections. What a key has on the other workers is taken off where
// it asks. One that nobody knew at the exchange is the newcomer until the next.
type shares struct {
	at        Time             // of the last exchange; 0 = there was none
	due       bool             // there has been something to share out since
	contended bool             // more than one key has large requests
	newcomer  entitlement      // of one that comes now
	newPart   int64            // of connections, likewise
	totals    []fairness.Total // of all workers
	before    []fairness.Total // of those with a lower id
	demands   []fairness.Demand
	parts     []int64
	buf       []byte
	own       []fairness.Total
}

const (
	// sharesEvery is how often what keys have is exchanged while somebody may be held back, and
	// calmEvery how often else, so that when it begins it is known who is there.
	sharesEvery = 20 * time.Millisecond
	calmEvery   = 500 * time.Millisecond
	// What a worker has published is of no use any more after so long.
	sharesFor = time.Second
)

// add takes the totals of another worker, which it has published. They are as of a time of its, at
// least since and at most until; low says that its id is lower.
func (x *shares) add(published []byte, since, until Time, low bool) {
	n := len(x.totals)
	totals, at, err := fairness.DecodeTotals(published, x.totals)
	if err != nil || at < since || at > until {
		x.totals = totals[:n] // of another version of us, or of a time that is over, or of none that there was
		return
	}
	x.totals = totals
	if low {
		x.before = append(x.before, totals[n:]...)
	}
}

// merge sums the totals by key.
func (x *shares) merge() {
	x.totals, x.before = fairness.Merge(x.totals), fairness.Merge(x.before)
	large := 0
	for i := range x.totals {
		if x.totals[i].Large {
			large++
		}
	}
	x.contended = large > 1
}

// used is what all keys have on all workers.
func (x *shares) used() (sum int64) {
	for i := range x.totals {
		sum += x.totals[i].Use
	}
	return sum
}

// find is the total of a key in all workers; nil = none has it.
func (x *shares) find(id uint64) *fairness.Total {
	if i := fairness.Find(x.totals, id); i >= 0 {
		return &x.totals[i]
	}
	return nil
}

// ask makes a demand of each total, and room for as many parts.
func (x *shares) ask(wants func(*fairness.Total) int64) {
	x.demands = x.demands[:0]
	for i := range x.totals {
		x.demands = append(x.demands, fairness.Demand{Weight: x.totals[i].Weight, Bytes: wants(&x.totals[i])})
	}
	x.parts = slices.Grow(x.parts[:0], len(x.demands)+1)[:len(x.demands)]
}

// split divides the capacity by what each key wants of it, into parts in the order of totals, and
// returns the part of a key that comes next.
func (x *shares) split(capacity int64, wants func(*fairness.Total) int64) (next int64) {
	x.ask(wants)
	x.demands = append(x.demands, fairness.Demand{Weight: 1})
	x.parts = append(x.parts, 0)
	fairness.Shares(capacity, x.demands, x.parts)
	return x.parts[len(x.parts)-1]
}

// What a key wants of the room, and of the floor.
func ofRoom(t *fairness.Total) int64  { return t.Use + t.Waits }
func ofFloor(t *fairness.Total) int64 { return t.Small }
