package check

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	limitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/connection_limit/v3"
	connectionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/downstream_connections/v3"
	heapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/worst"
)

type buffers config.Buffers

// maxClusters is how many clusters are told one by one.
const maxClusters = 5

// connectionLimits are how many connections a listener may have, by its name; 0 = no limit. Envoy
// has four ways to say it.
func (c *checker) connectionLimits() map[string]int64 {
	global := int64(0)
	lower := func(to *int64, n int64) {
		if n > 0 && n < worst.NoLimit && (*to == 0 || n < *to) {
			*to = n
		}
	}
	for _, m := range c.bootstrap.GetOverloadManager().GetResourceMonitors() {
		if _, d := held(m.GetTypedConfig()); d != nil {
			if d, ok := d.(*connectionsv3.DownstreamConnectionsConfig); ok {
				lower(&global, d.GetMaxActiveDownstreamConnections())
			}
		}
	}
	lower(&global, c.runtime("overload.global_downstream_max_connections"))
	limits := map[string]int64{}
	for _, l := range c.listening {
		n := int64(0)
		if !l.GetIgnoreGlobalConnLimit() {
			n = global
		}
		lower(&n, c.runtime("envoy.resource_limits.listener."+l.GetName()+".connection_limit"))
		lower(&n, chainLimits(l))
		limits[l.GetName()] = n
	}
	return limits
}

// chainLimits is how many connections the filter envoy.filters.network.connection_limit lets a
// listener have: the sum over its chains; 0 where one of them has none.
func chainLimits(l *listener) (sum int64) {
	for _, ch := range l.chains {
		n := int64(0)
		for _, f := range ch.network {
			if m, ok := f.message.(*limitv3.ConnectionLimit); ok {
				n = int64(min(m.GetMaxConnections().GetValue(), worst.NoLimit))
			}
		}
		if n == 0 {
			return 0
		}
		sum += n
	}
	return sum
}

// runtime is a figure of the bootstrap's static runtime; 0 = there is none.
func (c *checker) runtime(key string) (n int64) {
	for _, layer := range c.bootstrap.GetLayeredRuntime().GetLayers() {
		s, ok := layer.GetLayerSpecifier().(*bootstrapv3.RuntimeLayer_StaticLayer)
		if !ok {
			continue
		}
		if v := lookUp(s.StaticLayer, key); v != nil {
			n = int64(v.GetNumberValue())
			if text := v.GetStringValue(); text != "" {
				n, _ = strconv.ParseInt(text, 10, 64)
			}
		}
	}
	return n
}

// lookUp finds a key of dots: written as one, or as nested objects.
func lookUp(s *structpb.Struct, key string) *structpb.Value {
	if v := s.GetFields()[key]; v != nil {
		return v
	}
	for at := strings.IndexByte(key, '.'); at >= 0; {
		if inner := s.GetFields()[key[:at]].GetStructValue(); inner != nil {
			if v := lookUp(inner, key[at+1:]); v != nil {
				return v
			}
		}
		next := strings.IndexByte(key[at+1:], '.')
		if next < 0 {
			break
		}
		at += 1 + next
	}
	return nil
}

// sizes are the worst cases of listeners and clusters.
func (c *checker) sizes() {
	c.Listeners = []OfListener{}
	for _, l := range c.listening {
		c.Listeners = append(c.Listeners, c.sizeOf(l))
	}
	c.Base = worst.Base(len(c.clusters), c.hasFace(Wasm))
	c.clusterSizes()
}

// hasFace says whether Highwater is here in that way.
func (c *checker) hasFace(f Face) bool {
	return slices.ContainsFunc(c.guards, func(g guarded) bool { return g.by() != nil && g.by().face == f })
}

func (c *checker) sizeOf(l *listener) OfListener {
	of := OfListener{Name: oneLine(l.GetName()), Connections: c.limits[l.GetName()]}
	var most, kernel unit.Bytes
	for i := range c.guards {
		g := &c.guards[i]
		if g.listener != l {
			continue
		}
		of.Guard = guardText(g, of.Guard)
		if l.quic || g.manager == nil && g.proxy == nil && g.other == "" {
			continue
		}
		conn := c.connection(g)
		of.add(&conn)
		most = max(most, conn.Most())
		if l.GetInternalListener() == nil {
			kernel = max(kernel, conn.Kernel())
		}
	}
	if of.Kernel = mostOf(kernel); most > 0 {
		of.All = -1
		if of.Connections > 0 {
			of.All = mostOf(worst.Times(of.Connections, worst.Sum(most, kernel)))
		}
	}
	return of
}

// add counts the connections of a further chain.
func (of *OfListener) add(conn *worst.Connection) {
	if conn.HTTP1 {
		of.HTTP1 = larger(of.HTTP1, mostOf(conn.OverHTTP1()))
	}
	if conn.HTTP2 {
		of.HTTP2 = larger(of.HTTP2, mostOf(conn.OverHTTP2()))
	}
	if !conn.HTTP1 && !conn.HTTP2 {
		of.TCP = larger(of.TCP, mostOf(conn.OverTCP()))
	}
}

