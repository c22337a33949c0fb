package guard

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
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
	byNone        = "none"
	byRoute       = "route"
	byCluster     = "cluster"
	byVirtualHost = "virtual_host"
	bySource      = "source"
	byHeader      = "header:"
)

// headerRunes are what a header's name is made of (RFC 9110, 5.6.2).
const headerRunes = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

func (f *Fairness) weight(n fairness.Name) float64 {
	if weight, ok := f.Weights[n.Value]; ok {
		return weight
	}
	return 1
}

func (f *Fairness) validate(check func(ok bool, format string, args ...any)) {
	switch header, ok := strings.CutPrefix(f.By, byHeader); {
	case ok:
		check(header != "" && strings.Trim(header, headerRunes) == "", "fairness.by: %q must name a header behind \"header:\", such as header:x-tenant", f.By)
	default:
		check(slices.Contains([]string{byNone, byRoute, byCluster, byVirtualHost, bySource}, f.By),
			"fairness.by: %q must be none, route, cluster, virtual_host, source or header:<name>", f.By)
	}
	check(f.By != byNone || len(f.Weights) == 0, "fairness.weights: there are no keys to weigh where fairness.by is none; say by what requests are told apart, such as route")
	check(len(f.Weights) <= fairness.MaxNamed, "fairness.weights: %d names are more than %d: of %d keys that are told apart some must be left for all "+
		"that have no name here; name those that matter most", len(f.Weights), fairness.MaxNamed, fairness.MaxKeys)
	sum := 0.0
	for _, name := range slices.Sorted(maps.Keys(f.Weights)) {
		weight := f.Weights[name]
		check(weight >= 0 && weight <= fairness.MaxWeight, "fairness.weights.%s: %v must be from 0 to %v", name, weight, fairness.MaxWeight)
		check(len(name) <= maxName, "fairness.weights: a name of %d bytes is longer than %d, which is all of it that is looked at", len(name), maxName)
		sum += weight
	}
	check(len(f.Weights) == 0 || sum != 0, "fairness.weights: they sum to 0: give at least one key a weight above 0")
}

