package guard

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/httptext"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// A container that may have more than any memory has no limit: a share of it would be none either.
func TestHugeLimitsOfContainers(t *testing.T) {
	for _, limit := range []int64{1 << 50, 1<<63 - 4096, math.MaxInt64} {
		r, err := memory.Parse(fmt.Appendf(nil, `{"allocated": "5", "heap_size": "10", "limit": "%d"}`, limit))
		require.NoError(t, err)
		require.Zero(t, r.Limit)
	}
	r, err := memory.Parse([]byte(`{"allocated": "5", "heap_size": "10", "limit": "1125899906842623"}`))
	require.NoError(t, err)
	require.Equal(t, int64(1<<50-1), r.Limit)
}

// What a worker has told of its keys in the future would be the latest for ever.
func TestSharesFromTheFutureAreNone(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(40 * mib)
	p.from(1, "any", mib)
	p.from(0, "any", mib)
	w, other := p.workers[0], p.workers[1].Account().ID()
	for at, want := range map[Time]int64{
		p.now: 9 * mib, p.now + budget.Ahead: 9 * mib, p.now + budget.Ahead + 1: 0, math.MaxInt64: 0,
	} {
		total := fairness.Total{ID: 7, Weight: 1, Use: 9 * mib}
		require.NoError(t, p.store.Put(other, fairness.AppendTotals(nil, at, []fairness.Total{total})))
		w.exchangeShares(p.now)
		var got int64
		if i := fairness.Find(w.shares.All, 7); i >= 0 && w.shares.All[i].ID == 7 {
			got = w.shares.All[i].Use
		}
		require.Equal(t, want, got, "%v", at)
	}
}

// A wish from the future to see the samples would be the last one.
func TestAWishFromTheFutureIsNotTheLast(t *testing.T) {
	for _, looked := range []Time{math.MaxInt64, time.Hour + time.Minute, -1} {
		p := newProcess(t, 1, nil)
		p.settle(40 * mib)
		w := p.workers[0]
		require.NoError(t, w.Account().Change(p.now, func(t *budget.Table) {
			m := w.marks(t)
			m.Looked = looked
			t.Marks = m.Fields()
		}))
		p.open(0, mib)
		w.Tick(p.now)
		p.now += time.Second
		w.Look(p.now)
		require.False(t, w.Looked(p.now, p.now))
		w.Tick(p.now)
		require.True(t, w.Looked(p.now, p.now))
		require.Len(t, w.Current().Snapshots, 1)
	}
}

// Whatever valid limit, container and reading there is, and whatever is announced: thresholds are
// in their order, nothing is negative, and what is closed leaves nothing.
func FuzzNumbers(f *testing.F) {
	for _, n := range []int64{0, 1, 32 << 20, 200 << 20, 1<<50 - 1, 1 << 50, 1 << 60, math.MaxInt64 - 1, math.MaxInt64} {
		f.Add(n, 0.8, n, n, n, "9223372036854775807", int64(1<<31))
		f.Add(int64(0), 1.0, n, int64(40<<20), n, "1125899906842624", n)
		f.Add(int64(200<<20), 0.0, n, n, int64(64<<10), "4194304", n)
	}
	f.Fuzz(func(t *testing.T, limit int64, share float64, container, reading, buffer int64, length string, passes int64) {
		c := example()
		c.Budget.Limit = unit.Limit{Bytes: unit.Bytes(limit)}
		if limit == 0 {
			c.Budget.Limit = unit.Limit{Share: unit.Ratio(share)}
		}
		c.Buffers.Downstream, c.Buffers.Upstream = unit.Bytes(buffer), unit.Bytes(buffer)
		text, err := c.Budget.Limit.MarshalText()
		if err == nil {
			err = c.Budget.Limit.UnmarshalText(text)
		}
		if err != nil || c.Validate() != nil {
			return
		}
		r, err := memory.Parse(fmt.Appendf(nil, `{"allocated": "%d", "heap_size": "%[1]d", "limit": "%d", "resident": "%[1]d", "sock": "%[1]d"}`, reading, container))
		if err != nil {
			return
		}
		now, store := time.Hour, &budget.Memory{}
		w, err := NewWorker(store, func() float64 { return .5 })
		require.NoError(t, err)
		g, _ := New(c, w)
		a := w.Account()
		check := func() {
			t.Helper()
			table := a.Table()
			from := []float64{0, .1, float64(c.Budget.Resume), float64(c.Budget.Soft), float64(c.Budget.Hard), 1}
			last := int64(0)
			for _, x := range from {
				at := a.Share(x)
				if at < last || at > max(budget.Unlimited, table.Base) {
					t.Fatalf("T(%v) is %d, behind %d, of %v: %+v", x, at, last, c.Budget.Limit, table)
				}
				last = at
			}
			sum := table.Sum()
			for name, v := range map[string]int64{
				"estimate": a.Estimate(now), "room": a.Room(), "floor": a.Floor(), "fresh": sum.Fresh, "coming": sum.Coming, "likely": sum.Likely,
				"bounds": sum.Bounds, "exposure": sum.Exposure, "wanted": sum.Queue.Wanted, "rate": sum.Queue.Rate, "held": sum.Queue.Held,
			} {
				if v < 0 {
					t.Fatalf("%s is %d: %+v", name, v, table)
				}
			}
		}
		tick := func() {
			now += 25 * time.Millisecond
			if w.Tick(now).Ask {
				w.Observe(now, r, nil)
			}
			check()
		}
		tick()
		var open []*request
		for i := range 12 {
			s := &request{connected: &Connection{Context: uint32(i + 1)}, http2: i%3 == 2}
			s.hides = [2]bool{i%4 == 3, i%4 == 3}
			g.OpenConnection(now, s.connected, peer("10.0.0.1"))
			v := g.Open(now, &s.Stream, s, httptext.ContentLength(length))
			open = append(open, s)
			if v.Action == verdict.Admit && !s.hides[0] {
				for range 3 {
					g.Grow(now, &s.Stream, budget.Request, max(min(passes, math.MaxInt32), 0))
				}
			}
			if i%2 == 0 {
				g.Expect(now, &s.Stream, httptext.ContentLength(length))
			}
			tick()
		}
		for range 100 {
			tick()
		}
		for _, s := range open {
			g.Close(now, &s.Stream)
			w.CloseConnection(now, s.connected)
		}
		for range 5 {
			tick()
		}
		if own := a.Own(); own.Coming != 0 || own.Exposure != 0 || own.Streams != 0 {
			t.Fatalf("it leaves %+v", own)
		}
	})
}
