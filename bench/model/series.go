package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// series are samples over time.
type series struct {
	at []time.Duration
	n  []int64
}

func (s *series) add(at time.Duration, n int64) { s.at, s.n = append(s.at, at), append(s.n, n) }

// bins are the means of each bin; one without a sample has that of the bin before.
func (s *series) bins(duration time.Duration) []int64 {
	bins := make([]int64, duration/bin)
	i := 0
	for b := range bins {
		var sum, n int64
		for ; i < len(s.at) && s.at[i] <= time.Duration(b+1)*bin; i++ {
			sum, n = sum+s.n[i], n+1
		}
		switch {
		case n > 0:
			bins[b] = sum / n
		case b > 0:
			bins[b] = bins[b-1]
		}
	}
	return bins
}

// median over runs, bin by bin.
func median(runs [][]int64) []int64 {
	m := make([]int64, len(runs[0]))
	for b := range m {
		var values []int64
		for _, r := range runs {
			values = append(values, r[b])
		}
		slices.Sort(values)
		m[b] = values[len(values)/2]
	}
	return m
}

func mean(s []int64) int64 {
	var sum int64
	for _, n := range s {
		sum += n
	}
	return sum / int64(len(s))
}

// difference is Σ |b − a| / Σ a.
type difference struct {
	all     float64
	traffic float64 // of what lies above the first bin's lowest
	sorted  float64 // of all, regardless of when: bursts that drift apart in time differ at each moment
}

func compare(a, b []int64) difference {
	base := min(slices.Min(a), slices.Min(b))
	var apart, all, traffic int64
	for i := range a {
		apart += max(a[i]-b[i], b[i]-a[i])
		all += a[i]
		traffic += a[i] - base
	}
	var sorted int64
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	for i := range a {
		sorted += max(a[i]-b[i], b[i]-a[i])
	}
	return difference{all: ratio(apart, all), traffic: ratio(apart, traffic), sorted: ratio(sorted, all)}
}

func ratio(a, b int64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}

// curves draws both, a column for each bin.
func curves(w io.Writer, a, b []int64) {
	top := max(slices.Max(a), slices.Max(b), 1)
	const rows = 12
	for row := rows; row > 0; row-- {
		var line strings.Builder
		for i := range a {
			ra, rb := int(a[i]*rows/top), int(b[i]*rows/top)
			switch {
			case ra == row && rb == row:
				line.WriteByte('*')
			case ra == row:
				line.WriteByte('r')
			case rb == row:
				line.WriteByte('m')
			default:
				line.WriteByte(' ')
			}
		}
		fmt.Fprintf(w, "%8s |%s\n", size(top*int64(row)/rows), strings.TrimRight(line.String(), " "))
	}
	fmt.Fprintf(w, "%8s +%s r real, m model, * both; %v a column\n", "", strings.Repeat("-", len(a)), bin)
}
