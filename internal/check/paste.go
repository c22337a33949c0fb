package check

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/worst"
)

// Paste is YAML that is ready to be pasted.
type Paste struct {
	Where string `json:"where"`
	YAML  string `json:"yaml"`
}

const (
	defaultWasm    = "/etc/envoy/highwater.wasm"
	defaultCluster = "envoy_admin"
	defaultAdmin   = "{socket_address: {address: 127.0.0.1, port_value: 9901}}"
	defaultLimit   = 200 * unit.MiB
)

// pasting makes what is to be changed and added.
func (c *checker) pasting() {
	c.Paste = []Paste{}
	for _, ch := range changes {
		c.change(ch)
	}
	guards := false
	for i := range c.guards {
		g := &c.guards[i]
		if g.by() == nil {
			continue
		}
		guards = true
		if g.config() != nil && g.by().face != Module && !g.answers() && c.hasFinding("buffers-", g.by().at) {
			where := "in Highwater's configuration, as Envoy is set now: " + g.at
			if g.by().face == ExtProc {
				where = "in the configuration of highwater serve, as Envoy is set now: " + g.at
			}
			c.Paste = append(c.Paste, Paste{where, fmt.Sprintf("\"buffers\": %s\n", buffersText(c.rightFor(g)))})
		}
	}
	if !guards && c.canBeGuarded() {
		c.additions()
	}
}

// change is what is written where there are findings of one of the names.
type change struct {
	names       []string
	where, yaml string
}

// changes are what lowers the buffers, as the shipped examples have it.
var changes = []change{
	{[]string{"listener-buffer"}, "on", "per_connection_buffer_limit_bytes: 65536\n"},
	{[]string{"send-buffer"}, "on", "socket_options:\n- {description: SO_SNDBUF, level: 1, name: 7, int_value: 65536, state: STATE_PREBIND}\n"},
	{[]string{"http2-window"}, "in the HTTP connection manager of", "delayed_close_timeout: 0.1s\nhttp2_protocol_options:\n  initial_stream_window_size: 65536\n  initial_connection_window_size: 16777216\n"},
	{[]string{"cluster-buffer"}, "on", "per_connection_buffer_limit_bytes: 65536\n"},
	{[]string{"http2-upstream-window"}, "in http2_protocol_options of", "initial_stream_window_size: 65536\ninitial_connection_window_size: 16777216\n"},
}

func (c *checker) change(ch change) {
	var places []string
	for _, f := range c.Findings {
		if contains(ch.names, f.Name) {
			for _, p := range f.Places {
				if !contains(places, p) {
					places = append(places, p)
				}
			}
		}
	}
	if len(places) > 0 {
		c.Paste = append(c.Paste, Paste{"to lower the buffers, " + ch.where + " " + someOf(places) + " (then repeat the figures in Highwater's buffers)", ch.yaml})
	}
}

// someOf names places, and how many more there are.
func someOf(places []string) string {
	if len(places) > maxPlaces {
		return fmt.Sprintf("%s and %d more", strings.Join(places[:maxPlaces], ", "), len(places)-maxPlaces)
	}
	return strings.Join(places, ", ")
}

// additions is what adding the plugin takes: the same filters where the same buffers are.
func (c *checker) additions() {
	plan := c.plan()
	if cluster := plan.clusterYAML(); cluster != "" {
		c.Paste = append(c.Paste, Paste{"to add Highwater: to clusters", cluster})
	}
	for _, kind := range []struct{ root, where string }{
		{"requests", "to add Highwater: first of http_filters of "}, {"connections", "to add Highwater: first of filters of "},
	} {
		at := map[string][]string{}
		var first []planned
		for _, p := range plan.chains {
			if kind.root == "requests" && !p.http {
				continue
			}
			if at[p.buffers] == nil {
				first = append(first, p)
			}
			at[p.buffers] = append(at[p.buffers], p.at)
		}
		for _, p := range first {
			c.Paste = append(c.Paste, Paste{kind.where + someOf(at[p.buffers]), plan.filterYAML(kind.root, p)})
		}
	}
}

func (c *checker) canBeGuarded() bool {
	for i := range c.guards {
		if c.guardable(&c.guards[i]) {
			return true
		}
	}
	return false
}

// guardable says that the filters can be put on a chain, and that there is something to guard.
func (c *checker) guardable(g *guarded) bool {
	return g.by() == nil && !c.quiet(g) && !g.listener.quic && (g.manager != nil && len(g.http) > 0 || g.proxy != nil)
}

func (c *checker) hasFinding(prefix, at string) bool {
	for _, f := range c.Findings {
		if strings.HasPrefix(f.Name, prefix) {
			for _, p := range f.Places {
				if p == at {
					return true
				}
			}
		}
	}
	return false
}

