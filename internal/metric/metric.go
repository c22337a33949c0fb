// Package metric names the counters and gauges that every face shows.
package metric

import "github.com/highwater-envoy/highwater/internal/verdict"

// Kind of a metric.
type Kind uint8

// The kinds.
const (
	Counter Kind = iota
	Gauge
	Histogram
)

// Metric describes one metric. Sizes are bytes.
type Metric struct {
	Name string
	Kind Kind
	Help string
}

// The counters. Each worker counts its own.
const (
	CountAdmitted = iota
	CountThrottled
	CountRejectedResponses
	CountClosedConnections
	CountClosedIdle
	CountRefused
	CountContention
	CountHostErrors
	CountFailedReadings
	CountBadSnapshots
	CountRejected // and one for each reason behind it
	NumCounters   = CountRejected + int(verdict.NumReasons) - 1
)

// The gauges. Whoever polls publishes them for the process.
const (
	GaugeEstimate = iota
	GaugeInUse
	GaugeAllocated
	GaugeFresh
	GaugeComing
	GaugeLimit
	GaugeBase
	GaugeSurprise
	GaugeExposure
	GaugeLevel
	GaugeFutile
	GaugeImpossible
	GaugeStreams
	GaugeWaiting
	GaugeConnections
	GaugePeak
	GaugeReadingAge
	GaugeBlind
	GaugeEnforcing
	GaugeVM
	GaugeLeaving
	NumGauges
)

// Counters describes the counters, by index.
func Counters() [NumCounters]Metric {
	m := [NumCounters]Metric{
		CountAdmitted:          {"highwater_admitted_total", Counter, "requests admitted, at once or after waiting"},
		CountThrottled:         {"highwater_throttled_total", Counter, "requests that had to wait"},
		CountRejectedResponses: {"highwater_rejected_responses_total", Counter, "rejects whose upstream had done the work already, at response headers or later"},
		CountClosedConnections: {"highwater_closed_connections_total", Counter, "rejects without an answer: what the request brought or would have left unread had no room, and its connection was closed"},
		CountClosedIdle:        {"highwater_closed_idle_total", Counter, "connections closed from soft on, because there had been requests on them and were none any more"},
		CountRefused:           {"highwater_refused_connections_total", Counter, "new connections closed at once: budget.connections were open, or what one costs, or will likely hold as raw TCP, had no room"},
		CountContention:        {"highwater_contention_total", Counter, "exchanges between workers given up because others were always first"},
		CountHostErrors:        {"highwater_host_errors_total", Counter, "calls of Envoy that failed; traffic went on"},
		CountFailedReadings:    {"highwater_failed_readings_total", Counter, "readings that were asked for and did not come, or could not be read"},
		CountBadSnapshots:      {"highwater_bad_snapshots_total", Counter, "samples of other workers that could not be read, and were left out of an answer"},
	}
	for r := verdict.TooLarge; r < verdict.NumReasons; r++ {
		m[CountRejected+int(r)-1] = Metric{"highwater_rejected_total.reason." + r.String(), Counter, rejectedHelp[r]}
	}
	return m
}

var rejectedHelp = [verdict.NumReasons]string{
	verdict.TooLarge:     "it could not fit even alone",
	verdict.QueueFull:    "the queue had no room for it",
	verdict.Timeout:      "it waited throttle.timeout",
	verdict.Growth:       "it brought more than announced or forecast, and that had no room",
	verdict.ResponseSize: "its response had no room",
	verdict.NoReading:    "there was no reading, and memory.on_stale is reject",
	verdict.Evicted:      "memory was over the limit, and it likely held most: requests and responses that were under way",
	verdict.Closed:       "it had no room, not even for an answer: its connection was closed without one",
}

// Gauges describes the gauges, by index.
func Gauges() [NumGauges]Metric {
	return [NumGauges]Metric{
		GaugeEstimate:    {"highwater_estimate_bytes", Gauge, "reading + fresh + coming: the upper bound on memory in use; in mode observe, what it would be in mode enforce"},
		GaugeInUse:       {"highwater_in_use_bytes", Gauge, "the last reading: heap_size − pageheap_unmapped − pageheap_free, and what highwater serve sees outside of the heap"},
		GaugeAllocated:   {"highwater_allocated_bytes", Gauge, "allocated, as of the last reading"},
		GaugeFresh:       {"highwater_fresh_bytes", Gauge, "passed since, and perhaps in no reading yet"},
		GaugeComing:      {"highwater_coming_bytes", Gauge, "announced or forecast, and still to come"},
		GaugeLimit:       {"highwater_limit_bytes", Gauge, "budget.limit, in bytes; 0: a share of the container's limit, which is not known"},
		GaugeBase:        {"highwater_base_bytes", Gauge, "what the process holds without traffic"},
		GaugeSurprise:    {"highwater_surprise_bytes", Gauge, "what came and no filter saw; if it stays high, buffers or costs are too low"},
		GaugeExposure:    {"highwater_exposure_bytes", Gauge, "the worst case: all that the live streams could come to hold"},
		GaugeLevel:       {"highwater_level", Gauge, "0 normal, 1 soft, 2 hard, 3 over"},
		GaugeFutile:      {"highwater_futile", Gauge, "1: the level is hard and traffic is not the cause"},
		GaugeImpossible:  {"highwater_budget_impossible", Gauge, "1: budget.limit cannot be held, because Envoy holds more than 9/10 of it without traffic; 10/9 of that is in force"},
		GaugeStreams:     {"highwater_streams", Gauge, "requests in flight, and raw TCP connections on which more than 16 KiB have passed"},
		GaugeWaiting:     {"highwater_waiting", Gauge, "requests in the queue"},
		GaugeConnections: {"highwater_connections", Gauge, "connections of listeners with the network filter"},
		GaugePeak:        {"highwater_peak_bytes", Gauge, "the highest reading so far"},
		GaugeReadingAge:  {"highwater_reading_age_milliseconds", Gauge, "time since the last reading was asked for; as long as there was none, since the start"},
		GaugeBlind:       {"highwater_blind", Gauge, "1: no reading for 2 s or more, so that memory is not bounded by readings; else 0"},
		GaugeEnforcing:   {"highwater_enforcing", Gauge, "1: verdicts are carried out (mode enforce), on one listener at least; 0: mode observe"},
		GaugeLeaving:     {"highwater_leaving_bytes", Gauge, "evicted, and perhaps still there"},
		GaugeVM:          {"highwater_vm_bytes", Gauge, "memory of the workers' virtual machines; outside every reading"},
	}
}

// WaitHistogram describes the time that requests waited, admitted or not.
func WaitHistogram() Metric {
	return Metric{"highwater_wait_milliseconds", Histogram, "time that requests waited in the queue"}
}
