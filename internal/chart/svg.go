package chart

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"time"
)

// Theme is the colours of an image. There are as many curves as Curves has colours; more begin with
// the first again.
type Theme struct {
	Background, Text, Faint, Limit string
	Curves                         []string
}

// The themes.
var (
	Light = Theme{"#ffffff", "#1f2328", "#d0d7de", "#1f2328", []string{"#cf222e", "#bf8700", "#0969da", "#1a7f37", "#8250df"}}
	Dark  = Theme{"#0d1117", "#e6edf3", "#30363d", "#e6edf3", []string{"#f85149", "#d29922", "#58a6ff", "#3fb950", "#bc8cff"}}
)

// Curve is bytes over time, in the order of time.
type Curve struct {
	Name  string // in the legend
	At    []time.Duration
	Bytes []int64
}

func (c *Curve) peak() (peak int64) {
	for _, n := range c.Bytes {
		peak = max(peak, n)
	}
	return peak
}

// Image is what is drawn.
type Image struct {
	Caption string
	Limits  []Limit
	Curves  []Curve
	Span    time.Duration
}

// Limit is a line across the image.
type Limit struct {
	Name  string
	Bytes int64
}

// The frame of the curves, in the image's own units.
const (
	width                 = 840
	left, right, tall     = 60, 820, 236
	legendTop, legendStep = 24, 18
	pixels                = 2 // in a column of pixels the highest is drawn
	mib                   = 1 << 20
)

// SVG draws the image. What falls into one column of pixels is drawn as its highest, so that no
// peak is lost.
func (m Image) SVG(t Theme) []byte {
	var highest int64 = 1
	for _, l := range m.Limits {
		highest = max(highest, l.Bytes)
	}
	for i := range m.Curves {
		highest = max(highest, m.Curves[i].peak())
	}
	top := legendTop + legendStep*len(m.Curves) + 6
	bottom := top + tall
	height := bottom + 52
	scale := float64(highest) * 1.08
	x := func(at time.Duration) float64 {
		return left + float64(right-left)*min(float64(at)/float64(max(m.Span, 1)), 1)
	}
	y := func(n int64) float64 { return float64(bottom) - tall*float64(n)/scale }

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" rx="6" fill="%s"/>`+"\n", width, height, t.Background)
	text := func(x, y float64, anchor, s string) {
		fmt.Fprintf(&b, `<text x="%.0f" y="%.0f" text-anchor="%s" fill="%s">`, x, y, anchor, t.Text)
		_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
		b.WriteString("</text>\n")
	}
	step := bytesStep(scale)
	for n := int64(0); float64(n) < scale; n += step {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="%s"/>`+"\n", left, y(n), right, t.Faint)
		text(left-6, y(n)+4, "end", fmt.Sprint(n/mib))
	}
	every := timeStep(m.Span)
	for at := time.Duration(0); at <= m.Span; at += every {
		text(x(at), float64(bottom)+18, "middle", tick(at, every))
	}
	for i := range m.Curves {
		c := &m.Curves[i]
		colour := t.Curves[i%len(t.Curves)]
		text(left+34, legendTop+legendStep*float64(i)+4, "start", c.Name)
		fmt.Fprintf(&b, `<path d="M%d %dh24" stroke="%s" stroke-width="3"/>`+"\n", left, legendTop+legendStep*i, colour)
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round"/>`+"\n", c.path(x, y), colour)
	}
	for _, l := range m.Limits {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="%s" stroke-dasharray="6 4"/>`+"\n", left, y(l.Bytes), right, t.Limit)
		text(right, y(l.Bytes)-6, "end", l.Name)
	}
	text(left, float64(height)-8, "start", m.Caption)
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// bytesStep is between two lines of the grid: there are eight at most.
func bytesStep(scale float64) int64 {
	step := int64(mib)
	for _, factor := range []int64{1, 2, 5, 10, 20, 50, 100, 200, 300, 400, 500, 1000, 2000, 5000, 10_000, 100_000} {
		if step = factor * mib; float64(step)*8 >= scale {
			break
		}
	}
	return max(step, int64(scale/100))
}

// timeStep is between two times below the image: there are ten at most.
func timeStep(span time.Duration) time.Duration {
	for _, step := range []time.Duration{
		100 * time.Millisecond, time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute,
		2 * time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour, 6 * time.Hour, 12 * time.Hour,
	} {
		if step*10 >= span {
			return step
		}
	}
	return max(24*time.Hour, span/10)
}

func tick(at, every time.Duration) string {
	switch {
	case every < time.Second:
		return fmt.Sprintf("%.1f s", at.Seconds())
	case every < time.Minute:
		return fmt.Sprintf("%.0f s", at.Seconds())
	case every < time.Hour:
		return fmt.Sprintf("%.0f min", at.Minutes())
	}
	return fmt.Sprintf("%.0f h", at.Hours())
}

// path is the curve as a path.
func (c *Curve) path(x func(time.Duration) float64, y func(int64) float64) string {
	var b bytes.Buffer
	for i := 0; i < len(c.At); {
		column, highest := int(x(c.At[i]))/pixels, c.Bytes[i]
		for ; i < len(c.At) && int(x(c.At[i]))/pixels == column; i++ {
			highest = max(highest, c.Bytes[i])
		}
		fmt.Fprintf(&b, "L%d %.1f", column*pixels, y(highest))
	}
	if b.Len() > 0 {
		b.Bytes()[0] = 'M'
	}
	return b.String()
}
