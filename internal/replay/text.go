package replay

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/highwater-envoy/highwater/internal/chart"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Text writes the results side by side: of each configuration, then of the keys that matter most.
// rows is how many keys are shown.
func Text(w io.Writer, results []*Result, rows int) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "configuration\tlimit\tpeak\tof limit\t"+countsHead)
	for _, r := range results {
		limit, share := "-", "-"
		if r.Limit > 0 {
			limit, share = r.Limit.Human(), fmt.Sprintf("%.2f", float64(r.Peak)/float64(r.Limit))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.Name, limit, r.Peak.Human(), share, r.All.row())
	}
	_ = t.Flush()
	for _, r := range results {
		if len(r.All.Reasons) > 0 {
			fmt.Fprintf(w, "%s rejected: %s\n", r.Name, reasons(r.All.Reasons))
		}
		if r.Late > 0 {
			fmt.Fprintf(w, "%s: %d requests were not made before the recording's end: those before them on their connections took longer\n", r.Name, r.Late)
		}
	}
	keys(w, results, rows)
}

const countsHead = "admitted\twaited\tp50\tp99\trejected\tevicted\tclosed\tserved\tgoodput\t"

func (c *Counts) row() string {
	return fmt.Sprintf("%d\t%d\t%s\t%s\t%d\t%d\t%d\t%d\t%s/s\t", c.Admitted, c.Waited, waited(c.WaitP50), waited(c.WaitP99), c.Rejected, c.Evicted, c.Closed, c.Served, unit.Bytes(c.Goodput).Human())
}

func waited(d unit.Duration) string {
	if d == 0 {
		return "-"
	}
	return time.Duration(d).String()
}

func reasons(all map[string]int64) string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		parts = append(parts, fmt.Sprintf("%s %d", name, all[name]))
	}
	return strings.Join(parts, ", ")
}

// keys writes those of each configuration that lost most.
func keys(w io.Writer, results []*Result, rows int) {
	order := map[string]int{}
	for _, r := range slices.Backward(results) { // the last has a guard
		for _, k := range r.Keys {
			if _, seen := order[k.Key]; !seen {
				order[k.Key] = len(order)
			}
		}
	}
	if len(order) < 2 && len(results) > 0 {
		return // one key is all
	}
	names := slices.SortedFunc(maps.Keys(order), func(a, b string) int { return order[a] - order[b] })
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "key\tconfiguration\tpeak\t"+countsHead)
	for _, name := range names[:min(rows, len(names))] {
		for _, r := range results {
			i := slices.IndexFunc(r.Keys, func(k OfKey) bool { return k.Key == name })
			if i < 0 {
				continue
			}
			k := &r.Keys[i]
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", oneLine(name), r.Name, k.Peak.Human(), k.row())
		}
	}
	_ = t.Flush()
	if more := len(names) - rows; more > 0 {
		fmt.Fprintf(w, "%d keys more: -json has them, -keys shows more\n", more)
	}
}

// oneLine is a name that a client may have made up, as it can be printed.
func oneLine(name string) string {
	name = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, name)
	if len(name) > 48 {
		name = strings.ToValidUTF8(name[:45], "") + "..."
	}
	return name
}

// Charts writes memory in use over time of each result, all on the same scale.
func Charts(w io.Writer, results []*Result) {
	var scale int64
	for _, r := range results {
		scale = max(scale, int64(max(r.Peak, r.Limit)))
	}
	for _, r := range results {
		fmt.Fprintf(w, "\n%s: memory in use over %v, up to %s\n", r.Name, r.Series.Span().Round(time.Second/10), r.Peak.Human())
		for _, line := range r.Series.Lines(int64(r.Limit), "limit "+r.Limit.Human(), scale) {
			fmt.Fprintln(w, "  "+line)
		}
	}
}

// SVG draws the same as one image.
func SVG(results []*Result, caption string) []byte {
	m := chart.Image{Caption: caption}
	for _, r := range results {
		name := fmt.Sprintf("%s: peak %s, %d rejected, evicted or closed", oneLine(r.Name), r.Peak.Human(), r.All.Lost())
		step, points := r.Series.Points()
		c := chart.Curve{Name: name, Bytes: points}
		for i := range points {
			c.At = append(c.At, time.Duration(i)*step)
		}
		m.Curves = append(m.Curves, c)
		m.Span = max(m.Span, r.Series.Span())
		if limit := (chart.Limit{Name: "limit " + r.Limit.Human(), Bytes: int64(r.Limit)}); r.Limit > 0 && !slices.Contains(m.Limits, limit) {
			m.Limits = append(m.Limits, limit)
		}
	}
	return m.SVG(chart.Light)
}
