package guard

import (
	"slices"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
)

// exemption says how far a request is exempt.
type exemption uint8

const (
	judged exemption = iota // it is not
	// whileSmall: a path is what the client says. So it exempts only a request and a response of at
	// most budget.small each.
	whileSmall
	// always: the operator's own routing decides, and the size does not matter.
	always
)

// exemptions are the rules of exempt, ready to be asked.
type exemptions struct {
	paths    []string // prefixes; a grpc_service is /package.Service/
	routes   []string
	clusters []string
}

func exemptionsOf(rules []Exempt) (x exemptions) {
	for i := range rules {
		switch e := &rules[i]; {
		case e.PathPrefix != "":
			x.paths = append(x.paths, e.PathPrefix)
		case e.Route != "":
			x.routes = append(x.routes, e.Route)
		case e.Cluster != "":
			x.clusters = append(x.clusters, e.Cluster)
		default:
			x.paths = append(x.paths, "/"+e.GRPCService+"/")
		}
	}
	return x
}

// exempts says how far a request is exempt that announces so many bytes. Each kind of rule costs
// one call of the host.
func (g *Guard) exempts(h Host, length int64) exemption {
	x := &g.exemptions
	switch {
	case len(x.routes) > 0 && slices.Contains(x.routes, h.Route()), len(x.clusters) > 0 && slices.Contains(x.clusters, h.Cluster()):
		return always
	case len(x.paths) == 0, length > int64(g.worker.budget.Small):
		return judged
	case length == budget.Unknown && h.Visibility(budget.Request) != budget.Counted: // when it has brought more than small, nobody would know
		return judged
	case config.AnyPrefix(x.paths, h.Path()):
		return whileSmall
	}
	return judged
}

// mayExempt says that a request whose first n bytes come at once may be exempt.
func (g *Guard) mayExempt(n int64) bool {
	x := &g.exemptions
	// Headers come with the body: half of n may be theirs.
	return len(x.routes)+len(x.clusters) > 0 || len(x.paths) > 0 && int64(g.worker.budget.Small) >= n/2
}

// endSmallExemption ends an exemption that is for small ones alone, and says whether the stream had
// one.
func (s *Stream) endSmallExemption() (ended bool) {
	ended = s.exempt == whileSmall
	if ended {
		s.exempt = judged
	}
	return ended
}
