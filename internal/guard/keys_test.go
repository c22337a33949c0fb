package guard

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/forecast"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// from opens a request of a tenant on a worker of a process that tells requests apart by route.
func (p *process) from(worker int, route string, length int64) (*request, Verdict) {
	r := &request{connected: p.connection(worker), route: route}
	return r, p.guards[worker].Open(p.now, &r.Stream, r, length)
}

// noisy fills what one route may have: so many of its uploads are admitted and so many wait.
func (p *process) noisy(worker int) (admitted, waiting []*request) {
	for range 100 {
		switch r, v := p.from(worker, "noisy", 4*mib); v.Action {
		case verdict.Admit:
			admitted = append(admitted, r)
		case verdict.Wait:
			waiting = append(waiting, r)
		case verdict.Answer, verdict.Close, verdict.Reset:
		}
	}
	return admitted, waiting
}

// A route that floods waits; one that has had nothing passes all who wait, on any worker.
func TestWhoHasLessThanHisSharePasses(t *testing.T) {
	for _, by := range []string{config.ByRoute, config.ByNone} {
		t.Run(by, func(t *testing.T) {
			p := newProcess(t, 2, func(c *Config) { c.Fairness.By = by })
			p.settle(40 * mib)
			_, v := p.from(1, "quiet", mib) // one a while ago
			require.Equal(t, verdict.Admit, v.Action)
			p.now += 600 * ms
			p.settle(40 * mib)
			_, waiting := p.noisy(0)
			require.NotEmpty(t, waiting)
			for i := range 6 {
				p.read(160 * mib)
				_, v := p.from(i%2, "quiet", mib)
				require.Equal(t, by == config.ByRoute, v.Action == verdict.Admit, "the %d. on worker %d: %v", i, i%2, v)
			}
			_, v = p.from(1, "noisy", mib)
			require.NotEqual(t, verdict.Admit, v.Action, "it has its share, on whatever worker")
		})
	}
}

// Alone, a route has all up to hard, as if there were no keys.
func TestAKeyAloneHasAll(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	admitted, _ := p.noisy(0)
	require.InDelta(t, 35, len(admitted), 1)

	p = newProcess(t, 1, nil)
	p.settle(40 * mib)
	_, v := p.from(0, "quiet", mib)
	require.Equal(t, verdict.Admit, v.Action)
	p.now += 600 * ms
	p.settle(40 * mib)
	admitted, _ = p.noisy(0)
	require.InDelta(t, 31, len(admitted), 1, "T(soft) is 168 MiB: 128 for uploads of 4 MiB, less what they cost")

	p = newProcess(t, 1, nil)
	p.settle(40 * mib)
	r, v := p.from(0, "quiet", mib)
	require.Equal(t, verdict.Admit, v.Action)
	p.guards[0].Close(p.now, &r.Stream)
	p.now += 12 * time.Second
	p.settle(40 * mib)
	admitted, _ = p.noisy(0)
	require.InDelta(t, 35, len(admitted), 1, "the other has had none for so long that nothing is left to it")
}

// A crowd of small ones may have all of the floor; then the others still have a quarter of it.
func TestTheFloorIsShared(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	p.settle(199 * mib)
	p.settle(199 * mib)
	crowd := 0
	for i := range 1000 {
		if _, v := p.from(0, "crowd", 40*kib); v.Action == verdict.Admit {
			crowd++
		}
		if i%50 == 0 {
			p.read(199 * mib)
		}
	}
	require.InDelta(t, 10*mib/(40*kib), crowd, 26)
	for range 25 { // half of it, because the crowd wants the same
		_, v := p.from(0, "other", 40*kib)
		require.Equal(t, verdict.Admit, v.Action)
	}
}

