package fairness

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func one(Name) float64 { return 1 }

func TestAMillionNamesTakeNoMoreThan64Places(t *testing.T) {
	k := NewKeys[int]()
	quiet := k.Get(0, Name{"header", "quiet"}, one)
	quiet.Refs++
	now := time.Duration(0)
	for i := range 1_000_000 {
		now += 10 * time.Microsecond
		got := k.Get(now, Name{"header", fmt.Sprint(i)}, one)
		require.NotSame(t, quiet, got)
	}
	require.Len(t, k.All(), MaxKeys)
	require.Len(t, k.names, MaxKeys)
	require.Same(t, quiet, k.Get(now, Name{"header", "quiet"}, one), "who has something keeps its place")
	require.NotSame(t, quiet, k.Get(now, Name{"route", "quiet"}, one))
}

func TestAPlaceIsFreeASecondAfterItsLastUse(t *testing.T) {
	k := NewKeys[int]()
	for i := range MaxKeys {
		k.Get(time.Duration(i), Name{"", fmt.Sprint(i)}, one)
	}
	late := Name{"", "late"}
	require.Same(t, &k.Other, k.Get(reuseAfter-1, late, one))
	got := k.Get(reuseAfter, late, one)
	require.NotSame(t, &k.Other, got)
	require.Same(t, got, k.Get(reuseAfter, late, one))
	require.Same(t, &k.Other, k.Get(reuseAfter, Name{"", "0"}, one), "its place was that of the one that was there first")
}

// tenants are so many names, and the keys that are named so.
func tenants(n int) (names []Name, named map[Name]bool) {
	named = map[Name]bool{}
	for i := range n {
		name := Name{"header", fmt.Sprint("tenant", i)}
		names, named[name] = append(names, name), true
	}
	return names, named
}

// Names that clients make up, and hold, push none of those out that are named, nor keep them from
// coming.
func TestNamedKeysFindAPlace(t *testing.T) {
	for _, n := range []int{1, 10, MaxNamed} {
		k := NewKeys[int]()
		names, named := tenants(n)
		k.Name(named)
		first := k.Get(0, names[0], one)
		first.Value = 7
		now := time.Duration(0)
		for i := range 1000 {
			now += reuseAfter
			k.Get(now, Name{"header", fmt.Sprint(i)}, one).Refs++
		}
		require.Len(t, k.all, MaxKeys-n+1, "the made-up ones have the rest")
		for _, name := range names {
			key := k.Get(now, name, one)
			require.NotSame(t, &k.Other, key)
			require.True(t, key.Named())
			require.Equal(t, name, key.Name)
		}
		require.Len(t, k.All(), MaxKeys)
		require.Len(t, k.names, MaxKeys)
		require.Same(t, first, k.Get(now, names[0], one), "it has kept its own")
		for i := range 1000 {
			now += reuseAfter
			require.Same(t, &k.Other, k.Get(now, Name{"header", fmt.Sprint("more", i)}, one), "however long the named ones have had nothing")
		}
	}
}

// A configuration that names some finds the places of those that clients have made up meanwhile, as
// soon as one has nothing.
func TestNamedKeysTakePlacesOfOthers(t *testing.T) {
	k := NewKeys[int]()
	for i := range MaxKeys {
		k.Get(time.Duration(i), Name{"header", fmt.Sprint(i)}, one).Refs++
	}
	names, named := tenants(2)
	k.Name(named)
	now := time.Duration(MaxKeys)
	require.Same(t, &k.Other, k.Get(now, names[0], one), "all have something")
	k.all[5].Refs--
	k.all[3].Refs--
	third, fifth := k.all[3].Name, k.all[5].Name
	require.Same(t, &k.Other, k.Get(now, Name{"header", "new"}, one))
	require.NotSame(t, &k.Other, k.Get(now, names[0], one), "whoever has nothing goes, even if he had something just now")
	require.NotContains(t, k.names, third, "the one that was used least lately")
	require.Contains(t, k.names, fifth)

	// Those that are named no more are like all others.
	k.Name(nil)
	now += reuseAfter
	require.NotSame(t, &k.Other, k.Get(now, Name{"header", "new"}, one))
	require.NotContains(t, k.names, fifth)
	now += reuseAfter
	require.NotSame(t, &k.Other, k.Get(now, Name{"header", "newer"}, one))
	require.NotContains(t, k.names, names[0])
}

