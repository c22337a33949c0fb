package extproc

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/peak"
)

// Mark is a high-water mark that is kept: when it was, and what was in use, bytes.
type Mark struct {
	Number int64
	At     time.Time
	InUse  int64
}

// Marks are the high-water marks that are kept, each with its number of /peaks.
func (s *Server) Marks() (list []Mark) {
	s.do(func(now guard.Time) {
		clock := peak.Clock{Monotonic: now, Wall: time.Now().UnixNano()}
		for _, p := range s.mu.worker.Peaks() {
			v := peak.ViewOf(p, clock, 1)
			list = append(list, Mark{Number: v.Peak, At: time.UnixMilli(v.AtMS), InUse: v.InUse})
		}
	})
	return list
}
