package load

import (
	"context"
	"sync"
	"time"
)

// Mix is several loads at once.
type Mix []Load

// Run implements Load.
func (m Mix) Run(ctx context.Context) {
	var all sync.WaitGroup
	for _, l := range m {
		all.Go(func() { l.Run(ctx) })
	}
	all.Wait()
}

// Snapshot implements Load.
func (m Mix) Snapshot() Snapshot {
	var each []Snapshot
	for _, l := range m {
		each = append(each, l.Snapshot())
	}
	return Sum(each)
}

// Sum is what came of several loads: the sums, the longest times, and the first problem.
func Sum(each []Snapshot) (sum Snapshot) {
	for _, s := range each {
		sum.Started += s.Started
		sum.Served += s.Served
		sum.Rejected += s.Rejected
		sum.Cut += s.Cut
		sum.Closed += s.Closed
		sum.Errors += s.Errors
		sum.InFlight += s.InFlight
		sum.Waiting += s.Waiting
		sum.Bytes += s.Bytes
		sum.Elapsed = max(sum.Elapsed, s.Elapsed)
		sum.P50, sum.P99, sum.Max = max(sum.P50, s.P50), max(sum.P99, s.P99), max(sum.Max, s.Max)
		if sum.Problem == "" {
			sum.Problem = s.Problem
		}
	}
	return sum
}

// Then is one load for a time, then another.
type Then struct {
	First Load
	For   time.Duration
	Next  Load
}

// Run implements Load.
func (t Then) Run(ctx context.Context) {
	first, cancel := context.WithTimeout(ctx, t.For)
	t.First.Run(first)
	cancel()
	if ctx.Err() == nil {
		t.Next.Run(ctx)
	}
}

// Snapshot implements Load.
func (t Then) Snapshot() Snapshot { return Mix{t.First, t.Next}.Snapshot() }

// Once is a load that begins when Ready says so, and Pause later.
type Once struct {
	Ready func() bool
	Pause time.Duration
	Load  Load
}

// Run implements Load.
func (o Once) Run(ctx context.Context) {
	for !o.Ready() {
		if !Sleep(ctx, 10*time.Millisecond) {
			return
		}
	}
	if Sleep(ctx, o.Pause) {
		o.Load.Run(ctx)
	}
}

// Snapshot implements Load.
func (o Once) Snapshot() Snapshot { return o.Load.Snapshot() }
