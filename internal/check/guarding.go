package check

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/worst"
)

// guarding is about Highwater's filters: whether they are everywhere, first, and told right.
func (c *checker) guarding() {
	if c.options.Server != nil && !c.hasProcessor() {
		c.fail("no-guard", "", "there is no ext_proc filter, and the configuration of highwater serve was given: nothing asks it", "an ext_proc filter, first of http_filters, as in examples/envoy-extproc.yaml")
	}
	if !slices.ContainsFunc(c.guards, func(g guarded) bool { return g.by() != nil }) {
		if c.canBeGuarded() {
			c.warn("no-guard", "", "there is no Highwater in this configuration: nothing is guarded", "what is printed below, or highwater check -write FILE")
		}
		return
	}
	for i := range c.guards {
		g := &c.guards[i]
		if g.by() == nil {
			c.unguarded(g)
			continue
		}
		c.pair(g)
		c.order(g)
		if g.config() != nil && !g.answers() {
			c.buffers(g)
			c.manager(g)
		}
	}
	c.plugins()
	c.extProc()
	c.shared()
	c.readings()
	c.breakers()
	c.limit()
	c.soft()
}

// unguarded tells of a listener without a guard. What answers by itself, as Envoy's own statistics
// do, holds nothing.
func (c *checker) unguarded(g *guarded) {
	switch {
	case g.manager == nil && g.proxy == nil && g.other == "" || c.quiet(g):
	case g.listener.quic: // told elsewhere
	case g.proxy != nil:
		c.warn("unguarded-listener", g.at, "it passes raw TCP on and has no guard: what it holds is not counted, and it takes the memory of those that are guarded", "the network filter (root_id: connections), before the others")
	default:
		c.warn("unguarded-listener", g.at, "it has no guard: what it holds is in the readings, but nobody there waits or is rejected, and it takes the memory of those that are guarded", "both filters, as the other listeners have them")
	}
}

// quiet says that a chain sends nothing to any upstream: it answers by itself, or passes on to
// Envoy's own admin interface, as listeners for statistics do.
func (c *checker) quiet(g *guarded) bool {
	if g.manager == nil || g.routes == nil {
		return false
	}
	names, all := g.targets()
	admin := c.bootstrap.GetAdmin().GetAddress()
	return !all && !slices.ContainsFunc(names, func(n string) bool { return c.of[n] == nil || admin == nil || !c.pointsAt(c.of[n], admin) })
}

// pair tells where one of the two filters is missing, or switched off.
func (c *checker) pair(g *guarded) {
	switch {
	case g.requests == nil && g.manager != nil:
		c.fail("no-http-filter", g.at, "it has the network filter alone: no request is judged", "the HTTP filter (root_id: requests), first of http_filters")
	case g.connections == nil && g.requests.face != ExtProc && g.config() != nil && !g.answers():
		c.warn("no-network-filter", g.at, "it has no network filter: connections are neither counted nor closed, and what rejected requests leave is not bounded", "the network filter (root_id: connections), first of filters")
	}
	for _, f := range []struct {
		g    *guardian
		root string
	}{{g.requests, "requests"}, {g.connections, "connections"}} {
		if f.g != nil && f.g.face == Wasm && f.g.root != f.root {
			c.fail("root-id", f.g.at, fmt.Sprintf("root_id is %q: the plugin does not start", f.g.root), "root_id: "+f.root)
		}
	}
	if g.requests != nil {
		c.disabled(g)
	}
}

// disabled tells where no request is judged although the filter is there.
func (c *checker) disabled(g *guarded) {
	if g.requests.off {
		c.fail("filter-disabled", g.requests.at, "disabled: true: no request is judged but where a route enables it", "leave it out")
	}
	for _, at := range g.requests.disabledOn() {
		c.warn("filter-disabled", at, fmt.Sprintf("it disables %s: its requests are not judged", oneLine(g.requests.name)), "exempt: [{route: NAME}] in Highwater's configuration in place of that: exempt requests are counted")
	}
}

// order tells of filters before Highwater's that hold bodies: what they hold it does not see come.
func (c *checker) order(g *guarded) {
	if g.requests == nil {
		return
	}
	for _, h := range g.holders() {
		if h.index < g.requests.index {
			c.warn("order", h.at, fmt.Sprintf("it is before Highwater and holds bodies (%s): they are held before anybody asks whether there is room", h.what), "Highwater's filter first of http_filters")
		}
	}
}

