package guard

import "github.com/highwater-envoy/highwater/internal/budget"

// requestCap is what Envoy may hold of a request: on HTTP/1 twice the listener's buffer limit, on
// HTTP/2 twice the larger of that and the stream's window, behind a buffering filter the whole of
// it instead.
func (g *Guard) requestCap(s *Stream) int64 {
	if whole := int64(g.config.Buffers.WholeRequest); whole > 0 {
		return whole
	}
	return g.pauseCap(s)
}

// pauseCap is what a request can leave unread while it is paused.
func (g *Guard) pauseCap(s *Stream) int64 {
	b := &g.config.Buffers
	if b.HTTP2Window > b.Downstream && s.isHTTP2() {
		return 2 * int64(b.HTTP2Window)
	}
	return 2 * int64(b.Downstream)
}

// responseCap is the cluster's buffer limit and the larger of the listener's and, on HTTP/2, the
// stream's window.
func (g *Guard) responseCap(s *Stream) int64 {
	b := &g.config.Buffers
	if b.HTTP2Window > b.Downstream && s.isHTTP2() {
		return int64(b.Upstream + b.HTTP2Window)
	}
	return int64(b.Upstream + b.Downstream)
}

// mayHold is what Envoy may hold of a response of so many bytes, or of Unknown. Which protocol it
// has is asked only where it matters.
func (g *Guard) mayHold(s *Stream, length int64) int64 {
	most := int64(g.config.Buffers.Upstream + g.config.Buffers.Downstream)
	if length == budget.Unknown || length > most {
		return g.responseCap(s)
	}
	return most
}

// cost is what the request leaves unread while it is paused, or when it is rejected unfinished: it
// comes within a round trip, unseen by the HTTP filter.
func (g *Guard) cost(s *Stream) int64 {
	if s.Ended(budget.Request) {
		return 0
	}
	limit := g.pauseCap(s)
	if s.length != budget.Unknown {
		limit = min(limit, s.length)
	}
	return limit
}
