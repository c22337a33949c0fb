package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What passes after a reading was asked for may not be in it, so that a byte is dropped only when a
// reading came that was asked for after the last rotation: with one generation, dropped at each
// reading, an upload flood was seen late by one reading and made 1.3 times the budget.
func TestFreshBytesAreDroppedOnceAReadingMustHoldThem(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	s := b.stream(a)
	b.readings(3, 40*mib)

	a.Pass(b.now, s, Request, mib)
	require.Equal(t, mib, a.Own().Fresh)
	asked := b.now // this one holds the first MiB; what passes now it may not hold
	a.Pass(b.now, s, Request, 2*mib)
	b.now += 10 * ms
	b.read(asked, 41*mib)
	require.Equal(t, 3*mib, a.Own().Fresh, "the first rotation ages them, and drops none")

	a.Pass(b.now, s, Request, 4*mib)
	b.tick(24 * ms)
	b.read(b.now, 47*mib)
	require.Equal(t, 4*mib, a.Own().Fresh, "what passed before the last rotation is in the reading, the rest may not be")
	b.readings(1, 47*mib)
	require.Zero(t, a.Own().Fresh)
	require.Equal(t, 7*mib, a.Own().Passed, "the running total keeps them")
}

// An answer can come late: it was asked for before the last rotation, and says nothing of what has
// passed since.
func TestALateReadingDropsNothing(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.readings(3, 40*mib)
	a := b.accounts[1]
	s := b.stream(a)
	a.Pass(b.now, s, Request, mib)
	b.readings(1, 40*mib)
	require.Equal(t, mib, a.Own().Fresh)
	rotations := a.Rotations

	late := b.now - 3*ms // before the worker rotated, after the last reading was asked for
	for range 5 {
		// A table like this comes of an admin that answers slowly.
		table := b.stored()
		table.Asked, table.Sequence = late, table.Sequence+1
		_, version, err := b.store.Load()
		require.NoError(t, err)
		require.NoError(t, b.store.Swap(table.Append(nil), version))
		b.tick(ms)
	}
	require.Equal(t, rotations, a.Rotations)
	require.Equal(t, mib, a.Own().Fresh)

	// And one asked for before the one in the table is no news at all.
	sequence := b.stored().Sequence
	before, after, err := b.accounts[0].Observe(b.now, late-ms, 199*mib)
	require.NoError(t, err)
	require.Equal(t, before, after)
	require.Equal(t, sequence, b.stored().Sequence)
	require.Equal(t, 40*mib, b.stored().Reading)
}

// Envoy never holds more of a message than its cap: a download of 1 GiB through 128 KiB of buffers
// is 128 KiB of fresh, else every fast download would look like a flood.
func TestAStreamAddsAtMostItsCapPerGeneration(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.readings(2, 40*mib)
	s := &Stream{}
	a.Open(b.now, s, nil, new(Sum), 0, 0, 100*kib, 200*kib)
	for range 1000 {
		a.Pass(b.now, s, Request, mib)
		a.Pass(b.now, s, Response, mib)
	}
	require.Equal(t, 300*kib, a.Own().Fresh)
	b.readings(1, 40*mib)
	require.Equal(t, 300*kib, a.Own().Fresh)
	a.Pass(b.now, s, Request, mib)
	require.Equal(t, 400*kib, a.Own().Fresh, "it may have drained and filled again")
	require.Equal(t, 300*kib, a.Own().Bounds, "but it holds no more than its caps")
	a.Close(b.now, s)
	require.Zero(t, a.Own().Bounds)
	b.readings(2, 40*mib)
	require.Zero(t, a.Own().Fresh)
}

