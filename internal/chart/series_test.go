package chart

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// However long it runs, the chart is as wide, keeps the highest, and shows the limit once.
func TestLines(t *testing.T) {
	for _, seconds := range []int{1, 20, 3600} {
		var s Series
		every := max(time.Duration(seconds)*time.Second/2000, 20*time.Millisecond)
		for at := time.Duration(0); at < time.Duration(seconds)*time.Second; at += every {
			n := int64(50 << 20)
			if at > time.Duration(seconds)*time.Second/2 && at < time.Duration(seconds)*time.Second*3/4 {
				n = 600 << 20
			}
			s.Add(at, n)
		}
		step, points := s.Points()
		require.LessOrEqual(t, len(points), 2*columns)
		require.Equal(t, s.Span(), time.Duration(len(points))*step)
		require.InDelta(t, seconds, s.Span().Seconds(), 2*step.Seconds())
		lines := s.Lines(200<<20, "budget 200.0MiB", 0)
		require.Len(t, lines, rows)
		all := strings.Join(lines, "\n")
		require.Equal(t, 1, strings.Count(all, "budget 200.0MiB"), all)
		require.Contains(t, lines[0], "█", "what was above the budget is seen: %s", all)
		require.Contains(t, lines[rows-2], "─", all) // 200 of 600 MiB, in six rows
		for _, line := range lines {
			bar, _, _ := strings.Cut(line, "─ budget")
			require.LessOrEqual(t, utf8.RuneCountInString(bar), columns, all)
		}
	}
	require.Empty(t, new(Series).Lines(1, "", 0))
}

// One below the limit all the time has the line above it, and one on a larger scale is lower.
func TestLinesBelowTheLimit(t *testing.T) {
	var s Series
	for i := range 100 {
		s.Add(time.Duration(i)*50*time.Millisecond, 100<<20)
	}
	lines := s.Lines(200<<20, "limit", 0)
	require.Contains(t, lines[0], strings.Repeat("─", columns))
	require.Contains(t, lines[rows-1], strings.Repeat("█", columns))
	require.NotContains(t, s.Lines(0, "", 700<<20)[rows-2], "█")
	require.NotContains(t, strings.Join(s.Lines(0, "", 0), ""), "─", "there is no limit")
}
