//go:build wasip1

package main

import (
	"unsafe"

	"github.com/highwater-envoy/highwater/internal/budget"
)

//go:wasmimport wasi_snapshot_preview1 clock_time_get
func clockTimeGet(id uint32, precision uint64, result unsafe.Pointer) uint32

// now is the host's CLOCK_MONOTONIC, the same in all virtual machines of a process. Go's own monotonic time counts
// from each machine's start, and wall time jumps.
//
// To ask the host costs some 1.5 µs, as much as all else that a body callback does. So the clock is read at ticks, each 25 ms
// (2 ms while somebody waits), and when the worker wakes up, and the callbacks of streams and connections go by machine.now.
// Nothing they do needs it to be finer: what does (when a reading was asked for, which bytes it holds) happens in ticks.
func now() budget.Time {
	const monotonic = 1
	return budget.Time(clock(monotonic))
}

// wall is the host's wall time in nanoseconds since 1970, by which answers for people have a date.
func wall() int64 {
	const realtime = 0
	return int64(clock(realtime))
}

func clock(id uint32) (t uint64) {
	clockTimeGet(id, 1, unsafe.Pointer(&t))
	return t
}
