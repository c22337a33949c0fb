package price

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestTheZeroValueKnowsNothing(t *testing.T) {
	var m Model
	_, known := m.Price(1)
	require.False(t, known)
	_, known = m.Connection()
	require.False(t, known)
	require.Zero(t, m.Base())
	m.Observe(time.Hour, 64*mib, 3, 13*kib, 0, []Count{{1, 2, 30 * kib}})
	price, known := m.Price(1)
	require.False(t, known)
	require.Equal(t, 30*kib, price, "what is configured")
	price, known = m.Connection()
	require.False(t, known)
	require.Equal(t, 13*kib, price)
	require.InDelta(t, 64*mib, m.Base(), float64(mib))
}

// At most 64 keys have a price. One that has none for 30 s makes place, the least used first.
func TestKeysThatAreGoneMakePlace(t *testing.T) {
	var m Model
	now := time.Hour
	read := func(keys ...Count) {
		now += 25 * time.Millisecond
		m.Observe(now, 100*mib, 0, 0, 0, keys)
	}
	var all []Count
	for id := range uint64(MaxKeys) {
		all = append(all, Count{id, 10, 30 * kib})
		read(all...) // the last is the least used
	}
	knows := func(id uint64) bool {
		bytes, _ := m.Price(id)
		return bytes != 0
	}
	read(append(all, Count{1000, 10, 30 * kib})...)
	require.False(t, knows(1000), "there is no place")
	require.True(t, knows(0))
	require.InDelta(t, 0, m.Innovation(), float64(64*mib), "what it costs is counted as configured")

	read(all[0])
	now += 30*time.Second - 50*time.Millisecond
	read(all[0], Count{1000, 10, 30 * kib})
	require.False(t, knows(1000), "they may come back")
	now += 50 * time.Millisecond
	m.x[first+MaxKeys] = 5e6 // of key 63, which goes
	read(all[0], Count{1000, 10, 40 * kib})
	require.True(t, knows(1000))
	require.False(t, knows(63), "the least used")
	require.True(t, knows(62))
	bytes, known := m.Price(1000)
	require.False(t, known)
	require.Equal(t, 40*kib, bytes, "nothing of the other key stays")
	require.Less(t, m.mean(MaxKeys), float64(mib))
}

// A key without streams is no work, and keeps its price.
func TestParkedKeysCostNothing(t *testing.T) {
	w := newWorld(1, 500<<10, 200<<10)
	for i := range 400 {
		w.read(swing(i, 90, 200), swing(i, 70, 100))
	}
	before := w.mean(1)
	require.Equal(t, first+2, w.m.used)
	require.InEpsilon(t, w.prices[0], before, .1)
	w.read(0, 10)
	require.Equal(t, first+2, w.m.used, "the fall tells of the price too")
	for i := range 100 {
		w.read(0, swing(i, 70, 100))
	}
	require.Equal(t, first+1, w.m.used)
	for j := range states {
		if j != first+1 {
			require.Zero(t, w.m.p[first+1][j])
		}
	}
	before = w.mean(1)
	for i := range 1000 {
		w.read(0, swing(i, 70, 100))
	}
	require.InDelta(t, before, w.mean(1), 0)
}

// Readings that are none, clocks that stand still or go back, and gaps.
func TestObserveOddReadings(t *testing.T) {
	w := newWorld(1, 500<<10)
	for i := range 400 {
		w.read(swing(i, 90, 200))
	}
	before := w.m
	w.m.Observe(w.now, 0, 0, 0, 0, w.counts)
	w.m.Observe(w.now, -1, 0, 0, 0, w.counts)
	require.Equal(t, before.x, w.m.x, "no reading")

	for range 100 {
		w.now -= 25 * time.Millisecond // the clock stands still
		w.read(100)
	}
	w.now -= time.Minute
	w.read(50)
	require.InEpsilon(t, w.prices[0], w.mean(1), .1)
	w.now += 100 * time.Hour
	w.read(100)
	require.InEpsilon(t, w.prices[0], w.mean(1), .1)
	require.Less(t, w.m.p[base][base], sq(20<<20), "a gap is not a hundred hours of drift")
}

