// Command sdk is a Proxy-Wasm plugin with empty callbacks, as HTTP and as network filter: what the
// SDK itself costs a request.
package main

import (
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"
)

func main() {}

func init() { proxywasm.SetVMContext(&vm{}) }

type vm struct{ types.DefaultVMContext }

func (*vm) NewPluginContext(uint32) types.PluginContext { return &plugin{} }

type plugin struct {
	types.DefaultPluginContext
	network bool
}

// OnPluginStart implements types.PluginContext.
func (p *plugin) OnPluginStart(int) types.OnPluginStartStatus {
	root, err := proxywasm.GetProperty([]string{"plugin_root_id"})
	p.network = err == nil && string(root) == "connections"
	return types.OnPluginStartStatusOK
}

// NewHttpContext implements types.PluginContext. The SDK asks it first, for connections too.
func (p *plugin) NewHttpContext(uint32) types.HttpContext {
	if p.network {
		return nil
	}
	return &types.DefaultHttpContext{}
}

// NewTcpContext implements types.PluginContext.
func (*plugin) NewTcpContext(uint32) types.TcpContext { return &types.DefaultTcpContext{} }
