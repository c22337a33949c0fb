package leak

import (
	"math"
	"slices"
)

// explainer takes out of a series what load explains: a robust regression on the loads, on time and
// on its square together, of which what the loads have goes and what time has stays. Without the
// square a load that falls would take its bend from a cache that fills, and leave a line.
//
// A load that has nothing to say, or whose price would be negative, is left out: more connections
// never take less memory, and one that fell while memory grew must not explain the growth.
//
// It keeps memory between calls; the zero value is ready.
type explainer struct {
	gram    [maxColumns][maxColumns]float64 // lower triangle; after factor, of its Cholesky factor
	right   [maxColumns]float64
	price   [maxColumns]float64 // in units of the columns' deviations
	mean    [maxColumns]float64
	spread  [maxColumns]float64
	columns [maxColumns][]float64 // the loads that are in, then time
	n       int                   // of them
	weights []float64
	rest    []float64
	sorted  []float64
	square  []float64
}

const (
	timeColumns = 2
	maxColumns  = numLoads + timeColumns

	rounds = 12    // of weighting; it has settled long before
	huber  = 1.345 // deviations from which on a point weighs less: 95 % efficient for normal noise
	ridge  = 1e-6  // of a column's variance: two loads that move together share their price
)

// explain returns the series without what the loads explain, which is valid until the next call,
// and the shares of time's variance, and of its square's, that the loads do not have: near 0 nobody
// can tell them apart.
func (e *explainer) explain(t, y []float64, loads [][]float64) (rest []float64, own [timeColumns]float64) {
	e.n = 0
	for _, x := range loads {
		if e.take(x) {
			e.n++
		}
	}
	e.take(t)
	e.n++
	e.square = e.square[:0]
	for _, v := range t {
		e.square = append(e.square, (v-e.mean[e.n-1])*(v-e.mean[e.n-1]))
	}
	e.take(e.square)
	e.n++
	e.weights = slices.Grow(e.weights[:0], len(y))[:len(y)]
	e.rest = slices.Grow(e.rest[:0], len(y))[:len(y)]
	for {
		own = e.fit(y)
		worst := -1
		for k := range e.n - timeColumns {
			if e.price[k] < 0 && (worst < 0 || e.price[k] < e.price[worst]) {
				worst = k
			}
		}
		if worst < 0 {
			break
		}
		e.drop(worst)
	}
	for i := range y {
		e.rest[i] = y[i]
		for k := range e.n - timeColumns {
			e.rest[i] -= e.price[k] * (e.columns[k][i] - e.mean[k]) / e.spread[k]
		}
	}
	return e.rest, own
}

// take puts a column in as the next one, if it says anything.
func (e *explainer) take(x []float64) bool {
	var sum, squares float64
	for _, v := range x {
		sum += v
	}
	mean := sum / float64(len(x))
	for _, v := range x {
		squares += (v - mean) * (v - mean)
	}
	spread := math.Sqrt(squares / float64(len(x)))
	if spread == 0 {
		spread = 1
	}
	e.columns[e.n], e.mean[e.n], e.spread[e.n] = x, mean, spread
	return squares > 0
}

func (e *explainer) drop(k int) {
	copy(e.columns[k:e.n-1], e.columns[k+1:e.n])
	copy(e.mean[k:e.n-1], e.mean[k+1:e.n])
	copy(e.spread[k:e.n-1], e.spread[k+1:e.n])
	e.n--
}

// fit finds the prices by weighted least squares, again and again with Huber's weights, and returns
// time's own shares.
func (e *explainer) fit(y []float64) (own [timeColumns]float64) {
	for i := range e.weights {
		e.weights[i] = 1
	}
	for range rounds {
		level := e.sums(y)
		own = e.solve()
		for i := range y {
			e.rest[i] = y[i] - level
			for k := range e.n {
				e.rest[i] -= e.price[k] * (e.columns[k][i] - e.mean[k]) / e.spread[k]
			}
		}
		e.sorted = append(e.sorted[:0], e.rest...)
		slices.Sort(e.sorted)
		middle := median(e.sorted)
		for i, v := range e.rest {
			e.sorted[i] = math.Abs(v - middle)
		}
		slices.Sort(e.sorted)
		scale := 1.4826*median(e.sorted) + 1e-9
		moved := 0.0
		for i, v := range e.rest {
			w := min(1, huber*scale/max(math.Abs(v-middle), 1e-12))
			moved = max(moved, math.Abs(w-e.weights[i]))
			e.weights[i] = w
		}
		if moved < 0.01 {
			break
		}
	}
	return own
}

// sums fills the centred equations, and returns the weighted mean of y. The columns' means are the
// weighted ones from then on.
func (e *explainer) sums(y []float64) (level float64) {
	var total float64
	for i, w := range e.weights {
		total += w
		level += w * y[i]
	}
	level /= total
	for k := range e.n {
		var sum float64
		for i, w := range e.weights {
			sum += w * e.columns[k][i]
		}
		e.mean[k] = sum / total
	}
	for k := range e.n {
		e.right[k] = 0
		for j := range k + 1 {
			e.gram[k][j] = 0
		}
		for i, w := range e.weights {
			x := w * (e.columns[k][i] - e.mean[k]) / e.spread[k]
			e.right[k] += x * (y[i] - level)
			for j := range k + 1 {
				e.gram[k][j] += x * (e.columns[j][i] - e.mean[j]) / e.spread[j]
			}
		}
		e.gram[k][k] += ridge*total + math.SmallestNonzeroFloat64
	}
	return level
}

// solve finds the prices by Cholesky's factor. Time and its square are the last columns, so
// that their pivots are what the loads leave of their variance.
func (e *explainer) solve() (own [timeColumns]float64) {
	n, g := e.n, &e.gram
	var was [timeColumns]float64
	for i := range was {
		was[i] = g[n-timeColumns+i][n-timeColumns+i]
	}
	for k := range n {
		for j := range k + 1 {
			sum := g[k][j]
			for i := range j {
				sum -= g[k][i] * g[j][i]
			}
			if k == j {
				g[k][k] = math.Sqrt(max(sum, 1e-12))
			} else {
				g[k][j] = sum / g[j][j]
			}
		}
	}
	for k := range n {
		sum := e.right[k]
		for i := range k {
			sum -= g[k][i] * e.price[i]
		}
		e.price[k] = sum / g[k][k]
	}
	for k := n - 1; k >= 0; k-- {
		sum := e.price[k]
		for i := k + 1; i < n; i++ {
			sum -= g[i][k] * e.price[i]
		}
		e.price[k] = sum / g[k][k]
	}
	for i, v := range was {
		pivot := g[n-timeColumns+i][n-timeColumns+i]
		own[i] = pivot * pivot / v
	}
	return own
}
