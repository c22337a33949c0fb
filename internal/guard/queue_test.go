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

func TestTimeoutRejectsManyInOneTick(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	p.settle(196 * mib)
	var waiting int
	for range 20 {
		// Hard is 184: there is room for nothing large, and for some to wait.
		if _, v := p.open(0, 128*kib); v.Action == verdict.Wait {
			waiting++
		}
	}
	require.Positive(t, waiting)
	since := p.now
	p.now += 1900 * ms
	p.read(196 * mib)
	p.now = since + 1999*ms
	require.Empty(t, p.workers[0].Tick(p.now).Rejected)
	p.now += ms
	a := p.workers[0].Tick(p.now)
	require.InDelta(t, waiting, len(a.Rejected), 2)
	for _, d := range a.Rejected {
		require.Equal(t, verdict.Timeout, d.Verdict.Reason)
		require.GreaterOrEqual(t, d.Verdict.Waited, unit.Duration(2*time.Second))
		if d.Verdict.Action == verdict.Answer {
			require.GreaterOrEqual(t, d.Verdict.RetryAfter, unit.Duration(time.Second))
			require.LessOrEqual(t, d.Verdict.RetryAfter, unit.Duration(30*time.Second))
		}
	}
}

// A worker that was busy for long finds all who wait late, and room for all of them.
func TestWhoIsLateGoesOnWhereThereIsRoom(t *testing.T) {
	for _, c := range []struct {
		busy Time
		all  bool
	}{{2100 * ms, true}, {2600 * ms, false}} {
		p := newProcess(t, 2, nil)
		p.settle(40 * mib)
		p.settle(196 * mib)
		waiting, resumed, rejected := 0, 0, 0
		for range 20 {
			if _, v := p.open(0, 128*kib); v.Action == verdict.Wait {
				waiting++
			}
		}
		require.Greater(t, waiting, 5)
		for end := p.now + c.busy; ; p.now += 25 * ms {
			if a := p.workers[1].Tick(p.now); a.Ask {
				p.workers[1].Observe(p.now, memory.Reading{InUse: 60 * mib, Allocated: 60 * mib}, nil)
				if p.now >= end {
					break
				}
			}
		}
		for range 30 {
			p.now += 2 * ms
			a := p.workers[0].Tick(p.now)
			rejected += len(a.Rejected)
			if a.Resume != nil {
				resumed++
			}
		}
		require.Equal(t, waiting, resumed+rejected)
		require.Equal(t, c.all, rejected == 0, "no longer than a quarter more")
	}
}

func TestLargeNewcomerJoinsTheLineWhenAnyoneWaitsAnywhere(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(40 * mib)
	var first []*request
	for {
		r, v := p.open(0, 8*mib)
		if v.Action == verdict.Wait {
			break
		}
		first = append(first, r)
	}
	p.now += 5 * ms
	p.workers[0].Tick(p.now)
	p.now += ms
	p.workers[1].Tick(p.now)
	// 1 MiB would fit, but it would take what the others wait for.
	_, v := p.open(1, mib)
	require.Equal(t, verdict.Wait, v.Action)
	require.NotEmpty(t, first)
}

// What those who wait have sent is measured. What has no room is rejected: at its bytes that have
// none, and who came last at the next tick.
func TestWhoWaitsIsTurnedAwayByWhatHasCome(t *testing.T) {
	for name, mode := range map[string]Mode{"enforce": Enforce, "observe": Observe} {
		t.Run(name, func(t *testing.T) {
			p := newProcess(t, 1, func(c *Config) {
				c.Buffers.Downstream, c.Buffers.HTTP2Window, c.Mode = unit.MiB, unit.MiB, mode
			})
			p.settle(40 * mib)
			g, w := p.guards[0], p.workers[0]
			require.NoError(t, w.account.Change(p.now, func(t *budget.Table) { t.Keeps = 800 }), "most of what passes has stayed, not all")
			var line []*request
			for i := 0; len(line) < 6; i++ {
				require.Less(t, i, 200)
				r, _ := p.open(0, 4*mib)
				if r.state == queued {
					line = append(line, r)
				} else {
					g.Grow(p.now, &r.Stream, budget.Request, 4*mib)
				}
			}
			closed := func() uint64 { return w.Counts()[metric.CountClosedConnections] }
			require.Zero(t, closed())
			refused := 0
			for i := 0; i < 40 && refused == 0; i++ { // requests that were let in pass on, and those who wait send
				r, _ := p.open(0, 40*kib)
				g.Grow(p.now, &r.Stream, budget.Request, 4*mib)
				for _, r := range line {
					if refused == 0 && w.Data(p.now, r.connected, 100*kib) {
						refused++
					}
				}
			}
			require.Equal(t, mode == Enforce, refused > 0, "in mode observe it is counted alone")
			if mode == Enforce {
				require.Positive(t, closed())
			}
			before := closed()

			// More is there than has passed.
			for range 3 {
				p.read(204 * mib)
			}
			require.Greater(t, closed(), before)
		})
	}
}

