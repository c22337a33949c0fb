// Package check reads Envoy's configuration and says three things of it: whether its memory can be
// bounded and what keeps it from that, whether Highwater guards it and is told right what it
// guards, and what to write.
//
// It asks and changes nothing: Read takes text, Check makes a Report of data, and Write makes
// another text. Each finding has a stable name, which docs/reference/check.md explains. What the
// settings come to in bytes is computed in package worst.
package check

import (
	"fmt"
	"slices"
	"strings"

	"github.com/highwater-envoy/highwater/internal/envoyconfig"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/worst"
)

// Severity is how bad a finding is.
type Severity string

// The severities.
const (
	Error   Severity = "error"   // requests fail, or are not guarded, or Envoy dies all the same
	Warning Severity = "warning" // memory is not bounded, or is guarded less well than it could be
	Note    Severity = "note"    // worth to know; the exit status does not depend on it
)

// Finding is one thing that was found. Places at which the same is to be said are in one.
type Finding struct {
	Name     string   `json:"name"`
	Severity Severity `json:"severity"`
	Places   []string `json:"places"`          // for people: listener ingress: http_filters[0] highwater
	Lines    []int    `json:"lines,omitempty"` // of the places, as Locate has found them
	What     string   `json:"what"`            // what is so, and what follows
	Write    string   `json:"write,omitempty"` // what to write
}

// Options are what the configuration does not say.
type Options struct {
	Version   *Version      // nil = as the configuration says, else the latest
	Container unit.Bytes    // the container's limit; 0 = not known
	Server    *guard.Config // of `highwater serve`; nil = not known
	Face      Face          // of what is to be added; empty = Wasm
	File      string        // where its file is to be; empty = /etc/envoy/highwater.wasm or libhighwater.so
}

func (o *Options) face() Face {
	if o.Face == "" {
		return Wasm
	}
	return o.Face
}

// Report is what there is to say of an Envoy.
type Report struct {
	File      string       `json:"file,omitempty"` // in which the lines of the findings are
	Envoy     string       `json:"envoy"`          // the version whose defaults were taken
	Running   bool         `json:"running"`        // it is what a running Envoy said
	Listeners []OfListener `json:"listeners"`
	Clusters  OfClusters   `json:"clusters"`
	Base      unit.Bytes   `json:"base"` // what it holds without traffic, roughly
	Verdict   string       `json:"verdict"`
	Findings  []Finding    `json:"findings"`
	Paste     []Paste      `json:"paste"`
}

// OfListener is what a listener can hold.
type OfListener struct {
	Name        string `json:"name"`
	Guard       string `json:"guard"` // the face, and the mode where it is known; empty = none
	HTTP1       Most   `json:"http1_connection"`
	HTTP2       Most   `json:"http2_connection"`
	TCP         Most   `json:"tcp_connection"`
	Kernel      Most   `json:"kernel_of_a_connection"`
	Connections int64  `json:"connections"` // how many there may be; 0 = nothing limits them
	All         Most   `json:"all"`         // of all of them, the kernel's part too
}

// OfClusters is what clusters can hold that listeners send to.
type OfClusters struct {
	Count   int         `json:"count"` // of all
	Largest []OfCluster `json:"largest"`
}

// OfCluster is what a cluster can hold.
type OfCluster struct {
	Name     string `json:"name"`
	Response Most   `json:"response"` // of one
	Requests int64  `json:"requests"` // at once, as its circuit breaker has it; 0 = as good as no limit
	All      Most   `json:"all"`
}

// Most is how many bytes there may be: 0 = none, less than 0 = nothing bounds them.
type Most int64

func mostOf(b unit.Bytes) Most {
	if b >= worst.Unbounded {
		return -1
	}
	return Most(b)
}

func (m Most) String() string {
	switch {
	case m < 0:
		return "unbounded"
	case m == 0:
		return "-"
	}
	return unit.Bytes(m).Human()
}

// Worst is the worst severity; empty where there is nothing but notes.
func (r *Report) Worst() (worst Severity) {
	for _, f := range r.Findings {
		switch f.Severity {
		case Error:
			return Error
		case Warning:
			worst = Warning
		case Note:
		}
	}
	return worst
}

// checker makes a report.
type checker struct {
	Report
	*Envoy
	options   Options
	listening []*listener
	of        map[string]*cluster
	guards    []guarded // by chain, in their order
	targets   map[string]bool
	limits    map[string]int64 // of connections, by the listener's name
}

// guarded is a chain with its guard.
type guarded struct {
	*chain
	requests, connections *guardian // nil = none
}

func (g *guarded) by() *guardian {
	if g.requests != nil {
		return g.requests
	}
	return g.connections
}

// config is what the guard was told; nil = there is none, or it is not known.
func (g *guarded) config() *guard.Config {
	if by := g.by(); by != nil {
		return by.config
	}
	return nil
}

// buffer is what its connections may read ahead, bytes: the listener's limit, and less where the
// module sets it (guard.Worker.BufferLimit).
func (g *guarded) buffer() unit.Bytes {
	n := g.listener.buffer()
	if by := g.connections; by != nil && by.face == Module && by.config != nil && by.config.Mode == guard.Enforce {
		n = min(n, moduleBuffer)
	}
	return n
}

const moduleBuffer = 64 * unit.KiB // guard.readCalm

// answers says that the chain is there to answer who holds the memory.
func (g *guarded) answers() bool { return g.config() != nil && g.config().Debug.Path != "" }

// Check says what there is to say of an Envoy.
func Check(e *Envoy, o Options) Report {
	c := newChecker(e, o)
	c.whatIsRead()
	c.guarding()
	c.mechanisms()
	c.sizes()
	c.whole()
	c.verdict()
	c.pasting()
	c.sort()
	return c.Report
}

