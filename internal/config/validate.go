package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// checker notes what is wrong where ok is false; the text begins with the key.
type checker func(ok bool, format string, args ...any)

// Validate returns all that is wrong with the configuration, joined; each error begins with the
// key.
func (c *Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.Mode == Enforce || c.Mode == Observe, "mode: %q must be enforce or observe", c.Mode)
	check(c.TCP == Enforce || c.TCP == Observe, "tcp: %q must be enforce or observe", c.TCP)
	c.Budget.validate(check)
	c.Buffers.validate(check)
	c.Costs.validate(check)
	c.Fairness.validate(check)
	for i := range c.Exempt {
		c.Exempt[i].validate(fmt.Sprintf("exempt[%d]", i), check)
	}
	c.Throttle.validate(check)
	c.Reject.validate(check)
	c.Memory.validate(check)
	c.Trace.validate(check)
	c.Debug.validate(check)
	return errors.Join(errs...)
}

func (b *Budget) validate(check checker) {
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
}

func (b *Buffers) validate(check checker) {
	for _, f := range []struct {
		key string
		v   unit.Bytes
	}{
		{"downstream", b.Downstream},
		{"upstream", b.Upstream},
		{"http2_window", b.HTTP2Window},
		{"http2_connection_window", b.HTTP2ConnectionWindow},
	} {
		check(f.v >= unit.KiB && f.v <= 2*unit.GiB, "buffers.%s: %v must be from 1KiB to 2GiB: what Envoy is set to", f.key, f.v)
	}
	check(b.HTTP2ConnectionWindow >= b.HTTP2Window, "buffers.http2_connection_window: %v must be at least buffers.http2_window (%v)", b.HTTP2ConnectionWindow, b.HTTP2Window)
	check(b.Linger <= unit.Duration(time.Minute), "buffers.linger: %v must be at most 1m", b.Linger)
	check(b.WholeRequest == 0 || b.WholeRequest >= unit.KiB && b.WholeRequest <= 4*unit.GiB, "buffers.whole_request: %v must be 0 or from 1KiB to 4GiB: the max_request_bytes of a buffer filter", b.WholeRequest)
}

func (c *Costs) validate(check checker) {
	for _, f := range []struct {
		key string
		v   unit.Bytes
	}{{"stream", c.Stream}, {"connection", c.Connection}, {"tls_connection", c.TLSConnection}} {
		check(f.v <= 16*unit.MiB, "costs.%s: %v must be at most 16MiB", f.key, f.v)
	}
}

// headerRunes are what a header's name is made of (RFC 9110, 5.6.2).
const headerRunes = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

func (f *Fairness) validate(check checker) {
	switch header, ok := strings.CutPrefix(f.By, ByHeader); {
	case ok:
		check(header != "" && strings.Trim(header, headerRunes) == "", "fairness.by: %q must name a header behind \"header:\", such as header:x-tenant", f.By)
	default:
		check(slices.Contains([]string{ByNone, ByRoute, ByCluster, ByVirtualHost, BySource}, f.By),
			"fairness.by: %q must be none, route, cluster, virtual_host, source or header:<name>", f.By)
	}
	check(f.By != ByNone || len(f.Weights) == 0, "fairness.weights: there are no keys to weigh where fairness.by is none; say by what requests are told apart, such as route")
	check(len(f.Weights) <= fairness.MaxNamed, "fairness.weights: %d names are more than %d: of %d keys that are told apart some must be left for all "+
		"that have no name here; name those that matter most", len(f.Weights), fairness.MaxNamed, fairness.MaxKeys)
	sum := 0.0
	for _, name := range keys(f.Weights) {
		weight := f.Weights[name]
		check(weight >= 0 && weight <= fairness.MaxWeight, "fairness.weights.%s: %v must be from 0 to %v", name, weight, fairness.MaxWeight)
		check(len(name) <= fairness.MaxName, "fairness.weights: a name of %d bytes is longer than %d, which is all of it that is looked at", len(name), fairness.MaxName)
		sum += weight
	}
	check(len(f.Weights) == 0 || sum != 0, "fairness.weights: they sum to 0: give at least one key a weight above 0")
}

func (t *Throttle) validate(check checker) {
	check(t.Queue >= 0 && t.Queue <= 1<<20, "throttle.queue: %d must be from 0 to %d", t.Queue, 1<<20)
	check(t.Timeout <= unit.Duration(5*time.Minute), "throttle.timeout: %v must be at most 5m", t.Timeout)
}

