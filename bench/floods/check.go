package main

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/bench/internal/figures"
)

// judge lists what the guard missed of what the flood wants, by the median of its runs; what must
// never happen (a lost bystander, a cut reader, a verdict on a healthy load, something left in the
// accounts, a killed Envoy) by the worst.
func judge(f flood, guard string, results []*result) []string {
	var misses []string
	miss := func(format string, args ...any) {
		misses = append(misses, f.name+", "+guard+": "+fmt.Sprintf(format, args...))
	}
	mine := func(figure func(*result) float64) figures.Spread { return of(results, guard, figure) }
	if len(mine((*result).peak)) == 0 {
		miss("no run of %s", guard)
		return misses
	}
	w := f.want.from(guard)

	if got := mine((*result).peak).Median(); w.peak > 0 && got > w.peak {
		miss("peak allocated %.2f of the limit, wanted at most %.2f", got, w.peak)
	}
	if got := mine((*result).smallServed).Min(); w.small > 0 && got < w.small {
		miss("%.3f%% of the small requests answered 200, wanted at least %g%%", got, w.small)
	} else if w.small == 0 && got < 100 {
		miss("%.3f%% of the small requests answered 200, wanted all", got)
	}
	if got := mine((*result).quietServed).Min(); got < w.quiet {
		miss("%.3f%% of the quiet requests answered 200, wanted at least %g%%", got, w.quiet)
	}
	if got := mine(func(r *result) float64 { return float64(r.QuietHeld) }).Max(); w.noneWaits && got > 0 {
		miss("%.0f quiet requests waited or were rejected, wanted none", got)
	}
	if w.quietTail > 0 {
		if s := ratio(results, guard, (*result).quietTail); len(s) == 0 {
			miss("p99 of the quiet requests: nothing to compare with, run it with -guard none,highwater")
		} else if s.Median() > w.quietTail {
			miss("p99 of the quiet requests %.2f × that of no guard, wanted at most %.2f", s.Median(), w.quietTail)
		}
	}
	if w.weights != nil {
		if got := mine(func(r *result) float64 { return r.deviation(w.weights) }).Median(); got > w.deviation {
			miss("a tenant is %.0f%% off its share, wanted at most %.0f%%", 100*got, 100*w.deviation)
		}
	}
	if got := mine((*result).late).Median(); w.late > 0 && got > w.late {
		miss("%.1f%% of the rejects came late, wanted at most %.0f%%", 100*got, 100*w.late)
	}
	if got := mine((*result).wasted).Median(); w.wasted > 0 && got > w.wasted {
		miss("%.1f%% more requests reached the upstream than were served, wanted at most %.0f%%", 100*got, 100*w.wasted)
	}
	if w.smallTail > 0 {
		if s := ratio(results, guard, (*result).smallTail); len(s) == 0 {
			miss("p99 of the small requests: nothing to compare with, run it with -guard none,highwater")
		} else if s.Median() > w.smallTail {
			miss("p99 of the small requests %.2f × that of no guard, wanted at most %.2f", s.Median(), w.smallTail)
		}
	}
	if w.goodput > 0 {
		if s := ratio(results, guard, (*result).goodput); len(s) == 0 {
			miss("goodput: nothing to compare with, run it with -guard none,highwater")
		} else if s.Median() < w.goodput {
			miss("goodput %.2f × that of no guard, wanted at least %.2f", s.Median(), w.goodput)
		}
	}
	if got := mine((*result).rejectedShare).Median(); w.rejected > 0 && got > w.rejected {
		miss("%.2f%% of the requests rejected or closed, wanted at most %.2f%%", 100*got, 100*w.rejected)
	} else if worst := mine((*result).rejectedShare).Max(); w.rejected < 0 && worst > 0 {
		miss("%.2f%% of the requests rejected or closed, wanted none", 100*worst)
	}
	if got := mine((*result).served).Median() / float64(max(f.clients, 1)); w.served > 0 && got < w.served {
		miss("%.0f%% of the clients served, wanted at least %.0f%%", 100*got, 100*w.served)
	}
	if cut := mine(func(r *result) float64 { return float64(r.Hogs.Cut) }).Max(); w.noneCut && cut > 0 {
		miss("%.0f cut, wanted none", cut)
	}
	if got := mine(func(r *result) float64 { return r.Recovered.Seconds() }).Median(); w.recovery > 0 && got > w.recovery.Seconds() {
		miss("full service %.2fs after the flood, wanted within %s", got, w.recovery)
	}
	if got := mine(func(r *result) float64 { return r.Hogs.Truth() }).Median(); got < w.truth {
		miss("%.0f%% of those who came back when they were told to were served, wanted at least %.0f%%", 100*got, 100*w.truth)
	}
	for _, r := range results {
		switch {
		case r.Guard != guard:
		case w.back > 0 && r.Over != nil && (r.Over.Never || r.Over.Longest > w.back):
			miss("round %d: it took memory %s from over the limit to below hard, wanted within %s", r.Run, figures.Time(r.Over.Longest), w.back)
		case w.spared > 0 && (len(r.Each) == 0 || r.Each[0].Served < w.spared || r.Each[0].Cut > 0):
			miss("round %d: not all of the %d idle ones were spared", r.Run, w.spared)
		case w.spared > 0 && r.Each[1].Started == 0:
			miss("round %d: the flood ended before anybody stalled, give it more time", r.Run)
		case r.died():
			miss("round %d: Envoy was killed after %s", r.Run, r.DiedAfter.Round(time.Millisecond))
		case len(r.NotDrained) > 0:
			miss("round %d: not drained: %s", r.Run, figures.List(r.NotDrained))
		case r.kept() > keptUnguarded(results, r.Run)+r.LimitBytes/keeps:
			miss("round %d: %s more allocated than before, %s without a guard", r.Run,
				figures.Size(float64(r.kept())), figures.Size(float64(keptUnguarded(results, r.Run))))
		case len(r.Faults) > 0:
			miss("round %d: the plugin faulted: %s", r.Run, r.Faults[0])
		case w.noVerdicts && len(r.Verdicts) > 0:
			miss("round %d: a healthy load met verdicts: %s", r.Run, figures.List(r.Verdicts))
		}
	}
	return misses
}

// keptUnguarded is what Envoy keeps of the flood by itself, as far as that was tried: two blocks of
// 64 KiB for each idle connection to the upstream, for one.
func keptUnguarded(results []*result, run int) int64 {
	for _, r := range results {
		if r.Guard == none && r.Run == run {
			return r.kept()
		}
	}
	return 0
}
