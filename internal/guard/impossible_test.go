package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/events"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// told is what is logged of a limit that can't be held.
type told struct {
	event    string
	severity events.Severity
}

// impossible gives all workers readings of so much for two seconds, and returns what they log
// beside levels.
func (p *process) impossible(inUse, container int64) (all []told) {
	p.t.Helper()
	for range 80 {
		p.now += 25 * ms
		for _, w := range p.workers {
			a := w.Tick(p.now)
			if a.Event != "" {
				all = append(all, told{a.Event, a.Severity})
			}
			if a.Ask {
				w.Observe(p.now, memory.Reading{InUse: inUse, Allocated: inUse, Limit: container}, nil)
			}
		}
	}
	return all
}

// Who has a budget below what Envoy holds without traffic is told so, once, and what to change.
func TestAnImpossibleBudgetIsTold(t *testing.T) {
	for _, mode := range []Mode{Enforce, Observe} {
		p := newProcess(t, 3, func(c *Config) { c.Mode = mode })
		gauges := func() [metric.NumGauges]int64 { return p.workers[2].Gauges(p.now) }
		require.Equal(t, []told{{"budget.limit 200MiB cannot be held: Envoy holds 434.0MiB without traffic, and shedding frees nothing of that. " +
			"Raise budget.limit to at least 483MiB, better to twice what Envoy holds, or reduce clusters, listeners and stats; " +
			"until then the guard admits up to 482.2MiB", events.Error}}, p.impossible(434*mib, 0), mode)
		require.EqualValues(t, 1, gauges()[metric.GaugeImpossible])
		require.Equal(t, 200*mib, gauges()[metric.GaugeLimit], "as it was set")
		require.Equal(t, 434*mib, gauges()[metric.GaugeBase])
		require.Equal(t, 434*mib*10/9, p.workers[2].InForce())
		require.EqualValues(t, budget.Normal, gauges()[metric.GaugeLevel])
		require.Empty(t, p.impossible(434*mib, 0), "once")

		// A new configuration with a limit that it can hold.
		c := *p.guards[0].Config()
		c.Budget.Limit.Bytes = 600 * unit.MiB
		for _, w := range p.workers {
			w.Use(&c)
		}
		require.Equal(t, []told{{"budget.limit 600MiB can be held again: Envoy holds 434.0MiB without traffic", events.Info}}, p.impossible(434*mib, 0))
		require.Zero(t, gauges()[metric.GaugeImpossible])
		require.Equal(t, 600*mib, p.workers[2].InForce())
	}
}

func TestAnImpossibleShareIsTold(t *testing.T) {
	p := newProcess(t, 2, func(c *Config) { c.Budget.Limit = unit.Limit{Share: 0.5} })
	require.Empty(t, p.impossible(434*mib, 0))
	require.Zero(t, p.workers[0].InForce(), "not known")
	all := p.impossible(434*mib, 400*mib)
	require.Len(t, all, 1)
	require.Contains(t, all[0].event, "budget.limit 50% of the container's limit, 200.0MiB, cannot be held: Envoy holds 434.0MiB")
}

// What is small beside what Envoy holds is served all the same, and no more of it than there is
// room for.
func TestAnImpossibleBudgetServes(t *testing.T) {
	for _, stale := range []bool{false, true} {
		p := newProcess(t, 1, nil)
		p.impossible(434*mib, 0)
		if stale {
			p.now += 2 * budget.Ahead
		}
		admitted := 0
		for range 80 {
			if _, v := p.open(0, mib); v.Action == verdict.Admit {
				admitted++
			}
		}
		require.InDelta(t, 41, admitted, 3, "some 43 MiB of uploads that hold 1 MiB each, stale: %v", stale)
	}
}