// plugins is about how each plugin is loaded.
func (c *checker) plugins() {
	vms := map[string][]string{}
	var ids []string
	for _, g := range c.guards {
		for _, p := range []*guardian{g.requests, g.connections} {
			if p == nil {
				continue
			}
			if p.err != nil {
				for line := range strings.Lines(p.err.Error()) {
					c.fail("configuration", p.at, oneLine(line), "")
				}
			}
			if p.face == ExtProc && p.config == nil {
				c.tell("server-unknown", p.at, "the configuration of highwater serve is not here: what it is told was not compared", "highwater check -envoy ENVOY.yaml HIGHWATER.yaml")
			}
			if p.face != Wasm {
				continue
			}
			if p.policy != wasmv3.FailurePolicy_FAIL_RELOAD {
				c.fail("failure-policy", p.at, fmt.Sprintf("failure_policy is %v: after one fault a worker has no guard, or no traffic, until Envoy is restarted", p.policy), "failure_policy: FAIL_RELOAD")
			}
			if _, seen := vms[p.vm]; !seen {
				ids = append(ids, fmt.Sprintf("%q", p.vmID))
			}
			vms[p.vm] = append(vms[p.vm], p.at)
		}
	}
	if len(vms) > 1 {
		c.machines(vms, strings.Join(ids, ", "))
	}
}

// machines tells of plugins in several virtual machines.
func (c *checker) machines(vms map[string][]string, ids string) {
	for _, vm := range sorted(vms) {
		for _, at := range vms[vm] {
			c.fail("vm-id", at, fmt.Sprintf("the plugins are in %d virtual machines (vm_id %s): each has the whole budget for itself and knows nothing of the others", len(vms), ids), "the same vm_id, code and vm_config.configuration in all of them")
		}
	}
}

// shared tells where plugins disagree on what they share.
func (c *checker) shared() {
	type part struct{ key, text string }
	seen := map[string]part{}
	for _, g := range c.guards {
		for _, p := range []*guardian{g.requests, g.connections} {
			if p == nil || p.config == nil || p.face == ExtProc {
				continue
			}
			for key, v := range sharedKeys(p.config) {
				text, _ := json.Marshal(v)
				if first, ok := seen[key]; ok && first.text != string(text) {
					c.fail("shared-keys", p.at, fmt.Sprintf("%s is %s, and %s at %s: plugins share it, and the one that starts last sets it", key, text, first.text, first.key), "the same in all of them")
				} else if !ok {
					seen[key] = part{p.at, string(text)}
				}
			}
		}
	}
}

// sharedKeys are the sections that all plugins of a virtual machine share
// (docs/reference/configuration.md).
func sharedKeys(c *guard.Config) map[string]any {
	return map[string]any{
		"budget": c.Budget, "buffers.linger": c.Buffers.Linger, "throttle": c.Throttle, "reject.retry_after": c.Reject.RetryAfter,
		"evict": c.Evict, "memory": c.Memory, "trace": c.Trace,
	}
}

// manager is about what the connection manager is set to, where the guard depends on it.
func (c *checker) manager(g *guarded) {
	if g.manager == nil || g.requests == nil {
		return
	}
	config := g.config()
	if config.TellsRoutesApart() {
		g.eachRoute(func(host *routev3.VirtualHost, r *routev3.Route) {
			if r.GetName() == "" && r.GetRoute() != nil {
				c.warn("unnamed-routes", g.at+": "+routeName(r), "fairness.by is route, and the route has no name: all requests of such routes count as one", "a name for each route, or fairness.by: cluster or virtual_host")
			}
		})
	}
	hops := g.manager.GetUseRemoteAddress().GetValue() || len(g.manager.GetOriginalIpDetectionExtensions()) > 0
	if config.Fairness.By == "source" && !hops && g.requests.face != ExtProc {
		c.warn("use-remote-address", g.requests.at, "use_remote_address is not true: fairness.by is source, and the source is what a client writes into X-Forwarded-For", "use_remote_address: true, and behind proxies that are trusted xff_num_trusted_hops")
	}
	byPath := slices.ContainsFunc(config.Exempt, func(e guard.Exempt) bool { return e.PathPrefix != "" })
	if byPath && !g.manager.GetNormalizePath().GetValue() {
		c.warn("normalize-path", g.at, "normalize_path is not true: exempt goes by path_prefix, and Envoy's routes and Highwater may read such a path as /x/../healthz otherwise than the upstream", "normalize_path: true, and merge_slashes: true")
	}
}