func (r *Reject) validate(check checker) {
	check(r.Status >= 400 && r.Status <= 599, "reject.status: %d must be from 400 to 599", r.Status)
	check(r.RetryAfter.Min <= r.RetryAfter.Max, "reject.retry_after.min: %v must be at most reject.retry_after.max (%v)", r.RetryAfter.Min, r.RetryAfter.Max)
	check(r.RetryAfter.Max >= unit.Duration(time.Second) && r.RetryAfter.Max <= unit.Duration(time.Hour), "reject.retry_after.max: %v must be from 1s to 1h", r.RetryAfter.Max)
	check(len(r.Body) <= 64<<10, "reject.body: %d bytes are more than 64KiB", len(r.Body))
}

func (m *Memory) validate(check checker) {
	check(m.Cluster != "", "memory.cluster: must name the cluster of Envoy's admin interface")
	check(strings.HasPrefix(m.Path, "/"), "memory.path: %q must begin with /", m.Path)
	check(m.Interval >= unit.Duration(5*time.Millisecond) && m.Interval <= unit.Duration(500*time.Millisecond), "memory.interval: %v must be from 5ms to 500ms: without a reading for 1s there is none", m.Interval)
	check(m.IdleInterval >= m.Interval && m.IdleInterval <= unit.Duration(500*time.Millisecond), "memory.idle_interval: %v must be from memory.interval (%v) to 500ms", m.IdleInterval, m.Interval)
	_, ok := onStale[m.OnStale]
	check(ok, "memory.on_stale: %q must be estimate, admit or reject", m.OnStale)
}

const (
	maxCapacity = 4096
	maxKeep     = reservoir.MaxKeep
	maxPath     = 256
)

func (t *Trace) validate(check checker) {
	check(t.Every >= unit.KiB && t.Every <= unit.GiB, "trace.every: %v must be from 1KiB to 1GiB", t.Every)
	check(t.Capacity >= 0 && t.Capacity <= maxCapacity, "trace.capacity: %d must be from 0 (nothing is sampled) to %d", t.Capacity, maxCapacity)
	check(t.Step > 0 && t.Step <= 1, "trace.step: %v must be above 0%% and at most 100%%: each mark freezes all samples", t.Step)
	check(t.Floor >= unit.MiB && t.Floor <= unit.TiB, "trace.floor: %v must be from 1MiB to 1TiB", t.Floor)
	check(t.Keep >= 1 && t.Keep <= maxKeep, "trace.keep: %d must be from 1 to %d: each takes Envoy up to 64KiB per worker", t.Keep, maxKeep)
}

func (d *Debug) validate(check checker) {
	check(d.Path == "" || len(d.Path) > 1 && len(d.Path) <= maxPath && d.Path[0] == '/' && d.Path[len(d.Path)-1] != '/' && !strings.ContainsFunc(d.Path, notInPath),
		"debug.path: %q must be a path such as /highwater, without a slash at its end, ? or #", d.Path)
}

func notInPath(r rune) bool { return r <= ' ' || r >= 0x7f || r == '?' || r == '#' || r == '%' }

func (e *Exempt) validate(at string, check checker) {
	set := 0
	for _, s := range []string{e.PathPrefix, e.Route, e.Cluster, e.GRPCService} {
		if s != "" {
			set++
		}
	}
	check(set == 1, "%s: must have exactly one of path_prefix, route, cluster, grpc_service, and it must not be empty", at)
	switch path := e.PathPrefix; {
	case path == "":
	case path[0] != '/':
		check(false, "%s.path_prefix: %q must begin with /", at, path)
	case strings.ContainsFunc(path, func(r rune) bool { return r < 0x80 && endsPath(byte(r)) }):
		check(false, "%s.path_prefix: %q must end before the query: write the path alone, such as /healthz", at, path)
	default:
		check(plain(path), "%s.path_prefix: %q can match nothing, because a path is never exempt that has segments of dots, backslashes, "+
			"encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz", at, path)
	}
	if service := e.GRPCService; service != "" {
		check(!strings.ContainsAny(service, "/?#") && plain("/"+service), "%s.grpc_service: %q can match nothing; write package.Service, "+
			"without slashes and methods", at, service)
	}
}
