package replay

import (
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/recording"
	"github.com/highwater-envoy/highwater/internal/sim"
)

// Back is when a client that was rejected, or whose connection was closed, comes again.
type Back struct {
	Told  bool          // when Retry-After says, if it was told
	After time.Duration // else after so long; 0 = never
}

const (
	// patience is for how long a client of a recording comes again.
	patience = time.Minute
	// untold is when one that does as it is told comes again if it was told nothing.
	untold = time.Second
)

// player hands a recording to the model, one client after the other. It implements sim.Source.
type player struct {
	*tally
	recording *recording.Recording
	shape     *shaper
	by        string
	back      Back
	headers   []string // in the order of the recording's

	cursor *recording.Cursor
	groups []sim.Client // of a described load
	links  map[uint64]*link
	who    map[identity]*sim.Who
	err    error
	stop   func() bool
	given  int64
	made   int64 // of those
	asked  int
	enough bool
}

// begun is how many requests of the recording have been made.
func (p *player) begun() int64 { return p.made }

// identity is whose a request is, by the indices of a recording.
type identity struct {
	route, cluster, host, source, path uint32
	headers                            [4]uint32
}

// link is a connection of the recording, as far as requests on it follow each other.
type link struct {
	id   int
	used time.Duration // the last request on it ended, at the latest
	ends []end         // of requests that have had no next yet
}

// end is when a request ended, and in which chain.
type end struct {
	at    time.Duration
	chain *sim.Chain
}

const (
	mostLinks = 100_000 // connections that are known at once
	mostEnds  = 256     // of a connection
	mostWho   = 1 << 16
)

func newPlayer(r *recording.Recording, shape *shaper, o *Options, by string, t *tally) (*player, error) {
	p := &player{
		tally: t, recording: r, shape: shape, by: by, back: o.Back, headers: o.Headers,
		links: map[uint64]*link{}, who: map[identity]*sim.Who{}, stop: func() bool { return false },
	}
	if r.Groups != nil {
		p.groups = p.described()
		return p, nil
	}
	var err error
	p.cursor, err = r.Open()
	return p, err
}

// Next implements sim.Source.
func (p *player) Next() *sim.Client {
	if p.cursor == nil {
		if len(p.groups) == 0 {
			return nil
		}
		c := &p.groups[0]
		p.groups = p.groups[1:]
		return c
	}
	q, err := p.cursor.Next()
	if err != nil {
		if err != io.EOF {
			p.err, p.enough = err, true
		}
		return nil
	}
	p.given++
	c := &sim.Client{Start: q.Start, Calls: 1, Worker: -1, Who: p.whose(q)}
	c.Class = p.key(c.Who)
	call := p.shape.call(q)
	c.MakeCall = func(*rand.Rand) sim.Call { p.made++; return call }
	p.comeBack(c)
	if !c.KeepCalls {
		c.Stop = q.Start + patience
	}
	p.connect(c, q)
	return c
}

func (p *player) comeBack(c *sim.Client) {
	c.Retry, c.Obey = p.back.After, p.back.Told
	switch {
	case p.back.Told:
		c.Retry = max(p.back.After, untold)
	case p.back.After == 0:
		c.KeepCalls = true
	}
}

// Enough implements sim.Source.
func (p *player) Enough() bool {
	if p.asked++; p.asked%1024 == 0 && p.stop() {
		p.enough = true
	}
	return p.enough
}

// connect gives a client the connection that it had, and its place behind the request before it.
func (p *player) connect(c *sim.Client, q *recording.Request) {
	http2 := q.Flags&recording.HTTP2 != 0
	if q.Connection == 0 {
		if c.Fresh = !http2; http2 {
			c.HTTP2 = int(p.given) // one of its own too
		}
		return
	}
	l := p.links[q.Connection]
	if l == nil {
		p.prune(q.Start)
		l = &link{id: int(p.given)}
		p.links[q.Connection] = l
	}
	if http2 {
		c.HTTP2 = l.id
	} else {
		c.Conn = l.id
	}
	c.Chain = l.follow(c, q, http2)
	l.used = max(l.used, q.Start+q.Duration)
}

