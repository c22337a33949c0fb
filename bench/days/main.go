// Command days prints how often a leak is told on days without one, and how soon where there is
// one, by the detector and settings of the live server, with predict_linear beside it.
package main

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/highwater-envoy/highwater/internal/leak/days"
)

func main() {
	n := flag.Int("days", 1000, "days without a leak; a fifth as many with each leak")
	show := flag.Bool("v", false, "each day without a leak on which one was told")
	flag.Parse()
	began := time.Now()
	for _, c := range []struct {
		perMinute float64 // MiB
		byLoad    bool
		within    time.Duration
	}{{0, false, 0}, {1, false, 90 * time.Minute}, {0.1, false, 8 * time.Hour}, {1, true, 90 * time.Minute}, {0.1, true, 8 * time.Hour}} {
		count := *n
		if c.perMinute > 0 {
			count = max(*n/5, 20)
		}
		name := "no leak"
		if c.perMinute > 0 {
			name = fmt.Sprintf("%.1f MiB a minute", c.perMinute)
		}
		if c.byLoad {
			name += " in the mean, following the load"
		}
		report(name, c.within, run(count, c.perMinute, c.byLoad), *show)
	}
	fmt.Fprintf(os.Stderr, "%v\n", time.Since(began).Round(time.Second))
}

func run(n int, perMinute float64, byLoad bool) []days.Told {
	told := make([]days.Told, n)
	var running sync.WaitGroup
	for w := range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			for i := w; i < n; i += runtime.GOMAXPROCS(0) {
				told[i] = days.Watch(days.New(uint64(i), perMinute*(1<<20), byLoad))
			}
		})
	}
	running.Wait()
	return told
}

func report(name string, within time.Duration, told []days.Told, show bool) {
	var after []time.Duration
	windows := map[time.Duration]int{}
	predicted, inTime := 0, 0
	for i, t := range told {
		if t.Predicted > 0 {
			predicted++
		}
		if t.After == 0 {
			continue
		}
		windows[t.Verdict.Window]++
		if after = append(after, t.After); t.After <= within {
			inTime++
		}
		if show && within == 0 {
			fmt.Printf("  day %d: %.2f MiB a minute, by the window of %v, after %v\n", i, t.Verdict.PerMinute/(1<<20), t.Verdict.Window, t.After)
		}
	}
	share := func(n int) float64 { return 100 * float64(n) / float64(len(told)) }
	fmt.Printf("%s: a leak is told on %.1f %% of %d days %v", name, share(len(after)), len(told), windows)
	if within > 0 && len(after) > 0 {
		slices.Sort(after)
		fmt.Printf(", within %v on %.1f %%, half of them within %v", within, share(inTime), after[len(after)/2].Round(time.Minute))
	}
	fmt.Printf("; predict_linear alarms on %.1f %%\n", share(predicted))
}
