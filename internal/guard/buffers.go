package guard

import (
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/metric"
)

// How much a connection may read ahead, by how full memory is. A limit that is lowered later frees
// nothing of what is there, so that it goes down before memory is full.
const (
	readCalm  = 64 << 10 // case stock-upload
	readShort = 16 << 10 // from soft on
)

// BufferLimit is the limit that a face is to give a new connection, bytes: never more than the
// listener's own. That is 0 where a listener has none.
func (w *Worker) BufferLimit(own int64) int64 {
	limit := int64(readCalm)
	if w.account.Table().Level >= budget.Soft {
		limit = readShort
	}
	if own > 0 {
		limit = min(limit, own)
	}
	return limit
}

// Relimit is the limit that a face is to give a live connection, which has brought n bytes at once,
// or begins a request where n is 0. It goes down at once, and up where it is used.
func (w *Worker) Relimit(c *Connection, n int64) int64 {
	limit := w.BufferLimit(c.Own)
	if limit > c.Read && n > 0 && n < c.Read {
		return c.Read
	}
	return limit
}

// lower says once that the limits of all connections are to go down.
func (w *Worker) lower(a *Actions) {
	limit := w.BufferLimit(0)
	a.Lower, w.reads = limit < w.reads, limit
}

// What connections may hold that were accepted and have no filter chain yet: of what traffic can
// have an eighth, and from soft on half of that. One that says nothing to Envoy's tls_inspector
// holds its buffer.
const (
	acceptedShare = 8           // TestAcceptedConnectionsAreBounded
	acceptedCost  = 26 << 10    // case tls-inspector-silent
	acceptedFor   = time.Second // likewise: who means to say something has said it by then
)

// Accepts says whether a connection that was accepted may have a filter chain: it would be refused
// there where it has no room. So many of the process have none yet, and the oldest that could go
// came then. It is to be dropped where they are too many and it has said nothing for long, so that
// those who say nothing don't lock out those who do.
func (g *Guard) Accepts(now Time, pending int64, oldest Time) (goesOn, dropsOldest bool) {
	w, cost, observed := g.worker, int64(g.config.Costs.Connection), g.config.Mode == config.Observe
	share, level := w.account.Room()/acceptedShare, w.account.Table().Level
	if level >= budget.Soft {
		share /= 2
	}
	full := (pending+1)*acceptedCost > share
	fits := w.fits(now, cost) || w.tries(cost)
	if fits && !full {
		return true, false
	}
	w.counts[metric.CountRefused]++
	return observed || fits && now-oldest >= acceptedFor, !observed
}
