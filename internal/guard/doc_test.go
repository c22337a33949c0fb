package guard

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// README's table of metrics is the one in this package.
func TestReadmeHasEveryMetric(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	for _, m := range append(all(), WaitHistogram()) {
		require.Contains(t, string(text), m.row())
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `highwater_") {
			known := false
			for _, m := range append(all(), WaitHistogram()) {
				known = known || line == m.row()+"\n"
			}
			require.True(t, known, "README has a metric that there is not: %s", line)
		}
	}
}

func all() []Metric {
	counters, gauges := Counters(), Gauges()
	return append(counters[:], gauges[:]...)
}

func (m Metric) row() string {
	return "| `" + m.Name + "` | " + [...]string{"counter", "gauge", "histogram"}[m.Kind] + " | " + m.Help + " |"
}
