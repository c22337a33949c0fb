package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Base is what the process holds without traffic: the lowest (reading − likely held) of ten
// minutes, where likely held is no more than what the reading has risen above the base. The lowest
// reading alone would swallow a flood that lasts: 60 MiB that slow readers hold would be base, and
// given out again.
func TestBaseIsTheLowestReadingWithoutWhatTrafficLikelyHolds(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	s := b.stream(a)
	a.Expect(b.now, s, Response, 1<<40, 0, 0)
	a.Pass(b.now, s, Response, 60*mib)
	a.Cover(b.now)
	b.readings(3, 100*mib)
	require.Equal(t, 40*mib, b.stored().Base)
	b.readings(3, 99*mib)
	require.Equal(t, 40*mib, b.stored().Base, "of the 60 MiB that are likely held 59 are")
	b.readings(3, 120*mib)
	require.Equal(t, 40*mib, b.stored().Base, "the lowest")
	b.readings(3, 39*mib)
	require.Equal(t, 39*mib, b.stored().Base, "a reading below it is base")
	a.Close(b.now, s)
	b.readings(1, 50*mib)
	require.Equal(t, 39*mib, b.stored().Base)

	// A leak of ten minutes is base: shedding would not free it.
	for range 11 * 60 {
		b.tick(time.Second)
		b.read(b.now, 50*mib)
	}
	require.Equal(t, 50*mib, b.stored().Base)
}

func TestBaseIsNeitherNegativeNorAll(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.join()
	b.readings(1, 500*mib)
	require.Equal(t, 180*mib, b.stored().Base, "at most 90 % of the limit, until it is proven: see TestALargeConfigurationIsBase")
	s := b.stream(a)
	a.Expect(b.now, s, Response, 1<<40, 0, 0)
	a.Pass(b.now, s, Response, 100*mib)
	b.readings(1, 60*mib)
	require.Equal(t, 60*mib, b.stored().Base, "likely held are upper bounds: they don't take from what was there without traffic")
}

// Traffic that moves much seems to hold more than the whole process: 100 uploads of 4 MiB that wait
// for their upstream made a base of 0 where 56 of 100 MiB were there before them, and with it half
// the goodput.
func TestTrafficThatHasDrainedDoesNotLowerTheBase(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.join()
	b.readings(3, 56*mib)
	s := b.stream(a)
	a.SetCap(b.now, s, Request, 400*mib)
	a.Expect(b.now, s, Request, 400*mib, 0, 0)
	a.Pass(b.now, s, Request, 400*mib)
	a.End(b.now, s, Request)
	b.readings(3, 86*mib)
	require.Equal(t, 56*mib, b.stored().Base)
}

// Whoever takes the poller slot over knows only what the table says: a new VM in the middle of a
// flood must not take the flood for base.
func TestATakeoverKeepsTheBase(t *testing.T) {
	b := open(t, 2)
	b.readings(3, 40*mib)
	b.readings(3, 180*mib)
	b.now += 300 * ms
	_, _, err := b.accounts[1].Observe(b.now, b.now, 180*mib)
	require.NoError(t, err)
	require.Equal(t, 40*mib, b.stored().Base)
}

// The lowest reading of 10 s says what could ever fit: n > T(hard) − Low is always too large.
func TestLowIsTheLowestOfTenSeconds(t *testing.T) {
	b := open(t, 1)
	b.readings(2, 40*mib)
	for range 9 * 10 {
		b.tick(99 * ms)
		b.read(b.now, 120*mib)
	}
	require.Equal(t, 40*mib, b.stored().Low)
	for range 2 * 10 {
		b.tick(99 * ms)
		b.read(b.now, 120*mib)
	}
	require.Equal(t, 120*mib, b.stored().Low)
	b.readings(1, 50*mib)
	require.Equal(t, 50*mib, b.stored().Low)
}

