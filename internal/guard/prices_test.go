package guard

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
)

// world is an Envoy whose streams cost what their route says, beside their bytes, as soon as they are
// let in.
type world struct {
	*process
	base   int64
	costs  map[string]int64 // of a stream, by route
	socket int64            // of a connection without a stream
	idle   int64            // how many of those there are
	live   map[*Stream]string
	waits  map[*Stream]string
	silent int // this worker does not tick; -1 = all do
	peak   int64
	asks   int
	events []string
}

func newWorld(t *testing.T, workers int, edit func(*Config)) *world {
	t.Helper()
	w := &world{process: newProcess(t, workers, edit), base: 60 * mib, costs: map[string]int64{}, live: map[*Stream]string{}, waits: map[*Stream]string{}, silent: -1}
	w.pass(time.Second)
	return w
}

func (w *world) inUse() int64 {
	n := w.base + w.idle*w.socket
	for _, route := range w.live {
		n += w.costs[route]
	}
	return n
}

// pass lets time pass.
func (w *world) pass(d Time) {
	w.t.Helper()
	for end := w.now + d; w.now < end; {
		w.now += Tick
		for i, worker := range w.workers {
			if i != w.silent {
				w.tick(worker)
			}
		}
	}
}

func (w *world) tick(worker *Worker) {
	w.peak = max(w.peak, w.inUse())
	a := worker.Tick(w.now)
	if a.Event != "" {
		w.events = append(w.events, a.Event)
	}
	if s := a.Resume; s != nil {
		w.live[s] = w.waits[s]
		delete(w.waits, s)
	}
	for _, d := range a.Rejected {
		delete(w.live, d.Stream)
		delete(w.waits, d.Stream)
	}
	if a.Ask {
		w.asks++
		worker.Observe(w.now, Reading{InUse: w.inUse(), Allocated: w.inUse()}, nil)
	}
}

// get opens a request without a body, and says whether it goes at once.
func (w *world) get(worker int, route string) (r *request, v Verdict) {
	w.t.Helper()
	r = &request{route: route}
	switch v = w.guards[worker].Open(w.now, &r.Stream, r, 0); v.Action {
	case Admit, Pass:
		w.live[&r.Stream] = route
	case Wait:
		w.waits[&r.Stream] = route
	case Answer, Close, Reset:
	}
	return r, v
}

// teach has so many streams of the route come, stay for a while and go.
func (w *world) teach(worker int, route string, n int) {
	w.t.Helper()
	for range n / 4 {
		for range 4 {
			w.get(worker, route)
		}
		w.pass(Tick)
	}
	w.pass(300 * ms)
	w.end(route)
	w.pass(500 * ms)
}

// end ends all streams of the route.
func (w *world) end(route string) {
	for s, r := range w.live {
		if r == route {
			s.guard.Close(w.now, s)
			delete(w.live, s)
		}
	}
}

// price is what a worker takes a stream of the route for.
func (w *world) price(worker int, route string) KeyPrice {
	for _, k := range w.workers[worker].Prices().Keys {
		if k.Name == route {
			return k
		}
	}
	return KeyPrice{}
}

func (w *world) requirePrice(worker int, route string) {
	w.t.Helper()
	p := w.price(worker, route)
	require.True(w.t, p.Known, "%s on worker %d", route, worker)
	require.InEpsilon(w.t, w.costs[route], p.Bytes, .2)
}

const gzip = 467 * kib

