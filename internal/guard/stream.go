package guard

import (
	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/unit"
)

type phase uint8

const (
	done phase = iota
	live
	waiting
	closing
	rejected
)

// Stream is one request and its response. The zero value is ready for Open, and after Close it may
// be used again.
type Stream struct {
	budget.Stream
	guard      *Guard
	host       Host
	waiter     fairness.Waiter[Stream]
	connection *Connection // known only if it was asked for: it waited, was rejected or was the one to verify
	counted    *Connection // the one that counts it as live; nil = none, or there is no network filter
	key        *key        // the other, if not keyed
	length     int64
	wants      int64 // what the request brings, announced or forecast, at most its cap
	expects    int64 // what its response will, as far as that is to be reserved at its headers: see foresee
	pauseCost  int64
	window     int64 // of its HTTP/2 connection's window, while it waits
	phase      phase
	cold       int64 // what its response may hold, where that of its key's is not known and may be large; else 0
	ahead      int64 // and how much of a response may be there before its headers are answered
	probing    int64 // of what is cold, what is not reserved: see Worker.mayProbe
	unknown    int64 // of what is cold, what is in its key's sum
	admitted   Time
	exempt     exemption
	untold     bool // nothing will be told of its response
	shadow     bool // mode observe: it waits, or was turned away, in the books alone
	answers    bool // the headers of a shadow's response have come
	announced  int64
	http2      bool
	asked      bool // http2 is known
	keyed      bool // key is known
	marked     bool // mode observe: it would have been evicted
	inFloor    bool // large, but let into the floor: it stays in the small sum
	traced
}

// Host is whom the stream asks.
func (s *Stream) Host() Host { return s.host }

// Waiting says whether the stream is in line, and not as a shadow.
func (s *Stream) Waiting() bool { return s.phase == waiting && !s.shadow }

// total is what the request is expected to come to, with its response.
func (s *Stream) total() int64 { return s.wants + s.expects }

func (s *Stream) isHTTP2() bool {
	if !s.asked {
		s.http2, s.asked = s.host.HTTP2(), true
	}
	return s.http2
}

func (s *Stream) conn() *Connection {
	if s.connection == nil {
		s.connection = s.host.Connection()
		s.guard.worker.compare(s.connection, s.host.Arrived())
	}
	return s.connection
}

// seen says whether the network filter sees what comes while the request is paused.
func (s *Stream) seen() bool { return s.connection != nil && s.connection.Context != 0 }

// credit is what a paused request's pause cost has become: bytes that were seen to come, and are
// counted. On HTTP/2 it can't be told of which request they are.
func (s *Stream) credit() int64 {
	if !s.seen() || s.http2 {
		return 0
	}
	return min(s.connection.arrived, s.pauseCost, s.wants)
}

func (w *Worker) leaveLine(s *Stream) {
	w.line.Leave(&s.waiter)
	w.held -= s.pauseCost
	if c := s.connection; c != nil {
		c.Waiting--
		c.window -= s.window
		if s.http2 {
			c.costs -= s.pauseCost
		}
		if c.paused == s {
			c.paused = nil
		}
	}
	s.phase = live
	w.publish()
}

// End notes that a message has ended, with its body or with its trailers.
func (g *Guard) End(now Time, s *Stream, d budget.Direction) {
	if s.phase == done || d == budget.Response && s.Ends() || s.Ended(d) {
		return
	}
	if s.phase == live && s.Lengthless(d) {
		g.worker.learn(now, s.key, d, s.Held(d))
	}
	g.worker.account.End(now, &s.Stream, d)
}

// Close ends the stream, however it came to that. It returns what a waiting one had waited, else 0.
func (g *Guard) Close(now Time, s *Stream) (waited unit.Duration) {
	w, a := g.worker, g.worker.account
	switch s.phase {
	case done:
		return 0
	case waiting:
		if !s.shadow {
			waited = unit.Duration(now - s.waiter.Since)
		}
		w.leaveLine(s)
		a.Drop(&s.Stream)
	case closing:
		a.Drop(&s.Stream)
		for i, c := range w.closing {
			if c == s {
				w.closing = append(w.closing[:i], w.closing[i+1:]...)
				break
			}
		}
	case rejected:
		switch c := s.connection; {
		case s.pauseCost == 0, s.shadow:
		case s.isHTTP2():
			a.Drop(&s.Stream)
		case c != nil && c.Context != 0 && !c.IsClosed:
			a.Linger(&s.Stream, &c.Connection)
		}
	case live:
		if n := s.Held(budget.Response); n > int64(w.budget.Small) {
			if c := s.host.Arrived(); c != nil && !c.IsClosed {
				g.keyOf(now, s)
				w.leave(now, c, n, s.key)
				w.traceLeave(s, c)
			}
		}
	}
	if c := s.connection; c != nil && c.paused == s {
		c.paused = nil
	}
	if w.credited == s {
		w.credited = nil
	}
	if w.alone == s {
		w.alone = nil
		w.letIn = now
	}
	if s.inFloor {
		w.letIn = now
	}
	w.unbusy(now, s)
	w.answered(s)
	s.phase = done
	a.Close(now, &s.Stream)
	s.key.Refs--
	return waited
}
