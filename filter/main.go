// Highwater's face in Envoy: a Proxy-Wasm plugin, for HTTP (root_id: requests) and for the network filter of the same
// listener (root_id: connections). All policy is in internal/guard; here it is asked, and what it says is done.
package main

import (
	"runtime/debug"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
)

func main() {}

func init() {
	// Half of Go's default: what lives is small, and linear memory never shrinks. At 100 it grew past 8 MiB per worker.
	debug.SetGCPercent(50)
	proxywasm.SetVMContext(&machine)
}
