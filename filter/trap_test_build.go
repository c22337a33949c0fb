//go:build trap

package main

import (
	"runtime"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
)

var trapNext bool

// trapRequest faults where a request asks for it, or lets the next tick, beyond any recover: only
// in the plugin that the tests build.
func trapRequest() {
	switch where, err := proxywasm.GetHttpRequestHeader("x-test-trap"); {
	case err != nil:
	case where == "tick":
		trapNext = true
	default:
		trap()
	}
}

func trapTick() {
	if trapNext {
		trap()
	}
}

// trap panics where no callback can recover it. os.Exit does nothing in Envoy.
func trap() {
	go panic("a trap, for a test")
	runtime.Gosched()
}
