package budget

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// doors are some workers over one table that open and close connections.
type doors struct {
	*books
	open [][]*Connection
}

func (b *books) limit(connections int64) *doors {
	for _, a := range b.accounts {
		l := *a.Limits()
		l.Connections = connections
		a.SetLimits(l)
	}
	return &doors{books: b, open: make([][]*Connection, len(b.accounts))}
}

// enter opens a connection on a worker if it may.
func (d *doors) enter(worker int) Outcome {
	a := d.accounts[worker]
	out := a.AskConnection(d.now)
	if out == Granted {
		c := &Connection{}
		a.OpenConnection(c, 0)
		a.Cover(d.now)
		d.open[worker] = append(d.open[worker], c)
	}
	return out
}

func (d *doors) leave(worker int) {
	if n := len(d.open[worker]); n > 0 {
		d.accounts[worker].CloseConnection(d.open[worker][n-1])
		d.open[worker] = d.open[worker][:n-1]
	}
}

func (d *doors) sum() (n int64) {
	for i, a := range d.accounts {
		n += int64(len(d.open[i]))
		if int64(len(d.open[i])) != a.Own().Connections.Open {
			d.t.Fatalf("worker %d counts %d, and %d are open", i, a.Own().Connections.Open, len(d.open[i]))
		}
	}
	return n
}

// Whatever workers open, close and tick, never more than the limit are open, and at rest all of it
// can be used, but for one a worker.
func TestConnectionsNeverExceedTheLimit(t *testing.T) {
	for _, workers := range []int{1, 2, 8} {
		for _, limit := range []int64{1, 7, 100, 1000} {
			t.Run(fmt.Sprintf("%d workers, %d connections", workers, limit), func(t *testing.T) {
				for seed := range uint64(1) {
					random := rand.New(rand.NewPCG(seed, uint64(limit)))
					d := open(t, workers).limit(limit)
					denied := 0
					for range 1500 {
						switch w := random.IntN(workers); random.IntN(16) {
						case 0:
							d.now += 25 * ms
							_, err := d.accounts[w].Tick(d.now)
							require.NoError(t, err)
						case 1, 2, 3, 4:
							for range random.IntN(int(limit)/workers + 2) {
								d.leave(w)
							}
						default:
							for range random.IntN(int(limit)/workers + 2) {
								if d.enter(w) != Granted {
									denied++
								}
							}
						}
						if n := d.sum(); n > limit {
							t.Fatalf("%d are open", n)
						}
					}
					require.Positive(t, denied, "the limit was met")

					// One worker alone gets what the others have not.
					for range 8 {
						d.tick(25 * ms)
					}
					all := func() {
						for out := Granted; out == Granted; {
							out = d.enter(0)
						}
					}
					all()
					for range 8 {
						d.tick(25 * ms)
						all()
					}
					require.LessOrEqual(t, d.sum(), limit)
					require.GreaterOrEqual(t, d.sum(), limit-int64(workers))
				}
			})
		}
	}
}

// One exchange a chunk of the lease, none for a connection otherwise.
func TestAConnectionMakesNoExchange(t *testing.T) {
	d := open(t, 2).limit(1000)
	d.join()
	d.tick(25 * ms)
	a := d.accounts[0]
	before := a.Exchanges
	for range 500 {
		require.Equal(t, Granted, d.enter(0))
	}
	require.LessOrEqual(t, a.Exchanges-before, uint64(500/(maxConnectionSlack+1)+1))
	require.Equal(t, int64(maxConnectionSlack), a.connectionSlack(1000))

	for range 300 {
		d.leave(0)
	}
	require.Greater(t, a.Own().Connections.Lease, int64(400))
	d.tick(25 * ms)
	require.Equal(t, int64(200+maxConnectionSlack), a.Own().Connections.Lease, "on tick it shrinks to the formula")
	require.Equal(t, int64(200+maxConnectionSlack), d.entry(a).Connections.Lease)

	// Without a limit there is nothing to lease.
	d.limit(0)
	before = a.Exchanges
	for range 5000 {
		require.Equal(t, Granted, a.AskConnection(d.now))
	}
	require.Equal(t, before, a.Exchanges)
	d.tick(25 * ms)
	require.Zero(t, a.Own().Connections.Lease)
}

