package observer

import (
	"math"
	"time"

	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// trend is a line through the readings of the last ten seconds. The zero value has none.
type trend struct {
	points [trendPoints]point
	n      int
	next   int
}

type point struct {
	at    time.Time
	bytes int64
}

const (
	trendPoints = 100
	trendEvery  = 100 * time.Millisecond
	trendOver   = trendPoints * trendEvery
	trendLeast  = 2 * time.Second // less says little: a single burst looks like growth without end
)

// add takes a reading in, if the last one is long enough ago.
func (t *trend) add(at time.Time, bytes int64) {
	if t.n > 0 {
		last := t.points[(t.next+trendPoints-1)%trendPoints]
		if at.Sub(last.at) < trendEvery {
			return
		}
		if at.Sub(last.at) > staleAfter {
			t.n = 0 // what was before the gap is another story
		}
	}
	t.points[t.next] = point{at, bytes}
	t.next = (t.next + 1) % trendPoints
	t.n = min(t.n+1, trendPoints)
}

// growth is the slope of the line by least squares, bytes per second; 0 where memory does not grow,
// or where the line says no more than chance: the growth over the window must be twice the standard
// deviation of what the line leaves unexplained.
func (t *trend) growth() float64 {
	if t.n < 3 {
		return 0
	}
	last := t.points[(t.next+trendPoints-1)%trendPoints]
	var n, sx, sy, sxx, sxy, syy, first float64
	for i := range t.n {
		p := t.points[(t.next+trendPoints-1-i)%trendPoints]
		x, y := p.at.Sub(last.at).Seconds(), float64(p.bytes-last.bytes)
		if -x > trendOver.Seconds() {
			break
		}
		n, sx, sy, sxx, sxy, syy, first = n+1, sx+x, sy+y, sxx+x*x, sxy+x*y, syy+y*y, x
	}
	if -first < trendLeast.Seconds() {
		return 0
	}
	// Centred sums: slope = Sxy / Sxx, and what is left is Syy − Sxy² / Sxx.
	cxx, cxy, cyy := sxx-sx*sx/n, sxy-sx*sy/n, syy-sy*sy/n
	slope := cxy / cxx
	rest := math.Sqrt(max(cyy-cxy*cxy/cxx, 0) / max(n-2, 1))
	if slope <= 0 || slope*-first < 2*rest || slope*-first < minGrowth {
		return 0
	}
	return slope
}

// recent is by how much memory has grown over the last second, bytes per second; 0 where it has not
// by more than minGrowth. In a flood there is no time for a line of ten seconds.
func (t *trend) recent() float64 {
	if t.n < 2 {
		return 0
	}
	last := t.points[(t.next+trendPoints-1)%trendPoints]
	p := last
	for i := 1; i < t.n; i++ {
		if p = t.points[(t.next+trendPoints-1-i)%trendPoints]; last.at.Sub(p.at) >= time.Second {
			break
		}
	}
	over := last.at.Sub(p.at)
	if over < recentLeast || last.bytes-p.bytes < minGrowth {
		return 0
	}
	return float64(last.bytes-p.bytes) / over.Seconds()
}

// recentLeast is how much of a second has to be seen.
const recentLeast = 400 * time.Millisecond

// minGrowth over the window is none to speak of: an idle Envoy breathes by that much.
const minGrowth = 1 << 20

const (
	nearAhead = 30 * time.Second
	nearAgain = time.Minute
	farAhead  = 1000 * time.Hour // is never
)

// nearness is how long it is to the limit, and whether that was told.
type nearness struct {
	left  time.Duration // 0 = memory does not grow
	told  time.Time
	near  bool
	times uint64
}

// foresee says how long it is to the limit as memory grows now, and logs once when that has become
// less than nearAhead. o.mu is held.
func (o *Observer) foresee(now time.Time, r memory.Reading) {
	o.mu.trend.add(now, r.InUse)
	limit, growth, near := o.mu.limit, o.mu.trend.growth(), &o.mu.near
	near.left = 0
	if limit > 0 && growth > 0 {
		left := float64(max(limit-r.InUse, 0)) / growth
		near.left = time.Duration(min(max(left, 0.001), farAhead.Seconds()) * float64(time.Second))
	}
	switch {
	case near.left == 0 || near.left > 2*nearAhead:
		near.near = false
	case near.left <= nearAhead && !near.near:
		near.near = true
		near.times++
		if near.told.IsZero() || now.Sub(near.told) >= nearAgain { // a load that swings is told of once a minute
			near.told = now
			o.log.Warn("memory grows towards the limit", "in_use", unit.Bytes(r.InUse).Human(), "limit", unit.Bytes(limit).Human(),
				"growth_per_second", unit.Bytes(growth).Human(), "seconds_left", math.Round(near.left.Seconds()))
		}
	}
}
