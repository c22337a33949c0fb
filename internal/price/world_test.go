package price

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// world is an Envoy whose prices are known: what the model should find out.
type world struct {
	*rand.Rand
	m      Model
	now    time.Duration
	base   float64
	noise  float64   // deviation of a reading that the next does not share
	prior  int64     // of each key
	prices []float64 // of keys 1, 2, …
	counts []Count
	extra  float64 // what else there is
}

func newWorld(seed uint64, prices ...float64) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 1)), now: time.Hour, base: 60 << 20, noise: 1 << 20, prior: 30 * kib, prices: prices}
	w.m.Matters = 8 * mib
	for i := range prices {
		w.counts = append(w.counts, Count{ID: uint64(i + 1)})
	}
	return w
}

// read is one reading, 25 ms later, with so many streams of each key.
func (w *world) read(n ...float64) {
	w.now += 25 * time.Millisecond
	z := w.base + w.extra + w.NormFloat64()*w.noise
	for i, n := range n {
		w.counts[i].N, w.counts[i].Prior = int64(max(n, 0)), w.prior
		z += float64(w.counts[i].N) * w.prices[i]
	}
	w.m.Observe(w.now, max(int64(z), 1), 0, 13*kib, 0, w.counts)
}

// price is what is in force for a key.
func (w *world) price(id uint64) float64 {
	p, _ := w.m.Price(id)
	return float64(p)
}

// mean is what the model holds the price of a key to be, known or not.
func (w *world) mean(id int) float64 {
	for i := range w.m.stocks {
		if i > 0 && w.m.stocks[i].taken && w.m.stocks[i].id == uint64(id) {
			return w.m.mean(i)
		}
	}
	return float64(w.prior)
}

// swing is a count between 0 and most that takes so many readings to come and go.
func swing(i int, period, most float64) float64 {
	return most / 2 * (1 - math.Cos(2*math.Pi*float64(i)/period))
}

func within(price, truth, share float64) bool { return math.Abs(price-truth) <= share*truth }

// A key that has two streams beside the flood of another must not get its price, nor that of a
// world that is restless by itself: its clients would be locked out.
func TestABystanderIsNotBlamed(t *testing.T) {
	for _, matters := range []int64{mib, 4 * mib, 8 * mib, 16 * mib} {
		wrong, high, all, dear := 0, 0, 0, 0
		for seed := range uint64(60) {
			w := newWorld(seed, 10e3+50e3*rand.New(rand.NewPCG(seed, 2)).Float64(), 0)
			w.m.Matters = matters
			w.prices[1] = math.Exp(w.Float64()*4) * 40e3
			flood, innocent := 0., 0.
			most := (100 + 400*w.Float64()) * float64(mib) / w.prices[1]
			period := 40 + 400*w.Float64()
			const memory = .95 // of noise, from reading to reading: 20 of them
			for i := range 800 {
				w.extra = memory*w.extra + math.Sqrt(1-memory*memory)*w.NormFloat64()*8*float64(mib)
				flood = swing(i, period, most)
				if w.Float64() < .1 {
					innocent = float64(w.IntN(5))
				}
				w.read(innocent, flood)
				all++
				price, known := w.m.Price(1)
				if known && float64(price) > 2*w.prices[0]+64*1024 {
					wrong++
				}
				if known && price >= mib {
					high++
				}
				if _, known := w.m.Price(2); known {
					dear++
				}
			}
		}
		t.Logf("matters from %d MiB: too high in %.3f %% of readings, 1 MiB in %.3f %%; the flood's is known in %.0f %%",
			matters/mib, 100*float64(wrong)/float64(all), 100*float64(high)/float64(all), 100*float64(dear)/float64(all))
		require.Less(t, float64(wrong)/float64(all), .005)
		if matters > mib {
			require.Zero(t, high)
		}
	}
}

// What a stream costs changes, and the price with it, within 2 s of load. Where what it costs no
// longer matters, what is configured is in force.
func TestAPriceFollowsTheWorld(t *testing.T) {
	for seed := range uint64(3) {
		for _, most := range []float64{200, 1000} {
			w, i := newWorld(seed, 20<<10), 0
			load := func(readings int) {
				for range readings {
					w.read(swing(i, 80, most))
					i++
				}
			}
			load(3600*40 + int(seed)*8) // an hour
			for range 2 {
				w.prices[0] = 500 << 10
				load(80)
				require.InEpsilon(t, w.prices[0], w.price(1), .2, "seed %d, up to %.0f streams", seed, most)
				load(4000)
				w.prices[0] = 20 << 10
				load(80)
				if most == 1000 {
					require.InEpsilon(t, w.prices[0], w.mean(1), .2, "seed %d", seed)
				}
				require.LessOrEqual(t, w.price(1), float64(w.prior), "seed %d", seed)
				load(4000)
			}
		}
	}
}

