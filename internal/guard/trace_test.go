package guard

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// held is what a peak says that each route likely holds.
func held(p reservoir.Peak, by func(x *reservoir.Sample) string) map[string]*reservoir.Estimate {
	all := map[string]*reservoir.Estimate{}
	for i := range p.Snapshots {
		s := &p.Snapshots[i]
		for j := range s.Samples {
			name := by(&s.Samples[j])
			if all[name] == nil {
				all[name] = &reservoir.Estimate{}
			}
			all[name].Add(float64(s.Samples[j].Likely), s.Weight(j))
		}
	}
	return all
}

func route(x *reservoir.Sample) string { return x.Labels.Route }

// current has the samples frozen as of now.
func (p *process) current() reservoir.Peak {
	p.t.Helper()
	p.now += ms
	since := p.now
	p.workers[0].Look(since)
	for i := 0; !p.workers[0].Looked(p.now, since); i++ {
		p.now += 25 * ms
		for _, w := range p.workers {
			w.Tick(p.now)
		}
		require.Less(p.t, i, 30)
	}
	return p.workers[0].Current()
}

// uploading opens a request that has sent all but the last byte.
func (p *process) uploading(worker int, route string, n int64) *request {
	p.t.Helper()
	r, v := p.from(worker, route, n+1)
	require.Equal(p.t, verdict.Admit, v.Action)
	p.guards[worker].Grow(p.now, &r.Stream, budget.Request, n)
	return r
}

// A worker that has nothing any more is not waited for; what it had at an older wish is not told as
// of now.
func TestCurrentIsOfNow(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(40 * mib)
	nobody := p.current()
	require.Len(t, nobody.Snapshots, 1, "no worker has had a request, and what is in use is told all the same")
	require.Equal(t, 40*mib, nobody.Snapshots[0].InUse)
	require.Equal(t, p.now, nobody.Snapshots[0].At)
	require.Positive(t, nobody.Snapshots[0].Gap)
	p.uploading(0, "stays", 4*mib)
	gone := p.uploading(1, "goes", 4*mib)
	require.Len(t, held(p.current(), route), 2)
	p.guards[1].Close(p.now, &gone.Stream)
	p.settle(40 * mib)
	for range 10 {
		p.now += 250 * ms
		p.workers[0].Tick(p.now)
		p.workers[1].Tick(p.now)
	}
	p.workers[0].Look(p.now)
	p.workers[0].Tick(p.now)
	require.True(t, p.workers[0].Looked(p.now, p.now), "the other one has not ticked")
	now := p.workers[0].Current()
	require.Len(t, now.Snapshots, 1)
	require.Equal(t, p.now, now.Snapshots[0].At)
	require.NotContains(t, held(now, route), "goes")

	// The one who answers is waited for, so that an answer has a reading at least.
	p.now += ms
	p.workers[1].Look(p.now)
	require.False(t, p.workers[1].Looked(p.now, p.now))
	p.workers[0].Tick(p.now)
	require.False(t, p.workers[1].Looked(p.now, p.now))
	p.workers[1].Tick(p.now)
	require.True(t, p.workers[1].Looked(p.now, p.now))
}

// At a new high-water mark each worker freezes whose bytes those are, and any of them tells it all.
func TestAPeakShowsWhoMadeIt(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(20 * mib)
	for i := range 8 {
		p.uploading(i%2, "large", 4*mib)
		p.uploading(i%2, "medium", 2*mib)
	}
	p.read(70 * mib)
	for _, w := range p.workers {
		peaks := w.Peaks()
		require.Len(t, peaks, 1)
		require.True(t, peaks[0].Highest)
		require.EqualValues(t, 1, peaks[0].Number)
		require.Len(t, peaks[0].Snapshots, 2)
		by := held(peaks[0], route)
		require.InEpsilon(t, 32*mib, by["large"].Sum, .01, "16 samples of 256 KiB each are in 4 MiB: it is certain to be there")
		require.InEpsilon(t, 16*mib, by["medium"].Sum, .01)
		for _, s := range peaks[0].Snapshots {
			require.Equal(t, 24*mib, s.Totals.Likely)
			require.EqualValues(t, 8, s.Totals.Streams)
			require.Equal(t, s.Totals.Likely, s.Totals.Phases[reservoir.Uploading])
			require.Equal(t, 70*mib, s.InUse)
			require.Equal(t, 200*mib, s.Limit)
			for _, x := range s.Samples {
				require.Equal(t, "all", x.Labels.VirtualHost)
				require.Equal(t, x.Labels.Route, x.Labels.Key)
				require.Equal(t, "10.0.0.1", x.Labels.Source)
				require.Equal(t, reservoir.Uploading, x.Phase)
			}
		}
	}
}

