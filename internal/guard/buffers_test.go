package guard

import (
	"testing"
	"time"

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

// A response over HTTP/2 that its face meters has as much in the codec as its connection reads
// ahead, or the one piece that came first, and its listener's limit before it. Without that it has
// its stream's window.
func TestMeteredResponses(t *testing.T) {
	for metered, want := range map[bool]int64{true: 3*mib + 64*kib + mib, false: mib + 16*mib} {
		p := newProcess(t, 1, func(c *Config) { c.Buffers = Default().Buffers })
		p.settle(40 * mib)
		c := p.capped(0, kib)
		c.Metered = metered
		r := &request{connected: c, http2: true}
		g := p.guards[0]
		g.Open(p.now, &r.Stream, r, 0)
		require.Equal(t, want, g.mayHold(&r.Stream, budget.Unknown))
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

// Connections that were accepted and have no filter chain yet are bounded, from soft on by half as
// many. Beyond that the oldest is dropped, if it has said nothing for long, and else the new one is
// refused; so is one that would have no room.
func TestAcceptedConnectionsAreBounded(t *testing.T) {
	p := newProcess(t, 1, func(*Config) {})
	p.now += time.Minute
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	accepts := func(pending int64, silent Time) [2]bool {
		goesOn, dropsOldest := g.Accepts(p.now, pending, p.now-silent)
		return [2]bool{goesOn, goesOn && dropsOldest}
	}
	admits, replaces, refuses := [2]bool{true, false}, [2]bool{true, true}, [2]bool{false, false}
	most := w.Account().Room() / acceptedShare / acceptedCost
	require.Equal(t, admits, accepts(0, 0))
	require.Equal(t, admits, accepts(most-1, time.Minute))
	require.Zero(t, w.Counts()[metric.CountRefused])
	require.Equal(t, replaces, accepts(most, acceptedFor))
	require.Equal(t, refuses, accepts(most, acceptedFor-1))
	require.Equal(t, uint64(2), w.Counts()[metric.CountRefused])
	p.settle(w.Account().Share(0.85))
	require.Equal(t, budget.Soft, w.Account().Table().Level)
	require.Equal(t, admits, accepts(most/2-1, time.Minute))
	require.Equal(t, replaces, accepts(most/2, time.Minute))

	// Above hard, where no place is left on trial.
	p.settle(w.Account().Share(1))
	places := w.places(int64(g.config.Costs.Connection))
	for range places + places/untilTick + 1 {
		w.account.OpenConnection(&new(Connection).Connection, int64(g.config.Costs.Connection))
		w.onTry++
	}
	require.Equal(t, refuses, accepts(0, time.Minute))
	g.Disarm()
	require.Equal(t, admits, accepts(most, time.Minute), "observe mode counts alone")
	require.Equal(t, uint64(5), w.Counts()[metric.CountRefused])
}

// The limit of a live connection goes down at once, and up when it is used: with a read that brings
// all that it may, or a request that begins.
func TestLimitsOfLiveConnections(t *testing.T) {
	p := newProcess(t, 1, func(*Config) {})
	w := p.workers[0]
	p.settle(40 * mib)
	require.False(t, w.Tick(p.now).Lower)
	c := p.capped(0, 20*kib)
	require.Equal(t, int64(readCalm), w.Relimit(c, 0))

	p.settle(w.Account().Share(0.85)) // in whose ticks it is said
	require.Equal(t, int64(readShort), w.reads)
	w.reads = readCalm
	p.now += 25 * ms
	require.True(t, w.Tick(p.now).Lower, "said once")
	p.now += 25 * ms
	require.False(t, w.Tick(p.now).Lower)
	c.Read = w.Relimit(c, kib)
	require.Equal(t, int64(readShort), c.Read)
	require.Equal(t, int64(readShort), w.Relimit(c, 64*kib))

	p.settle(40 * mib)
	p.now += 25 * ms
	require.False(t, w.Tick(p.now).Lower)
	require.Equal(t, int64(readShort), w.Relimit(c, kib), "it does not use what it has")
	require.Equal(t, int64(readCalm), w.Relimit(c, readShort))
	require.Equal(t, int64(readCalm), w.Relimit(c, 0))
}

// A route or a filter that keeps whole bodies has them booked: at the headers as far as that is
// told there, else at the first bytes, and those of the same key that come after from their headers
// on.
func TestWhatFiltersKeepIsBooked(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Buffers = Default().Buffers })
	p.settle(40 * mib)
	g := p.guards[0]
	open := func(length, told int64, route string) *request {
		r := &request{connected: p.capped(0, 20*kib), bodyLimit: told, route: route}
		require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, length).Action)
		return r
	}
	require.Equal(t, 64*kib+mib, open(4*mib, 0, "plain").wants, "as much as the listener lets filters hold")
	require.Equal(t, 4*mib, open(4*mib, 16*mib, "retried").wants, "its route says so at the headers")

	first := open(4*mib, mib, "inspected")
	require.Equal(t, 64*kib+mib, first.wants)
	g.LimitBody(p.now, &first.Stream, 8*mib)
	require.Equal(t, 4*mib, first.wants)
	require.Equal(t, 4*mib, first.Reserved(budget.Request))
	require.Equal(t, 4*mib, open(4*mib, mib, "inspected").wants)
	require.Equal(t, 64*kib+mib, open(4*mib, mib, "plain").wants)

	// Of one that announces no length more is asked for as it grows.
	chunked := open(budget.Unknown, mib, "chunked")
	g.LimitBody(p.now, &chunked.Stream, 8*mib)
	require.Equal(t, 64*kib+8*mib, chunked.Cap(budget.Request))
	p.now += 11 * time.Second
	p.settle(40 * mib)
	require.Equal(t, 64*kib+mib, open(4*mib, mib, "inspected").wants, "what is long ago is forgotten")
}
