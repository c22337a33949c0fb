package main

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/bench/internal/figures"
	"github.com/highwater-envoy/highwater/internal/load"
)

const budget = 200 << 20

// at is a watch that last read inUse bytes.
func at(t *testing.T, guarded bool, inUse int64, stats figures.Stats) *watch {
	t.Helper()
	w := &watch{
		guarded: guarded, limit: budget, begun: time.Now(), admin: "http://127.0.0.1:1",
		kinds: []kind{{"uploads of 4 MiB", new(load.Uploads).Snapshot}, {"small requests", new(load.Small).Snapshot}},
	}
	ctx, cancel := context.WithCancel(t.Context())
	w.memory.Run(ctx, time.Millisecond, func(context.Context) (load.Reading, error) {
		cancel()
		return load.Reading{Allocated: inUse, InUse: inUse}, nil
	})
	w.setStats(stats)
	return w
}

var escape = regexp.MustCompile("\x1b\\[[0-9;]*m")

func TestView(t *testing.T) {
	stats := figures.Stats{
		"wasmcustom.highwater_level": 1, "wasmcustom.highwater_estimate_bytes": 170 << 20, "wasmcustom.highwater_base_bytes": 30 << 20,
		"wasmcustom.highwater_fresh_bytes": 20 << 20, "wasmcustom.highwater_coming_bytes": 50 << 20, "wasmcustom.highwater_waiting": 7,
	}
	w := at(t, true, 100<<20, stats)
	plain := strings.Join(w.view(100, false), "\n")
	require.Contains(t, plain, "in use 100.0MiB of 200.0MiB  50%")
	require.Contains(t, plain, "fresh 20.0MiB  +  coming 50.0MiB     estimate 170.0MiB   level soft")
	require.Contains(t, plain, "7 waiting")
	require.NotContains(t, plain, "\x1b")
	require.Equal(t, plain, escape.ReplaceAllString(strings.Join(w.view(100, true), "\n"), ""), "colours change nothing else")

	off := strings.Join(at(t, false, 340<<20, nil).view(100, false), "\n")
	require.Contains(t, off, "in use 340.0MiB of 200.0MiB  170%")
	require.NotContains(t, off, "coming")
}

// However much there is, the bar is as wide as it should be and has the budget's mark once.
func TestBar(t *testing.T) {
	for _, inUse := range []int64{0, 1, 30 << 20, 199 << 20, 200 << 20, 201 << 20, 2 << 30} {
		for _, fresh := range []float64{0, 1 << 20, 500 << 20} {
			stats := figures.Stats{"highwater_fresh_bytes": fresh, "highwater_coming_bytes": 2 * fresh, "highwater_estimate_bytes": float64(inUse) + 3*fresh}
			bar := at(t, true, inUse, stats).bar(60, false)
			require.Equal(t, 60, utf8.RuneCountInString(bar), bar)
			require.Equal(t, 1, strings.Count(bar, "┃"), bar)
		}
	}
}

func TestClip(t *testing.T) {
	require.Equal(t, "abc", clip("abc", 3))
	require.Equal(t, "ab"+reset, clip("abc", 2))
	require.Equal(t, red+"äb"+reset, clip(red+"äb"+reset, 2))
	require.Equal(t, red+"ä"+reset, clip(red+"äb"+reset, 1))
}

func TestLine(t *testing.T) {
	line := at(t, true, 100<<20, nil).line()
	require.Contains(t, line, "in use 100.0MiB of 200.0MiB (50%)")
	require.Contains(t, line, "fresh –", "what the guard has not said yet is not 0")
	require.NotContains(t, line, "\n")
}
