//go:build trap

package main

import "sync/atomic"

var trapNext struct{ tick, clock atomic.Bool }

// trapRequest faults where a request asks for it, or has the next tick do so, or the clock: only in
// the module that the tests build.
func trapRequest(s *stream) {
	switch s.Header("x-test-trap") {
	case "":
	case "tick":
		trapNext.tick.Store(true)
	case "goroutine":
		trapNext.clock.Store(true)
	default:
		panic("a trap, for a test")
	}
}

func trapTick() {
	if trapNext.tick.Swap(false) {
		panic("a trap in a tick, for a test")
	}
}

func trapClock() {
	if trapNext.clock.Swap(false) {
		panic("a trap in a goroutine, for a test")
	}
}