// readings is about where the plugins read Envoy's memory. A module reads the allocator itself.
func (c *checker) readings() {
	asked := map[string]*guardian{}
	for _, g := range c.guards {
		for _, p := range []*guardian{g.requests, g.connections} {
			if p != nil && p.asks() && asked[p.config.Memory.Cluster] == nil {
				asked[p.config.Memory.Cluster] = p
			}
		}
	}
	for _, name := range sorted(asked) {
		p := asked[name]
		if c.bootstrap.GetAdmin().GetAddress() == nil {
			c.fail("admin", "", "Envoy has no admin interface: there are no readings", "admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}")
		}
		if !c.allowed(p.config.Memory.Path) {
			c.fail("allow-paths", "admin", fmt.Sprintf("allow_paths does not let %s through: there are no readings", p.config.Memory.Path), fmt.Sprintf("{exact: %s} in allow_paths", p.config.Memory.Path))
		}
		c.readingsFrom(name, p)
	}
}

// readingsFrom is about the cluster that readings come from.
func (c *checker) readingsFrom(name string, p *guardian) {
	admin, cl := c.bootstrap.GetAdmin().GetAddress(), c.of[name]
	switch {
	case cl == nil && !c.dump && c.bootstrap.GetDynamicResources().GetCdsConfig() != nil:
		c.tell("readings", p.at, fmt.Sprintf("memory.cluster is %q, which is not in this file", oneLine(name)), "")
	case cl == nil:
		write := fmt.Sprintf("a cluster %q that is the admin interface, as in examples/envoy.yaml", oneLine(name))
		if other := c.adminCluster(); other != "" {
			write = fmt.Sprintf("memory.cluster: %s, which is the admin interface", other)
		}
		c.fail("readings", p.at, fmt.Sprintf("memory.cluster is %q, and there is no such cluster: there are no readings", oneLine(name)), write)
	case admin != nil && !c.pointsAt(cl, admin):
		c.warn("readings-elsewhere", cl.at, fmt.Sprintf("it is where readings come from, and points elsewhere than the admin interface (%s): that is right only where highwater serve answers there", addressOf(admin)), "the address of admin")
	}
}

// allowed says whether the admin interface answers a path.
func (c *checker) allowed(path string) bool {
	list := c.bootstrap.GetAdmin().GetAllowPaths()
	return len(list) == 0 || slices.ContainsFunc(list, func(m *matcherv3.StringMatcher) bool {
		switch p := m.GetMatchPattern().(type) {
		case *matcherv3.StringMatcher_Exact:
			return p.Exact == path
		case *matcherv3.StringMatcher_Prefix:
			return strings.HasPrefix(path, p.Prefix)
		case *matcherv3.StringMatcher_Suffix:
			return strings.HasSuffix(path, p.Suffix)
		case *matcherv3.StringMatcher_Contains:
			return strings.Contains(path, p.Contains)
		case *matcherv3.StringMatcher_SafeRegex:
			whole, err := regexp.Compile("^(?:" + p.SafeRegex.GetRegex() + ")$")
			return err != nil || whole.MatchString(path)
		}
		return true
	})
}

// adminCluster is a cluster that is the admin interface; empty where there is none.
func (c *checker) adminCluster() string {
	admin := c.bootstrap.GetAdmin().GetAddress()
	if admin == nil {
		return ""
	}
	for _, name := range sorted(c.of) {
		if c.pointsAt(c.of[name], admin) {
			return name
		}
	}
	return ""
}

// pointsAt says whether all endpoints of a cluster are an address of this machine.
func (c *checker) pointsAt(cl *cluster, admin *corev3.Address) bool {
	assignment := cl.GetLoadAssignment()
	if assignment == nil {
		assignment = c.endpoints[cl.GetName()]
	}
	found := false
	for _, locality := range assignment.GetEndpoints() {
		for _, e := range locality.GetLbEndpoints() {
			if !sameAddress(e, admin) {
				return false
			}
			found = true
		}
	}
	return found
}