// A response that is compressed costs a compressor, of which no byte passes. Where that is known a burst
// of them waits, and those beside it do not.
func TestABurstOfADearKeyIsBounded(t *testing.T) {
	for _, mode := range []Mode{Enforce, Observe} {
		w := newWorld(t, 1, func(c *Config) { c.Mode = mode })
		w.base, w.costs["gzip"], w.costs["plain"] = 100*mib, gzip, 20*kib
		w.pass(2 * time.Second)
		w.teach(0, "gzip", 80)
		w.requirePrice(0, "gzip")
		require.False(t, w.price(0, "plain").Known)
		w.peak = 0
		admitted := 0
		for i := range 400 {
			if _, v := w.get(0, "gzip"); v.Action == Admit {
				admitted++
			}
			if i%8 == 0 {
				r, v := w.get(0, "plain")
				require.Equal(t, Admit, v.Action, "a bystander")
				w.guards[0].Close(w.now, &r.Stream)
				delete(w.live, &r.Stream)
			}
		}
		w.pass(time.Second)
		if mode == Observe {
			require.Greater(t, w.peak, 200*mib, "nobody is held back")
			require.Positive(t, w.workers[0].Counts()[CountThrottled], "who would have been is counted")
			continue
		}
		require.Less(t, w.peak, 200*mib)
		require.Greater(t, admitted, 100, "there is room for some")
		require.Less(t, admitted, 200)
	}
}

// Without what was learned, the same burst is over the limit by far: the test is one.
func TestABurstOfAnUnknownKeyIsNot(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.base, w.costs["gzip"] = 100*mib, gzip
	w.pass(time.Second)
	for range 400 {
		w.get(0, "gzip")
	}
	w.pass(50 * ms)
	require.Greater(t, w.peak, 200*mib)
}

// Many come within a second: what the first cost is known for those that come then.
func TestAKeyIsPricedWithinABurst(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.costs["gzip"] = gzip
	known := Time(0)
	for i := range 40 {
		for range 5 {
			w.get(1, "gzip")
		}
		w.pass(Tick)
		if known == 0 && w.price(1, "gzip").Known {
			known = Time(i+1) * Tick
		}
	}
	t.Logf("known after %v", known)
	require.Positive(t, known)
	require.Less(t, known, 600*ms)
	w.requirePrice(1, "gzip")
}

// The one who polls may have no request in all its life: Envoy's main thread has none.
func TestThePollerNeedsNoStreams(t *testing.T) {
	w := newWorld(t, 3, nil)
	w.costs["gzip"] = gzip
	w.teach(1, "gzip", 80)
	require.False(t, w.workers[0].Account().Joined())
	require.Equal(t, w.workers[0].Account().ID(), w.workers[0].Account().Table().Poller.ID)
	w.requirePrice(1, "gzip")
	w.get(2, "gzip")
	w.pass(time.Second)
	w.requirePrice(2, "gzip")
	w.teach(2, "gzip", 80)
	w.requirePrice(2, "gzip")
}

// Whoever polls next goes on with what was known, and learns it anew.
func TestPricesSurviveTheirPoller(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.costs["gzip"] = gzip
	w.teach(1, "gzip", 80)
	w.silent = 0
	for range 100 {
		w.pass(Tick)
		require.True(t, w.price(1, "gzip").Known)
	}
	require.Equal(t, w.workers[1].Account().ID(), w.workers[1].Account().Table().Poller.ID)
	w.requirePrice(1, "gzip")
	w.costs["gzip"] = 2 * gzip
	w.teach(1, "gzip", 40)
	w.teach(1, "gzip", 40)
	w.requirePrice(1, "gzip")
	w.silent = -1
	w.pass(time.Second)
	w.requirePrice(1, "gzip")

	w.silent = 0
	w.pass(inheritFor + time.Second)
	w.requirePrice(1, "gzip")
}

// What is not seen again is not gone by for ever.
func TestInheritedPricesEnd(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.costs["gzip"] = gzip
	w.teach(1, "gzip", 80)
	w.silent = 0
	w.get(1, "gzip")
	w.pass(inheritFor / 2)
	require.True(t, w.price(1, "gzip").Known)
	w.pass(inheritFor)
	require.False(t, w.price(1, "gzip").Known)
}

// Two workers have streams of the same key: all of them cost what it is priced.
func TestTwoWorkersHaveOnePrice(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.costs["gzip"], w.costs["plain"] = gzip, 20*kib
	for i := range 160 {
		switch {
		case i%80 < 40:
			w.get(i%2, "gzip")
		default:
			w.get(i%2, "plain")
		}
		if i%4 == 3 {
			w.pass(Tick)
		}
	}
	w.pass(500 * ms)
	for i := range w.workers {
		w.requirePrice(i, "gzip")
		require.False(t, w.price(i, "plain").Known)
		require.EqualValues(t, 40, w.price(i, "gzip").Streams)
	}
}

