package check

import (
	"fmt"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Guarded is a listener's filter chain with Highwater in it, and how Envoy is set there.
type Guarded struct {
	At         string // for people
	Config     guard.Config
	Buffers    guard.Buffers // as Envoy is set, whatever the configuration says
	SendBuffer unit.Bytes    // SO_SNDBUF of the listener; 0 = not set
}

// Guards are the chains that judge requests by a configuration of their own. A guard that is asked
// by ext_proc has its configuration elsewhere, in that of the server. err says why there is none.
func Guards(e *Envoy, o Options) (all []Guarded, err error) {
	c := newChecker(e, o)
	for i := range c.guards {
		g := &c.guards[i]
		if g.requests == nil || g.requests.config == nil || g.answers() {
			if g.requests != nil && g.requests.err != nil && err == nil {
				err = fmt.Errorf("%s: %w", g.requests.at, g.requests.err)
			}
			continue
		}
		all = append(all, Guarded{At: g.at, Config: *g.requests.config, Buffers: c.rightFor(g), SendBuffer: g.listener.sendBuffer})
	}
	switch {
	case len(all) > 0:
		return all, nil
	case err != nil:
		return nil, err
	}
	return nil, fmt.Errorf("no listener has Highwater's HTTP filter with a configuration: write one with highwater check -write, or name Highwater's own configuration")
}
