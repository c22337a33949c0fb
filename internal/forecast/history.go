package forecast

import (
	"math"
	"time"
)

// History is what a key's messages came to, from which it is told what the next will.
//
// Of a message without a length the forecast of its direction tells. Of a response that has not
// begun, three things do, all from one stream of samples, the responses of the key. Where nearly
// each of them is large the key is heavy, and after HeavyFor without a small one its requests count
// as large at their headers. Where they differ, the largest of the recent ones bounds what the next
// may hold.
type History struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	Bodies      [2]Forecast   // of messages without a length, by direction
	Responses   Forecast      // of all responses
	heavy       time.Duration // since when its responses are large, by the forecast; 0 = they are not
	lastSmall   time.Duration // when it last had a small one
	largest     int64         // of its large responses, when it was seen
	largestSeen time.Duration
}

// LearnResponse takes what a response came to, and says whether the key is heavy now and was not
// before, or the other way round. A response of small bytes or less is small.
func (h *History) LearnResponse(now time.Duration, n, small int64) (turned bool) {
	h.Responses.Learn(n)
	switch {
	case n <= small:
		h.lastSmall = now
	case n >= h.largest || n >= h.LargestAt(now):
		h.largest, h.largestSeen = n, now
	}
	heavy := h.Responses.Least() > small
	if heavy == (h.heavy != 0) {
		return false
	}
	h.heavy = 0
	if heavy {
		h.heavy = now
	}
	return true
}

// Heavy says that nearly each of the key's responses is large.
func (h *History) Heavy() bool { return h.heavy != 0 }

// HasSmall says that a small one came at any time.
func (h *History) HasSmall() bool { return h.lastSmall != 0 }

// HeavyFor is how long a key must have had no small response before its requests count as large. On
// a route that has both, small ones would wait for what the large ones bring: beside 300 slow
// readers a tenth of the bystanders on the same route were rejected.
const HeavyFor = 2 * time.Second // TestHiddenProbesOfALargeKey

// Large says that what is asked for with this key is large, whatever the request.
func (h *History) Large(now time.Duration) bool {
	return h.heavy != 0 && now-max(h.heavy, h.lastSmall) >= HeavyFor
}

// largestHalf: what the largest response says of the next is halved each so often.
const largestHalf = 10 * time.Second // scenario learning

// LargestAt is how large a response of the key may be, for what has been seen recently, bytes.
func (h *History) LargestAt(now time.Duration) int64 {
	return int64(float64(h.largest) * math.Exp2(-float64(now-h.largestSeen)/float64(largestHalf)))
}
