package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
)

// Caps are what a face has set itself on a connection, bytes. A face that can't sets none, and then
// `buffers` tells what Envoy may hold.
//
// On HTTP/1 Envoy reads Read ahead of its filters, and they hold what the listener lets them, Own,
// or the upstream's connection does. A paused or rejected request leaves what the last read has
// brought, for its face has Envoy stop to read. Of HTTP/2 a face can set the connection's part
// alone: what its streams may send ahead is in their windows.
type Caps struct {
	Read int64 // the connection's buffer limit; 0 = none is set
	Own  int64 // that of its listener, which each request's own is restored to
}

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

// capped is the request's connection where its face has set caps on it; nil = it has not.
func (s *Stream) capped() *Connection {
	if c := s.host.Arrived(); c != nil && c.Read > 0 {
		return c
	}
	return nil
}

// waitsForLittle says that nothing is won where the request is turned away: its face has stopped to
// read it, and all who wait hold next to nothing, all bytes together.
func (s *Stream) waitsForLittle(all int64) bool {
	return s.capped() != nil && all <= s.guard.worker.account.Room()/leftShare
}

// downstream is the buffer limit of the request's connection.
func (g *Guard) downstream(s *Stream) int64 {
	if c := s.capped(); c != nil {
		return c.Read
	}
	return int64(g.config.Buffers.Downstream)
}

// rawCaps are what Envoy may hold of a raw connection, by direction.
func (g *Guard) rawCaps(c *Connection) (request, response int64) {
	b := &g.config.Buffers
	if c.Read > 0 {
		return c.Read + int64(b.Upstream), c.Read + int64(b.Upstream)
	}
	return 2 * int64(b.Downstream), int64(b.Downstream + b.Upstream)
}

// acceptedShare: connections that were accepted and have no filter chain yet may hold an eighth of
// what traffic can have. Envoy's tls_inspector keeps up to 64 KiB of one that says nothing to it.
const (
	acceptedShare = 8
	acceptedCost  = 16 << 10
)

// Accepts says whether a connection that was accepted may have a filter chain: it would be refused
// there where it has no room. So many of this worker have none yet.
func (g *Guard) Accepts(now Time, pending int) bool {
	w, cost := g.worker, int64(g.config.Costs.Connection)
	workers := int64(max(len(w.account.Table().Entries), 1))
	if (w.fits(now, cost) || w.tries(cost)) && int64(pending)*acceptedCost*workers <= w.account.Room()/acceptedShare {
		return true
	}
	w.counts[CountRefused]++
	return g.config.Mode == Observe
}