func TestLowestOfAWindow(t *testing.T) {
	w := lowest{width: time.Second}
	for _, c := range []struct {
		at   Time
		v    int64
		want int64
	}{
		{0, 7, 7},
		{500 * ms, 9, 7}, // a higher one in the same bucket
		{900 * ms, 5, 5}, // a lower one
		{5 * 1000 * ms, 6, 5},
		{9999 * ms, 8, 5}, // exact to a bucket
		{10 * 1000 * ms, 8, 6},
		{60 * 1000 * ms, 100, 100}, // after a gap nothing of before counts
		{60 * 1000 * ms, -3, -3},
	} {
		w.add(c.at, c.v)
		require.Equal(t, c.want, w.min(c.at), "at %v", c.at)
	}
}

// Surprise is what came and no filter saw: it tells whether buffers and costs are right.
func TestSurprise(t *testing.T) {
	// A phase is n readings, and what passes before each of them.
	type phase struct {
		n                int
		reading, passing int64
	}
	run := func(b *books, phases ...phase) {
		s := b.stream(b.accounts[0])
		for _, p := range phases {
			for range p.n {
				b.tick(ms) // the reading before is judged
				b.accounts[0].Pass(b.now, s, Request, p.passing)
				b.accounts[0].Cover(b.now)
				b.readings(1, p.reading)
			}
		}
		b.readings(1, phases[len(phases)-1].reading) // the last one is judged once all have published after it
		b.accounts[0].Close(b.now, s)
	}

	t.Run("growth beyond what passed", func(t *testing.T) {
		b := open(t, 1)
		run(b, phase{12, 40 * mib, 0}, phase{3, 52 * mib, 2 * mib})
		require.InDelta(t, 12*mib-3*2*mib, b.stored().Surprise, float64(4*mib))
		// It is kept free: what can be shared out ends earlier.
		require.Equal(t, 200*mib-b.stored().Surprise, b.accounts[0].Share(1))
	})
	t.Run("not what passed", func(t *testing.T) {
		b := open(t, 1)
		run(b, phase{12, 40 * mib, 0}, phase{1, 52 * mib, 12 * mib}, phase{12, 52 * mib, mib})
		require.Zero(t, b.stored().Surprise)
	})
	t.Run("not at the start", func(t *testing.T) {
		b := open(t, 1)
		run(b, phase{2, 10 * mib, 0}, phase{5, 30 * mib, 0})
		require.Zero(t, b.stored().Surprise, "eight readings are not there yet")
	})
	t.Run("not after a gap", func(t *testing.T) {
		b := open(t, 1)
		run(b, phase{12, 40 * mib, 0})
		b.tick(staleAfter)
		run(b, phase{1, 80 * mib, 0}, phase{12, 80 * mib, 0})
		require.Zero(t, b.stored().Surprise)
	})
	t.Run("not when it falls", func(t *testing.T) {
		b := open(t, 1)
		run(b, phase{12, 80 * mib, 0}, phase{12, 40 * mib, mib})
		require.Zero(t, b.stored().Surprise)
	})
	t.Run("not when a worker vanishes, and its total with it", func(t *testing.T) {
		b := open(t, 2)
		gone := b.accounts[1]
		s := b.stream(gone)
		gone.Cover(b.now)
		gone.Pass(b.now, s, Request, 100*mib)
		b.accounts[0].Cover(b.now)
		run(b, phase{12, 140 * mib, 0})
		b.accounts = b.accounts[:1]
		for range 100 { // 2.5 s
			b.readings(1, 145*mib)
		}
		require.Len(t, b.stored().Entries, 1)
		require.Zero(t, b.stored().Surprise)
	})
	t.Run("not before every worker has published", func(t *testing.T) {
		b := open(t, 2)
		b.join()
		run(b, phase{12, 40 * mib, 0})
		// The second worker passes 12 MiB and is slow to say so: in the end there is no surprise.
		slow := b.accounts[1]
		b.accounts = b.accounts[:1]
		s := b.stream(slow)
		slow.Pass(b.now, s, Request, 12*mib)
		for range 4 {
			b.readings(1, 52*mib)
			require.Zero(t, b.stored().Surprise)
		}
		b.accounts = append(b.accounts, slow)
		b.readings(12, 52*mib)
		require.Zero(t, b.stored().Surprise)
	})
	t.Run("also where a reading is asked for in each tick, and hardly anything changes", func(t *testing.T) {
		for accounts := range 2 {
			b := open(t, 1+accounts)
			b.join()
			for _, a := range b.accounts {
				b.stream(a)
			}
			b.tick(ms)
			for i := range 68 { // each answer comes before the others have published after the one before
				b.tick(25 * ms)
				_, _, err := b.accounts[0].Observe(b.now, b.now, []int64{40 * mib, 56 * mib}[min(i/55, 1)])
				require.NoError(t, err)
			}
			require.InEpsilon(t, 16*mib, b.stored().Surprise, .01, "%d accounts", 1+accounts)
		}
	})
	t.Run("also where another worker always publishes just before the answer", func(t *testing.T) {
		b := open(t, 2)
		b.join()
		b.stream(b.accounts[1])
		reading := 40 * mib
		for i := range 16 {
			if i == 12 {
				reading = 56 * mib
			}
			asked := b.now
			b.tick(ms)
			b.now += ms
			_, _, err := b.accounts[0].Observe(b.now, asked, reading)
			require.NoError(t, err)
			b.now += 23 * ms
			_, err = b.accounts[0].Tick(b.now)
			require.NoError(t, err)
		}
		require.InEpsilon(t, 16*mib, b.stored().Surprise, .01)
	})
	t.Run("not what is told at the next tick only", func(t *testing.T) {
		b := open(t, 1)
		a := b.accounts[0]
		b.join()
		b.readings(20, 40*mib)
		var all []*Stream
		for range 64 {
			s := b.stream(a)
			a.Enlarge(b.now, s)
			a.Expect(b.now, s, Response, mib, mib, 0)
			all = append(all, s)
		}
		a.Cover(b.now)
		b.tick(24 * ms)
		asked := b.now
		for _, s := range all {
			require.True(t, s.PassesUnbooked(256*kib))
		}
		b.now += 3 * ms
		_, _, err := a.Observe(b.now, asked, 56*mib)
		require.NoError(t, err)
		b.tick(22 * ms)
		b.readings(20, 56*mib)
		require.Zero(t, b.stored().Surprise)
	})
	t.Run("also with answers that take longer than a tick, and workers that sleep", func(t *testing.T) {
		b := open(t, 16)
		b.join()
		var asked, due Time
		for i := range 40 * 4 {
			b.now += 25 * ms
			for j, a := range b.accounts {
				if j == 0 || i%20 == j {
					_, err := a.Tick(b.now)
					require.NoError(t, err)
				}
			}
			if due == 0 {
				asked, due = b.now, b.now+55*ms
			}
			if b.now+25*ms > due {
				at := b.now
				b.now = due
				_, _, err := b.accounts[0].Observe(due, asked, []int64{40 * mib, 56 * mib}[min(i/80, 1)])
				require.NoError(t, err)
				b.now, due = at, 0
			}
		}
		require.InEpsilon(t, 16*mib, b.stored().Surprise, .1)
	})
	t.Run("it outlives the VM that found it", func(t *testing.T) {
		b := open(t, 2)
		b.join()
		run(b, phase{12, 40 * mib, 0}, phase{2, 56 * mib, 0})
		found := b.stored().Surprise
		require.Positive(t, found)
		b.accounts = b.accounts[1:]
		for range 20 { // the slot is free after 250 ms
			b.tick(25 * ms)
		}
		b.read(b.now, 56*mib)
		require.InEpsilon(t, found, b.stored().Surprise, .05)
	})
	t.Run("not what passed between a question and the judgement of the reading before it", func(t *testing.T) {
		b := open(t, 2)
		b.join()
		slow := b.accounts[1]
		s := b.stream(slow)
		slow.Cover(b.now)
		b.readings(20, 40*mib)
		b.accounts = b.accounts[:1]
		b.readings(1, 40*mib) // it is not judged before slow has published
		b.tick(25 * ms)
		asked := b.now
		slow.Pass(b.now, s, Request, 12*mib)
		b.tick(ms)
		_, err := slow.Tick(b.now)
		require.NoError(t, err)
		b.tick(ms)
		b.read(asked, 40*mib)
		b.accounts = append(b.accounts, slow)
		b.readings(20, 52*mib)
		require.Zero(t, b.stored().Surprise)
	})
	t.Run("it halves each 30 s, and a smaller one does not lower it", func(t *testing.T) {
		b := open(t, 1)
		b.join()
		run(b, phase{12, 40 * mib, 0}, phase{2, 56 * mib, 0})
		require.Equal(t, 16*mib, b.stored().Surprise)
		begin := b.now
		run(b, phase{10, 56 * mib, 0}, phase{2, 60 * mib, 0})
		require.Greater(t, b.stored().Surprise, 15*mib)
		for b.now < begin+30*time.Second {
			b.tick(249 * ms)
			b.read(b.now, 60*mib)
		}
		require.InDelta(t, 8*mib, b.stored().Surprise, float64(mib/4))
		for b.now < begin+10*time.Minute {
			b.tick(249 * ms)
			b.read(b.now, 60*mib)
		}
		require.LessOrEqual(t, b.stored().Surprise, int64(32))
	})
	t.Run("it keeps at most 10 % of the limit free", func(t *testing.T) {
		b := open(t, 1)
		b.join()
		run(b, phase{12, 40 * mib, 0}, phase{2, 140 * mib, 0})
		require.Equal(t, 100*mib, b.stored().Surprise, "it is published as it is")
		require.Equal(t, 180*mib, b.accounts[0].Share(1), "but one wrong figure does not close the door")
	})
}