// Exempt names requests that are never held back. Exactly one field is set.
//
// Route and cluster are decided by the operator's own routing: what goes there is exempt whatever its size. A path is what the
// client says. So PathPrefix and GRPCService exempt a request only while it and its response have each announced, and brought, at
// most budget.small; from then on it is judged, and evicted, like the others.
type Exempt struct {
	// PathPrefix matches whole segments: /healthz matches /healthz, /healthz/x and /healthz?q, and not /healthzzz. One that ends
	// with a slash matches what begins with it. The query is no part of the path. A path that some upstream may take for another
	// one matches nothing: with segments of dots, backslashes, encoded slashes, backslashes or percent signs, or what is not
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

// Trace says how the requests in flight are sampled, and when the sample is kept. All workers of a process share it.
type Trace struct {
	Every    unit.Bytes `json:"every"`    // of so many bytes one is sampled, as long as the sample has room
	Capacity int        `json:"capacity"` // requests in a worker's sample, at most; 0 = nothing is sampled
	Step     unit.Ratio `json:"step"`     // a high-water mark is so much higher than the last one
	Floor    unit.Bytes `json:"floor"`    // traffic must use so much more than before, else there is none
	Keep     int        `json:"keep"`     // so many peaks, and the highest of all beside
}

func (t *Trace) validate(check func(ok bool, format string, args ...any)) {
	check(t.Every >= unit.KiB && t.Every <= unit.GiB, "trace.every: %v must be from 1KiB to 1GiB", t.Every)
	check(t.Capacity >= 0 && t.Capacity <= maxCapacity, "trace.capacity: %d must be from 0 (nothing is sampled) to %d", t.Capacity, maxCapacity)
	check(t.Step > 0 && t.Step <= 1, "trace.step: %v must be above 0%% and at most 100%%: each mark freezes all samples", t.Step)
	check(t.Floor >= unit.MiB && t.Floor <= unit.TiB, "trace.floor: %v must be from 1MiB to 1TiB", t.Floor)
	check(t.Keep >= 1 && t.Keep <= maxKeep, "trace.keep: %d must be from 1 to %d: each takes Envoy up to 64KiB per worker", t.Keep, maxKeep)
}

func (t *Trace) rules() reservoir.Rules {
	return reservoir.Rules{Step: float64(t.Step), Floor: int64(t.Floor), Keep: t.Keep}
}

const (
	maxCapacity = 4096
	maxKeep     = reservoir.MaxKeep
	maxPath     = 256
)

// Debug is where questions are answered. Each listener answers by its own plugin's configuration alone.
type Debug struct {
	Path string `json:"path"` // status, peaks, current and pprof are below it; empty: nothing is answered
}

func (d *Debug) validate(check func(ok bool, format string, args ...any)) {
	check(d.Path == "" || len(d.Path) > 1 && len(d.Path) <= maxPath && d.Path[0] == '/' && d.Path[len(d.Path)-1] != '/' && !strings.ContainsFunc(d.Path, notInPath),
		"debug.path: %q must be a path such as /highwater, without a slash at its end, ? or #", d.Path)
}

func notInPath(r rune) bool { return r <= ' ' || r >= 0x7f || r == '?' || r == '#' || r == '%' }

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

// UnnamedRoutes is to be told once where requests are told apart by routes, and one comes whose route has no name.
const UnnamedRoutes = "fairness.by is route, and a request came whose route has no name: all requests of such routes count as one. " +
	"Give each route a name, or set fairness.by to cluster or virtual_host"

// TellsRoutesApart says that requests are told apart by their routes.
func (c *Config) TellsRoutesApart() bool { return c.Fairness.By == byRoute }

// from is whom readings are asked of, for people.
func (m *Memory) from() string {
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
		Fairness: Fairness{By: byRoute, Weights: map[string]float64{}},
		Exempt:   []Exempt{},
		Costs:    Costs{Stream: 30 * unit.KiB, Connection: 8 * unit.KiB, TLSConnection: 13 * unit.KiB},
		Throttle: Throttle{Queue: 1024, Timeout: unit.Duration(2 * time.Second)},
		Reject: Reject{Status: 503, RetryAfter: RetryAfter{
			Min: unit.Duration(time.Second), Max: unit.Duration(30 * time.Second),
		}},
		Evict: true,
		Memory: Memory{
			Cluster: "envoy_admin", Path: "/memory", Interval: unit.Duration(25 * time.Millisecond),
			IdleInterval: unit.Duration(250 * time.Millisecond), OnStale: staleEstimate,
		},
		Trace: Trace{Every: 256 * unit.KiB, Capacity: 512, Step: 0.05, Floor: 8 * unit.MiB, Keep: 8},
	}
}

const (
	staleEstimate = "estimate"
	staleAdmit    = "admit"
	staleReject   = "reject"
)

var onStale = map[string]budget.OnStale{
	staleEstimate: budget.StaleEstimate, staleAdmit: budget.StaleAdmit, staleReject: budget.StaleReject,
}

