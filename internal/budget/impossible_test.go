package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Shedding frees nothing of what Envoy holds without traffic: beyond 9/10 of the limit what is in
// force rises with it.
func TestTrafficHasATenthInAnyCase(t *testing.T) {
	l := limits()
	l.Limit = 200_000
	for _, c := range []struct{ base, inForce int64 }{
		{0, 200_000},
		{100_000, 200_000},
		{180_000, 200_000}, // from here on, without a jump
		{180_009, 200_010},
		{434_007, 482_230},
	} {
		table := Table{Base: c.base}
		require.Equal(t, c.inForce, table.InForce(&l), "base %d", c.base)
		require.Equal(t, c.inForce, table.share(&l, 1))
		require.Equal(t, c.base > 180_000, table.impossible(&l))
		least := Limits{Limit: c.inForce + 10}
		require.False(t, table.impossible(&least), "who follows the advice")
	}
	unknown := Limits{Share: 0.5}.of(0)
	require.EqualValues(t, Unlimited, (&Table{Base: 500 * mib}).InForce(&unknown))
}

// A guard that starts with an Envoy of 8,000 clusters knows in a quarter of a second that it is no
// traffic.
func TestALargeConfigurationIsBase(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.join()
	b.readings(1, 434*mib)
	require.Equal(t, 180*mib, b.stored().Base)
	require.Equal(t, Over, b.stored().Level, "for now")
	require.False(t, a.Turned())
	turned := 0
	for range 60 {
		b.readings(1, 434*mib)
		if a.Turned() {
			turned++
		}
	}
	table := b.stored()
	require.Equal(t, 434*mib, table.Base)
	require.True(t, table.Impossible)
	require.Equal(t, 1, turned)
	require.Equal(t, Normal, table.Level)
	require.Equal(t, Possible(434*mib), a.InForce())
	require.Equal(t, 200*mib, a.Limits().Known(), "as it was set")
	require.Equal(t, 434*mib/9, a.Room())
	require.Equal(t, Granted, a.Ask(b.now, 43*mib, UpToHard))
	require.Equal(t, Denied, a.Ask(b.now, 44*mib, UpToHard))
	s := b.stream(a)
	a.Expect(b.now, s, Request, 60*mib, 0, 0)
	a.Pass(b.now, s, Request, 60*mib)
	a.Cover(b.now)
	b.readings(1, 490*mib)
	require.Equal(t, Over, b.stored().Level)
	require.Equal(t, 434*mib, b.stored().Base, "what traffic brings is held as ever")
}

// Whoever takes over goes by what was proven, and not by where the base was cut.
func TestATakeoverKeepsAnImpossibleBase(t *testing.T) {
	b := open(t, 2)
	other := func(reading int64) *Table {
		b.now += 300 * ms
		_, _, err := b.accounts[1].Observe(b.now, b.now, reading)
		require.NoError(t, err)
		return b.stored()
	}
	b.readings(50, 434*mib)
	require.Equal(t, 434*mib, other(450*mib).Base)
	require.True(t, b.stored().Impossible)
	require.False(t, b.accounts[1].Turned(), "that is told")

	b = open(t, 2)
	b.readings(3, 434*mib)
	require.Equal(t, 180*mib, other(434*mib).Base)
	for range 2 {
		other(434 * mib)
	}
	require.Equal(t, 434*mib, b.stored().Base)
}

// A guard that starts in the middle of a flood does not know what holds memory: the limit does not
// rise for it.
func TestAFloodThatWasThereBeforeUsIsNoBase(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.join()
	for range 30 { // requests come, which it rejects, and what it knows of holds nothing
		streams := []*Stream{}
		for range silentUsers + 1 {
			streams = append(streams, b.stream(a))
		}
		b.readings(40, 400*mib)
		require.Equal(t, 180*mib, b.stored().Base)
		require.Equal(t, Over, b.stored().Level)
		require.Equal(t, 200*mib, a.InForce())
		for _, s := range streams {
			a.Close(b.now, s)
		}
		b.readings(8, 400*mib) // a fifth of a second without one is no proof
	}
	b.readings(1, 60*mib)
	require.Equal(t, 60*mib, b.stored().Base, "the first calm reading")
	b.readings(200, 400*mib)
	require.Equal(t, 60*mib, b.stored().Base)
}

func TestNearlyNoTrafficIsProofOfABase(t *testing.T) {
	for _, c := range []struct {
		connections int
		base        int64
	}{{8, 300 * mib}, {9, 180 * mib}} {
		b := open(t, 1)
		for range c.connections {
			b.accounts[0].OpenConnection(&Connection{}, kib)
		}
		b.join()
		b.readings(50, 300*mib)
		require.Equal(t, c.base, b.stored().Base)
	}
}

// Whoever is rejected at once is in flight at no reading.
func TestRequestsBetweenReadingsAreTraffic(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.join()
	for range 100 {
		s := &Stream{}
		a.Open(b.now, s, nil, new(Sum), 200*kib, 0, mib, mib)
		a.Close(b.now, s)
		b.readings(1, 300*mib)
	}
	require.Equal(t, 180*mib, b.stored().Base)
}

