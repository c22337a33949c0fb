package guard

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/highwater-envoy/highwater/internal/verdict"
	"github.com/stretchr/testify/require"
)

// Workers run at once in Envoy. Whatever they admit at the same moment, each from its own lease, is
// together no more than what lies under hard.
func TestWorkersAtOnceNeverAdmitMoreThanHard(t *testing.T) {
	const workers = 6
	for round := range uint64(8) {
		p := newProcess(t, workers, func(c *Config) { c.Throttle.Queue = 100_000 })
		p.settle(40 * mib)
		room := p.workers[0].Account().Share(float64(p.guards[0].Config().Budget.Hard)) - 40*mib

		var admitted [workers]int64
		start, done := make(chan struct{}), sync.WaitGroup{}
		for i, g := range p.guards {
			done.Go(func() {
				rng := rand.New(rand.NewPCG(round, uint64(i)))
				now := p.now
				var live []*request
				lengths := map[*Stream]int64{}
				<-start
				for range 300 {
					r := &request{connected: &Connection{}}
					length := 65*kib + rng.Int64N(2*mib)
					switch v := g.Open(now, &r.Stream, r, length); v.Action {
					case verdict.Admit:
						admitted[i] += length
					case verdict.Wait:
						live = append(live, r)
						lengths[&r.Stream] = length
					default:
					}
					// Those who gave up waiting let others in, and who waits is resumed.
					if rng.IntN(4) == 0 && len(live) > 0 {
						g.Close(now, &live[0].Stream)
						live = live[1:]
					}
					if rng.IntN(8) == 0 {
						now += time.Microsecond
						if s := p.workers[i].Tick(now).Resume; s != nil {
							admitted[i] += lengths[s]
							for j := range live {
								if &live[j].Stream == s {
									live = append(live[:j], live[j+1:]...)
									break
								}
							}
						}
					}
				}
			})
		}
		close(start)
		done.Wait()
		var sum int64
		for _, n := range admitted {
			sum += n
		}
		require.LessOrEqual(t, sum, room)
		require.Greater(t, sum, room/2, "and not much less")
	}
}