func larger(a, b Most) Most {
	if a < 0 || b < 0 {
		return -1
	}
	return max(a, b)
}

// guardText is who guards a listener, for people: of several chains the one that has least.
func guardText(g *guarded, before string) string {
	by := g.by()
	switch {
	case by == nil:
		return before
	case g.config() == nil:
		return string(by.face)
	}
	return fmt.Sprintf("%s, %s, limit %v", by.face, g.config().Mode, g.config().Budget.Limit)
}

// connection is what one connection of a chain is set to.
func (c *checker) connection(g *guarded) worst.Connection {
	ch := g.chain
	conn := worst.Connection{
		Downstream: g.buffer(), HTTP1: ch.speaksHTTP1(), HTTP2: ch.speaksHTTP2(), TLS: ch.tls,
		SendBuffer: ch.listener.sendBuffer, Held: ch.beside(),
	}
	if ch.manager != nil {
		conn.Window, conn.Connection, conn.Streams = ch.http2(c.version)
	}
	names, all := ch.targets()
	for n, cl := range c.of {
		if slices.Contains(names, n) || all && c.targets[n] {
			conn.Upstream = max(conn.Upstream, cl.worst().Response())
		}
	}
	if missing := slices.ContainsFunc(names, func(n string) bool { return c.of[n] == nil }) || all; missing {
		conn.Upstream = max(conn.Upstream, defaultBuffer) // one that is not in this file
	}
	return conn
}

func (cl *cluster) worst() *worst.Cluster {
	w := &worst.Cluster{Buffer: cl.buffer, HTTP2: cl.http2, Window: cl.window, Most: cl.breaker.connections}
	if cl.http2 {
		w.Most = cl.breaker.requests
	}
	return w
}

func (c *checker) clusterSizes() {
	c.Clusters = OfClusters{Count: len(c.clusters), Largest: []OfCluster{}}
	var all []OfCluster
	for _, n := range sorted(c.targets) {
		cl := c.of[n]
		if cl == nil {
			continue
		}
		w := cl.worst()
		of := OfCluster{Name: oneLine(n), Response: mostOf(w.Response()), Requests: w.Most, All: mostOf(w.All())}
		if w.Most >= worst.NoLimit {
			of.Requests, of.All = 0, -1
		}
		all = append(all, of)
	}
	slices.SortStableFunc(all, func(a, b OfCluster) int {
		switch {
		case (a.All < 0) != (b.All < 0):
			return int(min(a.All, b.All)+1) - int(b.All+1) // unbounded ones first
		case b.All > a.All:
			return 1
		case b.All < a.All:
			return -1
		}
		return 0
	})
	c.Clusters.Largest = append(c.Clusters.Largest, all[:min(len(all), maxClusters)]...)
}

// overload holds the overload manager against the container.
func (c *checker) overload() {
	container := c.options.Container
	for _, m := range c.bootstrap.GetOverloadManager().GetResourceMonitors() {
		_, d := held(m.GetTypedConfig())
		heap, ok := d.(*heapv3.FixedHeapConfig)
		if !ok || container == 0 {
			continue
		}
		size := unit.Bytes(min(heap.GetMaxHeapSizeBytes(), uint64(worst.Unbounded)))
		switch {
		case size >= container:
			c.fail("fixed-heap", "overload_manager: "+oneLine(m.GetName()), fmt.Sprintf("max_heap_size_bytes is %v, and the container has %v: the kernel kills Envoy before the overload manager does anything", size, container), fmt.Sprintf("max_heap_size_bytes: %d", twoThirds(container)))
		case size > container-container/8:
			c.warn("fixed-heap", "overload_manager: "+oneLine(m.GetName()), fmt.Sprintf("max_heap_size_bytes is %v of the container's %v: free pages and socket buffers are outside of it, and have %v", size, container, container-size), fmt.Sprintf("max_heap_size_bytes: %d", twoThirds(container)))
		}
	}
	if soft := c.bootstrap.GetMemoryAllocatorManager().GetSoftMemoryLimitBytes(); soft != nil && container > 0 && unit.Bytes(min(soft.GetValue(), uint64(worst.Unbounded))) >= container {
		c.warn("soft-memory-limit", "memory_allocator_manager", fmt.Sprintf("soft_memory_limit_bytes is %d, and the container has %v: nothing is given back before the kernel kills Envoy", soft.GetValue(), container), fmt.Sprintf("soft_memory_limit_bytes: %d", twoThirds(container)*3/4))
	}
}

// whole is about what Envoy holds without traffic.
func (c *checker) whole() {
	base := worst.Base(len(c.clusters), false)
	what := fmt.Sprintf("%d clusters: Envoy holds some %s without any traffic, and no guard frees that", len(c.clusters), base.Human())
	const write = "fewer clusters: in Istio a Sidecar resource or discoverySelectors; stats_config.stats_matcher"
	switch container := c.options.Container; {
	case container > 0 && base >= container:
		c.fail("base", "", what+fmt.Sprintf("; the container has %v", container), write)
	case container > 0 && base > container/2 && len(c.clusters) > manyClusters, len(c.clusters) > 4*manyClusters:
		c.warn("base", "", what, write)
	}
}
