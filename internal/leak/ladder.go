package leak

import (
	"slices"
	"time"
)

// ladder keeps a point for each minute and looks at it through windows of several lengths. A short
// one sees a large leak early, and only a long one tells a small leak from what comes and goes.
type ladder struct {
	rungs   []Rung
	states  []rungState
	points  []point // a ring of the longest window
	n, next int
	minute  []point // samples of the minute that is not over yet
	most    int64   // connections, so far
	begin   time.Duration
	began   bool
	verdict Leak

	t, y, sorted []float64
	loads        [numLoads][]float64
}

type rungState struct {
	looked time.Duration // when last, since the begin
	times  int           // in a row
	slope  float64
}

// point is what was seen in a minute, or in a sample of it.
type point struct {
	at       time.Duration
	inUse    float64
	load     [numLoads]float64
	finished uint64
}

const (
	minute    = time.Minute
	perWindow = 60 // points that a window is judged by, each the middle of as many minutes as it takes
	// A sample more than that in a minute adds nothing.
	perMinute = 64
)

// ofLeak is what a window has to show beside its least slope; go run ./bench/days says what comes
// of it. 3: one in 700 by chance, three times in a row.
var ofLeak = bar{z: 3, keeps: 0.5, half: 0.7, own: [timeColumns]float64{0.02, 0.05}}

// keepsOn is the share of the slope before that the next one in a row has at least.
const keepsOn = 0.9

func (l *ladder) init(rungs []Rung) {
	var longest time.Duration
	for _, r := range rungs {
		longest = max(longest, r.Window)
	}
	l.rungs, l.states = rungs, make([]rungState, len(rungs))
	l.points = make([]point, longest/minute)
	l.minute = make([]point, 0, perMinute)
}

func (l *ladder) forget() {
	l.n, l.next, l.minute, l.most, l.began, l.verdict = 0, 0, l.minute[:0], 0, false, Leak{}
	clear(l.states)
}

func (l *ladder) add(s Sample, j *judge) {
	if !l.began {
		l.begin, l.began = s.At, true
	}
	if len(l.minute) > 0 && s.At-l.minute[0].at >= minute {
		l.close(j)
	}
	l.most = max(l.most, s.Load.Connections)
	if len(l.minute) < perMinute {
		l.minute = append(l.minute, point{
			at: s.At, inUse: float64(s.InUse), finished: s.Finished,
			load: [numLoads]float64{float64(s.Load.Connections), float64(s.Load.Requests), float64(s.Load.Buffered), 0, float64(l.most)},
		})
	}
}

// close makes a point of the minute that is over, and looks at the windows that are due.
func (l *ladder) close(j *judge) {
	p := point{at: l.minute[0].at, finished: l.minute[len(l.minute)-1].finished}
	p.inUse = l.middle(l.minute, func(q *point) float64 { return q.inUse })
	for k := range p.load {
		for i := range l.minute {
			p.load[k] += l.minute[i].load[k] / float64(len(l.minute))
		}
	}
	if l.n > 0 {
		was := l.back(0)
		p.load[3] = float64(p.finished-was.finished) / (p.at - was.at).Minutes()
	}
	l.minute = l.minute[:0]
	l.points[l.next] = p
	l.next = (l.next + 1) % len(l.points)
	l.n = min(l.n+1, len(l.points))
	l.look(p.at-l.begin+minute, j)
}

func (l *ladder) middle(points []point, of func(*point) float64) float64 {
	l.sorted = l.sorted[:0]
	for i := range points {
		l.sorted = append(l.sorted, of(&points[i]))
	}
	slices.Sort(l.sorted)
	return median(l.sorted)
}

// back is the point so many minutes before the last one.
func (l *ladder) back(i int) *point { return &l.points[(l.next-1-i+2*len(l.points))%len(l.points)] }

// look judges the windows whose step is over, at so long after the begin.
func (l *ladder) look(since time.Duration, j *judge) {
	looked := false
	for i, r := range l.rungs {
		s := &l.states[i]
		if since < r.Window || s.looked != 0 && since-s.looked < r.Step {
			continue
		}
		s.looked, looked = since, true
		l.judge(r, s, j)
	}
	if !looked {
		return
	}
	l.verdict = Leak{}
	for i, r := range l.rungs {
		if s := &l.states[i]; s.times >= r.Times {
			l.verdict = Leak{PerMinute: s.slope, Window: r.Window} // the longest one is the surest
		}
	}
}

// judge looks at a window. How often it was told in a row stays as it was where the load is too
// much like a trend, and begins again where it is told with less growth than before: a cache that
// fills.
func (l *ladder) judge(r Rung, s *rungState, j *judge) {
	l.window(r.Window)
	if len(l.t) < perWindow/2 { // most of it is missing
		s.times = 0
		return
	}
	b := ofLeak
	b.least = r.Least
	switch is, slope := j.grows(l.t, l.y, l.loads[:], b); {
	case is == no:
		s.times = 0
	case is == yes && s.times > 0 && slope < keepsOn*s.slope:
		s.times, s.slope = 1, slope
	case is == yes:
		s.times, s.slope = s.times+1, slope
	}
}

// window fills the series with a window's points.
func (l *ladder) window(d time.Duration) {
	l.t, l.y = l.t[:0], l.y[:0]
	for k := range l.loads {
		l.loads[k] = l.loads[k][:0]
	}
	last := l.back(0).at
	n := 0
	for n < l.n && last-l.back(n).at < d {
		n++
	}
	group := max(int(d/minute)/perWindow, 1)
	for i := n; i >= group; i -= group {
		var p point
		l.sorted = l.sorted[:0]
		for k := range group {
			q := l.back(i - 1 - k)
			l.sorted = append(l.sorted, q.inUse)
			p.at += q.at / time.Duration(group)
			for of := range p.load {
				p.load[of] += q.load[of] / float64(group)
			}
		}
		slices.Sort(l.sorted)
		l.t, l.y = append(l.t, p.at.Minutes()), append(l.y, median(l.sorted))
		for of := range p.load {
			l.loads[of] = append(l.loads[of], p.load[of])
		}
	}
}
