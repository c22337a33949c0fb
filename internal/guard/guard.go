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
//	  ├────────▶ queue                 Streams in line
//	  ├────────▶ rejects               Streams whose connections are to be closed
//	  └────────▶ key                   whose requests are: what it has and what it is known to bring
//	                ▲  ▲
//	       one each │  │ of the response that it holds unread, and of its source
//	Stream ─────────┘  └───────── Connection
//	  └─── was let in by one Guard; is on one Connection, where that is known ───▲
//
// Streams and Connections are the host's: it makes them, hands them in with each call, and says when
// they end. The account has a ring of the live ones.
package guard

import (
	"slices"
	"strings"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/reservoir"
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

// Guard applies one plugin's configuration to the streams of one worker.
type Guard struct {
	config Config
	worker *Worker
	by     func(Host) string // tells requests apart; nil = they are not
	header string            // if it is one by which they are

	exemptions exemptions
}

// New returns a guard on the worker, whose shared figures it sets to those of the configuration.
// The configuration must be valid. Streams of guards that were there before go on.
func New(c Config, w *Worker) (g *Guard, changed string) {
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
func (g *Guard) Disarm() { g.config.Mode = Observe }

// Config is the guard's configuration.
func (g *Guard) Config() *Config { return &g.config }

// KeyHeader is the header by which requests are told apart, in lower case; empty if it is something
// else.
func (g *Guard) KeyHeader() string { return g.header }

// Worker is the worker that the guard is on.
func (g *Guard) Worker() *Worker { return g.worker }

// Host answers what is needed of a request only now and then, because each answer is a call of the
// host. Names (of the route, the cluster, the virtual host, the source) are valid until the next
// such call: who keeps one clones it.
type Host interface {
	HTTP2() bool             // HTTP/2 or later
	Connection() *Connection // nil if it can't be told
	// Arrived is the connection whose bytes came last before the request's headers did, nil without
	// a network filter: no call. It is the request's own, unless a filter before this one held the
	// request back.
	Arrived() *Connection
	Path() string
	Route() string
	Cluster() string
	VirtualHost() string
	Source() string                    // address of the client, without its port
	Header(name string) (value string) // of the request; empty if it has none
	// Describe says whose the request is, of what is asked for at its first sample alone. header is
	// the request header that goes into Key, if it is not empty. What can't be told any more is
	// left empty. It may be called in a tick.
	Describe(header string) reservoir.Labels
	// Visibility says what will be told of the direction. It is asked at the headers of each, and
	// of a response at those of its request too.
	Visibility(d budget.Direction) budget.Visibility
}