// Two floods an hour apart are two peaks. What comes between, and a little more of the same flood,
// is none.
func TestTwoFloodsAreTwoPeaks(t *testing.T) {
	p := newProcess(t, 2, func(c *Config) { c.Trace.Keep = 2 })
	p.settle(20 * mib)
	flood := func(name string, n int, inUse int64) {
		var all []*request
		for i := range n {
			all = append(all, p.uploading(i%2, name, 4*mib))
		}
		p.settle(inUse)
		p.settle(inUse + mib)
		for i, r := range all {
			p.guards[i%2].Close(p.now, &r.Stream)
		}
		p.settle(21 * mib)
		p.now += time.Hour
		p.settle(21 * mib)
	}
	flood("first", 20, 110*mib)
	flood("second", 10, 65*mib)
	peaks := p.workers[1].Peaks()
	require.Len(t, peaks, 2)
	require.True(t, peaks[0].Highest)
	require.False(t, peaks[1].Highest)
	require.InEpsilon(t, 80*mib, held(peaks[0], route)["first"].Sum, .01)
	require.InEpsilon(t, 40*mib, held(peaks[1], route)["second"].Sum, .01)
	require.Len(t, held(peaks[1], route), 1)
	require.GreaterOrEqual(t, peaks[1].Snapshots[0].At-peaks[0].Snapshots[0].At, time.Hour)

	// The highest stays, whatever comes after it.
	for i := range 3 {
		flood(fmt.Sprint("later", i), 8, 60*mib)
	}
	peaks = p.workers[0].Peaks()
	require.Len(t, peaks, 3)
	require.Equal(t, []int64{1, 4, 5}, []int64{peaks[0].Number, peaks[1].Number, peaks[2].Number})
	require.True(t, peaks[0].Highest)
}

func TestPhases(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(20 * mib)
	g := p.guards[0]
	p.uploading(0, "uploading", 4*mib)
	waits, v := p.from(0, "waiting", 4*mib)
	require.Equal(t, verdict.Admit, v.Action)
	g.Grow(p.now, &waits.Stream, budget.Request, 4*mib)
	g.End(p.now, &waits.Stream, budget.Request)
	down := p.uploading(0, "downloading", 4*mib)
	g.End(p.now, &down.Stream, budget.Request)
	g.Expect(p.now, &down.Stream, 16*mib)
	g.Grow(p.now, &down.Stream, budget.Response, mib)
	left := p.uploading(0, "left", 4*mib)
	g.End(p.now, &left.Stream, budget.Request)
	g.Expect(p.now, &left.Stream, 16*mib)
	g.Grow(p.now, &left.Stream, budget.Response, mib)
	g.End(p.now, &left.Stream, budget.Response)
	p.settle(190 * mib)
	p.settle(190 * mib)
	paused, v := p.from(0, "paused", 16*mib)
	require.Equal(t, verdict.Wait, v.Action)
	p.workers[0].Data(p.now, paused.connected, 100*kib)
	phases := map[string]reservoir.Phase{}
	sizes := map[string]reservoir.Sample{}
	now := p.current()
	for _, x := range now.Snapshots[0].Samples {
		phases[x.Labels.Route], sizes[x.Labels.Route] = x.Phase, x
	}
	require.Equal(t, reservoir.Uploading, phases["uploading"])
	require.Equal(t, reservoir.Waiting, phases["waiting"])
	require.Equal(t, reservoir.Downloading, phases["downloading"])
	require.Equal(t, 128*kib, sizes["downloading"].Response, "the buffers hold no more of it")
	require.Equal(t, 4*mib, sizes["downloading"].Request)
	require.Equal(t, 4*mib, sizes["uploading"].Request)
	// Paused, it may be in the sample or not: 128 KiB are half of what one sample is taken of.
	require.Equal(t, 100*kib, now.Snapshots[0].Totals.Phases[reservoir.Paused], "the network filter saw exactly that come")

	// What the response of one that has ended left unread is still there, and whose it was too.
	g.Close(p.now, &left.Stream)
	var found bool
	for _, x := range p.current().Snapshots[0].Samples {
		if x.Labels.Route == "left" {
			found = true
			require.Equal(t, reservoir.Downloading, x.Phase)
			require.Equal(t, 128*kib, x.Response)
			require.Zero(t, x.Request)
		}
	}
	require.True(t, found)
}

// A request that is in no sample costs no call of the host more, and nothing at all is asked where
// a mark is far.
func TestUnsampledCostsNoHostCall(t *testing.T) {
	for _, capacity := range []int{0, 512} {
		p := newProcess(t, 1, func(c *Config) { c.Trace.Capacity = capacity })
		p.settle(20 * mib)
		r, _ := p.from(0, "", 4*mib)
		p.guards[0].Grow(p.now, &r.Stream, budget.Request, 4*mib)
		p.now += time.Second
		p.settle(22 * mib)
		p.guards[0].Close(p.now, &r.Stream)
		require.Equal(t, 2, r.hostCalls, "its connection, and its key: the same with and without tracing")
		p.settle(100 * mib)
		small, _ := p.from(0, "", 0)
		p.guards[0].Expect(p.now, &small.Stream, 100)
		p.guards[0].Grow(p.now, &small.Stream, budget.Response, 100)
		p.settle(150 * mib)
		p.guards[0].Close(p.now, &small.Stream)
		require.Equal(t, 1, small.hostCalls, "its connection")
	}
}

