// Package config is a plugin's configuration: what it says, its defaults, how it is read, and what
// is wrong with it. What follows from it is the policy's.
package config

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Config is one plugin's configuration. Only Budget.Limit has no default.
type Config struct {
	Mode     Mode     `json:"mode"`
	Budget   Budget   `json:"budget"`
	Buffers  Buffers  `json:"buffers"`
	Costs    Costs    `json:"costs"`
	Fairness Fairness `json:"fairness"`
	Exempt   []Exempt `json:"exempt"`
	Throttle Throttle `json:"throttle"`
	Reject   Reject   `json:"reject"`
	Evict    bool     `json:"evict"` // whoever holds most has to go when memory is over the limit
	TCP      Mode     `json:"tcp"`   // whether raw connections are refused and closed, or counted alone
	Memory   Memory   `json:"memory"`
	Trace    Trace    `json:"trace"`
	Debug    Debug    `json:"debug"`
}

// Mode says whether verdicts are carried out.
type Mode string

// The modes.
const (
	Enforce Mode = "enforce"
	Observe Mode = "observe" // decide and count everything, do nothing
)

// Budget is what Envoy may use. All workers of a process share it.
type Budget struct {
	Limit  unit.Limit `json:"limit"`  // memory in use, or a share of the container's limit; required
	Soft   unit.Ratio `json:"soft"`   // shares of what traffic can have
	Hard   unit.Ratio `json:"hard"`   // no large request is admitted above it
	Resume unit.Ratio `json:"resume"` // below it the level is normal again
	Small  unit.Bytes `json:"small"`  // a request that brings no more is small
	Floor  unit.Ratio `json:"floor"`  // of the limit: what small requests have in any case
	// Connections is how many may be open, in all listeners with the network filter; 0 = no limit.
	Connections int `json:"connections"`
}

// Buffers repeats what the listener and the clusters are set to; the defaults are Envoy's. A figure
// that is too low makes the guard count too little.
type Buffers struct {
	Downstream            unit.Bytes    `json:"downstream"`              // listener per_connection_buffer_limit_bytes
	Upstream              unit.Bytes    `json:"upstream"`                // cluster per_connection_buffer_limit_bytes
	HTTP2Window           unit.Bytes    `json:"http2_window"`            // initial_stream_window_size
	HTTP2ConnectionWindow unit.Bytes    `json:"http2_connection_window"` // initial_connection_window_size
	Linger                unit.Duration `json:"linger"`                  // delayed_close_timeout
	WholeRequest          unit.Bytes    `json:"whole_request"`           // max_request_bytes of a buffer filter; 0 = none
}

// Costs is what the existence of a stream or a connection costs Envoy, without its bytes.
type Costs struct {
	Stream        unit.Bytes `json:"stream"`
	Connection    unit.Bytes `json:"connection"`
	TLSConnection unit.Bytes `json:"tls_connection"`
}

// TellsTLSApart says that it matters whether a connection has TLS.
func (c *Costs) TellsTLSApart() bool { return c.TLSConnection > c.Connection }

// Fairness says by what requests are told apart, so that who fills the memory waits, and not
// everybody.
type Fairness struct {
	By string `json:"by"` // none | route | cluster | virtual_host | source | header:<name>
	// Weights are by name of the key; one that is not named weighs 1. At most 64 keys are told
	// apart. Those that are named have their places among them, whatever names clients make up; so
	// no more than 48 may be.
	Weights map[string]float64 `json:"weights"`
}

const (
	ByNone        = "none"
	ByRoute       = "route"
	ByCluster     = "cluster"
	ByVirtualHost = "virtual_host"
	BySource      = "source"
	ByHeader      = "header:"
)

// Weight is what a key of this name weighs.
func (f *Fairness) Weight(n fairness.Name) float64 {
	if weight, ok := f.Weights[n.Value]; ok {
		return weight
	}
	return 1
}

// Exempt names requests that are never held back. Exactly one field is set.
//
// Route and cluster are decided by the operator's own routing: what goes there is exempt whatever
// its size. A path is what the client says. So PathPrefix and GRPCService exempt a request only
// while it and its response have each announced, and brought, at most budget.small; from then on it
// is judged, and evicted, like the others.
type Exempt struct {
	// PathPrefix matches whole segments: /healthz matches /healthz, /healthz/x and /healthz?q, and
	// not /healthzzz. One that ends with a slash matches what begins with it. The query is no part
	// of the path. A path that some upstream may take for another one matches nothing: with
	// segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not
	// printable ASCII.
	PathPrefix  string `json:"path_prefix,omitempty"`
	Route       string `json:"route,omitempty"`
	Cluster     string `json:"cluster,omitempty"`
	GRPCService string `json:"grpc_service,omitempty"` // package.Service: all of its methods, as /package.Service/ would
}

// Throttle bounds the queue. All workers of a process share it.
type Throttle struct {
	Queue   int           `json:"queue"`   // how many may wait; 0 = nobody waits
	Timeout unit.Duration `json:"timeout"` // who has waited for so long is rejected; 0 = nobody waits
}

// Reject is what a rejected client is told.
type Reject struct {
	Status     int        `json:"status"`
	RetryAfter RetryAfter `json:"retry_after"`
	Body       string     `json:"body"`
}

// RetryAfter bounds the delay that a rejected client is told.
type RetryAfter struct {
	Min unit.Duration `json:"min"`
	Max unit.Duration `json:"max"`
}