// Levels are shares of what traffic can have, with hysteresis: a load that hovers around a
// threshold would flap, and each flap is a line in somebody's log.
func TestLevels(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.join()
	b.readings(3, 100*mib) // base is 100, so that 100 can be shared out: soft is 180, hard 190, resume 175
	for i, c := range []struct {
		reading int64
		want    Level
	}{
		{179, Normal},
		{180, Soft},
		{176, Soft},
		{189, Soft},
		{175, Soft},
		{174, Normal},
		{179, Normal},
		{190, Hard},
		{186, Hard},
		{185, Hard},
		{184, Soft},
		{189, Soft},
		{195, Hard},
		{174, Normal},
		{200, Hard},
		{201, Over},
		{250, Over},
		{200, Hard},
		{184, Soft},
		{201, Over},
		{150, Normal},
		{199, Hard},
	} {
		before := b.stored().Level
		b.tick(24 * ms)
		was, is, err := a.Observe(b.now, b.now, c.reading*mib)
		require.NoError(t, err)
		require.Equal(t, before, was)
		// Surprise would move the thresholds: that is another test.
		a.learned.trend.kept, a.learned.trend.n = 0, 0
		require.Equal(t, c.want, is, "%d: %d MiB", i, c.reading)
		b.tick(ms)
		require.Equal(t, c.want, b.stored().Level)
	}
	require.Equal(t, "normal soft hard over over", Normal.String()+" "+Soft.String()+" "+Hard.String()+" "+Over.String()+" "+Level(9).String())
}

