// Package figures is what the programs under bench share: reading the guard's metrics out of
// Envoy's stats, and printing sizes, times and spreads the same way.
package figures

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// Stats are Envoy's, by name. The guard's are in there behind whatever prefix Envoy put in front of
// them.
type Stats map[string]float64

// Get is the metric highwater_<name>, and whether Envoy has it.
func (s Stats) Get(name string) (float64, bool) {
	for key, value := range s {
		if _, metric, ok := strings.Cut(key, "highwater_"); ok && metric == name {
			return value, true
		}
	}
	return 0, false
}

// Reasons is highwater_<name> by its label reason, without those that are 0.
func (s Stats) Reasons(name string) map[string]float64 {
	reasons := map[string]float64{}
	for key, value := range s {
		if _, reason, ok := strings.Cut(key, "highwater_"+name+".reason."); ok && value != 0 {
			reasons[reason] += value
		}
	}
	return reasons
}

// Verdicts are all counters of the guard that say it did something to somebody, without those that
// are 0. A healthy load leaves none.
func (s Stats) Verdicts() map[string]float64 {
	verdicts := map[string]float64{}
	for reason, n := range s.Reasons("rejected_total") {
		verdicts["rejected "+reason] = n
	}
	for _, name := range []string{"throttled_total", "rejected_responses_total", "evicted_total", "closed_connections_total"} {
		var sum float64
		for key, value := range s {
			if _, metric, ok := strings.Cut(key, "highwater_"); ok && (metric == name || strings.HasPrefix(metric, name+".")) {
				sum += value
			}
		}
		if sum != 0 {
			verdicts[strings.ReplaceAll(strings.TrimSuffix(name, "_total"), "_", " ")] = sum
		}
	}
	return verdicts
}

// Leftovers are the gauges that must be 0 when no request is under way and no client connected,
// without those that are.
func (s Stats) Leftovers() map[string]float64 {
	left := map[string]float64{}
	for _, name := range []string{"fresh_bytes", "coming_bytes", "waiting", "streams", "exposure_bytes", "connections"} {
		if v, ok := s.Get(name); !ok {
			left[name+" (no such metric)"] = 0
		} else if v != 0 {
			left[name] = v
		}
	}
	return left
}

// List prints counts by name in a fixed order: "throttled 12, rejected timeout 3".
func List(counts map[string]float64) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, name+" "+strconv.FormatFloat(counts[name], 'f', -1, 64))
	}
	return strings.Join(out, ", ")
}

// Size prints bytes for people.
func Size(bytes float64) string { return unit.Bytes(bytes).Human() }

// Time prints a duration with three digits at most.
func Time(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1fms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%.0fms", d.Seconds()*1e3)
	case d < 10*time.Second:
		return fmt.Sprintf("%.2fs", d.Seconds())
	default:
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
}

// Spread is the same figure of several runs.
type Spread []float64

// Median is the middle one (of an even number the mean of the two).
func (s Spread) Median() float64 {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	if n := len(sorted); n%2 == 0 {
		return (sorted[n/2-1] + sorted[n/2]) / 2
	}
	return sorted[len(sorted)/2]
}

// Min is the smallest, 0 of none.
func (s Spread) Min() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Min(s)
}

// Max is the largest, 0 of none.
func (s Spread) Max() float64 {
	if len(s) == 0 {
		return 0
	}
	return slices.Max(s)
}

// Print prints the median, and min..max behind it if they print differently.
func (s Spread) Print(text func(float64) string) string {
	median, low, high := text(s.Median()), text(s.Min()), text(s.Max())
	if low == high {
		return median
	}
	return median + " (" + low + ".." + high + ")"
}
