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

// README's table of the observer's metrics is what Figures has.
func TestReadmeHasEveryFigure(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	all := Status{PID: 1, Container: &cgroup.Stats{Limit: 1, Pressure: &cgroup.Pressure{}}, TimeToLimit: time.Second}.Figures()
	rows := map[string]bool{}
	for _, f := range all {
		base, label, labelled := strings.Cut(f.Name, ".")
		if labelled {
			label, _, _ = strings.Cut(label, ".")
			base += "{" + label + "}"
		}
		row := "| " + [...]string{guard.Counter: "counter", guard.Gauge: "gauge"}[f.Kind] + " | `" + base + "` | " + f.Help + " |\n"
		rows[row] = true
		require.Contains(t, string(text), row)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| gauge | `") || strings.HasPrefix(line, "| counter | `") {
			require.True(t, rows[line], "README has a metric that there is not: %s", line)
		}
	}
}
