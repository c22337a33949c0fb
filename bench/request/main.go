// Command request measures what a request costs Envoy in CPU with no filter, an empty Wasm module,
// an SDK plugin with empty callbacks, an empty dynamic module, and Highwater as a plugin and as a
// dynamic module, with and without the network filter. Then it measures what moving bytes and doing
// nothing costs, memory per worker, the start, and what a connection and a stream hold. What the
// module adds is told beside what the plugin adds in the same turns.
//
//	go run ./bench/request -rounds 20 -turn 400ms
//
// All Envoys run at once and are loaded in short turns, one after the other, so that what else the
// machine does meets all alike. CPU is Envoy's own process clock.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/process"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	mb  = 1_000_000
)

// variant is an Envoy with another filter in the path.
type variant struct {
	name   string
	wasm   string // file; empty = build/highwater.wasm
	face   envoytest.Face
	edit   func(c envoytest.Config)
	so     string // file; empty = build/libhighwater.so
	sdk    int    // the SDK's empty plugin in the same filters, by index: what it is compared with
	wasmed int    // Highwater's plugin in the same filters, by index; 0 = it is none of the module's
	envoy  *envoytest.Envoy
	start  time.Duration // CPU until it was ready
}

func main() {
	os.Exit(command(os.Args[1:], os.Stdout, os.Stderr))
}

func command(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("request", flag.ContinueOnError)
	flags.SetOutput(stderr)
	rounds := flags.Int("rounds", 20, "turns of each Envoy with each load")
	turn := flags.Duration("turn", 400*time.Millisecond, "how long a turn lasts")
	only := flags.String("load", "", "only loads (or idle) whose name contains this, and of memory only what is resident")
	pair := flags.String("filters", "", "HTTP or both: only the SDK's empty plugin and Highwater, in these filters, and nothing of memory")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, *rounds, *turn, *only, *pair, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "request:", err)
		return 1
	}
	return 0
}

