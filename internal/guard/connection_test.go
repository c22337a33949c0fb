package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/idle"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// admit opens so many connections and returns those that were admitted.
func (p *process) admit(worker, n int) (all []*Connection) {
	for range n {
		p.nextID++
		c := &Connection{Context: p.nextID}
		if p.guards[worker].OpenConnection(p.now, c, peer("10.0.0.1")) {
			all = append(all, c)
		}
	}
	return all
}

// tick lets time pass, with readings, and returns what a worker closed of idle connections
// meanwhile.
func (p *process) tick(worker int, d Time, inUse int64) (closed []*Connection) {
	p.t.Helper()
	for end := p.now + d; p.now < end; {
		p.now += 25 * ms
		for i, w := range p.workers {
			a := w.Tick(p.now)
			if a.Ask {
				w.Observe(p.now, memory.Reading{InUse: inUse, Allocated: inUse}, nil)
			}
			if i == worker {
				closed = append(closed, a.Idle...)
				require.LessOrEqual(p.t, len(a.Idle), 64)
			}
		}
	}
	return closed
}

// get is a request without a body that ends at once.
func (p *process) get(worker int, c *Connection) {
	r := p.begin(worker, c)
	p.guards[worker].Close(p.now, &r.Stream)
}

func (p *process) begin(worker int, c *Connection) *request {
	p.workers[worker].Data(p.now, c, 200)
	r := &request{connected: c}
	p.guards[worker].Open(p.now, &r.Stream, r, 0)
	return r
}

func TestConnectionsAboveTheLimitAreRefused(t *testing.T) {
	p := newProcess(t, 2, func(c *Config) { c.Budget.Connections = 100 })
	p.settle(40 * mib)
	first, second := p.admit(0, 60), p.admit(1, 40)
	refused := 100 - len(first) - len(second)
	for range 4 { // what one has leased and does not use it gives back on tick
		p.settle(40 * mib)
		more := p.admit(1, 10)
		second, refused = append(second, more...), refused+10-len(more)
	}
	require.LessOrEqual(t, len(first)+len(second), 100)
	require.GreaterOrEqual(t, len(first)+len(second), 98)
	require.Equal(t, uint64(refused), p.workers[0].Counts()[metric.CountRefused]+p.workers[1].Counts()[metric.CountRefused])
	require.Equal(t, int64(len(first)), p.workers[0].Account().Own().Connections.Open, "of one that is refused nothing is counted")
	p.workers[0].CloseConnection(p.now, first[0])
	p.settle(40 * mib)
	require.Len(t, p.admit(0, 1), 1)

	// A live change.
	c := *p.guards[0].Config()
	c.Budget.Connections = 10
	for i, w := range p.workers {
		p.guards[i], _ = New(c, w)
	}
	require.Empty(t, p.admit(0, 5))
	require.Empty(t, p.tick(0, time.Second, 40*mib), "those that are there stay")
	c.Budget.Connections = 0
	for i, w := range p.workers {
		p.guards[i], _ = New(c, w)
	}
	require.Len(t, p.admit(0, 500), 500)
}

