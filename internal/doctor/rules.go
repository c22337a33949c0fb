package doctor

import (
	"fmt"
	"math"
	"time"

	"github.com/highwater-envoy/highwater/internal/memorymap"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// The findings.
const (
	LimitBelowBase  = "limit-below-base"
	ManyClusters    = "many-clusters"
	WideWindows     = "wide-windows"
	WideBuffers     = "wide-buffers"
	KeptForRetries  = "kept-for-retries"
	KeptByFilters   = "kept-by-filters"
	ThreadCaches    = "thread-caches"
	WaitingPages    = "free-pages"
	WasmGrows       = "wasm-grows"
	WasmLarge       = "wasm-large"
	BudgetBelowBase = "budget-below-base"
	KernelSockets   = "kernel-sockets"
	UnexplainedLoad = "unexplained-load"
	Grows           = "growth"
	Leaks           = "leak"
	NearLimit       = "near-limit"
)

// names of the findings, as the reference has them.
var findings = []string{
	NearLimit, LimitBelowBase, BudgetBelowBase, ManyClusters, WideWindows, WideBuffers, KeptForRetries, KeptByFilters, ThreadCaches,
	WaitingPages, WasmGrows, WasmLarge, KernelSockets, UnexplainedLoad, Grows, Leaks,
}

// rules are asked one after the other. Each looks at the patient, and says what it finds.
var rules = []func(*patient){
	nearLimit, limitBelowBase, budgetBelowBase, manyClusters, keptBodies, wideBuffers, threadCaches, waitingPages, wasm, kernelSockets, unexplained, grows,
}

const mib = int64(unit.MiB)

func human(n int64) string { return unit.Bytes(n).Human() }

func percent(part, whole int64) string {
	if whole <= 0 {
		return "0%"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(part)/float64(whole))
}

// round is a size that people write: up to a whole 64 MiB, or 8 below 128.
func round(n int64) int64 {
	step := 64 * mib
	if n < 128*mib {
		step = 8 * mib
	}
	return (n + step - 1) / step * step
}

// base is what stays where there is no load: all that is resident but what requests and
// connections hold, free pages, caches, and pages of files, which the kernel can drop.
func (p *patient) base() int64 {
	m := &p.report.Map
	n := m.Resident - m.Of(memorymap.FreePages) - m.Of(memorymap.Caches)
	for _, name := range []string{memorymap.Connections, memorymap.TLS, memorymap.Requests, memorymap.Buffers} {
		n -= m.In(name)
	}
	n -= max(m.In(memorymap.Unexplained), 0)
	if s := p.now.Status; s != nil {
		n -= s.File
	}
	return max(n, 0)
}

// How near to the limit is too near, in shares of it.
const (
	nearShare = 0.90
	baseShare = 0.60 // without load: what is left has to do for all requests
)

func nearLimit(p *patient) {
	limit, c := p.report.Limit, p.now.Container
	used := p.report.Map.Resident
	if c != nil && c.Limit == limit { // the container may have more in it than Envoy
		used = max(used, c.WorkingSet)
	}
	if limit <= 0 || float64(used) < nearShare*float64(limit) {
		return
	}
	p.find(NearLimit, used, fmt.Sprintf("%s of %s are in use: at its limit the kernel kills.", human(used), human(limit)))
}

func limitBelowBase(p *patient) {
	base, limit := p.base(), p.report.Limit
	if limit <= 0 || float64(base) < baseShare*float64(limit) || len(p.report.Map.Inside) == 0 {
		return
	}
	want := round(int64(float64(base) / baseShare))
	p.find(LimitBelowBase, base,
		fmt.Sprintf("Without any load Envoy needs %s, %s of its limit of %s.", human(base), percent(base, limit), human(limit)),
		Advice{
			Setting: "the container's memory limit (resources.limits.memory)", Value: unit.Bytes(want).String(), Bytes: 0,
			Brings: fmt.Sprintf("%s for requests in place of %s", human(want-base), human(max(limit-base, 0))),
		})
}

// budgetBelowBase is the same for the budget of Highwater's plugin, which is about Envoy's heap.
func budgetBelowBase(p *patient) {
	m, budget := &p.report.Map, p.gauges().GuardLimit
	if budget <= 0 || len(m.Inside) == 0 {
		return
	}
	base := m.In(memorymap.StartUp) + m.In(memorymap.Clusters) + m.In(memorymap.Plugins)
	if float64(base) < baseShare*float64(budget) {
		return
	}
	want := round(int64(float64(base) / baseShare))
	p.find(BudgetBelowBase, base, fmt.Sprintf("Without any load Envoy's heap has %s, %s of Highwater's budget of %s.", human(base), percent(base, budget), human(budget)),
		Advice{
			Setting: "budget.limit of Highwater's plugin", Value: unit.Bytes(want).String(),
			Brings: fmt.Sprintf("%s for requests in place of %s", human(want-base), human(max(budget-base, 0))),
		})
}

const (
	manyClustersFrom = 500
	fewClusters      = 100
)

func manyClusters(p *patient) {
	g, n := p.gauges(), p.report.Map.In(memorymap.Clusters)
	if g.Clusters < manyClustersFrom || n < 16*mib || n < p.whole()/10 {
		return
	}
	each := n / g.Clusters
	p.find(ManyClusters, n, fmt.Sprintf("%d clusters with their stats take %s without traffic, %s each.", g.Clusters, human(n), human(each)),
		Advice{
			Setting: "the clusters that this Envoy is sent (egress hosts of a Sidecar resource, or on-demand CDS)", Value: "those that it calls",
			Bytes: n - fewClusters*each, Brings: fmt.Sprintf("%s for each that goes, %s with %d left", human(each), human(n-fewClusters*each), fewClusters),
		},
		Advice{
			Setting: "stats_config.stats_matcher (bootstrap)", Value: `inclusion_list: {patterns: [{prefix: "http."}, {prefix: "listener."}, {suffix: "upstream_rq_total"}]}`,
			Bytes: n / 2, Brings: "most of a cluster's memory are its stats; those that are not matched are not made",
		})
}

// A buffer of a request is wide where it holds more than wideFrom. Advice is narrow: what carries
// most traffic at its full speed.
const (
	wideFrom = 256 << 10
	narrow   = 64 << 10
	// held is what a request holds with narrow buffers: two of them, and half as much again. On
	// Envoy 1.40 it was 107 KiB over HTTP/2, 156 over HTTP/1, and 173 with a body kept for retries.
	held = 160 << 10
	// heldNarrowWindow is what a stream holds with a narrow window and Envoy's default buffers: it
	// was 1,039 KiB.
	heldNarrowWindow = 1 << 20
)

// keptBodies finds bodies that are in no connection's buffer: what retries, mirrors and filters
// that want the whole of it keep.
func keptBodies(p *patient) {
	g, buffers := p.gauges(), p.report.Map.In(memorymap.Buffers)
	if g.Requests == 0 || buffers < 16*mib || buffers < p.whole()/10 || buffers/g.Requests < wideFrom || g.Buffered() > buffers/2 {
		return
	}
	each := buffers / g.Requests
	gain := max(buffers-g.Requests*held, 0)
	text := fmt.Sprintf("%s of bodies are kept, %s for each of %d requests, and no connection's buffer has them", human(buffers), human(each), g.Requests)
	if g.Retries > 0 {
		p.find(KeptForRetries, buffers, text+fmt.Sprintf(": retries keep them until the response's headers (%d retries so far).", g.Retries),
			Advice{
				Setting: "request_body_buffer_limit of the route with the retry_policy", Value: fmt.Sprint(narrow), Bytes: gain,
				Brings: fmt.Sprintf("%s; larger bodies are not retried", human(gain)),
			})
		return
	}
	p.find(KeptByFilters, buffers, text+": a filter waits for the whole of them, or a retry or a mirror keeps them.",
		Advice{
			Setting: "max_request_bytes of the buffer or ext_authz filter, BUFFERED of ext_proc, body() of Lua, or the route's request_body_buffer_limit",
			Value:   fmt.Sprint(narrow), Bytes: gain, Brings: fmt.Sprintf("%s, if what is larger need not be seen whole", human(gain)),
		})
}

// wideBuffers finds what connections and streams hold of traffic that waits.
func wideBuffers(p *patient) {
	g, buffers := p.gauges(), p.report.Map.In(memorymap.Buffers)
	users := max(g.Requests, 1)
	if p.now.Gauges == nil || buffers < 16*mib || buffers < p.whole()/10 || p.report.Has(KeptForRetries) || p.report.Has(KeptByFilters) {
		return
	}
	if g.PendingSend > buffers/2 && buffers/users > 2*heldNarrowWindow {
		gain, rest := buffers-users*heldNarrowWindow, users*(heldNarrowWindow-held)
		p.find(WideWindows, buffers,
			fmt.Sprintf("HTTP/2 streams hold %s that their clients do not read, %s for each of %d: Envoy buffers as much as its own stream window.",
				human(buffers), human(buffers/users), users),
			Advice{
				Setting: "http2_protocol_options.initial_stream_window_size of the listener", Value: fmt.Sprint(narrow), Bytes: gain,
				Brings: fmt.Sprintf("%s: a stream then holds some %s, which is the cluster's buffer", human(gain), human(heldNarrowWindow)),
			},
			Advice{
				Setting: "per_connection_buffer_limit_bytes of the listener and of the clusters", Value: fmt.Sprint(narrow), Bytes: rest,
				Brings: fmt.Sprintf("%s more: a stream then holds some %s", human(rest), human(held)),
			},
			Advice{
				Setting: "http2_protocol_options.max_concurrent_streams of the listener", Value: "100",
				Brings: fmt.Sprintf("a bound: a connection holds 100 windows, in place of 1,024 (%s by default)", human(1024*16*mib)),
			})
		return
	}
	connections := max(g.Connections, users)
	if buffers/connections < wideFrom {
		return
	}
	gain := max(buffers-connections*held, 0)
	p.find(WideBuffers, buffers,
		fmt.Sprintf("Buffers hold %s, %s for each of %d connections, whose peers do not keep up.", human(buffers), human(buffers/connections), connections),
		Advice{
			Setting: "per_connection_buffer_limit_bytes of the listener and of the clusters", Value: fmt.Sprint(narrow), Bytes: gain,
			Brings: fmt.Sprintf("%s: a request then holds some %s", human(gain), human(held)),
		})
}

// cachesWithRseq is what is left of caches per thread with caches per processor: 17 of 38 MiB.
const cachesWithRseq = 17.0 / 38

func threadCaches(p *patient) {
	a := p.report.Allocator
	if a == nil || !a.Caches.PerCPU || !a.Caches.PerThread {
		return
	}
	n := a.Cached()
	gain := int64(math.Round(float64(n) * (1 - cachesWithRseq)))
	most := ""
	if a.Caches.MaxThread > 0 {
		most = fmt.Sprintf(", and may come to %s", human(a.Caches.MaxThread))
	}
	p.find(ThreadCaches, n,
		fmt.Sprintf("tcmalloc keeps a cache for each of %d threads, not for each processor: glibc took rseq(2) first. They hold %s%s.", a.Caches.Threads, human(n), most),
		Advice{
			Setting: "the environment variable GLIBC_TUNABLES of Envoy's process", Value: "glibc.pthread.rseq=0", Bytes: gain,
			Brings: fmt.Sprintf("some %s less in caches, and more throughput", human(gain)),
		})
}

const (
	freeFrom  = 32 // MiB
	freeShare = 5  // of the whole: one part
)

func waitingPages(p *patient) {
	m := &p.report.Map
	n := m.Of(memorymap.FreePages)
	if n < freeFrom*mib || n < m.Resident/freeShare {
		return
	}
	need := m.Of(memorymap.Application) + m.Of(memorymap.Caches) + m.Of(memorymap.Books)
	soft := round(need + need/4)
	if limit := p.report.Limit; limit > 0 {
		// What lies outside of the heap has to have room below the limit too.
		soft = max(min(round(limit/2), limit-(m.Resident-need-n)), round(need))
	}
	gain := max(min(n, need+n-soft), 0)
	p.find(WaitingPages, n,
		fmt.Sprintf("%s are free pages, %s of what is resident: left from a peak, and not given back to the system.", human(n), percent(n, m.Resident)),
		Advice{
			Setting: "memory_allocator_manager.soft_memory_limit_bytes (bootstrap)", Value: fmt.Sprint(soft), Bytes: gain,
			Brings: fmt.Sprintf("above %s free pages go back at once: %s now", human(soft), human(gain)),
		})
}

const (
	wasmGrowth     = 2 * 60 // MiB an hour, that is 2 a minute
	wasmLargeShare = 4
	wasmLargeFrom  = 64 // MiB
)

func wasm(p *patient) {
	m := &p.report.Map
	vms := max(p.gauges().WasmVMs, 1)
	memories := m.Of(memorymap.WasmMemory)
	advice := Advice{
		Setting: "vm_config.environment_variables.key_values of the plugin (GOMEMLIMIT: of a Go plugin; others have a setting of their own)",
		Value:   fmt.Sprintf("GOMEMLIMIT: %dMiB", max(memories/vms/mib/2, 16)),
		Brings:  "a bound for each machine; Envoy itself has none, so that a plugin that leaks is to be mended or taken out",
	}
	if first := p.in.First; first != nil && len(first.Mappings) > 0 && len(p.now.Mappings) > 0 {
		before := memorymap.Build(memorymap.Input{Mappings: first.Mappings, Status: first.Status})
		held := before.Of(memorymap.WasmMemory)
		grown, over := memories-held, p.now.Time.Sub(first.Time)
		// Those that have only just begun grow too: four by 4.8 MiB, a tenth of what they held.
		if hours := over.Hours(); grown >= max(4*mib, held/4) && hours > 0 && float64(grown)/hours >= wasmGrowth*float64(mib) {
			advice.Bytes = grown
			p.find(WasmGrows, memories, fmt.Sprintf("The memories of %d Wasm machines grew by %s in %s, to %s: a plugin leaks. Envoy's /memory does not show it.",
				vms, human(grown), over.Round(time.Second), human(memories)), advice)
			return
		}
	}
	if memories >= wasmLargeFrom*mib && memories >= p.whole()/wasmLargeShare {
		advice.Bytes = memories / 2
		p.find(WasmLarge, memories, fmt.Sprintf("%d Wasm machines hold %s, %s each, outside of Envoy's heap. Use -watch to see whether they grow.",
			vms, human(memories), human(memories/vms)), advice)
	}
}

const socketsFrom = 64 // MiB

func kernelSockets(p *patient) {
	s, of := p.now.Sockets, "this network namespace"
	if c := p.now.Container; c != nil && c.Sock > 0 {
		s, of = &c.Sock, "its container"
	}
	if s == nil || *s < socketsFrom*mib || *s < p.whole()/10 {
		return
	}
	p.find(KernelSockets, *s, fmt.Sprintf("The kernel holds %s for TCP sockets of %s: no figure of Envoy's has it, and its container pays.", human(*s), of),
		Advice{
			Setting: "socket_options of the listener: SO_SNDBUF (level 1, name 7, state STATE_PREBIND)", Value: "int_value: 65536", Bytes: *s / 2,
			Brings: "128KiB a connection at most, in place of up to 4MiB",
		})
}
