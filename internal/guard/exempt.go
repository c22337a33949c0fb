package guard

import (
	"slices"
	"strings"

	"github.com/highwater-envoy/highwater/internal/budget"
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
	case anyPrefix(x.paths, h.Path()):
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

func anyPrefix(prefixes []string, path string) bool {
	for _, prefix := range prefixes {
		if hasPathPrefix(path, prefix) {
			return plain(path)
		}
	}
	return false
}

// hasPathPrefix says whether the path, without its query, begins with the prefix, which ends with a
// segment or a slash.
func hasPathPrefix(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return false
	}
	return rest == "" || prefix[len(prefix)-1] == '/' || rest[0] == '/' || endsPath(rest[0])
}

func endsPath(b byte) bool { return b == '?' || b == '#' }

// plain says that whoever reads the path means the same by it, however often he decodes it, and
// that none of its segments leads out of another. Not plain are segments that begin with dots and
// no name behind them (also before a parameter: "..;x"), backslashes, encoded slashes, backslashes
// and percent signs, and what is not printable ASCII, encoded or not. The query is no part of it.
func plain(path string) bool {
	at := begins
	for i := 0; i < len(path) && !endsPath(path[i]); i++ {
		b := path[i]
		if b == '/' {
			if at == dots {
				return false
			}
			at = begins
			continue
		}
		if b == '%' {
			var ok bool
			if b, ok = decoded(path[i:]); !ok {
				return false
			}
			i += 2
		} else if b == ' ' {
			return false
		}
		if b < ' ' || b > '~' || b == '\\' {
			return false
		}
		if at = at.next(b); at == misleads {
			return false
		}
	}
	return at != dots
}

// segment is what has been read of one segment of a path.
type segment uint8

const (
	begins   segment = iota // nothing
	dots                    // and nothing else yet
	named                   // what makes a name of it
	misleads                // dots, and what makes no name of them
)

// next is what it is with one byte more.
func (s segment) next(b byte) segment {
	switch {
	case b == '.' && s == begins:
		return dots
	case b == '.':
		return s
	case s == dots && !startsName(b):
		return misleads
	}
	return named
}

// decoded is the byte that the text begins with as %xx. It is not ok where it is none, or one that
// whoever decodes once more reads differently.
func decoded(text string) (b byte, ok bool) {
	if len(text) < 3 {
		return 0, false
	}
	high, low := hex(text[1]), hex(text[2])
	b = high<<4 | low
	return b, high <= 0xf && low <= 0xf && b != '/' && b != '%'
}

// hex is the value of a hexadecimal digit; above 15 it is none.
func hex(b byte) byte {
	switch {
	case b >= '0' && b <= '9':
		return b - '0'
	case b|0x20 >= 'a' && b|0x20 <= 'f':
		return b | 0x20 - 'a' + 10
	}
	return 0xff
}

// startsName says whether the byte, behind dots, makes a name of them, such as .well-known.
func startsName(b byte) bool {
	return b >= '0' && b <= '9' || b|0x20 >= 'a' && b|0x20 <= 'z' || b == '-' || b == '_' || b == '~'
}

func (e *Exempt) validate(at string, check checker) {
	set := 0
	for _, s := range []string{e.PathPrefix, e.Route, e.Cluster, e.GRPCService} {
		if s != "" {
			set++
		}
	}
	check(set == 1, "%s: must have exactly one of path_prefix, route, cluster, grpc_service, and it must not be empty", at)
	switch path := e.PathPrefix; {
	case path == "":
	case path[0] != '/':
		check(false, "%s.path_prefix: %q must begin with /", at, path)
	case strings.ContainsFunc(path, func(r rune) bool { return r < 0x80 && endsPath(byte(r)) }):
		check(false, "%s.path_prefix: %q must end before the query: write the path alone, such as /healthz", at, path)
	default:
		check(plain(path), "%s.path_prefix: %q can match nothing, because a path is never exempt that has segments of dots, backslashes, "+
			"encoded slashes, backslashes or percent signs, or what is not printable ASCII; write one without, such as /healthz", at, path)
	}
	if service := e.GRPCService; service != "" {
		check(!strings.ContainsAny(service, "/?#") && plain("/"+service), "%s.grpc_service: %q can match nothing; write package.Service, "+
			"without slashes and methods", at, service)
	}
}
