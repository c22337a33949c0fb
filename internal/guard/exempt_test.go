package guard

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestPathsThatAreExempt(t *testing.T) {
	for _, c := range []struct {
		prefix   string
		yes, not []string
	}{
		{"/healthz", []string{
			"/healthz", "/healthz/", "/healthz/x", "/healthz?q", "/healthz?", "/healthz?/../upload", "/healthz#f", "/healthz#/../upload",
			"/healthz//x", "/healthz/a%20b", "/healthz/%41", "/healthz/.well-known", "/healthz/..x", "/healthz/x..", "/healthz/a.b/c..d",
			"/healthz/x;v=1", "/healthz/x%2e%2E?a=%2f", "/healthz/%2e%2ex", "/healthz/.~",
		}, []string{
			"", "/", "*", "healthz", "/health", "/healthzzz", "/healthz;x", "/healthz%2f", "/Healthz", "//healthz", "/x/healthz",
			"http://host/healthz", "/healthz.", "/%68ealthz",
			// Dot segments, in all ways that somebody reads.
			"/healthz/..", "/healthz/.", "/healthz/../upload", "/healthz/./x", "/healthz/x/../../upload", "/healthz/..?q", "/healthz/..#f",
			"/healthz/%2e%2e/upload", "/healthz/%2E./upload", "/healthz/.%2e/upload", "/healthz/%2e", "/healthz/..;/upload",
			"/healthz/..;x=y/upload", "/healthz/%2e%2e;/upload", "/healthz/..%3b/upload", "/healthz/..%20/upload", "/healthz/..../upload",
			"/healthz/..:x/upload",
			// What is a slash to some.
			"/healthz%2f..%2fupload", "/healthz/..%2fupload", "/healthz/x%2Fy", "/healthz/..%5cupload", "/healthz/x%5Cy", `/healthz/..\upload`,
			`/healthz\..\upload`, `/healthz/x\y`,
			// What is decoded twice, and what can't be decoded at all.
			"/healthz/%252e%252e/upload", "/healthz/..%252fupload", "/healthz/%25", "/healthz/%", "/healthz/%2", "/healthz/%2?", "/healthz/%zz",
			"/healthz/%u002e", "/healthz/%2/x",
			// What ends or changes a text elsewhere.
			"/healthz/\x00", "/healthz/%00", "/healthz/..%00/upload", "/healthz/\t", "/healthz/%0a", "/healthz/ x", "/healthz/\x7f", "/healthz/%7F",
			"/healthz/%c0%ae%c0%ae/upload", "/healthz/\xc0\xae\xc0\xae/upload", "/healthz/%c0%afupload", "/healthz/é", "/healthz/%ef%bc%8f",
		}},
		{"/static/", []string{"/static/", "/static/x", "/static/?q", "/static//"}, []string{"/static", "/static?", "/statics/x", "/static/../x", "/static/."}},
		{"/", []string{"/", "/x", "/?q", "//x"}, []string{"", "*", "?", "/..", "/x/..", "x"}},
		{"/a%20b", []string{"/a%20b", "/a%20b/c"}, []string{"/a%20bc", "/a b"}},
		{"/pkg.Service/", []string{"/pkg.Service/Method"}, []string{"/pkg.Service", "/pkg.ServiceX/Method", "/pkg.Service/../x", "/pkg.Service%2fMethod"}},
	} {
		for _, p := range c.yes {
			require.True(t, anyPrefix([]string{"/nothing", c.prefix}, p), "%s: %q", c.prefix, p)
		}
		for _, p := range c.not {
			require.False(t, anyPrefix([]string{"/nothing", c.prefix}, p), "%s: %q", c.prefix, p)
		}
	}
	x := exemptionsOf([]Exempt{{PathPrefix: "/healthz"}, {GRPCService: "pkg.Service"}})
	require.Zero(t, testing.AllocsPerRun(100, func() {
		anyPrefix(x.paths, "/healthz/a%20b?c")
		anyPrefix(x.paths, "/pkg.Service/%2e%2e/Method")
	}))
}