// A limit that falls cuts nobody, and lets nobody in until it is met; one that rises does at once.
func TestTheLimitOfConnectionsChanges(t *testing.T) {
	d := open(t, 2).limit(100)
	for range 30 {
		require.Equal(t, Granted, d.enter(0))
		require.Equal(t, Granted, d.enter(1))
	}
	was := d.open
	d = d.limit(50)
	d.open = was
	require.Equal(t, Denied, d.enter(0), "though its lease had some left")
	require.Equal(t, Denied, d.enter(1))
	require.Equal(t, int64(60), d.sum())
	d.tick(25 * ms)
	for range 9 {
		d.leave(0)
	}
	require.Equal(t, Denied, d.enter(1), "the others don't know yet")
	d.tick(25 * ms)
	require.Equal(t, Denied, d.enter(1), "51 are open")
	d.leave(0)
	d.leave(0)
	d.tick(25 * ms)
	require.Equal(t, Granted, d.enter(1))
	require.Equal(t, Denied, d.enter(0))
	require.Equal(t, int64(50), d.sum())

	was = d.open
	d = d.limit(1000)
	d.open = was
	require.Equal(t, Granted, d.enter(0))
	require.Equal(t, Granted, d.enter(1))

	// A limit where there was none counts those that are there.
	d.limit(0)
	d.tick(25 * ms)
	d.limit(10)
	require.Equal(t, Denied, d.accounts[0].AskConnection(d.now))
}

// Where the table can't be changed nobody is let in: the limit must hold. What was leased before
// may be used.
func TestConnectionsWhereTheTableIsBusy(t *testing.T) {
	store := &stubborn{}
	l := limits()
	l.Connections = 1000
	a, err := NewAccount(store, l)
	require.NoError(t, err)
	now := time.Hour
	require.Equal(t, Granted, a.AskConnection(now))
	store.conflict = true
	granted := 0
	for a.AskConnection(now) == Granted {
		a.OpenConnection(&Connection{}, 0)
		granted++
	}
	require.Equal(t, maxConnectionSlack+1, granted)
	lease := a.Own().Connections.Lease
	require.Equal(t, Busy, a.AskConnection(now))
	require.Equal(t, lease, a.Own().Connections.Lease, "what was not published is not lent")
	store.conflict = false
	require.Equal(t, Granted, a.AskConnection(now))
}

// Who was dropped for want of a beat has no lease any more: others may have it.
func TestADroppedWorkerHasNoLeaseOfConnections(t *testing.T) {
	d := open(t, 2).limit(100)
	for range 10 {
		require.Equal(t, Granted, d.enter(1))
	}
	require.Greater(t, d.accounts[1].Own().Connections.Lease, int64(10))
	d.now += deadAfter + ms
	_, err := d.accounts[0].Tick(d.now)
	require.NoError(t, err)
	_, err = d.accounts[1].Tick(d.now)
	require.NoError(t, err)
	require.Equal(t, int64(10), d.accounts[1].Own().Connections.Lease)
}

// Workers open and close at once, each with its own account.
func TestHammerConnections(t *testing.T) {
	const workers, rounds, limit = 8, 12, 500
	for round := range rounds {
		store := &Memory{}
		l := limits()
		l.Connections = limit
		var now, most atomic.Int64
		start, done := make(chan struct{}), sync.WaitGroup{}
		for w := range workers {
			a, err := NewAccount(store, l)
			require.NoError(t, err)
			done.Go(func() {
				<-start
				var open []*Connection
				for i := range 2000 {
					switch {
					case (i/100+w+round)%4 == 3:
						if n := len(open); n > 0 {
							a.CloseConnection(open[n-1])
							open = open[:n-1]
							now.Add(-1)
						}
					case a.AskConnection(time.Hour) == Granted:
						c := &Connection{}
						a.OpenConnection(c, 0)
						open = append(open, c)
						// Before the others are told of a close it is taken off, and a new one is
						// added after it was granted: so what is counted here is never more than
						// what is open.
						if n := now.Add(1); n > most.Load() {
							most.Store(n)
						}
					}
					if i%50 == 0 {
						_, _ = a.Tick(time.Hour)
					}
				}
			})
		}
		close(start)
		done.Wait()
		require.LessOrEqual(t, most.Load(), int64(limit))
		require.Greater(t, most.Load(), int64(limit*8/10), "and little of it is stranded")
	}
}
