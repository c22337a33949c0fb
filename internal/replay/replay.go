// Package replay puts a load that was recorded in front of the policy, on the model of Envoy: what
// would a guard have done, and what is the smallest limit that rejects nobody?
//
// The policy is the very one, native or compiled. What Envoy would have held is package sim's
// model, for what the recording says of each request. It is deterministic: the same recording and
// configuration give the same result.
package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/chart"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/recording"
	"github.com/highwater-envoy/highwater/internal/sim"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/wasmhost"
)

// Options are the same for all variants.
type Options struct {
	Machine Machine
	Back    Back
	Headers []string         // those that the recording has, in its order: see Headers
	Module  *wasmhost.Module // the compiled plugin; nil = the native guard
	Seed    uint64           // of the model's randomness: which worker has a connection, how late readings are
}

// Variant is one of the configurations that are compared.
type Variant struct {
	Name   string
	Config *guard.Config // nil = no guard
	Envoy  Envoy
	By     string // of no guard: by what requests are told apart in the report
}

// Result is what came of a variant.
type Result struct {
	Name      string        `json:"name"`
	Limit     unit.Bytes    `json:"limit"` // 0 = no guard
	Peak      unit.Bytes    `json:"peak"`  // in use
	Allocated unit.Bytes    `json:"peak_allocated"`
	By        string        `json:"by"`
	Span      unit.Duration `json:"span"`
	All       Counts        `json:"all"`
	Keys      []OfKey       `json:"keys"` // those that lost most first
	Late      int64         `json:"late"` // requests that were not made by the end of the recording
	Series    chart.Series  `json:"-"`
}

// drain is how long requests that are under way at the end of the recording may take to finish.
const drain = 10 * time.Second

// Headers are the request headers that a replay under the variants asks for.
func Headers(variants []Variant) (headers []string) {
	seen := map[string]bool{}
	for _, v := range variants {
		name, ok := strings.CutPrefix(v.by(), config.ByHeader)
		if ok && !seen[name] {
			seen[name] = true
			headers = append(headers, name)
		}
	}
	return headers
}

func (v *Variant) by() string {
	if v.Config != nil {
		return v.Config.Fairness.By
	}
	return v.By
}

// Run replays a recording under one variant. progress is told how far it is, from 0 to 1; nil =
// nobody wants to know.
func Run(ctx context.Context, r *recording.Recording, v Variant, o Options, progress func(share float64)) (*Result, error) {
	res, _, err := run(ctx, r, v, o, progress, false)
	return res, err
}

// run is Run, which ends at the first loss if it is so told.
func run(ctx context.Context, r *recording.Recording, v Variant, o Options, progress func(share float64), untilLost bool) (*Result, bool, error) {
	settings := v.Envoy.settings(o.Machine)
	shape := &shaper{Settings: settings, busy: &busy{bytes: []float64{0}, step: time.Hour, most: 1}}
	if r.Groups == nil {
		var err error
		if shape.busy, err = busyOf(r, settings); err != nil {
			return nil, false, err
		}
	}
	t := newTally()
	p, err := newPlayer(r, shape, &o, v.by(), t)
	if err != nil {
		return nil, false, err
	}
	lost := false
	if untilLost {
		t.lost = func() { lost, p.enough = true, true }
	}
	t.seen = func(at time.Duration) {
		if progress != nil {
			progress(min(float64(at)/float64(max(r.Span, 1)), 1))
		}
	}
	p.stop = func() bool { return ctx.Err() != nil }

	var limit unit.Bytes
	if v.Config != nil {
		limit = v.Config.Budget.Limit.Bytes
	}
	e := sim.New(settings, int64(limit), o.Seed+1)
	done, err := use(e, v, o, settings.Workers)
	if err != nil {
		return nil, false, err
	}
	report := e.Run(sim.Load{Name: v.Name, Duration: max(r.Span, time.Millisecond), Drain: drain, Source: p})
	if err := errors.Join(done(), p.err, ctx.Err()); err != nil {
		return nil, false, fmt.Errorf("%s: %w", v.Name, err)
	}
	res := &Result{
		Name: v.Name, Limit: limit, Peak: unit.Bytes(report.Peak), Allocated: unit.Bytes(report.PeakAllocated), By: v.by(), Span: unit.Duration(r.Span),
		Series: t.series,
	}
	res.All, res.Keys = t.finish(r.Span)
	if r.Groups == nil {
		res.Late = r.Requests - p.begun()
	}
	return res, lost, nil
}

// use puts the variant's guard into the request path.
func use(e *sim.Envoy, v Variant, o Options, workers int) (done func() error, err error) {
	switch {
	case v.Config == nil:
		return func() error { return nil }, nil
	case o.Module == nil:
		n, err := sim.NewNative(e, *v.Config, workers)
		if err != nil {
			return nil, err
		}
		e.Use(n)
		return func() error { return nil }, nil
	}
	text, err := json.Marshal(v.Config)
	if err != nil {
		return nil, err
	}
	c, err := sim.NewCompiled(e, o.Module, string(text), workers)
	if err != nil {
		return nil, err
	}
	e.Use(c)
	return func() error { c.Close(); return c.Err() }, nil
}