// 6,000 small requests a second of 16 KiB each would be 94 MiB of a budget after one second between
// two readings if what ended were counted again. It stays counted until a reading tells, for the
// allocator may keep it in its caches.
func TestCostIsUsedAgainWhileFresh(t *testing.T) {
	for generations, want := range map[int]struct{ closed, again int64 }{
		0: {76 * kib, 76 * kib}, // the next uses it again
		1: {76 * kib, 152 * kib},
		2: {0, 76 * kib},
	} {
		b := open(t, 1)
		a := b.accounts[0]
		b.readings(2, 40*mib)
		s, c := &Stream{}, &Connection{}
		a.Open(b.now, s, nil, new(Sum), 16*kib, 0, mib, mib)
		a.OpenConnection(c, 29*kib)
		require.Equal(t, 45*kib, a.Own().Fresh)
		a.RaiseConnection(c, 60*kib)
		require.Equal(t, 76*kib, a.Own().Fresh, "it is a TLS connection")
		a.RaiseConnection(c, 29*kib)
		require.Equal(t, 76*kib, a.Own().Fresh, "and stays one")
		b.readings(generations, 40*mib)
		a.Close(b.now, s)
		a.CloseConnection(c)
		require.Equal(t, want.closed, a.Own().Fresh, "after %d generations", generations)
		s2, c2 := &Stream{}, &Connection{}
		a.Open(b.now, s2, nil, new(Sum), 16*kib, 0, mib, mib)
		a.OpenConnection(c2, 29*kib)
		a.RaiseConnection(c2, 60*kib)
		require.Equal(t, want.again, a.Own().Fresh, "after %d generations", generations)
		a.Close(b.now, s2)
		a.CloseConnection(c2)
		a.Close(b.now, s)
		require.Zero(t, a.Own().Streams, "a second Close does nothing")
		b.readings(3, 40*mib)
		require.Zero(t, a.Own().Fresh)
	}
}

// A connection that turns out to be a TLS one after a rotation: its first cost and the difference
// are in different generations, and only what is known of is taken back.
func TestARaisedConnectionIsNeverTakenBackTwice(t *testing.T) {
	for before := range 3 {
		for after := range 3 {
			b := open(t, 1)
			a := b.accounts[0]
			b.readings(2, 40*mib)
			c := &Connection{}
			a.OpenConnection(c, 29*kib)
			b.readings(before, 40*mib)
			a.RaiseConnection(c, 60*kib)
			b.readings(after, 40*mib)
			a.CloseConnection(c)
			// What is given back is used again: what was added since the last reading, and no more.
			again := 60 * kib
			switch {
			case after > 0:
				again = 0
			case before > 0:
				again = 31 * kib
			}
			was, next := a.Own().Fresh, &Connection{}
			a.OpenConnection(next, 100*kib)
			require.GreaterOrEqual(t, a.Own().Fresh, was+100*kib-again, "%d readings before, %d after", before, after)
			require.LessOrEqual(t, a.Own().Fresh, was+100*kib)
			a.CloseConnection(next)
			b.readings(3, 40*mib)
			require.Zero(t, a.Own().Fresh)
		}
	}
}

// What a paused request's client sends comes within a round trip and unseen by the HTTP filter:
// without the pause cost 398 paused requests held twice the budget before the first reading showed
// it.
func TestAPausedRequestCostsWhatItLeavesUnread(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.readings(2, 40*mib)
	s := &Stream{}
	a.Open(b.now, s, nil, new(Sum), 0, 0, 128*kib, 128*kib)
	a.Pause(b.now, s, 100*kib, 100*kib)
	require.Equal(t, 100*kib, a.Own().Fresh)
	a.PassPaused(s, 50*kib)
	require.Equal(t, 100*kib, a.Own().Fresh, "that is what the pause cost was for")
	b.readings(2, 40*mib)
	require.Zero(t, a.Own().Fresh)
	a.PassPaused(s, 70*kib)
	require.Equal(t, 70*kib, a.Own().Fresh, "who sends later is seen by the network filter")
	a.PassPaused(s, 70*kib)
	require.Equal(t, 100*kib, a.Own().Fresh, "and leaves no more than that unread")

	// It resumes with a length of 150 KiB. What came while it was paused is not counted again as it
	// is passed on.
	a.Unpause(s)
	a.Expect(b.now, s, Request, 150*kib, 50*kib, 100*kib)
	require.Equal(t, 50*kib, a.Own().Coming)
	require.Zero(t, a.Pass(b.now, s, Request, 100*kib), "nothing of it was beyond what is known of")
	require.Equal(t, 100*kib, a.Own().Fresh)
	require.Equal(t, 50*kib, a.Own().Coming)
	require.Zero(t, a.Pass(b.now, s, Request, 50*kib))
	require.Zero(t, a.Own().Coming)
	require.Equal(t, 128*kib, a.Own().Fresh, "its cap in this generation")
	require.False(t, s.Beyond(Request))
}