// healthy says that the state is numbers, and P a covariance.
func healthy(t *testing.T, m *Model) {
	t.Helper()
	for i := range states {
		if x := m.x[i]; math.IsNaN(x) || x < 0 || x > most {
			t.Fatalf("x[%d] is %v", i, x)
		}
		for j := range states {
			p := m.p[i][j]
			if math.IsNaN(p) || math.IsInf(p, 0) {
				t.Fatalf("p[%d][%d] is %v", i, j, p)
			}
			if p*p > m.p[i][i]*m.p[j][j]*1.1 {
				t.Fatalf("p[%d][%d] is %v, between variances of %v and %v", i, j, p, m.p[i][i], m.p[j][j])
			}
			if p != m.p[j][i] {
				t.Fatalf("p[%d][%d] is %v, and %v the other way round", i, j, p, m.p[j][i])
			}
		}
	}
	for _, i := range m.active[:m.used] {
		if m.p[i][i] <= 0 {
			t.Fatalf("the variance of %d is %v", i, m.p[i][i])
		}
	}
	if math.IsNaN(m.innovation) || math.IsInf(m.innovation, 0) {
		t.Fatalf("the innovation is %v", m.innovation)
	}
}

// Whatever is read, nothing becomes no number.
func FuzzObserve(f *testing.F) {
	words := func(all ...int64) (b []byte) {
		for _, v := range all {
			b = binary.LittleEndian.AppendUint64(b, uint64(v))
		}
		return b
	}
	const huge = math.MaxInt64
	f.Add(words(1, huge, huge, huge, huge, 1, 7, huge, huge, huge, huge, huge, huge, huge, 1, 7, 1, 1, 3, 1, 0, 0, 0, 0))
	f.Add(words(1, 3472328296227680304, 3472328296227680304, 3472328296227680304, 808529968, 0, -7624541185613221840, 52983525027888, 3472328296227680304, 12336, 678965296, 0)) // all is rounding
	f.Add(words(1, huge, huge, huge, huge, 1, 4, huge, 120651585))
	f.Add(words(1, huge, 0, 0, 0, 2, 1, huge, huge, 2, huge, huge, 1e8, 1, 0, 0, 0, 2, 1, 1, huge, 2, huge, huge))
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 3))
		var b []byte
		for range 200 {
			b = binary.LittleEndian.AppendUint64(b, r.Uint64()>>r.IntN(64))
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Model
		next := func() int64 {
			if len(b) < 8 {
				b = nil
				return 0
			}
			v := int64(binary.LittleEndian.Uint64(b))
			b = b[8:]
			return v
		}
		for len(b) > 0 {
			now, reading, connections, prior, bounds := next(), next(), next(), next(), next()
			var keys []Count
			for range uint64(next()) % 5 {
				keys = append(keys, Count{uint64(next()) % 100, next(), next()})
			}
			m.Observe(time.Duration(now), reading, connections, prior, bounds, keys)
			healthy(t, &m)
			for _, k := range keys {
				price, _ := m.Price(k.ID)
				require.GreaterOrEqual(t, price, int64(0))
			}
			price, _ := m.Connection()
			require.GreaterOrEqual(t, price, int64(0))
			require.GreaterOrEqual(t, m.Base(), int64(0))
		}
	})
}

// P stays a covariance in long runs of any counts.
func TestObserveForLong(t *testing.T) {
	for seed := range uint64(2) {
		r := rand.New(rand.NewPCG(seed, 4))
		var m Model
		now := time.Hour
		for range 3000 {
			now += time.Duration(r.Int64N(int64(time.Second)))
			var keys []Count
			for id := range uint64(1 + r.IntN(80)) {
				keys = append(keys, Count{id, r.Int64N(1 << r.IntN(24)), r.Int64N(1 << r.IntN(30))})
			}
			m.Observe(now, r.Int64N(1<<40), r.Int64N(1<<20), 13*kib, r.Int64N(1<<40), keys)
			healthy(t, &m)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	for _, n := range []int{1, 8, 64} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := newWorld(1)
			const readings = 4096
			moments, levels := make([][]Count, readings), make([]int64, readings)
			for i := range n {
				w.prices = append(w.prices, float64(kib)*(20+600*w.Float64()))
				for at := range moments {
					c := Count{uint64(i) * 977, int64(1 + swing(at, 40+float64(i)*7, 100)), 30 * kib}
					moments[at] = append(moments[at], c)
					levels[at] += int64(float64(c.N) * w.prices[i])
				}
			}
			for at := range levels {
				levels[at] += 60*mib + int64(w.NormFloat64()*float64(mib))
			}
			b.ReportAllocs()
			for i := range b.N {
				w.now += 25 * time.Millisecond
				w.m.Observe(w.now, levels[i%readings], 0, 13*kib, 0, moments[i%readings])
			}
		})
	}
}
