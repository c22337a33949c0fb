package replay

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/sim"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Machine is what neither a recording nor a configuration says.
type Machine struct {
	Workers int        // Envoy's; 0 = 2
	Cores   float64    // that they share; 0 = as many as workers
	Speed   float64    // of a core, against one of the machine that package sim's figures are from; 0 = 1
	Base    unit.Bytes // in use by Envoy without traffic; 0 = that of the shipped example
}

// Envoy is how the one is set that a configuration guards.
type Envoy struct {
	Buffers    guard.Buffers
	SendBuffer unit.Bytes // SO_SNDBUF of the listener; 0 = not set
}

// What a socket towards a client takes: twice what SO_SNDBUF says, as Linux doubles it
// (socket(7)), without it what is in sim.Defaults.
const sendBufferFactor = 2

// settings are the model's for them.
func (e Envoy) settings(m Machine) sim.Settings {
	s := sim.Example()
	if m.Speed > 0 {
		s = s.Scaled(m.Speed)
	}
	if m.Workers > 0 {
		s.Workers = m.Workers
	}
	s.Cores = float64(s.Workers)
	if m.Cores > 0 {
		s.Cores = m.Cores
	}
	if m.Base > 0 {
		s.Base = int64(m.Base)
	}
	s.Downstream, s.Upstream = int64(e.Buffers.Downstream), int64(e.Buffers.Upstream)
	s.StreamWindow, s.ConnectionWindow = int64(e.Buffers.HTTP2Window), int64(e.Buffers.HTTP2ConnectionWindow)
	s.WholeRequest, s.Linger = int64(e.Buffers.WholeRequest), time.Duration(e.Buffers.Linger)
	s.KernelDown = sim.Defaults().KernelDown
	if e.SendBuffer > 0 {
		s.KernelDown = sendBufferFactor * int64(e.SendBuffer)
	}
	return s
}
