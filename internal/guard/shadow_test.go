package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
)

func observing(c *Config) { c.Mode = Observe }

// A shadow is counted under one reason, once: it would be gone after the first.
func TestAShadowIsCountedOnce(t *testing.T) {
	p := newProcess(t, 1, observing)
	p.settle(40 * mib)
	w, g := p.workers[0], p.guards[0]
	r, _ := p.open(0, 0)
	p.settle(199 * mib)
	require.Equal(t, Admit, g.Expect(p.now, &r.Stream, 24*mib).Action)
	require.EqualValues(t, 1, w.Counts()[CountRejected+int(ResponseSize)-1])
	require.True(t, r.Shadow())
	g.Grow(p.now, &r.Stream, budget.Response, 24*mib)
	require.Equal(t, r.Cap(budget.Response), w.account.Own().Shadows.Likely, "what it holds is known")
	require.Zero(t, w.account.Own().Bounds)
	for range 20 {
		p.read(230 * mib)
	}
	sum := uint64(0)
	for reason := TooLarge; reason < numReasons; reason++ {
		sum += w.Counts()[CountRejected+int(reason)-1]
	}
	require.EqualValues(t, 1, sum, "it is not evicted too")
	g.Close(p.now, &r.Stream)
	require.Zero(t, w.account.Own().Shadows.Likely)
}

// A shadow that has waited goes on as what it has become meanwhile: with its bytes, and its
// response.
func TestAShadowGoesOn(t *testing.T) {
	p := newProcess(t, 1, observing)
	p.settle(40 * mib)
	p.settle(176 * mib)
	w, g := p.workers[0], p.guards[0]
	r := &request{connected: p.connection(0), http2: true}
	require.Equal(t, Pass, g.Open(p.now, &r.Stream, r, 8*mib).Action)
	require.False(t, r.Waiting(), "Envoy does not hold it")
	require.Equal(t, 1, w.line.Len())
	require.Zero(t, w.Counts()[CountAdmitted])
	require.Equal(t, Admit, g.Grow(p.now, &r.Stream, budget.Request, 8*mib).Action)
	g.End(p.now, &r.Stream, budget.Request)
	require.Equal(t, Admit, g.Expect(p.now, &r.Stream, mib).Action)
	p.settle(40 * mib)
	require.Zero(t, w.line.Len())
	require.False(t, r.Shadow())
	require.EqualValues(t, 1, w.Counts()[CountAdmitted])
	require.True(t, r.Expected(budget.Response))
	require.Equal(t, r.Cap(budget.Response), r.Reserved(budget.Response), "of what its response can hold nothing has passed yet")
	require.Zero(t, r.Reserved(budget.Request), "all of it has")
	require.Positive(t, w.account.Own().Likely)
	require.Zero(t, g.Close(p.now, &r.Stream), "nobody has waited")
	require.Zero(t, w.account.Own().Coming)
}

// Who would have been closed at the first bytes of his connection is counted there, and not again
// with his request. The next one would have come on another connection.
func TestAShadowOfWhoIsClosedAtItsFirstBytes(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { nobodyWaits(c); observing(c) })
	p.settle(40 * mib)
	w, g := p.workers[0], p.guards[0]
	for range 35 {
		p.open(0, 4*mib)
	}
	p.read(195 * mib)
	for len(w.closing) == 0 {
		p.open(0, 4*mib)
	}
	c, counts := p.connection(0), *w.Counts()
	require.False(t, w.Data(p.now, c, mib), "it is let go")
	counted := func(closed int) {
		t.Helper()
		require.EqualValues(t, closed, w.Counts()[CountRejected+int(Closed)-1]-counts[CountRejected+int(Closed)-1])
		require.EqualValues(t, closed, w.Counts()[CountClosedConnections]-counts[CountClosedConnections])
	}
	counted(1)
	first := &request{connected: c}
	require.Equal(t, Pass, g.Open(p.now, &first.Stream, first, 4*mib).Action)
	require.True(t, first.Shadow())
	counted(1)
	g.Close(p.now, &first.Stream)
	next := &request{connected: c}
	require.Equal(t, Pass, g.Open(p.now, &next.Stream, next, 4*mib).Action)
	counted(2)
}

// What waits holds its client's bytes back, and a shadow does not: only what would have come
// counts.
func TestWhatAShadowBringsBeyondWhatWouldHaveCome(t *testing.T) {
	p := newProcess(t, 1, observing)
	p.settle(40 * mib)
	p.settle(180 * mib)
	w := p.workers[0]
	r, v := p.open(0, 8*mib)
	require.Equal(t, Pass, v.Action)
	require.Equal(t, 1, w.line.Len())
	for range 4 {
		w.Data(p.now, r.connected, mib)
		p.read(180 * mib)
	}
	require.Zero(t, w.account.Own().Fresh)
	require.Equal(t, 1, w.line.Len())
}
