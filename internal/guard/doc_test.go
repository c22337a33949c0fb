package guard

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The reference has each metric of the policy with its kind, and no other.
func TestMetricsReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/metrics.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "\n## Of the policy, in both faces\n")
	require.True(t, found)
	section, _, _ := strings.Cut(rest, "\n## ")
	told := map[string]string{}
	for row := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(row, "| \n"), " | ")
		if name, isMetric := strings.CutPrefix(cells[0], "`"); isMetric {
			require.Len(t, cells, 3, "%s", row)
			require.NotEmpty(t, strings.TrimSpace(cells[2]), "%s: what it means", name)
			told[strings.TrimSuffix(name, "`")] = cells[1]
		}
	}
	counters, gauges := Counters(), Gauges()
	all := map[string]string{}
	for _, m := range append(append(counters[:], gauges[:]...), WaitHistogram()) {
		all[m.Name] = [...]string{"counter", "gauge", "histogram"}[m.Kind]
	}
	require.Equal(t, all, told)
}
