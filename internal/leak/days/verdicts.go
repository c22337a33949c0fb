package days

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/leak"
)

// Told is when a day's leak, or what was taken for one, was first told.
type Told struct {
	Verdict   leak.Leak
	After     time.Duration // the leak's begin, the day's, or the last push of configuration; 0 = never
	Predicted time.Duration // when predict_linear would have alarmed, from the same begin; 0 = never
}

// Watch runs a day through the detector with the settings of the live server, and through what is
// usually done in its place.
func Watch(d Day) (t Told) {
	detector := leak.New(leak.Default())
	p := prediction{limit: Limit(d)}
	begin, config := d.Leaks, d.Samples[0].Config
	for _, s := range d.Samples {
		detector.Add(s)
		if s.Config != config {
			config, begin = s.Config, max(begin, s.At)
		}
		after := s.At - begin
		if t.After == 0 && after > 0 && detector.Leak().Found() {
			t.Verdict, t.After = detector.Leak(), after
		}
		if p.add(s); t.Predicted == 0 && after > 0 && p.alarm() {
			t.Predicted = after
		}
	}
	return t
}

// Limit is a container's limit for a day: half as much again as it takes without a leak.
func Limit(d Day) int64 { return d.Plain / 2 * 3 }

// prediction is the alert that many run: predict_linear(memory[1h], 4*3600) > limit, for 10m, with
// a scrape each minute.
type prediction struct {
	limit  int64
	values []float64
	next   time.Duration
	high   int // minutes in a row
}

const (
	lookBack  = 60  // minutes
	lookAhead = 240 // minutes
	forLong   = 10  // minutes
)

func (p *prediction) add(s leak.Sample) {
	if s.At < p.next {
		return
	}
	p.next += time.Minute
	p.values = append(p.values, float64(s.InUse))
	if len(p.values) > lookBack+1 {
		p.values = p.values[1:]
	}
	if p.predicted() > float64(p.limit) {
		p.high++
	} else {
		p.high = 0
	}
}

func (p *prediction) alarm() bool { return p.high >= forLong }

// predicted is the value of a least-squares line in four hours, as Prometheus draws it from the
// samples that there are.
func (p *prediction) predicted() float64 {
	n := float64(len(p.values))
	var sy, sxx, sxy float64
	for i, y := range p.values {
		x := float64(i) - (n-1)/2
		sy, sxx, sxy = sy+y, sxx+x*x, sxy+x*y
	}
	if sxx == 0 {
		return 0
	}
	return sy/n + sxy/sxx*((n-1)/2+lookAhead)
}
