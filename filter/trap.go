//go:build trap

package main

import (
	"os"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
)

// trapped faults where a request asks for it, beyond any recover: only in the plugin that the tests build.
func trapped() {
	if _, err := proxywasm.GetHttpRequestHeader("x-test-trap"); err == nil {
		os.Exit(2)
	}
}
