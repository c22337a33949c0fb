package check

import (
	"encoding/json"
	"fmt"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	dynamicv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/dynamic_modules/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/highwater-envoy/highwater/internal/guard"
)

// Face is how Highwater is in Envoy.
type Face string

// The faces.
const (
	Wasm    Face = "wasm"
	ExtProc Face = "ext_proc"
	Module  Face = "dynamic module"
)

// guardian is one of Highwater's filters.
type guardian struct {
	face   Face
	at     string // for people
	name   string // the filter's
	index  int    // in its list
	chain  *chain
	root   string        // root_id; of a module filter_name
	config *guard.Config // nil = not known, or wrong
	err    error         // why its configuration is wrong
	policy wasmv3.FailurePolicy
	vm     string // which virtual machine it is in; plugins with the same share one
	vmID   string
	off    bool // disabled
	named  bool // its configuration names memory.cluster
}

// asks says whether it reads Envoy's memory from a cluster. A module does so where it is told from
// which: else it asks the allocator.
func (g *guardian) asks() bool {
	return g.config != nil && g.face != ExtProc && (g.face != Module || g.named)
}

// guardians finds Highwater's filters of a chain: of its HTTP filters, and of its network filters.
func (c *chain) guardians(whose processors) (requests, connections *guardian) {
	for i, f := range c.http {
		g := guardianOf(f, whose)
		c.http[i].ours = g != nil
		if g != nil && (requests == nil || requests.off) {
			g.at = fmt.Sprintf("%s: http_filters[%d] %s", c.at, i, oneLine(f.name))
			g.name, g.index, g.chain, g.off = f.name, i, c, f.disabled
			requests = g
		}
	}
	for i, f := range c.network {
		if g := guardianOf(f, whose); g != nil && connections == nil {
			g.at = fmt.Sprintf("%s: filters[%d] %s", c.at, i, oneLine(f.name))
			g.name, g.index, g.chain = f.name, i, c
			connections = g
		}
	}
	return requests, connections
}

// processors says which ext_proc filters are of `highwater serve`.
type processors struct {
	server *guard.Config // its configuration; nil = not known
	all    bool          // none of them says so by a name, and so all are taken for its
}

// guardianOf says whether a filter is Highwater's, and how it is set.
func guardianOf(f filter, whose processors) *guardian {
	switch m := f.message.(type) {
	case interface{ GetConfig() *wasmv3.PluginConfig }:
		return pluginOf(f.name, m.GetConfig())
	case interface {
		GetDynamicModuleConfig() *dynamicv3.DynamicModuleConfig
		GetFilterConfig() *anypb.Any
		GetFilterName() string
	}:
		module := m.GetDynamicModuleConfig()
		if !ours(module.GetName(), fileOf(module.GetModule())) {
			return nil
		}
		g := &guardian{face: Module, root: m.GetFilterName(), policy: wasmv3.FailurePolicy_FAIL_RELOAD, vm: "module", vmID: "module"}
		g.config, g.err = configOf(m.GetFilterConfig())
		g.named = namesCluster(m.GetFilterConfig())
		return g
	case *extprocv3.ExternalProcessor:
		if !whose.all && !ours(f.name, m.GetGrpcService().GetEnvoyGrpc().GetClusterName(), m.GetGrpcService().GetGoogleGrpc().GetTargetUri()) {
			return nil
		}
		return &guardian{face: ExtProc, root: "requests", config: whose.server, policy: wasmv3.FailurePolicy_FAIL_RELOAD}
	}
	return nil
}

func pluginOf(name string, p *wasmv3.PluginConfig) *guardian {
	vm := p.GetVmConfig()
	code := vm.GetCode()
	config, err := configOf(p.GetConfiguration())
	if !ours(name, p.GetName(), p.GetRootId(), vm.GetVmId(), fileOf(code)) && (err != nil || config == nil) {
		return nil // somebody else's
	}
	// Envoy makes a machine of vm_id, vm_config.configuration and the code.
	id := &wasmv3.VmConfig{VmId: vm.GetVmId(), Code: code, Configuration: vm.GetConfiguration(), Runtime: vm.GetRuntime()}
	text, _ := proto.MarshalOptions{Deterministic: true}.Marshal(id)
	policy := p.GetFailurePolicy()
	return &guardian{face: Wasm, root: p.GetRootId(), config: config, err: err, policy: policy, vm: string(text), vmID: vm.GetVmId()}
}

// ours says whether one of the names is Highwater's.
func ours(names ...string) bool {
	for _, n := range names {
		if strings.Contains(strings.ToLower(n), "highwater") {
			return true
		}
	}
	return false
}

func fileOf(code *corev3.AsyncDataSource) string {
	if l := code.GetLocal(); l != nil {
		return l.GetFilename()
	}
	return code.GetRemote().GetHttpUri().GetUri()
}

// configOf reads a configuration as the plugin gets it.
func configOf(a *anypb.Any) (*guard.Config, error) {
	if a == nil {
		return nil, fmt.Errorf("configuration: there is none; write {\"@type\": type.googleapis.com/google.protobuf.StringValue, value: '{\"budget\": {\"limit\": \"200MiB\"}}'}")
	}
	var text []byte
	switch _, m := held(a); m := m.(type) {
	case *wrapperspb.StringValue:
		text = []byte(m.GetValue())
	case *wrapperspb.BytesValue:
		text = m.GetValue()
	default:
		return nil, fmt.Errorf("configuration: it is a %s, which arrives as protobuf and not as JSON; write a google.protobuf.StringValue that holds JSON", a.MessageName())
	}
	c, err := guard.Parse(text)
	if err != nil {
		return nil, err
	}
	return &c, nil
}

// namesCluster says whether a configuration says from which cluster readings come.
func namesCluster(a *anypb.Any) bool {
	var c struct {
		Memory struct {
			Cluster *string `json:"cluster"`
		} `json:"memory"`
	}
	if _, m := held(a); m != nil {
		if text, ok := m.(*wrapperspb.StringValue); ok {
			_ = json.Unmarshal([]byte(text.GetValue()), &c) // what is wrong with it is told elsewhere
		}
	}
	return c.Memory.Cluster != nil
}

// disabledOn are the routes that switch a filter off.
func (g *guardian) disabledOn() (routes []string) {
	g.chain.perRoute(g.name, func(at string, a *anypb.Any) {
		if _, m := held(a); m != nil {
			if c, ok := m.(*routev3.FilterConfig); ok && c.GetDisabled() {
				routes = append(routes, at)
			}
			if p, ok := m.(*extprocv3.ExtProcPerRoute); ok && p.GetDisabled() {
				routes = append(routes, at)
			}
		}
	})
	return routes
}
