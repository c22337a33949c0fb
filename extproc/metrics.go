package extproc

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/codes"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/version"
)

// bad is what is wrong with a stream that is refused.
type bad uint8

const (
	badMessage bad = iota
	badUnknown
	badOrder
	badTwice
	badHeaders
	badSize
	badAttribute
	numBad
)

var badNames = [numBad]string{"not_a_message", "unknown_message", "out_of_order", "twice", "no_headers", "too_large", "attribute"}

func (b bad) String() string { return badNames[b] }

// counts are what the server counts beside the policy.
type counts struct {
	bad    [numBad]atomic.Int64
	faults atomic.Int64
	wait   prometheus.Histogram

	started, open, received, sent atomic.Int64 // streams, and messages
}

func (c *counts) init() {
	m := metric.WaitHistogram()
	name, _ := inSeconds(m.Name, 0)
	c.wait = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: name, Help: m.Help, Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5, 10},
	})
}

// waited records how long a request waited.
func (c *counts) waited(milliseconds float64) { c.wait.Observe(milliseconds / 1000) }

// inSeconds is a metric as Prometheus wants it, whose times are seconds. Envoy's stats hold whole
// numbers, so theirs are milliseconds.
func inSeconds(name string, v float64) (string, float64) {
	if base, ok := strings.CutSuffix(name, "_milliseconds"); ok {
		return base + "_seconds", v / 1000
	}
	return name, v
}

// Metric is a counter or a gauge with its value. In Envoy's stats a label is part of the name, as
// in highwater_rejected_total.reason.timeout; here it is one.
func Metric(m metric.Metric, v float64) prometheus.Metric {
	kind := prometheus.GaugeValue
	if m.Kind == metric.Counter {
		kind = prometheus.CounterValue
	}
	name, v := inSeconds(m.Name, v)
	help := m.Help
	var names, values []string
	if name, label, ok := strings.Cut(m.Name, "."); ok {
		label, value, _ := strings.Cut(label, ".")
		names, values = []string{label}, []string{value}
		if label == "reason" {
			help = "requests and responses that were not admitted, by reason" // one text for all of a name
		}
		return prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, v, values...)
	}
	return prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, nil, nil), kind, v)
}

// collector collects the policy's metrics when they are asked for.
type collector struct{ server *Server }

var (
	badDesc   = prometheus.NewDesc("highwater_ext_proc_bad_streams_total", "streams refused because their filter broke the protocol", []string{"reason"}, nil)
	infoDesc  = prometheus.NewDesc("highwater_info", "1: which Highwater this is, on which face, and its mode", []string{"version", "face", "mode"}, nil)
	faultDesc = prometheus.NewDesc("highwater_ext_proc_faults_total", "faults of the server itself that it survived", nil, nil)

	comingDesc  = prometheus.NewDesc("highwater_key_coming_bytes", "announced or forecast by requests of the key, and still to come", []string{"key"}, nil)
	priceDesc   = prometheus.NewDesc("highwater_key_price_bytes", "what one request of the key holds beside the bytes that pass, as readings tell; 0 = nothing is known", []string{"key"}, nil)
	likelyDesc  = prometheus.NewDesc("highwater_key_likely_bytes", "likely held by requests of the key", []string{"key"}, nil)
	waitingDesc = prometheus.NewDesc("highwater_key_waiting_bytes", "what requests of the key that wait are expected to bring", []string{"key"}, nil)
)

// labels are the keys by what they are called: a label is UTF-8, and names of two kinds may be the
// same.
func labels(keys []guard.KeyUse) map[string]guard.KeyUse {
	m := map[string]guard.KeyUse{}
	for _, k := range keys {
		name := strings.ToValidUTF8(k.Name, "\uFFFD")
		sum := m[name]
		m[name] = guard.KeyUse{Coming: sum.Coming + k.Coming, Likely: sum.Likely + k.Likely, Waiting: sum.Waiting + k.Waiting, Price: max(sum.Price, k.Price)}
	}
	return m
}

