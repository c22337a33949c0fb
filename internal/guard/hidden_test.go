package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// What was announced and is not seen counts as coming for a second, and what it may hold for as
// long as it can be held.
func TestHiddenMessages(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g, w, r := p.guards[0], p.workers[0], hidden()
	require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 4*mib).Action)
	require.Equal(t, 4*mib, r.Reserved(budget.Request))
	require.Equal(t, 4*mib, r.Held(budget.Request))
	for begun := p.now; p.now < begun+1100*ms; {
		p.read(40 * mib)
	}
	require.Zero(t, r.Reserved(budget.Request))
	require.Equal(t, 4*mib, r.Held(budget.Request), "it may be there still")

	require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, 100*mib).Action)
	require.True(t, r.Ended(budget.Request), "who is answered has sent all")
	require.Equal(t, 128*kib, r.Reserved(budget.Response))
	fresh := w.Account().Own().Fresh
	g.Close(p.now, &r.Stream)
	own := w.Account().Own()
	require.Equal(t, fresh+128*kib, own.Fresh, "it may have passed just now")
	require.Zero(t, own.Coming+own.Streams+own.Exposure+own.Bounds)
	p.settle(40 * mib)
	require.Zero(t, w.Account().Own().Fresh)
	require.Zero(t, w.Account().Table().Surprise)
	require.Equal(t, 64*kib, p.forecast(0, "", budget.Response), "nothing was seen to be learnt")
}

// What a response without a length may have filled before its headers were answered stays reserved
// until its first piece, which brings all of that: it was there, and is no reason to cut the
// response. Then no more is waited for than for any other.
func TestHiddenResponseWithoutALength(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	g, all := p.guards[0], p.burst(200)
	for _, r := range all {
		r.hides[budget.Response] = false // it is asked for, now
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
		require.Equal(t, 4*mib, r.Reserved(budget.Response))
	}
	p.read(190 * mib) // with what is coming, and is in this already, that is far beyond the limit
	for _, r := range all {
		require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, mib).Action)
		require.Equal(t, mib, r.Reserved(budget.Response), "it may be twice as much")
		for range 16 {
			require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, 64*kib).Action)
		}
		require.Zero(t, r.Reserved(budget.Response)-r.Unbooked())
	}
	p.settle(40 * mib)
	require.Greater(t, p.forecast(0, "", budget.Response), mib, "those who read slowly teach it all the same")
}

// A small first piece tells that nothing large was there: streams that go on for long are not
// waited for, and their key is known.
func TestHiddenFirstPiece(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	g := p.guards[0]
	r := hidden()
	require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
	r.hides[budget.Response] = false
	require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
	require.Equal(t, 4*mib, r.Reserved(budget.Response))
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, 1000).Action)
	require.Equal(t, 64*kib-1000, r.Reserved(budget.Response))
	require.Len(t, p.burst(1000), 1000)

	// Also of one of which much is free.
	for range 5 {
		p.bring("", budget.Response, 200*kib)
	}
	r = p.burst(1)[0]
	r.hides[budget.Response] = false
	require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
	forecast := p.forecast(0, "", budget.Response)
	require.Greater(t, r.Reserved(budget.Response), forecast)
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, 1000).Action)
	require.Equal(t, forecast-1000, r.Reserved(budget.Response))
}

// Of whose response nothing will be told, it is taken for as much as the buffers hold; where that
// does not fit the request waits, and its own body is still to come when it goes.
func TestUntoldResponses(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	upload := hidden()
	upload.untold = true
	require.Equal(t, verdict.Admit, g.Open(p.now, &upload.Stream, upload, mib).Action)
	require.Equal(t, mib, upload.Reserved(budget.Request))
	require.Equal(t, 2*mib, upload.Reserved(budget.Response))
	require.Equal(t, 2*mib, upload.Held(budget.Response))
	p.read(190 * mib)
	get := hidden()
	get.untold = true
	require.Equal(t, verdict.Wait, g.Open(p.now, &get.Stream, get, 0).Action)
	p.read(40 * mib)
	p.read(40 * mib)
	require.False(t, get.Waiting())
	require.Equal(t, 2*mib, get.Reserved(budget.Response))
	g.Close(p.now, &upload.Stream)
	g.Close(p.now, &get.Stream)
	require.Zero(t, w.Account().Own().Coming)
}

