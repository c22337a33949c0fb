package guard

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// Ticks cost most where nothing happens: a worker without requests makes few, and the one who polls
// a few more.
func TestAnIdleWorkerTicksSeldom(t *testing.T) {
	p := newProcess(t, 2, nil)
	next := func() (all []time.Duration) {
		for _, w := range p.workers {
			a := w.Tick(p.now)
			if a.Ask {
				w.Observe(p.now, memory.Reading{InUse: 40 * mib, Allocated: 40 * mib}, nil)
			}
			all = append(all, a.Next)
		}
		return all
	}
	run := func(d time.Duration) (last []time.Duration) {
		for until := p.now + d; p.now < until; p.now += Tick {
			last = next()
		}
		return last
	}
	idle := []time.Duration{CalmTick, SlowTick}
	require.Equal(t, idle, run(2*time.Second))
	require.True(t, p.workers[1].Sleeps)

	p.workers[1].Wake(p.now)
	r, v := p.open(1, 0)
	require.Equal(t, verdict.Admit, v.Action)
	require.False(t, p.workers[1].Sleeps)
	require.Equal(t, []time.Duration{CalmTick, Tick}, run(2*time.Second), "no reading is due that soon")
	upload, v := p.open(1, 10*mib)
	require.Equal(t, verdict.Admit, v.Action)
	require.Equal(t, []time.Duration{Tick, Tick}, run(2*CalmTick), "one is due each 25 ms")
	p.guards[1].Close(p.now, &upload.Stream)
	p.guards[1].Close(p.now, &r.Stream)
	require.Equal(t, []time.Duration{CalmTick, Tick}, run(900*ms), "the next may come soon")
	require.Equal(t, idle, run(time.Second))

	p.workers[1].Wake(p.now)
	p.settle(181 * mib)
	require.Equal(t, []time.Duration{Tick, Tick}, run(25*ms), "memory is short")
}

// A worker that has nothing to do and ticks as seldom as it is told is not taken for one that is
// gone, and costs two ticks a second.
func TestAnIdleWorkerStaysInTheTable(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(40 * mib)
	r, _ := p.open(1, 0)
	p.guards[1].Close(p.now, &r.Stream)
	p.now += 2 * time.Second
	p.settle(40 * mib)
	due, ticks := p.now, 0
	for until := p.now + 12*time.Second; p.now < until; p.now += CalmTick {
		if a := p.workers[0].Tick(p.now); a.Ask {
			p.workers[0].Observe(p.now, memory.Reading{InUse: 40 * mib, Allocated: 40 * mib}, nil)
		}
		if p.now >= due {
			due = p.now + p.workers[1].Tick(p.now).Next
			if until-p.now < 10*time.Second {
				ticks++
			}
		}
		require.True(t, slices.ContainsFunc(p.workers[0].Account().Table().Entries, func(e budget.Entry) bool {
			return e.ID == p.workers[1].Account().ID()
		}))
	}
	require.InDelta(t, 20, ticks, 2)
}
