package guard

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/price"
)

// world is a process in which each stream of a route holds so much beside its bytes.
type world struct {
	*process
	costs  map[string]int64
	open   map[string][]*request
	turn   int   // the worker of the last
	more   int64 // that no stream explains
	events []string
	rand   *rand.Rand
}

func newWorld(t *testing.T, workers int, costs map[string]int64) *world {
	t.Helper()
	return &world{
		process: newProcess(t, workers, func(c *Config) { c.Budget.Limit.Bytes *= 2 }), costs: costs,
		open: map[string][]*request{}, rand: rand.New(rand.NewPCG(5, 6)),
	}
}

// arrive opens n requests of a route, in turn on each worker.
func (w *world) arrive(route string, n int) {
	for range n {
		w.turn = (w.turn + 1) % len(w.guards)
		r := &request{route: route, connected: w.connection(w.turn)}
		w.guards[w.turn].Open(w.now, &r.Stream, r, 100)
		w.open[route] = append(w.open[route], r)
	}
}

// swing has as many of a route as a number that goes up and down, up to most.
func (w *world) swing(route string, most, at int) {
	n := most/2 + most/2*((at%4)-(at%4)/3*2-1)
	if off := n - len(w.open[route]); off > 0 {
		w.arrive(route, off)
	} else {
		w.leave(route, -off)
	}
}

// leave ends n of them, the oldest first.
func (w *world) leave(route string, n int) {
	for _, r := range w.open[route][:n] {
		r.guard.Close(w.now, &r.Stream)
		r.guard.worker.CloseConnection(w.now, r.connected)
	}
	w.open[route] = w.open[route][n:]
}

// pass lets a tick pass, with a reading of what there is.
func (w *world) pass() {
	w.now += 25 * ms
	inUse := 60*mib + w.more + int64(w.rand.NormFloat64()*float64(100*kib))
	for route, streams := range w.open {
		inUse += int64(len(streams)) * w.costs[route]
	}
	for _, of := range w.workers {
		a := of.Tick(w.now)
		w.events = append(w.events, a.Event)
		if a.Ask {
			of.Observe(w.now, memory.Reading{InUse: inUse, Allocated: inUse}, nil)
		}
	}
}

func (w *world) price(worker int, route string) int64 {
	for _, k := range w.workers[worker].Keys() {
		if k.Name == route {
			return k.Price
		}
	}
	return 0
}

func (w *world) logged(text string) (n int) {
	for _, e := range w.events {
		if strings.Contains(e, text) {
			n++
		}
	}
	return n
}

// Two seconds of load tell what a stream of a route holds beside its bytes, on every worker, and
// whoever polls. One line is logged.
func TestAPriceIsLearntFromReadings(t *testing.T) {
	for _, workers := range []int{1, 2, 8} {
		t.Run(fmt.Sprint(workers, " workers"), func(t *testing.T) {
			w := newWorld(t, workers, map[string]int64{"zip": 437 * kib, "plain": 30 * kib})
			for i := range 80 {
				w.arrive("zip", 1+i%3)
				w.arrive("plain", 2+i%2)
				if i > 40 {
					w.leave("plain", 2)
				}
				w.pass()
			}
			for worker := range workers {
				require.InEpsilon(t, w.costs["zip"], w.price(worker, "zip"), .2)
				require.Zero(t, w.price(worker, "plain"), "it costs what is configured")
			}
			require.Equal(t, 1, w.logged("a request of zip holds"), w.events)
			require.Equal(t, 1, w.logged("costs.stream says"))

			var status, priced int64
			w.workers[workers-1].Status(w.now, func(name string, value int64) {
				switch name {
				case "unexplained_bytes":
					status = value
				case "priced_bytes":
					priced = value
				}
			})
			held := w.costs["zip"] * int64(len(w.open["zip"]))
			require.InEpsilon(t, held, priced, .25)
			require.Less(t, status, held/4, "it is explained")
		})
	}
}

