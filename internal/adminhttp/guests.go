package adminhttp

import (
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/highwater-envoy/highwater/internal/quiet"
)

// guests are the connections. When there are as many as may be, a new one takes the place of
// another: a server that would let it wait instead could be closed to everybody by who holds
// connections and asks nothing.
//
// The one that goes is the oldest that has not had a request yet, or else the one that was last
// seen to begin or end one the longest ago. So a flood of connections evicts itself, a peer that
// does not read goes before one that asks again and again, and a filter, which asks many times a
// second, keeps its connection. One that has just come has a while to say what it wants: until then
// the next is not accepted.
type guests struct {
	most int
	log  *quiet.Log

	mu struct {
		sync.Mutex
		m map[net.Conn]*guest
	}
}

type guest struct {
	asked bool // it has had a request
	seen  time.Time
}

// stay is how long a connection has for its first request, however many come. With maxConnections
// of them, 5,000 can come in a second.
const stay = 100 * time.Millisecond

func newGuests(most int, log *quiet.Log) *guests {
	g := &guests{most: most, log: log}
	g.mu.m = map[net.Conn]*guest{}
	return g
}

// moved is http.Server's ConnState. The server accepts the next connection when it has returned for
// a new one.
func (g *guests) moved(c net.Conn, state http.ConnState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch known := g.mu.m[c]; {
	case state == http.StateNew:
		for len(g.mu.m) >= g.most {
			if early := g.evict(time.Now()); early > 0 {
				g.mu.Unlock()
				time.Sleep(early)
				g.mu.Lock()
			}
		}
		g.mu.m[c] = &guest{seen: time.Now()}
	case state == http.StateClosed || state == http.StateHijacked:
		delete(g.mu.m, c)
	case known != nil: // else it was evicted a moment ago
		known.asked, known.seen = true, time.Now()
	}
}

// evict closes one, or says how much too early it is for that. g.mu is held.
func (g *guests) evict(now time.Time) (early time.Duration) {
	var victim net.Conn
	var least *guest
	for c, v := range g.mu.m {
		if least == nil || !v.asked && least.asked || v.asked == least.asked && v.seen.Before(least.seen) {
			victim, least = c, v
		}
	}
	if early = stay - now.Sub(least.seen); early > 0 && !least.asked {
		return early
	}
	delete(g.mu.m, victim)
	if c, ok := victim.(conn); ok {
		c.forget()
	}
	_ = victim.Close()
	g.log.Warn("too many HTTP connections: the one that has asked nothing for the longest is closed", "connections", g.most, "from", victim.RemoteAddr())
	return 0
}
