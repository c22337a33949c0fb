package doctor

import (
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/heapdump"
)

//go:embed page.html
var pageText string

var pageTemplate = template.Must(template.New("page").Funcs(template.FuncMap{
	"human": human, "percent": percent, "clean": clean,
	"utc":  func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"span": func(d time.Duration) string { return d.Round(time.Second).String() },
	"few":  func(list []heapdump.Class) []heapdump.Class { return list[:min(len(list), heapLines)] },
	"off":  func(v float64) string { return fmt.Sprintf("%.1f%%", 100*v) },
}).Parse(pageText))

// Peak is a moment to be marked on the page.
type Peak struct {
	At    time.Time
	Label string
	URL   string // where its requests are; empty = nowhere
}

// Page is the report with its history, as one page of HTML that asks nobody for anything.
type Page struct {
	Report  *Report
	Limit   int64   // a line of the chart, bytes, where the report has no limit; 0 = none
	History []Point // oldest first; fewer than two = there is no chart
	Peaks   []Peak
	Refresh time.Duration // the browser loads it again after so long; 0 = never
}

// WriteHTML writes the page.
func (p *Page) WriteHTML(w io.Writer) error {
	return pageTemplate.Execute(w, struct {
		*Report
		Bar     []segment
		Rows    []row
		Chart   *chart
		Refresh int
	}{p.Report, segments(p.Report), rows(p.Report), chartOf(p), int(p.Refresh.Seconds())})
}

// segment is a layer of the bar: where it begins and how wide it is, of 1,000.
type segment struct {
	Layer int
	Name  string
	Bytes int64
	X, W  float64
}

func segments(r *Report) (list []segment) {
	layers := layersOf(&r.Map)
	var whole int64
	for _, l := range layers {
		whole += max(l.Bytes, 0)
	}
	x := 0.0
	for i, l := range layers {
		if l.Bytes <= 0 {
			continue
		}
		w := 1000 * float64(l.Bytes) / float64(whole)
		list = append(list, segment{Layer: i, Name: l.Name, Bytes: l.Bytes, X: x, W: w})
		x += w
	}
	return list
}

// row is a part of the table.
type row struct {
	Name, About string
	Bytes       int64
	Width       float64 // of 100
	Inside      bool
}

func rows(r *Report) (list []row) {
	width := func(n int64) float64 { return min(100*float64(max(n, 0))/float64(max(r.Map.Resident, 1)), 100) }
	for _, p := range r.Map.Parts {
		list = append(list, row{Name: p.Name, About: p.About, Bytes: p.Bytes, Width: width(p.Bytes)})
		if p.Name == "the application" {
			for _, in := range r.Map.Inside {
				list = append(list, row{Name: in.Name, Bytes: in.Bytes, Width: width(in.Bytes), Inside: true})
			}
		}
	}
	return list
}

// The chart's size, in its own units.
const (
	chartWidth, chartHeight = 1000, 300
	marginLeft, marginTop   = 70, 24
	marginRight, marginFoot = 12, 28
)

// chart is the layers over time, stacked.
type chart struct {
	Width, Height int
	Areas         []area
	YTicks        []tick
	XTicks        []tick
	Marks         []mark
	LimitY        float64 // 0 = out of sight
	Limit         string
	Left, Right   int
	Top, Bottom   int
}

type area struct {
	Layer int
	Name  string
	Path  string
}

type tick struct {
	At     float64
	Text   string
	Anchor string
}

type mark struct {
	X, Y       float64
	Text, Link string // Text: empty where there is no room for it
	Title      string
	Anchor     string // of the text: start, middle or end
}