// rightFor are the buffers that a guard is to be told. What clusters' HTTP/2 windows let come is in
// upstream.
func (c *checker) rightFor(g *guarded) guard.Buffers {
	b := c.right(g.chain)
	names, all := g.targets()
	for n, cl := range c.of {
		if all && c.targets[n] || contains(names, n) {
			b.Upstream = max(b.Upstream, cl.worst().Response())
		}
	}
	if b.Upstream == 0 {
		b.Upstream = defaultBuffer
	}
	const least, most = unit.KiB, 2 * unit.GiB // what Highwater takes
	for _, v := range []*unit.Bytes{&b.Downstream, &b.Upstream, &b.HTTP2Window, &b.HTTP2ConnectionWindow} {
		*v = min(max(*v, least), most)
	}
	b.Linger = min(b.Linger, unit.Duration(time.Minute))
	return b
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

// buffersText is the block, without what is Envoy's default.
func buffersText(b guard.Buffers) string {
	d := guard.Default().Buffers
	var parts []string
	add := func(key string, is, or unit.Bytes) {
		if is != or {
			parts = append(parts, fmt.Sprintf("%q: %q", key, is))
		}
	}
	add("downstream", b.Downstream, d.Downstream)
	add("upstream", b.Upstream, d.Upstream)
	add("http2_window", b.HTTP2Window, d.HTTP2Window)
	add("http2_connection_window", b.HTTP2ConnectionWindow, d.HTTP2ConnectionWindow)
	if b.Linger != d.Linger {
		parts = append(parts, fmt.Sprintf("\"linger\": %q", b.Linger))
	}
	add("whole_request", b.WholeRequest, d.WholeRequest)
	return "{" + strings.Join(parts, ", ") + "}"
}

// plan is what adding the plugin to this Envoy takes.
type plan struct {
	limit   unit.Bytes
	wasm    string
	cluster string // of the readings
	address string // of the admin interface as YAML; empty = the cluster is there already
	noAdmin bool   // it has to be added
	path    bool   // allow_paths has to let /memory through
	chains  []planned
}

// planned is a chain that gets the filters.
type planned struct {
	at       string
	listener int // which one of those in the file
	chain    int // which one of its chains
	http     bool
	buffers  string
}

func (c *checker) plan() plan {
	p := plan{limit: c.plannedLimit(), wasm: c.options.Wasm, cluster: c.adminCluster(), path: !c.allowed("/memory")}
	if p.wasm == "" {
		p.wasm = defaultWasm
	}
	if p.cluster == "" {
		p.cluster = defaultCluster
		if c.of[defaultCluster] != nil {
			p.cluster = "highwater_admin"
		}
		p.address = adminYAML(c.bootstrap.GetAdmin().GetAddress())
		if p.address == "" {
			p.noAdmin, p.address = true, defaultAdmin
		}
	}
	linger := unit.Duration(0)
	for i := range c.guards {
		if g := &c.guards[i]; c.guardable(g) && g.manager != nil {
			linger = max(linger, c.rightFor(g).Linger)
		}
	}
	for i := range c.guards {
		if g := &c.guards[i]; c.guardable(g) {
			p.chains = append(p.chains, c.planned(g, linger))
		}
	}
	return p
}

// planned is where a chain is in the file, and what its plugins are told.
func (c *checker) planned(g *guarded, linger unit.Duration) planned {
	b := c.rightFor(g)
	b.Linger = linger // the plugins share it
	if linger == 0 {
		b.Linger = guard.Default().Buffers.Linger
	}
	of := planned{at: g.at, http: g.manager != nil, buffers: buffersText(b)}
	for n, l := range c.listening {
		if l == g.listener {
			of.listener = n
		}
	}
	for n := range g.listener.chains {
		if &g.listener.chains[n] == g.chain {
			of.chain = n
		}
	}
	return of
}

// plannedLimit is two thirds of the container; where that is not known, what is enough for most,
// and twice the base at least.
func (c *checker) plannedLimit() unit.Bytes {
	if c.options.Container > 0 {
		return max(twoThirds(c.options.Container), 32*unit.MiB)
	}
	return max(defaultLimit, roundMiB(2*worst.Base(len(c.clusters), true)))
}

// adminYAML is the admin interface's address as one connects to it; empty where there is none.
func adminYAML(a *corev3.Address) string {
	if p := a.GetPipe(); p != nil {
		return fmt.Sprintf("{pipe: {path: %s}}", quoted(p.GetPath()))
	}
	s := a.GetSocketAddress()
	if s == nil {
		return ""
	}
	host := s.GetAddress()
	switch host {
	case "0.0.0.0", "":
		host = "127.0.0.1"
	case "::":
		host = "::1"
	}
	return fmt.Sprintf("{socket_address: {address: %s, port_value: %d}}", quoted(host), s.GetPortValue())
}

// quoted is a text as YAML and JSON read it.
func quoted(text string) string {
	out, _ := json.Marshal(text)
	return string(out)
}

func (p *plan) clusterYAML() string {
	if p.address == "" {
		return ""
	}
	return fmt.Sprintf(`- name: %s
  type: STATIC
  connect_timeout: 1s
  load_assignment:
    cluster_name: %[1]s
    endpoints:
    - lb_endpoints:
      - endpoint: {address: %s}
`, p.cluster, p.address)
}

// config is what the plugin is told: nothing that is Envoy's default.
func (p *plan) config(of planned) string {
	text := fmt.Sprintf(`{"mode": "observe", "budget": {"limit": %q}`, p.limit)
	if of.buffers != "{}" {
		text += `, "buffers": ` + of.buffers
	}
	if p.cluster != defaultCluster {
		text += fmt.Sprintf(`, "memory": {"cluster": %s}`, quoted(p.cluster))
	}
	return text + "}"
}

func (p *plan) filterYAML(root string, of planned) string {
	kind := "http"
	if root == "connections" {
		kind = "network"
	}
	return fmt.Sprintf(`- name: highwater.%s
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.%s.wasm.v3.Wasm
    config:
      name: highwater
      root_id: %[1]s
      failure_policy: FAIL_RELOAD
      vm_config:
        vm_id: highwater
        runtime: envoy.wasm.runtime.v8
        code: {local: {filename: %[3]s}}
      configuration:
        "@type": type.googleapis.com/google.protobuf.StringValue
        value: |
          %[4]s
`, root, kind, quoted(p.wasm), p.config(of))
}