// An allocator's caches hold what ended streams had. Neither is a stream cheaper for it, nor is it
// base: traffic can have it.
func TestCachesThatHold(t *testing.T) {
	lowest, highest, base := math.MaxFloat64, 0., 0.
	for seed := range uint64(50) {
		w := newWorld(seed, 500<<10)
		cache := 0.
		for i := range 80 {
			w.read(float64(i) * 2)
		}
		for range 5 {
			for i := range 160 { // it rises, and takes what caches have
				n := min(float64(i)*2, 200)
				w.extra = max(cache-n*w.prices[0], 0)
				w.read(n)
			}
			cache = 30 << 20
			for i := range 10 * 40 {
				n := max(200-float64(i)*5, 0)
				w.extra = min(30<<20, (200-n)*w.prices[0])
				w.read(n)
				lowest, highest = min(lowest, w.m.mean(1)), max(highest, w.m.mean(1))
				base = max(base, float64(w.m.Base()))
			}
			if seed%2 == 0 { // they give it back
				cache, w.extra = 0, 0
				for range 80 {
					w.read(0)
				}
			}
		}
	}
	t.Logf("of 500 KiB: %.0f to %.0f KiB; base of 60 MiB: up to %.0f MiB", lowest/1024, highest/1024, base/float64(mib))
	require.Greater(t, lowest, .9*500*1024)
	require.Less(t, highest, 1.3*500*1024)
	require.Less(t, base, float64(75*mib))
}

// Streams that come and go at once teach that they are cheap, and then they stall: what they hold
// shows.
func TestAnAttackerTeachesALowPrice(t *testing.T) {
	for seed := range uint64(50) {
		w := newWorld(seed, 5<<10)
		for i := range 40 * 60 {
			w.read(200 * float64(i/3%2))
		}
		require.Less(t, w.m.mean(1), 40e3)
		for i := range 20 { // each is filled within 200 ms
			w.prices[0] = min(500, float64(i+1)/8*500) * 1024
			w.read(200)
		}
		require.InEpsilon(t, 500*1024, w.price(1), .2, "seed %d", seed)
	}
}

// Base may wander, and then no stream is dearer.
func TestBaseFollowsALeak(t *testing.T) {
	w := newWorld(1, 100<<10)
	for i := range 40 * 60 {
		w.base += 64 << 10 // 2.5 MiB a second
		w.read(swing(i, 160, 200))
	}
	require.InEpsilon(t, w.base, float64(w.m.Base()), .1)
	require.InEpsilon(t, w.prices[0], w.m.mean(1), .2)
}

// A key's streams that are always as many as ever may cost anything: base may be it as well.
func TestAConstantCountTellsNothing(t *testing.T) {
	w := newWorld(1, 800<<10, 100<<10)
	for i := range 40 * 60 {
		w.read(50, swing(i, 160, 200))
		_, known := w.m.Price(1)
		require.False(t, known)
	}
	require.InDelta(t, w.prior, w.price(1), 0, "what is configured")

	// Nor does one that is 64 or 65 tell what 64 cost, though something moves in step with it.
	w = newWorld(2, 0)
	for i := range 40 * 60 {
		w.extra = float64(i % 2 * 600 << 10)
		w.read(float64(64 + i%2))
		_, known := w.m.Price(1)
		require.False(t, known)
	}
	require.Less(t, w.m.sd(1), float64(sure))
}

// A key that was dear once and has few streams since is not told apart from others.
func TestAPriceThatMattersNoMore(t *testing.T) {
	w := newWorld(1, 500<<10)
	for i := range 160 {
		w.read(swing(i, 160, 200))
	}
	w.now += 12 * time.Hour
	w.read(0)
	w.read(1)
	require.InEpsilon(t, 500<<10, w.price(1), .2, "after a night")
	for i := range 40 * 300 {
		w.read(swing(i, 40, 6))
	}
	require.Less(t, w.m.sd(1), float64(sure))
	require.InDelta(t, w.prior, w.price(1), 0)
}

// load is how many streams of a key there are at each reading: it ramps and is gone, or comes at
// once and drains, or swings.
type load struct {
	kind                int
	period, most, phase float64
}

func (l load) at(i int) float64 {
	at := math.Mod(float64(i)/l.period+l.phase*min(float64(i)/l.period, 1), 1)
	switch l.kind {
	case 0:
		return l.most * at
	case 1:
		return l.most * min(at*8, (1-at)*8/7)
	default:
		return swing(i, l.period, l.most) * min(float64(i)/20, 1)
	}
}

