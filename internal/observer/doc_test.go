package observer

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/guard"
)

// The reference has each figure of the observer with its kind and the values of its label, and no
// other.
func TestMetricsReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/metrics.md")
	require.NoError(t, err)
	_, section, found := strings.Cut(string(text), "\n## Of the companion, on its `/metrics` alone\n")
	require.True(t, found)
	section, _, _ = strings.Cut(section, "\n## ")
	told, meaning := map[string]string{}, map[string]string{}
	for row := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(row, "| \n"), " | ")
		if name, isMetric := strings.CutPrefix(cells[0], "`"); isMetric && len(cells) == 3 {
			name = strings.TrimSuffix(name, "`")
			told[name], meaning[name] = cells[1], cells[2]
		}
	}
	all := map[string]string{}
	for _, f := range (Status{PID: 1, Container: &cgroup.Stats{Limit: 1, Pressure: &cgroup.Pressure{}}, TimeToLimit: time.Second}).Figures() {
		name, label, labelled := strings.Cut(f.Name, ".")
		if labelled {
			label, value, _ := strings.Cut(label, ".")
			name += "{" + label + "}"
			if label != "where" { // of Envoy's own gauges
				require.Contains(t, meaning[name], "`"+value+"`", "%s: its values", name)
			}
		}
		all[name] = [...]string{guard.Counter: "counter", guard.Gauge: "gauge"}[f.Kind]
	}
	require.Equal(t, all, told)
}
