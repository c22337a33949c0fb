package reservoir

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A stream's draw decides for all gaps at once: the share of streams that is sampled is that of
// theory at each, and who is sampled at one gap is at every smaller one.
func TestDrawHoldsForEveryGap(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	const n, reach = 200_000, 100_000
	gaps := []float64{10_000, 100_000, 1_000_000}
	sampled := [3]int{}
	for range n {
		rank := Rank(Draw(random.Float64()), reach)
		for i, gap := range gaps {
			if rank >= gap {
				sampled[i]++
			}
		}
	}
	for i, gap := range gaps {
		p := 1 - math.Exp(-reach/gap)
		require.InDelta(t, p, float64(sampled[i])/n, 4*math.Sqrt(p*(1-p)/n), "gap %v", gap)
		require.InEpsilon(t, 1/p, Weight(reach, gap), 1e-9)
	}
	require.Positive(t, Draw(0), "nothing has an infinite rank")
	require.Less(t, Draw(0), 1e-30)
	require.Zero(t, Rank(Draw(.5), 0))
}

func TestGapIsTheSmallestWithRoom(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var c Count
		c.Reset(1000)
		ranks := make([]float64, random.IntN(2000))
		for i := range ranks {
			ranks[i] = Rank(Draw(random.Float64()), random.Int64N(1<<uint(1+random.IntN(40))))
			c.Add(ranks[i])
		}
		capacity := 1 + random.IntN(300)
		at := func(gap float64) (n int) {
			for _, r := range ranks {
				if r >= gap {
					n++
				}
			}
			return n
		}
		gap := c.Gap(capacity)
		require.LessOrEqual(t, at(gap), capacity)
		if gap > 1000 {
			require.Greater(t, at(gap/2), capacity)
		}
	}
	var c Count
	c.Reset(1)
	require.InDelta(t, 1, c.Gap(0), 0)
	c.Add(math.MaxFloat64)
	require.InDelta(t, math.Ldexp(1, maxOctaves), c.Gap(0), 0)
}

func TestMarksThatCannotBe(t *testing.T) {
	require.True(t, (&Marks{Slot: MaxKeep + 1, HighSlot: MaxKeep + 1, Height: maxSize, High: maxSize, Low: -maxSize}).Valid())
	for _, m := range []Marks{
		{Epoch: -1},
		{Episode: -1},
		{Height: -1},
		{Height: math.MaxInt64},
		{High: math.MaxInt64},
		{Low: math.MaxInt64},
		{Low: math.MinInt64},
		{Slot: -1},
		{Slot: MaxKeep + 2},
		{Slot: 1 << 32},
		{HighSlot: -1},
		{HighSlot: MaxKeep + 2},
	} {
		require.False(t, m.Valid(), "%+v", m)
	}
}

func TestMarks(t *testing.T) {
	r := Rules{Step: .05, Floor: 8 << 20, Keep: 2}
	var m Marks
	mib := func(n int64) int64 { return n << 20 }
	now := Time(0)
	next := func(use int64) bool {
		now += 25 * time.Millisecond
		marked := m.Next(now, use, &r)
		if marked {
			require.Equal(t, now, m.At)
			require.Equal(t, use, m.Height)
		}
		require.True(t, m.Valid())
		require.Equal(t, m, MarksOf(m.Fields()))
		return marked
	}
	require.False(t, next(mib(7)), "below the floor")
	require.True(t, next(mib(10)))
	require.False(t, next(mib(10)+mib(1)/4), "less than a step")
	require.True(t, next(mib(20)))
	require.False(t, next(mib(15)), "the episode goes on")
	require.False(t, next(mib(20)))
	require.Equal(t, Marks{Epoch: 2, At: m.At, Episode: 1, Height: mib(20), Slot: 1, High: mib(20), HighSlot: 1}, m)
	require.False(t, next(mib(13)), "it ends below 70 %")
	require.False(t, next(mib(20)), "and the next one begins where memory has risen by the floor")
	require.False(t, next(mib(12)))
	require.False(t, next(mib(9)), "memory that falls makes no marks")
	require.False(t, next(mib(10)))
	require.True(t, next(mib(17)))
	require.EqualValues(t, 2, m.Episode)
	require.EqualValues(t, 2, m.Slot)
	require.EqualValues(t, 1, m.HighSlot)
	// The highest keeps its slot, and the others take turns in the rest.
	slots := []int64{}
	for range 4 {
		require.False(t, next(0))
		require.True(t, next(mib(9)))
		slots = append(slots, m.Slot)
	}
	require.Equal(t, []int64{3, 2, 3, 2}, slots)
	require.False(t, next(0))
	require.True(t, next(mib(100)))
	require.Equal(t, m.Slot, m.HighSlot)
	require.EqualValues(t, 3, m.Slot)
	require.False(t, next(0))
	require.True(t, next(mib(9)))
	require.EqualValues(t, 1, m.Slot, "the old highest one's is free")
	r.Keep = 1 // another configuration
	require.False(t, next(0))
	require.True(t, next(mib(9)))
	require.LessOrEqual(t, m.Slot, int64(r.Slots()))
}

