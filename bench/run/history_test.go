package main

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// However long it runs, the chart is as wide, keeps the highest reading, and shows the budget once.
func TestChart(t *testing.T) {
	for _, seconds := range []int{1, 20, 3600} {
		var h history
		begun := time.Unix(1_000_000, 0)
		every := max(time.Duration(seconds)*time.Second/2000, 20*time.Millisecond)
		for at := time.Duration(0); at < time.Duration(seconds)*time.Second; at += every {
			n := int64(50 << 20)
			if at > time.Duration(seconds)*time.Second/2 && at < time.Duration(seconds)*time.Second*3/4 {
				n = 600 << 20
			}
			h.add(begun.Add(at), n)
		}
		require.LessOrEqual(t, len(h.most), 2*chartWidth)
		lines := h.chart(200 << 20)
		require.Len(t, lines, chartHeight+1)
		all := strings.Join(lines, "\n")
		require.Equal(t, 1, strings.Count(all, "budget 200.0MiB"), all)
		require.Contains(t, lines[0], "█", "what was above the budget is seen: %s", all)
		require.Contains(t, lines[chartHeight-2], "─", all) // 200 of 600 MiB, in six rows
		for _, line := range lines {
			bar, _, _ := strings.Cut(line, "─ budget")
			require.LessOrEqual(t, utf8.RuneCountInString(bar), chartWidth, all)
		}
	}
	require.Empty(t, new(history).chart(1))
}

// One below the budget all the time has the line above it.
func TestChartBelowTheBudget(t *testing.T) {
	var h history
	for i := range 100 {
		h.add(time.Unix(0, int64(i)*int64(50*time.Millisecond)), 100<<20)
	}
	lines := h.chart(200 << 20)
	require.Contains(t, lines[0], strings.Repeat("─", chartWidth))
	require.Contains(t, lines[chartHeight-1], strings.Repeat("█", chartWidth))
}