// What is still coming counts for the level, not for over: that is the reading itself.
func TestTheLevelIsOfTheEstimate(t *testing.T) {
	b := open(t, 1)
	a := b.accounts[0]
	b.readings(3, 100*mib)
	s := b.stream(a)
	a.Expect(b.now, s, Request, 500*mib, 120*mib, 0)
	a.Cover(b.now)
	b.readings(1, 100*mib)
	require.Equal(t, Hard, b.stored().Level)

	require.InDelta(t, 0.5, (&Table{Base: 100}).load(&Limits{Limit: 200}, 150), 1e-9)
	require.InDelta(t, 1, (&Table{}).load(&Limits{}, 0), 1e-9, "nothing between T(0) and T(1)")
}

// Hard for 5 s while all live streams together can't hold a tenth of the limit: then traffic is not
// the cause, and to lock everybody out would help nobody.
func TestFutile(t *testing.T) {
	run := func(b *books, d Time, reading int64) {
		for end := b.now + d; b.now < end; {
			b.readings(1, reading)
		}
	}
	b := open(t, 1)
	a := b.accounts[0]
	b.join()
	b.readings(3, 40*mib)
	run(b, 4900*ms, 199*mib)
	require.False(t, b.stored().Futile)
	run(b, 200*ms, 199*mib)
	require.True(t, b.stored().Futile)
	b.readings(1, 100*mib)
	require.False(t, b.stored().Futile, "it fell: over at once")
	run(b, 4900*ms, 199*mib)
	require.False(t, b.stored().Futile, "and the 5 s begin anew")
	run(b, 200*ms, 199*mib)
	require.True(t, b.stored().Futile)

	// Memory that grows with those who are let in is theirs, though no stream can hold it.
	b.readings(1, 206*mib)
	require.False(t, b.stored().Futile)
	run(b, 4900*ms, 206*mib)
	require.False(t, b.stored().Futile)
	run(b, 200*ms, 206*mib)
	require.True(t, b.stored().Futile)

	// Traffic that can hold a tenth may be the cause.
	s := b.stream(a)
	a.Expect(b.now, s, Request, 500*mib, 20*mib, 0)
	run(b, 50*ms, 199*mib)
	require.False(t, b.stored().Futile)
	a.Pass(b.now, s, Request, 20*mib)
	run(b, 6000*ms, 199*mib)
	require.False(t, b.stored().Futile)
}

