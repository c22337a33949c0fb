package reservoir

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

var loads = flag.Int("loads", 100, "how many random loads TestAccuracy takes")

const (
	testCapacity = 512
	testEvery    = 256 << 10
	testWorkers  = 8
	testRoutes   = 50
	testKeys     = 1000
	perWorker    = 20 * testCapacity // streams
)

// pareto are quantiles of a Pareto distribution with an infinite variance, from 2 KiB to the 16 MiB
// that a buffer may hold.
var pareto = func() (q [1 << 14]int64) {
	for i := range q {
		u := (float64(i) + .5) / float64(len(q))
		q[i] = int64(min(2048*math.Pow(1-u, -1/1.1), 16<<20))
	}
	return q
}()

var keys = func() (k [testKeys]string) {
	for i := range k {
		k[i] = fmt.Sprint("tenant-", i)
	}
	return k
}()

// truth is what one load really holds, and what theory says of the error of an estimate of it.
type truth struct {
	routes [testRoutes]struct{ held, variance float64 }
}

// play makes one load and returns what each worker froze of it, through the encoding.
func play(t *testing.T, seed uint64) (t0 truth, snapshots []Snapshot) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 14))
	type stream struct {
		reach, likely int64
		rank          float64
		route         int
	}
	streams := make([]stream, perWorker)
	names := [testRoutes]string{}
	var popular [256]int // some routes have a hundred times what others have
	for i := range names {
		names[i] = string(rune('A'+i/26)) + string(rune('a'+i%26))
	}
	for i := range popular {
		popular[i] = int(testRoutes * math.Pow(random.Float64(), 3))
	}
	scale := [testRoutes]int64{}
	for i := range scale {
		scale[i] = 1 + random.Int64N(8) // and larger requests
	}
	var buf []byte
	for worker := range testWorkers {
		var count Count
		count.Reset(testEvery)
		for i := range streams {
			bits := random.Uint64()
			s := &streams[i]
			s.route = popular[bits&255]
			s.reach = min(pareto[bits>>8&(1<<14-1)]*scale[s.route], 16<<20)
			s.likely = s.reach >> (bits >> 22 & 3) // all, half, a quarter, an eighth
			s.rank = Rank(Draw(random.Float64()), s.reach)
			count.Add(s.rank)
		}
		snapshot := Snapshot{Worker: uint32(worker + 1), Gap: count.Gap(testCapacity)}
		for i := range streams {
			s := &streams[i]
			r := &t0.routes[s.route]
			p := 1 / Weight(s.reach, snapshot.Gap)
			v := float64(s.likely)
			r.held += v
			r.variance += v * v * (1 - p) / p
			if s.rank >= snapshot.Gap {
				snapshot.Samples = append(snapshot.Samples, Sample{
					Labels: &Labels{Route: names[s.route], Key: keys[i%testKeys], Protocol: "HTTP/1.1"}, Phase: Phase(i) % NumPhases,
					Request: s.reach, Likely: s.likely, Reach: s.reach, Rank: s.rank,
				})
			}
		}
		require.LessOrEqual(t, len(snapshot.Samples), testCapacity)
		buf = snapshot.Append(buf[:0])
		decoded, err := Decode(buf)
		require.NoError(t, err)
		snapshots = append(snapshots, decoded)
	}
	return t0, snapshots
}

// Two thousand loads (make bench; a part of them here) with heavy tails, 50 routes, 1,000 keys and
// 8 workers, each with twenty times as many streams as its sample takes: the error of the ten
// largest routes is what theory says, sums are not biased, and nine in ten of the 90 % intervals
// hold the truth.
func TestAccuracy(t *testing.T) {
	var squares, variances, bias float64
	covered, cases := 0, 0
	gaps := map[float64]int{}
	for seed := range uint64(*loads) {
		t0, snapshots := play(t, seed)
		var estimates [testRoutes]Estimate
		for i := range snapshots {
			s := &snapshots[i]
			gaps[s.Gap/testEvery]++
			for j := range s.Samples {
				x := &s.Samples[j]
				route := int(x.Labels.Route[0]-'A')*26 + int(x.Labels.Route[1]-'a')
				estimates[route].Add(float64(x.Likely), s.Weight(j))
			}
		}
		var total, held float64
		order := make([]int, testRoutes)
		for i := range order {
			order[i] = i
			total += estimates[i].Sum
			held += t0.routes[i].held
		}
		bias += total/held - 1
		slices.SortFunc(order, func(a, b int) int { return int(t0.routes[b].held - t0.routes[a].held) })
		for _, i := range order[:10] {
			off := estimates[i].Sum - t0.routes[i].held
			squares += off * off
			variances += t0.routes[i].variance
			cases++
			if math.Abs(off) <= estimates[i].Error() {
				covered++
			}
		}
	}
	rms, coverage := math.Sqrt(squares/variances), float64(covered)/float64(cases)
	bias /= float64(*loads)
	t.Logf("%d loads, gaps %v × %d KiB: RMS error of the ten largest routes %.3f × theory, mean error of the total %+.3f %%, 90 %% intervals that hold the truth: %.1f %%",
		*loads, gaps, testEvery>>10, rms, 100*bias, 100*coverage)
	require.LessOrEqual(t, rms, 1.05)
	require.LessOrEqual(t, math.Abs(bias), .01)
	require.GreaterOrEqual(t, coverage, .88)
	require.LessOrEqual(t, coverage, .92)
}