// follow finds the request that this one comes after.
func (l *link) follow(c *sim.Client, q *recording.Request, http2 bool) *sim.Chain {
	best := -1
	for i, e := range l.ends {
		if http2 && (e.at > q.Start+time.Millisecond || q.Start-e.at > followsWithin) {
			continue
		}
		if best < 0 || e.at > l.ends[best].at {
			best = i
		}
	}
	chain := &sim.Chain{}
	if best >= 0 {
		chain = l.ends[best].chain
		c.Gap = max(q.Start-l.ends[best].at, 0)
		l.ends = slices.Delete(l.ends, best, best+1)
	}
	l.ends = append(l.ends, end{q.Start + q.Duration, chain})
	if len(l.ends) > mostEnds {
		l.ends = slices.Delete(l.ends, 0, 1)
	}
	return chain
}

// prune forgets connections that have not been used for a minute, where there are many.
func (p *player) prune(now time.Duration) {
	if len(p.links) < mostLinks {
		return
	}
	for id, l := range p.links {
		if now-l.used > time.Minute {
			delete(p.links, id)
		}
	}
	if len(p.links) >= mostLinks {
		clear(p.links) // their next requests are on connections of their own
	}
}

func (p *player) whose(q *recording.Request) *sim.Who {
	id := identity{q.Route, q.Cluster, q.VirtualHost, q.Source, q.Path, q.Headers}
	if w := p.who[id]; w != nil {
		return w
	}
	if len(p.who) >= mostWho {
		clear(p.who)
	}
	r := p.recording
	values := make([]string, len(p.headers))
	for i := range values {
		values[i] = r.NameOf(q.Headers[i])
	}
	w := &sim.Who{
		Route: r.NameOf(q.Route), Cluster: r.NameOf(q.Cluster), VirtualHost: r.NameOf(q.VirtualHost), Source: r.NameOf(q.Source),
		Path: r.NameOf(q.Path), Names: p.headers,
	}
	w.Header = func(name string) string {
		if i := slices.Index(p.headers, name); i >= 0 {
			return values[i]
		}
		return ""
	}
	p.who[id] = w
	return w
}

// key is by what requests are told apart.
func (p *player) key(w *sim.Who) (key string) {
	switch p.by {
	case config.ByNone:
		return "all"
	case config.ByRoute:
		key = w.Route
	case config.ByCluster:
		key = w.Cluster
	case config.ByVirtualHost:
		key = w.VirtualHost
	case config.BySource:
		key = w.Source
	default:
		key = w.Header(strings.TrimPrefix(p.by, config.ByHeader))
	}
	if key == "" {
		return "(none)"
	}
	return key
}

// described are the clients of a described load, in the order of their beginnings.
func (p *player) described() (all []sim.Client) {
	connections := 0
	for i := range p.recording.Groups {
		g := &p.recording.Groups[i]
		headers := map[string]string{}
		for name, value := range g.Headers {
			headers[strings.ToLower(name)] = value
		}
		who := &sim.Who{Route: g.Route, Cluster: g.Cluster, VirtualHost: g.VirtualHost, Source: g.Source, Path: g.Path, Names: p.headers}
		who.Header = func(name string) string { return headers[name] }
		call := sim.Call{
			Body: int64(g.Upload), Announce: int64(g.Upload), SendRate: int64(g.SendRate), TakeRate: int64(g.TakeRate),
			Wait: time.Duration(g.Wait), Think: time.Duration(g.Think), Response: int64(g.Response), Chunked: g.Streamed,
			GiveRate: int64(g.GiveRate), ReadRate: int64(g.ReadRate), HangUp: time.Duration(g.HangUp),
		}
		if g.Chunked && g.Upload > 0 {
			call.Announce = sim.Unknown
		}
		c := sim.Client{
			Start: time.Duration(g.Start), Stop: time.Duration(g.Stop), Calls: g.Calls, Every: time.Duration(g.Every), Worker: -1, Who: who,
			MakeCall: func(*rand.Rand) sim.Call { return call },
		}
		c.Class = p.key(who)
		p.comeBack(&c)
		if c.KeepCalls && c.Every == 0 {
			c.Every = time.Millisecond // who never comes back makes his next call, but no more than one in a step
		}
		clients := sim.Repeat(g.Clients, time.Duration(g.Apart), c)
		per := g.PerConnection
		if per == 0 {
			per = g.Clients
		}
		for j := range clients {
			if !g.HTTP2 {
				continue
			}
			if j%per == 0 {
				connections++
			}
			clients[j].HTTP2 = connections
		}
		all = append(all, clients...)
	}
	slices.SortStableFunc(all, func(a, b sim.Client) int { return int(a.Start - b.Start) })
	return all
}