// From hard on a connection must fit the limit, or all together the floor, and only then.
func TestAConnectionThatHasNoRoomIsRefused(t *testing.T) {
	fill := func(t *testing.T, edit func(*Config)) *process {
		t.Helper()
		p := newProcess(t, 1, func(c *Config) {
			c.Costs.Stream, c.Costs.Connection, c.Costs.TLSConnection = 0, 64*unit.KiB, 64*unit.KiB
			if edit != nil {
				edit(c)
			}
		})
		p.settle(40 * mib)
		p.settle(230 * mib)
		require.Equal(t, budget.Over, p.workers[0].Account().Table().Level)
		return p
	}
	t.Run("the floor is open to it", func(t *testing.T) {
		p := fill(t, nil)
		require.Len(t, p.admit(0, 100), 100)
	})
	t.Run("until all cost as much", func(t *testing.T) {
		p := fill(t, nil)
		require.Len(t, p.admit(0, 400), 160+160+40, "as many again are on trial, and a quarter more")
		require.Equal(t, uint64(40), p.workers[0].Counts()[metric.CountRefused])
		require.Equal(t, int64(360), p.workers[0].Account().Own().Connections.Open)
		require.Len(t, p.tick(0, 25*ms, 230*mib), 40, "until the next tick")
	})
	t.Run("whatever small requests have of it", func(t *testing.T) {
		p := fill(t, nil)
		c := p.admit(0, 1)[0]
		for range 10 * mib / (64 * kib) { // small requests, which bring what fills it
			r := &request{connected: c}
			require.Equal(t, verdict.Admit, p.guards[0].Open(p.now, &r.Stream, r, 64*kib).Action)
		}
		require.Len(t, p.admit(0, 10), 10)
	})
	t.Run("not below hard, and without an exchange", func(t *testing.T) {
		p := newProcess(t, 1, func(c *Config) { early(c); c.Budget.Floor = 0 })
		p.admit(0, 1)
		p.settle(40 * mib)
		p.settle(softReading)
		require.Equal(t, budget.Soft, p.workers[0].Account().Table().Level)
		before := p.workers[0].Account().Exchanges
		require.Len(t, p.admit(0, 20), 20)
		require.LessOrEqual(t, p.workers[0].Account().Exchanges-before, uint64(1), "its cost is in the lease, as ever")
	})
	t.Run("not above hard while it fits the limit", func(t *testing.T) {
		p := newProcess(t, 1, func(c *Config) { c.Budget.Floor = 0 })
		p.settle(40 * mib)
		p.settle(190 * mib)
		for p.workers[0].Account().Table().Surprise > 0 {
			p.tick(0, time.Second, 190*mib)
			if p.now > 3*time.Hour {
				break
			}
		}
		require.GreaterOrEqual(t, p.workers[0].Account().Table().Level, budget.Hard)
		require.NotEmpty(t, p.admit(0, 20))
	})
	full := func(c *Config) { c.Budget.Floor = 0 }
	t.Run("without a floor at once", func(t *testing.T) {
		require.Empty(t, fill(t, full).admit(0, 10))
	})
	t.Run("not while shedding is futile", func(t *testing.T) {
		p := fill(t, full)
		p.tick(0, 6*time.Second, 230*mib)
		require.True(t, p.workers[0].Account().Table().Futile)
		require.Len(t, p.admit(0, 10), 10)
	})
	t.Run("not without a recent reading", func(t *testing.T) {
		p := fill(t, full)
		p.now += 2 * time.Second
		require.Len(t, p.admit(0, 10), 10)
	})
	t.Run("in observe mode it is counted", func(t *testing.T) {
		p := fill(t, func(c *Config) { c.Budget.Floor = 0; c.Mode = Observe })
		require.Len(t, p.admit(0, 10), 10)
		require.Equal(t, uint64(10), p.workers[0].Counts()[metric.CountRefused])
		require.Equal(t, int64(10), p.workers[0].Account().Own().Connections.Open)
	})
}

