package main

// #include "abi.h"
import "C"

import (
	"runtime"
	"sync/atomic"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
)

// yieldEvery: where timers of Go's threads can't be late (see clock.c), sysmon leaves a P to its
// thread that goes through Go's scheduler within 10 ms.
const yieldEvery = 6 * time.Millisecond

// yield has the worker's thread do so. It is not for who has the lock.
func (w *worker) yield(t budget.Time) {
	if module.polled && t-w.yielded > yieldEvery {
		w.yielded = t
		runtime.Gosched()
	}
}

// hurry has the next tick come after so long at the latest.
func (w *worker) hurry(t budget.Time, d time.Duration) {
	next := int64(t + d)
	if due := w.due.Load(); due == 0 || next < due {
		w.due.Store(next)
		if !rung.Swap(true) {
			C.hw_ring()
		}
	}
}

// rung says that the clock is about to look.
var rung atomic.Bool

// clock has the workers' ticks come, for as long as the process lives. It waits in C, on a thread
// whose timers are on time.
func clock() {
	runtime.LockOSThread()
	C.hw_tighten()
	for {
		C.hw_wait(C.int64_t(strike()))
		rung.Store(false)
	}
}

// strike has those ticks come that are due, and says how long it is to the next.
func strike() (wait time.Duration) {
	wait = guard.SlowTick // if there is a fault
	defer survive()
	trapClock()
	t, next := now(), now()+time.Second
	for _, w := range module.workers {
		due := budget.Time(w.due.Load())
		if due == 0 {
			continue // nothing of ours is configured
		}
		if due <= t {
			w.tickSoon(t)
			due = budget.Time(w.due.Load())
		}
		next = min(next, due)
	}
	module.setup.introduce(t)
	return max(next-now(), 200*time.Microsecond)
}
