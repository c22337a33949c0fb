package unit

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestParseBytes(t *testing.T) {
	for text, want := range map[string]Bytes{
		"0": 0, "65536": 65536, "64KiB": 64 << 10, " 1 MiB ": MiB, "512Mi": 512 * MiB, "1.5GiB": 3 * GiB / 2,
		"1MB": 1_000_000, "1kB": 1000, "10B": 10, "2TiB": 2 * TiB, "9223372036854775807": math.MaxInt64,
		".5KiB": 512,
	} {
		got, err := ParseBytes(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "MiB", "-1", "+1", "1e9", "0x10", "NaN", "Inf", "1..2MiB", "1KB", "1mib", "1 2", "9223372036854775808", "8388608TiB", "1_000"} {
		_, err := ParseBytes(text)
		require.ErrorIs(t, err, ErrParse, text)
	}
}

func TestParseLimit(t *testing.T) {
	for text, want := range map[string]Limit{
		"512MiB": {Bytes: 512 * MiB}, "80%": {Share: 0.8}, " 12.5 % ": {Share: 0.125}, "0": {}, "150%": {Share: 1.5},
	} {
		got, err := ParseLimit(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
		again, err := ParseLimit(got.String())
		require.NoError(t, err, text)
		require.Equal(t, want, again, text)
	}
	for _, text := range []string{"", "%", "0%", "-1%", "MiB", "80%%", "80% of it"} {
		_, err := ParseLimit(text)
		require.ErrorIs(t, err, ErrParse, text)
	}
}

func TestParseRatio(t *testing.T) {
	for text, want := range map[string]Ratio{"85%": 0.85, "0.85": 0.85, "0": 0, "100 %": 1, "1": 1, "12.5%": 0.125} {
		got, err := ParseRatio(text)
		require.NoError(t, err, text)
		require.InDelta(t, float64(want), float64(got), 1e-12, text)
	}
	for _, text := range []string{"", "%", "-1%", "nan", "1e3", "half"} {
		_, err := ParseRatio(text)
		require.ErrorIs(t, err, ErrParse, text)
	}
	require.Equal(t, int64(170), Ratio(0.85).Of(200))
	require.Equal(t, "0%", Ratio(0).String())
	require.Equal(t, "87.5%", Ratio(0.875).String())
	require.Equal(t, "100%", Ratio(1).String())
	tiny, err := ParseRatio(Ratio(1e-15).String())
	require.NoError(t, err)
	require.InEpsilon(t, 1e-15, float64(tiny), 1e-9)
}

func TestParseDuration(t *testing.T) {
	got, err := ParseDuration("25ms")
	require.NoError(t, err)
	require.Equal(t, Duration(25*time.Millisecond), got)
	for _, text := range []string{"", "1", "-1s", "1 fortnight"} {
		_, err := ParseDuration(text)
		require.ErrorIs(t, err, ErrParse, text)
	}
	require.Equal(t, "2m", Duration(2*time.Minute).String())
	require.Equal(t, "1h", Duration(time.Hour).String())
	require.Equal(t, "2", Duration(1100*time.Millisecond).Seconds())
	require.Equal(t, int64(1), Duration(time.Microsecond).Milliseconds())
}

// What is printed parses to the same value: a configuration that a tool prints can be pasted back.
func TestPrintedParses(t *testing.T) {
	type all struct {
		B Bytes
		R Ratio
		D Duration
	}
	for _, want := range []all{{}, {B: 200 * MiB, R: 0.9, D: Duration(250 * time.Millisecond)}, {B: 1500, R: 0.05, D: Duration(90 * time.Second)}} {
		text, err := json.Marshal(want)
		require.NoError(t, err)
		var got all
		require.NoError(t, json.Unmarshal(text, &got), string(text))
		require.Equal(t, want.B, got.B)
		require.Equal(t, want.D, got.D)
		require.InDelta(t, float64(want.R), float64(got.R), 1e-9)
	}
	require.Equal(t, "1.5MiB", (3 * MiB / 2).Human())
	require.Equal(t, "12B", Bytes(12).Human())
}

func FuzzParseBytes(f *testing.F) {
	for _, seed := range []string{"64KiB", "1.5GiB", "-1", "9223372036854775807", "1e400MiB"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := ParseBytes(text)
		if err != nil {
			return
		}
		if b < 0 {
			t.Fatalf("%q parsed to %d", text, b)
		}
		again, err := ParseBytes(b.String())
		if err != nil || again != b {
			t.Fatalf("%q parsed to %d, which prints as %s and parses to %d, %v", text, b, b, again, err)
		}
	})
}
