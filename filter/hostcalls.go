//go:build wasip1

package main

import (
	"unsafe"

	"github.com/highwater-envoy/highwater/internal/budget"
)

// What each request asks of the host, without the SDK, whose wrappers make four objects for each
// answer and run through as much code as the judging of a request does. Where a megabyte has passed
// since the request before, all of that comes from memory.

//go:wasmimport wasi_snapshot_preview1 clock_time_get
func clockTimeGet(id uint32, precision uint64, result unsafe.Pointer) uint32

//go:wasmimport env proxy_get_property
func getProperty(path string, value, size unsafe.Pointer) uint32

//go:wasmimport env proxy_get_header_map_value
func getHeader(of headerMap, name string, value, size unsafe.Pointer) uint32

// now is the host's CLOCK_MONOTONIC, the same in all virtual machines of a process. Go's own
// monotonic time counts from each machine's start, and wall time jumps.
//
// To ask the host costs some 1.5 µs, as much as all else that a body callback does. So the clock is
// read at ticks, each 25 ms (2 ms while somebody waits), and when the worker wakes up, and the
// callbacks of streams and connections go by machine.now. Nothing they do needs it to be finer:
// what does (when a reading was asked for, which bytes it holds) happens in ticks. One exception:
// while what passes drains, mark reads it at headers with a body and at reads of guard.LargeRead
// and more, because a pass of Envoy's event loop may outlast several readings.
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

// answer is where the host leaves what propertyOf and header ask for.
var answer struct {
	wanted bool
	data   *byte // the host writes the lower half, an address of 32 bits
	size   int32
	text   [256]byte
}

// malloc is called by the host, while it answers a call, for memory to put its answer into. Hosts
// that don't find it call the SDK's proxy_on_memory_allocate, which makes an object each time. The
// answers that each request waits for are short and soon read.
//
//go:wasmexport malloc
func malloc(size uint32) unsafe.Pointer {
	if answer.wanted && size <= uint32(len(answer.text)) {
		return unsafe.Pointer(&answer.text)
	}
	return unsafe.Pointer(unsafe.SliceData(make([]byte, size)))
}

// propertyOf reads a property, whose path's parts are separated by a zero byte. The text is valid
// until the next call of propertyOf or header: who keeps it clones it.
func propertyOf(path string) (text string, ok bool) {
	answer.wanted = true
	return answered(getProperty(path, unsafe.Pointer(&answer.data), unsafe.Pointer(&answer.size)))
}

// header reads a header, likewise.
func header(of headerMap, name string) (text string, ok bool) {
	answer.wanted = true
	return answered(getHeader(of, name, unsafe.Pointer(&answer.data), unsafe.Pointer(&answer.size)))
}

func answered(status uint32) (text string, ok bool) {
	data, size := answer.data, answer.size
	answer.wanted, answer.data, answer.size = false, nil, 0
	if status != 0 || data == nil {
		return "", status == 0
	}
	return unsafe.String(data, size), true
}
