package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestCloseInEveryPhaseReturnsAllToZero(t *testing.T) {
	for name, edit := range map[string]func(*Config){
		"waiting": nil,
		"rejected": func(c *Config) {
			c.Throttle.Timeout = 0
		},
		"closed": func(c *Config) {
			c.Throttle.Timeout, c.Buffers.Downstream, c.Buffers.HTTP2Window = 0, 4*unit.MiB, 4*unit.MiB
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcess(t, 2, edit)
			p.settle(40 * mib)
			var all []*request
			for i := range 200 {
				r, _ := p.open(i%2, []int64{0, 4 * mib, budget.Unknown, 10 * kib}[i%4])
				r.http2 = i%3 == 0
				p.guards[i%2].Grow(p.now, &r.Stream, budget.Request, 5*kib)
				p.guards[i%2].Expect(p.now, &r.Stream, []int64{0, mib, budget.Unknown}[i%3])
				p.guards[i%2].Grow(p.now, &r.Stream, budget.Response, 200*kib)
				p.workers[i%2].Data(p.now, r.connected, 10*kib)
				all = append(all, r)
			}
			for i, r := range all {
				if i%2 == 0 {
					p.workers[i%2].CloseConnection(p.now, r.connected)
				}
				p.guards[i%2].Close(p.now, &r.Stream)
				p.guards[i%2].Close(p.now, &r.Stream)
				if i%2 == 1 {
					p.workers[i%2].CloseConnection(p.now, r.connected)
				}
			}
			p.now += 11 * time.Second
			p.settle(40 * mib)
			for _, w := range p.workers {
				e := w.Account().Own()
				e.ID, e.Beat, e.Lease, e.Passed, e.Paused, e.Queue.Rate, e.Evicted.Sequence, e.Connections.Lease = 0, 0, 0, 0, 0, 0, 0, 0
				require.Equal(t, budget.Entry{}, e)
				require.Empty(t, w.Tick(p.now).Close)
			}
		})
	}
}
