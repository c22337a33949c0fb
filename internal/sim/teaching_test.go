package sim

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What readings have taught lets nobody in, and locks nobody out: neither a route that behaved and
// stalls, nor who teaches on purpose.
func TestWhoTeachesGainsNothing(t *testing.T) {
	const calm, limit = 10 * time.Second, int64(200 * mib)
	drains := func(n int) []Client { // the upstream reads at once
		return Repeat(n, 10*time.Millisecond, Client{Class: "calm", Worker: -1, Retry: 20 * time.Millisecond, Stop: calm, Every: 100 * time.Millisecond, MakeCall: fixed(Upload(mib, 0))})
	}
	stalls := func(n int, apart time.Duration) []Client {
		return Repeat(n, apart, Client{Class: "hog", Worker: -1, Retry: 20 * time.Millisecond, Start: calm, MakeCall: fixed(Upload(4*mib, 5*time.Second))})
	}
	holds := Repeat(100, 20*time.Millisecond, Client{ // each holds all that it may, and little of it passes
		Class: "hog", Worker: -1, Retry: 20 * time.Millisecond, Stop: calm, MakeCall: fixed(Call{Response: 16 * mib, ReadRate: kib, HangUp: 2 * time.Second}),
	})
	late := Repeat(50, time.Millisecond, Client{Class: "late", Worker: -1, Retry: 20 * time.Millisecond, Start: calm + 3*time.Second, MakeCall: fixed(Upload(mib, 100*time.Millisecond))})
	for _, c := range []struct {
		name    string
		clients []Client
		served  string // a class that has to be served
	}{
		{"a route that stalls after a calm", append(drains(40), stalls(200, 10*time.Millisecond)...), ""},
		{"500 uploads stall at once, taught to be cheap", append(drains(10), stalls(500, 0)...), ""},
		{"others come after who taught high prices", append(holds, late...), "late"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := Defaults()
			s.Workers, s.KernelUp = 2, 64*kib
			r, n := runGuard(t, s, limit, config(s, limit), 1, Load{Name: c.name, Clients: append(c.clients, Small(50)...), Duration: calm + 8*time.Second, Drain: 6 * time.Second})
			t.Logf("%v", r)
			require.LessOrEqual(t, r.Peak, limit*110/100)
			require.Empty(t, r.Left)
			// Slots of a body that was held whole, 320 KiB at most, are in no account before a
			// reading.
			require.LessOrEqual(t, r.Uncovered, int64(128*kib), "at %v", r.UncoveredAt)
			for _, w := range n.Workers() {
				require.NotZero(t, w.Account().Table().Sequence)
			}
			if c.served != "" {
				require.GreaterOrEqual(t, r.Classes[c.served].Done, 50)
			}
		})
	}
}