// What a route's responses came to makes its next request a large one, at its request headers.
func TestARouteOfLargeResponsesIsLargeAtItsHeaders(t *testing.T) {
	p := newProcess(t, 1, nil)
	g, w := p.guards[0], p.workers[0]
	p.settle(40 * mib)
	download := func() *request {
		w.Tick(p.now) // of those between two ticks the first is judged
		r, v := p.from(0, "download", 0)
		require.Equal(t, verdict.Admit, v.Action)
		return r
	}
	first := download()
	require.Equal(t, 1, first.hostCalls, "its connection; nothing is large yet: whose it is does not matter")
	require.Zero(t, first.Reserved(budget.Response))
	require.Equal(t, verdict.Admit, g.Expect(p.now, &first.Stream, 16*mib).Action)
	require.Equal(t, 2, first.hostCalls)
	g.Close(p.now, &first.Stream)
	for range 4 { // one large response may be the exception
		require.Zero(t, first.Reserved(budget.Response))
		first = download()
		require.Equal(t, verdict.Admit, g.Expect(p.now, &first.Stream, 16*mib).Action)
		g.Close(p.now, &first.Stream)
	}
	first = download()
	require.Zero(t, first.Reserved(budget.Response), "there may be small ones too")
	g.Close(p.now, &first.Stream)
	p.now += forecast.HeavyFor
	p.settle(40 * mib)

	next := download()
	require.Equal(t, 128*kib, next.Reserved(budget.Response), "the cap of a response")
	w.Tick(p.now)
	small, v := p.from(0, "small", 0)
	require.Equal(t, verdict.Admit, v.Action)
	require.Zero(t, small.Reserved(budget.Response), "another route is small")
	exchanges := w.Account().Exchanges
	require.Equal(t, verdict.Admit, g.Expect(p.now, &next.Stream, 16*mib).Action)
	require.Equal(t, exchanges, w.Account().Exchanges, "it has what it was promised")
	require.Equal(t, 128*kib, next.Reserved(budget.Response))

	// Without room it waits, and costs nothing: no byte of it is on its way.
	p.settle(195 * mib)
	waits, v := p.from(0, "download", 0)
	require.Equal(t, verdict.Wait, v.Action)
	require.Zero(t, p.queue(0).Held)
	g.Close(p.now, &waits.Stream)

	// Its reservation lapses when the upstream takes its time, and it is judged again.
	p.settle(40 * mib)
	slow := download()
	for range 21 {
		p.now += 100 * ms
		p.read(40 * mib)
	}
	require.Zero(t, slow.Reserved(budget.Response))
	p.settle(195 * mib)
	require.Equal(t, verdict.ResponseSize, g.Expect(p.now, &slow.Stream, 16*mib).Reason)
}

func TestNamesOfKeys(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) {
		c.Fairness.By, c.Fairness.Weights = "header:X-Tenant", map[string]float64{"gold": 3}
	})
	require.Equal(t, "x-tenant", p.guards[0].KeyHeader())
	w := p.workers[0]
	for _, c := range []struct {
		tenant, name string
		weight       float64
	}{
		{"gold", "gold", 3},
		{"", "", 1},
		{"a,b", "a,b", 1},
		{"\xff\x00", "\xff\x00", 1},
		{strings.Repeat("x", 64<<10), strings.Repeat("x", fairness.MaxName), 1},
	} {
		r := &request{connected: p.connection(0), tenant: c.tenant}
		p.guards[0].Open(p.now, &r.Stream, r, mib)
		require.Equal(t, KeyUse{Name: c.name, Weight: c.weight, Coming: mib}, p.has(0, c.name))
		p.guards[0].Close(p.now, &r.Stream)
		require.Equal(t, KeyUse{Name: c.name, Weight: c.weight}, p.has(0, c.name))
	}
	requireNothingLeft(t, w)

	// A flood of names takes 64 places, and the rest is one key.
	p.now += 2 * time.Second // those that have nothing any more go
	for i := range 10_000 {
		r := &request{connected: p.connection(0), tenant: fmt.Sprint(i)}
		p.guards[0].Open(p.now, &r.Stream, r, kib)
	}
	require.Len(t, w.Keys(), fairness.MaxKeys+1)
	require.Equal(t, "gold", p.has(0, "gold").Name, "its place is kept")
	require.Empty(t, p.has(0, "a,b").Name)
	require.Greater(t, p.has(0, OtherKey).Coming, 9000*kib)
}

