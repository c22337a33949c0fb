package budget

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A stream holds its key's price at least, as long as it is live, but not beside a body that explains it.
func TestABodyExplainsAPrice(t *testing.T) {
	const kib = 1 << 10
	a, err := NewAccount(&Memory{}, Limits{Limit: 1 << 30})
	require.NoError(t, err)
	sum := Sum{Price: 400 * kib}
	require.EqualValues(t, 400*kib, sum.PriceBeside(0))
	require.EqualValues(t, 400*kib, sum.PriceBeside(99*kib))
	require.Zero(t, sum.PriceBeside(100*kib))

	var get, upload Stream
	now := time.Hour
	a.Open(now, &get, &get, &sum, 30*kib, 0, 0, 128*kib)
	a.Open(now, &upload, &upload, &sum, 30*kib, 0, 128*kib, 128*kib)
	a.Expect(now, &upload, Request, 128*kib, 128*kib, 0)
	for _, s := range []*Stream{&get, &upload} {
		a.SetLive(s, true)
		a.SetLive(s, true)
	}
	require.EqualValues(t, 2, sum.Live)
	require.EqualValues(t, 2, a.Own().Live)
	now += sweepEvery
	_, err = a.Tick(now)
	require.NoError(t, err)
	require.EqualValues(t, 400*kib, get.Likely())
	require.Zero(t, upload.Likely(), "none of it has come")
	require.EqualValues(t, 400*kib, a.Own().Priced)

	fresh := a.Own().Fresh
	a.Burden(&get, 370*kib)
	require.Equal(t, fresh+370*kib, a.Own().Fresh)
	for _, s := range []*Stream{&get, &upload} {
		a.Close(now, s)
	}
	require.Equal(t, Sum{Price: 400 * kib}, sum)
	require.Zero(t, a.Own().Live+a.Own().Priced+a.Own().Likely+a.Own().Bounds)
}
