// Command floods puts loads in front of a real Envoy, with no guard, with Envoy's overload manager
// and with Highwater, side by side in one run, and prints what each made of them.
//
//	go run ./bench/floods -list
//	go run ./bench/floods -flood upload-h1,slow-64k-* -guard none,overload,highwater -runs 5
//	go run ./bench/floods -flood upload-400 -cgroup 300MiB        (root)
//
// Each run has an Envoy and an upstream of its own. The runs of a flood go round the guards, so
// that what else the machine does meets all of them alike. Ratios (×) are of the same round of no
// guard, then the median is taken.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/highwater-envoy/highwater/bench/internal/apart"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// loadCommand makes this program the process that floods, when it runs itself.
const loadCommand = "load"

func main() {
	if len(os.Args) == 3 && os.Args[1] == loadCommand {
		os.Exit(flooder(os.Args[2]))
	}
	os.Exit(command(os.Args[1:], os.Stdout, os.Stderr))
}

func flooder(name string) int {
	for _, f := range floods() {
		if f.name == name {
			if err := apart.Serve(os.Stdin, os.Stdout, f.loads); err != nil {
				fmt.Fprintln(os.Stderr, "floods:", err)
				return 1
			}
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, "floods: no flood", name)
	return 2
}

func command(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("floods", flag.ContinueOnError)
	flags.SetOutput(stderr)
	names := flags.String("flood", "upload-h1,upload-chunked,upload-h2", "floods to run: names, patterns such as slow-64k-*, or all")
	guards := flags.String("guard", "none,overload,highwater", "guards to run each with")
	runs := flags.Int("runs", 1, "rounds over the guards")
	duration := flags.Duration("duration", 30*time.Second, "how long each flood lasts")
	limit := flags.String("limit", "200MiB", "the budget")
	small := flags.Int("small", 200, "small requests a second beside each flood")
	reconnect := flags.Bool("reconnect", false, "each of those comes on a new connection")
	concurrency := flags.Int("concurrency", 2, "Envoy's workers")
	wasm := flags.String("wasm", "", "the compiled filter (default: what `make build` makes)")
	group := flags.String("cgroup", "", "run Envoy in a memory cgroup of this size, such as 300MiB (root)")
	file := flags.String("json", "", "write every run's figures to this file")
	check := flags.Bool("check", false, "exit 1 if a face of highwater misses a threshold (needs -guard none,highwater,extproc,module)")
	predicts := flags.Bool("predict", false, "record each flood without a guard, replay that, and compare with -runs runs of highwater")
	record := flags.String("record", "", "with -predict, keep the recordings and what was measured in this folder; what is there is not measured again")
	speed := flags.Float64("speed", 1, "with -predict, of a core against the machine that the model's figures are from")
	list := flags.Bool("list", false, "list the floods and exit")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *list {
		w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
		for _, f := range floods() {
			fmt.Fprintf(w, "%s\t%s\n", f.name, f.about)
		}
		_ = w.Flush()
		return 0
	}

	fail := func(err error) int { fmt.Fprintln(stderr, "floods:", err); return 1 }
	o := options{duration: *duration, small: *small, reconnect: *reconnect, concurrency: *concurrency, wasm: *wasm}
	chosen, err := choose(floods(), *names)
	if err != nil {
		return fail(err)
	}
	if o.limit, err = unit.ParseBytes(*limit); err != nil {
		return fail(fmt.Errorf("-limit: %w", err))
	}
	if *group != "" {
		if o.cgroup, err = unit.ParseBytes(*group); err != nil {
			return fail(fmt.Errorf("-cgroup: %w", err))
		}
	}
	var use []string
	for guard := range strings.SplitSeq(*guards, ",") {
		switch guard = strings.TrimSpace(guard); guard {
		case none, overload, highwater, extproc, module:
			use = append(use, guard)
		default:
			return fail(fmt.Errorf("-guard %q: write none, overload, highwater, extproc or module", guard))
		}
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if *predicts {
		o.predicts, o.speed = true, *speed
		return predictAll(ctx, chosen, o, *runs, *record, stdout, stderr)
	}
	var all []*result
	var misses, failures []string
	total, n := len(chosen)*len(use)**runs, 0
	for _, f := range chosen {
		var results []*result
		for round := range *runs {
			for _, guard := range use {
				n++
				what := fmt.Sprintf("%s · %s · round %d of %d", f.name, guard, round+1, *runs)
				fmt.Fprintf(stderr, "[%d/%d] %s ... ", n, total, what)
				r, err := run(ctx, f, guard, o)
				if ctx.Err() != nil {
					fmt.Fprintln(stderr, "stopped")
					return 1
				}
				if err != nil {
					fmt.Fprintf(stderr, "failed: %v\n", err)
					failures = append(failures, what+": "+firstLine(err.Error()))
					continue
				}
				r.Run = round + 1
				results = append(results, r)
				fmt.Fprintln(stderr, oneLine(r))
			}
		}
		report(stdout, f, use, results)
		all = append(all, results...)
		if *check {
			for _, guard := range use {
				if ours(guard) {
					misses = append(misses, judge(f, guard, results)...)
				}
			}
		}
	}
	if *file != "" {
		out, err := json.MarshalIndent(all, "", "  ")
		if err == nil {
			err = os.WriteFile(*file, append(out, '\n'), 0o644)
		}
		if err != nil {
			return fail(err)
		}
	}
	code := 0
	for _, f := range failures {
		fmt.Fprintln(stdout, "did not run:", f)
		code = 1
	}
	for _, m := range misses {
		fmt.Fprintln(stdout, "missed:", m)
		code = 1
	}
	if *check && code == 0 {
		fmt.Fprintln(stdout, "all thresholds kept")
	}
	return code
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

func tail(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
