package leak

import (
	"math"
	"slices"
)

// z95 and the like are quantiles of the normal distribution.
const z95 = 1.959963984540054

// slope is a line's, with its confidence interval of 95 %.
type slope struct{ slope, low, high float64 }

// Trend tests a series for a trend. It keeps memory between calls, and is not safe for concurrent
// use. The zero value is ready.
type Trend struct {
	slopes []float64
	sorted []float64
	ranks  []float64
	index  []int
}

// theilSen is the median of the slopes between all pairs of points (Theil 1950, Sen 1968), with
// Sen's interval, whose variance counts ties in both coordinates. Times must not fall. Fewer than
// two points, or all at one time, have no slope: zeros.
func (w *Trend) theilSen(t, y []float64) slope {
	w.slopes = w.slopes[:0]
	for i := range t {
		for j := range i {
			if d := t[i] - t[j]; d > 0 {
				w.slopes = append(w.slopes, (y[i]-y[j])/d)
			}
		}
	}
	if len(w.slopes) == 0 {
		return slope{}
	}
	slices.Sort(w.slopes)
	n := float64(len(t))
	all := float64(len(w.slopes))
	variance := (n*(n-1)*(2*n+5) - w.ties(t) - w.ties(y)) / 18
	most := all - 1
	wide := z95 * math.Sqrt(max(variance, 0))
	low := max(math.RoundToEven((all-wide)/2)-1, 0)
	high := min(math.RoundToEven((all+wide)/2), most)
	return slope{median(w.slopes), w.slopes[int(min(low, most))], w.slopes[int(max(high, 0))]}
}

// median of values in their order.
func median(sorted []float64) float64 {
	n := len(sorted)
	if n%2 == 1 {
		return sorted[n/2]
	}
	return (sorted[n/2-1] + sorted[n/2]) / 2
}

// ties is the sum of k(k−1)(2k+5) over values that occur k times: what these take from the variance
// of Kendall's S (Kendall 1975).
func (w *Trend) ties(y []float64) (sum float64) {
	w.sorted = append(w.sorted[:0], y...)
	slices.Sort(w.sorted)
	for i := 0; i < len(w.sorted); {
		j := i
		for j < len(w.sorted) && w.sorted[j] == w.sorted[i] {
			j++
		}
		k := float64(j - i)
		sum += k * (k - 1) * (2*k + 5)
		i = j
	}
	return sum
}

// mannKendall is the standardised S of Mann and Kendall for points at equal distances, with the
// correction of Hamed and Rao (1998, J. Hydrol. 204) for what a point says of the next ones: the
// variance grows by the factor that the ranks' autocorrelation gives, over as many lags as are
// told. Only lags that are significant at 95 % count. A factor below 1, where neighbours repel each
// other, counts as 1 if careful: the test never becomes surer than without the correction. perStep
// is the slope that is taken out before the ranks. tau is S as a share of what it can be.
func (w *Trend) mannKendall(y []float64, perStep float64, lags int, careful bool) (z, tau float64) {
	var s float64
	for i := range y {
		for j := range i {
			switch {
			case y[i] > y[j]:
				s++
			case y[i] < y[j]:
				s--
			}
		}
	}
	n := float64(len(y))
	variance := (n*(n-1)*(2*n+5) - w.ties(y)) / 18
	factor := w.hamedRao(y, perStep, lags)
	if careful {
		factor = max(factor, 1)
	}
	if variance *= factor; variance <= 0 || s == 0 {
		return 0, 0
	}
	return (s - math.Copysign(1, s)) / math.Sqrt(variance), 2 * s / (n * (n - 1))
}

func (w *Trend) hamedRao(y []float64, perStep float64, lags int) float64 {
	w.rank(y, perStep)
	n := len(y)
	var own float64
	for _, r := range w.ranks {
		own += r * r
	}
	if n < 3 || own == 0 {
		return 1
	}
	significant := z95 / math.Sqrt(float64(n))
	var sum float64
	for lag := 1; lag <= min(lags, n-1); lag++ {
		var r float64
		for i := lag; i < n; i++ {
			r += w.ranks[i] * w.ranks[i-lag]
		}
		if r /= own; math.Abs(r) > significant {
			sum += float64(n-lag) * float64(n-lag-1) * float64(n-lag-2) * r
		}
	}
	return 1 + 2*sum/(float64(n)*float64(n-1)*float64(n-2))
}

// rank leaves the ranks of what a line leaves of the points, less their mean; of equal ones the
// mean of their ranks.
func (w *Trend) rank(y []float64, perStep float64) {
	w.sorted, w.index, w.ranks = w.sorted[:0], w.index[:0], w.ranks[:0]
	for i := range y {
		w.sorted = append(w.sorted, y[i]-perStep*float64(i+1))
		w.index = append(w.index, i)
		w.ranks = append(w.ranks, 0)
	}
	rest := w.sorted
	slices.SortFunc(w.index, func(a, b int) int {
		switch {
		case rest[a] < rest[b]:
			return -1
		case rest[a] > rest[b]:
			return 1
		}
		return 0
	})
	mean := float64(len(y)-1) / 2
	for i := 0; i < len(w.index); {
		j := i
		for j < len(w.index) && rest[w.index[j]] == rest[w.index[i]] {
			j++
		}
		for _, at := range w.index[i:j] {
			w.ranks[at] = float64(i+j-1)/2 - mean
		}
		i = j
	}
}