func snapshot(n int, label func(i int) string) Snapshot {
	s := Snapshot{
		Worker: 3, Episode: 4, Epoch: 5, At: time.Hour, Level: 2, Limit: 200 << 20, InUse: 180 << 20, Allocated: 170 << 20, Base: 20 << 20, Gap: 1000,
		Totals: Totals{Streams: int64(n), Connections: 7, Likely: 1 << 20, Bound: 2 << 20, Phases: [NumPhases]int64{1, 2, 3, 4}, PhaseBounds: [NumPhases]int64{5, 6, 7, 8}},
	}
	for i := range n {
		s.Samples = append(s.Samples, Sample{
			Labels: &Labels{VirtualHost: "all", Route: "r", Cluster: "c", Method: "PUT", Key: label(i), Source: "10.0.0.1", Protocol: "HTTP/2"},
			Phase:  Phase(i) % NumPhases, Age: Time(i) * time.Second, Request: int64(i), Response: 1 << 20, Likely: 5, Reach: 1<<20 + int64(i), Rank: 1000 * math.Exp2(float64(i%8)),
		})
	}
	return s
}

func TestSnapshotRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 512} {
		want := snapshot(n, func(i int) string { return fmt.Sprint(i % 10) })
		buf := want.Append([]byte("before"))
		got, err := Decode(buf[len("before"):])
		require.NoError(t, err)
		if n == 0 {
			got.Samples = nil
		}
		require.Equal(t, want, got)
		at, ok := AtOf(buf[len("before"):])
		require.True(t, ok)
		require.Equal(t, want.At, at)
		t.Logf("%d samples: %d bytes", n, len(buf)-6)
	}
}

// What is too large is thinned: to the sample that a larger gap would have taken.
func TestSnapshotIsThinned(t *testing.T) {
	s := snapshot(2000, func(i int) string { return fmt.Sprint(i) + strings.Repeat("x", MaxLabel-4) })
	buf := s.Append(nil)
	require.LessOrEqual(t, len(buf), MaxSnapshot)
	got, err := Decode(buf)
	require.NoError(t, err)
	require.InDelta(t, 128_000, got.Gap, 0)
	require.Len(t, got.Samples, 2000/8)
	for i := range got.Samples {
		require.GreaterOrEqual(t, got.Samples[i].Rank, got.Gap)
	}
}

func TestLabelsAreCut(t *testing.T) {
	l := Labels{Route: strings.Repeat("r", 1<<20), Key: "k"}
	l.Cut()
	require.Equal(t, Labels{Route: strings.Repeat("r", MaxLabel), Key: "k"}, l)
}