func measure(ctx context.Context, rounds int, turn time.Duration, only, pair string, stdout, stderr io.Writer) error {
	dir, err := os.MkdirTemp("", "highwater-request-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	all, err := variants(ctx, dir)
	if err != nil {
		return err
	}
	if pair != "" {
		if all, err = paired(all, pair); err != nil {
			return err
		}
	}
	upstream, err := load.NewUpstream()
	if err != nil {
		return err
	}
	defer upstream.Close()
	defer stopAll(all)
	if err := startAll(ctx, all, upstream.Addr(), stderr); err != nil {
		return err
	}
	for _, l := range []struct {
		name string
		unit string
		load func(addr string) load.Load
		per  func(s load.Snapshot) float64 // how many units of work that was
	}{
		{"GET of 1 kB", "µs a request", func(a string) load.Load { return &load.Downloads{Addr: a, Clients: 8, Size: 1000} }, requests},
		{
			"upload of 64 KiB, buffered", "µs a request",
			func(a string) load.Load {
				return &load.Uploads{Addr: a, Count: 8, Size: 64 * kib, Path: "/upload?delay=0s"}
			}, requests,
		},
		{"downloads of 1 MB", "µs a MiB", func(a string) load.Load { return &load.Downloads{Addr: a, Clients: 8, Size: mb} }, mebibytes},
	} {
		if !strings.Contains(l.name, only) {
			continue
		}
		figures := make([][]float64, len(all))
		for round := range rounds {
			order := rotated(all, round)
			if pair != "" && round > 0 {
				// Of two Envoys with the same plugin one was up to 4 % slower than the other for as
				// long as both lived: what their memory comes to lie on is chance. So each pair of
				// figures is of another pair of Envoys.
				stopAll(all)
				if err := startAll(ctx, order, upstream.Addr(), io.Discard); err != nil {
					return err
				}
			}
			fmt.Fprintf(stderr, "\r%s: round %d of %d ", l.name, round+1, rounds)
			for _, v := range order {
				if pair != "" { // V8 compiles again what is called often
					if _, err := v.turn(ctx, warmUp, l.load, l.per); err != nil {
						return err
					}
				}
				f, err := v.turn(ctx, turn, l.load, l.per)
				if err != nil {
					return err
				}
				i := slices.Index(all, v)
				figures[i] = append(figures[i], f)
			}
		}
		fmt.Fprintln(stderr)
		table(stdout, l.name, l.unit, all, figures)
	}
	if strings.Contains("idle", only) {
		if err := idle(ctx, all, stdout, stderr); err != nil {
			return err
		}
	}
	if pair == "" {
		if err := starts(all, stdout); err != nil {
			return err
		}
	}
	if only != "" || pair != "" {
		return nil
	}
	return memory(ctx, all, upstream.Addr(), stdout, stderr)
}

func requests(s load.Snapshot) float64  { return float64(s.Served) }
func mebibytes(s load.Snapshot) float64 { return float64(s.Bytes) / mib }

func variants(ctx context.Context, dir string) ([]*variant, error) {
	empty := filepath.Join(dir, "empty.wasm")
	if err := os.WriteFile(empty, emptyModule(), 0o600); err != nil {
		return nil, err
	}
	sdk := filepath.Join(dir, "sdk.wasm")
	root, err := envoybin.ModuleRoot()
	if err != nil {
		return nil, err
	}
	build := exec.CommandContext(ctx, "go", "build", "-buildmode=c-shared", "-trimpath", "-ldflags", "-s -w", "-o", sdk, "./bench/request/sdk") //nolint:gosec // our own arguments
	build.Dir, build.Env = root, append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the SDK's empty plugin: %w\n%s", err, out)
	}
	native := filepath.Join(dir, "empty.so")
	compile := exec.CommandContext(ctx, "cc", "-O2", "-shared", "-fPIC", "-o", native, filepath.Join(root, "bench", "request", "native", "empty.c")) //nolint:gosec // our own arguments
	if out, err := compile.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the empty dynamic module: %w\n%s", err, out)
	}
	none := func(c envoytest.Config) { c.RemoveGuard() }
	// The module's example leaves the listener's buffers as they are: here they are as those of the
	// others.
	sized := func(c envoytest.Config) { c.SetBuffers(64*kib, 64*kib) }
	requestsAlone := func(c envoytest.Config) {
		sized(c)
		c.RemoveNetworkFilter()
		c.RemoveListenerFilter()
	}
	alone := func(c envoytest.Config) {
		requestsAlone(c)
		delete(c, "bootstrap_extensions")
	}
	both := func(envoytest.Config) {}
	requestsOnly := func(c envoytest.Config) { c.RemoveNetworkFilter() }
	return []*variant{
		{name: "none", edit: none, sdk: 2},
		{name: "empty module", wasm: empty, edit: requestsOnly, sdk: 2},
		{name: "SDK, empty, HTTP filter", wasm: sdk, edit: requestsOnly, sdk: 2},
		{name: "SDK, empty, both filters", wasm: sdk, edit: both, sdk: 3},
		{name: "Highwater, HTTP filter", edit: requestsOnly, sdk: 2},
		{name: "Highwater, both filters", edit: both, sdk: 3},
		{name: "empty dynamic module", face: envoytest.Module, so: native, edit: alone, sdk: 2, wasmed: 4},
		{name: "Highwater module: HTTP filter", face: envoytest.Module, edit: requestsAlone, sdk: 2, wasmed: 4},
		{name: "Highwater module: all filters", face: envoytest.Module, edit: sized, sdk: 3, wasmed: 5},
	}, nil
}

// paired are the two that are compared in these filters: with fewer Envoys and longer turns the
// ratio is known better. What is added to no filter is not known then.
func paired(all []*variant, filters string) (pair []*variant, err error) {
	for _, v := range all {
		if strings.Contains(v.name, ", "+filters+" filter") {
			v.sdk, v.wasmed = 0, 0
			pair = append(pair, v)
		}
	}
	if len(pair) != 2 {
		return nil, fmt.Errorf("-filters %q: neither HTTP nor both", filters)
	}
	return pair, nil
}

// rotated has each be the first in its turn.
func rotated(all []*variant, round int) []*variant {
	first := round % len(all)
	return slices.Concat(all[first:], all[:first])
}

const (
	workers = 2
	warmUp  = time.Second // is not measured
)

func startAll(ctx context.Context, all []*variant, upstream string, progress io.Writer) error {
	for _, v := range all {
		fmt.Fprintf(progress, "starting Envoy: %s\n", v.name)
		if err := v.run(ctx, upstream, workers); err != nil {
			return err
		}
	}
	return nil
}

func stopAll(all []*variant) {
	for _, v := range all {
		if v.envoy != nil {
			_ = v.envoy.Stop()
			v.envoy = nil
		}
	}
}

