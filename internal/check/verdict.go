package check

import (
	"fmt"
	"slices"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// verdict says in a few sentences whether the memory is bounded, and without a guard whether one is
// worth it.
func (c *checker) verdict() {
	guardedOnes, traffic, all := c.counted()
	container := c.options.Container
	fits := all >= 0 && container > 0 && unit.Bytes(all)+c.Base < container
	switch {
	case traffic == 0:
		c.Verdict = c.nothing()
	case guardedOnes == traffic:
		c.Verdict = fmt.Sprintf("Highwater guards all of %d listener(s) with traffic.", traffic)
		if n := c.count(Error); n > 0 {
			c.Verdict += fmt.Sprintf(" %d error(s) below keep it from holding the limit.", n)
		}
	case guardedOnes > 0:
		c.Verdict = fmt.Sprintf("Highwater guards %d of %d listeners with traffic: what the others take is not held back.", guardedOnes, traffic)
	case fits:
		c.Verdict = fmt.Sprintf("Bounded without a guard: all connections together can hold %s, which fits into the container. Highwater is not worth it here.", all)
	default:
		c.Verdict = c.worthIt(all, container)
	}
}

// nothing is the verdict where no listener has traffic to speak of.
func (c *checker) nothing() string {
	switch {
	case len(c.Listeners) == 0 && c.dump:
		return "There is no listener in this configuration, so nothing can be said of its traffic."
	case len(c.Listeners) == 0:
		return "There is no listener in this configuration, so nothing can be said of its traffic. Where listeners come by xDS, ask a running Envoy: highwater check -admin URL."
	case slices.ContainsFunc(c.listening, func(l *listener) bool { return l.quic }):
		return "The listeners with traffic speak UDP alone, HTTP/3 or others: none of it is counted here, and Highwater sees none of it."
	}
	return "No listener sends anything to an upstream: there is nothing to guard."
}

// counted are how many listeners have traffic, how many of them a guard, and what all of them can
// hold.
func (c *checker) counted() (guardedOnes, traffic int, all Most) {
	for i, l := range c.Listeners {
		if l.All == 0 || c.isQuiet(c.listening[i]) {
			continue
		}
		traffic++
		if l.Guard != "" {
			guardedOnes++
		}
		if l.All < 0 || all < 0 {
			all = -1
		} else {
			all = sumMost(all, l.All)
		}
	}
	return guardedOnes, traffic, all
}

// worthIt says what adding Highwater takes, and what it is for here.
func (c *checker) worthIt(all Most, container unit.Bytes) string {
	what := "Not bounded: nothing limits how many connections there are"
	if all >= 0 {
		what = fmt.Sprintf("Not bounded by what is known: all connections together can hold %s", all)
		if container > 0 {
			what += fmt.Sprintf(", and the container has %v", container)
		}
	}
	chains := 0
	for i := range c.guards {
		if g := &c.guards[i]; !c.quiet(g) && !g.listener.quic && (g.manager != nil || g.proxy != nil) {
			chains++
		}
	}
	return what + fmt.Sprintf(". Highwater would take filters in %d filter chain(s), a cluster for its readings, some 30 MiB of Envoy's memory and 12 to 17 µs of CPU per request. "+
		"It is worth it where clients are not yours, or where uploads and slow readers come in crowds. Lower the buffers first: that is free, and does more than any guard can.", chains)
}

func (c *checker) isQuiet(l *listener) bool {
	return !slices.ContainsFunc(c.guards, func(g guarded) bool { return g.listener == l && !c.quiet(&g) })
}

func sumMost(a, b Most) Most {
	if a > 1<<62 || b > 1<<62 {
		return -1
	}
	return a + b
}

func (c *checker) count(s Severity) (n int) {
	for _, f := range c.Findings {
		if f.Severity == s {
			n++
		}
	}
	return n
}
