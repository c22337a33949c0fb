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
func now() budget.Time {
	const monotonic = 1
	var t uint64
	clockTimeGet(monotonic, 1, unsafe.Pointer(&t))
	return budget.Time(t)
}