// Describe implements prometheus.Collector. It says nothing, so that nothing is checked: the table
// is tested.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(out chan<- prometheus.Metric) {
	var counts [metric.NumCounters]uint64
	var gauges [metric.NumGauges]int64
	var keys []guard.KeyUse
	var mode guard.Mode
	c.server.do(func(now guard.Time) {
		mode = c.server.mu.guard.Config().Mode
		counts, gauges, keys = *c.server.mu.worker.Counts(), c.server.mu.worker.Gauges(now), c.server.mu.worker.Keys()
	})
	out <- prometheus.MustNewConstMetric(infoDesc, prometheus.GaugeValue, 1, version.String(), face, string(mode))
	for i, m := range metric.Counters() {
		out <- Metric(m, float64(counts[i]))
	}
	for i, m := range metric.Gauges() {
		out <- Metric(m, float64(gauges[i]))
	}
	for i := range c.server.counts.bad {
		out <- prometheus.MustNewConstMetric(badDesc, prometheus.CounterValue, float64(c.server.counts.bad[i].Load()), badNames[i])
	}
	out <- prometheus.MustNewConstMetric(faultDesc, prometheus.CounterValue, float64(c.server.counts.faults.Load()))
	for name, k := range labels(keys) {
		out <- prometheus.MustNewConstMetric(comingDesc, prometheus.GaugeValue, float64(k.Coming), name)
		out <- prometheus.MustNewConstMetric(likelyDesc, prometheus.GaugeValue, float64(k.Likely), name)
		out <- prometheus.MustNewConstMetric(priceDesc, prometheus.GaugeValue, float64(k.Price), name)
		out <- prometheus.MustNewConstMetric(waitingDesc, prometheus.GaugeValue, float64(k.Waiting), name)
	}
}

// grpcMetrics are those that gRPC servers of Go commonly have.
type grpcMetrics struct{ *GRPC }

// Describe implements prometheus.Collector.
func (grpcMetrics) Describe(chan<- *prometheus.Desc) {}

var handledDesc = prometheus.NewDesc("grpc_server_handled_total", "streams and calls that have ended, by method and status", []string{"grpc_method", "grpc_code"}, nil)

// Collect implements prometheus.Collector.
func (m grpcMetrics) Collect(out chan<- prometheus.Metric) {
	counts := &m.server.counts
	for _, v := range []struct {
		name, help string
		kind       prometheus.ValueType
		n          int64
	}{
		{"grpc_server_started_total", "streams and calls that have begun", prometheus.CounterValue, counts.started.Load()},
		{"grpc_server_msg_received_total", "messages that have come on streams", prometheus.CounterValue, counts.received.Load()},
		{"grpc_server_msg_sent_total", "messages that were sent on streams", prometheus.CounterValue, counts.sent.Load()},
		{"grpc_server_streams", "streams that are open", prometheus.GaugeValue, counts.open.Load()},
		{"grpc_server_connections", "connections that are open", prometheus.GaugeValue, m.connections.Load()},
		{"highwater_ext_proc_unanswered_bytes", "what peers have sent and have had no answer to, with what it costs beside", prometheus.GaugeValue, m.backlog.Held()},
		{"grpc_server_broken_connections_total", "connections that were closed for what their peer did", prometheus.CounterValue, m.broken.Load()},
	} {
		out <- prometheus.MustNewConstMetric(prometheus.NewDesc(v.name, v.help, nil, nil), v.kind, float64(v.n))
	}
	for method, byCode := range m.handled {
		for code := range byCode {
			if n := byCode[code].Load(); n > 0 {
				out <- prometheus.MustNewConstMetric(handledDesc, prometheus.CounterValue, float64(n), methodName(method), codes.Code(code).String())
			}
		}
	}
}

// Registry is a registry of its own with all metrics of the process: the policy's, gRPC's and Go's.
func (s *Server) Registry(g *GRPC) *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collector{s}, grpcMetrics{g}, s.counts.wait,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// face is how Envoy meets us.
const face = "ext_proc"

// Status is what /status answers.
type Status struct {
	Version    string           `json:"version"`
	Face       string           `json:"face"`
	Mode       guard.Mode       `json:"mode"`
	Level      string           `json:"level"`
	Ready      bool             `json:"ready"`
	NotReady   string           `json:"not_ready,omitempty"`
	Gauges     map[string]int64 `json:"gauges"`
	Counters   map[string]int64 `json:"counters"`
	Keys       []guard.KeyUse   `json:"keys"`
	BadStreams map[string]int64 `json:"bad_streams"`
	UpSince    time.Time        `json:"up_since"`
	Observer   any              `json:"observer,omitempty"`
}

// Status returns what the server knows as of now.
func (s *Server) Status() Status {
	st := Status{
		Version: version.String(), Face: face,
		Gauges: map[string]int64{}, Counters: map[string]int64{}, BadStreams: map[string]int64{}, UpSince: s.started, Ready: true,
	}
	if err := s.Ready(); err != nil {
		st.Ready, st.NotReady = false, err.Error()
	}
	var counts [metric.NumCounters]uint64
	var gauges [metric.NumGauges]int64
	s.do(func(now guard.Time) {
		w := s.mu.worker
		st.Mode, counts, gauges, st.Keys = s.mu.guard.Config().Mode, *w.Counts(), w.Gauges(now), w.Keys()
		st.Level = w.Account().Table().Level.String()
	})
	for i, m := range metric.Counters() {
		st.Counters[m.Name] = int64(counts[i])
	}
	for i, m := range metric.Gauges() {
		st.Gauges[m.Name] = gauges[i]
	}
	for i := range s.counts.bad {
		st.BadStreams[badNames[i]] = s.counts.bad[i].Load()
	}
	return st
}
