package leak

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// Slopes, their intervals and z are SciPy's and pymannkendall's: testdata/reference.py prints them.
func TestTrendsAreSciPys(t *testing.T) {
	text, err := os.ReadFile("testdata/reference.json")
	require.NoError(t, err)
	var all []struct {
		Name    string    `json:"name"`
		T       []float64 `json:"t"`
		Y       []float64 `json:"y"`
		Lags    int       `json:"lags"`
		Slope   float64   `json:"slope"`
		Low     float64   `json:"low"`
		High    float64   `json:"high"`
		PerStep float64   `json:"per_step"`
		Z       *float64  `json:"z"` // nil: the corrected variance is negative there
	}
	require.NoError(t, json.Unmarshal(text, &all))
	require.Len(t, all, 36)
	var w Trend // one for all: nothing of a series is left in the next one
	told := 0
	for _, c := range all {
		got := w.theilSen(c.T, c.Y)
		require.InDelta(t, c.Slope, got.slope, 1e-12, c.Name)
		require.InDelta(t, c.Low, got.low, 1e-12, c.Name)
		require.InDelta(t, c.High, got.high, 1e-12, c.Name)
		steps := make([]float64, len(c.Y))
		for i := range steps {
			steps[i] = float64(i)
		}
		require.InDelta(t, c.PerStep, w.theilSen(steps, c.Y).slope, 1e-12, c.Name)
		z, _ := w.mannKendall(c.Y, c.PerStep, c.Lags, false)
		if c.Z == nil {
			require.Zero(t, z, c.Name)
			continue
		}
		told++
		require.InDelta(t, *c.Z, z, 1e-9, c.Name)
		careful, _ := w.mannKendall(c.Y, c.PerStep, c.Lags, true)
		require.LessOrEqual(t, abs(careful), abs(z)+1e-12, c.Name)
	}
	require.Greater(t, told, 30)
}

func abs(x float64) float64 { return max(x, -x) }

// Too little to have a trend has none.
func TestTrendOfNothing(t *testing.T) {
	var w Trend
	for _, y := range [][]float64{nil, {1}, {1, 1, 1}} {
		at := make([]float64, len(y))
		for i := range at {
			at[i] = float64(i)
		}
		require.Zero(t, w.theilSen(at, y).slope)
		z, tau := w.mannKendall(y, 0, 3, true)
		require.Zero(t, z)
		require.Zero(t, tau)
	}
	require.Zero(t, w.theilSen([]float64{1, 1}, []float64{1, 2}), "all at one time")
}
