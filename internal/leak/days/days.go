// Package days makes days of an Envoy's memory, with and without a leak, and feeds them to the very
// detector and settings of the live server. What a day has is drawn: waves of load, bursts, steps,
// ramps, caches that fill, tables that grow with the most connections so far and never shrink,
// configuration that comes, buffers that nobody counts, and noise with memory.
package days

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/highwater-envoy/highwater/internal/leak"
)

// Every is the distance of samples, as live.
const Every = 10 * time.Second

const (
	perDay = int(24 * time.Hour / Every)
	mib    = 1 << 20
	hour   = float64(time.Hour / Every) // samples
	minute = float64(time.Minute / Every)
)

// Day is a day of samples, without size classes.
type Day struct {
	Samples []leak.Sample
	Leaks   time.Duration // when the leak begins; of a day without one 0
	Plain   int64         // the most memory that the day has without its leak, bytes
}

// New draws the day of a number. perMinute is what leaks, bytes; 0 = nothing does. A leak begins
// within the first eight hours, or with the day; byLoad: it follows the load, and is perMinute in
// the mean.
func New(number uint64, perMinute float64, byLoad bool) Day {
	r := rand.New(rand.NewPCG(number, 1))
	load := loads(r)
	memory := plain(r, load)
	d := Day{Samples: make([]leak.Sample, perDay)}
	for _, v := range memory.inUse {
		d.Plain = max(d.Plain, int64(v))
	}
	q := rand.New(rand.NewPCG(number, 2)) // the same day, whether it leaks or not
	begin := 0
	if q.Float64() < 0.7 {
		begin = int(q.Float64() * 8 * hour)
	}
	mean := 0.0
	for _, v := range load {
		mean += v / float64(perDay)
	}
	leaked := 0.0
	for i := range d.Samples {
		if i >= begin {
			part := 1.0
			if byLoad {
				part = load[i] / mean
			}
			leaked += perMinute / minute * part
		}
		d.Samples[i] = leak.Sample{
			At: time.Duration(i) * Every, InUse: int64(memory.inUse[i] + leaked), Finished: memory.finished[i],
			Load: memory.load[i], Config: memory.config[i], Process: 1,
		}
	}
	if perMinute > 0 {
		d.Leaks = time.Duration(begin) * Every
	}
	return d
}

// loads is requests per second over a day.
func loads(r *rand.Rand) []float64 {
	base := between(r, 5, 2000)
	load := make([]float64, perDay)
	type wave struct{ period, phase, share float64 }
	waves := []wave{{24 * hour, r.Float64(), r.Float64() * 0.9}}
	for range r.IntN(4) {
		waves = append(waves, wave{between(r, 10*minute, 6*hour), r.Float64(), r.Float64() * 0.4})
	}
	for i := range load {
		f := 1.0
		for _, w := range waves {
			f *= 1 + w.share*math.Sin(2*math.Pi*(float64(i)/w.period+w.phase))
		}
		load[i] = base * f
	}
	for range r.IntN(12) { // bursts
		at, long, high := r.IntN(perDay), int(between(r, minute/2, 20*minute)), between(r, 1.5, 8)
		scale(load, at, at+long, func(float64) float64 { return high })
	}
	for range r.IntN(4) { // steps, of which some are taken back
		at, long, high := r.IntN(perDay), perDay, between(r, 0.4, 2.5)
		if r.Float64() < 0.5 {
			long = int(between(r, 20*minute, 6*hour))
		}
		scale(load, at, at+long, func(float64) float64 { return high })
	}
	for range r.IntN(3) { // ramps
		at, long, high := r.IntN(perDay), int(between(r, 30*minute, 8*hour)), between(r, 0.5, 4)
		scale(load, at, at+long, func(part float64) float64 { return 1 + (high-1)*part })
		scale(load, at+long, perDay, func(float64) float64 { return high })
	}
	noise := red(r, 0.05, 2*minute)
	for i := range load {
		load[i] = max(load[i]*(1+noise()), 0)
	}
	return load
}

type memory struct {
	inUse    []float64
	load     []leak.Load
	finished []uint64
	config   []uint64
}

