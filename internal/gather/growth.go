package gather

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/doctor"
	"github.com/highwater-envoy/highwater/internal/leak"
)

// Growth has package leak judge the samples of a Watch: whether memory grows, and load does not
// explain it. Make it with NewGrowth. It is not safe for concurrent use.
type Growth struct {
	detector *leak.Detector
	from, to time.Time
}

// NewGrowth returns one that has seen nothing yet. It has the settings of live detection, but for
// the least time between two samples.
func NewGrowth(every time.Duration) *Growth {
	settings := leak.Default()
	settings.Every = every
	return &Growth{detector: leak.New(settings)}
}

// Add takes a sample in. One without its load is left out: who does not know that can't say what it
// explains.
func (g *Growth) Add(s doctor.Sample) {
	report := s.Allocator
	if report == nil {
		report = s.Totals
	}
	if report == nil || s.Gauges == nil {
		return
	}
	if g.from.IsZero() {
		g.from = s.Time
	}
	g.to = s.Time
	of := leak.Sample{
		At: s.Time.Sub(g.from), InUse: report.Application, Process: uint64(s.Envoy.PID), Config: s.Gauges.Config, Finished: uint64(s.Gauges.Finished),
		Load: leak.Load{Connections: s.Gauges.Connections, Requests: s.Gauges.Requests, Buffered: s.Gauges.Buffered()},
	}
	for size, n := range report.Live() {
		of.Classes = append(of.Classes, leak.Class{Size: size, Live: n})
	}
	g.detector.Add(of)
}

// Verdict is what is to be said as of the last sample.
func (g *Growth) Verdict() *doctor.Growth {
	return &doctor.Growth{Over: g.to.Sub(g.from), Growing: g.detector.Growth(), Leak: g.detector.Leak()}
}
