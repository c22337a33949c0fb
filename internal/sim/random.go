package sim

import (
	"math"
	"math/rand/v2"
	"time"
)

// Trait is what a random load may have in it. The promises of the guard differ with it.
type Trait uint

// The traits.
const (
	// Unannounced messages have no length.
	Unannounced Trait = 1 << iota
	// Relapse: readers drain what Envoy holds, and then stall again.
	Relapse
	// Liars announce what they do not send, trickle, or hang up.
	Liars
	// SlowReadings: now and then a reading takes half a second, or fails.
	SlowReadings
	// Blind: there is no network filter.
	Blind
)

// Random is a load by seed, and the settings of the proxy under it: a quarter of a second to many
// seconds of uploads and downloads of all sizes and speeds, on HTTP/1 and HTTP/2, beside small
// requests.
func Random(seed uint64, workers int, has Trait) (Settings, int64, Load) {
	r := rand.New(rand.NewPCG(seed, 7))
	s := Example()
	if r.IntN(2) == 0 {
		s = Defaults()
		s.WholeRequest = []int64{0, 0, 16 << 20}[r.IntN(3)]
	} else {
		s.WholeRequest = []int64{0, 16 << 20}[r.IntN(2)]
	}
	s.Workers = workers
	limit := between(r, 64<<20, 1<<30)
	s.Base = between(r, 8<<20, limit/3)
	s.Cache = between(r, 1<<20, limit/8)
	s.CacheShare = 0
	s.Cores = float64(1 + r.IntN(min(workers, 4)))
	if has&Blind != 0 {
		s.NoNetworkFilter, s.ConnectionCost = true, 0 // what it costs is not seen, and docs/reference/limits.md says so
	}
	slowest := 1 + r.IntN(20)
	s.ReadingTime = func(n int, random *rand.Rand) Time {
		if has&SlowReadings != 0 {
			switch random.IntN(40) {
			case 0:
				return 500 * time.Millisecond
			case 1:
				return -1
			}
		}
		return 200*time.Microsecond + Time(random.IntN(slowest*1000))*time.Microsecond
	}

	l := Load{Name: "random", Duration: 2*time.Second + Time(r.IntN(3000))*time.Millisecond, Drain: 2 * time.Second}
	for range 1 + r.IntN(4) {
		c := Client{
			Class: "hog", Worker: -1, Start: Time(r.IntN(1500)) * time.Millisecond,
			Retry: Time(5+r.IntN(400)) * time.Millisecond, Fresh: r.IntN(3) == 0,
		}
		if r.IntN(4) == 0 {
			c.Worker = r.IntN(workers)
		}
		if r.IntN(2) == 0 {
			c.Every = Time(r.IntN(1000)) * time.Millisecond
		}
		group := 1 + r.IntN(1000)
		perConn := 1 + r.IntN(50)
		http2 := r.IntN(3) == 0
		call := randomCall(r, has)
		for i, c := range Repeat(1+r.IntN(150), Time(r.IntN(2000))*time.Microsecond, c) {
			if http2 {
				c.HTTP2 = group*1000 + i/perConn + 1
			}
			c.MakeCall = call
			l.Clients = append(l.Clients, c)
		}
	}
	l.Clients = append(l.Clients, Small(50)...)
	return s, limit, l
}

// between is log-uniform.
func between(r *rand.Rand, low, high int64) int64 {
	return int64(math.Exp(math.Log(float64(low)) + r.Float64()*(math.Log(float64(high))-math.Log(float64(low)))))
}

// randomCall is one kind of call; each is another one of it.
func randomCall(r *rand.Rand, has Trait) func(*rand.Rand) Call {
	upload := r.IntN(2) == 0
	low := between(r, 1<<10, 4<<20)
	high := between(r, low, 16<<20)
	wait := Time(r.IntN(2000)) * time.Millisecond
	speed := func() int64 {
		if r.IntN(2) == 0 {
			return 0
		}
		return between(r, 10<<10, 100<<20)
	}
	send, take, give, read := speed(), speed(), speed(), speed()
	chunked := has&Unannounced != 0 && r.IntN(2) == 0
	relapse := has&Relapse != 0 && r.IntN(2) == 0
	stall := Time(100+r.IntN(900)) * time.Millisecond
	lie := 0
	if has&Liars != 0 {
		lie = r.IntN(5)
	}
	return func(r *rand.Rand) Call {
		n := between(r, low, high+1)
		c := Get(n, wait)
		if upload {
			c = Upload(n, wait)
			c.SendRate, c.TakeRate = send, take
			switch {
			case chunked:
				c.Announce = Unknown
			case lie == 1: // announces and never sends
				c.Body = 1
			case lie == 2: // stops in the middle
				c.Body = n / 2
			case lie == 3:
				c.SendRate = 2000
			}
		} else {
			c.Chunked, c.GiveRate, c.ReadRate = chunked, give, read
			if relapse {
				c.Stall = func(since Time) bool { return since/stall%2 == 0 }
			}
		}
		if lie == 4 {
			c.HangUp = Time(r.IntN(2000)) * time.Millisecond
		}
		return c
	}
}
