package leak

import (
	"slices"
	"time"
)

// maxClasses is how many size classes are watched: TCMalloc has 86, jemalloc up to 232. Of more
// the smallest are left out.
const maxClasses = 256

// growth keeps the live objects of each size class over some minutes.
type growth struct {
	every, over time.Duration
	least       float64
	times       []time.Duration
	loads       [numLoads][]float64
	finished    []uint64
	live        map[int64][]float64 // by size: as many as there are times
	most        int64
	held        int // times in a row that there was growth
	verdict     Growth

	t    []float64
	load [][]float64
}

const (
	// leastPoints: with fewer even a straight line may be chance, among a hundred classes.
	leastPoints = 12
	// twice in a row: a step that is just leaving the window looks like a trend once.
	twice = 2
	// ofAll is the share of what is to be told that a class has to grow by to count.
	ofAll = 0.1
)

// ofGrowth is what a class has to show. 4.26: one in 100,000 by chance, for there are a hundred. A
// cache that fills is growth, so that it does not matter whether load could bend a line like one.
var ofGrowth = bar{z: 4.26, keeps: 0.3, half: 0.5, own: [timeColumns]float64{0.02, 0}}

func (g *growth) init(s Settings) {
	g.every, g.over, g.least = s.Every, s.Window, s.Least
	g.live = map[int64][]float64{}
}

func (g *growth) forget() {
	g.times, g.finished, g.held, g.most, g.verdict = g.times[:0], g.finished[:0], 0, 0, Growth{}
	for k := range g.loads {
		g.loads[k] = g.loads[k][:0]
	}
	clear(g.live)
}

func (g *growth) add(s Sample, j *judge) {
	n := len(g.times)
	if n > 0 && s.At-g.times[n-1] < g.every*9/10 {
		return
	}
	g.expire(s.At)
	n = len(g.times)
	g.most = max(g.most, s.Load.Connections)
	rate := 0.0
	if n > 0 {
		rate = float64(s.Finished-g.finished[n-1]) / (s.At - g.times[n-1]).Minutes()
	}
	for k, v := range [numLoads]float64{float64(s.Load.Connections), float64(s.Load.Requests), float64(s.Load.Buffered), rate, float64(g.most)} {
		g.loads[k] = append(g.loads[k], v)
	}
	if n == 0 && len(g.loads[3]) == 1 {
		g.loads[3][0] = 0
	}
	g.times, g.finished = append(g.times, s.At), append(g.finished, s.Finished)
	g.count(s.Classes, n)
	if len(g.times) == 2 {
		g.loads[3][0] = g.loads[3][1] // of the first one nobody knows the rate
	}
	g.look(j)
}

// count appends the live objects of each class; one that was not there before had none.
func (g *growth) count(classes []Class, before int) {
	for _, c := range classes {
		series, known := g.live[c.Size]
		if !known {
			if len(g.live) >= maxClasses || c.Size <= 0 {
				continue
			}
			series = make([]float64, before, before+1)
		}
		if len(series) == before { // each size once
			g.live[c.Size] = append(series, float64(c.Live))
		}
	}
	for size, series := range g.live {
		if len(series) == before {
			g.live[size] = append(series, 0)
		}
	}
}

// expire drops what is older than the window, and classes that were empty all the time.
func (g *growth) expire(now time.Duration) {
	old := 0
	for old < len(g.times) && now-g.times[old] > g.over {
		old++
	}
	if old == 0 {
		return
	}
	g.times, g.finished = slices.Delete(g.times, 0, old), slices.Delete(g.finished, 0, old)
	for k := range g.loads {
		g.loads[k] = slices.Delete(g.loads[k], 0, old)
	}
	for size, series := range g.live {
		if series = slices.Delete(series, 0, old); len(series) == 0 || slices.Max(series) == 0 {
			delete(g.live, size)
			continue
		}
		g.live[size] = series
	}
}

func (g *growth) look(j *judge) {
	n := len(g.times)
	if n < leastPoints {
		return
	}
	g.t = g.t[:0]
	for _, at := range g.times {
		g.t = append(g.t, at.Minutes())
	}
	g.load = g.load[:0]
	for k := range g.loads {
		g.load = append(g.load, g.loads[k])
	}
	var found Growth
	worst := 0.0
	for size, series := range g.live {
		b := ofGrowth
		b.least = ofAll * g.least / float64(size)
		if !rises(g.t, series, b.least) {
			continue
		}
		if is, _ := j.grows(g.t, series, g.load, b); is != yes {
			continue
		}
		// By how many more there are, of the same minutes as requests: a slope without what load
		// explains is too small where each request leaks.
		objects := (series[n-1] - series[0]) / (g.t[n-1] - g.t[0])
		bytes := objects * float64(size)
		found.PerMinute += bytes
		if bytes > worst {
			worst, found.Size, found.Objects = bytes, size, objects
		}
	}
	if found.PerMinute < g.least {
		g.held, g.verdict = 0, Growth{Samples: n}
		return
	}
	found.Requests = float64(g.finished[n-1]-g.finished[0]) / (g.t[n-1] - g.t[0])
	if g.held++; g.held >= twice {
		found.Samples = n
		g.verdict = found
	}
}

// rises is a first look that spares the regression for the hundred classes that do nothing.
func rises(t, y []float64, least float64) bool {
	n := len(y)
	third := n / 3
	var first, last float64
	for i := range third {
		first += y[i]
		last += y[n-1-i]
	}
	return (last-first)/float64(third) > least/2*(t[n-1]-t[0])*2/3
}
