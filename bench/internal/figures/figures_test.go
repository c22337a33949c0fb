package figures

import (
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStats(t *testing.T) {
	s := Stats{
		"wasmcustom.highwater_fresh_bytes":                 0,
		"wasmcustom.highwater_coming_bytes":                12,
		"wasmcustom.highwater_waiting":                     0,
		"wasmcustom.highwater_streams":                     0,
		"wasmcustom.highwater_exposure_bytes":              0,
		"wasmcustom.highwater_connections":                 0,
		"wasmcustom.highwater_rejected_total.reason.full":  3,
		"wasmcustom.highwater_rejected_total.reason.other": 0,
		"wasmcustom.highwater_throttled_total":             7,
		"wasmcustom.highwater_closed_connections_total":    0,
		"wasmcustom.highwater_rejected_responses_total":    1,
		"wasm.wasm.runtime.v8.active":                      3,
	}
	v, ok := s.Get("coming_bytes")
	require.True(t, ok)
	require.InDelta(t, 12, v, 0)
	_, ok = s.Get("coming")
	require.False(t, ok)
	require.Equal(t, map[string]float64{"full": 3}, s.Reasons("rejected_total"))
	require.Equal(t, "rejected full 3, rejected responses 1, throttled 7", List(s.Verdicts()))
	require.Equal(t, map[string]float64{"coming_bytes": 12}, s.Leftovers())
	require.Len(t, Stats{}.Leftovers(), 6, "a guard that publishes nothing has not drained")
}

func TestSpread(t *testing.T) {
	text := func(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }
	require.Equal(t, "0.0", Spread(nil).Print(text))
	require.Equal(t, "2.0", Spread{2}.Print(text))
	require.Equal(t, "2.0 (1.0..9.0)", Spread{9, 1, 2}.Print(text))
	require.Equal(t, "2.5 (1.0..9.0)", Spread{9, 1, 2, 3}.Print(text))
}

func TestTime(t *testing.T) {
	for d, want := range map[time.Duration]string{0: "-", 1500 * time.Microsecond: "1.5ms", 25 * time.Millisecond: "25ms", 2100 * time.Millisecond: "2.10s", 31 * time.Second: "31.0s"} {
		require.Equal(t, want, Time(d))
	}
}
