package guard

import (
	"testing"

	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/verdict"
	"github.com/stretchr/testify/require"
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