// Memory says where readings come from. All workers of a process share it.
type Memory struct {
	Cluster      string        `json:"cluster"`       // the filter: the cluster of Envoy's own admin interface
	URL          string        `json:"url,omitempty"` // the server: where that interface is
	Path         string        `json:"path"`          // answers as Envoy's /memory does
	Interval     unit.Duration `json:"interval"`      // while much is fresh or coming
	IdleInterval unit.Duration `json:"idle_interval"` // otherwise
	OnStale      string        `json:"on_stale"`      // estimate | admit | reject
}

// Trace says how the requests in flight are sampled, and when the sample is kept. All workers of a
// process share it.
type Trace struct {
	Every    unit.Bytes `json:"every"`    // of so many bytes one is sampled, as long as the sample has room
	Capacity int        `json:"capacity"` // requests in a worker's sample, at most; 0 = nothing is sampled
	Step     unit.Ratio `json:"step"`     // a high-water mark is so much higher than the last one
	Floor    unit.Bytes `json:"floor"`    // traffic must use so much more than before, else there is none
	Keep     int        `json:"keep"`     // so many peaks, and the highest of all beside
}

// Rules are by which marks are made.
func (t *Trace) Rules() reservoir.Rules {
	return reservoir.Rules{Step: float64(t.Step), Floor: int64(t.Floor), Keep: t.Keep}
}

// Debug is where questions are answered. Each listener answers by its own plugin's configuration
// alone.
type Debug struct {
	Path string `json:"path"` // status, peaks, current and pprof are below it; empty: nothing is answered
}

// Summary is what is worth to be told of a configuration when it comes into force, for people.
func (c *Config) Summary() string {
	b := &c.Buffers
	text := fmt.Sprintf("mode %s, limit %v, buffers: downstream %v, upstream %v, http2_window %v, http2_connection_window %v, linger %v",
		c.Mode, c.Budget.Limit, b.Downstream, b.Upstream, b.HTTP2Window, b.HTTP2ConnectionWindow, b.Linger)
	if b.WholeRequest > 0 {
		text += fmt.Sprintf(", whole_request %v", b.WholeRequest)
	}
	return text + ", fairness by " + c.Fairness.By
}

// UnnamedRoutes is to be told once where requests are told apart by routes, and one comes whose
// route has no name.
const UnnamedRoutes = "fairness.by is route, and a request came whose route has no name: all requests of such routes count as one. " +
	"Give each route a name, or set fairness.by to cluster or virtual_host"

// TellsRoutesApart says that requests are told apart by their routes.
func (c *Config) TellsRoutesApart() bool { return c.Fairness.By == ByRoute }

// From is whom readings are asked of, for people.
func (m *Memory) From() string {
	if m.URL != "" {
		return m.URL + m.Path
	}
	return fmt.Sprintf("cluster %q, path %q", m.Cluster, m.Path)
}

// Default is the configuration with every key that has a default.
func Default() Config {
	return Config{
		Mode: Enforce,
		Budget: Budget{
			Soft: 0.80, Hard: 0.90, Resume: 0.75, Small: 64 * unit.KiB, Floor: 0.05,
		},
		Buffers: Buffers{
			Downstream: unit.MiB, Upstream: unit.MiB, HTTP2Window: 16 * unit.MiB,
			HTTP2ConnectionWindow: 24 * unit.MiB, Linger: unit.Duration(time.Second),
		},
		Fairness: Fairness{By: ByRoute, Weights: map[string]float64{}},
		Exempt:   []Exempt{},
		Costs:    Costs{Stream: 30 * unit.KiB, Connection: 8 * unit.KiB, TLSConnection: 13 * unit.KiB},
		Throttle: Throttle{Queue: 1024, Timeout: unit.Duration(2 * time.Second)},
		Reject: Reject{Status: 503, RetryAfter: RetryAfter{
			Min: unit.Duration(time.Second), Max: unit.Duration(30 * time.Second),
		}},
		Evict: true, TCP: Enforce,
		Memory: Memory{
			Cluster: "envoy_admin", Path: "/memory", Interval: unit.Duration(25 * time.Millisecond),
			IdleInterval: unit.Duration(250 * time.Millisecond), OnStale: StaleEstimate,
		},
		Trace: Trace{Every: 256 * unit.KiB, Capacity: 512, Step: 0.05, Floor: 8 * unit.MiB, Keep: 8},
	}
}

const (
	StaleEstimate = "estimate"
	StaleAdmit    = "admit"
	StaleReject   = "reject"
)

var onStale = map[string]budget.OnStale{
	StaleEstimate: budget.StaleEstimate, StaleAdmit: budget.StaleAdmit, StaleReject: budget.StaleReject,
}

// Limits is what the account is told of it.
func (c *Config) Limits() budget.Limits {
	return budget.Limits{
		Limit: int64(c.Budget.Limit.Bytes), Share: float64(c.Budget.Limit.Share), Soft: float64(c.Budget.Soft), Hard: float64(c.Budget.Hard),
		Resume: float64(c.Budget.Resume), Small: int64(c.Budget.Small), Floor: float64(c.Budget.Floor),
		OnStale: onStale[c.Memory.OnStale], Evict: c.Evict, Connections: int64(c.Budget.Connections),
	}
}

// Meanwhile says what is done without readings.
func (m *Memory) Meanwhile() string {
	switch m.OnStale {
	case StaleAdmit:
		return "Everything is admitted meanwhile: memory.on_stale is admit."
	case StaleReject:
		return "Every request is rejected meanwhile: memory.on_stale is reject."
	}
	return "Memory is not bounded by readings meanwhile, but by what the requests in flight may hold: memory.on_stale is estimate."
}
