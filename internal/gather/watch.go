package gather

import (
	"context"
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/doctor"
)

// Watch reads again and again.
type Watch struct {
	Read func(context.Context) doctor.Sample
	// Every is the time between two samples; 0 = 5 s. It is longer where a sample costs more than
	// 1/400 of it: Envoy's main thread answers, and is to spend less than 1 % of its time on that.
	Every time.Duration
	// Seen is told of each sample; nil = nobody is.
	Seen func(doctor.Sample)
}

// Share: of the time between two samples they take one part in so many, by the clock.
const Share = 400

const (
	watchEvery = 5 * time.Second
	watchMost  = time.Minute
	lastAfter  = time.Second
	retryAfter = time.Second
)

// Run reads until the context ends, and returns the first sample and the last. There is always one.
func (w *Watch) Run(ctx context.Context) (first, last doctor.Sample) {
	var costs cost
	for n := 0; ; n++ {
		began := time.Now()
		// The end of watching is no reason to break off what is being read: Read has limits of its
		// own.
		last = w.Read(context.WithoutCancel(ctx))
		if n == 0 {
			first = last
		}
		w.tell(last)
		took := time.Since(began)
		every := w.Every
		if every <= 0 {
			every = watchEvery
		}
		if last.Totals == nil && last.Status == nil { // it is not there yet
			every = min(every, retryAfter)
		}
		timer := time.NewTimer(max(every-took, min(Share*costs.add(took), watchMost)))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			if time.Since(began) > min(every, lastAfter) { // what it is like at the end counts
				last = w.Read(context.WithoutCancel(ctx))
				w.tell(last)
			}
			return first, last
		}
	}
}

// cost is what a sample costs: the least time that one of the last few took, for on a busy machine
// most of the time is spent waiting.
type cost struct {
	last [4]time.Duration
	n    int
}

func (c *cost) add(took time.Duration) time.Duration {
	c.last[c.n%len(c.last)] = took
	c.n++
	return slices.Min(c.last[:min(c.n, len(c.last))])
}

func (w *Watch) tell(s doctor.Sample) {
	if w.Seen != nil {
		w.Seen(s)
	}
}