// Every prefix of a snapshot, and one with anything behind it, is refused, with nothing in it.
func TestDecodeRefuses(t *testing.T) {
	s := snapshot(20, func(i int) string { return fmt.Sprint(i) })
	buf := s.Append(nil)
	for n := range buf {
		got, err := Decode(buf[:n])
		require.ErrorIs(t, err, ErrSnapshot)
		require.Equal(t, Snapshot{}, got)
	}
	_, err := Decode(append(buf, 0))
	require.ErrorIs(t, err, ErrSnapshot)
	buf[0]++
	_, err = Decode(buf)
	require.ErrorIs(t, err, ErrSnapshot, "another version")
	_, ok := AtOf(buf)
	require.False(t, ok)
}

// What no process can hold is not added up with what others do.
func TestDecodeRefusesWhatCannotBe(t *testing.T) {
	decode := func(edit func(s *Snapshot)) error {
		s := snapshot(2, func(i int) string { return fmt.Sprint(i) })
		edit(&s)
		_, err := Decode(s.Append(nil))
		return err
	}
	for name, edit := range map[string]func(s *Snapshot, v int64){
		"limit":        func(s *Snapshot, v int64) { s.Limit = v },
		"in use":       func(s *Snapshot, v int64) { s.InUse = v },
		"allocated":    func(s *Snapshot, v int64) { s.Allocated = v },
		"base":         func(s *Snapshot, v int64) { s.Base = v },
		"streams":      func(s *Snapshot, v int64) { s.Totals.Streams = v },
		"connections":  func(s *Snapshot, v int64) { s.Totals.Connections = v },
		"likely":       func(s *Snapshot, v int64) { s.Totals.Likely = v },
		"bound":        func(s *Snapshot, v int64) { s.Totals.Bound = v },
		"phases":       func(s *Snapshot, v int64) { s.Totals.Phases[Waiting] = v },
		"phase bounds": func(s *Snapshot, v int64) { s.Totals.PhaseBounds[Downloading] = v },
		"request":      func(s *Snapshot, v int64) { s.Samples[1].Request = v },
		"response":     func(s *Snapshot, v int64) { s.Samples[1].Response = v },
		"held":         func(s *Snapshot, v int64) { s.Samples[1].Likely = v },
		"reach":        func(s *Snapshot, v int64) { s.Samples[1].Reach = v },
	} {
		require.NoError(t, decode(func(s *Snapshot) { edit(s, maxSize) }), name)
		for _, v := range []int64{maxSize + 1, math.MaxInt64, math.MinInt64} {
			require.ErrorIs(t, decode(func(s *Snapshot) { edit(s, v) }), ErrSnapshot, name)
		}
	}
	require.NoError(t, decode(func(s *Snapshot) { s.At, s.Samples[0].Age = -maxTime, maxTime }))
	require.ErrorIs(t, decode(func(s *Snapshot) { s.At = maxTime + 1 }), ErrSnapshot)
	require.ErrorIs(t, decode(func(s *Snapshot) { s.Samples[0].Age = maxTime + 1 }), ErrSnapshot)
	for _, gap := range []float64{0, -1, math.NaN(), math.Inf(1), 1e31} {
		require.ErrorIs(t, decode(func(s *Snapshot) { s.Gap = gap }), ErrSnapshot, "%v", gap)
	}
	require.NoError(t, decode(func(s *Snapshot) { s.Gap = maxGap }))
	require.False(t, math.IsInf(Weight(1, maxGap), 0))
}

func FuzzDecode(f *testing.F) {
	for _, n := range []int{0, 1, 5} {
		s := snapshot(n, func(i int) string { return fmt.Sprint(i) })
		f.Add(s.Append(nil))
	}
	f.Add([]byte("HWP1"))
	f.Fuzz(func(t *testing.T, value []byte) {
		s, err := Decode(value)
		if err != nil {
			return
		}
		for i := range s.Samples {
			if w := s.Weight(i); !(w >= 1) {
				t.Fatalf("sample %d has weight %v", i, w)
			}
		}
		again, err := Decode(s.Append(nil))
		if err != nil || len(again.Samples) > len(s.Samples) {
			t.Fatalf("what was decoded does not decode again: %v", err)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	s := snapshot(512, func(i int) string { return fmt.Sprint(i % 100) })
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		buf = s.Append(buf[:0])
	}
}
