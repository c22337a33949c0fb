package load

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestMix(t *testing.T) {
	u := newUpstream(t)
	s := run(t, Mix{
		&Downloads{Addr: u.Addr(), Clients: 2, Size: 1000}, &Uploads{Addr: u.Addr(), Path: "/upload", Count: 2, Size: 1000},
	}, served(100))
	require.GreaterOrEqual(t, s.Bytes, int64(100_000))
	require.Positive(t, u.Requests("/upload"))
	require.Positive(t, u.Requests("/bytes"))
	require.Equal(t, u.Requests("/upload")+u.Requests("/bytes"), u.Total())
}

// The first ends in time, before the next begins, and both are counted.
func TestThen(t *testing.T) {
	u := newUpstream(t)
	first := &Uploads{Addr: u.Addr(), Path: "/upload", Count: 2, Size: 1000}
	next := &Downloads{Addr: u.Addr(), Clients: 2, Size: 1000}
	s := run(t, Then{First: first, For: 100 * time.Millisecond, Next: next}, func(Snapshot) bool {
		if next.Snapshot().Started > 0 {
			require.Zero(t, first.Snapshot().InFlight)
		}
		return next.Snapshot().Served > 10
	})
	require.Equal(t, first.Snapshot().Served+next.Snapshot().Served, s.Served)
	require.Positive(t, first.Snapshot().Served)

	// Told to end before the first has, there is no next.
	next = &Downloads{Addr: u.Addr(), Clients: 2, Size: 1000}
	run(t, Then{First: first, For: time.Hour, Next: next}, served(first.Snapshot().Served+10))
	require.Zero(t, next.Snapshot().Started)
}

func TestOnce(t *testing.T) {
	u := newUpstream(t)
	var ready atomic.Bool
	l := &Downloads{Addr: u.Addr(), Clients: 2, Size: 1000}
	once := Once{Ready: ready.Load, Pause: 50 * time.Millisecond, Load: l}
	begun := time.Now()
	time.AfterFunc(50*time.Millisecond, func() { ready.Store(true) })
	run(t, once, func(s Snapshot) bool {
		if s.Started > 0 {
			require.GreaterOrEqual(t, time.Since(begun), 100*time.Millisecond)
		}
		return s.Served > 10
	})

	// Never ready, it ends when it is told to.
	never := Once{Ready: func() bool { return false }, Load: &Downloads{Addr: u.Addr(), Clients: 1}}
	require.Zero(t, run(t, never, func(Snapshot) bool { return time.Since(begun) > 200*time.Millisecond }).Started)
}
