package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// capped is a connection whose face has set its buffer limit, on which a first read has come.
func (p *process) capped(worker int, read int64) *Connection {
	p.t.Helper()
	p.nextID++
	c := &Connection{Context: p.nextID, Caps: Caps{Read: p.workers[worker].BufferLimit(mib), Own: mib}}
	require.True(p.t, p.guards[worker].OpenConnection(p.now, c, peer("10.0.0.1")))
	p.workers[worker].Data(p.now, c, read)
	return c
}

func TestBufferLimitsGoByHowFullMemoryIs(t *testing.T) {
	p := newProcess(t, 1, func(*Config) {})
	w := p.workers[0]
	p.settle(40 * mib)
	require.Equal(t, int64(readCalm), w.BufferLimit(mib))
	require.Equal(t, int64(32<<10), w.BufferLimit(32<<10), "never more than the listener's own")
	require.Equal(t, int64(readCalm), w.BufferLimit(0), "a listener without a limit")
	p.settle(w.Account().Share(0.85))
	require.Equal(t, budget.Soft, w.Account().Table().Level)
	require.Equal(t, int64(readShort), w.BufferLimit(mib))
}

// With caps an upload is priced at what one read and then its filters or its upstream hold, and
// who waits at what one read has brought. Without, it is as `buffers` says.
func TestCapsOfAConnectionPriceItsUploads(t *testing.T) {
	for name, c := range map[string]struct {
		capped       bool
		http2        bool
		wants, waits int64
	}{
		"capped":          {capped: true, wants: 64*kib + mib, waits: 20 * kib},
		"capped, HTTP/2":  {capped: true, http2: true, wants: 8 * mib, waits: 8 * mib},
		"as buffers tell": {wants: 2 * mib, waits: 2 * mib},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcess(t, 1, func(c *Config) {
				c.Buffers = Default().Buffers
			})
			p.settle(40 * mib)
			connection := p.capped(0, 20*kib)
			if !c.capped {
				connection.Caps = Caps{}
			}
			r := &request{connected: connection, http2: c.http2}
			p.guards[0].Open(p.now, &r.Stream, r, 8*mib)
			require.Equal(t, c.wants, r.wants)
			require.Equal(t, c.waits, p.guards[0].cost(&r.Stream))
			p.guards[0].Close(p.now, &r.Stream)
		})
	}
}

// Who waits on capped connections holds next to nothing: though memory is over the limit by what
// was measured, nobody of them is rejected for that, while those whom buffers price are.
func TestCappedUploadsAreNotShed(t *testing.T) {
	for _, capped := range []bool{true, false} {
		p := newProcess(t, 1, func(c *Config) { c.Throttle.Timeout = unit.Duration(60e9) })
		w := p.workers[0]
		p.settle(w.Account().Share(0.95))
		var waiting []*request
		for range 20 {
			c := p.capped(0, 20*kib)
			if !capped {
				c.Caps = Caps{}
			}
			r := &request{connected: c}
			if p.guards[0].Open(p.now, &r.Stream, r, 8*mib).Action == verdict.Wait {
				waiting = append(waiting, r)
			}
		}
		require.NotEmpty(t, waiting)
		shed := 0
		for range 4 {
			p.now += 25 * ms
			a := w.Tick(p.now)
			if a.Ask {
				w.Observe(p.now, memory.Reading{InUse: w.Account().InForce() + mib, Allocated: mib}, nil)
			}
			shed += len(a.Rejected) + len(a.Close)
		}
		require.Equal(t, capped, shed == 0, "%d of %d", shed, len(waiting))
	}
}

// Connections that were accepted and have no filter chain yet are refused where one has no room
// there, and beyond an eighth of the room by themselves.
func TestAcceptedConnectionsAreBounded(t *testing.T) {
	p := newProcess(t, 1, func(*Config) {})
	p.settle(40 * mib)
	g, room := p.guards[0], p.workers[0].Account().Room()
	require.True(t, g.Accepts(p.now, 0))
	require.True(t, g.Accepts(p.now, int(room/acceptedShare/acceptedCost)))
	require.False(t, g.Accepts(p.now, int(room/acceptedShare/acceptedCost)+1))
	require.Equal(t, uint64(1), p.workers[0].Counts()[metric.CountRefused])
	g.Disarm()
	require.True(t, g.Accepts(p.now, int(room)), "observe mode counts alone")
	require.Equal(t, uint64(2), p.workers[0].Counts()[metric.CountRefused])
}