// Who shows for as long as he likes that his requests cost nothing is let in with no more than who has
// shown nothing.
func TestWhoTeachesALowPriceIsNotLetInForLess(t *testing.T) {
	admitted := func(teaches bool) (n int) {
		w := newWorld(t, 1, nil)
		if teaches {
			for range 5 {
				w.teach(0, "cheap", 400)
			}
		} else {
			w.pass(35 * time.Second)
		}
		w.settle(60 * mib)
		for range 1000 {
			r := &request{route: "cheap"}
			if w.guards[0].Open(w.now, &r.Stream, r, 4*mib).Action == Admit {
				n++
			}
		}
		return n
	}
	require.LessOrEqual(t, admitted(true), admitted(false))
}

// What no one would notice is not in force.
func TestACheapKeyHasNoPrice(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.costs["cheap"] = 40 * kib
	w.teach(0, "cheap", 80)
	require.Equal(t, KeyPrice{Name: "cheap", Price: Price{Bytes: 30 * kib}}, w.price(0, "cheap"))
}

// While memory is calm workers tell each other what they have ten times a second, and not at all where
// nobody has a stream.
func TestCalmExchangesAreFew(t *testing.T) {
	store := &putting{Memory: &budget.Memory{}}
	w := &world{process: newProcessOn(t, store, 2, nil), base: 60 * mib, costs: map[string]int64{"gzip": gzip}, live: map[*Stream]string{}, waits: map[*Stream]string{}, silent: -1}
	w.pass(time.Second)
	id := w.workers[1].Account().ID()
	store.puts = map[uint32]int{}
	w.pass(time.Second)
	require.Empty(t, store.puts)
	for range 20 {
		w.get(1, "gzip")
	}
	w.pass(time.Second)
	store.puts = map[uint32]int{}
	w.pass(time.Second)
	require.InDelta(t, 10, store.puts[id], 2)
	w.end("gzip")
	w.pass(time.Second)
	store.puts = map[uint32]int{}
	w.pass(time.Second)
	require.Zero(t, store.puts[id])
}

// putting counts what workers publish.
type putting struct {
	*budget.Memory
	puts map[uint32]int
}

func (s *putting) Put(worker uint32, value []byte) error {
	if s.puts != nil {
		s.puts[worker]++
	}
	return s.Memory.Put(worker, value)
}

// Whose a request is, is not asked when it comes in the calm. Who stays is asked in a tick, and not
// many in one.
func TestStreamsThatStayAreNamed(t *testing.T) {
	w := newWorld(t, 1, nil)
	var all []*request
	for range 100 {
		r, _ := w.get(0, "stream")
		all = append(all, r)
	}
	called := func() (n int) {
		for _, r := range all {
			n += r.hostCalls
		}
		return n
	}
	require.Zero(t, called())
	w.pass(Tick)
	require.Zero(t, called(), "most are over by the next tick")
	before := called()
	for range 12 {
		w.pass(Tick)
		require.LessOrEqual(t, called(), before+nameMost)
		before = called()
	}
	require.Equal(t, 100, before)
	require.EqualValues(t, 100, w.price(0, "stream").Streams)
	w.pass(time.Second)
	require.Equal(t, 100, called(), "once")
	w.end("stream")
	require.Zero(t, w.price(0, "stream").Streams)
	requireNothingLeft(t, w.workers[0])
}

// A header can be asked for at once or never.
func TestStreamsThatAHeaderTellsApartAreNotAskedLater(t *testing.T) {
	w := newWorld(t, 1, func(c *Config) { c.Fairness.By = "header:x-tenant" })
	r, _ := w.get(0, "any")
	calls := r.hostCalls
	w.pass(time.Second)
	require.Equal(t, calls, r.hostCalls)
	require.Equal(t, 1, calls, "its tenant")
}

