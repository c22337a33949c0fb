package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// exempting is a process without room whose paths below /healthz are exempt, and where nobody
// waits.
func exempting(t *testing.T, edit func(*Config)) *process {
	t.Helper()
	p := newProcess(t, 1, func(c *Config) {
		c.Throttle.Timeout = 0
		c.Exempt = []Exempt{{PathPrefix: "/healthz"}, {Route: "r"}, {Cluster: "c"}, {GRPCService: "pkg.Service"}}
		if edit != nil {
			edit(c)
		}
	})
	p.settle(40 * mib)
	p.settle(230 * mib)
	return p
}

// How far a request is exempt, as exemptBy sees it.
const (
	judgedAtOnce   = "it is judged"
	exemptIfSmall  = "it is exempt while it is small"
	exemptAnywhere = "it is exempt"
)

// exemptBy opens a request where not even a small one that brings something has room, and tells by
// the verdicts on it and on a large response how far it is exempt.
func (p *process) exemptBy(r *request, length int64) string {
	p.t.Helper()
	g := p.guards[0]
	defer g.Close(p.now, &r.Stream)
	if v := g.Open(p.now, &r.Stream, r, length); v.Action != verdict.Admit {
		require.Equal(p.t, verdict.Answer, v.Action)
		return judgedAtOnce
	}
	if v := g.Expect(p.now, &r.Stream, 65*kib); v.Action != verdict.Admit {
		require.Equal(p.t, verdict.ResponseSize, v.Reason)
		return exemptIfSmall
	}
	return exemptAnywhere
}

// fillFloor lets small requests in until nothing that brings something has room.
func (p *process) fillFloor() (small []*request) {
	for {
		r := &request{connected: &Connection{}}
		if p.guards[0].Open(p.now, &r.Stream, r, 16*kib).Action != verdict.Admit {
			return small
		}
		small = append(small, r)
	}
}

// A path exempts what is small, the operator's own routing whatever it is.
func TestExemptAtTheHeaders(t *testing.T) {
	p := exempting(t, func(c *Config) { c.Fairness.By = config.ByNone }) // no key has room of its own
	small := 64 * kib
	filling := p.fillFloor()
	require.NotEmpty(t, filling)
	for _, c := range []struct {
		request
		length int64
		want   string
	}{
		{request{path: "/healthz?x"}, kib, exemptIfSmall},
		{request{path: "/healthz"}, small, exemptIfSmall},
		{request{path: "/healthz"}, budget.Unknown, exemptIfSmall},
		{request{path: "/pkg.Service/Method"}, budget.Unknown, exemptIfSmall},
		{request{path: "/healthz"}, small + 1, judgedAtOnce},
		{request{path: "/pkg.Service/Method"}, 4 * mib, judgedAtOnce},
		{request{path: "/healthz", hides: [2]bool{budget.Request: true}}, budget.Unknown, judgedAtOnce}, // nobody will tell what it brings
		{request{path: "/healthz", hides: [2]bool{budget.Request: true}}, small, exemptIfSmall},
		{request{path: "/healthz/../upload"}, kib, judgedAtOnce},
		{request{path: "/health"}, 4 * mib, judgedAtOnce},
		{request{route: "r"}, 4 * mib, exemptAnywhere},
		{request{cluster: "c"}, budget.Unknown, exemptAnywhere},
		{request{cluster: "c", path: "/healthz"}, 4 * mib, exemptAnywhere},
		{request{route: "q"}, 4 * mib, judgedAtOnce},
	} {
		require.Equal(t, c.want, p.exemptBy(&c.request, c.length), "%d bytes of %q%q%q", c.length, c.path, c.route, c.cluster)
	}
	for _, r := range filling {
		p.guards[0].Close(p.now, &r.Stream)
	}
	require.Zero(t, p.workers[0].Account().Own().Coming)
}

