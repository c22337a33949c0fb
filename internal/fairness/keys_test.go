package fairness

import (
	"fmt"
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

func TestTotalsSurviveTheirEncoding(t *testing.T) {
	totals := []Total{{ID: 0, Weight: 1, Use: 5}, {ID: 7, Weight: 2.5, Use: 1 << 40, Small: 3, Likely: 4, Waits: 6, Most: 7, Open: 8, Large: true}}
	value := AppendTotals(nil, time.Hour, totals)
	got, at, err := DecodeTotals(value, nil)
	require.NoError(t, err)
	require.Equal(t, time.Hour, at)
	require.Equal(t, totals, got)
	for n := range value {
		_, _, err := DecodeTotals(value[:n], nil)
		require.ErrorIs(t, err, ErrTotals)
	}
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

func FuzzDecodeTotals(f *testing.F) {
	f.Add(AppendTotals(nil, 1, []Total{{ID: 1, Weight: 1, Use: 2}}))
	f.Add([]byte("HWK1"))
	f.Fuzz(func(t *testing.T, value []byte) {
		totals, at, err := DecodeTotals(value, nil)
		if err != nil {
			require.ErrorIs(t, err, ErrTotals)
			require.Empty(t, totals)
			return
		}
		again, _, err := DecodeTotals(AppendTotals(nil, at, totals), nil)
		require.NoError(t, err)
		require.Len(t, again, len(totals))
	})
}
