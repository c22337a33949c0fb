package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/peak"
	"github.com/highwater-envoy/highwater/internal/reservoir"
)

// looker is the guard, with somebody who looks at the requests of all workers now and then, and
// knows what they truly hold at the instant at which each worker freezes its sample.
type looker struct {
	*Native
	e     *Envoy
	at    []Time // when, since the beginning
	taken []bool // by worker: the truth of this look
	truth map[string]float64
	said  map[string]*saying
	views []peak.View
}

type saying struct {
	likely reservoir.Estimate
	bound  float64
}

// Tick implements Filter.
func (l *looker) Tick(worker int) Time {
	if len(l.at) > 0 && worker == 0 && l.taken == nil && l.e.now-l.e.start >= l.at[0] {
		l.Workers()[0].Look(l.e.now)
		l.taken = make([]bool, l.e.Workers)
	}
	if l.taken != nil && !l.taken[worker] {
		l.taken[worker] = true
		for _, c := range l.e.workers[worker].conns {
			for _, s := range c.streams {
				l.truth[s.client.Class] += float64(s.held + s.answer)
			}
			if c.owner != nil {
				l.truth[c.owner.Class] += float64(c.rest)
			}
		}
	}
	next := l.Native.Tick(worker)
	for _, taken := range l.taken {
		if !taken {
			return next
		}
	}
	if l.taken != nil {
		l.taken, l.at = nil, l.at[1:]
		now := l.Workers()[0].Current()
		for i := range now.Snapshots {
			s := &now.Snapshots[i]
			for j := range s.Samples {
				x := &s.Samples[j]
				said := l.said[x.Labels.Route]
				if said == nil {
					said = &saying{}
					l.said[x.Labels.Route] = said
				}
				said.likely.Add(float64(x.Likely), s.Weight(j))
				said.bound += s.Weight(j) * float64(x.Request+x.Response)
			}
		}
		l.views = append(l.views, peak.ViewOf(now, peak.Clock{Monotonic: l.e.now}, 100))
	}
	return next
}

func look(t *testing.T, s Settings, l Load) *looker {
	t.Helper()
	const limit = 2048 * mib // nobody waits: it is about what they hold
	c := config(s, limit)
	c.Trace.Every = 4 << 10 // nearly all are in the sample: it is not about sampling either
	c.Trace.Capacity = 4096
	e := New(s, limit, 1)
	n, err := NewNative(e, c, s.Workers)
	require.NoError(t, err)
	k := &looker{Native: n, e: e, truth: map[string]float64{}, said: map[string]*saying{}}
	for at := 3 * time.Second; at < l.Duration; at += 700 * time.Millisecond {
		k.at = append(k.at, at)
	}
	e.Use(k)
	r := e.Run(l)
	require.Empty(t, r.Left)
	return k
}

// kinds of requests, whose truth the guard can tell well or not.
var kinds = []struct {
	name        string
	settings    func() Settings
	call        Call
	clients     int
	least, most float64 // likely ÷ truth, where they hold anything
}{
	{"uploads that stop in the middle, buffered whole", Example, Call{Body: 2 * mib, Announce: 4 * mib}, 50, .99, 1.01},
	{"uploads of 16 MiB whose upstream takes 4 and stops", Example, Call{Body: 16 * mib, Announce: 16 * mib, Wait: 15 * time.Second}, 30, .1, .3},
	{"uploads of 1 MiB whose upstream's kernel has taken them", Example, Call{Body: mib, Announce: mib, Wait: 15 * time.Second}, 100, 1, 1e9},
	{"uploads as fast as they are taken", Example, Call{Body: 16 * mib, Announce: 16 * mib, TakeRate: 32 * mib}, 20, 1, 1e9},
	{"readers of 64 KiB/s, 64 KiB buffers", Example, Call{Response: 16 * mib, ReadRate: 64 * kib}, 200, 1.5, 2.2},
	{"readers of 64 KiB/s, 1 MiB buffers", Defaults, Call{Response: 64 * mib, ReadRate: 64 * kib}, 100, 1.5, 3},
	{"downloads as fast as they are read", Example, Call{Response: 16 * mib, GiveRate: 32 * mib}, 20, 1, 1e9},
	{"streams that moved 10 MiB and idle", Example, Call{Response: 10 * mib, Chunked: true, Idle: true}, 100, 1, 1e9},
}

func clientsOf(name string, n int, call Call) []Client {
	call.HangUp = 20 * time.Second
	return Repeat(n, 5*time.Millisecond, Client{Class: name, Worker: -1, MakeCall: func(*rand.Rand) Call { return call }})
}

// What is likely held against what is truly held, for each kind of request alone, and for all of
// those with the example's settings at once: the table of docs/explanation/attribution.md. Who
// stands still in the middle is known exactly. Of what moves fast or has drained, likely is a
// bound, and of what has all come and is not taken it is short: the two look alike from where the
// guard stands.
func TestLikelyAgainstTruth(t *testing.T) {
	mixed := look(t, Example(), Load{Name: "all", Duration: 6 * time.Second, Drain: 20 * time.Second, Clients: func() (all []Client) {
		for _, k := range kinds {
			if k.settings().Downstream == Example().Downstream {
				all = append(all, clientsOf(k.name, k.clients, k.call)...)
			}
		}
		return all
	}()})
	told := map[string]float64{}
	for _, v := range mixed.views {
		for _, g := range v.Stacks {
			told[g.Route] += float64(g.Held)
		}
	}
	looks := float64(len(mixed.views))
	var table strings.Builder
	for _, k := range kinds {
		l := look(t, k.settings(), Load{Name: k.name, Duration: 6 * time.Second, Drain: 20 * time.Second, Clients: clientsOf(k.name, k.clients, k.call)})
		said, truth := l.said[k.name], l.truth[k.name]
		require.NotNil(t, said, k.name)
		require.Len(t, l.views, len(mixed.views))
		var alone float64
		for _, v := range l.views {
			alone += float64(v.Held)
		}
		if truth > 0 {
			require.GreaterOrEqual(t, said.likely.Sum/truth, k.least, k.name)
			require.LessOrEqual(t, said.likely.Sum/truth, k.most, k.name)
		}
		require.LessOrEqual(t, truth, 1.001*said.bound, "%s: a bound is one", k.name)
		together := "—"
		if m, ok := told[k.name]; ok {
			together = fmt.Sprintf("%.1f of %.1f", m/looks/mib, mixed.truth[k.name]/looks/mib)
		}
		fmt.Fprintf(&table, "| %s | %.1f | %.1f | %.1f | %.1f | %s |\n", k.name, truth/looks/mib, said.likely.Sum/looks/mib, said.bound/looks/mib, alone/looks/mib, together)
	}
	t.Logf("MiB:\n| | truly held | likely | at most | told, alone | told, all at once |\n|---|---|---|---|---|---|\n%s", table.String())
	require.InEpsilon(t, mixed.truth[kinds[0].name], told[kinds[0].name], .06, "beside all others")
}
