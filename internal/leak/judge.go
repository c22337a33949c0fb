package leak

import "math"

// judge says of a series whether it grows though its load does not.
type judge struct {
	trend   Trend
	explain explainer
}

// numLoads is how many series may explain one: the gauges of Load, requests a minute, and the most
// connections that there were so far, by which tables and pools have grown that never shrink.
const numLoads = 5

// bar is what a series has to show.
type bar struct {
	least float64 // slope, surely
	z     float64 // of Mann and Kendall's test
	// What fills slows down. Of three parts of the window the last one grows at least by the share
	// keeps of the one that grows most, and the second half by the share half of the whole.
	keeps, half float64
	// own are the shares of time's variance, and of its square's, that the loads must leave.
	own [timeColumns]float64
}

// answer is what judge says.
type answer int

const (
	no answer = iota
	yes
	// unsure: the load moves so much like time, or like what fills and slows down, that nobody can
	// tell them apart.
	unsure
)

// hardlyFalls: a series with such a tau is a trend whatever its rest is like. Of a line that is
// nearly perfect the rest is a slow bend, which counts as if a few points told all.
const hardlyFalls = 0.95

// thirds of a window are compared: fewer parts do not see what fills, and more are mostly noise.
const thirds = 3

// grows says whether what the loads leave of y passes the bar, and the slope of its second half,
// per unit of t. Of the slope over all the lower bound counts, and what time shares with the loads
// is taken as not known.
func (j *judge) grows(t, y []float64, loads [][]float64, b bar) (answer, float64) {
	n := len(y)
	rest, own := j.explain.explain(t, y, loads)
	if own[0] < b.own[0] || own[1] < b.own[1] {
		return unsure, 0
	}
	all := j.trend.theilSen(t, rest)
	if all.slope-(all.slope-all.low)/math.Sqrt(own[0]) <= b.least {
		return no, 0
	}
	var most, last float64
	for i := range thirds {
		from, to := i*n/thirds, (i+1)*n/thirds
		last = j.trend.theilSen(t[from:to], rest[from:to]).slope
		most = max(most, last)
	}
	second := j.trend.theilSen(t[n/2:], rest[n/2:])
	if last < b.keeps*most || second.low <= 0 || second.slope < b.half*all.slope {
		return no, 0
	}
	step := (t[n-1] - t[0]) / float64(n-1)
	if z, tau := j.trend.mannKendall(rest, all.slope*step, n/3, true); z <= b.z && tau < hardlyFalls {
		return no, 0
	}
	return yes, second.slope
}