// A key whose streams all together cost hardly more than is configured has no price.
func TestACheapKeyHasNoPrice(t *testing.T) {
	w := newWorld(t, 2, map[string]int64{"plain": 60 * kib})
	for i := range 80 {
		w.arrive("plain", 1+i%2)
		w.pass()
	}
	require.Zero(t, w.price(0, "plain"))
	require.Zero(t, w.logged("costs.stream says"))
}

// A price is logged once, and one each minute at most.
func TestAPriceIsLoggedOnce(t *testing.T) {
	w := newWorld(t, 1, map[string]int64{"zip": 437 * kib, "copy": 900 * kib})
	for i := range 300 {
		w.swing("zip", 100, i/7)
		w.swing("copy", 50, i/11)
		w.pass()
	}
	require.Equal(t, 1, w.logged("costs.stream says"))
	require.NotZero(t, w.price(0, "zip"))
	require.NotZero(t, w.price(0, "copy"))
	w.now += tellEvery
	for i := range 80 {
		w.swing("zip", 100, i/7)
		w.swing("copy", 50, i/11)
		w.pass()
	}
	require.Equal(t, 2, w.logged("costs.stream says"))
}

// Who holds the memory goes by prices where bytes tell less than half of it.
func TestWhoHoldsMostByItsPriceIsEvicted(t *testing.T) {
	w := newWorld(t, 2, map[string]int64{"zip": 437 * kib, "plain": 30 * kib})
	for i := range 120 {
		w.swing("zip", 200, i/9)
		w.swing("plain", 100, i/7)
		w.pass()
	}
	w.swing("zip", 200, 2)
	w.swing("plain", 100, 2)
	w.pass()
	require.NotZero(t, w.price(0, "zip"))
	zip, plain := w.open["zip"][0], w.open["plain"][0]
	require.Greater(t, zip.likely(), 10*plain.likely())
	w.more = 300 * mib
	for range 10 {
		w.pass()
	}
	evicted := func(route string) (n int) {
		for _, r := range w.open[route] {
			if r.state == rejected {
				n++
			}
		}
		return n
	}
	require.NotZero(t, evicted("zip"))
	require.Zero(t, evicted("plain"))
}

// A price that was learnt while bytes explain what is held, such as that of what else rises with
// uploads, is no reason to evict anybody.
func TestAWrongPriceEvictsNobody(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(50 * mib)
	w := p.workers[0]
	r, _ := p.open(0, 40*mib)
	p.guards[0].Grow(p.now, &r.Stream, budget.Request, 16*mib)
	p.settle(70 * mib)
	w.usePrices(p.now, []price.Price{{ID: r.key.ID, Bytes: 30 * mib}})
	require.Equal(t, 30*mib, r.key.Value.price)
	require.Equal(t, r.Likely(), r.likely())
	p.settle(150 * mib)
	w.usePrices(p.now, []price.Price{{ID: r.key.ID, Bytes: 30 * mib}})
	require.Equal(t, 30*mib, r.likely(), "bytes tell less than half")
}

// Garbage from another worker is no price.
func TestGarbageIsNoPrice(t *testing.T) {
	w := newWorld(t, 2, map[string]int64{"zip": 437 * kib})
	w.arrive("zip", 4)
	w.pass()
	for _, of := range w.workers {
		require.NoError(t, w.store.Keep(of.account.ID(), priceSlot, []byte("garbage")))
	}
	w.pass()
	require.Zero(t, w.price(0, "zip"))
	require.Zero(t, w.price(1, "zip"))
}

// BenchmarkPrices is what prices add to the ticks of a worker with 64 keys, and to one reading
// each.
func BenchmarkPrices(b *testing.B) {
	store := &budget.Memory{}
	w, err := NewWorker(store, rand.Float64)
	require.NoError(b, err)
	c := example()
	g, _ := New(c, w)
	now := time.Hour
	for i := range 640 {
		r := &request{route: fmt.Sprint("route ", i%64)}
		g.Open(now, &r.Stream, r, 100)
	}
	w.Tick(now)
	for b.Loop() {
		now += 25 * ms
		w.learnPrices(now, 100*mib+rand.Int64N(8*mib))
		w.exchangePrices(now)
	}
}
