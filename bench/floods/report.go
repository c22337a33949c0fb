package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/highwater-envoy/highwater/bench/internal/figures"
)

func (r *result) peak() float64        { return float64(r.PeakAllocated) / float64(r.LimitBytes) }
func (r *result) inUse() float64       { return float64(r.PeakInUse) / float64(r.LimitBytes) }
func (r *result) goodput() float64     { return r.Hogs.Goodput() / mib }
func (r *result) smallServed() float64 { return 100 * r.Small.Answered() }
func (r *result) smallTail() float64   { return r.Small.P99.Seconds() }
func (r *result) served() float64      { return float64(r.Hogs.Served) }
func (r *result) kept() int64          { return max(r.After-r.Before, 0) }
func (r *result) died() bool           { return r.DiedAfter > 0 }
func (r *result) rejectedShare() float64 {
	if n := r.Hogs.Served + r.Hogs.Rejected + r.Hogs.Closed + r.Hogs.Cut + r.Hogs.Errors; n > 0 {
		return float64(r.Hogs.Rejected+r.Hogs.Closed) / float64(n)
	}
	return 0
}

func (r *result) quietServed() float64 { return 100 * r.Quiet.Answered() }
func (r *result) quietTail() float64   { return r.Quiet.P99.Seconds() }

// deviation is how far the load that is farthest from it is from its share of what all were served
// in the second half.
func (r *result) deviation(weights []float64) (worst float64) {
	var bytes, weight float64
	for i, n := range r.SecondHalf {
		bytes += float64(n)
		weight += weights[i]
	}
	if bytes == 0 {
		return 1
	}
	for i, n := range r.SecondHalf {
		worst = max(worst, math.Abs(float64(n)/bytes*weight/weights[i]-1))
	}
	return worst
}

// late is the part of the rejects whose upstream had done the work.
func (r *result) late() float64 {
	const late = "rejected responses"
	var all float64
	for name, n := range r.Verdicts {
		if strings.HasPrefix(name, "rejected ") && name != late {
			all += n
		}
	}
	if all == 0 {
		return 0
	}
	return r.Verdicts[late] / all
}

// wasted are the requests that reached the upstream and were not served, against those that were.
func (r *result) wasted() float64 {
	return float64(max(r.Upstream-r.Hogs.Served, 0)) / float64(max(r.Hogs.Served, 1))
}

// of is a figure of all runs of a guard.
func of(results []*result, guard string, figure func(*result) float64) figures.Spread {
	var s figures.Spread
	for _, r := range results {
		if r.Guard == guard {
			s = append(s, figure(r))
		}
	}
	return s
}

// ratio is a figure of each run of a guard against that of no guard in the same round.
func ratio(results []*result, guard string, figure func(*result) float64) figures.Spread {
	plain := map[int]float64{}
	for _, r := range results {
		if r.Guard == none && figure(r) > 0 {
			plain[r.Run] = figure(r)
		}
	}
	var s figures.Spread
	for _, r := range results {
		if base, ok := plain[r.Run]; ok && r.Guard == guard {
			s = append(s, figure(r)/base)
		}
	}
	return s
}