// plain is what an Envoy without a leak makes of a load.
func plain(r *rand.Rand, load []float64) memory {
	m := memory{make([]float64, perDay), make([]leak.Load, perDay), make([]uint64, perDay), make([]uint64, perDay)}
	mean := 0.0
	for _, l := range load {
		mean += l / float64(perDay)
	}
	var (
		each    = between(r, 50, 4000) / mean         // connections for each request a second: by day's mean 50 to 4,000
		latency = between(r, 5, 1000) / mean          // seconds: 5 to 1,000 requests in flight
		lag     = 1 / between(r, minute/2, 20*minute) // by which connections follow the load

		ofConnections = between(r, 2, 80) * mib / (each * mean) // memory of one
		ofRequests    = between(r, 1, 60) * mib / (latency * mean)
		kept          = between(r, 0.02, 0.4) * ofConnections // of each, in tables that never shrink
		bend          = 0.9 + 0.2*r.Float64()                 // memory is not quite in proportion
		wander        = red(r, between(r, 0.1, 1.5)*mib, 90*minute)
		noise         = red(r, between(r, 0.1, 1.5)*mib, 2*minute)
		spikes        = between(r, 0, 0.02) // share of samples that see a heap of buffers
		added         = steps(r)
		cached        = caches(r)
		start         = between(r, 15, 150) * mib // of the process
		connections   = each * load[0] * r.Float64()
		finished      float64
		most          float64
	)
	bent := func(x, mean float64) float64 { return mean * math.Pow(x/mean, bend) }
	for i, l := range load {
		finished += l * Every.Seconds()
		connections += (each*l - connections) * lag
		most = max(most, connections)
		active := l * latency
		in := start + kept*most + bent(connections, each*mean)*ofConnections + bent(active, latency*mean)*ofRequests + noise() + wander()
		extra, version := added(i)
		in += extra + cached(i, l)
		if r.Float64() < spikes {
			in += between(r, 1, 40) * mib
		}
		m.inUse[i] = max(in, 0)
		m.load[i] = leak.Load{Connections: int64(connections), Requests: int64(active)}
		m.finished[i], m.config[i] = uint64(finished), version
	}
	return m
}

// caches fill: up to four, of 1 to 60 MiB, within minutes or hours, from the start or later on, by
// time or by requests.
func caches(r *rand.Rand) func(i int, load float64) float64 {
	type cache struct {
		size, pace, full float64
		from             int
		byLoad           bool
	}
	var all []cache
	for range r.IntN(4) {
		c := cache{size: between(r, 1, 40) * mib, pace: 1 / between(r, 3*minute, 2*hour), byLoad: r.Float64() < 0.5}
		if r.Float64() < 0.5 {
			c.from = r.IntN(perDay)
		}
		all = append(all, c)
	}
	var mean float64
	return func(i int, load float64) (sum float64) {
		mean += (load - mean) / float64(i+1)
		for k := range all {
			c := &all[k]
			if i >= c.from {
				pace := c.pace
				if c.byLoad && mean > 0 {
					pace *= max(load/mean, 0.5)
				}
				c.full += (1 - c.full) * min(pace, 1)
			}
			sum += c.size * c.full
		}
		return sum
	}
}

// steps are configuration that comes, of which some brings no new version: a certificate, a script.
func steps(r *rand.Rand) func(i int) (bytes float64, version uint64) {
	type step struct {
		at    int
		bytes float64
		said  bool
	}
	var all []step
	for range r.IntN(5) {
		s := step{r.IntN(perDay), between(r, 0.2, 40) * mib, r.Float64() < 0.7}
		if !s.said {
			s.bytes = min(s.bytes, 6*mib)
		}
		all = append(all, s)
	}
	return func(i int) (bytes float64, version uint64) {
		for _, s := range all {
			if i >= s.at {
				bytes += s.bytes
				if s.said {
					version++
				}
			}
		}
		return bytes, version
	}
}

// red is noise with a deviation that forgets within so many samples.
func red(r *rand.Rand, deviation, forgets float64) func() float64 {
	keep := math.Exp(-1 / forgets)
	is := r.NormFloat64() * deviation
	return func() float64 {
		is = is*keep + r.NormFloat64()*deviation*math.Sqrt(1-keep*keep)
		return is
	}
}

// between draws so that each factor of two is as likely as another, if there is a lower bound.
func between(r *rand.Rand, low, high float64) float64 {
	if low <= 0 {
		return low + r.Float64()*(high-low)
	}
	return low * math.Pow(high/low, r.Float64())
}

func scale(load []float64, from, to int, by func(part float64) float64) {
	for i := max(from, 0); i < min(to, len(load)); i++ {
		load[i] *= by(float64(i-from) / float64(to-from))
	}
}