// Garbage, what is cut short and what another version wrote is left out and counted; the rest is
// answered.
func TestBadSnapshotsAreIgnored(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(20 * mib)
	for i := range 8 {
		p.uploading(i%2, "large", 4*mib)
	}
	p.read(70 * mib)
	id := p.workers[1].Account().ID()
	good, err := p.store.Kept(id, 1)
	require.NoError(t, err)
	for i, bad := range [][]byte{[]byte("garbage"), good[:len(good)-1], append([]byte("HWP0"), good[4:]...), make([]byte, 1<<17)} {
		require.NoError(t, p.store.Keep(id, 1, bad))
		peaks := p.workers[0].Peaks()
		require.Len(t, peaks, 1)
		require.Len(t, peaks[0].Snapshots, 1)
		require.EqualValues(t, i+1, p.workers[0].Counts()[metric.CountBadSnapshots])
	}
	// A table with garbage where the marks are begins again.
	require.NoError(t, p.workers[0].Account().Change(p.now, func(t *budget.Table) { t.Marks[4], t.Marks[6] = -5, -7 }))
	p.settle(150 * mib)
	require.NotPanics(t, func() { p.workers[0].Peaks() })
}

// 512 requests in the sample, each with labels as long and as different as clients can make them,
// take no more than 256 KiB of a worker, and what it publishes no more than 64.
func TestMemoryOfASample(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) {
		c.Budget.Limit = unit.Limit{Bytes: 64 * unit.GiB}
		c.Fairness.By = "header:x-tenant"
	})
	p.settle(20 * mib)
	var all []*request
	for i := range 600 {
		r := &request{connected: p.connection(0), route: "r", tenant: fmt.Sprint(i) + strings.Repeat("x", 1<<10)}
		require.Equal(t, verdict.Admit, p.guards[0].Open(p.now, &r.Stream, r, 16*mib).Action)
		p.guards[0].Grow(p.now, &r.Stream, budget.Request, 4*mib)
		all = append(all, r)
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	without := heap()
	now := p.current()
	now.Snapshots = nil
	grown := heap() - without
	value, err := p.store.Kept(p.workers[0].Account().ID(), lookSlot)
	require.NoError(t, err)
	own := grown - int64(cap(value)) // that is the store's
	t.Logf("a full sample takes %d KiB, and %d KiB of shared data", own>>10, len(value)>>10)
	require.LessOrEqual(t, own, 256*kib)
	require.LessOrEqual(t, len(value), reservoir.MaxSnapshot)
	s, err := reservoir.Decode(value)
	require.NoError(t, err)
	require.Greater(t, len(s.Samples), 100)
	for _, x := range s.Samples {
		require.LessOrEqual(t, len(x.Labels.Key), reservoir.MaxLabel)
	}
	runtime.KeepAlive(all)
}

// A worker that was not there when a mark was made, or has only just begun, does not freeze what it
// has now for it.
func TestALateWorkerFreezesNothing(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(20 * mib)
	p.uploading(0, "large", 4*mib)
	p.uploading(0, "large", 8*mib)
	p.read(70 * mib)
	p.now += 3 * time.Second
	p.workers[0].Tick(p.now)
	p.uploading(1, "late", 4*mib)
	p.workers[1].Tick(p.now)
	require.Len(t, p.workers[1].Peaks()[0].Snapshots, 1)
}

// Labels are asked for while memory is high, and not all at once when a mark is made: that would be
// thousands of calls of the host in one tick. Who comes and goes between two looks costs none.
func TestLabelsAreThereWhenTheMarkIsMade(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(20 * mib)
	p.uploading(0, "first", 4*mib)
	p.settle(70 * mib)
	for range 24 {
		p.read(70 * mib)
	}
	marks := len(p.workers[0].Peaks())
	stays := p.uploading(0, "stays", 4*mib)
	before := stays.hostCalls
	for range 12 {
		p.read(71 * mib)
		brief := p.uploading(0, "brief", 4*mib)
		calls := brief.hostCalls
		p.read(71 * mib)
		if stays.hostCalls == before { // no look came between
			require.Equal(t, calls, brief.hostCalls)
		}
		p.guards[0].Close(p.now, &brief.Stream)
	}
	require.Equal(t, before+1, stays.hostCalls, "its labels are known")
	p.read(120 * mib)
	require.GreaterOrEqual(t, len(p.workers[0].Peaks()), marks)
	require.Equal(t, before+1, stays.hostCalls, "the mark asks for none")
	require.Contains(t, held(p.workers[0].Peaks()[0], route), "stays")
}

// However many names clients make up, a worker keeps a bounded number of their texts.
func TestTextsOfLabelsAreBounded(t *testing.T) {
	var x tracer
	for i := range 10 * maxNames {
		x.once(fmt.Sprint(i))
	}
	require.LessOrEqual(t, len(x.names), maxNames)
}