func TestLineIsBounded(t *testing.T) {
	fill := func(p *process) {
		p.settle(40 * mib)
		for range 100 {
			if _, v := p.open(0, 4*mib); v.Action != verdict.Admit {
				return
			}
		}
		t.Fatal("it never fills")
	}
	t.Run("by number, over all workers", func(t *testing.T) {
		p := newProcess(t, 2, func(c *Config) { c.Throttle.Queue = 3 })
		fill(p)
		actions := map[verdict.Action]int{}
		for i := range 10 {
			p.now += 5 * ms
			p.workers[0].Tick(p.now)
			p.workers[1].Tick(p.now)
			_, v := p.open(i%2, 4*mib)
			actions[v.Action]++
		}
		require.Equal(t, 2, actions[verdict.Wait], "one waited already")
	})
	t.Run("by what waiting holds", func(t *testing.T) {
		p := newProcess(t, 1, func(c *Config) {
			c.Buffers.Downstream, c.Throttle.Queue = unit.MiB, 1000
			c.Buffers.HTTP2Window = unit.MiB
		})
		fill(p)
		waiting := 1
		for range 100 {
			if _, v := p.open(0, 4*mib); v.Action == verdict.Wait {
				waiting++
			}
		}
		// Each holds 2 × 1 MiB. What lies between hard and the limit has room for 16 MiB.
		require.InDelta(t, 9, waiting, 1)
	})
	t.Run("by what is foreseen, over all workers", func(t *testing.T) {
		p := newProcess(t, 2, func(c *Config) {
			c.Buffers.Downstream, c.Buffers.HTTP2Window, c.Buffers.WholeRequest = unit.MiB, unit.MiB, unit.GiB
		})
		p.settle(40 * mib)
		_, v := p.open(0, 100*mib)
		require.Equal(t, verdict.Admit, v.Action)
		_, v = p.open(0, 60*mib)
		require.Equal(t, verdict.Wait, v.Action, "a head that does not fit, with room beside it")
		waiting := 1
		for i := range 100 {
			p.now += 5 * ms
			p.workers[0].Tick(p.now)
			p.workers[1].Tick(p.now)
			if _, v := p.open(i%2, 40*mib); v.Action == verdict.Wait {
				waiting++
			}
		}
		require.Equal(t, 29, waiting, "2 MiB each beside the 140 MiB that are let in")
	})
	t.Run("by the room, for small ones too", func(t *testing.T) {
		p := newProcess(t, 1, nil)
		p.settle(230 * mib)
		for range 256 { // the floor
			_, v := p.open(0, 40*kib)
			require.Equal(t, verdict.Admit, v.Action)
		}
		_, v := p.open(0, 40*kib)
		require.Equal(t, verdict.QueueFull, v.Reason, "6,000 of them would hold half the limit more")
		p.settle(150 * mib)
		_, v = p.open(0, 40*kib)
		require.Equal(t, verdict.Admit, v.Action)
	})
	t.Run("by the window of an HTTP/2 connection", func(t *testing.T) {
		p := newProcess(t, 1, func(c *Config) { c.Buffers.HTTP2ConnectionWindow = unit.MiB })
		fill(p)
		c := p.connection(0)
		actions := map[verdict.Action]int{}
		for range 20 {
			r := &request{connected: c, http2: true}
			actions[p.guards[0].Open(p.now, &r.Stream, r, 4*mib).Action]++
		}
		// Half of 1 MiB is eight windows of 64 KiB: more would starve the admitted siblings.
		require.Equal(t, map[verdict.Action]int{verdict.Wait: 8, verdict.Answer: 12}, actions)
	})
}

