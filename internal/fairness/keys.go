package fairness

import (
	"errors"
	"math"
	"sort"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/wire"
)

// MaxKeys is how many keys are told apart. What comes beyond is one key more: the other.
const MaxKeys = 64 // TestAMillionNamesTakeNoMoreThan64Places

// MaxNamed is for how many named keys a place is kept, whoever else comes. The rest is always there
// for the others.
const MaxNamed = 48 // TestNamedKeysFindAPlace

// MaxName is how many bytes of a name are looked at: the rest of a longer one does not count.
const MaxName = 256

// reuseAfter is how long a key that has nothing any more keeps its place.
const reuseAfter = time.Second // TestAPlaceIsFreeASecondAfterItsLastUse

// Name is what a key is called: by what requests are told apart, and which of those it is.
type Name struct{ By, Value string }

// id is the FNV-1a hash of the name, by which workers mean the same key. Two names with the same id
// share a share.
func (n Name) id() uint64 {
	h := uint64(14695981039346656037)
	for _, s := range [...]string{n.By, "\x00", n.Value} {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	return max(h, 1) // 0 is the other's
}

// Key is one of those among whom something is shared out, on one worker.
type Key[T any] struct {
	Name   Name
	ID     uint64  // the same on all workers; 0 = the other
	Weight float64 // 1 is the usual one
	Value  T
	Refs   int // how many streams and connections refer to it

	used  time.Duration
	named bool
}

// Named says whether a place is kept for it: see Keys.Name.
func (k *Key[T]) Named() bool { return k.named }

// Keys are the keys of one worker. However many names come, it holds MaxKeys of them, and those
// that were named before find a place among them. Make it with NewKeys.
type Keys[T any] struct {
	Other  Key[T] // those that have no place of their own
	all    []*Key[T]
	names  map[Name]*Key[T]
	last   *Key[T] // that was asked for
	named  map[Name]bool
	madeUp int // of all, how many are not named
}

// NewKeys returns an empty table.
func NewKeys[T any]() *Keys[T] {
	return &Keys[T]{Other: Key[T]{Weight: 1}, names: map[Name]*Key[T]{}}
}

// All are the keys that have a place, without the other.
func (k *Keys[T]) All() []*Key[T] { return k.all }

// Name keeps places for the keys of these names, in place of those that it was told before: as many
// as MaxNamed. The names that clients make up have the rest.
func (k *Keys[T]) Name(names map[Name]bool) {
	k.named, k.madeUp = names, 0
	for _, key := range k.all {
		if key.named = names[key.Name]; !key.named {
			k.madeUp++
		}
	}
}

// Get returns the key of that name. A new one takes a free place, else that of the key that has had
// nothing for the longest time, at least a second; it has the weight that weigh returns, and a
// clone of the name. Where there is no place it is the other. One that is named takes the place of
// one that is not and has nothing, for however long.
func (k *Keys[T]) Get(now time.Duration, name Name, weigh func(Name) float64) *Key[T] {
	if k.last == nil || k.last.Name != name {
		k.last = k.find(now, name, weigh)
	}
	k.last.used = now
	return k.last
}

func (k *Keys[T]) find(now time.Duration, name Name, weigh func(Name) float64) *Key[T] {
	if key := k.names[name]; key != nil {
		return key
	}
	named, place := k.named[name], len(k.all)
	if place == MaxKeys || !named && k.madeUp >= MaxKeys-min(len(k.named), MaxNamed) {
		if place = k.idle(now, named); place < 0 {
			return &k.Other
		}
		delete(k.names, k.all[place].Name)
		if !k.all[place].named {
			k.madeUp--
		}
	} else {
		k.all = append(k.all, nil)
	}
	if !named {
		k.madeUp++
	}
	name.Value = strings.Clone(name.Value)
	key := &Key[T]{Name: name, ID: name.id(), Weight: weigh(name), named: named}
	k.all[place] = key
	k.names[name] = key
	return key
}

// idle is the place of a key that has nothing and may go: the one that was used least lately of
// those without a name, and, for one that is named, else of those with one. It is -1 where there is
// none.
func (k *Keys[T]) idle(now time.Duration, forNamed bool) int {
	free := -1
	for i, old := range k.all {
		switch {
		case old.Refs > 0, old.named && !forNamed, now-old.used < reuseAfter && (old.named || !forNamed):
		case free < 0, old.named == k.all[free].named && old.used < k.all[free].used, !old.named && k.all[free].named:
			free = i
		}
	}
	return free
}

// Total is what a key has in one worker, or in all of them, bytes.
type Total struct {
	ID     uint64
	Weight float64
	Use    int64 // coming and likely held
	Small  int64 // of it, what its small requests have
	Likely int64 // of it, what is likely held
	Waits  int64 // what its requests want that wait or were rejected lately
	Most   int64 // what one of its streams likely holds at most, while memory is over the limit
	Open   int64 // connections, where they are told apart
	Large  bool  // it has had large requests lately
	Named  bool  // a place is kept for it
}

func (t *Total) add(o *Total) {
	t.Use += o.Use
	t.Small += o.Small
	t.Likely += o.Likely
	t.Waits += o.Waits
	t.Most = max(t.Most, o.Most)
	t.Open += o.Open
	t.Large = t.Large || o.Large
	t.Named = t.Named || o.Named
	t.Weight = max(t.Weight, o.Weight)
}

// less says that the other's place is the better kept.
func (t *Total) less(o *Total) bool {
	if t.Named != o.Named {
		return o.Named
	}
	return t.Use+t.Waits < o.Use+o.Waits
}

const (
	totalsMagic = 0x48574b34 // "HWK4": a changed layout needs a new one
	totalBytes  = 9 * 8

	flagLarge = 1 << 0
	flagNamed = 1 << 1
)

// ErrTotals is wrapped by errors of DecodeTotals: the value is not what AppendTotals of this
// version wrote.
var ErrTotals = errors.New("not the totals of keys")

// AppendTotals encodes what the keys of one worker have, as of now, behind buf.
func AppendTotals(buf []byte, now time.Duration, totals []Total) []byte {
	buf = wire.AppendUint32(buf, totalsMagic)
	buf = wire.AppendUint32(buf, uint32(len(totals)))
	buf = wire.AppendInt(buf, int64(now))
	for i := range totals {
		t := &totals[i]
		flags := int64(0)
		if t.Large {
			flags |= flagLarge
		}
		if t.Named {
			flags |= flagNamed
		}
		buf = wire.AppendInts(buf, int64(t.ID), int64(math.Float64bits(t.Weight)), t.Use, t.Small, t.Likely, t.Waits, t.Most, t.Open, flags)
	}
	return buf
}

// maxTotal is more than a key can have in one worker, and so little that those of thousands of
// workers can be added up.
const maxTotal = 1 << 48

// DecodeTotals appends the totals that value holds to buf, and says as of when they are. The error
// wraps ErrTotals.
func DecodeTotals(value []byte, buf []Total) (totals []Total, at time.Duration, err error) {
	r := wire.Read(value, totalsMagic)
	keys := r.Uint32()
	at = time.Duration(r.Int())
	r.Expect(keys <= MaxKeys+1 && r.Left() == int(keys)*totalBytes, "as many keys as it says")
	size := func() int64 { return max(min(r.Int(), maxTotal), 0) }
	totals = buf
	for r.Left() > 0 {
		t := Total{ID: uint64(r.Int()), Weight: r.Float(), Use: size(), Small: size(), Likely: size(), Waits: size(), Most: size(), Open: size()}
		flags := r.Int()
		t.Large, t.Named = flags&flagLarge != 0, flags&flagNamed != 0
		r.Expect(t.Weight >= 0 && t.Weight <= MaxWeight, "a weight")
		totals = append(totals, t)
	}
	if err := r.End(ErrTotals); err != nil {
		return buf, 0, err
	}
	return totals, at, nil
}

// MaxWeight is the highest weight that a key may have.
const MaxWeight = 1e6

// Merge adds up the totals of the same keys, in place, and sorts them by id. Beyond MaxKeys those
// that have least are added to the other, those without a name first.
func Merge(totals []Total) []Total {
	sort.Slice(totals, func(i, j int) bool { return totals[i].ID < totals[j].ID })
	merged := totals[:0]
	for _, t := range totals {
		if n := len(merged); n > 0 && merged[n-1].ID == t.ID {
			merged[n-1].add(&t)
		} else {
			merged = append(merged, t)
		}
	}
	for len(merged) > MaxKeys+1 {
		least := -1
		for i, t := range merged {
			if t.ID != 0 && (least < 0 || t.less(&merged[least])) {
				least = i
			}
		}
		t := merged[least]
		if merged[0].ID == 0 {
			merged = append(merged[:least], merged[least+1:]...)
		} else { // the other takes its place, at the beginning
			copy(merged[1:], merged[:least])
			merged[0] = Total{Weight: 1}
		}
		weight := merged[0].Weight
		merged[0].add(&t)
		merged[0].Weight = weight
	}
	return merged
}

// Find returns the place of a key's total among merged ones, else that of the other's, else -1.
func Find(merged []Total, id uint64) int {
	i := sort.Search(len(merged), func(i int) bool { return merged[i].ID >= id })
	switch {
	case i < len(merged) && merged[i].ID == id:
		return i
	case len(merged) > 0 && merged[0].ID == 0:
		return 0
	}
	return -1
}
