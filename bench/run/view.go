package main

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/highwater-envoy/highwater/bench/internal/figures"
	"github.com/highwater-envoy/highwater/internal/load"
)

// watch is all that the view shows.
type watch struct {
	guarded bool
	limit   int64
	kinds   []kind
	begun   time.Time
	admin   string
	memory  load.Sampler
	history history

	mu struct {
		sync.Mutex
		stats figures.Stats
	}
}

func (w *watch) setStats(s figures.Stats) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.stats = s
}

func (w *watch) metric(name string) (float64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.stats.Get(name)
}

func (w *watch) size(name string) string {
	v, ok := w.metric(name)
	if !ok {
		return "–"
	}
	return figures.Size(v)
}

func (w *watch) number(name string) string {
	v, ok := w.metric(name)
	if !ok {
		return "–"
	}
	return fmt.Sprintf("%.0f", v)
}

var levels = []string{"normal", "soft", "hard", "over"}

// level is the guard's, or without a guard (or before its first word) what the readings alone say.
func (w *watch) level() int {
	if v, ok := w.metric("level"); ok && w.guarded {
		return min(max(int(v), 0), len(levels)-1)
	}
	if w.memory.Last().InUse > w.limit {
		return len(levels) - 1
	}
	return 0
}

// ANSI colours.
const (
	reset  = "\x1b[0m"
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	orange = "\x1b[38;5;208m"
	cyan   = "\x1b[36m"
	blue   = "\x1b[34m"
)

var levelColours = []string{green, yellow, orange, red}

type painter bool

func (p painter) paint(colour, text string) string {
	if !p || text == "" {
		return text
	}
	return colour + text + reset
}

// view is what a terminal shows, line by line.
func (w *watch) view(width int, colours bool) []string {
	p := painter(colours)
	last := w.memory.Last()
	peak, _, _ := w.memory.Peak()
	level := w.level()
	share := func(n int64) string { return fmt.Sprintf("%.0f%%", 100*float64(n)/float64(w.limit)) }

	state := p.paint(green, "guard on")
	if !w.guarded {
		state = p.paint(red, "guard off")
	}
	lines := []string{
		fmt.Sprintf("%s  %s  %s  %s", p.paint(bold, "Highwater"), state,
			time.Since(w.begun).Round(time.Second), p.paint(dim, "admin "+w.admin)),
		"",
		"  " + w.bar(min(width-4, 76), p),
		fmt.Sprintf("  in use %s of %s  %s   peak %s  %s",
			p.paint(bold+levelColours[level], figures.Size(float64(last.InUse))), figures.Size(float64(w.limit)), share(last.InUse),
			figures.Size(float64(peak.InUse)), share(peak.InUse)),
	}
	if w.guarded {
		lines = append(lines,
			fmt.Sprintf("  base %s  +  fresh %s  +  coming %s     estimate %s   level %s",
				w.size("base_bytes"), p.paint(cyan, w.size("fresh_bytes")), p.paint(blue, w.size("coming_bytes")), w.size("estimate_bytes"),
				p.paint(levelColours[level], levels[level])),
			fmt.Sprintf("  %s connections   %s streams   %s waiting in the queue", w.number("connections"), w.number("streams"), w.number("waiting")))
	}
	lines = append(lines, "",
		p.paint(dim, fmt.Sprintf("  %-18s %9s %9s %9s %9s %9s %9s %9s %9s", "load", "served", "in flight", "waiting", "rejected", "closed", "failed", "p50", "p99")))
	for _, k := range w.kinds {
		s := k.snapshot()
		rejected, failed := fmt.Sprintf("%9d", s.Rejected), fmt.Sprintf("%9d", failures(s))
		if s.Rejected > 0 {
			rejected = p.paint(yellow, rejected)
		}
		if failures(s) > 0 {
			failed = p.paint(red, failed)
		}
		lines = append(lines, fmt.Sprintf("  %-18s %9d %9d %9d %s %9d %s %9s %9s", k.name, s.Served, s.InFlight, s.Waiting, rejected, s.Closed, failed,
			figures.Time(s.P50), figures.Time(s.P99)))
	}
	return append(lines, "", p.paint(dim, "  Ctrl-C ends it"))
}

// failures are what nobody meant to happen; closed connections are the guard's doing, and shown
// beside the rejects.
func failures(s load.Snapshot) int64 { return s.Cut + s.Errors }

