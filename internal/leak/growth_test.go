package leak

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// minutes makes samples of an Envoy under a load that swings by five, in which a class leaks.
type minutes struct {
	r        *rand.Rand
	at       time.Duration
	finished float64
	leaked   float64
	swings   bool
}

// sample is of ten seconds, in which each request leaks so many objects.
func (m *minutes) sample(each float64) Sample {
	rate := 120.0 // a second
	if m.swings {
		rate = 120 - 80*math.Cos(2*math.Pi*m.at.Seconds()/100)
	}
	rate *= 1 + 0.05*m.r.NormFloat64()
	m.at += 10 * time.Second
	m.finished += rate * 10
	m.leaked += rate * 10 * each
	active := rate * 0.1 * (1 + 0.2*m.r.NormFloat64())
	noise := func(n, of float64) int64 { return int64(max(n+of*m.r.NormFloat64(), 0)) }
	classes := []Class{
		{896, noise(200+active+m.leaked, 10)}, {64, noise(50_000+40*active, 400)}, {16 << 10, noise(20+3*active, 30)}, {4096, noise(40+active, 5)}, {112, noise(4000, 40)},
	}
	s := Sample{At: m.at, Classes: classes, Finished: uint64(m.finished), Process: 1, Load: Load{Connections: int64(20 + active), Requests: int64(active)}}
	for _, c := range classes {
		s.InUse += c.Size * c.Live
	}
	return s
}

// 2 MB a minute are told within five minutes, with the class, and only these.
func TestGrowth(t *testing.T) {
	for _, swings := range []bool{false, true} {
		told := 0
		for seed := range uint64(50) {
			m := &minutes{r: rand.New(rand.NewPCG(seed, 1)), swings: swings}
			d := New(Default())
			for range 60 {
				d.Add(m.sample(0))
				require.False(t, d.Growth().Found(), "%v", d.Growth())
			}
			each := 2e6 / 60 / 896 / 120 // objects a request: 2 MB a minute
			for range 30 {
				d.Add(m.sample(each))
				if d.Growth().Found() {
					break
				}
			}
			if g := d.Growth(); g.Found() {
				told++
				require.Equal(t, int64(896), g.Size)
			}
		}
		require.Greater(t, told, 47, "swings %v", swings)
	}
}

// What grows almost without noise is told too, though its rest bends: one object a request, of a
// rate that drifts.
func TestGrowthWithoutNoise(t *testing.T) {
	d := New(Default())
	finished, leaked := 0.0, 100.0
	for i := range 30 {
		rate := 1000 * (1 + 0.1*math.Sin(float64(i)/10))
		finished += rate
		leaked += rate
		d.Add(Sample{At: time.Duration(i) * 10 * time.Second, InUse: 1, Finished: uint64(finished), Classes: []Class{{896, int64(leaked)}, {16, 50}}})
	}
	require.True(t, d.Growth().Found())
	require.Contains(t, d.Growth().String(), "896-byte objects, about one a request")
}

// A step, a ramp of load and a cache that has filled are no growth that load does not explain.
func TestNoGrowth(t *testing.T) {
	for name, live := range map[string]func(i int) (live, connections float64){
		"a step":        func(i int) (float64, float64) { return float64(min(i/20, 1)) * 40_000, 100 },
		"a ramp":        func(i int) (float64, float64) { return 100 * float64(i) * 10, 10 * float64(i) },
		"a cache":       func(i int) (float64, float64) { return 50_000 * (1 - math.Exp(-float64(i)/4)), 100 },
		"a load's wave": func(i int) (float64, float64) { w := 100 + 80*math.Sin(float64(i)/5); return 100 * w, w },
	} {
		r := rand.New(rand.NewPCG(1, 2))
		d := New(Default())
		for i := range 60 {
			n, connections := live(min(i, 45))
			d.Add(Sample{
				At: time.Duration(i) * 10 * time.Second, InUse: 1, Finished: uint64(i) * 1000, Load: Load{Connections: int64(connections)},
				Classes: []Class{{896, int64(max(n+20*r.NormFloat64(), 0))}},
			})
			require.False(t, d.Growth().Found(), "%s at %d: %v", name, i, d.Growth())
		}
	}
}

// What begins again: another process, another configuration, and counters that fall.
func TestBeginsAgain(t *testing.T) {
	for name, change := range map[string]func(s *Sample){
		"process": func(s *Sample) { s.Process++ }, "configuration": func(s *Sample) { s.Config++ }, "counters": func(s *Sample) { s.Finished = 0 },
		"a gap": func(s *Sample) { s.At += time.Hour },
	} {
		m := &minutes{r: rand.New(rand.NewPCG(3, 1))}
		d := New(Default())
		for range 30 {
			d.Add(m.sample(0.5))
		}
		require.True(t, d.Growth().Found(), name)
		s := m.sample(0.5)
		change(&s)
		d.Add(s)
		require.False(t, d.Growth().Found(), name)
	}
}

// An hour of 1 MiB a minute is a leak, and the words of both verdicts say what an operator needs.
func TestLeak(t *testing.T) {
	d := New(Default())
	r := rand.New(rand.NewPCG(4, 1))
	var told time.Duration
	for at := time.Duration(0); at < 3*time.Hour && told == 0; at += 10 * time.Second {
		d.Add(Sample{At: at, InUse: int64(100*mib + at.Minutes()*mib + r.NormFloat64()*mib), Load: Load{Connections: 100}})
		if d.Leak().Found() {
			told = at
		}
	}
	require.NotZero(t, told)
	require.LessOrEqual(t, told, 90*time.Minute)
	require.Regexp(t, `^(0\.9\d|1) MiB a minute over the last 1h$`, d.Leak().String())
	require.Equal(t, "2.1 MiB a minute: 64-byte objects, about 2.5 a request", Growth{PerMinute: 2.1 * mib, Size: 64, Objects: 25, Requests: 10}.String())
	require.Equal(t, "2 MiB a minute: 64-byte objects, about one in 4 requests", Growth{PerMinute: 2 * mib, Size: 64, Objects: 25, Requests: 100}.String())
	require.Equal(t, "2 MiB a minute: 64-byte objects, 25 a minute", Growth{PerMinute: 2 * mib, Size: 64, Objects: 25}.String())
	require.Equal(t, "none", Leak{}.String())
}
