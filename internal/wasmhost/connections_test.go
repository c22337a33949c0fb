package wasmhost_test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/wasmhost"
	"github.com/highwater-envoy/highwater/internal/wasmhost/hosttest"
)

// tcp opens a connection; nil = it was refused.
func (w *worker) tcp(id uint64) *wasmhost.Connection {
	w.tb.Helper()
	before := len(w.closed)
	c, action, err := w.connections.NewConnection(&wasmhost.Downstream{ID: id})
	require.NoError(w.tb, err)
	if action == wasmhost.Continue {
		require.Len(w.tb, w.closed, before)
		return c
	}
	require.Equal(w.tb, []*wasmhost.Connection{c}, w.closed[before:])
	require.NoError(w.tb, c.Close(false))
	w.closed = w.closed[:before]
	return nil
}

// 5,000 connections come to 8 workers at once, with a limit of 1,000: never are more open, and
// those that are stay.
func TestLimitOfConnections(t *testing.T) {
	const limit, all = 1000, 5000
	e := newEnvoy(t, hosttest.Plugin)
	workers := make([]*worker, 8)
	for i := range workers {
		workers[i] = e.worker(strings.Replace(config, `"200MiB"`, `"200MiB", "connections": 1000`, 1))
	}
	e.run(500*time.Millisecond, workers...)
	random := rand.New(rand.NewPCG(1, 2))
	type one struct {
		w *worker
		c *wasmhost.Connection
		s *wasmhost.Stream
	}
	var open []one
	var exchanges uint64
	refused := 0
	for i := range all {
		if i%100 == 99 {
			e.run(5*time.Millisecond, workers...)
		}
		w := workers[random.IntN(len(workers))]
		before := leases(w.vm)
		c := w.tcp(uint64(i + 1))
		if c == nil {
			refused++
			continue
		}
		exchanges += leases(w.vm) - before
		s := w.stream(c)
		w.open(c, s, 0) // a request that is not answered yet
		open = append(open, one{w, c, s})
		require.LessOrEqual(t, len(open), limit)
	}
	require.GreaterOrEqual(t, len(open), limit-len(workers))
	require.Equal(t, all-len(open), refused)
	t.Logf("%d open, %.2f calls for leases each", len(open), float64(exchanges)/float64(len(open)))
	e.run(500*time.Millisecond, workers...)
	m, _ := e.process.Metric("highwater_connections")
	require.Equal(t, uint64(len(open)), m.Value)
	m, _ = e.process.Metric("highwater_refused_connections_total")
	require.Equal(t, uint64(refused), m.Value)

	// Half of them become idle where memory is short: those are closed, and no other.
	idle := map[*wasmhost.Connection]bool{}
	for _, o := range open[:len(open)/2] {
		o.w.respond(o.s, 100, 100)
		o.w.done(o.s)
		idle[o.c] = true
	}
	e.inUse = 190 * mib
	e.run(2*time.Second, workers...)
	require.Len(t, e.closed, len(idle))
	for _, c := range e.closed {
		require.True(t, idle[c], "it has a request")
		delete(idle, c)
		require.NoError(t, c.Close(false))
	}
	m, _ = e.process.Metric("highwater_closed_idle_total")
	require.Equal(t, uint64(len(open)/2), m.Value)
	for _, o := range open[len(open)/2:] {
		o.w.respond(o.s, 100, 100)
		o.w.done(o.s)
		require.NoError(t, o.c.Close(true))
	}
	e.run(500*time.Millisecond, workers...)
	m, _ = e.process.Metric("highwater_connections")
	require.Zero(t, m.Value)
	m, _ = e.process.Metric("highwater_host_errors_total")
	require.Zero(t, m.Value)
	require.Empty(t, e.answers)
}

// Whoever comes with a buffer full of an upload while others are to be closed is closed at once,
// and what it brought is thrown away.
func TestWhatComesFirstIsThrownAway(t *testing.T) {
	e := newEnvoy(t, hosttest.Plugin)
	w := e.worker(strings.Replace(config, `"200MiB"}`, `"200MiB"}, "throttle": {"timeout": "0s"}`, 1))
	e.run(500*time.Millisecond, w)
	e.inUse = 199 << 20
	e.run(500*time.Millisecond, w)

	c := w.tcp(1)
	for id := uint64(2); len(e.closed) == 0; id++ { // answered, until what that leaves has no room
		require.Less(t, id, uint64(1000))
		c = w.tcp(id)
		c.Begins = "POST /upload HTTP/1.1"
		action, err := c.Data(1<<20, false)
		require.NoError(t, err)
		if action == wasmhost.Pause {
			break
		}
		w.pauses(w.stream(c).RequestHeaders(headers("POST", 4<<20), false))
	}
	require.Equal(t, []*wasmhost.Connection{c}, e.closed)
	require.Zero(t, c.Unread())
	require.NoError(t, c.Close(false))
	w.goes(w.tcp(5000).Data(200, false))
	raw := w.tcp(5001)
	raw.Begins = "\x16\x03\x01"
	w.goes(raw.Data(1<<20, false))
	w.run(100*time.Millisecond, w)
	m, _ := e.process.Metric("highwater_host_errors_total")
	require.Zero(t, m.Value)
}
