package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/highwater-envoy/highwater/bench/internal/apart"
	"github.com/highwater-envoy/highwater/bench/internal/figures"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// The guards that a flood is run with.
const (
	none      = "none"
	overload  = "overload"
	highwater = "highwater" // the plugin
	extproc   = "extproc"   // the ext_proc server
	module    = "module"    // the dynamic module
)

// faces are Highwater's among them.
var faces = map[string]envoytest.Face{highwater: envoytest.Filter, extproc: envoytest.ExtProc, module: envoytest.Module}

// ours says that a guard is one of Highwater's faces.
func ours(guard string) bool { _, ok := faces[guard]; return ok }

// options are the flags that every run shares.
type options struct {
	duration    time.Duration
	limit       unit.Bytes // the budget
	small       int        // small requests a second
	reconnect   bool       // each of those comes on a new connection
	concurrency int
	wasm        string
	cgroup      unit.Bytes // 0: in none of its own
	predicts    bool       // the results are for a prediction
	speed       float64    // of the model's cores
	log         string     // where Envoy writes its access log for a replay; empty: nowhere
}

// result is what came of one run.
type result struct {
	Flood string `json:"flood"`
	Guard string `json:"guard"`
	Run   int    `json:"run"`

	LimitBytes    int64              `json:"limit_bytes"`
	PeakAllocated int64              `json:"peak_allocated_bytes"`
	PeakInUse     int64              `json:"peak_in_use_bytes"`
	Samples       int                `json:"samples"`
	LongestUnseen time.Duration      `json:"longest_unseen_ns"` // the longest time between two samples
	Hogs          load.Snapshot      `json:"hogs"`
	Small         load.Snapshot      `json:"small"`
	DiedAfter     time.Duration      `json:"died_after_ns,omitempty"` // Envoy was gone before the flood was over
	OOMKilled     bool               `json:"oom_killed,omitempty"`
	CgroupPeak    int64              `json:"cgroup_peak_bytes,omitempty"`
	Recovered     time.Duration      `json:"recovered_ns,omitempty"`
	Verdicts      map[string]float64 `json:"verdicts,omitempty"`
	Drained       time.Duration      `json:"drained_ns,omitempty"`
	NotDrained    map[string]float64 `json:"not_drained,omitempty"`
	Before        int64              `json:"allocated_before_bytes,omitempty"` // when the flood began
	After         int64              `json:"allocated_after_bytes,omitempty"`  // when it had drained, or 3 s later
	Faults        []string           `json:"faults,omitempty"`                 // of the plugin, in Envoy's log

	Each       []load.Snapshot `json:"each,omitempty"`        // of the hogs' loads, if there are several
	SecondHalf []int64         `json:"second_half,omitempty"` // bytes that each of them was served in the second half
	Upstream   int64           `json:"upstream_requests"`     // of the hogs, that reached the upstream
	Quiet      load.Snapshot   `json:"quiet,omitzero"`
	QuietHeld  int             `json:"quiet_held,omitempty"` // verdicts on quiet requests
	QuietWaits int             `json:"quiet_waits,omitempty"`
	Over       *over           `json:"over,omitempty"`

	Admitted float64 `json:"admitted,omitempty"` // by the guard
	Idle     int64   `json:"idle_bytes"`         // in use before the flood
	Dump     []byte  `json:"dump,omitempty"`     // Envoy's configuration, for a prediction
}

const (
	sampleEvery  = 20 * time.Millisecond
	settle       = time.Second // from ready to the flood: the guard has its first readings, Envoy is quiet
	drainWithin  = 3 * time.Second
	giveUpOnFull = 10 * time.Second
	keeps        = 20 // of the limit, this part more than without a guard may still be allocated: pools and caches
	hardShare    = 90 // percent: budget.hard of the example
)

