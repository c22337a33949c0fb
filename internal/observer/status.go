package observer

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/leak"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
)

// Fault is what can fail here, each by itself.
type Fault int

// The faults.
const (
	FaultMemory   Fault = iota // Envoy's admin gives no reading
	FaultBuffers               // nor its gauges of buffers
	FaultProcess               // Envoy's process is not known
	FaultCgroup                // nor its container
	FaultPressure              // a file of Envoy's injected_resource monitors can't be written
	FaultPulse
	FaultGrowth   // Envoy does not tell its size classes, or its load
	FaultEvidence // evidence can't be kept
	numFaults
)

// String returns memory, buffers, process, cgroup, pressure_file, pulse_file, growth
// or evidence.
func (f Fault) String() string {
	return [...]string{"memory", "buffers", "process", "cgroup", "pressure_file", "pulse_file", "growth", "evidence"}[f]
}

// without says what is done meanwhile.
var without = [numFaults]string{
	FaultMemory:   "no reading of Envoy's memory; it is asked again, less and less often, at least once a second",
	FaultBuffers:  "Envoy's gauges of buffered bytes are not known; they are asked for again, at least each 30s",
	FaultProcess:  "the memory outside of Envoy's heap is not known; it counts as none",
	FaultCgroup:   "the container's limit is not known, or no more; the last one known stays in force",
	FaultPressure: "Envoy does not get to know of the pressure, and keeps what it read last; tried again each second",
	FaultPulse:    "free pages are not given back on demand; tried again each second",
	FaultGrowth:   "growth is told later or not at all: Envoy's size classes or its load are not known; they are asked for again",
	FaultEvidence: "no evidence is kept; it is tried again when there is reason to",
}

// fault is the state of one of them.
type fault struct {
	count  uint64
	err    error // nil = all is well
	logged bool
}

// note counts a failure, and logs when there is one and when there is none any more. o.mu is held.
func (o *Observer) note(f Fault, err error) {
	s := &o.mu.faults[f]
	o.count(f, err)
	switch {
	case err != nil && !s.logged:
		s.logged = true
		o.log.Warn(without[f], "what", f.String(), "error", err)
	case err == nil && s.logged:
		s.logged = false
		o.log.Info("well again", "what", f.String())
	}
}

// count is note without a failure's line in the log. o.mu is held.
func (o *Observer) count(f Fault, err error) {
	s := &o.mu.faults[f]
	s.err = err
	if err != nil {
		s.count++
	} else if s.logged {
		s.logged = false
		o.log.Info("well again", "what", f.String())
	}
}

// Status is what is known. Sizes are bytes.
type Status struct {
	Reading  memory.Reading `json:"reading"`
	Age      time.Duration  `json:"age"`   // since the reading was asked for; 0 = there was none yet
	Took     time.Duration  `json:"took"`  // from the question to the answer
	Fresh    bool           `json:"fresh"` // it is of the last second
	PID      int            `json:"pid"`   // 0 = not known
	Resident int64          `json:"resident"`
	Cgroup   string         `json:"cgroup"` // its directory; empty = not known
	// Container is as of the last try to get a reading; nil = not known.
	Container   *cgroup.Stats     `json:"container"`
	Buffered    Buffered          `json:"buffered"`
	TimeToLimit time.Duration     `json:"time_to_limit"` // as memory grows now; 0 = it does not, or there is no limit
	Growth      float64           `json:"growth"`        // bytes per second; 0 = none to speak of
	Nears       uint64            `json:"nears"`         // times that it came to less than 30 s
	Pressure    float64           `json:"pressure"`      // as it is, or would be, in the file
	Pulse       bool              `json:"pulse"`
	Pulses      uint64            `json:"pulses"`
	Released    int64             `json:"released"` // mapped pages that went during pulses, in all
	Growing     leak.Growth       `json:"growing"`  // what load does not explain
	Leak        leak.Leak         `json:"leak"`
	Growths     uint64            `json:"growths"` // times that the one began, and
	Leaks       uint64            `json:"leaks"`   // the other
	Evidence    Evidence          `json:"evidence"`
	Failures    map[string]uint64 `json:"failures"` // counted, by Fault
	Failing     map[string]string `json:"failing"`  // what is failing now, and why
}

// Status returns what is known now.
func (o *Observer) Status() Status {
	o.mu.Lock()
	defer o.mu.Unlock()
	m := &o.mu
	s := Status{
		Reading: m.reading, Took: m.took, PID: m.figures.pid, Resident: m.figures.resident, Cgroup: m.figures.dir, Container: m.figures.container,
		Buffered: m.buffered, Nears: m.near.times, Pressure: m.pressure, Pulse: m.pulse, Pulses: m.releaser.pulses, Released: m.releaser.released,
		Growing: m.verdicts.growth, Leak: m.verdicts.leak, Growths: m.verdicts.growths, Leaks: m.verdicts.leaks, Evidence: m.evidence,
		Failures: map[string]uint64{}, Failing: map[string]string{},
	}
	if !m.asked.IsZero() {
		s.Age = time.Since(m.asked)
		s.Fresh = s.Age < staleAfter
	}
	if s.Fresh {
		s.Growth, s.TimeToLimit = m.trend.growth(), m.near.left
	}
	for f := range numFaults {
		s.Failures[f.String()] = m.faults[f].count
		if err := m.faults[f].err; err != nil {
			s.Failing[f.String()] = err.Error()
		}
	}
	return s
}

