package budget

import (
	"errors"
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
	a.Open(b.now, s, nil, new(Sum), 0, 1<<40, 1<<40)
	return s
}

// What passes after a reading was asked for may not be in it, so that a byte is dropped only when a reading came that
// was asked for after the last rotation: with one generation, dropped at each reading, an upload flood was seen late by
// one reading and made 1.3 times the budget.
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

// An answer can come late: it was asked for before the last rotation, and says nothing of what has passed since.
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

// Envoy never holds more of a message than its cap: a download of 1 GiB through 128 KiB of buffers is 128 KiB of fresh,
// else every fast download would look like a flood.
func TestAStreamAddsAtMostItsCapPerGeneration(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.readings(2, 40*mib)
	s := &Stream{}
	a.Open(b.now, s, nil, new(Sum), 0, 100*kib, 200*kib)
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

// What is free counts as coming until it is booked.
func TestUnbookedBytesStayComing(t *testing.T) {
	b := open(t, 1)
	b.join()
	a := b.accounts[0]
	s := b.stream(a)
	require.False(t, s.PassesUnbooked(1), "nothing was announced")
	a.Expect(b.now, s, Response, 50*kib, 50*kib, 0)
	require.False(t, s.PassesUnbooked(1), "a small stream may outgrow what is small")
	a.Enlarge(b.now, s)
	a.Expect(b.now, s, Response, mib, mib, 0)
	before := a.Estimate(b.now)
	fresh := a.Own().Fresh
	for range 4 {
		require.True(t, s.PassesUnbooked(60*kib))
		require.Equal(t, before, a.Estimate(b.now))
		require.Equal(t, fresh, a.Own().Fresh)
	}
	require.Equal(t, 240*kib, s.Seen(Response), "what has passed is known at once")
	require.Equal(t, 240*kib, s.Unbooked())
	require.False(t, s.PassesUnbooked(60*kib), "more than freeMost")
	require.Zero(t, a.Pass(b.now, s, Response, 60*kib))
	require.Equal(t, 300*kib, s.Seen(Response))
	require.Equal(t, fresh+300*kib, a.Own().Fresh)
	require.Equal(t, mib-300*kib, a.Own().Coming)
	require.Equal(t, 300*kib, a.Own().Bounds)

	require.True(t, s.PassesUnbooked(60*kib))
	b.tick(25 * ms)
	require.Equal(t, fresh+360*kib, a.Own().Fresh, "a tick books it")
	require.Zero(t, s.Unbooked())

	require.True(t, s.PassesUnbooked(60*kib))
	a.End(b.now, s, Response)
	require.Equal(t, fresh+420*kib, a.Own().Fresh, "and so does the end")
	require.Zero(t, a.Own().Coming)
	require.False(t, s.PassesUnbooked(1))
	a.Close(b.now, s)
	require.Zero(t, a.Own().Bounds)
	require.Empty(t, a.streams.unbooked)
}

// Bytes of a response that came before its headers did are booked by them.
func TestExpectBooksWhatPassedBefore(t *testing.T) {
	b := open(t, 1)
	b.join()
	a := b.accounts[0]
	s := b.stream(a)
	a.Enlarge(b.now, s)
	fresh := a.Own().Fresh
	a.Expect(b.now, s, Response, mib, mib, 0)
	require.True(t, s.PassesUnbooked(200*kib))
	a.Expect(b.now, s, Response, mib, mib, 0)
	require.Equal(t, 200*kib, s.Seen(Response))
	require.Equal(t, fresh+200*kib, a.Own().Fresh)
	a.Close(b.now, s)
}

// What was announced and does not come is not free any more when it has lapsed.
func TestFreeBytesLapse(t *testing.T) {
	b := open(t, 1)
	b.join()
	a := b.accounts[0]
	streams := []*Stream{b.stream(a), b.stream(a), b.stream(a)}
	for _, s := range streams {
		a.Enlarge(b.now, s)
		a.Expect(b.now, s, Response, mib, mib, 0)
	}
	require.True(t, streams[1].PassesUnbooked(kib))
	for range 11 { // the one moves all the time
		b.tick(50 * ms)
		require.True(t, streams[1].PassesUnbooked(kib))
	}
	require.False(t, streams[0].PassesUnbooked(kib))
	require.False(t, streams[2].PassesUnbooked(kib))
	require.Len(t, a.streams.unbooked, 1)
	for _, s := range streams {
		a.Close(b.now, s)
	}
	require.Empty(t, a.streams.unbooked)
	require.Zero(t, a.Own().Coming)
}

// A large response that holds all that it can, and has added to the generation all that it may, changes nothing by passing more.
// After the next reading it may be filled again.
func TestAFullResponseIsFreeUntilTheNextReading(t *testing.T) {
	b := open(t, 1)
	b.join()
	a := b.accounts[0]
	b.readings(2, 40*mib)
	s := &Stream{}
	a.Open(b.now, s, nil, new(Sum), 16*kib, mib, 128*kib)
	a.Enlarge(b.now, s)
	a.Expect(b.now, s, Response, 4*mib, 128*kib, 0)
	require.True(t, s.PassesUnbooked(128*kib), "as coming")
	require.False(t, s.PassesUnbooked(16*kib), "it is to be booked")
	require.Equal(t, 16*kib, a.Pass(b.now, s, Response, 16*kib))
	before := a.Own()
	for range 10 {
		require.True(t, s.PassesUnbooked(16*kib))
	}
	require.Equal(t, before, a.Own())
	require.Equal(t, 304*kib, s.Seen(Response))
	require.Zero(t, s.Unbooked(), "nothing is coming")
	b.now += 25 * ms
	asked := b.now
	b.now += 5 * ms
	_, _, err := a.Observe(b.now, asked, 40*mib)
	require.NoError(t, err)
	require.Equal(t, 304*kib, s.Seen(Response))
	fresh := a.Own().Fresh
	require.False(t, s.PassesUnbooked(16*kib), "what it holds now may have come since")
	require.Equal(t, 16*kib, a.Pass(b.now, s, Response, 16*kib))
	require.Equal(t, fresh+16*kib, a.Own().Fresh)
	require.Equal(t, 320*kib, s.Seen(Response))
	a.Close(b.now, s)
	require.Empty(t, a.streams.unbooked)
}

// 6,000 small requests a second of 16 KiB each would be 94 MiB of a budget after one second between two readings if
// what ended were counted again. It stays counted until a reading tells, for the allocator may keep it in its caches.
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
		a.Open(b.now, s, nil, new(Sum), 16*kib, mib, mib)
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
		a.Open(b.now, s2, nil, new(Sum), 16*kib, mib, mib)
		a.OpenConnection(c2, 29*kib)
		a.RaiseConnection(c2, 60*kib)
		require.Equal(t, want.again, a.Own().Fresh, "after %d generations", generations)
		require.Equal(t, want.again, a.fresh.passed[0]+a.fresh.passed[1])
		a.Close(b.now, s2)
		a.CloseConnection(c2)
		a.Close(b.now, s)
		require.Zero(t, a.Own().Streams, "a second Close does nothing")
		b.readings(3, 40*mib)
		require.Zero(t, a.Own().Fresh)
	}
}

