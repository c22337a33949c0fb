package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/metric"
)

// survive ends a fault of ours where it began: it is logged and counted, and the traffic goes on.
func survive() {
	if fault := recover(); fault != nil {
		broke(fault)
	}
}

func broke(fault any) {
	proxywasm.LogCriticalf("highwater: a fault, and the traffic goes on: %v\n%s", fault, debug.Stack())
	machine.hostError()
}

// table is the Store in Envoy's shared data, which all workers of a vm_id see.
type table struct{}

const (
	tableKey = "highwater.table"
	idsKey   = "highwater.ids"
	// create as cas creates a missing key and mismatches on an existing one; 0 would overwrite.
	create = 0xFFFFFFFF
)

func load(key string) ([]byte, uint32, error) {
	value, cas, err := proxywasm.GetSharedData(key)
	if errors.Is(err, types.ErrorStatusNotFound) {
		return nil, create, nil
	}
	return value, cas, err
}

func swap(key string, value []byte, cas uint32) error {
	err := proxywasm.SetSharedData(key, value, cas)
	if errors.Is(err, types.ErrorStatusCasMismatch) {
		return budget.ErrConflict
	}
	return err
}

func (table) Load() ([]byte, uint32, error)           { return load(tableKey) }
func (table) Swap(value []byte, version uint32) error { return swap(tableKey, value, version) }

func ownKey(worker uint32) string { return "highwater.keys." + strconv.FormatUint(uint64(worker), 10) }

func (table) Put(worker uint32, value []byte) error {
	return proxywasm.SetSharedData(ownKey(worker), value, 0) // 0 overwrites: it is the worker's own
}

func (table) Get(worker uint32) ([]byte, error) {
	value, _, err := load(ownKey(worker))
	return value, err
}

// keptKey is where a worker's sample of requests is, as of now (slot 0) or of a peak.
func keptKey(worker uint32, slot int) string {
	return "highwater.sample." + strconv.Itoa(slot) + "." + strconv.FormatUint(uint64(worker), 10)
}

func (table) Keep(worker uint32, slot int, value []byte) error {
	return proxywasm.SetSharedData(keptKey(worker, slot), value, 0)
}

func (table) Kept(worker uint32, slot int) ([]byte, error) {
	value, _, err := load(keptKey(worker, slot))
	return value, err
}

func (table) NextID() (uint32, error) {
	for range 1000 {
		value, cas, err := load(idsKey)
		if err != nil {
			return 0, err
		}
		var id uint32
		if len(value) == 4 {
			id = binary.LittleEndian.Uint32(value)
		}
		id = max(id+1, 1) // 0 is nobody
		if err := swap(idsKey, binary.LittleEndian.AppendUint32(nil, id), cas); err == nil {
			return id, nil
		} else if !errors.Is(err, budget.ErrConflict) {
			return 0, err
		}
	}
	return 0, budget.ErrConflict
}

// stats are Envoy's metrics. Each virtual machine adds to the same counters; gauges are set by the
// one that polls.
type stats struct {
	counters  [metric.NumCounters]proxywasm.MetricCounter
	gauges    [metric.NumGauges]proxywasm.MetricGauge
	wait      proxywasm.MetricHistogram
	published [metric.NumCounters]uint64
	shown     [metric.NumGauges]int64
	known     bool // shown is what Envoy has
}

// define makes the metrics. The SDK panics where Envoy refuses one.
func (s *stats) define() (err error) {
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("define metrics: %v", fault)
		}
	}()
	for i, m := range metric.Counters() {
		s.counters[i] = proxywasm.DefineCounterMetric(m.Name)
	}
	for i, m := range metric.Gauges() {
		s.gauges[i] = proxywasm.DefineGaugeMetric(m.Name)
	}
	s.wait = proxywasm.DefineHistogramMetric(metric.WaitHistogram().Name)
	return nil
}

func (s *stats) count(counts *[metric.NumCounters]uint64) {
	for i, n := range counts {
		if d := n - s.published[i]; d > 0 {
			s.counters[i].Increment(d)
			s.published[i] = n
		}
	}
}

// counted are the counters of all virtual machines together, as of their last ticks.
func (s *stats) counted(add func(name string, value int64)) {
	for i, m := range metric.Counters() {
		add(m.Name, int64(s.counters[i].Value()))
	}
}

func (s *stats) gauge(gauges [metric.NumGauges]int64) {
	for i, v := range gauges {
		if !s.known || s.shown[i] != v {
			// Record sets a gauge; the SDK only offers it for histograms, but the host takes any
			// metric.
			proxywasm.MetricHistogram(s.gauges[i]).Record(uint64(max(v, 0)))
			s.shown[i] = v
		}
	}
	s.known = true
}

// forget says that the gauges may have been set by somebody else.
func (s *stats) forget() { s.known = false }

// vmBytes is the memory of this virtual machine as the Go runtime sees it.
func vmBytes() int64 {
	sample := [1]metrics.Sample{{Name: "/memory/classes/total:bytes"}}
	metrics.Read(sample[:])
	return int64(sample[0].Value.Uint64())
}

// property is propertyOf, to be kept; empty where there is none.
func property(path string) string {
	text, _ := propertyOf(path)
	return strings.Clone(text)
}

// headerMap says whose they are: Proxy-Wasm's map types.
type headerMap uint32

const (
	requestHeaders  headerMap = 0
	responseHeaders headerMap = 2
)