// readings are all that those behind Envoy may make of a path.
func readings(p string) []string {
	end := strings.IndexAny(p, "?#")
	if end < 0 {
		end = len(p)
	}
	all := map[string]bool{p[:end]: true}
	for range 3 {
		for r := range all {
			if once, err := url.PathUnescape(r); err == nil {
				all[once] = true
			}
			all[strings.ReplaceAll(r, `\`, "/")] = true
			segments := strings.Split(r, "/")
			for i := range segments {
				segments[i], _, _ = strings.Cut(segments[i], ";")
			}
			all[strings.Join(segments, "/")] = true
			if before, _, found := strings.Cut(r, "\x00"); found {
				all[before] = true
			}
		}
	}
	var list []string
	for r := range all {
		list = append(list, r)
	}
	return list
}

// However the upstream reads a path that is exempt, it is below the prefix.
func FuzzExemptPath(f *testing.F) {
	for _, p := range []string{
		"/healthz", "/healthz/x?y", "/healthz/../upload", "/healthz/%2e%2e/upload", "/healthz/..;/upload", "/healthz/%252e%252e/upload",
		`/healthz/..\upload`, "/healthz%2f..%2fupload", "/healthz/.%00./x", "/healthz/...//x;../y", "/healthz/%c0%ae/x",
	} {
		f.Add(p, "/healthz")
	}
	f.Add("/a%20b/c", "/a%20b/")
	f.Fuzz(func(t *testing.T, p, prefix string) {
		rule := Exempt{PathPrefix: prefix}
		valid := true
		rule.validate("exempt[0]", func(ok bool, _ string, _ ...any) { valid = valid && ok })
		if prefix == "" || !valid {
			return
		}
		if !anyPrefix([]string{prefix}, prefix) {
			t.Fatalf("a valid prefix %q does not match itself", prefix)
		}
		if !anyPrefix([]string{prefix}, p) {
			return
		}
		want := map[string]bool{} // the prefix may be read in as many ways
		for _, r := range readings(prefix) {
			want[path.Clean(r)] = true
		}
		for _, r := range readings(p) {
			if clean := path.Clean(r); !below(clean, want) {
				t.Fatalf("%q is exempt by %q, and may be read as %q", p, prefix, clean)
			}
		}
	})
}

func below(p string, prefixes map[string]bool) bool {
	for prefix := range prefixes {
		if prefix == "/" || p == prefix || strings.HasPrefix(p, prefix+"/") {
			return true
		}
	}
	return false
}

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

// A path exempts what is small, the operator's own routing whatever it is.
func TestExemptAtTheHeaders(t *testing.T) {
	p := exempting(t, nil)
	g, small := p.guards[0], 64*kib
	for _, c := range []struct {
		request
		length int64
		want   exemption
	}{
		{request{path: "/healthz?x"}, 0, whileSmall},
		{request{path: "/healthz"}, small, whileSmall},
		{request{path: "/healthz"}, budget.Unknown, whileSmall},
		{request{path: "/pkg.Service/Method"}, budget.Unknown, whileSmall},
		{request{path: "/healthz"}, small + 1, judged},
		{request{path: "/pkg.Service/Method"}, 4 * mib, judged},
		{request{path: "/healthz", hides: [2]bool{true, true}}, budget.Unknown, judged}, // nobody will tell what it brings
		{request{path: "/healthz", hides: [2]bool{true, true}}, small, whileSmall},
		{request{path: "/healthz/../upload"}, 0, judged},
		{request{path: "/health"}, 4 * mib, judged},
		{request{route: "r"}, 4 * mib, always},
		{request{cluster: "c"}, budget.Unknown, always},
		{request{cluster: "c", path: "/healthz"}, 4 * mib, always},
		{request{route: "q"}, 4 * mib, judged},
	} {
		v := g.Open(p.now, &c.Stream, &c.request, c.length)
		require.Equal(t, c.want, c.exempt, "%+v", c.request)
		if c.want != judged {
			require.Equal(t, Admit, v.Action)
		} else if c.length > small {
			require.Equal(t, Answer, v.Action)
		}
		g.Close(p.now, &c.Stream)
	}
	require.Zero(t, p.workers[0].account.Own().Coming)
}

// Uploads without a length are forecast, on a route whose are large too: who is exempt is not taken
// for one of those.
func TestExemptRequestsReserveNoMoreThanSmall(t *testing.T) {
	p := exempting(t, func(c *Config) { c.Fairness.By = byNone })
	g, w := p.guards[0], p.workers[0]
	k := &w.keys.Other.Value
	for range 20 {
		k.forecasts[budget.Request].Learn(4 * mib)
		k.forecasts[budget.Response].Learn(128 * kib)
	}
	r := &request{path: "/healthz"}
	require.Equal(t, Admit, g.Open(p.now, &r.Stream, r, budget.Unknown).Action)
	require.Equal(t, 64*kib, w.account.Own().Coming)
	require.Equal(t, Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
	require.Equal(t, 64*kib, r.Reserved(budget.Response))
	require.Equal(t, whileSmall, r.exempt, "a forecast is no reason to judge it")
}

// What grows beyond small is judged then, also within what was reserved for it.
func TestExemptRequestThatGrows(t *testing.T) {
	for _, c := range []struct {
		name   string
		chunk  int64
		exempt Exempt
		want   Action
	}{
		{"in one piece", 65 * kib, Exempt{PathPrefix: "/healthz"}, Answer},
		{"by and by", 5 * kib, Exempt{PathPrefix: "/healthz"}, Answer},
		{"of a route", 65 * kib, Exempt{Route: "r"}, Admit},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := exempting(t, func(cfg *Config) { cfg.Exempt, cfg.Fairness.By = []Exempt{c.exempt}, byNone })
			g, w := p.guards[0], p.workers[0]
			for range 20 { // what has no length is forecast as 16 KiB: it passes that long before it is large
				w.learn(p.now, &w.keys.Other, budget.Request, kib)
			}
			r := &request{path: "/healthz/x", route: "r"}
			require.Equal(t, Admit, g.Open(p.now, &r.Stream, r, budget.Unknown).Action)
			for r.Seen(budget.Request)+c.chunk <= 64*kib {
				require.Equal(t, Admit, g.Grow(p.now, &r.Stream, budget.Request, c.chunk).Action)
				require.NotEqual(t, judged, r.exempt)
			}
			v := g.Grow(p.now, &r.Stream, budget.Request, c.chunk)
			require.Equal(t, c.want, v.Action)
			if c.want != Admit {
				require.Equal(t, Growth, v.Reason)
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
	require.Equal(t, Admit, g.Open(p.now, &r.Stream, r, budget.Unknown).Action)
	require.Equal(t, Admit, g.Grow(p.now, &r.Stream, budget.Request, mib).Action)
	require.Equal(t, judged, r.exempt)
	require.False(t, r.Small())
}

func TestExemptResponse(t *testing.T) {
	for _, c := range []struct {
		name   string
		length int64
		pass   int64
		route  string
		want   Action
		reason Reason
	}{
		{"small", 64 * kib, 64 * kib, "", Admit, None},
		{"large by its headers", 64*kib + 1, 0, "", Answer, ResponseSize},
		{"large when it has grown", budget.Unknown, 64*kib + 1, "", Reset, Growth},
		{"of a route", 16 * mib, 16 * mib, "r", Admit, None},
		{"of a route, without a length", budget.Unknown, 16 * mib, "r", Admit, None},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := exempting(t, nil)
			g := p.guards[0]
			r := &request{path: "/healthz", route: c.route}
			require.Equal(t, Admit, g.Open(p.now, &r.Stream, r, 0).Action)
			v := g.Expect(p.now, &r.Stream, c.length)
			for n := c.pass; v.Action == Admit && n > 0; n -= 16 * kib {
				v = g.Grow(p.now, &r.Stream, budget.Response, min(n, 16*kib))
			}
			require.Equal(t, c.want, v.Action)
			require.Equal(t, c.reason, v.Reason)
			require.Equal(t, c.want == Admit, r.exempt != judged)
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
		require.Equal(t, Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		require.Equal(t, whileSmall, r.exempt)
		return r
	}
	r := open()
	require.Equal(t, Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
	require.Equal(t, whileSmall, r.exempt, "it is forecast small")
	for range 20 {
		r.key.Value.forecasts[budget.Response].Learn(mib)
	}
	r = open()
	g.Expect(p.now, &r.Stream, budget.Unknown)
	require.Equal(t, judged, r.exempt)
}

// Presumed ones that turn out to be large are not broken for that, but they are exempt no more.
func TestExemptAndPresumed(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Exempt = []Exempt{{PathPrefix: "/healthz"}} })
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	open := func(length, passed int64) *request {
		r := &request{path: "/healthz", route: "download", connected: p.connection(0)}
		require.Equal(t, Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		require.Equal(t, Admit, g.Expect(p.now, &r.Stream, length).Action)
		require.Equal(t, Admit, g.Grow(p.now, &r.Stream, budget.Response, passed).Action)
		return r
	}
	open(10, 10)
	announced, brought, small := open(16*mib, kib), open(budget.Unknown, mib), open(10*kib, kib)
	for _, r := range []*request{announced, brought, small} {
		require.True(t, r.Presumed())
		require.Equal(t, whileSmall, r.exempt)
	}
	p.read(230 * mib)
	w.Tick(p.now)
	require.Equal(t, judged, announced.exempt)
	require.Equal(t, judged, brought.exempt)
	require.Equal(t, whileSmall, small.exempt)
	for _, r := range []*request{announced, brought, small} {
		require.False(t, r.Presumed())
		require.Equal(t, live, r.state, "none of them is broken for having been presumed")
	}
}

// Eviction takes what is exempt no more, and leaves what still is, or is by the operator's routing.
func TestExemptAndEvicted(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) {
		c.Exempt = []Exempt{{PathPrefix: "/healthz"}, {Route: "r"}}
		c.Fairness.By = byNone
		c.Costs.Stream = 0
	})
	p.settle(40 * mib)
	g := p.guards[0]
	open := func(path, route string, length int64) *request {
		r := &request{path: path, route: route, connected: p.connection(0)}
		p.now += 25 * ms
		p.workers[0].Tick(p.now) // so that it is judged
		require.Equal(t, Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		require.Equal(t, Admit, g.Expect(p.now, &r.Stream, length).Action)
		require.Equal(t, Admit, g.Grow(p.now, &r.Stream, budget.Response, min(length, 128*kib)).Action)
		return r
	}
	large, small, routed := open("/healthz", "", 16*mib), open("/healthz", "", 64*kib), open("/x", "r", 16*mib)
	evicted := map[*Stream]bool{}
	for range 20 {
		p.now += 25 * ms
		a := p.workers[0].Tick(p.now)
		for _, d := range a.Rejected {
			require.Equal(t, Evicted, d.Verdict.Reason)
			evicted[d.Stream] = true
		}
		if a.Ask {
			p.workers[0].Observe(p.now, Reading{InUse: 230 * mib}, nil)
		}
	}
	require.Equal(t, map[*Stream]bool{&large.Stream: true}, evicted)
	require.Equal(t, whileSmall, small.exempt)
	require.Equal(t, always, routed.exempt)
}

func TestExemptCostsNoCallThatIsNotNeeded(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) {
		c.Exempt = []Exempt{{PathPrefix: "/a"}, {PathPrefix: "/b"}, {GRPCService: "c"}, {Route: "r"}, {Route: "s"}}
		c.Budget.Small = 16 * unit.KiB
		c.Fairness.By = byNone
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
