// Package reservoir samples the requests in flight, so that afterwards anyone can ask which of them
// made a peak of memory.
//
// Bytes are sampled as heap profilers do it: each byte that a stream adds to what it may hold is
// picked with the same probability, one in gap on average, and a stream is sampled if any of its
// bytes is. So large ones are in the sample for certain and of many small ones some, each with a
// weight that makes sums unbiased (see Weight).
//
// The package is a pure machine: what a face knows of its streams comes in, and snapshots go out,
// encoded for where all workers of a process reach them.
package reservoir

import (
	"math"
	"time"
)

// Time is a reading of the host's CLOCK_MONOTONIC, the same for all workers of a process.
type Time = time.Duration

// Draw is a stream's luck, drawn once: exponentially distributed with mean 1, never 0. u is uniform
// in [0, 1).
//
// Were each byte looked at by itself, the first one that is picked would come after an
// exponentially distributed number of bytes with mean gap. That number is E × gap with E drawn
// here, whatever the gap: so a stream is sampled as soon as it has reached E × gap, and where
// another gap comes in force, who is sampled is exactly who would have been under it from the
// beginning. Nothing is drawn again, and nothing that happened has to be known.
func Draw(u float64) float64 { return max(-math.Log1p(-u), math.SmallestNonzeroFloat32) }

// Rank is the largest gap, bytes, at which a stream with this draw is sampled, once it has come to
// reach bytes.
func Rank(draw float64, reach int64) float64 { return float64(reach) / draw }

// Weight is how many streams one in the sample stands for, when it has come to reach bytes, more
// than 0, and the gap is so many bytes.
//
// A stream that has come to c bytes is sampled with probability p = P(E × gap ≤ c) = 1 −
// exp(−c/gap). Let v be what it holds, or anything else that does not depend on its draw. The sum
// of v/p over the sample then has the expectation Σ p × v/p = Σ v, the sum over all streams: it is
// unbiased, of any part of them too (Horvitz and Thompson, 1952).
//
// That the gap is chosen by how many would be in the sample (see Count) changes nothing: from gap
// to 2 × gap, of those in the sample each stays with probability p(2 gap)/p(gap), so that the
// estimate at 2 × gap, given the sample at gap, has the estimate at gap as its expectation. To go
// on from gap to gap until the sample is small enough is a fair game that is stopped by what has
// been seen so far: its expectation stays that of its beginning.
func Weight(reach int64, gap float64) float64 {
	return -1 / math.Expm1(-float64(reach)/gap)
}

// Estimate is a sum over all streams, from a sample of them. The zero value is that of an empty
// sample.
type Estimate struct {
	Sum      float64
	Variance float64
}

// Add adds a sampled stream with its value and its weight.
//
// The draws are independent, so that the variance of the sum is Σ over all streams of v² (1 − p)/p.
// Estimated from the sample itself, again by dividing each term by p, that is Σ v² (1 − p)/p² = Σ
// v² w (w − 1) with the weight w = 1/p.
func (e *Estimate) Add(value, weight float64) {
	e.Sum += value * weight
	e.Variance += value * value * weight * (weight - 1)
}

// quantile90 is the standard normal one between minus and plus which 90 % lie.
const quantile90 = 1.6449

// Error is half of the 90 % interval: the truth is within Sum ± Error nine times of ten, as far as
// the sum of the sample is distributed normally, which takes some ten streams of it that are not
// certain to be in the sample.
func (e *Estimate) Error() float64 { return quantile90 * math.Sqrt(e.Variance) }

// Count finds the gap at which a sample has room. Reset it, add the rank of every stream, and ask
// for the gap.
type Count struct {
	every   float64
	octaves [maxOctaves]int // how many ranks lie from every × 2^i on and below twice that
}

// maxOctaves: at 2^40 × every no stream is in the sample.
const maxOctaves = 40

// Reset begins again. every is the smallest gap, bytes, above 0.
func (c *Count) Reset(every int64) { *c = Count{every: float64(every)} }

// Add counts a stream.
func (c *Count) Add(rank float64) {
	if r := rank / c.every; r >= 1 { // in the sample at every, at least
		c.octaves[min(math.Ilogb(r), maxOctaves-1)]++
	}
}

// Gap is the smallest of every, 2 × every, 4 × every … at which no more than capacity streams are
// in the sample.
func (c *Count) Gap(capacity int) float64 {
	n, i := 0, maxOctaves
	for i > 0 && n+c.octaves[i-1] <= capacity {
		i--
		n += c.octaves[i]
	}
	return math.Ldexp(c.every, i)
}