func sameAddress(e *endpointv3.LbEndpoint, admin *corev3.Address) bool {
	a := e.GetEndpoint().GetAddress()
	if p := admin.GetPipe(); p != nil {
		return a.GetPipe().GetPath() == p.GetPath()
	}
	s := a.GetSocketAddress()
	local := []string{"127.0.0.1", "localhost", "::1", "0.0.0.0", "::", admin.GetSocketAddress().GetAddress()}
	return s != nil && s.GetPortValue() == admin.GetSocketAddress().GetPortValue() && slices.Contains(local, s.GetAddress())
}

// breakers tells of clusters that reject by number what Highwater admits by memory.
func (c *checker) breakers() {
	for _, n := range sorted(c.targets) {
		cl := c.of[n]
		if cl != nil && !cl.breakers {
			c.warn("circuit-breakers", cl.at, fmt.Sprintf("its circuit breaker has Envoy's default somewhere (%d connections, %d waiting, %d requests): it rejects by number what Highwater would have admitted by memory",
				cl.breaker.connections, cl.breaker.pending, cl.breaker.requests), "circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}")
		}
	}
}

// limit holds the budget against the container and against what Envoy holds without traffic.
func (c *checker) limit() {
	told := map[unit.Bytes]bool{}
	base := worst.Base(len(c.clusters), c.hasFace(Wasm))
	for _, g := range c.guards {
		config := g.config()
		if config == nil || told[config.Budget.Limit.Bytes] {
			continue
		}
		limit := config.Budget.Limit.Bytes
		if share := config.Budget.Limit.Share; limit == 0 && c.options.Container > 0 {
			limit = unit.Bytes(share.Of(int64(c.options.Container)))
		}
		told[config.Budget.Limit.Bytes] = true
		if limit == 0 {
			continue
		}
		if container := c.options.Container; container > 0 {
			switch outside := container - container/4; {
			case limit >= container:
				c.fail("limit-over-container", g.by().at, fmt.Sprintf("budget.limit is %v, and the container has %v: the kernel kills Envoy before the budget is used", limit, container), fmt.Sprintf("budget.limit: %v", twoThirds(container)))
			case limit > outside:
				c.warn("limit-over-container", g.by().at, fmt.Sprintf("budget.limit is %v of the container's %v: socket buffers, virtual machines and free pages are outside the budget, and have %v", limit, container, container-limit), fmt.Sprintf("budget.limit: %v", twoThirds(container)))
			}
		}
		if least := worst.LeastLimit(base); limit < least {
			c.fail("limit-under-base", g.by().at, fmt.Sprintf("budget.limit is %v, and Envoy holds some %s without traffic (%d clusters): it cannot be held", limit, base.Human(), len(c.clusters)), fmt.Sprintf("budget.limit: %v or more; twice what Envoy holds leaves traffic as much", roundMiB(least)))
		} else if limit < 2*base && len(c.clusters) > manyClusters {
			c.warn("limit-under-base", g.by().at, fmt.Sprintf("budget.limit is %v, and Envoy holds some %s without traffic (%d clusters): traffic has what is left", limit, base.Human(), len(c.clusters)), fmt.Sprintf("budget.limit: %v, or fewer clusters", roundMiB(2*base)))
		}
	}
}

// manyClusters are more than Envoy's own base.
const manyClusters = 500

func twoThirds(container unit.Bytes) unit.Bytes { return container * 2 / 3 / unit.MiB * unit.MiB }

func roundMiB(b unit.Bytes) unit.Bytes { return (b + unit.MiB - 1) / unit.MiB * unit.MiB }

// soft tells where a peak stays resident.
func (c *checker) soft() {
	soft := c.bootstrap.GetMemoryAllocatorManager().GetSoftMemoryLimitBytes()
	if soft == nil {
		c.warn("soft-memory-limit", "memory_allocator_manager", "soft_memory_limit_bytes is not set: a peak stays resident for about a minute, and a second one comes on top of it", "soft_memory_limit_bytes: three quarters of budget.limit")
	}
}

// asTree is a message as a tree.
func asTree(m proto.Message) any {
	text, err := protojson.Marshal(m)
	if err != nil {
		return map[string]any{}
	}
	var tree any
	_ = json.Unmarshal(text, &tree)
	return tree
}

