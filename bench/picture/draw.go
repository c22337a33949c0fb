package main

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"time"
)

// theme is the colours of one image.
type theme struct {
	background, text, faint, limit string
	curves                         [3]string
}

var themes = map[string]theme{
	"light": {"#ffffff", "#1f2328", "#d0d7de", "#1f2328", [3]string{"#cf222e", "#bf8700", "#0969da"}},
	"dark":  {"#0d1117", "#e6edf3", "#30363d", "#e6edf3", [3]string{"#f85149", "#d29922", "#58a6ff"}},
}

// The frame of the curves, in the image's own units.
const (
	width, height                  = 840, 372
	left, right, top, bottom       = 60, 820, 84, 320
	legendTop, legendStep, columns = 24, 18, 2 // columns: of pixels, each with the highest sample that falls into it
)

// draw makes the image. What falls into one column of pixels is drawn as its highest, so that no
// peak is lost.
func draw(t theme, curves []curve, limit int64, duration time.Duration) []byte {
	highest := limit
	for _, c := range curves {
		highest = max(highest, c.peak())
	}
	scale := float64(highest) * 1.08
	x := func(at time.Duration) float64 {
		return left + float64(right-left)*min(float64(at)/float64(duration), 1)
	}
	y := func(n int64) float64 { return bottom - float64(bottom-top)*float64(n)/scale }

	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" rx="6" fill="%s"/>`+"\n", width, height, t.background)
	text := func(x, y float64, anchor, colour, s string) {
		fmt.Fprintf(&b, `<text x="%.0f" y="%.0f" text-anchor="%s" fill="%s">`, x, y, anchor, colour)
		_ = xml.EscapeText(&b, []byte(s)) // a buffer takes everything
		b.WriteString("</text>\n")
	}
	step := int64(100 * mib)
	for float64(step)*8 < scale {
		step += 100 * mib
	}
	for n := int64(0); float64(n) < scale; n += step {
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="%s"/>`+"\n", left, y(n), right, t.faint)
		text(left-6, y(n)+4, "end", t.text, fmt.Sprint(n/mib))
	}
	for at := time.Duration(0); at <= duration; at += 2 * time.Second {
		text(x(at), bottom+18, "middle", t.text, fmt.Sprintf("%.0f s", at.Seconds()))
	}
	for i, c := range curves {
		colour := t.curves[i]
		text(left+34, legendTop+legendStep*float64(i)+4, "start", t.text, fmt.Sprintf("%s: peak %.2f of the budget, %.0f %% of the small requests answered",
			c.name, float64(c.peak())/float64(limit), 100*c.answered))
		fmt.Fprintf(&b, `<path d="M%d %dh24" stroke="%s" stroke-width="3"/>`+"\n", left, legendTop+legendStep*i, colour)
		fmt.Fprintf(&b, `<path d="%s" fill="none" stroke="%s" stroke-width="2" stroke-linejoin="round"/>`+"\n", line(c, x, y), colour)
	}
	fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="%s" stroke-dasharray="6 4"/>`+"\n", left, y(limit), right, t.limit)
	text(right, y(limit)-6, "end", t.text, fmt.Sprintf("budget, %d MiB", limit/mib))
	text(left, height-8, "start", t.text, fmt.Sprintf("memory in use, MiB: %d clients upload 4 MiB each to an upstream that waits 2 s", clients))
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// line is the curve as a path.
func line(c curve, x func(time.Duration) float64, y func(int64) float64) string {
	var b bytes.Buffer
	for i := 0; i < len(c.at); {
		column, highest := int(x(c.at[i]))/columns, c.inUse[i]
		for ; i < len(c.at) && int(x(c.at[i]))/columns == column; i++ {
			highest = max(highest, c.inUse[i])
		}
		fmt.Fprintf(&b, "L%d %.1f", column*columns, y(highest))
	}
	if b.Len() > 0 {
		b.Bytes()[0] = 'M'
	}
	return b.String()
}
