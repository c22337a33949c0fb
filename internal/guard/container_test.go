package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// contained gives all workers a reading that tells of the container's limit, and returns what was
// to be logged.
func (p *process) contained(inUse, limit int64) (event string) {
	p.t.Helper()
	for range 100 {
		p.now += 25 * ms
		asked := false
		for _, w := range p.workers {
			if a := w.Tick(p.now); a.Ask {
				asked = true
				event += w.Observe(p.now, memory.Reading{InUse: inUse, Allocated: inUse, Limit: limit}, nil)
			}
		}
		if asked {
			return event
		}
	}
	require.Fail(p.t, "nobody asks for a reading")
	return ""
}

// budget.limit: 80% follows the container within two seconds, in all workers, also in one that has
// nothing to do and ticks seldom.
func TestLimitIsAShareOfTheContainers(t *testing.T) {
	p := newProcess(t, 2, func(c *Config) { c.Budget.Limit = unit.Limit{Share: 0.8} })
	require.Contains(t, p.contained(40*mib, 0), "budget.limit is 80% of the container's limit, which the answer of /memory does not tell")
	require.Empty(t, p.contained(40*mib, 0), "told once")
	require.Zero(t, p.workers[0].Gauges(p.now)[metric.GaugeLimit], "0 is not known")
	for range 20 { // 1 GiB of uploads at once
		_, v := p.open(1, 64*mib)
		require.Equal(t, verdict.Admit, v.Action, "until it is known everything is admitted")
	}
	require.Contains(t, p.contained(40*mib, 250*mib), "budget.limit is 80%: 200.0MiB")
	for _, container := range []int64{250 * mib, 400 * mib, 100 * mib} {
		changed := p.now
		p.contained(40*mib, container)
		for _, w := range p.workers {
			for w.Gauges(p.now)[metric.GaugeLimit] != container/10*8 {
				p.now += SlowTick
				w.Tick(p.now)
			}
		}
		require.LessOrEqual(t, p.now-changed, 2*time.Second)
	}
}

// Whether the limit is a size or comes from the container, the guard decides the same.
func TestAShareDecidesAsASizeDoes(t *testing.T) {
	for _, limit := range []unit.Limit{{Bytes: 200 * unit.MiB}, {Share: 0.8}} {
		p := newProcess(t, 1, func(c *Config) { c.Budget.Limit = limit })
		for range 4 {
			p.contained(40*mib, 250*mib)
		}
		admitted := 0
		for {
			if _, v := p.open(0, 16*mib); v.Action != verdict.Admit {
				break
			}
			admitted++
		}
		require.Equal(t, 8, admitted, "%v: up to 184 MiB", limit)
		require.Equal(t, 10*mib, p.workers[0].Account().Floor())
	}
}