// An upstream that answers nobody for a while looks as if nothing was told. Nothing is learnt of
// that, and when a response is told after all its body is counted.
func TestUntoldForAWhile(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	g := p.guards[0]
	get := func(Untold bool, length int64) *request {
		r := hidden()
		r.untold = Untold
		require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		r.hides[budget.Response] = length != budget.Unknown
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, length).Action)
		return r
	}
	for range 10 {
		g.Close(p.now, &get(false, 5000).Stream)
	}
	never := hidden()
	never.untold = true
	require.Equal(t, verdict.Admit, g.Open(p.now, &never.Stream, never, 0).Action)
	g.Close(p.now, &never.Stream)
	next := hidden()
	require.Equal(t, verdict.Admit, g.Open(p.now, &next.Stream, next, 0).Action)
	require.Zero(t, next.Reserved(budget.Response), "nothing was learnt")
	g.Close(p.now, &next.Stream)
	r := get(true, budget.Unknown)
	require.True(t, r.Counted(budget.Response))
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, mib).Action)
	require.Equal(t, mib, r.Seen(budget.Response))
	g.Close(p.now, &r.Stream)
	g.Close(p.now, &get(true, 5000).Stream)
}

// Of what was reserved before the headers nothing is a reason to cut a response, wherever memory
// is.
func TestHiddenResponseIsNotCutWithinWhatIsReserved(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	g := p.guards[0]
	for _, n := range []int64{300 * kib, 5000, 5000} {
		r := p.burst(1)[0]
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, n).Action)
		g.Close(p.now, &r.Stream)
	}
	r := p.burst(1)[0]
	r.hides[budget.Response] = false
	require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
	p.read(230 * mib)
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, 200*kib).Action)
	require.Equal(t, verdict.Reset, g.Grow(p.now, &r.Stream, budget.Response, 64*kib).Action)
}

// Where nothing is told of a body, its forecast stands for it, and not all that may be there.
func TestHiddenBodyWithoutALength(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(40 * mib)
	r := hidden()
	require.Equal(t, verdict.Admit, p.guards[0].Open(p.now, &r.Stream, r, 0).Action)
	require.Equal(t, verdict.Admit, p.guards[0].Expect(p.now, &r.Stream, budget.Unknown).Action)
	require.Equal(t, 64*kib, r.Reserved(budget.Response))
}

// A response without a length teaches all of what it came to, booked or not.
func TestUnbookedBytesTeach(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g := p.guards[0]
	for range 12 {
		p.workers[0].Tick(p.now) // of those between two ticks the first is judged
		r, v := p.open(0, 0)
		require.Equal(t, verdict.Admit, v.Action)
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
		for range 10 {
			require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, 10*kib).Action)
		}
		require.Equal(t, 100*kib, r.Held(budget.Response))
		g.End(p.now, &r.Stream, budget.Response)
		g.Close(p.now, &r.Stream)
	}
	require.InDelta(t, 100*kib, p.forecast(0, "", budget.Response), float64(30*kib))
}

// Where all responses of a key are large, and have no length, a few are counted, which show it if
// that changes. The others are taken for what the buffers hold.
func TestFewLargeResponsesAreCounted(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(20 * mib)
	g := p.guards[0]
	answer := func() (r *request, counted bool) {
		r = hidden()
		require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		counted = g.WantsBody(p.now, &r.Stream)
		r.hides[budget.Response] = !counted
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
		return r, counted
	}
	first, counted := answer()
	require.True(t, counted)
	for range 20 {
		g.Grow(p.now, &first.Stream, budget.Response, mib)
		g.End(p.now, &first.Stream, budget.Response)
		g.Close(p.now, &first.Stream)
		p.settle(20 * mib)
		first, _ = answer()
	}
	g.Close(p.now, &first.Stream)
	var all []*request
	for i := range 8 {
		r, counted := answer()
		require.Equal(t, i < 4, counted)
		if !counted {
			require.Equal(t, 2*mib, r.Reserved(budget.Response))
		}
		all = append(all, r)
	}
	require.False(t, all[7].Counted(budget.Response))
	g.Close(p.now, &all[0].Stream)
	r, counted := answer()
	require.True(t, counted, "in the place of one that ended")
	g.Close(p.now, &r.Stream)
	for range 40 {
		p.bring("", budget.Response, 1000)
	}
	_, counted = answer()
	require.True(t, counted, "they are small now")
}

// What comes late to the face says nothing of the key: 300 slow readers were taken for small ones,
// because the first of them had brought nothing within 300 ms.
func TestAFirstPieceThatComesLateTeachesNothing(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(20 * mib)
	g, r := p.guards[0], hidden()
	require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
	require.True(t, g.WantsBody(p.now, &r.Stream))
	r.hides[budget.Response] = false
	require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
	for end := p.now + 600*ms; p.now < end; {
		p.read(20 * mib)
	}
	require.False(t, r.key.Value.Responses.Learned())
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, mib).Action)
	require.Greater(t, r.key.Value.Responses.Known(), mib, "now it is known to be large")
}
