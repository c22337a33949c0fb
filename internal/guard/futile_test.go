package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// When memory is full and traffic is not the cause, to lock everybody out would help nobody.
func TestFutile(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	for range 250 {
		p.read(215 * mib)
	}
	require.True(t, p.workers[0].Account().Table().Futile)
	first, v := p.open(0, 8*mib)
	require.Equal(t, verdict.Admit, v.Action, "the floor is open to all")
	_, v = p.open(0, 8*mib)
	require.Equal(t, verdict.Admit, v.Action, "and one larger beside it")
	_, v = p.open(0, 8*mib)
	require.NotEqual(t, verdict.Admit, v.Action)
	p.guards[0].Close(p.now, &first.Stream)
	require.Equal(t, int64(1), p.workers[0].Gauges(p.now)[metric.GaugeFutile])
	_, v = p.open(0, 8*mib)
	require.NotEqual(t, verdict.Admit, v.Action, "what the one that ended left must be in the reading first")
	p.read(215 * mib)
	_, v = p.open(0, 8*mib)
	require.Equal(t, verdict.Admit, v.Action)
}

// The floor has no room for one that is larger than it: without a way in beside, such a request
// would be rejected for as long as shedding is futile.
func TestFutileLargerThanTheFloor(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Buffers.WholeRequest = 32 * unit.MiB })
	p.settle(40 * mib)
	for range 250 {
		p.read(215 * mib)
	}
	w := p.workers[0]
	larger := w.Account().Floor() + mib
	first, v := p.open(0, larger)
	require.Equal(t, verdict.Admit, v.Action)
	_, v = p.open(0, larger)
	require.NotEqual(t, verdict.Admit, v.Action, "one at a time")
	for range 3 {
		_, v = p.open(0, mib)
		require.Equal(t, verdict.Admit, v.Action, "the floor is as open as without it")
	}
	p.guards[0].Close(p.now, &first.Stream)
	p.read(215 * mib)
	_, v = p.open(0, larger)
	require.Equal(t, verdict.Admit, v.Action, "and then the next")
}
