package guard

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// plot draws what a story is about: the reading, the estimate and the limit, over the time since
// the process began. A row is named by the least that it shows: what is on the limit's row has
// reached the limit. Of several values in one column the highest is drawn. Without a recent reading
// there is none to draw, and the estimate goes by what the requests in flight may hold.
type plot struct {
	limit  int64
	points []point
}

// point is what is known at one time, bytes; a reading below 0 is none.
type point struct {
	at                Time
	reading, estimate int64
}

const (
	plotRows    = 14
	plotColumns = 60
)

func (p *plot) add(s point) { p.points = append(p.points, s) }

func (p *plot) String() string {
	if len(p.points) == 0 {
		return ""
	}
	top := p.limit
	for _, s := range p.points {
		top = max(top, s.reading, s.estimate)
	}
	last := p.points[len(p.points)-1].at
	column := stepFor(last, plotColumns, 25*ms, 50*ms, 100*ms, 250*ms, 500*ms, time.Second, 2*time.Second, 5*time.Second, 10*time.Second)
	row := stepFor(top, plotRows, mib, 2*mib, 5*mib, 10*mib, 20*mib, 25*mib, 50*mib, 100*mib)
	columns, limit := int(last/column)+1, int(p.limit/row)
	lines := make([][]byte, max(int(top/row), limit)+1)
	for i := range lines {
		lines[i] = []byte(strings.Repeat(" ", columns))
	}
	lines[limit] = []byte(strings.Repeat("=", columns))
	highest := make([]point, columns)
	for i := range highest {
		highest[i].reading, highest[i].estimate = -1, -1
	}
	for _, s := range p.points {
		c := &highest[s.at/column]
		c.reading, c.estimate = max(c.reading, s.reading), max(c.estimate, s.estimate)
	}
	for i, s := range highest {
		if s.estimate >= 0 {
			lines[s.estimate/row][i] = 'e'
		}
		switch {
		case s.reading < 0:
		case s.reading/row == s.estimate/row:
			lines[s.reading/row][i] = '*'
		default:
			lines[s.reading/row][i] = 'r'
		}
	}
	return p.labelled(lines, row, column)
}

// labelled puts the axes to the lines, the lowest of which is first.
func (p *plot) labelled(lines [][]byte, row int64, column Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%5s   r reading, e estimate, * both, = limit\n", "MiB")
	for i, l := range slices.Backward(lines) {
		b.WriteString(strings.TrimRight(fmt.Sprintf("%5d |%s", int64(i)*row/mib, l), " ") + "\n")
	}
	axis, times := "      +", "       "
	for i := 0; i < len(lines[0]); i += 10 {
		axis += fmt.Sprintf("%-10s", "^")
		times += fmt.Sprintf("%-10s", fmt.Sprintf("%gs", (Time(i)*column).Seconds()))
	}
	b.WriteString(strings.TrimRight(axis, " ") + "\n" + strings.TrimRight(times, " ") + "\n")
	return b.String()
}

// stepFor is the least of the steps of which n make up the whole, or the last.
func stepFor[T ~int64](whole T, n int, steps ...T) T {
	for _, s := range steps {
		if int(whole/s) < n {
			return s
		}
	}
	return steps[len(steps)-1]
}
