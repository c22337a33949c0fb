package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// client is one whose requests have this method.
type client struct {
	peer
	method string
}

func (c client) Method() string { return c.method }

func (p *process) connect(method string) *Connection {
	p.nextID++
	c := &Connection{Context: p.nextID}
	require.True(p.t, p.guards[0].OpenConnection(p.now, c, client{"10.0.0.1", method}))
	return c
}

// Large headers that have no room are refused as they come: a reject would free them late. Nothing
// else is: a bystander's request, an upload, or what comes beside another request.
func TestLargeHeadersWithoutRoomAreRefused(t *testing.T) {
	p := newProcess(t, 1, nobodyWaits)
	p.settle(50 * mib)
	w := p.workers[0]
	calm, busy := p.connect("GET"), p.connect("GET")
	p.begin(0, busy)
	require.False(t, w.Data(p.now, calm, 56*kib), "there is room")

	p.settle(199*mib + 900*kib)
	get, post, bystander, split, unknown := p.connect("GET"), p.connect("POST"), p.connect("GET"), p.connect("HEAD"), p.connect("")
	refused := w.counts[metric.CountClosedConnections]
	require.False(t, w.Data(p.now, bystander, 200))
	require.False(t, w.Data(p.now, post, 56*kib), "an upload may wait")
	require.False(t, w.Data(p.now, unknown, 56*kib), "HTTP/2, or none")
	require.False(t, w.Data(p.now, busy, 56*kib), "most likely it is the body")
	require.False(t, w.Data(p.now, split, 100))
	require.Equal(t, refused, w.counts[metric.CountClosedConnections])
	require.True(t, w.Data(p.now, get, 56*kib))
	require.True(t, w.Data(p.now, split, 56*kib), "as many as come")
	require.Equal(t, refused+2, w.counts[metric.CountClosedConnections])
	require.EqualValues(t, 2, w.counts[metric.CountRejected+int(verdict.Closed)-1])
}

// Where requests may be exempt, nobody knows yet whether this one is.
func TestLargeHeadersThatMayBeExemptAreLetIn(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) {
		nobodyWaits(c)
		c.Exempt = []Exempt{{Route: "health"}}
	})
	p.settle(50 * mib)
	c := p.connect("GET")
	p.settle(200*mib - 100*kib)
	require.False(t, p.workers[0].Data(p.now, c, 56*kib))
}

// The headers of a request that was rejected are there until the pass of the event loop has ended:
// the next one has no room in their place.
func TestHeadersOfARejectedRequestStayForThePass(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) {
		nobodyWaits(c)
		c.Buffers.WholeRequest = 0
	})
	p.settle(50 * mib)
	p.settle(185 * mib)
	w, g := p.workers[0], p.guards[0]
	reject := func() {
		r := &request{connected: p.connect("GET"), headers: 56 * kib}
		w.Data(p.now, r.connected, 5*kib) // else it would not come so far
		require.NotEqual(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		g.Close(p.now, &r.Stream)
		w.CloseConnection(p.now, r.connected)
	}
	before := p.estimate()
	for range 20 {
		reject()
	}
	require.Greater(t, p.estimate()-before, 20*168*kib, "all are still there")
	w.Tick(p.now)
	before = p.estimate()
	for range 20 {
		reject()
	}
	require.Less(t, p.estimate()-before, mib, "the next ones have the memory of those")
}