// bar draws memory in use, then what is fresh and coming, up to the budget's mark and as far beyond
// it as it ever was.
func (w *watch) bar(width int, p painter) string {
	peak, _, _ := w.memory.Peak()
	estimate, _ := w.metric("estimate_bytes")
	scale := 1.15 * max(float64(w.limit), float64(peak.InUse), estimate)
	cell := func(bytes float64) int { return min(max(int(bytes/scale*float64(width)+0.5), 0), width-1) }

	inUse := float64(w.memory.Last().InUse)
	fresh, _ := w.metric("fresh_bytes")
	coming, _ := w.metric("coming_bytes")
	used, afterFresh, afterComing, mark := cell(inUse), cell(inUse+fresh), cell(inUse+fresh+coming), cell(float64(w.limit))

	var b strings.Builder
	run := func(colour, glyph string, from, to int) {
		// The budget's mark is drawn over whatever is there.
		for from < to {
			end := to
			if from <= mark && mark < to {
				end = mark
			}
			b.WriteString(p.paint(colour, strings.Repeat(glyph, end-from)))
			if end == mark && mark < to {
				b.WriteString(p.paint(bold, "┃"))
				end++
			}
			from = end
		}
	}
	run(levelColours[w.level()], "█", 0, used)
	run(cyan, "▓", used, afterFresh)
	run(blue, "▒", afterFresh, afterComing)
	run(dim, "░", max(used, afterFresh, afterComing), width)
	return b.String()
}

// line is the view in one line, for logs and pipes.
func (w *watch) line() string {
	last := w.memory.Last()
	var b strings.Builder
	fmt.Fprintf(&b, "%5s  in use %s of %s (%.0f%%)", time.Since(w.begun).Round(time.Second),
		figures.Size(float64(last.InUse)), figures.Size(float64(w.limit)), 100*float64(last.InUse)/float64(w.limit))
	if w.guarded {
		fmt.Fprintf(&b, ", base %s, fresh %s, coming %s, estimate %s, %s, %s waiting", w.size("base_bytes"), w.size("fresh_bytes"),
			w.size("coming_bytes"), w.size("estimate_bytes"), levels[w.level()], w.number("waiting"))
	}
	for _, k := range w.kinds {
		s := k.snapshot()
		fmt.Fprintf(&b, " | %s: %d served, %d waiting, %d rejected", k.name, s.Served, s.Waiting, s.Rejected)
		if s.Closed > 0 {
			fmt.Fprintf(&b, ", %d closed", s.Closed)
		}
		if n := failures(s); n > 0 {
			fmt.Fprintf(&b, ", %d failed", n)
		}
		fmt.Fprintf(&b, ", p99 %s", figures.Time(s.P99))
	}
	return b.String()
}

// summary is what is left to say at the end: a picture, and the figures.
func (w *watch) summary(out io.Writer) {
	peak, _, _ := w.memory.Peak()
	against := func(n int64) string {
		return fmt.Sprintf("%s, %.2f of the budget", figures.Size(float64(n)), float64(n)/float64(w.limit))
	}
	with := "with the guard"
	if !w.guarded {
		with = "without the guard"
	}
	fmt.Fprintf(out, "\n%s %s, budget %s\n\n", figures.Time(time.Since(w.begun).Round(100*time.Millisecond)), with, figures.Size(float64(w.limit)))
	for _, line := range w.history.chart(w.limit) {
		fmt.Fprintf(out, "  %s\n", line)
	}
	fmt.Fprintf(out, "  peak: allocated %s; in use %s\n\n", against(peak.Allocated), against(peak.InUse))
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(table, "  load\tserved\trejected\tclosed\tfailed\tp50\tp99\tMiB/s\t")
	var problems []string
	for _, k := range w.kinds {
		s := k.snapshot()
		goodput := "–"
		if s.Goodput() > mib { // of small requests nobody asks that
			goodput = fmt.Sprintf("%.0f", s.Goodput()/mib)
		}
		fmt.Fprintf(table, "  %s\t%d\t%d\t%d\t%d\t%s\t%s\t%s\t\n", k.name, s.Served, s.Rejected, s.Closed, failures(s),
			figures.Time(s.P50), figures.Time(s.P99), goodput)
		if s.Problem != "" {
			problems = append(problems, fmt.Sprintf("  %s, the first failure: %s", k.name, s.Problem))
		}
	}
	_ = table.Flush()
	for _, p := range problems {
		fmt.Fprintln(out, p)
	}
	if w.guarded {
		w.mu.Lock()
		defer w.mu.Unlock()
		did := figures.List(w.mu.stats.Verdicts())
		if did == "" {
			did = "not one verdict"
		}
		fmt.Fprintf(out, "\n  the guard: %s\n", did)
	}
}

// clip cuts a line to width columns. Escape sequences take none.
func clip(line string, width int) string {
	columns := 0
	for i := 0; i < len(line); {
		if line[i] == '\x1b' {
			if end := strings.IndexByte(line[i:], 'm'); end >= 0 {
				i += end + 1
				continue
			}
		}
		_, size := utf8.DecodeRuneInString(line[i:])
		if columns++; columns > width {
			return line[:i] + reset
		}
		i += size
	}
	return line
}