// What a stream of a dear key likely holds is what it costs: who is evicted goes by that.
func TestADearStreamLikelyHoldsItsPrice(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.costs["gzip"] = gzip
	w.teach(0, "gzip", 80)
	a := w.workers[0].Account()
	for range 20 {
		w.get(0, "gzip")
	}
	w.pass(500 * ms)
	own := a.Own()
	require.InEpsilon(t, 20*gzip, own.Likely, .2)
	require.Equal(t, own.Likely, own.Bounds)
	require.Equal(t, own.Bounds, own.Priced, "no byte has passed")
	require.InEpsilon(t, 20*gzip, w.has(0, "gzip").Likely, .2)
	w.end("gzip")
	w.pass(500 * ms)
	requireNothingLeft(t, w.workers[0])
}

// Who waits holds no compressor yet.
func TestWhoWaitsIsNotLive(t *testing.T) {
	w := newWorld(t, 1, nil)
	w.costs["gzip"] = gzip
	w.teach(0, "gzip", 80)
	for range 400 {
		w.get(0, "gzip")
	}
	require.NotEmpty(t, w.waits)
	require.EqualValues(t, len(w.live), w.price(0, "gzip").Streams)
	w.pass(3 * time.Second)
	require.EqualValues(t, len(w.live), w.price(0, "gzip").Streams)
	w.end("gzip")
	for s := range w.waits {
		w.guards[0].Close(w.now, s)
	}
	require.Zero(t, w.price(0, "gzip").Streams)
}

// Raw connections cost what they hold, of which no request tells.
func TestConnectionsHaveAPrice(t *testing.T) {
	w := newWorld(t, 1, func(c *Config) { c.Fairness.By = config.ByNone })
	w.socket = 1400 * kib
	require.Equal(t, Price{Bytes: 8 * kib}, w.workers[0].Prices().Connection)
	var all []*Connection
	for range 40 {
		all = append(all, w.connection(0))
		w.idle++
		w.pass(Tick)
	}
	price := w.workers[0].Prices().Connection
	require.True(t, price.Known)
	require.InEpsilon(t, w.socket, price.Bytes, .2)
	opened := int64(0)
	for range 400 {
		c := &Connection{Context: 1}
		if w.guards[0].OpenConnection(w.now, c, peer("10.0.0.1")) {
			opened++
			all = append(all, c)
		}
	}
	require.Less(t, w.inUse()+opened*w.socket, 200*mib, "a burst has no more than there is")
	require.Greater(t, opened, int64(20))
	for _, c := range all {
		w.workers[0].CloseConnection(c)
	}
}

// A flood of raw connections, of which no request tells, is priced while it comes.
func TestAFloodOfConnectionsIsPricedInTime(t *testing.T) {
	w := newWorld(t, 1, func(c *Config) { c.Fairness.By = config.ByNone })
	w.socket = 1400 * kib
	var all []*Connection
	for range 60 {
		for range 4 {
			c := &Connection{Context: 1}
			if w.guards[0].OpenConnection(w.now, c, peer("10.0.0.1")) {
				w.idle++
				all = append(all, c)
			}
		}
		w.pass(Tick)
	}
	require.Less(t, w.peak, 200*mib, "%d of 240 are open", len(all))
	for _, c := range all {
		w.workers[0].CloseConnection(c)
	}
}

// It is said once that a price is another than what is configured.
func TestAPriceIsToldOnce(t *testing.T) {
	w := newWorld(t, 2, nil)
	w.costs["gzip"], w.costs["brotli"] = gzip, gzip
	w.teach(1, "gzip", 80)
	w.teach(1, "gzip", 80)
	w.teach(1, "brotli", 80)
	told := func() (all []string) {
		for _, e := range w.events {
			if strings.Contains(e, "costs.stream") {
				all = append(all, e)
			}
		}
		return all
	}
	require.Len(t, told(), 1, "at most once a minute")
	require.Contains(t, told()[0], "a stream of gzip costs Envoy")
	w.pass(time.Minute)
	w.teach(1, "brotli", 80)
	require.Len(t, told(), 2)
}