// Behind a large head, smaller ones go on after 250 ms: else one head of half the budget stops
// everyone.
func TestSmallerPassAStuckHead(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Throttle.Timeout = unit.Duration(time.Minute) })
	p.settle(40 * mib)
	var admitted []*request
	for range 35 {
		r, v := p.open(0, 4*mib)
		require.Equal(t, verdict.Admit, v.Action)
		admitted = append(admitted, r)
	}
	_, v := p.open(0, 16*mib)
	require.Equal(t, verdict.Wait, v.Action)
	little, v := p.open(0, 2*mib)
	require.Equal(t, verdict.Wait, v.Action)
	p.guards[0].Close(p.now, &admitted[0].Stream) // 4 MiB are free
	p.now += 100 * ms
	require.Nil(t, p.workers[0].Tick(p.now).Resume)
	p.now += 150 * ms
	require.Same(t, &little.Stream, p.workers[0].Tick(p.now).Resume)
}

// Who goes on has nothing reserved for what has come while he waited.
func TestWaitingHoldsPartOfWhatItWants(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Memory.IdleInterval = c.Memory.Interval }) // before anything lapses
	p.settle(40 * mib)
	hard := p.workers[0].Account().Share(.9)
	big, v := p.open(0, 16*mib)
	require.Equal(t, verdict.Admit, v.Action)
	p.settle(hard - 16*mib - 64*kib)
	r, v := p.open(0, 128*kib)
	require.Equal(t, verdict.Wait, v.Action)
	p.workers[0].Data(p.now, r.connected, 128*kib)
	p.guards[0].End(p.now, &big.Stream, budget.Request) // 16 MiB less are coming, and 128 KiB fresh
	p.now += FastTick
	require.Same(t, &r.Stream, p.workers[0].Tick(p.now).Resume)
	require.Zero(t, r.Reserved(budget.Request), "all of it has come, and is counted")
}

// What was seen to come of a request while it was paused, and has not passed when readings are
// asked for, is still to come.
func TestWhatCameWhilePausedIsComingUntilItPasses(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Memory.IdleInterval = c.Memory.Interval }) // before anything lapses
	p.settle(40 * mib)
	p.settle(p.workers[0].Account().Share(.9) - 64*kib)
	r, v := p.open(0, 128*kib)
	require.Equal(t, verdict.Wait, v.Action)
	p.workers[0].Data(p.now, r.connected, 128*kib)
	for r.Waiting() {
		p.read(40 * mib)
	}
	for range 3 {
		p.read(40 * mib)
	}
	own := p.workers[0].Account().Own()
	require.Equal(t, 128*kib, own.Fresh+own.Coming)
}

// Over HTTP/2 it can't be told of whom what comes is: it counts for those who wait, however late it
// comes.
func TestWhatComesOnAConnectionCountsForThoseWhoWait(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	p.settle(182 * mib)
	own := func() budget.Entry { return p.workers[0].Account().Own() }
	c := p.connection(0)
	r := &request{connected: c, http2: true}
	require.Equal(t, verdict.Wait, p.guards[0].Open(p.now, &r.Stream, r, 4*mib).Action)
	p.settle(182 * mib)
	require.Zero(t, own().Fresh)
	for range 20 {
		p.workers[0].Data(p.now, c, 10*kib)
	}
	require.Equal(t, 128*kib, own().Fresh, "no more than it can leave unread")
	p.settle(182 * mib)
	require.Zero(t, own().Fresh)
	p.workers[0].Data(p.now, c, 10*kib)
	require.Equal(t, 10*kib, own().Fresh, "and as much again in the next generation: the upstream may have taken the other")
	p.settle(40 * mib)
	require.False(t, r.Waiting())
	p.workers[0].Data(p.now, c, 10*kib)
	require.Zero(t, own().Fresh, "nobody waits")
}

// Without a network filter nobody sees what comes of one who waits: it is coming until he is
// resumed.
func TestWhatComesUnseenIsCountedForAsLongAsItsRequestWaits(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	p.settle(182 * mib)
	own := func() budget.Entry { return p.workers[0].Account().Own() }
	r := &request{connected: &Connection{}, http2: true}
	require.Equal(t, verdict.Wait, p.guards[0].Open(p.now, &r.Stream, r, 4*mib).Action)
	p.settle(182 * mib)
	require.Zero(t, own().Fresh)
	require.Equal(t, 128*kib, own().Coming)

	p.settle(40 * mib)
	require.False(t, r.Waiting())
	require.Equal(t, 4*mib, own().Coming, "and then it passes, and is counted as it does")
	p.guards[0].Close(p.now, &r.Stream)
	require.Zero(t, own().Coming)

	p.settle(182 * mib)
	r = &request{connected: &Connection{}, http2: true}
	require.Equal(t, verdict.Wait, p.guards[0].Open(p.now, &r.Stream, r, 4*mib).Action)
	p.guards[0].Close(p.now, &r.Stream)
	require.Zero(t, own().Coming)
}
