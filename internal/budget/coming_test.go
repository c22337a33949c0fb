package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

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
	requireNoneUnbooked(t, a)
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
	for _, s := range streams {
		a.Close(b.now, s)
	}
	requireNoneUnbooked(t, a)
	require.Zero(t, a.Own().Coming)
}

// A large response that holds all that it can, and has added to the generation all that it may,
// changes nothing by passing more. After the next reading it may be filled again.
func TestAFullResponseIsFreeUntilTheNextReading(t *testing.T) {
	b := open(t, 1)
	b.join()
	a := b.accounts[0]
	b.readings(2, 40*mib)
	s := &Stream{}
	a.Open(b.now, s, nil, new(Sum), 16*kib, 0, mib, 128*kib)
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
	requireNoneUnbooked(t, a)
}

// Who announces and never sends must not lock the others out; who has sent his response's headers
// sends at once.
func TestComingLapses(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	response, request := b.stream(a), b.stream(a)
	a.Expect(b.now, response, Response, 4*mib, 4*mib, 0)
	a.Expect(b.now, request, Request, 64*kib, 64*kib, 0)
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

// A message without a length that has come to rest is told of once: what it has brought is what the
// next will. It may never end.
func TestALapseIsToldOnce(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	s, owner := &Stream{}, new(int)
	a.Open(b.now, s, owner, new(Sum), 0, 0, mib, mib)
	a.Expect(b.now, s, Request, Unknown, 64*kib, 0)
	a.Expect(b.now, s, Response, Unknown, 64*kib, 0)
	a.Pass(b.now, s, Request, 200)
	moved := b.now
	var told []Lapse
	for range 30 {
		b.tick(100 * ms)
		told = append(told, a.Lapses()...)
		switch b.now - moved {
		case 400 * ms:
			require.Equal(t, len(told) < 2, s.Reserved(Request) > 0)
		case time.Second:
			a.Pass(b.now, s, Request, 200)
			moved = b.now
		}
	}
	require.Equal(t, []Lapse{{owner, Response}, {owner, Request}}, told, "after 300 and 500 ms")
	require.Zero(t, a.Own().Coming)
}

// What is expected of a response before its headers waits for an upstream that takes a second.
func TestAResponseThatIsReservedForWaitsForItsUpstream(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	s := b.stream(a)
	a.Enlarge(b.now, s)
	a.Reserve(b.now, s, Response, 4*mib)
	b.tick(time.Second)
	require.Equal(t, 4*mib, a.Own().Coming)
	b.tick(time.Second)
	require.Zero(t, a.Own().Coming, "2 s")
}

// Each byte begins the time again, and so does a resume; while a request is paused its reservation
// does not lapse.
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

// A trickler announces 16 MiB and sends 1 KiB a tick: 12 of them would hold all of 200 MiB reserved
// for ever.
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

// requireNoneUnbooked looks into the account, for nothing else shows what a stream that has ended
// left in its list: the list would only grow.
func requireNoneUnbooked(t *testing.T, a *Account) {
	t.Helper()
	require.Empty(t, a.streams.unbooked)
}