func TestAConnectionWithoutRoomIsOnTrial(t *testing.T) {
	fill := func(t *testing.T, edit func(*Config)) (*process, []*Connection) {
		t.Helper()
		p := newProcess(t, 1, func(c *Config) {
			c.Costs.Stream, c.Costs.Connection, c.Costs.TLSConnection = 0, 64*unit.KiB, 64*unit.KiB
			edit(c)
		})
		p.settle(40 * mib)
		p.settle(230 * mib)
		all := p.admit(0, 320)
		require.Len(t, all, 320)
		require.Zero(t, p.workers[0].Counts()[metric.CountRefused])
		return p, all
	}
	asIs := func(*Config) {}
	t.Run("who brings much is refused, and makes room for the next", func(t *testing.T) {
		p, all := fill(t, asIs)
		w := p.workers[0]
		require.Len(t, p.admit(0, 50), 40)
		require.False(t, w.Data(p.now, all[0], 60<<10), "he had room")
		require.False(t, w.Data(p.now, all[319], modest))
		require.True(t, w.Data(p.now, all[319], 1))
		w.CloseConnection(p.now, all[319])
		require.Len(t, p.admit(0, 2), 1)
		require.Equal(t, uint64(12), w.Counts()[metric.CountRefused])
	})
	t.Run("whose request has begun is judged by that", func(t *testing.T) {
		p, all := fill(t, asIs)
		w := p.workers[0]
		require.False(t, w.Data(p.now, all[319], 100))
		r := &request{connected: all[319]}
		require.Equal(t, verdict.Admit, p.guards[0].Open(p.now, &r.Stream, r, 0).Action)
		require.False(t, w.Data(p.now, all[319], 60<<10))
		require.Len(t, p.admit(0, 50), 41)
	})
	t.Run("who says nothing, or dribbles, keeps no place from who comes", func(t *testing.T) {
		p, all := fill(t, asIs)
		w := p.workers[0]
		require.False(t, w.Data(p.now, all[170], 10))
		p.guards[0].Carry(p.now, all[180], budget.Response, 100, peer("10.0.0.1")) // its requests are none of ours
		closed := 0
		for range 100 { // 1,600/s
			c := p.admit(0, 40)
			require.Len(t, c, 40)
			for _, c := range p.tick(0, 25*ms, 230*mib) {
				require.NotSame(t, all[180], c)
				w.CloseConnection(p.now, c)
				closed++
			}
			require.False(t, w.Data(p.now, c[39], 100))
			r := &request{connected: c[39]} // a bystander among them
			require.Equal(t, verdict.Admit, p.guards[0].Open(p.now, &r.Stream, r, 0).Action)
			p.guards[0].Close(p.now, &r.Stream)
			w.CloseConnection(p.now, c[39])
		}
		require.True(t, all[170].IsClosed)
		require.False(t, all[180].IsClosed)
		require.InDelta(t, 100*39, closed, 40)
	})
	t.Run("who says nothing is closed", func(t *testing.T) {
		p, all := fill(t, asIs)
		idle := 0
		for range 30 {
			idle += len(p.tick(0, 100*ms, 230*mib))
		}
		require.Equal(t, 160, idle)
		require.Equal(t, uint64(160), p.workers[0].Counts()[metric.CountRefused])
		require.False(t, p.workers[0].Data(p.now, all[319], 60<<10), "it is told once")
	})
	t.Run("who has said something is not, nor who is answered", func(t *testing.T) {
		p, all := fill(t, asIs)
		w, c := p.workers[0], all[319]
		require.False(t, w.Data(p.now, c, 100))
		for range 30 {
			require.NotContains(t, p.tick(0, 100*ms, 230*mib), c)
		}
		require.False(t, p.guards[0].Carry(p.now, c, budget.Response, 100, peer("10.0.0.1")))
		require.False(t, w.Data(p.now, c, 60<<10), "it is raw, or a request that no filter of ours sees")
	})
	t.Run("whose request may be exempt", func(t *testing.T) {
		p, all := fill(t, func(c *Config) { c.Exempt = []Exempt{{PathPrefix: "/healthz"}} })
		require.False(t, p.workers[0].Data(p.now, all[319], 60<<10))
		require.True(t, p.workers[0].Data(p.now, all[319], 256<<10))
	})
	t.Run("where there is room again all have passed", func(t *testing.T) {
		p, all := fill(t, asIs)
		p.settle(60 * mib)
		p.settle(230 * mib)
		require.False(t, p.workers[0].Data(p.now, all[319], 60<<10))
	})
	t.Run("in observe mode it is counted", func(t *testing.T) {
		p, all := fill(t, func(c *Config) { c.Mode = Observe })
		require.False(t, p.workers[0].Data(p.now, all[319], 60<<10))
		require.Equal(t, uint64(1), p.workers[0].Counts()[metric.CountRefused])
	})
}

const (
	softReading = 150 * mib
	hardReading = 190 * mib
)

// early makes the level soft at softReading, whatever of the jump to it is a surprise.
func early(c *Config) { c.Budget.Soft, c.Budget.Resume = .5, .45 }

