// Package chart draws memory over time, for a terminal and as SVG.
package chart

import (
	"fmt"
	"strings"
	"time"
)

const (
	columns   = 72 // of a terminal; there are twice as many steps at most
	rows      = 6
	firstStep = 50 * time.Millisecond
	eighths   = 8
)

var glyphs = []rune(" ▁▂▃▄▅▆▇█")

// Series is bytes over time, however long that is: each step keeps its highest, and when there are
// too many steps, two become one. The zero value is ready.
type Series struct {
	step time.Duration
	most []int64
}

// Add notes n bytes at a moment since the beginning.
func (s *Series) Add(at time.Duration, n int64) {
	if s.step == 0 {
		s.step = firstStep
	}
	i := int(max(at, 0) / s.step)
	for i >= 2*columns {
		half := s.most[:0]
		for j := 0; j < len(s.most); j += 2 {
			half = append(half, max(s.most[j], s.most[min(j+1, len(s.most)-1)]))
		}
		s.most, s.step, i = half, 2*s.step, i/2
	}
	for len(s.most) <= i { // a step of which nothing is known is as the one before
		s.most = append(s.most, s.last())
	}
	s.most[i] = max(s.most[i], n)
}

func (s *Series) last() int64 {
	if len(s.most) == 0 {
		return 0
	}
	return s.most[len(s.most)-1]
}

// Points are the steps: how long each is, and its highest.
func (s *Series) Points() (step time.Duration, bytes []int64) { return s.step, s.most }

// Span is how long the series is.
func (s *Series) Span() time.Duration { return time.Duration(len(s.most)) * s.step }

// Columns are the highest of as many equal parts of the time, or of as many as there are.
func (s *Series) Columns(width int) []int64 {
	width = min(width, len(s.most))
	out := make([]int64, width)
	for i, n := range s.most {
		c := i * width / len(s.most)
		out[c] = max(out[c], n)
	}
	return out
}

// Lines draws it for a terminal, with the limit as a line that is called name; 0 = there is none.
// scale is what the chart reaches up to at least.
func (s *Series) Lines(limit int64, name string, scale int64) []string {
	bars := s.Columns(columns)
	if len(bars) == 0 {
		return nil
	}
	most := max(limit, scale, 1)
	for _, n := range bars {
		most = max(most, n)
	}
	unit := float64(most) / (rows * eighths)
	limitRow := -1
	if limit > 0 {
		limitRow = min(max(int(float64(limit)/unit-1), 0)/eighths, rows-1)
	}
	lines := make([]string, 0, rows)
	for row := rows - 1; row >= 0; row-- {
		var b strings.Builder
		for _, n := range bars {
			fill := min(max(int(float64(n)/unit+.5)-row*eighths, 0), eighths)
			if fill == 0 && row == limitRow {
				b.WriteRune('─')
				continue
			}
			b.WriteRune(glyphs[fill])
		}
		text := strings.TrimRight(b.String(), " ")
		if row == limitRow {
			text = fmt.Sprintf("%s─ %s", b.String(), name)
		}
		lines = append(lines, text)
	}
	return lines
}