// More than have a place, of several listeners: they take turns among themselves, and leave the
// others theirs.
func TestMoreNamedKeysThanPlaces(t *testing.T) {
	k := NewKeys[int]()
	names, named := tenants(100)
	k.Name(named)
	now := time.Duration(0)
	for i := range 1000 {
		k.Get(now, Name{"header", fmt.Sprint(i)}, one).Refs++
	}
	require.Len(t, k.all, MaxKeys-MaxNamed)
	for _, name := range names[:MaxNamed] {
		require.NotSame(t, &k.Other, k.Get(now, name, one))
	}
	require.Same(t, &k.Other, k.Get(now, names[99], one))
	now += reuseAfter
	require.NotSame(t, &k.Other, k.Get(now, names[99], one))
	require.Len(t, k.All(), MaxKeys)
}

func TestNamesWithoutAPlaceCostNothing(t *testing.T) {
	k := NewKeys[[100]int]()
	for i := range MaxKeys {
		k.Get(0, Name{"header", fmt.Sprint(i)}, one).Refs++
	}
	a, b := Name{"header", "a"}, Name{"header", "b"}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		k.Get(0, a, one)
		k.Get(0, b, one)
	}))
}

func TestTotalsSurviveTheirEncoding(t *testing.T) {
	totals := []Total{{ID: 0, Weight: 1, Use: 5}, {ID: 7, Weight: 2.5, Use: 1 << 40, Small: 3, Likely: 4, Waits: 6, Most: 7, Open: 8, Live: 9, Large: true}, {ID: 8, Named: true}, {ID: 9, Large: true, Named: true}}
	value := AppendTotals(nil, time.Hour, totals, nil)
	got, at, err := DecodeTotals(value, nil)
	require.NoError(t, err)
	require.Equal(t, time.Hour, at)
	require.Equal(t, totals, got)
	for n := range value {
		_, _, err := DecodeTotals(value[:n], nil)
		require.ErrorIs(t, err, ErrTotals)
	}
}

// What no worker can have is not added up as it is.
func TestTotalsAreBounded(t *testing.T) {
	const most = math.MaxInt64
	value := AppendTotals(nil, time.Hour, []Total{
		{ID: 1, Weight: MaxWeight, Use: most, Small: most, Likely: most, Waits: most, Most: most, Open: most, Live: most},
		{ID: 2, Weight: 1, Use: math.MinInt64, Small: -1, Likely: -1, Waits: -1, Most: -1, Open: -1, Live: -1},
	}, nil)
	got, _, err := DecodeTotals(value, nil)
	require.NoError(t, err)
	require.Equal(t, []Total{
		{ID: 1, Weight: MaxWeight, Use: maxTotal, Small: maxTotal, Likely: maxTotal, Waits: maxTotal, Most: maxTotal, Open: maxTotal, Live: maxTotal}, {ID: 2, Weight: 1},
	}, got)
	for _, weight := range []float64{-1, math.NaN(), math.Inf(1), 2 * MaxWeight} {
		_, _, err := DecodeTotals(AppendTotals(nil, 0, []Total{{ID: 1, Weight: weight}}, nil), nil)
		require.ErrorIs(t, err, ErrTotals)
	}
	binary.LittleEndian.PutUint32(value[4:], math.MaxUint32)
	_, _, err = DecodeTotals(value, nil)
	require.ErrorIs(t, err, ErrTotals)
	binary.LittleEndian.PutUint32(value[4:], 1<<31)
	_, _, err = DecodeTotals(value[:4+4+4+8], nil)
	require.ErrorIs(t, err, ErrTotals)

	var many []Total
	for range 4096 {
		all, _, err := DecodeTotals(AppendTotals(nil, 0, []Total{{ID: 7, Weight: 1, Use: most, Waits: most}}, nil), nil)
		require.NoError(t, err)
		many = append(many, all...)
	}
	sum := Merge(many)[0]
	require.Equal(t, int64(4096*maxTotal), sum.Use)
	require.Positive(t, sum.Use+sum.Waits)
}

