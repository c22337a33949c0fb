package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// upgrade opens a WebSocket of which nothing is told, and has it answered.
func (p *process) upgrade() (*request, Verdict) {
	g, r := p.guards[0], hidden()
	v := g.Open(p.now, &r.Stream, r, budget.Unknown)
	if v.Action == verdict.Admit {
		v = g.Expect(p.now, &r.Stream, budget.Unknown)
	}
	return r, v
}

// What upgrades hold is what the reading has beyond all that is known of others.
func TestUpgradesHaveAPrice(t *testing.T) {
	p := newProcess(t, 1, bigBuffers)
	p.settle(20 * mib)
	inUse, n := 20*mib, int64(0)
	grow := func(each int64, d time.Duration) {
		for end := p.now + d; p.now < end; {
			p.read(inUse + n*each)
		}
	}
	// 10 each 100 ms, which come to hold 1.6 MiB each within half a second, as case ws-push.
	for range 20 {
		for range 5 {
			if r, v := p.upgrade(); v.Action == verdict.Admit && !r.Waiting() {
				n++
			}
		}
		grow(16*mib/10, 50*ms)
	}
	require.InDelta(t, 16*mib/10, p.workers[0].openEnded.price, float64(mib))
	require.Less(t, n*16*mib/10, 190*mib, "the rest has no room")
	require.Greater(t, n, int64(40))
	_, v := p.upgrade()
	require.NotEqual(t, verdict.Admit, v.Action)

	// Those that say little have no price to speak of, however many.
	p = newProcess(t, 1, bigBuffers)
	p.settle(20 * mib)
	n = 0
	for range 100 {
		for range 20 {
			_, v := p.upgrade()
			require.Equal(t, verdict.Admit, v.Action)
			n++
		}
		grow(30*kib, 50*ms)
	}
	require.Less(t, p.workers[0].openEnded.price, 16*kib)

	// One that was dear is not for ever.
	p.workers[0].openEnded.price = 4 * mib
	grow(30*kib, 10*time.Second)
	require.Less(t, p.workers[0].openEnded.price, 16*kib)
}
