package observer

import (
	"context"
	"strconv"
	"time"

	"github.com/highwater-envoy/highwater/internal/cgroup"
)

const actEvery = 100 * time.Millisecond

// act drives Envoy's overload manager by the two files, until the context ends.
func (o *Observer) act(ctx context.Context) {
	r := &o.options.Release
	pressure, pulse := valueFile{path: r.PressureFile}, valueFile{path: r.PulseFile}
	o.mu.Lock()
	o.mu.releaser.threshold, o.mu.releaser.interval, o.mu.releaser.keep = float64(r.Threshold), time.Duration(r.Interval), int64(r.Keep)
	o.mu.Unlock()
	tick := time.NewTicker(actEvery)
	defer tick.Stop()
	o.write(time.Now(), &pressure, &pulse, 0, false)
	for {
		select {
		case <-ctx.Done():
			// Envoy keeps what it read last: a writer that ends must not leave pressure on.
			pressure.tried, pulse.tried = time.Time{}, time.Time{}
			o.write(time.Now(), &pressure, &pulse, 0, false)
			return
		case now := <-tick.C:
			limit := o.options.Limit() // not under our lock: it may take its owner's
			o.mu.Lock()
			o.mu.limit = limit
			o.mu.pressure = fall(o.mu.pressure, o.pressing(now))
			value := o.mu.pressure
			if r.PulseFile != "" {
				o.mu.pulse = o.mu.releaser.step(now, o.heap(now))
			}
			on := o.mu.pulse
			o.mu.Unlock()
			o.write(now, &pressure, &pulse, value, on)
		}
	}
}

// write puts the values into the files, as far as there are any.
func (o *Observer) write(now time.Time, pressure, pulse *valueFile, value float64, on bool) {
	flag := "0"
	if on {
		flag = "1"
	}
	for _, f := range []struct {
		file  *valueFile
		text  string
		fault Fault
	}{
		{pressure, strconv.FormatFloat(value, 'f', 2, 64), FaultPressure},
		{pulse, flag, FaultPulse},
	} {
		if f.file.path == "" || !f.file.due(now, f.text) {
			continue
		}
		err := f.file.set(now, f.text)
		o.mu.Lock()
		o.note(f.fault, err)
		o.mu.Unlock()
	}
}

const (
	// ahead is how far pressure looks along the trend: about what Envoy's overload manager takes to
	// act.
	ahead = time.Second
	// fallPerSecond: pressure rises at once and falls slowly, so that actions do not flap.
	fallPerSecond = 0.1
)

// pressing is the pressure as it is now, 0 to 1: the larger of the shares that memory in use has of
// the budget's limit and that what can't be given back has of the container's (memory.high counts:
// above it the kernel throttles). Growth counts as if it went on for a moment. What is not known
// presses nothing. o.mu is held.
func (o *Observer) pressing(now time.Time) float64 {
	var growth, free, share float64
	if o.fresh(now) {
		growth, free = o.mu.trend.growth()*ahead.Seconds(), float64(o.mu.reading.Free)
		if o.mu.limit > 0 {
			share = (float64(o.mu.reading.InUse) + growth) / float64(o.mu.limit)
		}
	}
	if c := o.mu.figures.container; c != nil {
		if limit := min(c.Limit, c.High); limit != cgroup.NoLimit {
			share = max(share, (float64(c.WorkingSet)-free+growth)/float64(max(limit, 1)))
		}
	}
	return min(max(share, 0), 1)
}

func fall(was, is float64) float64 { return max(is, was-fallPerSecond*actEvery.Seconds()) }

func (o *Observer) fresh(now time.Time) bool {
	return !o.mu.asked.IsZero() && now.Sub(o.mu.asked) < staleAfter
}

// heap is what the releaser is to know. o.mu is held.
func (o *Observer) heap(now time.Time) heap {
	if !o.fresh(now) {
		return heap{}
	}
	r := &o.mu.reading
	h := heap{known: true, free: r.Free, mapped: r.Mapped}
	if c := o.mu.figures.container; c != nil && min(c.Limit, c.High) != cgroup.NoLimit {
		h.share = float64(c.WorkingSet) / float64(max(min(c.Limit, c.High), 1))
	} else if o.mu.limit > 0 {
		h.share = float64(r.InUse+r.Free) / float64(o.mu.limit)
	}
	return h
}