// Clients that are rejected and come straight back would fill the estimate with what nobody holds:
// 0.15 of the goodput. What they gave back is used again in its generation, and counted until a
// reading tells that it is gone.
func TestWhatATurnedAwayRequestSentIsUsedAgain(t *testing.T) {
	for name, gone := range map[string]func(*Account, *Stream, *Connection){
		"with the stream": func(a *Account, s *Stream, _ *Connection) {
			a.Drop(s)
			a.Drop(s)
		},
		"with its connection, opened since": func(a *Account, s *Stream, c *Connection) {
			a.CloseConnection(c)
			a.OpenConnection(c, 0)
			a.Linger(s, c)
			a.CloseConnection(c)
		},
		"with its connection": func(a *Account, s *Stream, c *Connection) {
			a.Linger(s, c)
			a.Linger(s, c)
			a.CloseConnection(c)
		},
	} {
		for generations, want := range map[int]int64{0: 51 * kib, 1: 101 * kib, 2: 51 * kib} {
			b := open(t, 1)
			a := b.accounts[0]
			b.readings(2, 40*mib)
			s, other, c := &Stream{}, &Stream{}, &Connection{}
			a.OpenConnection(c, kib)
			b.readings(3, 40*mib)
			a.Open(b.now, s, nil, new(Sum), 0, 0, 128*kib, 128*kib)
			a.Open(b.now, other, nil, new(Sum), 0, 0, mib, mib)
			a.Pause(b.now, s, 100*kib, 30*kib)
			require.Equal(t, 30*kib, a.Own().Fresh, "where what comes is seen, only what has come")
			a.PassPaused(s, 20*kib)
			require.Equal(t, 50*kib, a.Own().Fresh)
			b.readings(generations, 40*mib)
			gone(a, s, c)
			a.Close(b.now, s)
			a.Pass(b.now, other, Request, 51*kib)
			require.Equal(t, want, a.Own().Fresh, "%s, after %d generations: once", name, generations)
			b.readings(2, 40*mib)
			require.Zero(t, a.Own().Fresh)
		}
	}
}

// What fresh promises by itself: a reading takes out what was added before a mark that is older
// than it, and nothing else, whatever was given back.
func TestFreshIsWhatNoReadingHas(t *testing.T) {
	var f fresh
	now, sequence := time.Hour, uint64(0)
	reading := func(asked Time) int64 {
		sequence++
		in, _ := f.notice(now, sequence, asked)
		return in
	}
	f.mark(now)
	require.Equal(t, int64(100), f.add(100))
	now += 20 * ms
	require.Zero(t, reading(now), "no mark says that it had passed when the reading was asked for: that makes one")
	f.add(10)
	now += 20 * ms
	require.Equal(t, int64(100), reading(now))
	require.Equal(t, int64(10), f.kept)

	gen := f.gen
	f.add(50)
	f.giveBack(gen, 30)
	require.Equal(t, int64(60), f.kept, "it may be in a cache of the allocator")
	require.Equal(t, int64(10), f.add(40), "which gives it out again")
	f.giveBack(gen-1, 30)
	require.Equal(t, int64(40), f.add(40), "of an older generation a reading tells")
	f.waits(5)
	f.free(now, 7)
	require.Zero(t, reading(now-ms), "it was asked for before")
	require.Equal(t, int64(7), f.freed)
	now += ms
	reading(now)
	require.Zero(t, f.freed, "the reading knows of it")
	require.Equal(t, int64(5), f.stays)
	now += ms
	reading(now)
	require.Zero(t, f.stays)
}
