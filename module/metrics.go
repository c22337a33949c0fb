package main

// #include "abi.h"
import "C"

import (
	"fmt"
	gometrics "runtime/metrics"
	"sync"
	"sync/atomic"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// metrics are Envoy's. They are defined with each configuration of the HTTP filter and of the
// network filter, and belong to the process: one that is there publishes them, for it may not go
// while it does.
type metrics struct {
	totals [metric.NumCounters]atomic.Uint64 // of all workers, as of their last ticks

	mu struct {
		sync.Mutex
		by       *plugin // nil = no configuration of either filter is there
		pending  [metric.NumCounters]uint64
		gauged   budget.Time
		measured budget.Time
	}
}

// defined are the ids of metrics in a configuration.
type defined struct {
	counters [metric.NumCounters]C.size_t
	gauges   [metric.NumGauges]C.size_t
	wait     C.size_t
}

// define makes them.
func (m *metrics) define(p *plugin) error {
	if p.kind == accepts {
		return nil
	}
	for i, c := range metric.Counters() {
		if err := p.defineOne(C.HW_COUNTER, c.Name, &p.defined.counters[i]); err != nil {
			return err
		}
	}
	for i, g := range metric.Gauges() {
		if err := p.defineOne(C.HW_GAUGE, g.Name, &p.defined.gauges[i]); err != nil {
			return err
		}
	}
	return p.defineOne(C.HW_HISTOGRAM, metric.WaitHistogram().Name, &p.defined.wait)
}

func (p *plugin) defineOne(what C.int, name string, id *C.size_t) error {
	if r := C.hw_define(what, C.bool(p.kind == connections), p.envoy, textOf(name), id); r != 0 {
		return fmt.Errorf("define metric %s: result %d", name, r)
	}
	return nil
}

// set adds to a counter, sets a gauge, or records a value of a histogram.
func (p *plugin) set(what C.int, id C.size_t, value uint64) {
	C.hw_set(what, C.bool(p.kind == connections), p.envoy, id, C.uint64_t(value))
}

// publishBy has the plugin publish from now on: of those that are there the newest is likely to
// stay longest.
func (m *metrics) publishBy(p *plugin) {
	if p.kind == accepts {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.by = p
}

// leave has another publish.
func (m *metrics) leave(p *plugin) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.by != p {
		return
	}
	m.mu.by = nil
	for _, other := range module.plugins.all() {
		if other != nil && other.kind != accepts {
			m.mu.by = other
		}
	}
}

// publish tells what a worker has counted since its last tick, and, where that is the one that asks
// for readings, the gauges of the process. The caller has the worker's lock.
func (m *metrics) publish(w *worker, t budget.Time, polls bool) {
	counts := w.mu.policy.Counts()
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, n := range counts {
		if d := n - w.mu.counted[i]; d > 0 {
			w.mu.counted[i] = n
			m.totals[i].Add(d)
			m.mu.pending[i] += d
		}
	}
	p := m.mu.by
	if p == nil {
		return
	}
	for i, d := range m.mu.pending {
		if d > 0 {
			m.mu.pending[i] = 0
			p.set(C.HW_COUNTER, p.defined.counters[i], d)
		}
	}
	if !polls || t-m.mu.gauged < 200*time.Millisecond {
		return
	}
	m.mu.gauged = t
	if m.mu.measured == 0 || t-m.mu.measured >= 10*time.Second {
		m.mu.measured = t
		w.mu.policy.SetVM(runtimeBytes())
	}
	for i, v := range w.mu.policy.Gauges(t) {
		p.set(C.HW_GAUGE, p.defined.gauges[i], uint64(max(v, 0)))
	}
}

// waited notes how long a request has waited.
func (m *metrics) waited(d unit.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.mu.by; p != nil {
		p.set(C.HW_HISTOGRAM, p.defined.wait, uint64(d.Milliseconds()))
	}
}

// counted are the counters of all workers together, as of their last ticks.
func (m *metrics) counted(add func(name string, value int64)) {
	for i, c := range metric.Counters() {
		add(c.Name, int64(m.totals[i].Load()))
	}
}

// runtimeBytes is what Go's runtime has of the system. It is outside of Envoy's heap, and of its
// readings.
func runtimeBytes() int64 {
	sample := [1]gometrics.Sample{{Name: "/memory/classes/total:bytes"}}
	gometrics.Read(sample[:])
	return int64(sample[0].Value.Uint64())
}