func TestIdleConnectionsAreClosed(t *testing.T) {
	start := func(t *testing.T, edit func(*Config)) *process {
		t.Helper()
		p := newProcess(t, 1, func(c *Config) {
			early(c)
			if edit != nil {
				edit(c)
			}
		})
		p.settle(40 * mib)
		return p
	}
	t.Run("from soft on, after a second, oldest first, 64 a tick", func(t *testing.T) {
		p := start(t, nil)
		all := p.admit(0, 200)
		for _, c := range all[:199] {
			p.get(0, c)
		}
		require.Empty(t, p.tick(0, 3*time.Second, 40*mib), "not while the level is normal")
		p.get(0, all[199])
		require.Equal(t, all[:199], p.tick(0, 500*ms, softReading))
		require.Equal(t, budget.Soft, p.workers[0].Account().Table().Level)
		require.Equal(t, all[199:], p.tick(0, 600*ms, softReading))
		require.Equal(t, uint64(200), p.workers[0].Counts()[metric.CountClosedIdle])
		require.Empty(t, p.tick(0, 3*time.Second, softReading), "once")
		for _, c := range all {
			p.workers[0].CloseConnection(p.now, c)
		}
		require.Empty(t, p.tick(0, 11*time.Second, softReading))
	})
	t.Run("from hard on after 250 ms", func(t *testing.T) {
		p := start(t, nil)
		all := p.admit(0, 1)
		p.tick(0, 500*ms, hardReading)
		p.get(0, all[0])
		require.Empty(t, p.tick(0, 200*ms, hardReading))
		require.Equal(t, all, p.tick(0, 100*ms, hardReading))
	})
	t.Run("not who comes every now and then", func(t *testing.T) {
		p := start(t, nil)
		all := p.admit(0, 3)
		p.tick(0, 500*ms, hardReading)
		for range 10 {
			p.get(0, all[0])
			require.Empty(t, p.tick(0, 200*ms, hardReading))
		}
		require.Empty(t, p.tick(0, 550*ms, hardReading))
		require.Equal(t, all[:1], p.tick(0, 100*ms, hardReading), "but after four times as long")
		p.get(0, all[1])
		p.tick(0, 200*ms, 40*mib)
		p.now += 100 * time.Second
		p.get(0, all[1])
		p.get(0, all[2])
		require.Equal(t, all[2:], p.tick(0, 9*time.Second, hardReading))
		require.Equal(t, all[1:2], p.tick(0, 2*time.Second, hardReading), "at the latest after 10 s")
	})
	t.Run("not by a worker that is behind", func(t *testing.T) {
		p := start(t, nil)
		p.tick(0, 500*ms, hardReading)
		p.get(0, p.admit(0, 1)[0])
		for range 5 {
			p.now += 100 * ms
			require.Empty(t, p.workers[0].Tick(p.now).Idle)
		}
		p.now += 25 * ms
		require.Len(t, p.workers[0].Tick(p.now).Idle, 1)
	})
	t.Run("not while there is a request, or the beginning of one", func(t *testing.T) {
		p := start(t, nil)
		all := p.admit(0, 3)
		two := p.begin(0, all[0])
		p.get(0, all[0])
		for _, c := range all[1:] {
			p.get(0, c)
		}
		for range 30 {
			p.workers[0].Data(p.now, all[1], 10) // headers that come slowly
			require.NotContains(t, p.tick(0, 100*ms, softReading), all[1])
		}
		require.Equal(t, uint64(1), p.workers[0].Counts()[metric.CountClosedIdle])
		p.guards[0].Close(p.now, &two.Stream)
		require.ElementsMatch(t, all[:2], p.tick(0, 1100*ms, softReading))
	})
	t.Run("never one that had no request", func(t *testing.T) {
		p := start(t, nil)
		p.workers[0].Data(p.now, p.admit(0, 1)[0], 1000)
		require.Empty(t, p.tick(0, 3*time.Second, hardReading))
	})
	t.Run("not while its client may still read a large response", func(t *testing.T) {
		p := start(t, nil)
		all := p.admit(0, 1)
		r := p.begin(0, all[0])
		p.guards[0].Expect(p.now, &r.Stream, mib)
		p.guards[0].Grow(p.now, &r.Stream, budget.Response, mib)
		p.guards[0].Close(p.now, &r.Stream)
		require.Empty(t, p.tick(0, 9*time.Second, softReading))
		require.Equal(t, all, p.tick(0, 3*time.Second, softReading))
	})
	t.Run("not after a reject that Envoy closes it for", func(t *testing.T) {
		p := start(t, nil)
		all := p.admit(0, 2)
		const full = 174 * mib // an upload has to wait, and there is room for what it leaves, whatever of the jump is a surprise
		p.tick(0, 500*ms, full)
		r := &request{connected: all[0]}
		require.Equal(t, verdict.Wait, p.guards[0].Open(p.now, &r.Stream, r, 16*mib).Action)
		p.tick(0, 2100*ms, full)
		require.EqualValues(t, 1, p.rejects(0, verdict.Timeout))
		p.guards[0].Close(p.now, &r.Stream)
		r = &request{connected: all[1]} // an answer before all of the upload has come
		require.Equal(t, verdict.Admit, p.guards[0].Open(p.now, &r.Stream, r, 100).Action)
		p.guards[0].Close(p.now, &r.Stream)
		require.Empty(t, p.tick(0, 3*time.Second, full))
	})
	t.Run("one that closes by itself is forgotten", func(t *testing.T) {
		p := start(t, nil)
		all := p.admit(0, 2)
		p.get(0, all[0])
		p.workers[0].CloseConnection(p.now, all[0])
		r := p.begin(0, all[1])
		p.workers[0].CloseConnection(p.now, all[1])
		p.guards[0].Close(p.now, &r.Stream) // Envoy ends the connection first
		require.Empty(t, p.tick(0, 3*time.Second, softReading))
	})
	t.Run("not without a recent reading", func(t *testing.T) {
		p := start(t, nil)
		p.tick(0, 500*ms, softReading)
		p.get(0, p.admit(0, 1)[0])
		p.tick(0, 500*ms, softReading)
		p.now += 2 * time.Second
		require.Empty(t, p.workers[0].Tick(p.now).Idle)
		require.NotEmpty(t, p.tick(0, 1500*ms, softReading)) // the answer that did not come is waited for
	})
	t.Run("in observe mode they are counted, once", func(t *testing.T) {
		p := start(t, func(c *Config) { c.Mode = Observe })
		p.get(0, p.admit(0, 1)[0])
		require.Empty(t, p.tick(0, 3*time.Second, softReading))
		require.Equal(t, uint64(1), p.workers[0].Counts()[metric.CountClosedIdle])
	})
}