// An answer that could not be stored is lost, and what was learned from it too: judged twice, it
// would count twice.
func TestAReadingThatCouldNotBeStoredTeachesNothing(t *testing.T) {
	f := &fails{}
	a, err := NewAccount(f, limits())
	require.NoError(t, err)
	now := time.Hour
	_, _, err = a.Observe(now, now, 40*mib)
	require.NoError(t, err)
	f.swap = ErrConflict
	now += 25 * ms
	before, after, err := a.Observe(now, now, 10*mib)
	require.ErrorIs(t, err, ErrConflict)
	require.Equal(t, before, after)
	f.swap = nil
	now += 25 * ms
	_, _, err = a.Observe(now, now, 45*mib)
	require.NoError(t, err)
	require.Equal(t, 40*mib, a.Table().Base, "not 10")
	require.Equal(t, 40*mib, a.Table().Low)
	require.Equal(t, uint64(2), a.Table().Sequence)
}

// An excess is followed by evictions until memory is below hard, so that it does not stay just
// under the limit. But where it does not fall by them, what holds it is not what was evicted.
// Traffic that stays between hard and the limit has its room, and is left alone soon.
func TestEvictionBelowTheLimitEnds(t *testing.T) {
	b := open(t, 1)
	a, l := b.accounts[0], limits()
	l.Evict = true
	a.SetLimits(l)
	b.join()
	b.readings(3, 40*mib)
	a.Pass(b.now, b.stream(a), Request, 160*mib)
	b.readings(evictAfter, 210*mib)
	over, evicted := b.now, 0
	for b.now < over+10*time.Second {
		b.readings(1, 195*mib)
		if a.ToEvict() > 0 {
			evicted++
			require.Less(t, b.now-over, evictOn+100*ms)
		}
	}
	require.Positive(t, evicted)
}
