//go:build trap

package main

import (
	"runtime"
	"strings"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
)

var trapNext bool

// trapRequest faults where a request asks for it, or lets the next tick, beyond any recover, or
// leaks: only in the plugin that the tests build.
func trapRequest() {
	switch where, err := proxywasm.GetHttpRequestHeader("x-test-trap"); {
	case err != nil:
	case strings.HasPrefix(where, "leak-"):
		leak(where)
	case where == "tick":
		trapNext = true
	default:
		trap()
	}
}

// leak keeps a value under a key that no other request has: shared data lives as long as Envoy, in
// its own heap. Of 871 bytes, with C++'s zero behind them, TCMalloc makes an object of 896.
func leak(key string) {
	_ = proxywasm.SetSharedData("highwater.test."+key, make([]byte, 871), 0)
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
