package observer

import (
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/memory"
)

// envoyHeap is a heap whose free pages go only while a pulse is on, as far as the allocator lets
// them.
type envoyHeap struct {
	r         releaser
	now       time.Time
	heap      heap
	perSecond int64 // that go
	on        time.Duration
}

func newHeap(threshold float64, interval time.Duration, keep int64) *envoyHeap {
	h := &envoyHeap{r: releaser{threshold: threshold, interval: interval, keep: keep}, now: time.Unix(1000, 0)}
	h.heap = heap{known: true, free: 100 * mib, mapped: 150 * mib}
	return h
}

// pass lets time pass, and returns how often a pulse began meanwhile.
func (h *envoyHeap) pass(d time.Duration) (pulses uint64) {
	before := h.r.pulses
	for end := h.now.Add(d); h.now.Before(end); h.now = h.now.Add(100 * time.Millisecond) {
		if h.r.step(h.now, h.heap) {
			h.on += 100 * time.Millisecond
			n := min(h.perSecond/10, h.heap.free)
			h.heap.free -= n
			h.heap.mapped -= n
		}
	}
	return h.r.pulses - before
}

// After each interval there is a pulse, if there is more than to keep, and it ends when there is
// not.
func TestPeriodicRelease(t *testing.T) {
	h := newHeap(0, 30*time.Second, 32*mib)
	h.perSecond = 20 * mib
	require.Zero(t, h.pass(29*time.Second), "the first interval begins with the start")
	require.EqualValues(t, 1, h.pass(10*time.Second))
	require.InDelta(t, 32*mib, h.heap.free, 2*mib)
	require.InDelta(t, 68*mib, h.r.released, 2*mib)
	require.InDelta(t, 3.4, h.on.Seconds(), 0.3)
	require.Zero(t, h.pass(5*time.Minute), "as long as there is no more to give back")
	h.heap.free += 50 * mib
	h.heap.mapped += 50 * mib
	require.EqualValues(t, 1, h.pass(time.Second), "the interval has passed")
}

// What brings nothing is tried less and less often, and at the old pace when it has brought
// something.
func TestReleaseBacksOff(t *testing.T) {
	h := newHeap(0, 30*time.Second, 32*mib)
	require.LessOrEqual(t, h.pass(10*time.Minute), uint64(4), "30 s, 60 s, 2 min, 4 min")
	require.Zero(t, h.r.released)
	require.GreaterOrEqual(t, h.pass(time.Hour), uint64(60/6), "but at least each ten intervals")
	h.perSecond = mib // and now the allocator lets go, slowly
	h.pass(6 * time.Minute)
	require.InDelta(t, 32*mib, h.heap.free, 2*mib, "a pulse lasts while it brings something")
	h.heap.free, h.heap.mapped = 100*mib, 150*mib
	require.EqualValues(t, 1, h.pass(31*time.Second), "the old pace")
}

// From the threshold on all that is free is to go, and at once.
func TestThresholdRelease(t *testing.T) {
	h := newHeap(0.85, 30*time.Second, 32*mib)
	h.perSecond = 50 * mib
	h.heap.share = 0.8
	require.Zero(t, h.pass(10*time.Second))
	h.heap.share = 0.86
	require.EqualValues(t, 1, h.pass(3*time.Second))
	require.LessOrEqual(t, h.heap.free, int64(leastRelease)+5*mib)
	require.Zero(t, h.pass(time.Minute), "there is nothing left")

	h = newHeap(0.85, 0, 32*mib) // it alone
	require.Zero(t, h.pass(time.Hour))
	h.heap.share = 0.9
	require.Positive(t, h.pass(10*time.Second))
	first := h.r.pulses
	require.LessOrEqual(t, h.pass(10*time.Minute), uint64(40), "what brings nothing is tried each 10 s, beside the 12 s that it takes")
	require.Greater(t, h.r.pulses, first)
}

// Without a reading nobody knows what a pulse would bring: none begins, and one that is on ends.
func TestNoReleaseWithoutAReading(t *testing.T) {
	h := newHeap(0.85, time.Second, 0)
	h.heap.known = false
	require.Zero(t, h.pass(time.Minute))
	h.heap.known = true
	require.Positive(t, h.pass(2*time.Second))
	h.heap.known = false
	h.on = 0
	h.pass(time.Minute)
	require.LessOrEqual(t, h.on, pulseHold+time.Second)
	require.False(t, h.r.on)
}