// buffers holds what the guard is told against what Envoy is set to.
func (c *checker) buffers(g *guarded) {
	config, right := g.config(), c.right(g.chain)
	is := config.Buffers
	compare := func(key string, told, is unit.Bytes, from string) {
		switch {
		case told < is:
			c.fail("buffers-low", g.by().at, fmt.Sprintf("buffers.%s is %v, and %s is %v: the guard counts too little, and memory may go over the limit", key, told, from, is), fmt.Sprintf("\"buffers\": {%q: %q}", key, is))
		case told > is:
			c.warn("buffers-high", g.by().at, fmt.Sprintf("buffers.%s is %v, and %s is %v: the guard counts too much, and rejects for which there is room", key, told, from, is), fmt.Sprintf("\"buffers\": {%q: %q}", key, is))
		}
	}
	if g.by().face != Module { // which sets it itself
		compare("downstream", is.Downstream, right.Downstream, "per_connection_buffer_limit_bytes of the listener")
	}
	if told := is.Upstream; right.Upstream > 0 {
		if told > right.Upstream && told <= c.rightFor(g).Upstream {
			told = right.Upstream // what HTTP/2 windows let come is in it too
		}
		compare("upstream", told, right.Upstream, "the largest per_connection_buffer_limit_bytes of its clusters")
	}
	if g.speaksHTTP2() && g.requests != nil {
		compare("http2_window", is.HTTP2Window, right.HTTP2Window, "initial_stream_window_size")
		compare("http2_connection_window", is.HTTP2ConnectionWindow, right.HTTP2ConnectionWindow, "initial_connection_window_size")
	}
	if g.manager != nil {
		c.compareLinger(g, time.Duration(is.Linger), g.linger())
	}
	if g.requests != nil {
		c.compareWhole(g, is.WholeRequest)
	}
}

func (c *checker) compareLinger(g *guarded, told, is time.Duration) {
	write := fmt.Sprintf("\"buffers\": {\"linger\": %q}", unit.Duration(is))
	switch {
	case is == 0:
		c.warn("linger", g.at, "delayed_close_timeout is 0s: a third to all of the rejected clients see a reset, not the answer", "delayed_close_timeout: 0.1s")
	case told < is:
		c.fail("buffers-low", g.by().at, fmt.Sprintf("buffers.linger is %v, and delayed_close_timeout is %v: what rejected requests leave is counted for too short a time", told, is), write)
	case told > is:
		c.warn("buffers-high", g.by().at, fmt.Sprintf("buffers.linger is %v, and delayed_close_timeout is %v: what rejected requests leave is counted for too long", told, is), write)
	}
}

func (c *checker) compareWhole(g *guarded, told unit.Bytes) {
	var most holder
	for _, h := range g.holders() {
		if h.bytes > most.bytes {
			most = h
		}
	}
	write := fmt.Sprintf("\"buffers\": {\"whole_request\": %q}", most.bytes)
	switch {
	case told == 0 && most.bytes > 2*g.listener.buffer(), told > 0 && told < most.bytes:
		c.fail("buffers-low", g.by().at, fmt.Sprintf("buffers.whole_request is %v, and %s holds more (%s): the guard counts too little, and memory may go over the limit", told, oneLine(most.at), most.what), write)
	case told > most.bytes && most.bytes == 0:
		c.warn("buffers-high", g.by().at, fmt.Sprintf("buffers.whole_request is %v, and no filter holds whole requests: the guard counts too much", told), "\"buffers\": {\"whole_request\": 0}")
	case told > most.bytes:
		c.warn("buffers-high", g.by().at, fmt.Sprintf("buffers.whole_request is %v, and the most that a filter holds is %v (%s): the guard counts too much", told, most.bytes, oneLine(most.at)), write)
	}
}

// right are the buffers that a chain is set to.
func (c *checker) right(ch *chain) guard.Buffers {
	b := guard.Default().Buffers
	b.Downstream, b.Upstream = ch.listener.buffer(), 0
	names, all := ch.targets()
	for n, cl := range c.of {
		if slices.Contains(names, n) || all && c.targets[n] {
			b.Upstream = max(b.Upstream, cl.buffer)
		}
	}
	if ch.manager != nil {
		b.HTTP2Window, b.HTTP2ConnectionWindow, _ = ch.http2(c.version)
		b.HTTP2ConnectionWindow = max(b.HTTP2ConnectionWindow, b.HTTP2Window)
		b.Linger = unit.Duration(ch.linger())
	}
	for _, h := range ch.holders() {
		if h.bytes > 2*b.Downstream {
			b.WholeRequest = max(b.WholeRequest, h.bytes)
		}
	}
	return b
}
