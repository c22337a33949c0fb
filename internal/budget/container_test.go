package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// share has the books' limit be 80 % of the container's.
func (b *books) share() {
	for _, a := range b.accounts {
		l := limits()
		l.Limit, l.Share = 0, 0.8
		a.SetLimits(l)
	}
}

// contained is a reading that tells of the container's limit, in bytes.
func (b *books) contained(reading, container int64) {
	b.accounts[0].SetContainer(container)
	b.read(b.now, reading)
}

// The limit of a container belongs to the process: one worker hears of it, all have it, and its
// changes too.
func TestEachWorkerHasTheContainersLimit(t *testing.T) {
	b := open(t, 3)
	b.share()
	b.join()
	b.read(b.now, 40*mib)
	for _, a := range b.accounts {
		require.EqualValues(t, Unlimited, a.Limits().Limit)
		require.Equal(t, Granted, a.Ask(b.now, 1<<40, UpToHard), "until it is known everything is admitted")
	}
	require.Equal(t, Normal, b.accounts[1].Table().Level)
	for _, container := range []int64{250 * mib, 125 * mib, 500 * mib} {
		b.now += 25 * ms
		b.contained(40*mib, container)
		for range 2 { // in the first, each takes back what it had leased of another limit
			b.tick(25 * ms)
		}
		for _, a := range b.accounts {
			limit := container / 10 * 8
			require.Equal(t, limit, a.Limits().Limit)
			require.Equal(t, limit/20, a.Floor())
			require.Equal(t, limit, a.Share(1))
			require.Equal(t, Denied, a.Ask(b.now, a.Share(.9)-a.Estimate(b.now)+1, UpToHard))
			require.Equal(t, Granted, a.Ask(b.now, a.Share(.9)-a.Estimate(b.now), UpToHard))
		}
	}
	// A companion that loses sight of the container tells of none.
	b.now += 25 * ms
	b.contained(40*mib, 0)
	b.tick(25 * ms)
	require.Equal(t, 400*mib, b.accounts[2].Limits().Limit, "the last one stays")
	b.now += 2 * time.Second
	b.tick(25 * ms)
	require.True(t, b.accounts[2].Stale(b.now))
	require.Equal(t, 400*mib, b.accounts[2].Limits().Limit, "without readings too")
}

// A limit that falls below what is in use is over at once, and nothing more is let in.
func TestTheContainerShrinks(t *testing.T) {
	b := open(t, 2)
	b.share()
	b.join()
	b.contained(40*mib, 500*mib) // the base
	b.tick(25 * ms)
	b.contained(150*mib, 500*mib)
	b.tick(25 * ms)
	require.Equal(t, Normal, b.accounts[1].Table().Level)
	b.now += 25 * ms
	b.contained(150*mib, 125*mib)
	b.tick(25 * ms)
	require.Equal(t, Over, b.accounts[1].Table().Level)
	require.Equal(t, Denied, b.accounts[1].Ask(b.now, mib, UpToLimit))
}

// A limit that is a size minds no container.
func TestASizeMindsNoContainer(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.contained(40*mib, 100*mib)
	b.tick(25 * ms)
	for _, a := range b.accounts {
		require.Equal(t, 200*mib, a.Limits().Limit)
	}
}