func newChecker(e *Envoy, o Options) *checker {
	if o.Version != nil {
		e.version = *o.Version
	}
	c := &checker{Envoy: e, options: o, of: map[string]*cluster{}}
	c.Report.Envoy, c.Running = e.version.String(), e.dump
	for _, l := range e.listeners {
		c.listening = append(c.listening, e.view(l))
	}
	for _, cl := range e.clusters {
		c.of[cl.GetName()] = e.viewCluster(cl)
	}
	if c.findGuards(processors{server: o.Server}); o.Server != nil && !c.hasProcessor() {
		c.findGuards(processors{server: o.Server, all: true})
	}
	c.traffic()
	c.limits = c.connectionLimits()
	return c
}

func (c *checker) findGuards(whose processors) {
	c.guards = nil
	for _, l := range c.listening {
		for i := range l.chains {
			g := guarded{chain: &l.chains[i]}
			g.requests, g.connections = g.guardians(whose)
			c.guards = append(c.guards, g)
		}
	}
}

// hasProcessor says whether an ext_proc filter is that of `highwater serve`.
func (c *checker) hasProcessor() bool {
	return slices.ContainsFunc(c.guards, func(g guarded) bool { return g.requests != nil && g.requests.face == ExtProc })
}

// traffic finds the clusters that listeners send requests to.
func (c *checker) traffic() {
	c.targets = map[string]bool{}
	every := false
	for i := range c.guards {
		g := &c.guards[i]
		if c.quiet(g) {
			continue
		}
		names, all := g.targets()
		for _, n := range names {
			c.targets[n] = true
		}
		every = every || all
	}
	if !every {
		return
	}
	own := c.ownClusters()
	for n := range c.of {
		if !own[n] {
			c.targets[n] = true
		}
	}
}

func (c *checker) fail(name, at, what, write string) { c.find(Error, name, at, what, write) }
func (c *checker) warn(name, at, what, write string) { c.find(Warning, name, at, what, write) }
func (c *checker) tell(name, at, what, write string) { c.find(Note, name, at, what, write) }

// find notes a finding; where the same has been said of another place, that place with it.
func (c *checker) find(s Severity, name, at, what, write string) {
	for i := range c.Findings {
		f := &c.Findings[i]
		if f.Name == name && f.Severity == s && f.What == what && f.Write == write {
			if at != "" && !slices.Contains(f.Places, at) {
				f.Places = append(f.Places, at)
			}
			return
		}
	}
	f := Finding{Name: name, Severity: s, Places: []string{}, What: what, Write: write}
	if at != "" {
		f.Places = append(f.Places, at)
	}
	c.Findings = append(c.Findings, f)
}

// usual are findings that nearly every Envoy has, because they are its defaults.
var usual = []string{"listener-buffer", "send-buffer", "http2-window", "cluster-buffer", "connections", "linger"}

// sort puts errors first, and of each severity what most Envoys have last.
func (c *checker) sort() {
	rank := func(f Finding) int {
		n := map[Severity]int{Error: 0, Warning: 2, Note: 4}[f.Severity]
		if slices.Contains(usual, f.Name) {
			n++
		}
		return n
	}
	slices.SortStableFunc(c.Findings, func(a, b Finding) int { return rank(a) - rank(b) })
}

// whatIsRead tells what could not be read, what is left out, and what is not here.
func (c *checker) whatIsRead() {
	for _, w := range c.wrong {
		if w.field {
			c.warn("unknown-field", w.at, w.what, "")
			continue
		}
		c.fail("unreadable", w.at, w.what+": this part could not be looked at", "")
	}
	for _, t := range sorted(c.unknown) {
		c.tell("skipped", c.unknown[t], t+" is not known here, and was not looked into: what it holds of a request is not counted", "")
	}
	if c.dump {
		return
	}
	var come []string
	dynamic := c.bootstrap.GetDynamicResources()
	if dynamic.GetLdsConfig() != nil || dynamic.GetLdsResourcesLocator() != "" {
		come = append(come, "listeners")
	}
	if dynamic.GetCdsConfig() != nil || dynamic.GetCdsResourcesLocator() != "" {
		come = append(come, "clusters")
	}
	const write = "highwater check -admin URL reads them from a running Envoy"
	if len(come) > 0 {
		c.tell("dynamic", "dynamic_resources", strings.Join(come, " and ")+" come by xDS, and are not in this file", write)
	}
	for _, g := range c.guards {
		if g.rds != "" {
			c.tell("dynamic", g.at, fmt.Sprintf("its routes (%s) come by xDS, and are not in this file", oneLine(g.rds)), write)
		}
	}
}

func sorted[V any](m map[string]V) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// extProc looks at the ext_proc filters, by a package that knows no other face.
func (c *checker) extProc() {
	if len(c.withExtProc) == 0 || !c.hasProcessor() {
		return
	}
	config := guard.Default()
	if c.options.Server != nil {
		config = *c.options.Server
	}
	clusters := []any{}
	for _, cl := range c.clusters {
		clusters = append(clusters, asTree(cl))
	}
	root := map[string]any{"static_resources": map[string]any{"listeners": c.withExtProc, "clusters": clusters}}
	if c.bootstrap.GetDynamicResources().GetCdsConfig() != nil && !c.dump {
		root["dynamic_resources"] = map[string]any{"cds_config": map[string]any{}}
	}
	for _, f := range envoyconfig.CheckTree(root, config).Findings {
		if f.Name == "field" {
			continue // told already, of what was read
		}
		what, write, _ := strings.Cut(f.What, "; ")
		s := Warning
		if f.Error {
			s = Error
		}
		c.find(s, f.Name, f.At, what, write)
	}
}
