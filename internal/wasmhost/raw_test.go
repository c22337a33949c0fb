package wasmhost_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/wasmhost"
	"github.com/highwater-envoy/highwater/internal/wasmhost/hosttest"
)

// raw opens a connection to a listener that has no HTTP; nil = it was refused.
func (w *worker) raw() *wasmhost.Connection {
	w.tb.Helper()
	w.ids++
	before := len(w.closed)
	c, action, err := w.connections.NewConnection(&wasmhost.Downstream{ID: w.ids, Address: "10.0.0.254:5432", Source: "10.0.0.1:1234"})
	require.NoError(w.tb, err)
	if action == wasmhost.Continue {
		return c
	}
	require.Equal(w.tb, []*wasmhost.Connection{c}, w.closed[before:])
	require.NoError(w.tb, c.Close(false))
	w.closed = w.closed[:before]
	return nil
}

// push is what the upstream sends, in pieces as Envoy reads it; it returns how much goes on.
func (w *worker) push(c *wasmhost.Connection, n int) (goesOn int) {
	w.tb.Helper()
	for ; n > 0; n -= 16 << 10 {
		passed, err := c.UpstreamData(min(n, 16<<10))
		require.NoError(w.tb, err)
		goesOn += passed
	}
	return goesOn
}

// Raw TCP, where the plugin has the network filter alone: it is counted, refused where there is no
// room, and closed while memory is over the limit. What comes for one that is closed is thrown
// away.
func TestRawTCP(t *testing.T) {
	e := newEnvoy(t, hosttest.Plugin)
	w := e.worker(config)
	e.run(500*time.Millisecond, w)
	var open []*wasmhost.Connection
	for range 40 {
		c := w.raw()
		require.NotNil(t, c)
		w.goes(c.Data(1, false))
		require.Equal(t, 200<<10, w.push(c, 200<<10))
		open = append(open, c)
	}
	w.goes(w.raw().Data(100, false)) // says little
	e.inUse = 190 * mib
	e.run(5*time.Second, w)
	m, _ := e.process.Metric("highwater_streams")
	require.EqualValues(t, 40, m.Value)
	require.Empty(t, e.closed)

	refused := 0
	for range 10 {
		if w.raw() == nil {
			refused++
		}
	}
	require.Positive(t, refused)
	e.run(100*time.Millisecond, w)
	m, _ = e.process.Metric("highwater_refused_connections_total")
	require.EqualValues(t, refused, m.Value)
	http := w.connect()
	w.goes(http.Data(100, false))
	w.goes(w.stream(http).RequestHeaders(headers("GET", 0), true)) // as ever

	e.inUse = 230 * mib
	e.run(500*time.Millisecond, w)
	require.NotEmpty(t, e.closed)
	seen := map[*wasmhost.Connection]bool{}
	for _, c := range e.closed {
		require.False(t, seen[c], "Envoy may take as long as the client reads")
		seen[c] = true
		require.Contains(t, open, c)
		require.Zero(t, w.push(c, 16<<10), "what comes on top of that is thrown away")
		require.NoError(t, c.Close(false))
	}
	e.inUse = 40 * mib
	e.run(time.Second, w)
	require.NotNil(t, w.raw())
	m, _ = e.process.Metric("highwater_host_errors_total")
	require.Zero(t, m.Value)
}

// On a connection of HTTP the network filter takes part in nothing that goes to the client.
func TestResponsesAreNotRaw(t *testing.T) {
	e := newEnvoy(t, hosttest.Plugin)
	w := e.worker(config)
	e.run(500*time.Millisecond, w)
	c := w.connect()
	w.goes(c.Data(100, false))
	s := w.stream(c)
	w.goes(s.RequestHeaders(headers("GET", 0), true))
	require.Equal(t, 100<<10, w.push(c, 100<<10))
	early := w.connect() // Envoy answers it itself, or a filter before ours does
	early.Downstream.Protocol = "HTTP/1.1"
	w.goes(early.Data(100<<10, false))
	w.goes(early.Data(100<<10, false))
	require.Equal(t, 100<<10, w.push(early, 100<<10))
	e.run(500*time.Millisecond, w)
	m, _ := e.process.Metric("highwater_streams")
	require.EqualValues(t, 1, m.Value)
	require.NoError(t, s.Done())
}