func chartOf(p *Page) *chart {
	points := p.History
	if len(points) < 2 {
		return nil
	}
	from, to := points[0].At, points[len(points)-1].At
	span := max(to.Sub(from), time.Second)
	var top int64
	for i := range points {
		top = max(top, points[i].Resident())
	}
	limit := cmp.Or(p.Report.Limit, p.Limit)
	if limit > 0 && limit < 4*top {
		top = max(top, limit)
	}
	step := tickStep(top)
	top = (top + step - 1) / step * step
	c := &chart{
		Width: chartWidth, Height: chartHeight, Left: marginLeft, Right: chartWidth - marginRight,
		Top: marginTop, Bottom: chartHeight - marginFoot,
	}
	x := func(t time.Time) float64 {
		part := float64(t.Sub(from)) / float64(span)
		return float64(c.Left) + min(max(part, 0), 1)*float64(c.Right-c.Left)
	}
	y := func(n int64) float64 {
		return float64(c.Bottom) - float64(n)/float64(top)*float64(c.Bottom-c.Top)
	}
	for n := int64(0); n <= top; n += step {
		c.YTicks = append(c.YTicks, tick{At: y(n), Text: human(n)})
	}
	for i := range 6 {
		at := from.Add(span * time.Duration(i) / 5)
		anchor := [...]string{0: "start", 5: "end"}[i]
		c.XTicks = append(c.XTicks, tick{x(at), at.UTC().Format("15:04:05"), cmp.Or(anchor, "middle")})
	}
	if limit > 0 && limit <= top {
		c.LimitY, c.Limit = y(limit), "limit "+human(limit)
	}
	c.Areas = areas(points, x, y)
	c.Marks = marks(p, points, x, y)
	return c
}

// tickStep is a power of two MiB such that there are at most six steps.
func tickStep(top int64) int64 {
	step := mib
	for top/step >= 6 {
		step *= 2
	}
	return step
}

// areas are the layers' outlines: along the top of each from left to right, and back below.
func areas(points []Point, x func(time.Time) float64, y func(int64) float64) (list []area) {
	low := make([]int64, len(points))
	for layer := range numLayers {
		var path strings.Builder
		seen := false
		for i := range points {
			op := "L"
			if i == 0 {
				op = "M"
			}
			seen = seen || points[i].Layers[layer] > 0
			fmt.Fprintf(&path, "%s%.1f %.1f", op, x(points[i].At), y(low[i]+points[i].Layers[layer]))
		}
		for i := len(points) - 1; i >= 0; i-- {
			fmt.Fprintf(&path, "L%.1f %.1f", x(points[i].At), y(low[i]))
			low[i] += points[i].Layers[layer]
		}
		if seen {
			list = append(list, area{layer, layerNames[layer], path.String() + "Z"})
		}
	}
	return list
}

// labelWidth is what the text of a mark takes at least: of two that are nearer one has none.
const labelWidth = 110

// marks are the highest point, and the peaks of the guard's that lie on the chart.
func marks(p *Page, points []Point, x func(time.Time) float64, y func(int64) float64) (list []mark) {
	const maxMarks = 16
	put := func(at time.Time, n int64, text, link string) {
		m := mark{X: x(at), Y: y(n), Title: text, Text: text, Link: link, Anchor: "middle"}
		switch {
		case m.X < marginLeft+labelWidth/2:
			m.Anchor = "start"
		case m.X > chartWidth-marginRight-labelWidth/2:
			m.Anchor = "end"
		}
		for _, o := range list {
			if o.Text != "" && m.X-o.X < labelWidth && o.X-m.X < labelWidth {
				m.Text = ""
			}
		}
		list = append(list, m)
	}
	high := slices.MaxFunc(points, func(a, b Point) int { return cmp.Compare(a.Resident(), b.Resident()) })
	put(high.At, high.Resident(), "highest "+human(high.Resident()), "")
	for _, peak := range p.Peaks {
		if len(list) == maxMarks {
			break
		}
		if !peak.At.Before(points[0].At) && !peak.At.After(points[len(points)-1].At) {
			put(peak.At, residentAt(points, peak.At), peak.Label, peak.URL)
		}
	}
	return list
}

// residentAt is on the line between the points before and after.
func residentAt(points []Point, at time.Time) int64 {
	i, _ := slices.BinarySearchFunc(points, at, func(a Point, at time.Time) int { return a.At.Compare(at) })
	i = min(max(i, 1), len(points)-1)
	a, b := &points[i-1], &points[i]
	span := b.At.Sub(a.At)
	if span <= 0 {
		return b.Resident()
	}
	part := float64(at.Sub(a.At)) / float64(span)
	return a.Resident() + int64(part*float64(b.Resident()-a.Resident()))
}