// Whoever likely holds most of the key most above its share goes first, once for an excess, and
// none that has no more than its share.
func TestEvict(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(40 * mib)
	var noisy, quiet []*request
	for i := range 20 {
		for _, route := range []string{"noisy", "quiet"} {
			r, v := p.from(i%2, route, 0)
			require.Equal(t, verdict.Admit, v.Action)
			g := p.guards[i%2]
			g.Expect(p.now, &r.Stream, 16*mib)
			if route == "noisy" {
				g.Grow(p.now, &r.Stream, budget.Response, int64(i+1)*3*kib+64*kib)
				noisy = append(noisy, r)
			} else if i < 4 {
				g.Grow(p.now, &r.Stream, budget.Response, 70*kib)
				quiet = append(quiet, r)
			} else {
				g.Close(p.now, &r.Stream)
			}
		}
	}
	evicted := map[*Stream]Verdict{}
	tick := func(d time.Duration, inUse int64) {
		p.now += d
		for i, w := range p.workers {
			a := w.Tick(p.now)
			for _, d := range a.Rejected {
				evicted[d.Stream] = d.Verdict
				p.guards[i].Close(p.now, d.Stream)
			}
			if a.Ask {
				w.Observe(p.now, memory.Reading{InUse: inUse, Allocated: inUse}, nil)
			}
		}
	}
	for p.workers[0].Account().Table().Level != budget.Over {
		tick(25*ms, 210*mib)
	}
	require.Empty(t, evicted, "one reading over the limit may be what is being freed already")
	for range 4 {
		tick(25*ms, 210*mib)
	}
	// 210 − T(hard) = 26 of 170 MiB that traffic holds: of 24 streams some 4, for the readings that
	// come while they leave show the same.
	require.InDelta(t, 4, len(evicted), 2)
	for s, v := range evicted {
		require.Equal(t, "noisy", s.Host().(*request).route)
		require.Equal(t, Verdict{Action: verdict.Reset, Reason: verdict.Evicted}, v)
	}
	for _, r := range noisy[len(noisy)-2:] {
		require.Contains(t, evicted, &r.Stream, "who holds most")
	}
	for _, r := range quiet {
		require.NotContains(t, evicted, &r.Stream)
	}
	require.Positive(t, p.workers[0].Account().Table().Sum().Evicted.Leaving)
	before := len(evicted)
	for range 40 {
		tick(25*ms, 180*mib)
	}
	require.Len(t, evicted, before)
	require.Zero(t, p.workers[0].Account().Table().Sum().Evicted.Leaving)
}

// In one tick a connection is closed only if nothing else was ended on it, and once.
func TestAConnectionIsCutAloneInItsTick(t *testing.T) {
	p := newProcess(t, 1, nobodyWaits)
	p.settle(40 * mib)
	g, w, c := p.guards[0], p.workers[0], p.connection(0)
	w.Tick(p.now) // so that it is judged
	held := &request{connected: c}
	require.Equal(t, verdict.Admit, g.Open(p.now, &held.Stream, held, 0).Action)
	require.Equal(t, verdict.Admit, g.Expect(p.now, &held.Stream, 16*mib).Action)
	require.Equal(t, verdict.Admit, g.Grow(p.now, &held.Stream, budget.Response, 16*mib).Action)
	reject := func() *Stream {
		r := &request{connected: c}
		require.Equal(t, verdict.Close, g.Open(p.now, &r.Stream, r, 16*mib).Action)
		return &r.Stream
	}
	for evicted := false; !evicted; {
		p.now += Tick
		if p.workers[0].Account().Table().Level < budget.Over {
			if w.Tick(p.now).Ask {
				w.Observe(p.now, memory.Reading{InUse: 230 * mib, Allocated: 230 * mib}, nil)
			}
			continue
		}
		first, second := reject(), reject()
		a := w.Tick(p.now)
		evicted = len(a.Rejected) > 0
		if evicted {
			require.Equal(t, &held.Stream, a.Rejected[0].Stream)
			require.Empty(t, a.Close, "something was ended on it")
			p.now += FastTick
			a = w.Tick(p.now)
		}
		require.Equal(t, []*Stream{first}, a.Close, "once")
		if a.Ask {
			w.Observe(p.now, memory.Reading{InUse: 230 * mib, Allocated: 230 * mib}, nil)
		}
		g.Close(p.now, first)
		g.Close(p.now, second)
	}
}