// staleAfter: a reading that is older is none, as for guard.
const staleAfter = time.Second

// Figure is a metric with its value.
type Figure struct {
	metric.Metric
	Value float64
}

// Figures are the observer's metrics. A name such as highwater_observer_failures_total.what.memory
// has the label what with the value memory. What is not known is left out.
func (s Status) Figures() []Figure {
	var list []Figure
	add := func(name string, kind metric.Kind, value float64, help string) {
		list = append(list, Figure{metric.Metric{Name: name, Kind: kind, Help: help}, value})
	}
	if s.TimeToLimit > 0 {
		add("highwater_time_to_limit_seconds", metric.Gauge, s.TimeToLimit.Seconds(), "until memory in use is at budget.limit, as it grows now; absent: it does not grow")
	}
	add("highwater_growth_bytes_per_second", metric.Gauge, s.Growth, "by which memory in use grows, over the last ten seconds; 0: not to speak of")
	add("highwater_nears_limit_total", metric.Counter, float64(s.Nears), "times that it was less than 30 s to budget.limit")
	if s.PID != 0 {
		add("highwater_resident_bytes", metric.Gauge, float64(s.Resident), "resident memory of Envoy's process, without file pages")
	}
	if c := s.Container; c != nil {
		if c.Limit != cgroup.NoLimit {
			add("highwater_container_limit_bytes", metric.Gauge, float64(c.Limit), "the tightest limit of Envoy's cgroup and of those above it; absent: none")
		}
		add("highwater_container_usage_bytes", metric.Gauge, float64(c.Usage), "charged to Envoy's cgroup, page cache included")
		add("highwater_container_working_set_bytes", metric.Gauge, float64(c.WorkingSet), "usage of Envoy's cgroup without inactive file pages")
		add("highwater_container_sock_bytes", metric.Gauge, float64(c.Sock), "socket buffers charged to Envoy's cgroup")
		if c.Pressure != nil {
			add("highwater_container_stalled_ratio.tasks.some", metric.Gauge, c.Pressure.Some10, "share of the last 10 s in which tasks stalled for want of memory")
			add("highwater_container_stalled_ratio.tasks.full", metric.Gauge, c.Pressure.Full10, "share of the last 10 s in which tasks stalled for want of memory")
		}
		const events = "what happened in Envoy's cgroup, as the kernel counts it"
		add("highwater_container_events_total.event.oom", metric.Counter, float64(c.Events.OOM), events)
		add("highwater_container_events_total.event.oom_kill", metric.Counter, float64(c.Events.OOMKill), events)
		add("highwater_container_events_total.event.high", metric.Counter, float64(c.Events.High), events)
		add("highwater_container_events_total.event.max", metric.Counter, float64(c.Events.Max), events)
	}
	for name, n := range s.Buffered.byName() {
		add("highwater_buffered_bytes.where."+name, metric.Gauge, float64(n), "bytes in Envoy's own buffers, as its gauges tell")
	}
	add("highwater_pressure_ratio", metric.Gauge, s.Pressure, "what release.pressure_file tells Envoy")
	add("highwater_release_pulses_total", metric.Counter, float64(s.Pulses), "times that free pages were to be given back")
	add("highwater_released_bytes_total", metric.Counter, float64(s.Released), "pages of the heap that went during these")
	add("highwater_unexplained_growth_bytes_per_second", metric.Gauge, s.Growing.PerMinute/60, "by which Envoy's live objects grow though its load does not; 0: they do not")
	add("highwater_unexplained_growth_total", metric.Counter, float64(s.Growths), "times that this began")
	add("highwater_leak_bytes_per_second", metric.Gauge, s.Leak.PerMinute/60, "that Envoy leaks, over an hour at least; 0: no leak is seen")
	add("highwater_leaks_total", metric.Counter, float64(s.Leaks), "times that a leak was told")
	add("highwater_evidence_bundles", metric.Gauge, float64(s.Evidence.Bundles), "bundles of evidence in evidence.directory")
	add("highwater_evidence_bytes", metric.Gauge, float64(s.Evidence.Bytes), "what they take on the disk")
	add("highwater_evidence_taken_total", metric.Counter, float64(s.Evidence.Taken), "bundles that were taken")
	for f := range numFaults {
		add(fmt.Sprintf("highwater_observer_failures_total.what.%s", f), metric.Counter, float64(s.Failures[f.String()]), "tries of the observer that failed")
	}
	return list
}