// taken is a request that Arrived takes for another connection's.
type taken struct {
	request
	arrived *Connection
}

func (r *taken) Arrived() *Connection { return r.arrived }

// Where another filter holds requests back, what Arrived tells is wrong. Then no connection is
// closed as idle any more.
func TestRequestsThatAreHeldBack(t *testing.T) {
	start := func(t *testing.T) (*process, []*Connection) {
		t.Helper()
		p := newProcess(t, 1, early)
		p.settle(40 * mib)
		all := p.admit(0, 3)
		for _, c := range all {
			p.get(0, c)
		}
		return p, all
	}
	request := func(p *process, own, arrived *Connection, length int64) {
		r := &taken{request: request{connected: own}, arrived: arrived}
		p.guards[0].Open(p.now, &r.Stream, r, length)
		p.guards[0].Close(p.now, &r.Stream)
	}
	t.Run("a listener without the network filter holds none", func(t *testing.T) {
		p, all := start(t)
		for range 2 * idle.VerifyEvery {
			request(p, &Connection{}, all[0], 0)
		}
		raw := p.admit(0, 1)[0]
		request(p, &Connection{}, raw, 0)
		closed := p.tick(0, 3*time.Second, softReading)
		require.Len(t, closed, 3)
		require.NotContains(t, closed, raw, "and makes no raw connection one of HTTP")
	})
	for name, c := range map[string]struct {
		length  int64
		reading int64
		within  int
	}{
		"each 256th is verified": {0, 40 * mib, idle.VerifyEvery},
		"so is who waits":        {100 * mib, hardReading, 1},
	} {
		t.Run(name, func(t *testing.T) {
			p, all := start(t)
			w := p.workers[0]
			p.tick(0, 500*ms, c.reading)
			for range c.within {
				request(p, all[0], all[1], c.length)
			}
			events := 0
			for range 200 {
				p.now += 25 * ms
				a := w.Tick(p.now)
				if a.Ask {
					w.Observe(p.now, memory.Reading{InUse: hardReading, Allocated: hardReading}, nil)
				}
				require.Empty(t, a.Idle)
				if a.Event != "" {
					require.Contains(t, a.Event, "another filter holds requests back")
					events++
				}
			}
			require.Equal(t, 1, events, "told once")
		})
	}
}
