package main

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/highwater-envoy/highwater/bench/internal/figures"
)

const (
	chartWidth  = 72 // columns; there are twice as many steps at most
	chartHeight = 6
	firstStep   = 50 * time.Millisecond
)

// history is memory in use over time, however long that is: each step keeps its highest reading,
// and when there are too many steps, two become one. The zero value is ready.
type history struct {
	mu    sync.Mutex
	begun time.Time
	step  time.Duration
	most  []int64 // bytes, by step
}

func (h *history) add(now time.Time, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.begun.IsZero() {
		h.begun, h.step = now, firstStep
	}
	i := int(now.Sub(h.begun) / h.step)
	for i >= 2*chartWidth {
		half := h.most[:0]
		for j := 0; j < len(h.most); j += 2 {
			half = append(half, max(h.most[j], h.most[min(j+1, len(h.most)-1)]))
		}
		h.most, h.step, i = half, 2*h.step, i/2
	}
	for len(h.most) <= i { // a step without a reading is as the one before
		h.most = append(h.most, h.last())
	}
	h.most[i] = max(h.most[i], n)
}

func (h *history) last() int64 {
	if len(h.most) == 0 {
		return 0
	}
	return h.most[len(h.most)-1]
}

// columns are the highest readings of as many equal parts of the time.
func (h *history) columns(width int) []int64 {
	width = min(width, len(h.most))
	out := make([]int64, width)
	for i, n := range h.most {
		c := i * width / len(h.most)
		out[c] = max(out[c], n)
	}
	return out
}

// chart draws it, with the budget as a line.
func (h *history) chart(limit int64) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	columns := h.columns(chartWidth)
	if len(columns) == 0 {
		return nil
	}
	most := limit
	for _, n := range columns {
		most = max(most, n)
	}
	const eighths = 8
	glyphs := []rune(" ▁▂▃▄▅▆▇█")
	unit := float64(most) / (chartHeight * eighths)
	budgetRow := min(int(float64(limit)/unit-1)/eighths, chartHeight-1)
	lines := make([]string, 0, chartHeight+1)
	for row := chartHeight - 1; row >= 0; row-- {
		var b strings.Builder
		for _, n := range columns {
			fill := min(max(int(float64(n)/unit+.5)-row*eighths, 0), eighths)
			if fill == 0 && row == budgetRow {
				b.WriteRune('─')
				continue
			}
			b.WriteRune(glyphs[fill])
		}
		text := strings.TrimRight(b.String(), " ")
		if row == budgetRow {
			text = fmt.Sprintf("%s─ budget %s", b.String(), figures.Size(float64(limit)))
		}
		lines = append(lines, text)
	}
	return append(lines, fmt.Sprintf("memory in use over %s", figures.Time((time.Duration(len(h.most))*h.step).Round(100*time.Millisecond))))
}