// randomWorld has 1 to 6 keys of 10 KiB to 2 MiB, that hold 20 to 200 MiB together.
func randomWorld(seed uint64) (w *world, loads []load) {
	w = newWorld(seed)
	w.base = float64((6 + w.Int64N(54)) * mib)
	keys := 1 + w.IntN(6)
	for i := range keys {
		price := float64(10*kib) * math.Exp(w.Float64()*math.Log(204.8))
		w.prices = append(w.prices, price)
		w.counts = append(w.counts, Count{ID: uint64(i + 1)})
		holds := (20 + 180*w.Float64()) / float64(keys) * float64(mib)
		loads = append(loads, load{w.IntN(3), 10 + 70*w.Float64(), holds / price, w.Float64()})
	}
	for range 10 {
		w.read(make([]float64, keys)...)
	}
	return w, loads
}

// Prices are found in worlds of up to six keys whose counts ramp, drain and swing. Some worlds do
// not tell: where keys come and go together, no estimator can part them. Those are counted apart.
func TestRandomWorlds(t *testing.T) {
	const worlds = 1000
	right, can, rightOfCan, inForce := 0, 0, 0, 0
	var innovations, first []float64
	for seed := range uint64(worlds) {
		w, loads := randomWorld(seed)
		n := make([]float64, len(loads))
		info := newInformation(len(loads))
		for i := range 400 {
			for k := range n {
				n[k] = math.Floor(loads[k].at(i))
			}
			w.read(n...)
			info.add(n)
			if i < 80 {
				first = append(first, math.Abs(w.m.innovation))
			} else {
				innovations = append(innovations, math.Abs(w.m.innovation))
			}
			if i == 80 {
				fine, known, told := w.judge(loads, info.deviations())
				right += count(fine)
				inForce += count(known)
				can += count(told)
				rightOfCan += count(told && fine)
			}
		}
	}
	p99 := percentile(innovations, .99)
	t.Logf("after 2 s the prices are within 20 %% in %d of %d worlds, in %d of the %d that tell them; those in force in %d; innovation p50 %.1f, p99 %.1f MiB, in the first 2 s %.1f and %.1f",
		right, worlds, rightOfCan, can, inForce, percentile(innovations, .5)/float64(mib), p99/float64(mib), percentile(first, .5)/float64(mib), percentile(first, .99)/float64(mib))
	require.GreaterOrEqual(t, float64(rightOfCan), .95*float64(can))
	require.GreaterOrEqual(t, can, worlds*9/10)
	require.GreaterOrEqual(t, right, worlds*9/10)
	require.Less(t, p99, float64(10*mib))
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

// judge says of the keys that make at least 5 % of the memory whether their prices are within 20 %
// of the truth, whether those are that are in force, and whether least squares could tell: by 2.5
// deviations of theirs.
func (w *world) judge(loads []load, deviations []float64) (fine, known, told bool) {
	all := w.base
	for k, l := range loads {
		all += l.most * w.prices[k]
	}
	fine, known, told = true, true, true
	for k, l := range loads {
		if l.most*w.prices[k] < .05*all {
			continue
		}
		price, inForce := w.m.Price(uint64(k + 1))
		fine = fine && within(w.mean(k+1), w.prices[k], .2)
		known = known && (!inForce || within(float64(price), w.prices[k], .25))
		told = told && 2.5*deviations[k]*w.noise < .2*w.prices[k]
	}
	return fine, known, told
}

// information is what the best of estimators could know of the prices: the normal equations of
// least squares, for noise of deviation 1.
type information [][]float64

func newInformation(keys int) information {
	n := make(information, keys+1)
	for i := range n {
		n[i] = make([]float64, keys+1)
	}
	return n
}

func (n information) add(counts []float64) {
	at := func(i int) float64 {
		if i == len(counts) {
			return 1
		}
		return counts[i]
	}
	for i := range n {
		for j := range n {
			n[i][j] += at(i) * at(j)
		}
	}
}

// deviations are the square roots of the inverse's diagonal (Cramér 1946, Rao 1945): Gauss and
// Jordan.
func (n information) deviations() (sds []float64) {
	size := len(n)
	a := make([][]float64, size)
	for i := range a {
		a[i] = make([]float64, 2*size)
		copy(a[i], n[i])
		a[i][i] += 1e-12
		a[i][size+i] = 1
	}
	for i := range a {
		for j := i + 1; j < size; j++ {
			if math.Abs(a[j][i]) > math.Abs(a[i][i]) {
				a[i], a[j] = a[j], a[i]
			}
		}
		for k := 2*size - 1; k >= 0; k-- {
			a[i][k] /= a[i][i]
		}
		for j := range a {
			if f := a[j][i]; j != i {
				for k := range a[j] {
					a[j][k] -= f * a[i][k]
				}
			}
		}
	}
	for i := range size {
		sds = append(sds, math.Sqrt(math.Abs(a[i][size+i])))
	}
	return sds
}
