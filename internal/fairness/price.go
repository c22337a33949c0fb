package fairness

import (
	"math"
	"sort"
)

// Price is what one more of something costs, bytes, as one worker has learned it for all.
type Price struct {
	ID    uint64 // of a key, or Connections
	Bytes int64
}

// Connections is the id of connections without a stream, among prices: they have one for all.
const Connections = math.MaxUint64

// MaxPrices is how many a worker may publish: of each key, of the other and of connections.
const MaxPrices = MaxKeys + 2

const priceBytes = 2 * 8

// DecodePrices appends the prices that value holds to buf, by id. Those that no key can have are left
// out. The error wraps ErrTotals.
func DecodePrices(value []byte, buf []Price) (prices []Price, err error) {
	r, keys, _, _ := begin(value)
	r.Skip(keys * totalBytes)
	prices = buf
	for r.Left() > 0 {
		if p := (Price{ID: uint64(r.Int()), Bytes: r.Int()}); p.Bytes > 0 && p.Bytes < maxTotal {
			prices = append(prices, p)
		}
	}
	if err := r.End(ErrTotals); err != nil {
		return buf, err
	}
	SortPrices(prices)
	return prices, nil
}

// SortPrices sorts them by id.
func SortPrices(prices []Price) {
	sort.Slice(prices, func(i, j int) bool { return prices[i].ID < prices[j].ID })
}

// PriceOf is the price of an id among those that are sorted; 0 = it is not known.
func PriceOf(sorted []Price, id uint64) int64 {
	if i := sort.Search(len(sorted), func(i int) bool { return sorted[i].ID >= id }); i < len(sorted) && sorted[i].ID == id {
		return sorted[i].Bytes
	}
	return 0
}
