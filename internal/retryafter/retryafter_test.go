package retryafter

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	ms  = time.Millisecond
	mib = 1 << 20
)

// What is admitted while nobody waits says nothing of what could be.
func TestRateIsOfTheTimeInWhichSomebodyWaits(t *testing.T) {
	var r Rate
	now := time.Hour
	run := func(d time.Duration, waits bool, each int64) {
		for end := now + d; now < end; now += 10 * ms {
			if waits {
				r.Add(each)
			}
			r.Pass(now, waits)
		}
	}
	run(500*ms, true, 100)
	require.False(t, r.Known())
	run(time.Second, true, 100)
	require.True(t, r.Known())
	require.InDelta(t, 10_000, r.PerSecond(), 1000)
	run(time.Hour, false, 0)
	require.InDelta(t, 10_000, r.PerSecond(), 1000)
	run(20*time.Second, true, 400)
	require.InDelta(t, 40_000, r.PerSecond(), 2000, "and it forgets")
}

func half() float64 { return .5 }

func TestAPlaceIsAsLongAsItsBytesTake(t *testing.T) {
	d := Desk{Admitted: Rate{bytes: 40 * mib, seconds: 1}}
	f := Figures{Others: 40 * mib, Room: 30 * mib, Min: time.Second, Max: 30 * time.Second, Timeout: 2 * time.Second}
	p := d.Place(&f, 5*mib)
	require.Equal(t, 500*ms, p.Span, "an eighth of 80 MiB/s")
	require.Equal(t, time.Second, p.First)
	f.Waits, f.Queued = true, 120*mib
	p = d.Place(&f, 5*mib)
	require.Equal(t, 1500*ms, p.First, "behind those that wait")
	f.Queued = 800 * mib
	p = d.Place(&f, 5*mib)
	require.Equal(t, 2*time.Second, p.First, "who are gone by the timeout")
	f.Others, d.Admitted = 0, Rate{}
	p = d.Place(&f, 5*mib)
	require.Equal(t, 5*time.Second, p.Span, "never slower than all of the room in max")
}

func TestACrowdIsSpreadBeforeTheLongestDelay(t *testing.T) {
	var d Desk
	f := Figures{Room: 30 * mib, Min: time.Second, Max: 30 * time.Second}
	p := d.Place(&f, 15*mib)
	require.Equal(t, 30*time.Second, d.Crowd(0, &f, &p, half), "the first is none")
	require.Equal(t, 15*time.Second, d.Crowd(0, &f, &p, half), "15 s of the slowest rate before it")
	require.Equal(t, 30*time.Second-(30*time.Second-7500*ms)/2, d.Crowd(0, &f, &p, half), "then anywhere in it")
	require.Equal(t, 30*time.Second, d.Crowd(time.Hour, &f, &p, half), "and a crowd passes")
}

func TestEarlyRejectsAreEvenlySpread(t *testing.T) {
	d := Desk{Admitted: Rate{bytes: 5 * 40 * mib, seconds: 5}}
	f := Figures{Max: 30 * time.Second, Timeout: 2 * time.Second}
	require.LessOrEqual(t, d.Early(&f, time.Second, 60*mib), 0.)
	require.InDelta(t, .5, d.Early(&f, time.Second, 70*mib), 1e-9)
	require.InDelta(t, 1, d.Early(&f, time.Second, 80*mib), 1e-9)
	require.Zero(t, d.Early(&f, 0, 80*mib), "nobody was told to come back")
	require.Zero(t, d.Early(&f, 29*time.Second, 80*mib), "who comes now does not obey")
	n := 0
	for i := range 100 {
		if d.Draw(.5) {
			n++
		}
		require.InDelta(t, float64(i+1)/2, n, 2)
	}
	require.False(t, d.Draw(0))
}
