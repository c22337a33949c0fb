package sim

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// listed is a source of clients that are in a list.
type listed struct {
	clients []Client
	told    map[What]int
	reasons map[string]int
	most    int64
	seen    int
	enough  int // after so many outcomes; 0 = never
}

func (l *listed) Next() *Client {
	if len(l.clients) == 0 {
		return nil
	}
	c := &l.clients[0]
	l.clients = l.clients[1:]
	return c
}

func (l *listed) Tell(o Outcome) {
	l.told[o.What]++
	if o.Reason != "" {
		l.reasons[o.Reason]++
	}
}

func (l *listed) See(_ Time, m Memory, held func(visit func(*Client, int64))) {
	l.seen++
	l.most = max(l.most, m.InUse)
	held(func(_ *Client, n int64) { l.most = max(l.most, n) })
}

func (l *listed) Enough() bool { return l.enough > 0 && l.told[Done] >= l.enough }

func source(clients ...Client) *listed {
	return &listed{clients: clients, told: map[What]int{}, reasons: map[string]int{}}
}

// What clients come to does not depend on whether they are in the load's list or come one by one,
// but for the randomness of a model in which calls are made in another order.
func TestASourceIsAsGoodAsAList(t *testing.T) {
	s, limit := Example(), int64(200*mib)
	clients := append(uploads(100, 4*mib), Small(200)...)
	l := Load{Name: "listed", Clients: clients, Duration: 8 * time.Second, Drain: 10 * time.Second}
	list := run(t, s, limit, true, 1, l)

	from := source(clients...)
	l.Clients, l.Source = nil, from
	r := run(t, s, limit, true, 1, l)
	require.Empty(t, r.Left)
	require.InEpsilon(t, list.Peak, r.Peak, .1)
	require.InEpsilon(t, list.Class("hog").Done+list.Class("small").Done, from.told[Done], .02)
	require.Positive(t, r.Class("hog").Waited)
	require.Equal(t, r.Class("hog").Done+r.Class("small").Done, from.told[Done])
	require.Equal(t, r.Class("hog").Closed, from.told[Closed])
	require.Positive(t, from.told[Closed])
	require.GreaterOrEqual(t, from.told[Admitted], from.told[Done])
	require.LessOrEqual(t, from.most, r.Peak)
	require.Empty(t, r.Class("hog").Latency, "nothing grows with the load")
}

// A day in which nothing happens takes no time, and an idle connection is closed.
func TestNothingTakesNoTime(t *testing.T) {
	call := func(*rand.Rand) Call { return Get(1000, time.Millisecond) }
	from := source(
		Client{Class: "a", Calls: 1, Conn: 1, Worker: -1, MakeCall: call},
		Client{Class: "a", Calls: 1, Conn: 1, Worker: -1, Start: 9 * time.Second, MakeCall: call},
		Client{Class: "a", Calls: 1, Conn: 1, Worker: -1, Start: 24 * time.Hour, MakeCall: call},
		Client{Class: "a", Calls: 1, Fresh: true, Worker: -1, Start: 24 * time.Hour, MakeCall: call},
	)
	e := New(Example(), 0, 1)
	begun := time.Now()
	r := e.Run(Load{Name: "day", Duration: 25 * time.Hour, Source: from})
	require.Less(t, time.Since(begun), 2*time.Second)
	require.Equal(t, 4, from.told[Done])
	require.Equal(t, 2, r.Connections, "the second call was on the first's connection")
	require.Less(t, from.seen, 100)
	require.Empty(t, e.all())
}

// Calls of a chain are made one after the other, with the gap between them, whatever their starts
// say, and a slow reader wakes as the bytes go.
func TestChains(t *testing.T) {
	chain := &Chain{}
	slow := func(*rand.Rand) Call { return Call{Response: mib, ReadRate: 256 * kib} }
	var clients []Client
	for i := range 3 {
		clients = append(clients, Client{Class: "a", Calls: 1, Conn: 7, Worker: -1, Start: Time(i) * time.Millisecond, Chain: chain, Gap: time.Second, MakeCall: slow})
	}
	from := source(clients...)
	e := New(Defaults(), 0, 1)
	e.Run(Load{Name: "chain", Duration: time.Minute, Source: from})
	require.Equal(t, 3, from.told[Done])
	// Of each the kernel takes 2 MiB at once, but the next call waits until its client has read it.
	require.Greater(t, chain.ended-e.start, 2*time.Second)
	require.Less(t, chain.ended-e.start, 20*time.Second)
}

// It ends where the source has had enough.
func TestEnough(t *testing.T) {
	from := source(Client{Class: "a", Worker: -1, Every: time.Second, MakeCall: func(*rand.Rand) Call { return Get(1, 0) }})
	from.enough = 10
	e := New(Example(), 0, 1)
	e.Run(Load{Name: "enough", Duration: 24 * time.Hour, Source: from})
	require.Equal(t, 10, from.told[Done])
}