// A connection that turns out to be a TLS one after a rotation: its first cost and the difference are in different
// generations, and only what is known of is taken back.
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
			require.GreaterOrEqual(t, min(a.fresh.passed[0], a.fresh.passed[1], a.Own().Fresh), int64(0))
			b.readings(3, 40*mib)
			require.Zero(t, a.Own().Fresh)
		}
	}
}

// What a paused request's client sends comes within a round trip and unseen by the HTTP filter: without the pause cost
// 398 paused requests held twice the budget before the first reading showed it.
func TestAPausedRequestCostsWhatItLeavesUnread(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.readings(2, 40*mib)
	s := &Stream{}
	a.Open(b.now, s, nil, new(Sum), 0, 128*kib, 128*kib)
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

	// It resumes with a length of 150 KiB. What came while it was paused is not counted again as it is passed on.
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

// Clients that are turned away and come straight back would fill the estimate with what nobody holds: 0.15 of the
// goodput. What they gave back is used again in its generation, and counted until a reading tells that it is gone.
func TestWhatATurnedAwayRequestSentIsUsedAgain(t *testing.T) {
	for name, gone := range map[string]func(*Account, *Stream, *Connection){
		"with the stream": func(a *Account, s *Stream, _ *Connection) {
			a.Drop(s)
			a.Drop(s)
		},
		"with its connection, opened since": func(a *Account, s *Stream, c *Connection) {
			*c = Connection{cost: cost{gen: a.fresh.gen}}
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
			a.Open(b.now, s, nil, new(Sum), 0, 128*kib, 128*kib)
			a.Open(b.now, other, nil, new(Sum), 0, mib, mib)
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

// Who announces and never sends must not lock the others out; who has sent his response's headers sends at once.
func TestComingLapses(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	response, request := b.stream(a), b.stream(a)
	a.Expect(b.now, response, Response, 4*mib, 4*mib, 0)
	a.Expect(b.now, request, Request, Unknown, 64*kib, 0)
	b.tick(299 * ms)
	require.Equal(t, 4*mib+64*kib, a.Own().Coming)
	b.now += 100 * ms // the sweep is every 100 ms
	b.tick(0)
	require.Equal(t, 64*kib, a.Own().Coming, "a response: 300 ms")
	require.True(t, response.Lapsed(Response))

	b.tick(1600 * ms)
	require.Equal(t, 64*kib, a.Own().Coming)
	b.tick(101 * ms)
	require.Zero(t, a.Own().Coming, "a request: 2 s")
	require.True(t, request.Lapsed(Request))

	// What is sent after its reservation lapsed is fresh.
	require.Equal(t, mib, a.Pass(b.now, response, Response, mib))
	require.Equal(t, mib, a.Own().Fresh)
	require.False(t, response.Beyond(Response), "it is within what was once reserved")
}

// Each byte begins the time anew, and so does a resume; while a request is paused its reservation does not lapse.
func TestComingLapsesFromTheLastByteOn(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	s, paused := b.stream(a), b.stream(a)
	a.Expect(b.now, s, Response, 4*mib, 4*mib, 0)
	a.Expect(b.now, paused, Request, mib, mib, 0)
	a.Pause(b.now, paused, 64*kib, 64*kib)
	for range 10 {
		b.tick(250 * ms)
		require.Zero(t, a.Pass(b.now, s, Response, 100*kib))
	}
	require.Equal(t, 4*mib-1000*kib, s.Reserved(Response))
	require.Equal(t, mib, paused.Reserved(Request))
	a.Unpause(paused)
	a.Expect(b.now, paused, Request, mib, mib, 0)
	b.tick(400 * ms)
	require.Equal(t, mib, paused.Reserved(Request))
}

// A trickler announces 16 MiB and sends 1 KiB a tick: 12 of them would hold all of 200 MiB reserved for ever.
func TestATricklersReservationIsClamped(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	s := b.stream(a)
	a.Expect(b.now, s, Request, 16*mib, 16*mib, 0)
	for range 4 {
		b.tick(100 * ms)
		a.Pass(b.now, s, Request, kib)
	}
	require.Equal(t, 16*mib-4*kib, s.Reserved(Request), "not before 500 ms: an upload needs a round trip to begin")
	for range 2 {
		b.tick(100 * ms)
	}
	// 2 × the 4 KiB of its last two seconds, and 64 KiB for who has sent nothing yet.
	require.Equal(t, (2*4+64)*kib, s.Reserved(Request))
	require.True(t, s.Lapsed(Request))

	// Who sends fast keeps what he announced.
	fast := b.stream(a)
	a.Expect(b.now, fast, Request, 4*mib, 4*mib, 0)
	for range 9 {
		b.tick(100 * ms)
		a.Pass(b.now, fast, Request, 400*kib)
	}
	require.Equal(t, 4*mib-9*400*kib, fast.Reserved(Request))

	// What he sent more than two seconds ago says nothing of him any more.
	for range 6 {
		b.tick(500 * ms)
		a.Pass(b.now, fast, Request, kib)
	}
	b.tick(100 * ms)
	require.LessOrEqual(t, fast.Reserved(Request), (2*4+64)*kib)
	require.False(t, fast.Ended(Request))
}

// What has ended brings no more.
func TestTheRestOfAReservationEndsWithTheMessage(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	s := b.stream(a)
	a.Expect(b.now, s, Request, mib, mib, 0)
	a.Expect(b.now, s, Response, Unknown, 64*kib, 0)
	a.Reserve(b.now, s, Response, 64*kib)
	a.Pass(b.now, s, Request, 10*kib)
	a.End(b.now, s, Request)
	require.Equal(t, 128*kib, a.Own().Coming)
	require.True(t, s.Ended(Request))
	a.Close(b.now, s)
	require.Zero(t, a.Own().Coming)
	require.Equal(t, 10*kib, a.Own().Fresh, "but what has passed may still be held, in the codec")
}

// A small request may not carry the floor off: what grows leaves the small sum.
func TestTheSmallSumFollowsTheStreams(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	s := b.stream(a)
	a.Expect(b.now, s, Request, 10*kib, 10*kib, 0)
	require.Equal(t, 10*kib, a.Own().Small)
	a.Pass(b.now, s, Request, 10*kib)
	require.Equal(t, 10*kib, a.Own().Small, "coming or held")
	a.End(b.now, s, Request)
	a.Expect(b.now, s, Response, mib, mib, 0)
	a.Enlarge(b.now, s)
	a.Enlarge(b.now, s)
	require.Zero(t, a.Own().Small)
	require.False(t, s.Small())
	a.Close(b.now, s)
	require.Zero(t, a.Own().Small)
}

// An idle stream has most likely drained: without the weights, 500 idle HTTP/2 streams that had each moved 10 MiB
// looked as if they held everything.
func TestWhatAStreamLikelyHolds(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.tick(ms)
	done, stuck := &Stream{}, &Stream{}
	a.Open(b.now, done, nil, new(Sum), 0, mib, 100*kib)
	a.Open(b.now, stuck, nil, new(Sum), 0, mib, 100*kib)
	a.End(b.now, done, Request)
	a.End(b.now, stuck, Request)
	a.Expect(b.now, done, Response, Unknown, 0, 0)
	a.Expect(b.now, stuck, Response, 10*mib, 0, 0)
	a.Pass(b.now, done, Response, mib)
	a.Pass(b.now, stuck, Response, mib)
	require.Equal(t, 200*kib, a.Own().Likely)
	begin := b.now
	for _, c := range []struct {
		idle Time
		want float64
	}{
		{900 * ms, 1}, {1100 * ms, 0.5}, {2100 * ms, 0.25}, {3100 * ms, 0.125}, {4100 * ms, 0.1}, {time.Hour, 0.1},
	} {
		b.tick(begin + c.idle - b.now)
		// Who has announced more than has passed does not read: he holds all of it for as long as it takes.
		require.InDelta(t, float64(100*kib)*(1+c.want), float64(a.Own().Likely), 2, "%v", c.idle)
		require.Equal(t, 200*kib, a.Own().Bounds, "the bound does not age")
	}
	a.Pass(b.now, done, Response, 1)
	require.Equal(t, 200*kib, a.Own().Likely, "a byte, and it is awake again")
	a.Close(b.now, done)
	a.Close(b.now, stuck)
	require.Zero(t, a.Own().Likely)
	require.Zero(t, a.Own().Bounds)
}

// Exposure is the worst case: what all could come to hold that have not ended.
func TestExposure(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	s := &Stream{}
	a.Open(b.now, s, nil, new(Sum), 0, mib, 128*kib)
	require.Equal(t, mib+128*kib, a.Own().Exposure)
	a.Expect(b.now, s, Request, 10*kib, 10*kib, 0)
	require.Equal(t, 138*kib, a.Own().Exposure, "no more than announced")
	a.SetCap(b.now, s, Response, 16*mib)
	require.Equal(t, 16*mib+10*kib, a.Own().Exposure, "it is HTTP/2")
	a.End(b.now, s, Request)
	require.Equal(t, 16*mib, a.Own().Exposure)
	a.Close(b.now, s)
	require.Zero(t, a.Own().Exposure)
}

// A response that has ended may lie unread in its connection's codec: without a trace of it base would swallow it.
func TestAnEndedResponseStaysWithItsConnection(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	c := &Connection{}
	a.OpenConnection(c, 29*kib)
	a.Leave(b.now, c, 128*kib, new(Sum))
	require.Equal(t, 128*kib, a.Own().Bounds)
	require.Equal(t, 128*kib, a.Own().Likely)
	b.now += 1500 * ms
	require.True(t, a.Settle(b.now, c))
	require.Equal(t, 64*kib, a.Own().Likely, "less and less likely")
	require.Equal(t, 128*kib, a.Own().Bounds)
	b.now += 8499 * ms
	require.True(t, a.Settle(b.now, c))
	require.Equal(t, 128*kib, a.Own().Bounds)
	b.now += ms
	require.False(t, a.Settle(b.now, c), "for at most 10 s")
	require.Zero(t, a.Own().Bounds)
	require.Zero(t, a.Own().Likely)

	a.Leave(b.now, c, 128*kib, new(Sum))
	a.Leave(b.now, c, 64*kib, new(Sum))
	require.Equal(t, 64*kib, a.Own().Bounds, "the next response in its place")
	a.CloseConnection(c)
	require.Zero(t, a.Own().Bounds)
	require.Zero(t, a.Own().Connections.Open)
}

// Without a reading the live streams say what can be held: a frozen one of 199 of 200 would lock everyone out.
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
	a.Open(b.now, s, nil, new(Sum), 0, mib, mib)
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
		require.Equal(t, want, a.Ask(b.now, 180*mib, Large), "%d", on)
	}
	a.SetLimits(limits())
	require.Equal(t, Granted, a.Ask(b.now, 90*mib, Large))
	require.Equal(t, Denied, a.Ask(b.now, 200*mib, Large))
}

// fails is a store on which everything, or only Swap, goes wrong.
type fails struct {
	Memory
	load, swap, id error
	swaps          int
}

func (f *fails) Load() ([]byte, uint32, error) {
	if f.load != nil {
		return nil, 0, f.load
	}
	return f.Memory.Load()
}

func (f *fails) Swap(value []byte, version uint32) error {
	f.swaps++
	if f.swap != nil {
		return f.swap
	}
	return f.Memory.Swap(value, version)
}

func (f *fails) NextID() (uint32, error) {
	if f.id != nil {
		return 0, f.id
	}
	return f.Memory.NextID()
}

// When others are always first, or the host fails, nobody is rejected for it: Busy. And nothing loops for ever.
func TestContentionAndFailuresAreBusy(t *testing.T) {
	broken := errors.New("the host has failed")
	for name, f := range map[string]*fails{
		"always first":  {swap: ErrConflict},
		"Swap fails":    {swap: broken},
		"Load fails":    {load: broken},
		"both and more": {load: broken, swap: broken},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := NewAccount(f, limits())
			require.NoError(t, err)
			now := time.Hour
			for _, c := range []Claim{Large, Full, Floor, Forced} {
				a, err := NewAccount(f, limits())
				require.NoError(t, err)
				f.swaps = 0
				require.Equal(t, Busy, a.Ask(now, mib, c))
				require.LessOrEqual(t, f.swaps, maxTries)
			}
			// A life in which nothing works.
			s, c := &Stream{}, &Connection{}
			a.OpenConnection(c, 29*kib)
			a.Open(now, s, nil, new(Sum), 16*kib, mib, mib)
			a.Expect(now, s, Request, mib, mib, 0)
			a.Cover(now)
			for range 20 {
				now += 25 * ms
				polls, err := a.Tick(now)
				require.False(t, polls, "who can't say so does not poll")
				if !errors.Is(f.swap, ErrConflict) {
					require.ErrorIs(t, err, broken)
				} else {
					require.NoError(t, err, "that is no failure of the host")
				}
				_, _, err = a.Observe(now, now-ms, 40*mib)
				require.Error(t, err)
				a.Pass(now, s, Request, 10*kib)
				a.Cover(now)
			}
			a.Close(now, s)
			a.CloseConnection(c)
			require.Zero(t, a.Own().Coming)
			require.Zero(t, a.Own().Streams)
			if errors.Is(f.swap, ErrConflict) {
				require.Positive(t, a.Contention)
			}

			// It works again.
			*f = fails{}
			a.Cover(now)
			now += 25 * ms
			polls, err := a.Tick(now)
			require.NoError(t, err)
			require.True(t, polls)
			_, _, err = a.Observe(now, now, 40*mib)
			require.NoError(t, err)
			require.Equal(t, Granted, a.Ask(now, mib, Large))
		})
	}
	_, err := NewAccount(&fails{id: broken}, limits())
	require.ErrorIs(t, err, broken)
}

// What is in shared data after an upgrade was written by another version: it counts as nothing, and is written over.
func TestATableOfAnotherVersionIsBegunAnew(t *testing.T) {
	b := open(t, 1)
	require.NoError(t, b.store.Swap([]byte("something else altogether"), 0))
	b.join()
	b.tick(25 * ms)
	require.Len(t, b.stored().Entries, 1)
	b.readings(1, 40*mib)
	require.Equal(t, 40*mib, b.stored().Reading)
}
