package main

import (
	"fmt"
	"sync"
	"time"

	"github.com/highwater-envoy/highwater/bench/internal/figures"
	"github.com/highwater-envoy/highwater/internal/chart"
)

// history is memory in use over time. The zero value is ready.
type history struct {
	mu     sync.Mutex
	begun  time.Time
	series chart.Series
}

func (h *history) add(now time.Time, n int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.begun.IsZero() {
		h.begun = now
	}
	h.series.Add(now.Sub(h.begun), n)
}

// chart draws it, with the budget as a line.
func (h *history) chart(limit int64) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	lines := h.series.Lines(limit, "budget "+figures.Size(float64(limit)), 0)
	if len(lines) == 0 {
		return nil
	}
	return append(lines, fmt.Sprintf("memory in use over %s", figures.Time(h.series.Span().Round(100*time.Millisecond))))
}
