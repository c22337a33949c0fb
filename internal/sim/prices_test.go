package sim

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Each class of streams costs what it costs, and is priced as that, beside others. What is dear is held
// back in time.
func TestStreamsArePricedByClass(t *testing.T) {
	const limit = int64(200 * mib)
	costs := map[string]int64{"gzip": 440 * kib, "brotli": 900 * kib, "plain": 0}
	for _, workers := range []int{1, 2, 4} {
		s := Example()
		s.Workers = workers
		c := config(s, limit)
		c.Fairness.By = "route"
		l := Load{Name: "classes", Duration: 2 * time.Second}
		for name, n := range map[string]int{"gzip": 100, "brotli": 40, "plain": 100} {
			clients := Repeat(n, 3*time.Millisecond, Client{
				Class: name, Worker: -1, MakeCall: func(r *rand.Rand) Call {
					return Call{Response: kib, Chunked: true, Idle: true, Holds: costs[name], HangUp: 200*time.Millisecond + time.Duration(r.Int64N(int64(400*time.Millisecond)))}
				},
			})
			for i := range clients {
				clients[i].Start += time.Duration(len(name)-4) * 400 * time.Millisecond // which come one after the other
			}
			l.Clients = append(l.Clients, clients...)
		}
		l.Clients = append(l.Clients, Small(200)...)
		r, n := runGuard(t, s, limit, c, 1, l)
		t.Log(r)
		for _, w := range n.Workers() {
			for _, k := range w.Prices().Keys {
				t.Logf("%d workers: %s %d KiB, known %v, %d streams", workers, k.Name, k.Bytes/kib, k.Known, k.Streams)
				if want := costs[k.Name]; want > 0 {
					require.True(t, k.Known, k.Name)
					require.InEpsilon(t, want+s.StreamCost, k.Bytes, .2, k.Name)
				} else {
					require.False(t, k.Known, k.Name)
				}
			}
		}
	}
}