// run is one flood at one Envoy. An error is a run that says nothing; an Envoy that died under the
// flood is a result.
func run(ctx context.Context, f flood, guard string, o options) (*result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if f.limit > 0 {
		o.limit = f.limit
	}

	// The flood has a process and an upstream of its own: see package apart.
	hogs, err := apart.Start(loadCommand, f.name)
	if err != nil {
		return nil, err
	}
	defer hogs.Close()
	upstream, err := load.NewUpstream()
	if err != nil {
		return nil, err
	}
	defer upstream.Close()

	var group *envoytest.Cgroup
	if o.cgroup > 0 {
		if group, err = envoytest.NewCgroup(int64(o.cgroup)); err != nil {
			return nil, err
		}
		defer group.Remove()
	}
	var badRoute error
	dir, err := os.MkdirTemp("", "highwater-floods-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	log := filepath.Join(dir, "quiet.log")
	envoy, err := envoytest.Start(ctx, envoytest.Options{
		Face: faces[guard],
		Edit: func(c envoytest.Config) {
			badRoute = apart.Route(c, "all", "small", "/small", upstream.Addr())
			if f.quiet != nil {
				badRoute = errors.Join(badRoute, apart.Route(c, "upload", "quiet", "/quiet", upstream.Addr()))
				logQuiet(c, log)
			}
			configure(c, f.envoy, guard, o)
			if o.log != "" {
				logAll(c, o.log)
			}
		},
		Wasm:        o.wasm,
		Concurrency: o.concurrency,
		Upstream:    hogs.Upstream(),
		CgroupDir:   group.Dir(),
	})
	if err != nil {
		return nil, err
	}
	defer envoy.Stop()
	if badRoute != nil {
		return nil, badRoute
	}
	if !load.Sleep(ctx, settle) {
		return nil, ctx.Err()
	}

	r := &result{Flood: f.name, Guard: guard, LimitBytes: int64(o.limit)}
	addr := envoy.Addr("ingress")
	idle, err := envoy.Memory(ctx)
	if err != nil {
		return nil, err
	}
	r.Before, r.Idle = idle.Allocated, idle.InUse()
	if o.predicts {
		if r.Dump, err = envoy.ConfigDump(ctx); err != nil {
			return nil, err
		}
	}
	hard := idle.InUse() + hardShare*(int64(o.limit)-idle.InUse())/100
	begun := time.Now()

	// A dead Envoy ends everything at once: there is nothing left to measure.
	alive, dead := context.WithCancel(ctx)
	defer dead()
	var diedAfter atomic.Int64
	go func() {
		select {
		case <-envoy.Done():
			diedAfter.Store(int64(time.Since(begun)))
			dead()
		case <-alive.Done():
		}
	}()

	var sampler load.Sampler
	over := overs{limit: int64(o.limit), hard: hard}
	sampling, stopSampling := context.WithCancel(alive)
	var measuring sync.WaitGroup
	measuring.Go(func() {
		sampler.Run(sampling, sampleEvery, func(ctx context.Context) (load.Reading, error) {
			m, err := envoy.Memory(ctx)
			if err == nil {
				over.add(time.Now(), m.InUse())
			}
			return load.Reading{Allocated: m.Allocated, InUse: m.InUse()}, err
		})
	})

	small := &load.Small{Addr: addr, Rate: o.small, Reconnect: o.reconnect}
	bystanders, stopBystanders := context.WithCancel(alive)
	if o.small > 0 {
		measuring.Go(func() { small.Run(bystanders) })
	}

	var quiet *load.Small
	if f.quiet != nil {
		quiet = f.quiet(addr)
		measuring.Go(func() { quiet.Run(bystanders) })
	}

	duration := o.duration
	if f.duration > 0 {
		duration = f.duration
	}
	flooding, stopFlood := context.WithTimeout(alive, duration)
	var half []load.Snapshot
	measuring.Go(func() {
		if load.Sleep(flooding, duration/2) {
			half = hogs.Loads()
		}
	})
	hogsErr := hogs.Run(flooding, addr)
	stopFlood()
	if f.recovery && alive.Err() == nil {
		r.Recovered = fullService(alive, addr)
	}
	stopBystanders()
	stopSampling()
	measuring.Wait()
	ended := time.Now()

	if hogsErr != nil {
		return nil, hogsErr
	}
	each := hogs.Loads()
	r.Hogs, r.Small, r.Upstream, r.Over = load.Sum(each), small.Snapshot(), hogs.Requests(), over.found()
	if len(each) > 1 {
		r.Each = each
		for i := range half {
			r.SecondHalf = append(r.SecondHalf, each[i].Bytes-half[i].Bytes)
		}
	}
	peak, samples, blind := sampler.Peak()
	r.PeakAllocated, r.PeakInUse, r.Samples, r.LongestUnseen = peak.Allocated, peak.InUse, samples, blind
	if alive.Err() == nil {
		if err := r.afterwards(alive, envoy, ended); err != nil {
			return nil, err
		}
	}
	r.DiedAfter = time.Duration(diedAfter.Load())
	if o.log != "" {
		_ = envoy.Stop() // writes the rest of its log
	}
	if quiet != nil {
		r.Quiet = quiet.Snapshot()
		envoy.Stop() // writes the rest of its log
		if err := r.readQuiet(log); err != nil && !r.died() {
			return nil, err
		}
	}
	if group != nil {
		if r.CgroupPeak, r.OOMKilled, err = group.Peak(); err != nil {
			return nil, err
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.died() && !r.OOMKilled {
		return nil, fmt.Errorf("envoy died %s into the flood, and not of its cgroup's limit; its last lines:\n%s",
			r.DiedAfter.Round(time.Millisecond), tail(envoy.Logs(), 20))
	}
	return r, nil
}

// afterwards reads what the guard did, once it says that it holds nothing any more, and what Envoy
// still holds then.
func (r *result) afterwards(ctx context.Context, envoy *envoytest.Envoy, ended time.Time) error {
	r.Faults = envoytest.Faults(envoy.Logs())
	for {
		if ours(r.Guard) {
			stats, err := envoy.Stats(ctx, "highwater")
			if err != nil {
				return fmt.Errorf("the guard's metrics: %w", err)
			}
			s := figures.Stats(stats)
			r.Verdicts, r.NotDrained = s.Verdicts(), s.Leftovers()
			r.Admitted, _ = s.Get("admitted_total")
		}
		memory, err := envoy.Memory(ctx)
		if err != nil {
			return err
		}
		r.After = memory.Allocated
		since := time.Since(ended)
		if r.Drained == 0 && (len(r.NotDrained) == 0 || since > drainWithin) {
			r.Drained = since
		}
		// What Envoy lets go of later than the guard is given as long.
		if r.Drained > 0 && (r.kept() <= r.LimitBytes/keeps || since > drainWithin) {
			return nil
		}
		if !load.Sleep(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// configure makes examples/envoy.yaml what the flood and the guard want.
func configure(c envoytest.Config, s settings, guard string, o options) {
	buffers := map[string]any{}
	if s.buffers > 0 {
		c.SetBuffers(s.buffers, s.buffers)
		buffers["downstream"], buffers["upstream"] = text(s.buffers), text(s.buffers)
	}
	if s.streamWindow > 0 {
		c.SetHTTP2(s.streamWindow, s.connWindow, max(s.maxStreams, 100))
		buffers["http2_window"], buffers["http2_connection_window"] = text(s.streamWindow), text(s.connWindow)
	}
	if s.linger > 0 {
		c.SetLinger(s.linger)
		buffers["linger"] = unit.Duration(s.linger).String()
	}
	if s.sendBuffer > 0 {
		c.SetSendBuffer("upstream", s.sendBuffer)
	}
	if s.plain {
		delete(c, "memory_allocator_manager")
		for _, l := range c.Listeners() {
			delete(l, "socket_options")
		}
	}
	if s.unbuffered {
		unbuffer(c)
		buffers["whole_request"] = "0"
	}
	c.SetPluginConfig(func(plugin map[string]any) {
		block, _ := plugin["buffers"].(map[string]any)
		if block == nil {
			block = map[string]any{}
			plugin["buffers"] = block
		}
		for name, value := range buffers {
			block[name] = value
		}
		budget, _ := plugin["budget"].(map[string]any)
		if budget == nil {
			budget = map[string]any{}
			plugin["budget"] = budget
		}
		budget["limit"] = o.limit.String()
		if s.patience > 0 {
			plugin["throttle"] = map[string]any{"timeout": unit.Duration(s.patience).String()}
		}
		if s.plugin != nil {
			s.plugin(plugin)
		}
	})
	switch guard {
	case none:
		c.RemoveGuard()
	case overload:
		c.RemoveGuard()
		c.AddOverloadManager(int64(o.limit))
	}
}

// unbuffer removes the buffer filter, and what routes set for it.
func unbuffer(c envoytest.Config) {
	const name = "envoy.filters.http.buffer"
	c.SetConnectionManager(func(hcm map[string]any) {
		filters, _ := hcm["http_filters"].([]any)
		hcm["http_filters"] = slices.DeleteFunc(filters, func(f any) bool {
			filter, _ := f.(map[string]any)
			return filter["name"] == name
		})
		routes, _ := hcm["route_config"].(map[string]any)
		hosts, _ := routes["virtual_hosts"].([]any)
		for _, h := range hosts {
			host, _ := h.(map[string]any)
			list, _ := host["routes"].([]any)
			for _, r := range list {
				route, _ := r.(map[string]any)
				delete(route, "typed_per_filter_config")
			}
		}
	})
}

func text(n int) string { return unit.Bytes(n).String() }

// fullService is how long it takes until 20 small requests and an upload of 4 MiB have been served,
// retries included.
func fullService(ctx context.Context, addr string) time.Duration {
	begun := time.Now()
	ctx, cancel := context.WithTimeout(ctx, giveUpOnFull)
	defer cancel()
	var loads sync.WaitGroup
	for _, l := range []struct {
		load.Load
		enough int64
	}{
		{&load.Uploads{Addr: addr, Path: "/upload", Count: 1, Size: 4 * mib}, 1},
		{&load.Downloads{Addr: addr, Path: "/bytes", Clients: 4, Size: 1000}, 20},
	} {
		loads.Go(func() {
			ctx, stop := context.WithCancel(ctx)
			var running sync.WaitGroup
			running.Go(func() { l.Run(ctx) })
			for l.Snapshot().Served < l.enough {
				if !load.Sleep(ctx, time.Millisecond) {
					break
				}
			}
			stop()
			running.Wait()
		})
	}
	loads.Wait()
	return time.Since(begun)
}