// run starts the variant's Envoy.
func (v *variant) run(ctx context.Context, upstream string, workers int) (err error) {
	edit := func(c envoytest.Config) {
		v.edit(c)
		for _, l := range c.Listeners() { // else one worker has three connections of four in one turn and half of them in the next
			l["connection_balance_config"] = map[string]any{"exact_balance": map[string]any{}}
		}
	}
	v.envoy, err = envoytest.Start(ctx, envoytest.Options{Face: v.face, Edit: edit, Wasm: v.wasm, Module: v.so, Upstream: upstream, Concurrency: workers})
	if err != nil {
		return fmt.Errorf("%s: %w", v.name, err)
	}
	v.start, err = process.CPU(v.envoy.PID())
	return err
}

// turn is what a unit of work cost in one turn, µs of CPU.
func (v *variant) turn(ctx context.Context, d time.Duration, l func(string) load.Load, per func(load.Snapshot) float64) (float64, error) {
	before, err := process.CPU(v.envoy.PID())
	if err != nil {
		return 0, err
	}
	turn, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	running := l(v.envoy.Addr("ingress"))
	running.Run(turn)
	after, err := process.CPU(v.envoy.PID())
	if err != nil {
		return 0, err
	}
	s := running.Snapshot()
	n := per(s)
	if n == 0 || s.Errors > 0 || s.Rejected > 0 {
		return 0, fmt.Errorf("%s: a turn that says nothing: %+v", v.name, s)
	}
	return float64((after - before).Nanoseconds()) / 1000 / n, ctx.Err()
}

// idle prints what each Envoy uses while nobody asks for anything, all at the same time.
func idle(ctx context.Context, all []*variant, stdout, stderr io.Writer) error {
	const settle, length = 2 * time.Second, 10 * time.Second
	fmt.Fprintf(stderr, "idle for %v\n", settle+length)
	load.Sleep(ctx, settle)
	before := make([]time.Duration, len(all))
	for i, v := range all {
		var err error
		if before[i], err = process.CPU(v.envoy.PID()); err != nil {
			return err
		}
	}
	load.Sleep(ctx, length)
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "idle, 2 workers\tms of Envoy's CPU a second")
	for i, v := range all {
		after, err := process.CPU(v.envoy.PID())
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s\t%.1f\n", v.name, float64((after-before[i]).Microseconds())/1000/length.Seconds())
	}
	_ = w.Flush()
	fmt.Fprintln(stdout)
	return ctx.Err()
}

// table prints a load's figures. Where there is an Envoy without a filter, what is added to it is
// compared with what the SDK's empty plugin adds in the same filters.
func table(out io.Writer, load, unit string, all []*variant, figures [][]float64) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	const none = 0
	bare := all[none].sdk != none
	added := ""
	if bare {
		added = "added (least)\tadded (median)\t× SDK added (median of pairs)\t× plugin added\t"
	}
	fmt.Fprintf(w, "%s, %s of Envoy's CPU\tleast\tquartiles\t%s÷ SDK (median of pairs, 95 %%)\n", load, unit, added)
	for i, v := range all {
		least, lower, median, upper := quartiles(figures[i])
		leastNone, _, medianNone, _ := quartiles(figures[none])
		var times, plugin, ratio []float64
		for r := range figures[i] {
			adds := figures[i][r] - figures[none][r]
			times = append(times, adds/(figures[v.sdk][r]-figures[none][r]))
			plugin = append(plugin, adds/(figures[v.wasmed][r]-figures[none][r]))
			ratio = append(ratio, figures[i][r]/figures[v.sdk][r])
		}
		if bare {
			_, _, typical, _ := quartiles(times)
			beside := "-"
			if v.wasmed != none {
				_, _, typical, _ := quartiles(plugin)
				beside = fmt.Sprintf("%.2f", typical)
			}
			added = fmt.Sprintf("%.1f\t%.1f\t%.2f\t%s\t", least-leastNone, median-medianNone, typical, beside)
		}
		_, _, whole, _ := quartiles(ratio)
		low, high := interval(ratio)
		fmt.Fprintf(w, "%s\t%.1f\t%.1f %.1f %.1f\t%s%.3f (%.3f to %.3f)\n", v.name, least, lower, median, upper, added, whole, low, high)
	}
	_ = w.Flush()
	fmt.Fprintln(out)
}