// Validate returns all that is wrong with the configuration, joined; each error begins with the key.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Mode == Enforce || c.Mode == Observe, "mode: %q must be enforce or observe", c.Mode)

	b := &c.Budget
	check(b.Limit != unit.Limit{}, "budget.limit: required: the memory that Envoy may use, such as 512MiB")
	limit := b.Limit.Bytes // 0 = a share of what is not known yet
	check(limit == 0 || limit >= 32*unit.MiB, "budget.limit: %v must be at least 32MiB: an idle Envoy uses some 10MiB", limit)
	check(limit < budget.Unlimited, "budget.limit: %v must be below %v: no memory is so large", limit, unit.Bytes(budget.Unlimited))
	check(b.Limit.Share <= 1, "budget.limit: %v must be at most 100%% of the container's limit", b.Limit)
	check(b.Hard > 0 && b.Hard <= 1, "budget.hard: %v must be above 0%% and at most 100%%", b.Hard)
	check(b.Soft > 0 && b.Soft < b.Hard, "budget.soft: %v must be above 0%% and below budget.hard (%v)", b.Soft, b.Hard)
	check(b.Resume > 0 && b.Resume < b.Soft, "budget.resume: %v must be above 0%% and below budget.soft (%v)", b.Resume, b.Soft)
	check(b.Floor >= 0 && b.Floor <= 0.5, "budget.floor: %v must be at most 50%%: it may exceed the limit", b.Floor)
	check(limit == 0 || b.Small <= limit/16, "budget.small: %v must be at most a sixteenth of budget.limit (%v)", b.Small, limit/16)
	check(b.Small <= unit.GiB, "budget.small: %v must be at most 1GiB", b.Small)
	check(b.Connections >= 0 && b.Connections <= 1<<24, "budget.connections: %d must be from 0 (no limit) to %d", b.Connections, 1<<24)

	u := &c.Buffers
	for _, f := range []struct {
		key string
		v   unit.Bytes
	}{
		{"downstream", u.Downstream},
		{"upstream", u.Upstream},
		{"http2_window", u.HTTP2Window},
		{"http2_connection_window", u.HTTP2ConnectionWindow},
	} {
		check(f.v >= unit.KiB && f.v <= 2*unit.GiB, "buffers.%s: %v must be from 1KiB to 2GiB: what Envoy is set to", f.key, f.v)
	}
	check(u.HTTP2ConnectionWindow >= u.HTTP2Window, "buffers.http2_connection_window: %v must be at least buffers.http2_window (%v)", u.HTTP2ConnectionWindow, u.HTTP2Window)
	check(u.Linger <= unit.Duration(time.Minute), "buffers.linger: %v must be at most 1m", u.Linger)
	check(u.WholeRequest == 0 || u.WholeRequest >= unit.KiB && u.WholeRequest <= 4*unit.GiB, "buffers.whole_request: %v must be 0 or from 1KiB to 4GiB: the max_request_bytes of a buffer filter", u.WholeRequest)

	for _, f := range []struct {
		key string
		v   unit.Bytes
	}{{"stream", c.Costs.Stream}, {"connection", c.Costs.Connection}, {"tls_connection", c.Costs.TLSConnection}} {
		check(f.v <= 16*unit.MiB, "costs.%s: %v must be at most 16MiB", f.key, f.v)
	}
	c.Fairness.validate(check)
	for i := range c.Exempt {
		c.Exempt[i].validate(fmt.Sprintf("exempt[%d]", i), check)
	}
	check(c.Throttle.Queue >= 0 && c.Throttle.Queue <= 1<<20, "throttle.queue: %d must be from 0 to %d", c.Throttle.Queue, 1<<20)
	check(c.Throttle.Timeout <= unit.Duration(5*time.Minute), "throttle.timeout: %v must be at most 5m", c.Throttle.Timeout)

	r := &c.Reject
	check(r.Status >= 400 && r.Status <= 599, "reject.status: %d must be from 400 to 599", r.Status)
	check(r.RetryAfter.Min <= r.RetryAfter.Max, "reject.retry_after.min: %v must be at most reject.retry_after.max (%v)", r.RetryAfter.Min, r.RetryAfter.Max)
	check(r.RetryAfter.Max >= unit.Duration(time.Second) && r.RetryAfter.Max <= unit.Duration(time.Hour), "reject.retry_after.max: %v must be from 1s to 1h", r.RetryAfter.Max)
	check(len(r.Body) <= 64<<10, "reject.body: %d bytes are more than 64KiB", len(r.Body))

	m := &c.Memory
	check(m.Cluster != "", "memory.cluster: must name the cluster of Envoy's admin interface")
	check(strings.HasPrefix(m.Path, "/"), "memory.path: %q must begin with /", m.Path)
	check(m.Interval >= unit.Duration(5*time.Millisecond) && m.Interval <= unit.Duration(500*time.Millisecond), "memory.interval: %v must be from 5ms to 500ms: without a reading for 1s there is none", m.Interval)
	check(m.IdleInterval >= m.Interval && m.IdleInterval <= unit.Duration(500*time.Millisecond), "memory.idle_interval: %v must be from memory.interval (%v) to 500ms", m.IdleInterval, m.Interval)
	_, ok := onStale[m.OnStale]
	check(ok, "memory.on_stale: %q must be estimate, admit or reject", m.OnStale)
	c.Trace.validate(check)
	c.Debug.validate(check)
	return errors.Join(errs...)
}

func (c *Config) limits() budget.Limits {
	return budget.Limits{
		Limit: int64(c.Budget.Limit.Bytes), Share: float64(c.Budget.Limit.Share), Soft: float64(c.Budget.Soft), Hard: float64(c.Budget.Hard),
		Resume: float64(c.Budget.Resume), Small: int64(c.Budget.Small), Floor: float64(c.Budget.Floor),
		OnStale: onStale[c.Memory.OnStale], Evict: c.Evict, Connections: int64(c.Budget.Connections),
	}
}
