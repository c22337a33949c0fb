package fairness

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// MaxKeys is how many keys are told apart. What comes beyond is one key more: the other.
const MaxKeys = 64

// reuseAfter is how long a key that has nothing any more keeps its place.
const reuseAfter = time.Second

// Name is what a key is called: by what requests are told apart, and which of those it is.
type Name struct{ By, Value string }

// id is the FNV-1a hash of the name, by which workers mean the same key. Two names with the same id share a share.
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

	used time.Duration
}

// Keys are the keys of one worker. However many names come, it holds MaxKeys of them. Make it with NewKeys.
type Keys[T any] struct {
	Other Key[T] // those that have no place of their own
	all   []*Key[T]
	names map[Name]*Key[T]
	last  *Key[T] // that was asked for
}

// NewKeys returns an empty table.
func NewKeys[T any]() *Keys[T] {
	return &Keys[T]{Other: Key[T]{Weight: 1}, names: map[Name]*Key[T]{}}
}

// All are the keys that have a place, without the other.
func (k *Keys[T]) All() []*Key[T] { return k.all }

// Get returns the key of that name. A new one takes a free place, else that of the key that has had nothing for the
// longest time, at least a second; it has the weight that weigh returns, and a clone of the name. Where there is no place it is the
// other.
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
	key := &Key[T]{}
	if len(k.all) < MaxKeys {
		k.all = append(k.all, key)
	} else {
		free := -1
		for i, old := range k.all {
			if old.Refs == 0 && now-old.used >= reuseAfter && (free < 0 || old.used < k.all[free].used) {
				free = i
			}
		}
		if free < 0 {
			return &k.Other
		}
		delete(k.names, k.all[free].Name)
		k.all[free] = key
	}
	name.Value = strings.Clone(name.Value)
	*key = Key[T]{Name: name, ID: name.id(), Weight: weigh(name)}
	k.names[name] = key
	return key
}

// Total is what a key has in one worker, or in all of them, bytes.
type Total struct {
	ID     uint64
	Weight float64
	Use    int64 // coming and likely held
	Small  int64 // of it, what its small requests have
	Likely int64 // of it, what is likely held
	Waits  int64 // what its requests want that wait or were turned away lately
	Most   int64 // what one of its streams likely holds at most, while memory is over the limit
	Open   int64 // connections, where they are told apart
	Large  bool  // it has had large requests lately
}

func (t *Total) add(o *Total) {
	t.Use += o.Use
	t.Small += o.Small
	t.Likely += o.Likely
	t.Waits += o.Waits
	t.Most = max(t.Most, o.Most)
	t.Open += o.Open
	t.Large = t.Large || o.Large
	t.Weight = max(t.Weight, o.Weight)
}

const (
	totalsMagic = 0x48574b33 // "HWK3": a changed layout needs a new one
	totalBytes  = 9 * 8
	headerBytes = 4 + 4 + 8
)

// ErrTotals is wrapped by errors of DecodeTotals: the value is not what AppendTotals of this version wrote.
var ErrTotals = errors.New("not the totals of keys")

// AppendTotals encodes what the keys of one worker have, as of now, behind buf.
func AppendTotals(buf []byte, now time.Duration, totals []Total) []byte {
	le := binary.LittleEndian
	buf = le.AppendUint32(buf, totalsMagic)
	buf = le.AppendUint32(buf, uint32(len(totals)))
	buf = le.AppendUint64(buf, uint64(now))
	for i := range totals {
		t := &totals[i]
		large := uint64(0)
		if t.Large {
			large = 1
		}
		for _, v := range [...]uint64{t.ID, math.Float64bits(t.Weight), uint64(t.Use), uint64(t.Small), uint64(t.Likely), uint64(t.Waits), uint64(t.Most), uint64(t.Open), large} {
			buf = le.AppendUint64(buf, v)
		}
	}
	return buf
}

// DecodeTotals appends the totals that value holds to buf, and says as of when they are. The error wraps ErrTotals.
func DecodeTotals(value []byte, buf []Total) (totals []Total, at time.Duration, err error) {
	le := binary.LittleEndian
	if len(value) < headerBytes || le.Uint32(value) != totalsMagic {
		return buf, 0, fmt.Errorf("%w: %d bytes with another beginning", ErrTotals, len(value))
	}
	n := int(le.Uint32(value[4:]))
	if n > MaxKeys+1 || len(value) != headerBytes+n*totalBytes {
		return buf, 0, fmt.Errorf("%w: %d bytes for %d keys", ErrTotals, len(value), n)
	}
	for i := range n {
		at := func(f int) uint64 { return le.Uint64(value[headerBytes+i*totalBytes+8*f:]) }
		t := Total{
			ID: at(0), Weight: math.Float64frombits(at(1)), Use: int64(at(2)), Small: int64(at(3)), Likely: int64(at(4)),
			Waits: int64(at(5)), Most: int64(at(6)), Open: int64(at(7)), Large: at(8) != 0,
		}
		if !(t.Weight >= 0 && t.Weight <= MaxWeight) {
			return buf, 0, fmt.Errorf("%w: weight %v", ErrTotals, t.Weight)
		}
		buf = append(buf, t)
	}
	return buf, time.Duration(le.Uint64(value[8:])), nil
}

// MaxWeight is the highest weight that a key may have.
const MaxWeight = 1e6

// Merge adds up the totals of the same keys, in place, and sorts them by id. Beyond MaxKeys those that have least are
// added to the other.
func Merge(totals []Total) []Total {
	slices.SortFunc(totals, func(a, b Total) int { return cmp.Compare(a.ID, b.ID) })
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
			if t.ID != 0 && (least < 0 || t.Use+t.Waits < merged[least].Use+merged[least].Waits) {
				least = i
			}
		}
		t := merged[least]
		merged = slices.Delete(merged, least, least+1)
		if merged[0].ID != 0 {
			merged = slices.Insert(merged, 0, Total{Weight: 1})
		}
		weight := merged[0].Weight
		merged[0].add(&t)
		merged[0].Weight = weight
	}
	return merged
}

// Find returns the place of a key's total among merged ones, else that of the other's, else -1.
func Find(merged []Total, id uint64) int {
	i, ok := slices.BinarySearchFunc(merged, id, func(t Total, id uint64) int { return cmp.Compare(t.ID, id) })
	switch {
	case ok:
		return i
	case len(merged) > 0 && merged[0].ID == 0:
		return 0
	}
	return -1
}