func report(w io.Writer, f flood, guards []string, results []*result) {
	if len(results) == 0 {
		return
	}
	fmt.Fprintf(w, "\n%s: %s\n", f.name, f.about)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	grouped := results[0].CgroupPeak > 0
	columns := []string{"guard", "allocated/limit", "in use/limit", "served", "rejected", "closed", "cut", "errors", "MiB/s", "×none", "small 200", "small p50", "small p99", "×none"}
	if grouped {
		columns = append(columns, "cgroup peak", "killed")
	}
	if f.recovery {
		columns = append(columns, "full service after")
	}
	fmt.Fprintln(t, strings.Join(columns, "\t"))
	for _, guard := range guards {
		if len(of(results, guard, (*result).peak)) == 0 {
			continue
		}
		count := func(figure func(*result) float64) string {
			return of(results, guard, figure).Print(func(v float64) string { return fmt.Sprintf("%.0f", v) })
		}
		two := func(v float64) string { return fmt.Sprintf("%.2f", v) }
		times := func(v float64) string { return figures.Time(time.Duration(v * float64(time.Second))) }
		against := func(figure func(*result) float64) string {
			s := ratio(results, guard, figure)
			if len(s) == 0 || guard == none {
				return "-"
			}
			return s.Print(two)
		}
		percent := func(v float64) string {
			if v > 99.99 && v < 100 {
				return "<100%" // one lost request among ten thousand is not none
			}
			return fmt.Sprintf("%.4g%%", v)
		}
		row := []string{
			guard,
			of(results, guard, (*result).peak).Print(two),
			of(results, guard, (*result).inUse).Print(two),
			count((*result).served),
			count(func(r *result) float64 { return float64(r.Hogs.Rejected) }),
			count(func(r *result) float64 { return float64(r.Hogs.Closed) }),
			count(func(r *result) float64 { return float64(r.Hogs.Cut) }),
			count(func(r *result) float64 { return float64(r.Hogs.Errors) }),
			count((*result).goodput),
			against((*result).goodput),
			of(results, guard, (*result).smallServed).Print(percent),
			of(results, guard, func(r *result) float64 { return r.Small.P50.Seconds() }).Print(times),
			of(results, guard, (*result).smallTail).Print(times),
			against((*result).smallTail),
		}
		if grouped {
			row = append(row, of(results, guard, func(r *result) float64 { return float64(r.CgroupPeak) }).Print(figures.Size), killed(results, guard))
		}
		if f.recovery {
			row = append(row, of(results, guard, func(r *result) float64 { return r.Recovered.Seconds() }).Print(times))
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	_ = t.Flush()
	for _, r := range results {
		for _, line := range particulars(f, r) {
			fmt.Fprintf(w, "  %s, round %d, %s\n", r.Guard, r.Run, line)
		}
		if h := r.Hogs; h.Kept+h.Broken+h.ToldLonger > 0 {
			fmt.Fprintf(w, "  %s, round %d: of %d that came back when they were told to, after %s on average, %.1f%% were served; %d more had been told the longest delay\n",
				r.Guard, r.Run, h.Kept+h.Broken, figures.Time(h.Told), 100*h.Truth(), h.ToldLonger)
		}
		if ours(r.Guard) && !r.died() {
			fmt.Fprintf(w, "  %s, round %d: %s\n", r.Guard, r.Run, aftermath(r))
		}
		for _, p := range []struct{ who, problem string }{{"hogs", r.Hogs.Problem}, {"small", r.Small.Problem}} {
			if p.problem != "" {
				fmt.Fprintf(w, "  %s, round %d, %s: the first error was: %s\n", r.Guard, r.Run, p.who, p.problem)
			}
		}
		if r.LongestUnseen > 250*time.Millisecond {
			fmt.Fprintf(w, "  %s, round %d: for %s no sample of memory was had; a peak in it is not in the figures\n",
				r.Guard, r.Run, figures.Time(r.LongestUnseen))
		}
	}
}

// particulars are the figures that only some floods are about.
func particulars(f flood, r *result) (lines []string) {
	say := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	if f.quiet != nil {
		say("quiet: %.4g%% of %d answered 200, p50 %s, p99 %s; %d waited, %d met a verdict",
			r.quietServed(), r.Quiet.Started, figures.Time(r.Quiet.P50), figures.Time(r.Quiet.P99), r.QuietWaits, r.QuietHeld)
	}
	if f.want.weights != nil {
		var parts []string
		for i, n := range r.SecondHalf {
			parts = append(parts, fmt.Sprintf("%.1f", float64(n)/mib/f.want.weights[i]))
		}
		say("second half: MiB served per weight %s; the farthest is %.0f%% off its share", strings.Join(parts, " "), 100*r.deviation(f.want.weights))
	}
	if f.want.late > 0 {
		say("%.1f%% of the rejects came late; %d requests reached the upstream, %.1f%% of the served beyond those", 100*r.late(), r.Upstream, 100*r.wasted())
	}
	if f.want.back > 0 {
		switch {
		case r.Over == nil:
			say("never over the limit twice")
		case r.Over.Never:
			say("over the limit, and in the end not below hard (%s)", figures.Size(float64(r.Over.Hard)))
		default:
			say("over the limit %d times; below hard (%s) after %s at most", r.Over.Times, figures.Size(float64(r.Over.Hard)), figures.Time(r.Over.Longest))
		}
	}
	if f.want.spared > 0 && len(r.Each) > 0 {
		say("%d of %d idle ones came to be, %d were cut; of the others %d", r.Each[0].Served, f.want.spared, r.Each[0].Cut, r.Each[1].Cut)
	}
	return lines
}

func killed(results []*result, guard string) string {
	n, runs, first := 0, 0, time.Duration(0)
	for _, r := range results {
		if r.Guard != guard {
			continue
		}
		runs++
		if r.OOMKilled {
			n++
			if first == 0 || r.DiedAfter < first {
				first = r.DiedAfter
			}
		}
	}
	switch n {
	case 0:
		return "no"
	case runs:
		return "OOM, " + figures.Time(first)
	default:
		return fmt.Sprintf("OOM in %d of %d, %s", n, runs, figures.Time(first))
	}
}

// aftermath is what the guard did, and whether it has let go of everything.
func aftermath(r *result) string {
	did := figures.List(r.Verdicts)
	if did == "" {
		did = "not one verdict"
	}
	if len(r.NotDrained) > 0 {
		return fmt.Sprintf("%s · not drained after %s: %s", did, figures.Time(r.Drained), figures.List(r.NotDrained))
	}
	return fmt.Sprintf("%s · drained after %s, %s more allocated than before", did, figures.Time(r.Drained), figures.Size(float64(r.kept())))
}

func oneLine(r *result) string {
	line := fmt.Sprintf("%.2f of the limit · %d served, %d rejected · small %.4g%%, p99 %s",
		r.peak(), r.Hogs.Served, r.Hogs.Rejected, r.smallServed(), figures.Time(r.Small.P99))
	if r.OOMKilled {
		line += " · OOM-killed after " + figures.Time(r.DiedAfter)
	}
	return line
}
