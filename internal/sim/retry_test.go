package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/guard"
)

// longest is the default of reject.retry_after.max: a delay below it is a promise.
const longest = 30 * time.Second

// obeying runs clients that come back when they are told to, on so many workers.
func obeying(t *testing.T, workers int, clients []Client, d Time, edit func(*guard.Config)) *Report {
	t.Helper()
	s := Example()
	s.Workers = workers
	c := config(s, 200*mib)
	edit(&c)
	for i := range clients {
		clients[i].Obey = true
	}
	r, _ := runGuard(t, s, 200*mib, c, 1, Load{Name: "obey", Clients: append(clients, Small(200)...), Duration: d, Drain: 10 * time.Second})
	require.Empty(t, r.Left)
	require.LessOrEqual(t, r.Peak, int64(200*mib))
	return r
}

// Who is told to come back is admitted then, though those who are served come again at once and
// untold. At some 150 uploads a second 400 clients are more than a line of 2 s takes.
func TestRetryAfterTellsTheTruth(t *testing.T) {
	for _, clients := range []int{400, 500} {
		for _, workers := range []int{1, 2, 8} {
			t.Run(fmt.Sprintf("clients=%d/workers=%d", clients, workers), func(t *testing.T) {
				t.Parallel()
				hogs := obeying(t, workers, uploads(clients, 4*mib), time.Minute, func(*guard.Config) {}).Class("hog")
				kept, n := hogs.Kept(longest)
				t.Logf("%d done, %d told, of %d that came back %.1f %% were served", hogs.Done, len(hogs.Told), n, 100*kept)
				require.Greater(t, n, 50)
				require.GreaterOrEqual(t, kept, .8)
			})
		}
	}
}

// Clients that are all told at one instant come back spread, whether it is known what is admitted
// per second or nothing has been let in yet.
func TestACrowdComesBackSpread(t *testing.T) {
	for _, workers := range []int{1, 2, 8} {
		for _, busy := range []bool{false, true} {
			t.Run(fmt.Sprintf("workers=%d/busy=%v", workers, busy), func(t *testing.T) {
				t.Parallel()
				const at = 4 * time.Second
				clients := Repeat(1000, 0, Client{
					Class: "crowd", Worker: -1, Start: at, Calls: 1, Retry: 20 * time.Millisecond,
					MakeCall: fixed(Upload(4*mib, 2*time.Second)),
				})
				queue := 0
				if busy {
					before := uploads(200, 4*mib)
					for i := range before {
						before[i].Stop = at
					}
					clients, queue = append(clients, before...), 100
				}
				crowd := obeying(t, workers, clients, time.Minute, func(c *guard.Config) { c.Throttle.Queue = queue }).Class("crowd")
				kept, n := crowd.Kept(longest)
				perSecond := map[int]int{}
				for _, d := range crowd.Told {
					perSecond[int(d/time.Second)]++
				}
				t.Logf("of %d that came back %.1f %% were served; told per second %v", n, 100*kept, perSecond)
				require.Greater(t, n, 500)
				require.GreaterOrEqual(t, kept, .8)
				for d, n := range perSecond {
					require.LessOrEqual(t, n, 2*len(crowd.Told)/int(longest/time.Second), "after %d s", d)
				}
			})
		}
	}
}
