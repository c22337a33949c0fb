package main

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/chart"
)

var themes = map[string]chart.Theme{"light": chart.Light, "dark": chart.Dark}

// draw makes the image.
func draw(t chart.Theme, curves []curve, limit int64, duration time.Duration) []byte {
	m := chart.Image{
		Caption: fmt.Sprintf("memory in use, MiB: %d clients upload 4 MiB each to an upstream that waits 2 s", clients),
		Limits:  []chart.Limit{{Name: fmt.Sprintf("budget, %d MiB", limit/mib), Bytes: limit}},
		Span:    duration,
	}
	for _, c := range curves {
		name := fmt.Sprintf("%s: peak %.2f of the budget, %.0f %% of the small requests answered", c.name, float64(c.peak())/float64(limit), 100*c.answered)
		m.Curves = append(m.Curves, chart.Curve{Name: name, At: c.at, Bytes: c.inUse})
	}
	return m.SVG(t)
}