// Uploads without a length are forecast, on a route whose are large too: who is exempt is not taken
// for one of those.
func TestExemptRequestsReserveNoMoreThanSmall(t *testing.T) {
	p := exempting(t, func(c *Config) { c.Fairness.By = config.ByNone })
	g := p.guards[0]
	p.settle(40 * mib)
	for range 20 {
		p.bring("", budget.Request, 4*mib)
		p.bring("", budget.Response, 128*kib)
		p.settle(40 * mib)
	}
	p.settle(230 * mib)
	r := &request{path: "/healthz"}
	require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, budget.Unknown).Action)
	require.Equal(t, 64*kib, r.Reserved(budget.Request))
	require.Equal(t, 64*kib, r.Reserved(budget.Response))
	require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
	require.Equal(t, 64*kib, r.Reserved(budget.Response))
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, 64*kib).Action, "a forecast is no reason to judge it")
}

// What grows beyond small is judged then, also within what was reserved for it.
func TestExemptRequestThatGrows(t *testing.T) {
	for _, c := range []struct {
		name   string
		chunk  int64
		exempt Exempt
		want   verdict.Action
	}{
		{"in one piece", 65 * kib, Exempt{PathPrefix: "/healthz"}, verdict.Answer},
		{"by and by", 5 * kib, Exempt{PathPrefix: "/healthz"}, verdict.Answer},
		{"of a route", 65 * kib, Exempt{Route: "r"}, verdict.Admit},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := exempting(t, func(cfg *Config) { cfg.Exempt, cfg.Fairness.By = []Exempt{c.exempt}, config.ByNone })
			g := p.guards[0]
			p.settle(40 * mib)
			for range 20 { // what has no length is forecast as 16 KiB: it passes that long before it is large
				p.bring("", budget.Request, kib)
			}
			p.settle(230 * mib)
			r := &request{path: "/healthz/x", route: "r"}
			require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, budget.Unknown).Action)
			for r.Seen(budget.Request)+c.chunk <= 64*kib {
				require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Request, c.chunk).Action)
			}
			v := g.Grow(p.now, &r.Stream, budget.Request, c.chunk)
			require.Equal(t, c.want, v.Action)
			if c.want != verdict.Admit {
				require.Equal(t, verdict.Growth, v.Reason)
			}
			g.Close(p.now, &r.Stream)
		})
	}
}

// With room it goes on, and only its exemption has ended.
func TestExemptRequestThatGrowsWithRoom(t *testing.T) {
	p := exempting(t, nil)
	p.settle(60 * mib)
	g := p.guards[0]
	r := &request{path: "/healthz"}
	require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, budget.Unknown).Action)
	require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Request, mib).Action)
	require.False(t, r.Small())
	require.Contains(t, p.evicted(0, time.Second, 230*mib), &r.Stream, "it is exempt no more")
}

func TestExemptResponse(t *testing.T) {
	for _, c := range []struct {
		name   string
		length int64
		pass   int64
		route  string
		want   verdict.Action
		reason verdict.Reason
	}{
		{"small", 64 * kib, 64 * kib, "", verdict.Admit, verdict.None},
		{"large by its headers", 64*kib + 1, 0, "", verdict.Answer, verdict.ResponseSize},
		{"large when it has grown", budget.Unknown, 64*kib + 1, "", verdict.Reset, verdict.Growth},
		{"of a route", 16 * mib, 16 * mib, "r", verdict.Admit, verdict.None},
		{"of a route, without a length", budget.Unknown, 16 * mib, "r", verdict.Admit, verdict.None},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := exempting(t, nil)
			g := p.guards[0]
			r := &request{path: "/healthz", route: c.route}
			require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
			v := g.Expect(p.now, &r.Stream, c.length)
			for n := c.pass; v.Action == verdict.Admit && n > 0; n -= 16 * kib {
				v = g.Grow(p.now, &r.Stream, budget.Response, min(n, 16*kib))
			}
			require.Equal(t, c.want, v.Action)
			require.Equal(t, c.reason, v.Reason)
			g.Close(p.now, &r.Stream)
		})
	}
}

