package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// chatting are gRPC-like streams of which each has brought so much in either direction.
func (p *process) chatting(n int, brought int64) (all []*request) {
	p.t.Helper()
	g := p.guards[0]
	for range n {
		r := &request{route: "chat"}
		require.Equal(p.t, verdict.Admit, g.Open(p.now, &r.Stream, r, budget.Unknown).Action)
		require.Equal(p.t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
		for d := range r.hides {
			require.Equal(p.t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Direction(d), brought).Action)
		}
		all = append(all, r)
		if len(all)%50 == 0 {
			p.read(40 * mib)
		}
	}
	return all
}

// letGo lets time pass with readings, and returns how many were let go.
func (p *process) letGo(d time.Duration, inUse int64) (n int) {
	for end := p.now + d; p.now < end; {
		p.now += Tick
		a := p.workers[0].Tick(p.now)
		n += len(a.LetGo)
		if a.Ask {
			p.workers[0].Observe(p.now, memory.Reading{InUse: inUse, Allocated: inUse}, nil)
		}
	}
	return n
}

func TestWhoHoldsLittleIsLetGo(t *testing.T) {
	const cost = 22 * kib
	begin := func(edit func(*Config)) *process {
		p := newProcess(t, 1, edit)
		p.settle(40 * mib)
		p.workers[0].SetWatchCost(cost)
		return p
	}
	p := begin(nil)
	all := p.chatting(1000, 200)
	require.Zero(t, p.letGo(2*time.Second, 90*mib), "memory is not half of soft")
	gone := p.letGo(2*time.Second, 110*mib)
	require.Greater(t, gone, 750)
	require.Equal(t, int64(1000-gone), p.workers[0].Account().Own().Streams, "their books are closed")
	for _, r := range all {
		require.Zero(t, p.guards[0].Close(p.now, &r.Stream), "and the face may close them again")
	}

	p = begin(nil)
	p.chatting(150, 200)
	require.Zero(t, p.letGo(2*time.Second, 110*mib), "what they cost is not much of it")

	p = begin(nil)
	p.chatting(1000, 200)
	busy := p.chatting(10, 200*kib)
	require.Greater(t, p.letGo(2*time.Second, 110*mib), 750)
	for _, r := range busy {
		require.NotEqual(t, done, r.state, "who may hold more stays")
	}

	p = begin(nil)
	for range 1000 { // of whose response nothing came yet
		r := &request{route: "chat"}
		require.Equal(t, verdict.Admit, p.guards[0].Open(p.now, &r.Stream, r, 1000).Action)
	}
	for range 100 { // nothing is told of these
		r := hidden()
		require.Equal(t, verdict.Admit, p.guards[0].Open(p.now, &r.Stream, r, 0).Action)
		require.Equal(t, verdict.Admit, p.guards[0].Expect(p.now, &r.Stream, 1000).Action)
	}
	require.Zero(t, p.letGo(3*time.Second, 110*mib))

	p = begin(func(c *Config) { c.Mode = Observe })
	p.chatting(1000, 200)
	require.Zero(t, p.letGo(2*time.Second, 110*mib), "nothing is done in mode observe")

	p = begin(nil)
	p.workers[0].SetWatchCost(0)
	p.chatting(1000, 200)
	require.Zero(t, p.letGo(2*time.Second, 110*mib), "the filter's cost nothing")
}
