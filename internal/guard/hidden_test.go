package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// hidden is a request of whose bodies nothing is told.
func hidden() *request { return &request{hides: [2]bool{true, true}} }

// What was announced and is not seen counts as coming for a second, and what it may hold for as long as it can be held.
func TestHiddenMessages(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g, w, r := p.guards[0], p.workers[0], hidden()
	require.Equal(t, Admit, g.Open(p.now, &r.Stream, r, 4*mib).Action)
	require.Equal(t, 4*mib, r.Reserved(budget.Request))
	require.Equal(t, 4*mib, r.Held(budget.Request))
	for begun := p.now; p.now < begun+1100*ms; {
		p.read(40 * mib)
	}
	require.Zero(t, r.Reserved(budget.Request))
	require.Equal(t, 4*mib, r.Held(budget.Request), "it may be there still")

	require.Equal(t, Admit, g.Expect(p.now, &r.Stream, 100*mib).Action)
	require.True(t, r.Ended(budget.Request), "who is answered has sent all")
	require.Equal(t, 128*kib, r.Reserved(budget.Response))
	fresh := w.account.Own().Fresh
	g.Close(p.now, &r.Stream)
	own := w.account.Own()
	require.Equal(t, fresh+128*kib, own.Fresh, "it may have passed just now")
	require.Zero(t, own.Coming+own.Streams+own.Exposure+own.Bounds)
	require.False(t, w.keys.All()[0].Value.forecasts[budget.Response].Learned(), "nothing was seen to be learnt")
	p.settle(40 * mib)
	require.Zero(t, w.account.Own().Fresh)
	require.Zero(t, w.account.Table().Surprise)
}

// A burst of requests of a key of which nothing is known: the first few are let see. Where their responses are small, all go on;
// where they are large, the others wait for room, at once.
func TestHiddenBurst(t *testing.T) {
	for _, c := range []struct {
		length int64
		next   Action
	}{{5000, Admit}, {16 * mib, Wait}} {
		p := newProcess(t, 1, func(c *Config) { c.Buffers.Downstream, c.Buffers.Upstream = unit.MiB, unit.MiB })
		p.settle(40 * mib)
		g := p.guards[0]
		var admitted []*request
		waiting := 0
		for range 200 {
			r := hidden()
			switch v := g.Open(p.now, &r.Stream, r, 0); v.Action {
			case Admit:
				admitted = append(admitted, r)
			case Wait:
				waiting++
			default:
				require.Fail(t, "a verdict", "%v", v)
			}
		}
		require.Positive(t, waiting)
		require.Less(t, int64(len(admitted))*2*mib, 160*mib, "all of them can come at once")
		require.Greater(t, len(admitted), 50)
		late := 0
		for _, r := range admitted {
			if g.Expect(p.now, &r.Stream, c.length).Action != Admit {
				late++
			}
			if c.length < mib {
				g.Close(p.now, &r.Stream)
			}
		}
		require.LessOrEqual(t, late, 5, "only of those few that were let see")
		require.LessOrEqual(t, theKey(p.workers[0]).cold, int64(waiting)*2*mib, "what has come is known")
		r := hidden()
		v := g.Open(p.now, &r.Stream, r, 0)
		require.Equal(t, c.next, v.Action, "%v", v)
	}
}