// Whatever the heap does, pulses end, and what went is never negative.
func TestReleaserOnRandomHeaps(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		h := newHeap(rng.Float64(), time.Duration(rng.IntN(3))*10*time.Second, rng.Int64N(64*mib))
		longest := time.Duration(0)
		for range 300 {
			h.heap = heap{known: rng.IntN(4) > 0, free: rng.Int64N(200 * mib), share: rng.Float64() * 1.2}
			h.heap.mapped = h.heap.free + rng.Int64N(100*mib)
			h.perSecond = rng.Int64N(4) * 10 * mib
			released := h.r.released
			h.pass(time.Duration(rng.IntN(5000)) * time.Millisecond)
			require.GreaterOrEqual(t, h.r.released, released)
			longest = max(longest, h.now.Sub(h.r.progress)*time.Duration(btoi(h.r.on)))
		}
		require.LessOrEqual(t, longest, pulseHold+time.Second)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// A trend is a straight line; noise, a fall and a single step that is over are none.
func TestTrend(t *testing.T) {
	start := time.Unix(1000, 0)
	run := func(seconds float64, f func(s float64) int64) *trend {
		tr := &trend{}
		for s := 0.0; s <= seconds; s += 0.025 {
			tr.add(start.Add(time.Duration(s*1e9)), f(s))
		}
		return tr
	}
	require.Zero(t, (&trend{}).growth())
	require.InDelta(t, 5*mib, run(30, func(s float64) int64 { return 40*mib + int64(s*5*mib) }).growth(), 1000)
	require.InDelta(t, 5*mib, run(3, func(s float64) int64 { return int64(s * 5 * mib) }).growth(), 1000, "two seconds do")
	require.Zero(t, run(1.5, func(s float64) int64 { return int64(s * 5 * mib) }).growth(), "less does not")
	require.Zero(t, run(30, func(s float64) int64 { return 400*mib - int64(s*5*mib) }).growth())
	require.Zero(t, run(30, func(float64) int64 { return 40 * mib }).growth())
	require.Zero(t, run(30, func(s float64) int64 { return 40*mib + int64(s*51200) }).growth(), "half a MiB in ten seconds is none to speak of")
	require.Zero(t, run(30, func(s float64) int64 {
		if s > 15 {
			return 140 * mib
		}
		return 40 * mib
	}).growth(), "a step that is over")
	rng := rand.New(rand.NewPCG(1, 1))
	require.Zero(t, run(30, func(float64) int64 { return 100*mib + rng.Int64N(60*mib) }).growth(), "noise")
	require.InDelta(t, 10*mib, run(30, func(s float64) int64 { return int64(s*10*mib) + rng.Int64N(10*mib) }).growth(), mib, "a trend under noise")

	// After a gap nothing is known of what was before.
	tr := run(30, func(s float64) int64 { return int64(s * 5 * mib) })
	tr.add(start.Add(40*time.Second), 10*mib)
	require.Zero(t, tr.growth())
}

// How long it is to the limit is a figure, and a line in the log when it becomes short, once a
// minute at most.
func TestForesee(t *testing.T) {
	log := &lines{}
	o, err := New(Options{URL: "http://127.0.0.1:1", Log: textLog(log)})
	require.NoError(t, err)
	now := time.Unix(1000, 0)
	grow := func(from, perSecond int64, d time.Duration) {
		for at := time.Duration(0); at <= d; at += 100 * time.Millisecond {
			now = now.Add(100 * time.Millisecond)
			o.foresee(now, memory.Reading{InUse: from + int64(at.Seconds()*float64(perSecond))})
		}
	}
	grow(100*mib, 2*mib, 10*time.Second)
	require.Zero(t, o.mu.near.left, "without a limit")
	o.mu.limit = 200 * mib
	grow(120*mib, mib, 12*time.Second)
	require.InDelta(t, 68, o.mu.near.left.Seconds(), 1)
	require.Zero(t, log.count("memory grows"))
	grow(132*mib, 4*mib, 12*time.Second)
	require.InDelta(t, 5, o.mu.near.left.Seconds(), 1)
	require.Equal(t, 1, log.count("memory grows towards the limit"))
	require.EqualValues(t, 1, o.mu.near.times)
	grow(180*mib, 0, 20*time.Second)
	require.Zero(t, o.mu.near.left, "it has stopped")
	grow(180*mib, mib, 12*time.Second)
	require.EqualValues(t, 2, o.mu.near.times)
	require.Equal(t, 1, log.count("memory grows towards the limit"), "it was told less than a minute ago")
	grow(205*mib, mib, 12*time.Second)
	require.Equal(t, time.Millisecond, o.mu.near.left, "beyond the limit it is now")
}

// Pressure is the larger of the shares of the budget and of the container, looks a second ahead,
// rises at once and falls slowly.
func TestPressing(t *testing.T) {
	o, err := New(Options{URL: "http://127.0.0.1:1"})
	require.NoError(t, err)
	now := time.Unix(1000, 0)
	require.Zero(t, o.pressing(now), "what is not known presses nothing")
	o.mu.asked = now
	o.mu.reading = memory.Reading{InUse: 100 * mib, Free: 50 * mib}
	require.Zero(t, o.pressing(now), "without a limit")
	o.mu.limit = 200 * mib
	require.InDelta(t, 0.5, o.pressing(now), 1e-9)
	o.mu.figures.container = &cgroup.Stats{Limit: 300 * mib, High: cgroup.NoLimit, WorkingSet: 230 * mib}
	require.InDelta(t, 0.6, o.pressing(now), 1e-9, "free pages can be given back: 180 of 300")
	o.mu.figures.container.High = 225 * mib
	require.InDelta(t, 0.8, o.pressing(now), 1e-9, "the kernel throttles from there on")
	o.mu.figures.container = &cgroup.Stats{Limit: cgroup.NoLimit, High: cgroup.NoLimit, WorkingSet: 1 << 40}
	require.InDelta(t, 0.5, o.pressing(now), 1e-9, "a container without a limit presses nothing")
	o.mu.reading.InUse = 500 * mib
	require.InDelta(t, 1, o.pressing(now), 1e-9, "Envoy refuses more than 1")
	later := now.Add(staleAfter)
	require.Zero(t, o.pressing(later), "a stale reading is none")
	o.mu.figures.container = &cgroup.Stats{Limit: 300 * mib, High: cgroup.NoLimit, WorkingSet: 240 * mib}
	require.InDelta(t, 0.8, o.pressing(later), 1e-9, "then the container is all that is seen")

	o.mu.figures.container = nil
	for s := 0.0; s <= 10; s += 0.1 {
		at := now.Add(time.Duration(s * 1e9))
		o.mu.asked = at
		o.mu.reading.InUse = 100*mib + int64(s*4*mib)
		o.mu.trend.add(at, o.mu.reading.InUse)
	}
	require.InDelta(t, 144.0/200, o.pressing(o.mu.asked), 0.005, "140 and a second's growth")

	require.InDelta(t, 0.9, fall(0.2, 0.9), 1e-9)
	p := 0.9
	for range 10 {
		p = fall(p, 0)
	}
	require.InDelta(t, 0.8, p, 1e-9, "a tenth in a second")
}

// The share that the threshold is compared with has the free pages in it: of the container, or of
// the budget where there is none.
func TestHeapShare(t *testing.T) {
	o, err := New(Options{URL: "http://127.0.0.1:1"})
	require.NoError(t, err)
	now := time.Unix(1000, 0)
	require.Equal(t, heap{}, o.heap(now))
	o.mu.asked = now
	o.mu.reading = memory.Reading{InUse: 100 * mib, Free: 50 * mib, Mapped: 140 * mib}
	require.Equal(t, heap{known: true, free: 50 * mib, mapped: 140 * mib}, o.heap(now))
	o.mu.limit = 200 * mib
	require.InDelta(t, 0.75, o.heap(now).share, 1e-9)
	o.mu.figures.container = &cgroup.Stats{Limit: 300 * mib, High: 250 * mib, WorkingSet: 225 * mib}
	require.InDelta(t, 0.9, o.heap(now).share, 1e-9)
}

// What a reading costs this process, 40 times a second under load: the question to admin (with the
// answer's side of it), and what is read of the kernel.
func BenchmarkRead(b *testing.B) {
	server := httptest.NewServer(answersMemory(100*mib, 20*mib))
	defer server.Close()
	config := Default()
	config.Envoy.PID = os.Getpid()
	o, err := New(Options{URL: server.URL, Config: config})
	require.NoError(b, err)
	for b.Loop() {
		o.admin.next = time.Time{}
		if _, _, err := o.read(b.Context(), true); err != nil {
			b.Fatal(err)
		}
	}
	o.admin.client.CloseIdleConnections()
}

func BenchmarkLook(b *testing.B) {
	t := target{root: os.DirFS("/"), config: Envoy{PID: os.Getpid()}}
	for b.Loop() {
		t.look(time.Time{}.Add(time.Hour), nil)
	}
}
