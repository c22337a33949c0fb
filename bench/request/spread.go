package main

import (
	"math"
	"slices"
)

// quartiles of the values, and the least.
func quartiles(values []float64) (least, lower, median, upper float64) {
	s := slices.Sorted(slices.Values(values))
	at := func(q float64) float64 {
		i := q * float64(len(s)-1)
		below := int(i)
		if below+1 >= len(s) {
			return s[len(s)-1]
		}
		return s[below] + (i-float64(below))*(s[below+1]-s[below])
	}
	return s[0], at(.25), at(.5), at(.75)
}

// interval holds the median of what the values were drawn from with at least 95 %: order
// statistics, by the binomial distribution, without a further assumption. All of the values if they
// are too few for that.
func interval(values []float64) (low, high float64) {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	k, tail := 0, 0.0 // of the tail below the k-th
	for {
		p := choose(n, k) * math.Pow(.5, float64(n))
		if tail+p > .025 || k >= n/2 {
			break
		}
		tail += p
		k++
	}
	k = max(k-1, 0)
	return s[k], s[n-1-k]
}

func choose(n, k int) float64 {
	c := 1.0
	for i := range k {
		c *= float64(n-i) / float64(i+1)
	}
	return c
}
