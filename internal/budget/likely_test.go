package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

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

// An idle stream has most likely drained: without the weights, 500 idle HTTP/2 streams that had
// each moved 10 MiB looked as if they held everything.
func TestWhatAStreamLikelyHolds(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.tick(ms)
	done, stuck := &Stream{}, &Stream{}
	a.Open(b.now, done, nil, new(Sum), 0, 0, mib, 100*kib)
	a.Open(b.now, stuck, nil, new(Sum), 0, 0, mib, 100*kib)
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
		// Who has announced more than has passed does not read: he holds all of it for as long as
		// it takes.
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
	a.Open(b.now, s, nil, new(Sum), 0, 0, mib, 128*kib)
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

// A response that has ended may lie unread in its connection's codec: without a trace of it base
// would swallow it.
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
