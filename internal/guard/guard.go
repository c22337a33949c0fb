// Package guard is the policy: it admits requests, lets them wait or rejects them, so that the
// memory of a proxy stays under its budget. It is a pure machine. It reads no clock and does no
// I/O: the time, readings of the allocator and the storage that the workers share are arguments,
// and what is to be done is returned. The faces (the Wasm filter, the ext_proc server) do it.
//
// Who owns whom:
//
//	Guard        one configuration of a listener or route, on one worker
//	  │ many to one
//	  ▼
//	Worker ────▶ Account ────▶ Store   the books of the worker, and the table that all workers share
//	  ├────────▶ queue                 Streams in the queue
//	  ├────────▶ rejects               what they left unread, and whose connections are to be closed
//	  └────────▶ key                   whose requests are: what it has and what it is known to bring
//	                ▲  ▲
//	       one each │  │ of the response that it holds unread, and of its source
//	Stream ─────────┘  └───────── Connection
//	  └─── was let in by one Guard; is on one Connection, where that is known ───▲
//
// Streams and Connections are the host's: it makes them, hands them in with each call, and says
// when they end. The account has a ring of the live ones.
//
// Where is what:
//
//	state.go       all that has an identity: Guard, Worker, Stream, Connection, keys; and its states
//	parts.go       the values that they are made of
//	worker.go      what a tick does in which order, when the next is due; asks for readings (who:
//	               budget/tick.go; how often: polling), being blind
//	guard.go       a configuration is put in force
//	admission.go   a request is opened and judged; who is exempt; large ones while it is futile
//	queue.go       it waits, is resumed, or finds no place to wait
//	reject.go      it is rejected: with an answer and Retry-After, or by closing its connection
//	response.go    what its response will come to: at the request (predict), and at its headers
//	               (forecastResponse); probes, and when growth ends a stream (grow)
//	stream.go      the transitions of its states: what each books, for one in the queue (joinLine),
//	               for what a rejected one leaves unread (rejectUnread), and when that ends; what
//	               Envoy may hold of it; shadows (mode observe)
//	connection.go  connections: which are admitted, be it on trial; which are closed as idle, or for
//	               what they send first; which ones a tick may close (claimCut)
//	buffers.go     how far they read ahead, where a face sets it; those without a filter chain yet
//	evict.go       memory is over the limit: who is evicted, or cut
//	keys.go        whose it is: shares of keys, what each is known to bring, how many connections
//	prices.go      what a key's streams hold beside what is counted, as readings have taught
//	raw.go         raw TCP: what a connection holds that no HTTP filter sees, and which are refused
//	trace.go       samples at high-water marks
//
// Mode observe has no file of its own: observesAlone and observesBeside (state.go) are asked where
// a verdict would be carried out, and shade (stream.go) says how it is counted. Faults are the
// faces': filter/main.go says what a trap of the plugin loses, and budget/table.go (drop) when the
// other workers forget what it had.
//
// Leaves know nothing of a worker: config, verdict, events and metric (what is told), memory (a
// reading), forecast, fairness, idle, linger (what rejected requests leave unread, and until when),
// polling, retryafter, coverage (what a filter tells), httptext.
package guard

import (
	"slices"
	"strings"

	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/fairness"
)

// What a plugin is configured with: see package config.
type (
	Config     = config.Config
	Mode       = config.Mode
	Budget     = config.Budget
	Buffers    = config.Buffers
	Exempt     = config.Exempt
	Throttle   = config.Throttle
	Reject     = config.Reject
	RetryAfter = config.RetryAfter
	Memory     = config.Memory
	Fairness   = config.Fairness
	Debug      = config.Debug
	Trace      = config.Trace
	Section    = config.Section
)

// The modes.
const (
	Enforce = config.Enforce
	Observe = config.Observe
)

// UnnamedRoutes is to be told once where requests are told apart by routes, and one comes whose
// route has no name.
const UnnamedRoutes = config.UnnamedRoutes

// Default is the configuration with every key that has a default.
func Default() Config { return config.Default() }

// Parse reads a configuration from JSON over the defaults, and validates it.
func Parse(text []byte) (Config, error) { return config.Parse(text) }

// ParseWith is Parse where the configuration has further sections.
func ParseWith(text []byte, more ...Section) (Config, error) { return config.ParseWith(text, more...) }

// New returns a guard on the worker, whose shared figures it sets to those of the configuration.
// The configuration must be valid. Streams of guards that were there before go on.
func New(c config.Config, w *Worker) (g *Guard, changed string) {
	g = &Guard{config: c, worker: w, exemptions: exemptionsOf(c.Exempt)}
	switch by := c.Fairness.By; by {
	case config.ByNone:
	case config.ByRoute:
		g.by = Host.Route
	case config.ByCluster:
		g.by = Host.Cluster
	case config.ByVirtualHost:
		g.by = Host.VirtualHost
	case config.BySource:
		g.by = Host.Source
	default:
		g.header = strings.ToLower(strings.TrimPrefix(by, config.ByHeader)) // as Envoy has it
		g.by = func(h Host) string { return h.Header(g.header) }
	}
	for _, k := range w.keys.All() {
		if k.Name.By == c.Fairness.By {
			k.Weight = c.Fairness.Weight(k.Name)
		}
	}
	w.guards = append(w.guards, g)
	w.keepPlaces()
	return g, w.Use(&c)
}

// Retire says that no more requests come to the guard: its configuration has gone. Those that are
// there go on.
func (g *Guard) Retire() {
	w := g.worker
	w.guards = slices.DeleteFunc(w.guards, func(other *Guard) bool { return other == g })
	w.keepPlaces()
}

// Disarm has all that is decided from now on be counted alone, of the requests that are there too,
// as in mode observe. Those that wait are not let go by it: see Release.
func (g *Guard) Disarm() { g.config.Mode = config.Observe }

// Config is the guard's configuration.
func (g *Guard) Config() *config.Config { return &g.config }

// KeyHeader is the header by which requests are told apart, in lower case; empty if it is something
// else.
func (g *Guard) KeyHeader() string { return g.header }

// Worker is the worker that the guard is on.
func (g *Guard) Worker() *Worker { return g.worker }

// Use puts the parts of a configuration in force that all plugins share, and returns what that
// changes, such as "budget.limit 200MiB → 150MiB"; empty if nothing, or if it is the first.
func (w *Worker) Use(c *config.Config) (changed string) {
	changed = w.set(c)
	w.account.SetLimits(c.Limits())
	return changed
}

// Memory says where readings come from.
func (w *Worker) Memory() config.Memory { return w.memory }

// keepPlaces has the keys that the guards' weights name keep their places, whatever names clients
// make up.
func (w *Worker) keepPlaces() {
	names := map[fairness.Name]bool{}
	for _, g := range w.guards {
		for name := range g.config.Fairness.Weights {
			names[fairness.Name{By: g.config.Fairness.By, Value: name}] = true
		}
	}
	w.keys.Name(names)
}
