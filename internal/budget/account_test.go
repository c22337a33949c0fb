package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	ms  = time.Millisecond
)

// limits are those of the example: 200 MiB.
func limits() Limits {
	return Limits{Limit: 200 * mib, Soft: 0.8, Hard: 0.9, Resume: 0.75, Small: 64 * kib, Floor: 0.05}
}

// books is a process with some workers' accounts, and a clock that the test moves.
type books struct {
	t        *testing.T
	now      Time
	store    *Memory
	accounts []*Account
}

func open(t *testing.T, workers int) *books {
	t.Helper()
	b := &books{t: t, now: time.Hour, store: &Memory{}}
	for range workers {
		a, err := NewAccount(b.store, limits())
		require.NoError(t, err)
		b.accounts = append(b.accounts, a)
	}
	return b
}

// join makes every account an entry of the table: a VM joins with its first stream or connection.
func (b *books) join() {
	for _, a := range b.accounts {
		a.Cover(b.now)
	}
}

func (b *books) tick(d Time) {
	b.t.Helper()
	b.now += d
	for _, a := range b.accounts {
		_, err := a.Tick(b.now)
		require.NoError(b.t, err)
	}
}

// read gives a reading that was asked for at asked; all know it at once.
func (b *books) read(asked Time, reading int64) {
	b.t.Helper()
	_, _, err := b.accounts[0].Observe(b.now, asked, reading)
	require.NoError(b.t, err)
	b.tick(ms)
}

// readings gives n readings, each asked for and answered a tick after the one before.
func (b *books) readings(n int, reading int64) {
	b.t.Helper()
	for range n {
		b.tick(24 * ms)
		b.read(b.now, reading)
	}
}

func (b *books) stored() *Table {
	b.t.Helper()
	value, _, err := b.store.Load()
	require.NoError(b.t, err)
	table := &Table{}
	require.NoError(b.t, table.Decode(value))
	return table
}

// stream opens one with caps so large that they don't matter, and no cost.
func (b *books) stream(a *Account) *Stream {
	s := &Stream{}
	a.Open(b.now, s, nil, new(Sum), 0, 0, 1<<40, 1<<40)
	return s
}

// Without a reading the live streams say what can be held: a frozen one of 199 of 200 would lock
// everyone out.
func TestEstimateWithoutAReading(t *testing.T) {
	b := open(t, 2)
	a, other := b.accounts[0], b.accounts[1]
	require.True(t, a.Stale(b.now))
	require.Zero(t, a.Estimate(b.now), "before the first reading: from 0")
	b.join()
	b.readings(3, 40*mib)
	b.readings(3, 190*mib)
	require.GreaterOrEqual(t, a.Estimate(b.now), 190*mib)
	s, far := &Stream{}, b.stream(other)
	a.Open(b.now, s, nil, new(Sum), 0, 0, mib, mib)
	a.Pass(b.now, s, Request, 10*mib)
	a.Expect(b.now, s, Response, 100*kib, 100*kib, 0)
	other.Pass(b.now, far, Request, 3*mib)
	b.tick(50 * ms) // one tick to tell, one to hear
	b.tick(50 * ms)
	b.now += 920 * ms
	require.True(t, a.Stale(b.now))
	require.Equal(t, 40*mib+mib+100*kib+3*mib, a.Estimate(b.now), "base + bounds + coming, of all")

	for on, want := range map[OnStale]Outcome{StaleAdmit: Granted, StaleReject: Denied, StaleEstimate: Denied} {
		l := limits()
		l.OnStale = on
		a.SetLimits(l)
		require.Equal(t, want, a.Ask(b.now, 180*mib, UpToHard), "%d", on)
	}
	a.SetLimits(limits())
	require.Equal(t, Granted, a.Ask(b.now, 90*mib, UpToHard))
	require.Equal(t, Denied, a.Ask(b.now, 200*mib, UpToHard))
}
