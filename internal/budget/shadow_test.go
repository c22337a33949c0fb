package budget

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What shadows hold is taken out of the readings, in proportion to what traffic likely holds, and
// what would wait is put in.
func TestShadowsAreNotInReadings(t *testing.T) {
	b := open(t, 2)
	b.join()
	b.tick(25 * ms)
	b.read(b.now, 40*mib) // the base
	sum := &Sum{}
	streams := make([]Stream, 4)
	for i := range streams {
		a := b.accounts[i%2]
		a.Open(b.now, &streams[i], nil, sum, 0, 0, 2*mib, 2*mib)
		a.Expect(b.now, &streams[i], Request, 4*mib, 2*mib, 0)
		if i > 0 {
			a.Shade(b.now, &streams[i])
			a.PassShadow(b.now, &streams[i], Request, 2*mib)
		} else {
			a.Pass(b.now, &streams[i], Request, 2*mib)
		}
	}
	own := [2]Entry{b.accounts[0].Own(), b.accounts[1].Own()}
	require.Equal(t, [2]int64{2 * mib, 0}, [2]int64{own[0].Fresh, own[1].Fresh}, "of the one that is no shadow")
	require.Zero(t, own[0].Coming+own[1].Coming)
	require.Equal(t, [2]int64{2 * mib, 0}, [2]int64{own[0].Likely, own[1].Likely})
	require.Equal(t, [2]int64{2 * mib, 4 * mib}, [2]int64{own[0].Shadows.Likely, own[1].Shadows.Likely})
	require.Equal(t, 2*mib, sum.Likely)

	table := b.accounts[1].Table()
	b.tick(25 * ms)
	b.accounts[0].SetAllocated(60 * mib)
	b.read(b.now, 80*mib)
	require.InDelta(t, 80*mib-6*mib-6*mib-6*mib/4, table.Reading, 1000, "at most twice what they are known to hold, and a quarter for what they left")
	require.Equal(t, []int64{80 * mib, 80 * mib, 60 * mib}, []int64{table.InUse, table.Peak, table.Allocated})

	// One of them would wait instead, at a cost.
	b.accounts[1].SetWaiting(1, 2*mib, b.now)
	b.tick(25 * ms)
	b.read(b.now, 50*mib)
	require.InDelta(t, 40*mib+4*mib+mib/2, table.Reading, 1000, "half of the 8 MiB that those who are there explain, a quarter of the rest")
	require.Equal(t, []int64{50 * mib, 80 * mib}, []int64{table.InUse, table.Peak})
	b.accounts[1].SetWaiting(0, 0, 0)

	// And then goes on: what has passed of it is as if it passed now.
	s := &streams[1]
	b.accounts[1].Unshade(b.now, s)
	b.accounts[1].Expect(b.now, s, Request, 4*mib, 3*mib, 0)
	b.accounts[1].CatchUp(b.now, s, Request)
	own[1] = b.accounts[1].Own()
	require.Equal(t, []int64{2 * mib, mib, 2 * mib, 2 * mib}, []int64{own[1].Fresh, own[1].Coming, own[1].Likely, own[1].Shadows.Likely})

	// Where anybody is held back in earnest, what shadows hold is as real as all else.
	for _, a := range b.accounts {
		a.SetReal(true)
	}
	b.tick(25 * ms)
	b.read(b.now, 72*mib)
	require.Equal(t, 72*mib, table.Reading)

	// What is there when all have gone was left by each as much as it moved.
	for i := range streams {
		b.accounts[i%2].SetReal(false)
		b.accounts[i%2].Close(b.now, &streams[i])
	}
	b.tick(25 * ms)
	b.read(b.now, 42*mib)
	require.InDelta(t, 40*mib+2*mib*4/10, table.Reading, 1000, "6 of the 10 MiB that passed were of shadows, for one was counted again when it went on")
	b.tick(25 * ms)
	b.read(b.now, 60*mib)
	require.InDelta(t, 60*mib-6*mib/4, table.Reading, 1000, "the rest may be a leak")
	for _, a := range b.accounts {
		require.Zero(t, a.Own().Shadows.Likely+a.Own().Likely+a.Own().Bounds+a.Own().Small)
	}
	require.Equal(t, Sum{}, *sum)
}