// What an ended response left unread is evicted with its connection, and whatever else is on that.
// So one that nobody shares goes first, though less is left on it.
func TestAConnectionThatIsSharedIsCutLast(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	w.Tick(p.now) // so that it is judged
	leave := func(n int64, http2 bool) *Connection {
		r := &request{connected: p.connection(0), http2: http2}
		require.Equal(t, verdict.Admit, g.Open(p.now, &r.Stream, r, 0).Action)
		require.Equal(t, verdict.Admit, g.Expect(p.now, &r.Stream, n).Action)
		require.Equal(t, verdict.Admit, g.Grow(p.now, &r.Stream, budget.Response, n).Action)
		g.End(p.now, &r.Stream, budget.Response)
		g.Close(p.now, &r.Stream)
		return r.connected
	}
	shared, own := leave(120*kib, true), leave(100*kib, false)
	another := &request{connected: shared, http2: true}
	require.Equal(t, verdict.Admit, g.Open(p.now, &another.Stream, another, 0).Action)
	for {
		p.now += Tick
		a := w.Tick(p.now)
		if len(a.Cut) > 0 {
			require.Equal(t, []*Connection{own}, a.Cut)
			return
		}
		if a.Ask {
			w.Observe(p.now, memory.Reading{InUse: 230 * mib, Allocated: 230 * mib}, nil)
		}
		require.Less(t, p.now, 2*time.Hour, "nothing is cut")
	}
}

// Made-up tenants, each with something in flight on each of three workers, don't make a named one
// one of them.
func TestNamedTenantsKeepTheirPlaces(t *testing.T) {
	p := newProcess(t, 3, func(c *Config) {
		c.Fairness.By = "header:x-tenant"
		c.Fairness.Weights = map[string]float64{"gold": 4, "silver": 2}
	})
	p.settle(40 * mib)
	open := func(worker int, tenant string, length int64) *request {
		r := &request{connected: p.connection(worker), tenant: tenant}
		p.guards[worker].Open(p.now, &r.Stream, r, length)
		return r
	}
	for i := range 200 {
		for worker := range 3 {
			open(worker, fmt.Sprint(worker, "made-up", i), 100*kib)
		}
		p.now += 25 * ms
		for _, w := range p.workers {
			w.Tick(p.now)
		}
	}
	r := open(1, "gold", kib)
	require.Equal(t, KeyUse{Name: "gold", Weight: 4, Coming: kib}, p.has(1, "gold"))
	for _, w := range p.workers {
		w.exchangeShares(p.now)
	}
	for i, w := range p.workers {
		w.exchangeShares(p.now)
		require.Len(t, w.shares.All, fairness.MaxKeys+1)
		at := fairness.Find(w.shares.All, r.key.ID)
		total := w.shares.All[at]
		require.Equal(t, r.key.ID, total.ID, "worker %d knows it by itself", i)
		require.True(t, total.Named)
		require.Equal(t, kib, total.Use)
		require.InDelta(t, 4, total.Weight, 0)
	}
}

// Which names keep their places is told by all configurations that requests come to, and by none
// that has gone.
func TestPlacesAreKeptForLiveConfigurations(t *testing.T) {
	p := newProcess(t, 1, nil)
	g, w := p.guards[0], p.workers[0]
	configure := func(by string, names ...string) *Guard {
		c := *g.Config()
		c.Fairness = Fairness{By: by, Weights: map[string]float64{}}
		for _, name := range names {
			c.Fairness.Weights[name] = 2
		}
		other, _ := New(c, w)
		return other
	}
	crowd, _ := New(*g.Config(), w) // of made-up names
	n := 0
	named := func(by, value string) bool {
		p.now += 2 * time.Second // those that have nothing go
		var all []*request
		open := func(g *Guard, name string) {
			r := &request{connected: &Connection{}, route: name, tenant: name}
			g.Open(p.now, &r.Stream, r, kib)
			all = append(all, r)
		}
		for range fairness.MaxKeys {
			n++
			open(crowd, fmt.Sprint("made-up", n))
		}
		c := *g.Config()
		c.Fairness = Fairness{By: by}
		one, _ := New(c, w)
		open(one, value)
		has := p.has(0, value).Coming == kib
		for _, r := range all {
			g.Close(p.now, &r.Stream)
		}
		one.Retire()
		return has
	}
	tenants, routes := configure("header:x-tenant", "gold"), configure(config.ByRoute, "upload")
	require.True(t, named("header:x-tenant", "gold"))
	require.True(t, named(config.ByRoute, "upload"))
	require.False(t, named(config.ByRoute, "gold"))
	configure("header:x-tenant", "silver")
	tenants.Retire()
	require.False(t, named("header:x-tenant", "gold"))
	require.True(t, named("header:x-tenant", "silver"))
	routes.Retire()
	require.False(t, named(config.ByRoute, "upload"))
}
