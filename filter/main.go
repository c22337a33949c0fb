// Highwater's face in Envoy: a Proxy-Wasm plugin, for HTTP (root_id: requests) and for the network
// filter of the same listener (root_id: connections). All policy is in internal/guard; here it is
// asked, and what it says is done.
//
// Where is what:
//
//	plugin.go      plugins of a virtual machine, ticks, what a tick wants done (carryOut), readings
//	stream.go      a request: callbacks of the HTTP filter
//	connection.go  callbacks of the network filter
//	host.go        what is asked of Envoy about a request; hostcalls.go past the SDK
//	tell.go        what is logged; introspect.go the debug endpoints
//
// A panic that survive (host.go) can't recover traps the virtual machine. The requests on it are
// lost, uploads too, and its paused ones hang until Envoy's own timeouts (TestTrapUnderLoad). The
// other workers stop counting them after two seconds (Table.drop in budget, deadAfter). With
// failure_policy FAIL_RELOAD the next request starts a new machine. trap_test_build.go makes such
// traps, in test builds alone.
package main

import (
	"runtime/debug"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
)

func main() {}

func init() {
	// Half of Go's default: what lives is small, and linear memory never shrinks. At 100 it grew
	// past 8 MiB per worker.
	debug.SetGCPercent(50)
	proxywasm.SetVMContext(&machine)
}
