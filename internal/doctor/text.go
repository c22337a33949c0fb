package doctor

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/highwater-envoy/highwater/internal/memorymap"
)

const (
	barWidth  = 60
	partWidth = 30
	textWidth = 100
)

// shades tell the layers of the bar apart, without colours.
var shades = []rune("█▓▒░▞╱·?")

// WriteText writes the report as a page for a terminal, 100 columns wide.
func (r *Report) WriteText(w io.Writer) {
	p := &printer{w: w}
	p.head(r)
	p.bar(r)
	p.parts(r)
	p.allocator(r)
	p.growth(r)
	p.heaps(r)
	p.list("What was found", len(r.Findings), func(i int) string { return r.Findings[i].Text })
	p.list("What to change", len(r.Advice), func(i int) string {
		a := r.Advice[i]
		return fmt.Sprintf("%s: %s\nbrings %s", a.Setting, a.Value, a.Brings)
	})
	if len(r.Advice) == 0 && r.Map.Resident > 0 {
		p.line("\nNothing is to be changed, as far as this can be seen.")
	}
	p.more(r)
	p.list("Not known", len(r.Missing), func(i int) string { return r.Missing[i] })
}

type printer struct{ w io.Writer }

func (p *printer) line(format string, args ...any) {
	fmt.Fprintln(p.w, clean(fmt.Sprintf(format, args...)))
}

// clean leaves out what a terminal would obey: names come from whoever configured Envoy.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || r == utf8.RuneError || unicode.Is(unicode.Cf, r)) {
			return -1
		}
		return r
	}, text)
}

func (p *printer) head(r *Report) {
	about := []string{"Envoy"}
	if r.Envoy.Version != "" {
		about[0] += " " + r.Envoy.Version
	}
	if r.Envoy.Workers > 0 {
		about = append(about, fmt.Sprintf("%d workers", r.Envoy.Workers))
	}
	if r.Envoy.PID > 0 {
		about = append(about, fmt.Sprintf("process %d", r.Envoy.PID))
	}
	if r.Envoy.Uptime > 0 {
		about = append(about, "up "+r.Envoy.Uptime.Round(time.Second).String())
	}
	if !r.Time.IsZero() {
		about = append(about, r.Time.UTC().Format("2006-01-02 15:04:05 UTC"))
	}
	p.line("%s", strings.Join(about, " · "))
	p.line("\n%s\n", wrap(r.Verdict, ""))
}

// bar draws the layers side by side.
func (p *printer) bar(r *Report) {
	whole := max(r.Map.Resident, 1)
	var bar, legend strings.Builder
	used := 0
	for i, l := range layersOf(&r.Map) {
		if l.Bytes <= 0 {
			continue
		}
		n := int((l.Bytes*barWidth + whole/2) / whole)
		n = min(max(n, 1), max(barWidth-used, 0))
		used += n
		bar.WriteString(strings.Repeat(string(shades[i]), n))
		fmt.Fprintf(&legend, "%c %s %s   ", shades[i], l.Name, human(l.Bytes))
	}
	of := ""
	if r.Limit > 0 {
		of = fmt.Sprintf(" of %s, %s", human(r.Limit), percent(r.Map.Resident, r.Limit))
	}
	p.line("  %s  %s resident%s", bar.String(), human(r.Map.Resident), of)
	p.line("%s\n", wrap(strings.TrimSpace(legend.String()), "  "))
}

func (p *printer) parts(r *Report) {
	whole := max(r.Map.Resident, 1)
	row := func(indent string, part memorymap.Part, mark string) {
		n := int(max(part.Bytes, 0) * partWidth / whole)
		p.line("  %-40s %10s %5s  %s", indent+part.Name, human(part.Bytes), percent(part.Bytes, whole), strings.Repeat(mark, min(n, partWidth)))
	}
	for _, part := range r.Map.Parts {
		row("", part, "█")
		if part.Name == memorymap.Application {
			for _, in := range r.Map.Inside {
				row("  ", in, "▒")
			}
		}
	}
	var beside []string
	if r.Map.Sockets != nil {
		beside = append(beside, fmt.Sprintf("%s in the kernel's TCP buffers", human(*r.Map.Sockets)))
	}
	if r.Map.Untouched > 0 {
		beside = append(beside, fmt.Sprintf("%s of the heap that was never touched", human(r.Map.Untouched)))
	}
	if len(beside) > 0 {
		p.line("  beside it: %s", strings.Join(beside, ", "))
	}
	p.line("  off by %.1f%%; the application's parts are an estimate, off by %.1f%%", 100*r.Map.Error, 100*r.Map.InsideError)
}

func (p *printer) allocator(r *Report) {
	a := r.Allocator
	if a == nil {
		return
	}
	text := fmt.Sprintf("\nAllocator (%s): %s in use, %s in caches, %s free, %s given back; external fragmentation %.0f%%",
		a.Kind, human(a.Application), human(a.Cached()), human(a.Free), human(a.Unmapped), 100*a.ExternalFragmentation())
	if part, known := a.InternalFragmentation(); known {
		text += fmt.Sprintf(", internal %.1f%%", 100*part)
	}
	p.line("%s", wrap(text, "  "))
	for _, c := range r.Largest {
		p.line("  %10d bytes × %-9d = %10s", c.Size, c.Live, human(c.LiveBytes()))
	}
	if a.Large > 0 {
		p.line("  %-28s = %10s", "objects above 256KiB", human(a.Large))
	}
}

func (p *printer) growth(r *Report) {
	g := r.Growth
	if g == nil {
		return
	}
	p.line("\nGrowth, watched for %s", g.Over.Round(time.Second))
	p.line("%s", wrap(g.Growing.String(), "  "))
	if g.Leak.Found() {
		p.line("  leak: %s", g.Leak)
	}
}

// heapLines is how many classes are shown of a heap dump.
const heapLines = 12

func (p *printer) heaps(r *Report) {
	for i := range r.Heaps {
		var text strings.Builder
		_ = r.Heaps[i].Write(&text, heapLines)
		p.line("\nWho holds the %s", strings.TrimRight(text.String(), "\n"))
	}
}

// more prints commands as they are typed, in one line each.
func (p *printer) more(r *Report) {
	if len(r.More) > 0 {
		p.line("\nMore")
	}
	for _, command := range r.More {
		p.line("  %s", command)
	}
}

func (p *printer) list(title string, n int, text func(int) string) {
	if n == 0 {
		return
	}
	p.line("\n%s", title)
	for i := range n {
		lines := strings.Split(clean(text(i)), "\n")
		p.line("  %d. %s", i+1, strings.TrimLeft(wrap(lines[0], "     "), " "))
		for _, l := range lines[1:] {
			p.line("%s", wrap(l, "     "))
		}
	}
}

// wrap breaks a text into lines of textWidth, each behind an indent.
func wrap(text, indent string) string {
	var out strings.Builder
	column := 0
	for _, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case column == 0:
			out.WriteString(indent)
			column = len(indent)
		case column+1+n > textWidth:
			out.WriteString("\n" + indent)
			column = len(indent)
		default:
			out.WriteByte(' ')
			column++
		}
		out.WriteString(word)
		column += n
	}
	if strings.HasPrefix(text, "\n") {
		return "\n" + strings.TrimPrefix(out.String(), indent)
	}
	return out.String()
}