// A server beside Envoy is there before Envoy is, which may get its first requests before it tells
// of its memory. What those likely hold is known.
func TestWhoWasThereBeforeEnvoyKnowsItsBase(t *testing.T) {
	for _, c := range []struct {
		before Time
		base   int64
	}{{10 * silentFor, 434 * mib}, {silentFor / 2, 180 * mib}} {
		b := open(t, 1)
		a := b.accounts[0]
		b.tick(25 * ms)
		b.tick(c.before)
		for range 3 * silentUsers {
			s := b.stream(a)
			a.Expect(b.now, s, Request, mib, 0, 0)
			a.Pass(b.now, s, Request, mib)
		}
		b.join()
		b.readings(1, 458*mib)
		require.Equal(t, c.base, b.stored().Base)
		b.readings(100, 458*mib)
		require.Equal(t, c.base, b.stored().Base)
	}
}

// A few may have come by then.
func TestSilenceBeforeTheFirstReading(t *testing.T) {
	for _, c := range []struct{ passes, base int64 }{{100 * kib, 434 * mib}, {2 * mib, 180 * mib}} {
		b := open(t, 2)
		b.tick(25 * ms)
		b.join()
		b.tick(time.Second)
		s := &Stream{}
		b.accounts[1].Open(b.now, s, nil, new(Sum), c.passes, 0, mib, mib)
		b.readings(1, 434*mib)
		require.Equal(t, c.base, b.stored().Base)
		for range silentUsers {
			b.stream(b.accounts[1])
		}
		b.readings(100, 434*mib)
		require.Equal(t, c.base, b.stored().Base)
	}
}

// The memory of requests that this guard does not see comes and goes.
func TestAReadingThatMovesIsTraffic(t *testing.T) {
	b := open(t, 1)
	b.join()
	for range 30 {
		b.readings(3, 300*mib)
		b.readings(3, 307*mib)
	}
	require.Equal(t, 180*mib, b.stored().Base)
	for range 3 {
		b.readings(3, 300*mib)
		b.readings(3, 305*mib)
	}
	require.Equal(t, 305*mib, b.stored().Base)
}

// Where it is never quiet, it is proof that nothing that can be shed explains the memory.
func TestAFutileMinuteIsProofOfABase(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.join()
	for range 2 * silentUsers {
		b.stream(a)
	}
	for b.now < time.Hour+58*time.Second {
		b.readings(10, 300*mib)
	}
	require.True(t, b.stored().Futile)
	require.Equal(t, 180*mib, b.stored().Base)
	for b.now < time.Hour+62*time.Second {
		b.readings(10, 300*mib)
	}
	require.Equal(t, 300*mib, b.stored().Base)
	require.False(t, b.stored().Futile, "there is room again")
}

// A base that swings around the threshold is told once.
func TestAnImpossibleLimitDoesNotFlap(t *testing.T) {
	b := open(t, 1)
	b.join()
	turned := 0
	readings := func(reading int64) {
		for range 25 * 60 {
			b.tick(time.Second)
			b.read(b.now, reading)
			if b.accounts[0].Turned() {
				turned++
			}
		}
	}
	for range 3 {
		readings(182 * mib)
		readings(178 * mib)
	}
	readings(171 * mib)
	require.Equal(t, 1, turned)
	require.True(t, b.stored().Impossible)
	readings(169 * mib)
	require.Equal(t, 2, turned)
	require.False(t, b.stored().Impossible)
}

// The budget of a container follows its limit: what was impossible need not be any more.
func TestAnImpossibleShareOfTheContainer(t *testing.T) {
	b := open(t, 1)
	b.share()
	a := b.accounts[0]
	b.join()
	for range 60 {
		b.contained(434*mib, 0)
	}
	require.False(t, b.stored().Impossible, "nobody knows the limit")
	b.contained(434*mib, 300*mib)
	require.True(t, b.stored().Impossible)
	require.True(t, a.Turned())
	b.contained(434*mib, 2000*mib)
	require.False(t, b.stored().Impossible)
	require.Equal(t, a.Limits().Limit, a.InForce())
}

// A surprise of a tenth of the limit would be all that there is.
func TestASurpriseLeavesRoom(t *testing.T) {
	l := limits()
	require.Equal(t, 185*mib, (&Table{Base: 40 * mib, Surprise: 15 * mib}).share(&l, 1))
	require.Equal(t, 180*mib, (&Table{Base: 40 * mib, Surprise: 100 * mib}).share(&l, 1))
	require.Equal(t, 195*mib, (&Table{Base: 180 * mib, Surprise: 100 * mib}).share(&l, 1))
}

// In a room of 21 MiB, 15 of traffic are the cause, though they are no tenth of the limit.
func TestATightRoomFullOfTrafficIsNotFutile(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.join()
	b.readings(50, 190*mib)
	s := b.stream(a)
	a.Expect(b.now, s, Request, 1<<40, 0, 0)
	a.Pass(b.now, s, Request, 15*mib)
	a.Cover(b.now)
	b.readings(400, 210*mib)
	require.Equal(t, Hard, b.stored().Level)
	require.False(t, b.stored().Futile)
	a.Close(b.now, s)
	b.readings(400, 210*mib)
	require.True(t, b.stored().Futile)
}

// An Envoy that still reads a large configuration has no base yet. After the first traffic the
// lowest reading counts again.
func TestTheBaseBeforeTheFirstTraffic(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.join()
	for _, held := range []int64{190, 210, 218} {
		b.readings(40, held*mib)
		require.Equal(t, held*mib, b.stored().Base)
	}
	s := b.stream(a)
	b.readings(40, 222*mib)
	require.Equal(t, 218*mib, b.stored().Base, "that may be the stream's")
	a.Close(b.now, s)
	b.readings(40, 200*mib)
	b.readings(40, 205*mib)
	require.Equal(t, 200*mib, b.stored().Base)
}
