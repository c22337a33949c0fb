package main

import (
	"bytes"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTheFileIsWhatThisWrites(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	require.NoError(t, write(&b))
	file, err := os.ReadFile("../dashboard.json")
	require.NoError(t, err)
	require.Equal(t, string(file), b.String(), "make dashboard writes it")
}

// Whoever looks at a panel is told what to make of it, and panels that Grafana lays side by side
// fill its rows.
func TestEveryPanelIsExplained(t *testing.T) {
	t.Parallel()
	titles := map[string]bool{}
	for _, r := range rows() {
		require.Zero(t, len(r.panels)%perRow, r.title)
		for _, p := range r.panels {
			require.False(t, titles[p.title], p.title)
			titles[p.title] = true
			require.NotEmpty(t, p.description, p.title)
			require.NotEmpty(t, p.unit, p.title)
			require.NotEmpty(t, p.queries, p.title)
			for _, q := range p.queries {
				require.NotEmpty(t, q.legend, p.title)
				require.Contains(t, q.expr, "{$I}", p.title)
			}
		}
	}
}