// A response of which nothing will be told is judged by the forecast, where that is large.
func TestExemptResponseThatIsHidden(t *testing.T) {
	p := exempting(t, bigBuffers)
	g := p.guards[0]
	open := func() *request {
		r := hidden()
		r.path = "/healthz"
		require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		return r
	}
	small := open()
	require.Equal(t, verdict.Admit, g.Expect(p.now, &small.Stream, budget.Unknown).Action)
	p.settle(40 * mib)
	for range 20 {
		p.bring("", budget.Response, mib)
		p.settle(40 * mib)
	}
	p.settle(190 * mib)
	large := open()
	require.Equal(t, verdict.Admit, g.Expect(p.now, &large.Stream, budget.Unknown).Action, "it had room at its request's headers")
	evicted := p.evicted(0, time.Second, 230*mib)
	require.Contains(t, evicted, &large.Stream)
	require.NotContains(t, evicted, &small.Stream, "it is forecast small")
}

// Presumed ones that turn out to be large are not broken for that, but they are exempt no more.
func TestExemptAndPresumed(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Exempt = []Exempt{{PathPrefix: "/healthz"}} })
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	open := func(length, passed int64) *request {
		r := &request{path: "/healthz", route: "download", connected: p.connection(0)}
		require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, length).Action)
		require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, passed).Action)
		return r
	}
	open(10, 10)
	announced, brought, small := open(16*mib, kib), open(budget.Unknown, mib), open(10*kib, kib)
	for _, r := range []*request{announced, brought, small} {
		require.True(t, r.Presumed())
	}
	p.read(230 * mib)
	require.Empty(t, w.Tick(p.now).Rejected)
	for _, r := range []*request{announced, brought, small} {
		require.False(t, r.Presumed())
		require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, kib).Action, "none of them is broken for having been presumed")
	}
	evicted := p.evicted(0, time.Second, 230*mib)
	require.Contains(t, evicted, &announced.Stream)
	require.Contains(t, evicted, &brought.Stream)
	require.NotContains(t, evicted, &small.Stream)
}

// Eviction takes what is exempt no more, and leaves what still is, or is by the operator's routing.
func TestExemptAndEvicted(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) {
		c.Exempt = []Exempt{{PathPrefix: "/healthz"}, {Route: "r"}}
		c.Fairness.By = config.ByNone
		c.Costs.Stream = 0
	})
	p.settle(40 * mib)
	g := p.guards[0]
	open := func(path, route string, length int64) *request {
		r := &request{path: path, route: route, connected: p.connection(0)}
		p.now += 25 * ms
		p.workers[0].Tick(p.now) // so that it is judged
		require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, length).Action)
		require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, min(length, 128*kib)).Action)
		return r
	}
	large, small, routed := open("/healthz", "", 16*mib), open("/healthz", "", 64*kib), open("/x", "r", 16*mib)
	evicted := p.evicted(0, 500*ms, 230*mib)
	require.Contains(t, evicted, &large.Stream)
	require.NotContains(t, evicted, &small.Stream, "it is exempt yet")
	require.NotContains(t, evicted, &routed.Stream, "it is exempt whatever it is")
}

func TestExemptCostsNoCallThatIsNotNeeded(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) {
		c.Exempt = []Exempt{{PathPrefix: "/a"}, {PathPrefix: "/b"}, {GRPCService: "c"}, {Route: "r"}, {Route: "s"}}
		c.Budget.Small = 16 * unit.KiB
		c.Fairness.By = config.ByNone
	})
	p.settle(40 * mib)
	for _, c := range []struct {
		length int64
		calls  int
	}{{0, 2}, {16 * kib, 2}, {17 * kib, 1}} {
		r := &request{path: "/c"}
		p.guards[0].Open(p.now, &r.Stream, r, c.length)
		require.Equal(t, c.calls, r.hostCalls, "the route, and the path where it may be small: %d", c.length)
		p.guards[0].Close(p.now, &r.Stream)
	}
}
