package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func fixed(c Call) func(*rand.Rand) Call { return func(*rand.Rand) Call { return c } }

// scenario is a load that was hard for a guard, and what must come of it.
type scenario struct {
	name     string
	settings Settings
	limit    int64
	clients  []Client
	peak     float64 // × limit at most; 0 = 1
	check    func(t *testing.T, with, without *Report)
}

func scenarios() []scenario {
	oneWorker := uploads(100, 4*mib)
	for i := range oneWorker {
		oneWorker[i].Worker = 0
	}
	late := Example()
	late.ReadingTime = func(n int, random *rand.Rand) Time {
		if random.IntN(30) == 0 {
			return 500 * time.Millisecond
		}
		return 2 * time.Millisecond
	}
	many := Example()
	many.Workers, many.Cores = 64, 4
	tiny := Repeat(6000, 100*time.Microsecond, Client{
		Class: "tiny", Worker: -1, Retry: 20 * time.Millisecond,
		MakeCall: fixed(Upload(40*kib, 2*time.Second)),
	})
	full := Example()
	full.KernelUp, full.StreamCost = 4*kib, 12*kib // the upstream speaks HTTP/2 too: no connection for each
	for i := range tiny {
		tiny[i].HTTP2 = 1 + i/100
	}
	served := func(share float64, classes ...string) func(*testing.T, *Report, *Report) {
		return func(t *testing.T, with, without *Report) {
			t.Helper()
			for _, name := range classes {
				require.GreaterOrEqual(t, float64(with.Class(name).Done), share*float64(without.Class(name).Done), "%s: %v beside %v", name, with, without)
			}
		}
	}
	return []scenario{
		{name: "uploads", clients: uploads(100, 4*mib), check: served(.95, "hog", "small")},
		{
			name: "trickle", check: served(.8, "hog"), // 30 that take a minute each beside 100 honest ones
			clients: append(uploads(100, 4*mib), Repeat(30, time.Millisecond, Client{
				Class: "trickle", Worker: -1, Retry: 20 * time.Millisecond,
				MakeCall: fixed(Call{Body: 4 * mib, Announce: 4 * mib, SendRate: 4 * mib / 60, Wait: time.Millisecond, Response: 200}),
			})...),
		},
		{
			// They announce and never send. The honest ones stand in one queue with them, and get a
			// part: to tell them apart takes keys.
			name: "announce", check: served(.25, "hog"),
			clients: append(uploads(30, 4*mib), Repeat(500, time.Millisecond, Client{
				Class: "announce", Worker: -1, Retry: 20 * time.Millisecond,
				MakeCall: fixed(Call{Body: 1, Announce: 16 * mib, Response: 200}),
			})...),
		},
		{
			name: "mixed", limit: 64 * mib, // the largest can hardly fit, and nobody starves
			clients: append(append(uploads(60, 256*kib), uploads(30, 2*mib)...), Repeat(6, time.Millisecond, Client{
				Class: "largest", Worker: -1, Retry: 20 * time.Millisecond,
				MakeCall: fixed(Upload(16*mib, 500*time.Millisecond)),
			})...),
			check: func(t *testing.T, with, without *Report) {
				t.Helper()
				served(.5, "hog")(t, with, without)
				require.Positive(t, with.Class("largest").Done, "%v", with)
			},
		},
		{
			// Uploads of 40 KiB with an upstream that waits, and a kernel that takes little. They
			// share connections: 6,000 connections alone would be more than the limit, and nothing
			// refuses those.
			name: "6000 small", settings: full, peak: 1.05, clients: tiny,
		},
		{
			// One route takes all it gets; another has 20 uploads of 1 MiB a second, none of which
			// waits.
			name: "noisy neighbour",
			clients: append(uploads(100, 4*mib), Repeat(20, 50*time.Millisecond, Client{
				Class: "quiet", Worker: -1, Every: time.Second, Retry: 20 * time.Millisecond, MakeCall: fixed(Upload(mib, 50*time.Millisecond)),
			})...),
			check: func(t *testing.T, with, without *Report) {
				t.Helper()
				served(.95, "hog")(t, with, without)
				served(.99, "quiet")(t, with, without)
				quiet := with.Class("quiet")
				require.Zero(t, quiet.Waited+quiet.Rejected+quiet.Closed+quiet.Reset, "%v", with)
				require.LessOrEqual(t, quiet.Quantile(.99), without.Class("quiet").Quantile(.99)*3/2, "%v beside %v", with, without)
			},
		},
		{name: "one worker", clients: oneWorker, check: served(.9, "hog", "small")},
		{name: "late readings", settings: late, clients: uploads(100, 4*mib), check: served(.5, "hog")},
		{name: "64 workers", settings: many, limit: 2 << 30, clients: uploads(1000, 4*mib), check: served(.9, "hog", "small")},
	}
}

// workers is on how many it is run.
func (sc *scenario) workers() []int {
	if sc.settings.Workers == 64 {
		return []int{64}
	}
	return []int{1, 2, 8}
}

// on is the scenario on so many workers.
func (sc *scenario) on(workers int) (Settings, int64, Load) {
	s, limit := sc.settings, sc.limit
	if s.Cores == 0 {
		s = Example()
	}
	s.Workers = workers
	if limit == 0 {
		limit = 200 * mib
	}
	return s, limit, Load{Name: sc.name, Clients: append(sc.clients, Small(200)...), Duration: 10 * time.Second, Drain: 10 * time.Second}
}

func TestScenarios(t *testing.T) {
	for _, sc := range scenarios() {
		for _, workers := range sc.workers() {
			t.Run(fmt.Sprintf("%s/workers=%d", sc.name, workers), func(t *testing.T) {
				t.Parallel()
				s, limit, l := sc.on(workers)
				peak := sc.peak
				if peak == 0 {
					peak = 1
				}
				without := run(t, s, limit, false, 1, l)
				with := run(t, s, limit, true, 1, l)
				t.Logf("without %v", without)
				t.Logf("with %v; left %q, stuck %v, longest wait %v", with, with.Left, with.Stuck, with.LongestWait)
				require.LessOrEqual(t, float64(with.Peak), peak*float64(limit), "%v", with)
				require.Zero(t, with.Uncovered, "at %v", with.UncoveredAt)
				require.Empty(t, with.Left)
				require.Less(t, with.Stuck, 2*time.Second)
				small := with.Class("small")
				require.Zero(t, small.Rejected+small.Closed+small.Reset, "%v", with)
				if sc.check != nil {
					sc.check(t, with, without)
				}
			})
		}
	}
}
