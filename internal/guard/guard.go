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
//	guard.go       Guard and its configuration, Host, verdicts, who is exempt
//	admission.go   a request is opened and judged; presumed ones; what Envoy may hold of it while it
//	               is paused (pauseCap, cost); large ones while shedding is futile
//	queue.go       it waits, is resumed, or is rejected: whether it gets an answer with Retry-After
//	               (the rule is in retryafter), and which connections a tick may close (claimCut)
//	response.go    what its response will come to: at the request (predict), and at its headers
//	               (forecastResponse); probes, and when growth ends a stream (grow)
//	stream.go      its states, what each transition books (rejectUnread), and shadows (mode observe)
//	trial.go       what a connection has to show before its first request has begun
//	connection.go  connections: which are admitted, and closed as idle; and who is evicted (evict),
//	               for what ended responses left unread is evicted with them
//	keys.go        whose it is: shares of keys, what each is known to bring, how many connections
//	worker.go      Worker, what a tick does in which order, when the next is due (pace), metrics
//	readings.go    readings: what is in one, when we are blind; who asks is in budget (poller), and
//	               how often in polling
//	raw.go         raw TCP: what a connection holds that no HTTP filter sees, and which are refused
//	trace.go       samples at high-water marks
//
// Leaves know nothing of a worker: config, forecast, idle, linger (what rejected requests leave
// unread, and until when), polling, retryafter, coverage (what a filter tells).
package guard

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
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
	config config.Config
	worker *Worker
	by     func(Host) string // tells requests apart; nil = they are not
	header string            // if it is one by which they are

	exemptions exemptions
}

// Verdict is what a request is told: see package verdict.
type Verdict = verdict.Verdict

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
	// HeaderBytes is the size of the request's headers, 0 if it can't be told. It is asked at the
	// headers, where much has come.
	HeaderBytes() int64
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

// policy is what all plugins of a process have in common, and is in force in all of it: the plugin
// that started last sets it. The zero value is that before any has started.
type policy struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	inForce   bool
	enforcing bool // verdicts are carried out on a listener at least: see SetEnforcing
	budget    config.Budget
	throttle  config.Throttle
	memory    config.Memory
	trace     config.Trace
	reject    config.RetryAfter
	linger    unit.Duration
	evicts    bool
	limits    *budget.Limits // what budget comes to, as the account has it
}

// shared are the same figures under the keys that they have in a configuration.
type shared struct {
	Budget     config.Budget     `json:"budget"`
	Throttle   config.Throttle   `json:"throttle"`
	Memory     config.Memory     `json:"memory"`
	Trace      config.Trace      `json:"trace"`
	RetryAfter config.RetryAfter `json:"reject.retry_after"`
	Linger     unit.Duration     `json:"buffers.linger"`
	Evict      bool              `json:"evict"`
}

func (p *policy) shared() shared {
	return shared{p.budget, p.throttle, p.memory, p.trace, p.reject, p.linger, p.evicts}
}

// set puts a configuration's part of it in force, and returns what that changes.
func (p *policy) set(c *config.Config) (changed string) {
	was, before := p.shared(), p.inForce
	p.inForce = true
	p.budget, p.throttle, p.memory, p.trace = c.Budget, c.Throttle, c.Memory, c.Trace
	p.reject, p.linger, p.evicts = c.Reject.RetryAfter, c.Buffers.Linger, c.Evict
	if is := p.shared(); before && was != is {
		changed = differences(&was, &is)
	}
	return changed
}

// Use puts the parts of a configuration in force that all plugins share, and returns what that
// changes, such as "budget.limit 200MiB → 150MiB"; empty if nothing, or if it is the first.
func (w *Worker) Use(c *config.Config) (changed string) {
	changed = w.set(c)
	w.account.SetLimits(c.Limits())
	return changed
}

// Memory says where readings come from.
func (w *Worker) Memory() config.Memory { return w.memory }

// differences lists what is not the same, such as "budget.limit 200MiB → 150MiB, evict true →
// false".
func differences(was, is *shared) string {
	var all []string
	compareFields("", reflect.ValueOf(was).Elem(), reflect.ValueOf(is).Elem(), &all)
	return strings.Join(all, ", ")
}

func compareFields(path string, was, is reflect.Value, all *[]string) {
	for i := range was.NumField() {
		key, _, _ := strings.Cut(was.Type().Field(i).Tag.Get("json"), ",")
		a, b := was.Field(i), is.Field(i)
		if _, text := a.Interface().(fmt.Stringer); a.Kind() == reflect.Struct && !text {
			compareFields(path+key+".", a, b, all)
		} else if x, y := fmt.Sprint(a.Interface()), fmt.Sprint(b.Interface()); x != y {
			*all = append(*all, fmt.Sprintf("%s%s %s → %s", path, key, orNone(x), orNone(y)))
		}
	}
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// exemption says how far a request is exempt.
type exemption uint8

const (
	judged exemption = iota // it is not
	// whileSmall: a path is what the client says. So it exempts only a request and a response of at
	// most budget.small each.
	whileSmall
	// always: the operator's own routing decides, and the size does not matter.
	always
)

// exemptions are the rules of exempt, ready to be asked.
type exemptions struct {
	paths    []string // prefixes; a grpc_service is /package.Service/
	routes   []string
	clusters []string
}

func exemptionsOf(rules []config.Exempt) (x exemptions) {
	for i := range rules {
		switch e := &rules[i]; {
		case e.PathPrefix != "":
			x.paths = append(x.paths, e.PathPrefix)
		case e.Route != "":
			x.routes = append(x.routes, e.Route)
		case e.Cluster != "":
			x.clusters = append(x.clusters, e.Cluster)
		default:
			x.paths = append(x.paths, "/"+e.GRPCService+"/")
		}
	}
	return x
}

// exempts says how far a request is exempt that announces so many bytes. Each kind of rule costs
// one call of the host.
func (g *Guard) exempts(h Host, length int64) exemption {
	x := &g.exemptions
	switch {
	case len(x.routes) > 0 && slices.Contains(x.routes, h.Route()), len(x.clusters) > 0 && slices.Contains(x.clusters, h.Cluster()):
		return always
	case len(x.paths) == 0, length > int64(g.worker.budget.Small):
		return judged
	case length == budget.Unknown && h.Visibility(budget.Request) != budget.Counted: // when it has brought more than small, nobody would know
		return judged
	case config.AnyPrefix(x.paths, h.Path()):
		return whileSmall
	}
	return judged
}

// mayExempt says that a request whose first n bytes come at once may be exempt.
func (g *Guard) mayExempt(n int64) bool {
	x := &g.exemptions
	// Headers come with the body: half of n may be theirs.
	return len(x.routes)+len(x.clusters) > 0 || len(x.paths) > 0 && int64(g.worker.budget.Small) >= n/2
}

// What both faces read and answer alike, in terms of HTTP.