func TestMergeAddsUp(t *testing.T) {
	got := Merge([]Total{{ID: 9, Weight: 1, Use: 1}, {ID: 4, Weight: 1, Use: 2, Large: true}, {ID: 9, Weight: 1, Use: 4}})
	require.Equal(t, []Total{{ID: 4, Weight: 1, Use: 2, Large: true}, {ID: 9, Weight: 1, Use: 5}}, got)
	require.Equal(t, 1, Find(got, 9))
	require.Equal(t, -1, Find(got, 5))

	var many []Total
	for i := range 200 {
		many = append(many, Total{ID: uint64(i + 1), Weight: 1, Use: int64(i)})
	}
	got = Merge(many)
	require.Len(t, got, MaxKeys+1)
	require.Equal(t, uint64(0), got[0].ID)
	require.Equal(t, int64(136*135/2), got[0].Use, "those with least are the other")
	require.Equal(t, 0, Find(got, 3))
	require.Equal(t, int64(199), got[Find(got, 200)].Use)
}

// Between workers a named key is always among those that are told apart, however little it has.
func TestMergeKeepsNamedOnes(t *testing.T) {
	var many []Total
	for i := range 400 {
		many = append(many, Total{ID: uint64(i + 1), Weight: 1, Use: 1000})
	}
	for i := range MaxNamed {
		many = append(many, Total{ID: uint64(1000 + i), Weight: 1, Use: int64(i), Named: true})
	}
	got := Merge(many)
	require.Len(t, got, MaxKeys+1)
	for i := range MaxNamed {
		require.Equal(t, int64(i), got[Find(got, uint64(1000+i))].Use)
	}
	require.Equal(t, int64(1000*(400-MaxKeys+MaxNamed)), got[0].Use)

	for i := range many {
		many[i] = Total{ID: uint64(i + 1), Weight: 1, Use: int64(i), Named: true} // from nobody knows where
	}
	got = Merge(many)
	require.Len(t, got, MaxKeys+1)
	require.Equal(t, int64(len(many)-1), got[Find(got, uint64(len(many)))].Use)
}

func FuzzDecodeTotals(f *testing.F) {
	f.Add(AppendTotals(nil, 1, []Total{{ID: 1, Weight: 1, Use: 2}}, nil))
	f.Add([]byte("HWK1"))
	f.Fuzz(func(t *testing.T, value []byte) {
		totals, at, err := DecodeTotals(value, nil)
		if err != nil {
			require.ErrorIs(t, err, ErrTotals)
			require.Empty(t, totals)
			return
		}
		again, _, err := DecodeTotals(AppendTotals(nil, at, totals, nil), nil)
		require.NoError(t, err)
		require.Len(t, again, len(totals))
	})
}

func TestPricesSurviveTheirEncoding(t *testing.T) {
	totals := []Total{{ID: 7, Weight: 1, Use: 5}}
	value := AppendTotals(nil, time.Hour, totals, []Price{{Connections, 9000}, {7, 467 << 10}, {0, 1}, {8, -1}, {9, math.MaxInt64}})
	got, _, err := DecodeTotals(value, nil)
	require.NoError(t, err)
	require.Equal(t, totals, got)
	prices, err := DecodePrices(value, nil)
	require.NoError(t, err)
	require.Equal(t, []Price{{0, 1}, {7, 467 << 10}, {Connections, 9000}}, prices, "those that can be, by id")
	require.EqualValues(t, 467<<10, PriceOf(prices, 7))
	require.Zero(t, PriceOf(prices, 8))
	for n := range value {
		_, err := DecodePrices(value[:n], nil)
		require.ErrorIs(t, err, ErrTotals)
		_, _, err = DecodeTotals(value[:n], nil)
		require.ErrorIs(t, err, ErrTotals)
	}
	_, err = DecodePrices(AppendTotals(nil, 0, nil, make([]Price, MaxPrices+1)), nil)
	require.ErrorIs(t, err, ErrTotals)
}
