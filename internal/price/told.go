package price

import (
	"errors"
	"sort"

	"github.com/highwater-envoy/highwater/internal/wire"
)

// Told is what one worker tells the others: how many live streams of each key it has, and, where it
// is the one who polls, what it has learnt. The zero value has nothing to tell.
type Told struct {
	Parts  []Part
	Prices []Price // by id
}

// Part is what a worker has of a key.
type Part struct {
	ID      uint64
	Streams int64 // live ones
	Likely  int64 // what they likely hold by the bytes that have passed
}

// Price is what one more live stream of a key costs beside its bytes, as it was learnt.
type Price struct {
	ID    uint64
	Bytes int64
}

// ErrTold is wrapped by errors of Decode: the value is not of this version.
var ErrTold = errors.New("not prices of highwater")

const (
	toldMagic = 0x48575031 // "HWP1": a changed layout needs a new one
	partBytes = 3 * 8
	pairBytes = 2 * 8
	// maxTold bounds what is read: the keys of a worker, and the other.
	maxTold = 2 * (MaxKeys + 1)
)

// Append encodes it behind buf.
func (t *Told) Append(buf []byte) []byte {
	buf = wire.AppendUint32(buf, toldMagic)
	buf = wire.AppendUint32(buf, uint32(len(t.Parts)))
	for _, p := range t.Parts {
		buf = wire.AppendInts(buf, int64(p.ID), p.Streams, p.Likely)
	}
	for _, p := range t.Prices {
		buf = wire.AppendInts(buf, int64(p.ID), p.Bytes)
	}
	return buf
}

// Decode reads what Append wrote, into t, whose slices it reuses. What no worker can have is left
// out. On an error, which wraps ErrTold, t is empty.
func (t *Told) Decode(value []byte) error {
	t.Parts, t.Prices = t.Parts[:0], t.Prices[:0]
	r := wire.Read(value, toldMagic)
	parts := int(r.Uint32())
	prices := r.Left() - parts*partBytes
	r.Expect(parts <= maxTold && prices >= 0 && prices <= maxTold*pairBytes && prices%pairBytes == 0, "as many keys as it says")
	for i := 0; i < parts && !r.Failed(); i++ {
		if p := (Part{uint64(r.Int()), r.Int(), r.Int()}); p.Streams > 0 && p.Streams < most && p.Likely >= 0 && p.Likely < most {
			t.Parts = append(t.Parts, p)
		}
	}
	for r.Left() > 0 {
		if p := (Price{ID: uint64(r.Int()), Bytes: r.Int()}); p.Bytes > 0 && p.Bytes < most {
			t.Prices = append(t.Prices, p)
		}
	}
	if err := r.End(ErrTold); err != nil {
		*t = Told{Parts: t.Parts[:0], Prices: t.Prices[:0]}
		return err
	}
	Sort(t.Prices)
	return nil
}

// Sort sorts prices by id.
func Sort(prices []Price) {
	sort.Slice(prices, func(i, j int) bool { return prices[i].ID < prices[j].ID })
}

// Of is the price of a key among those that are sorted by id; 0 = it is not known.
func Of(sorted []Price, id uint64) int64 {
	i := sort.Search(len(sorted), func(i int) bool { return sorted[i].ID >= id })
	if i == len(sorted) || sorted[i].ID != id {
		return 0
	}
	return sorted[i].Bytes
}
