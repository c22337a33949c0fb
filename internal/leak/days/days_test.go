package days

import (
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// watchAll watches days in parallel.
func watchAll(n int, perMinute float64) []Told {
	told := make([]Told, n)
	var running sync.WaitGroup
	for w := range runtime.GOMAXPROCS(0) {
		running.Go(func() {
			for i := w; i < n; i += runtime.GOMAXPROCS(0) {
				told[i] = Watch(New(uint64(i), perMinute*mib, false))
			}
		})
	}
	running.Wait()
	return told
}

// A small part of what go run ./bench/days shows: a leak is told where there is one, in time, and
// hardly ever where there is none, by what feeds and settings the live server has. What is usually
// alarmed by alarms on most days.
func TestDays(t *testing.T) {
	none, predicted := 0, 0
	const days = 100
	for i, d := range watchAll(days, 0) {
		if d.After > 0 {
			none++
			t.Logf("day %d: %v after %v", i, d.Verdict, d.After)
		}
		if d.Predicted > 0 {
			predicted++
		}
	}
	require.LessOrEqual(t, none, days/50, "days without a leak on which one was told")
	require.Greater(t, predicted, days/2, "of predict_linear")
	for _, c := range []struct {
		perMinute float64
		within    time.Duration
		least     int
	}{{1, 90 * time.Minute, 17}, {0.1, 8 * time.Hour, 15}} {
		inTime := 0
		for _, d := range watchAll(20, c.perMinute) {
			if d.After > 0 && d.After <= c.within {
				inTime++
			}
		}
		require.GreaterOrEqual(t, inTime, c.least, "of 20 days with %v MiB a minute", c.perMinute)
	}
}

// A day is the same each time, and a leak is all that makes one with a leak another one.
func TestADayIsItsNumber(t *testing.T) {
	a, b, leaks := New(3, 0, false), New(3, 0, false), New(3, mib, false)
	require.Equal(t, a, b)
	require.NotEqual(t, a.Samples, New(4, 0, false).Samples)
	for i, s := range leaks.Samples {
		minutes := (s.At - leaks.Leaks + Every).Minutes()
		s.InUse -= int64(max(minutes, 0) * mib)
		require.InDelta(t, a.Samples[i].InUse, s.InUse, 2, "at %v", s.At)
	}
}
