package check

import (
	"fmt"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Paste is YAML that is ready to be pasted.
type Paste struct {
	Where string `json:"where"`
	YAML  string `json:"yaml"`
}

const (
	defaultCluster = "envoy_admin"
	defaultAdmin   = "{socket_address: {address: 127.0.0.1, port_value: 9901}}"
	defaultLimit   = 200 * unit.MiB
)

// defaultFiles are where the plugin or the module is taken to be.
var defaultFiles = map[Face]string{Wasm: "/etc/envoy/highwater.wasm", Module: "/etc/envoy/libhighwater.so"}

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

// additions is what adding Highwater takes: the same filters where the same buffers are.
func (c *checker) additions() {
	plan := c.plan()
	if cluster := plan.clusterYAML(); cluster != "" {
		c.Paste = append(c.Paste, Paste{"to add Highwater: to clusters", cluster})
	}
	for _, l := range plan.lists() {
		at := map[string][]string{}
		var first []planned
		for _, p := range plan.chains {
			if l.kind == "http" && !p.http {
				continue
			}
			if at[p.buffers] == nil {
				first = append(first, p)
			}
			at[p.buffers] = append(at[p.buffers], p.at)
		}
		for _, p := range first {
			c.Paste = append(c.Paste, Paste{"to add Highwater: first of " + l.where + " of " + someOf(at[p.buffers]), plan.filterYAML(l, p)})
			if plan.face == ExtProc {
				break // highwater serve has the buffers
			}
		}
	}
	if plan.face == ExtProc {
		c.Paste = append(c.Paste, Paste{"to add Highwater: the configuration of highwater serve", plan.serveConfig()})
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
	return g.by() == nil && !c.quiet(g) && !g.listener.quic &&
		(g.manager != nil && len(g.http) > 0 || g.proxy != nil && c.options.face() != ExtProc)
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
