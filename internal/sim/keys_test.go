package sim

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Ten tenants of weight 1 to 10 that all want more than there is, and hold equally long what they
// upload: what each is served converges to its weight.
func TestTenantsAreServedByWeight(t *testing.T) {
	const limit = int64(400 * mib)
	for _, workers := range []int{2, 8} { // one is busy with rejects
		t.Run(fmt.Sprintf("workers=%d", workers), func(t *testing.T) {
			t.Parallel()
			s := Example()
			s.Workers, s.Cores, s.KernelUp = workers, 8, 4*kib // memory is what is short: Envoy holds what the upstream does not read
			c := config(s, limit)
			c.Fairness.By, c.Fairness.Weights = "header:x-tenant", map[string]float64{}
			l := Load{Name: "tenants", Duration: 40 * time.Second, Warm: 10 * time.Second}
			for i := range 10 {
				name := fmt.Sprint("t", i+1)
				c.Fairness.Weights[name] = float64(i + 1)
				clients := Repeat(400, time.Millisecond, Client{
					Class: name, Worker: -1, Retry: 200 * time.Millisecond, // so that a worker is not busy with rejects alone
					MakeCall: func(r *rand.Rand) Call { // equally long on the whole, and not all in step
						return Upload(256*kib, 500*time.Millisecond+time.Duration(r.Int64N(int64(time.Second))))
					},
				})
				for j := range clients {
					clients[j].HTTP2 = 1 + 8*i + j/50
				}
				l.Clients = append(l.Clients, clients...)
			}
			r, _ := runGuard(t, s, limit, c, 1, l)
			t.Log(r)
			var all int64
			for i := range 10 {
				all += r.Class(fmt.Sprint("t", i+1)).Bytes
			}
			for i := range 10 {
				weight := float64(i + 1)
				require.InEpsilon(t, float64(all)/55*weight, float64(r.Class(fmt.Sprint("t", i+1)).Bytes), .1, "weight %v", weight)
			}
			require.LessOrEqual(t, r.Peak, limit+limit/10)
		})
	}
}

// Buffers are understated by eight, and readers stall: of what is evicted no more than half again
// as much as was too much goes, in whichever workers it is, and nobody of another route.
func TestEvictsHardlyMoreThanIsTooMuch(t *testing.T) {
	for _, workers := range []int{1, 2, 8} {
		for seed := range uint64(8) {
			s := Defaults()
			s.Workers, s.KernelDown = workers, Example().KernelDown
			told := s
			told.StreamWindow, told.Downstream, told.Upstream = s.StreamWindow/8, s.Downstream/8, s.Upstream/8
			random := rand.New(rand.NewPCG(seed, 7))
			readers := Repeat(20+random.IntN(40), time.Duration(random.IntN(10_000))*time.Microsecond, Client{
				Class: "stalled", Worker: -1, Calls: 1, KeepCalls: true, MakeCall: fixed(Call{Response: 32 * mib, ReadRate: kib}),
			})
			for i := range readers {
				readers[i].HTTP2 = 1 + i
			}
			quiet := Repeat(10, 100*time.Millisecond, Client{
				Class: "quiet", Worker: -1, Every: time.Second, MakeCall: fixed(Upload(mib, 50*time.Millisecond)),
			})
			r, n := runGuard(t, s, 200*mib, config(told, 200*mib), seed, Load{Name: "stalled", Clients: append(append(readers, quiet...), Small(100)...), Duration: 6 * time.Second})
			table := n.Workers()[0].Account().Table()
			hard := table.Base + int64(.9*float64(200*mib-table.Base))
			excess := r.Stayed + r.Ended - hard
			t.Logf("%d workers, %d readers: peak %.2f x, ended %d of %d MiB too much, %d stay", workers, len(readers), float64(r.Peak)/(200*mib), r.Ended/mib, excess/mib, r.Stayed/mib)
			require.Positive(t, r.Ended)
			require.LessOrEqual(t, float64(r.Ended), 1.5*float64(excess))
			require.LessOrEqual(t, r.Stayed, int64(200*mib))
			for _, name := range []string{"quiet", "small"} {
				c := r.Class(name)
				require.Zero(t, c.Reset+c.Rejected+c.Closed, "%s: %v", name, r)
			}
		}
	}
}
