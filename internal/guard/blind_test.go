package guard

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
)

// ticks lets time pass and answers what is asked for with the failure, or with a reading of 40 MiB.
// It returns what is to be logged.
func (p *process) ticks(d time.Duration, failure error) (events []string) {
	p.t.Helper()
	note := func(event string) {
		if event != "" {
			events = append(events, event)
		}
	}
	for end := p.now + d; p.now < end; {
		p.now += 25 * ms
		for _, w := range p.workers {
			a := w.Tick(p.now)
			note(a.Event)
			if a.Ask {
				note(w.Observe(p.now, memory.Reading{InUse: 40 * mib, Allocated: 30 * mib}, failure))
			}
		}
	}
	return events
}

func TestWithoutReadingsTheGuardIsBlind(t *testing.T) {
	refused := &memory.Failure{Cause: memory.CauseUnreachable, Err: errors.New("connection refused")}
	p := newProcess(t, 2, nil)
	gauges := func() [metric.NumGauges]int64 { return p.workers[1].Gauges(p.now) }
	require.Zero(t, gauges()[metric.GaugeReadingAge], "nobody has looked yet")

	// From the start.
	require.Empty(t, p.ticks(1900*ms, refused))
	require.InDelta(t, 1900, gauges()[metric.GaugeReadingAge], 60, "since the start")
	require.Zero(t, gauges()[metric.GaugeBlind])
	events := p.ticks(200*ms, refused)
	require.Len(t, events, 1)
	require.Equal(t, `no reading of Envoy's memory for 2s from cluster "envoy_admin", path "/memory": connection refused. `+
		`Memory is not bounded by readings meanwhile, but by what the requests in flight may hold: memory.on_stale is estimate. `+
		`Check that the endpoint of cluster "envoy_admin" is the address and port of Envoy's admin interface.`, events[0])
	require.EqualValues(t, 1, gauges()[metric.GaugeBlind])
	require.Empty(t, p.ticks(time.Minute, refused), "one episode is told once")
	require.InDelta(t, 62_000, gauges()[metric.GaugeReadingAge], 200)
	require.Equal(t, []string{"readings of Envoy's memory are back after 1m2s. "}, p.ticks(300*ms, nil))
	require.Zero(t, gauges()[metric.GaugeBlind])
	require.Greater(t, p.workers[0].Counts()[metric.CountFailedReadings], uint64(100))

	// A failure now and then says nothing, and does not flap.
	for range 20 {
		require.Empty(t, p.ticks(500*ms, refused))
		require.Empty(t, p.ticks(300*ms, nil))
	}
	// The one who asks may be another in the middle of it.
	require.Len(t, p.ticks(3*time.Second, refused), 1)
	first := p.workers[0]
	p.workers[0] = p.workers[1]
	require.Empty(t, p.ticks(3*time.Second, refused))
	p.workers[0] = first
	require.Len(t, p.ticks(time.Second, nil), 1)

	// One that hangs does not even fail.
	p.now += Tick
	hangs := false
	for _, w := range p.workers {
		hangs = w.Tick(p.now).Ask || hangs
	}
	for range 200 {
		p.now += Tick
		for _, w := range p.workers {
			a := w.Tick(p.now)
			hangs = hangs || a.Ask
			if a.Event != "" {
				events = append(events, a.Event)
			}
		}
	}
	require.True(t, hangs)
	require.Len(t, events, 2)
	require.Contains(t, events[1], "no answer within 900ms. Memory is not")
}

// An idle process asks seldom, and is not blind.
func TestIdleIsNotBlind(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(40 * mib)
	next := [2]Time{p.now, p.now}
	var oldest int64
	for end := p.now + time.Minute; p.now < end; p.now += ms {
		for i, w := range p.workers {
			if p.now < next[i] {
				continue
			}
			a := w.Tick(p.now)
			next[i] = p.now + a.Next
			if a.Ask {
				w.Observe(p.now, memory.Reading{InUse: 40 * mib, Allocated: 40 * mib}, nil)
			}
			require.Empty(t, a.Event)
		}
		g := p.workers[0].Gauges(p.now)
		oldest = max(oldest, g[metric.GaugeReadingAge])
		require.Zero(t, g[metric.GaugeBlind])
	}
	require.Less(t, oldest, int64(1000))
}

func TestTheCureFitsTheCause(t *testing.T) {
	cluster := Default().Memory
	server := cluster
	server.URL = "http://127.0.0.1:9901"
	for _, c := range []struct {
		m       Memory
		failure error
		want    string
	}{
		{cluster, &memory.Failure{Cause: memory.CauseNoCluster, Err: errors.New("x")}, `Add a cluster "envoy_admin" that points at`},
		{cluster, memory.StatusFailure(403, ""), "Add {exact: /memory} to allow_paths of Envoy's admin."},
		{cluster, memory.StatusFailure(503, ""), `Check that the endpoint of cluster "envoy_admin" is`},
		{cluster, memory.StatusFailure(504, ""), "main thread answers it, and may be busy"},
		{cluster, memory.StatusFailure(404, ""), "Check that memory.path (/memory) is the one"},
		{cluster, errors.New("other"), `Check that the endpoint of cluster "envoy_admin" is`},
		{server, fmt.Errorf("wrapped: %w", memory.StatusFailure(503, "")), "Check that memory.url (http://127.0.0.1:9901) is"},
	} {
		require.Contains(t, memory.Cure(&c.m, c.failure), c.want)
	}
	_, err := memory.Parse([]byte("<html>"))
	require.Contains(t, memory.Cure(&cluster, err), "Check that memory.path")
	require.EqualError(t, memory.StatusFailure(503, "connection refused"), `the answer is status 503, not 200: "connection refused"`)
	for on, want := range map[string]string{"admit": "Everything is admitted", "reject": "Every request is rejected", "estimate": "not bounded by readings"} {
		cluster.OnStale = on
		require.Contains(t, cluster.Meanwhile(), want)
		require.Contains(t, cluster.Meanwhile(), "on_stale is "+on)
	}
}

// A change of what is shared is told by the keys that changed, each with what it was and is.
func TestWhatChangesOfSharedSettings(t *testing.T) {
	p := newProcess(t, 1, nil)
	c := example()
	changes := func(edit func(c *Config)) string {
		edit(&c)
		_, changed := New(c, p.workers[0])
		return changed
	}
	require.Empty(t, changes(func(*Config) {}))
	require.Equal(t, "budget.limit 200MiB → 150MiB", changes(func(c *Config) { c.Budget.Limit.Bytes = 150 << 20 }))
	require.Equal(t, "budget.limit 150MiB → 80%, budget.connections 0 → 5, throttle.queue 1024 → 10, throttle.timeout 2s → 0s, "+
		"memory.url none → http://x, memory.on_stale estimate → reject, trace.step 5% → 10%, reject.retry_after.min 1s → 2s, buffers.linger 100ms → 1s, evict true → false",
		changes(func(c *Config) {
			c.Budget.Limit.Bytes, c.Budget.Limit.Share, c.Budget.Connections = 0, 0.8, 5
			c.Throttle = Throttle{Queue: 10}
			c.Memory.URL, c.Memory.OnStale = "http://x", config.StaleReject
			c.Trace.Step = 0.1
			c.Reject.RetryAfter.Min, c.Buffers.Linger, c.Evict = 2_000_000_000, 1_000_000_000, false
		}))
	require.Empty(t, changes(func(c *Config) { c.Mode, c.Buffers.Downstream = Observe, 1 }), "each plugin has its own")
}
