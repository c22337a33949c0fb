package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// What a rejected HTTP/1 upload leaves unread lingers. It may hold 1/8 of what traffic can have;
// beyond that there is no answer, and the connection is closed: with answers only, 100 clients held
// 4.5 times the budget.
func TestRejectsCostMemory(t *testing.T) {
	p := newProcess(t, 1, nobodyWaits)
	p.settle(40 * mib)
	for range 35 {
		p.open(0, 4*mib)
	}
	actions := map[verdict.Action]int{}
	var closed []*request
	for range 30 {
		r, v := p.open(0, 4*mib)
		actions[v.Action]++
		if v.Action == verdict.Close {
			closed = append(closed, r)
		}
	}
	// Each leaves 2 MiB; between the estimate and the limit there is room for some 8 of the 20 MiB.
	require.InDelta(t, 8, actions[verdict.Answer], 2)
	require.Equal(t, 30, actions[verdict.Answer]+actions[verdict.Close])
	require.LessOrEqual(t, p.left(0), 20*mib)

	// A client that hangs up before it is closed, and the others at the next tick.
	p.guards[0].Close(p.now, &closed[0].Stream)
	p.now += 5 * ms
	require.Len(t, p.workers[0].Tick(p.now).Close, len(closed)-1)
	require.Empty(t, p.workers[0].Tick(p.now).Close)

	// HTTP/2, and who has sent all, always get the answer.
	r := &request{connected: p.connection(0), http2: true}
	require.Equal(t, verdict.Answer, p.guards[0].Open(p.now, &r.Stream, r, 4*mib).Action)

	p.now += 1100 * ms
	p.workers[0].Tick(p.now)
	require.Zero(t, p.left(0), "what lingers is gone after the linger")
}

// What rejects leave may hold an eighth of the room, of all workers together, for as long as it
// lingers.
func TestLeftoversOfAllWorkers(t *testing.T) {
	p := newProcess(t, 2, func(c *Config) {
		c.Buffers.Downstream, c.Buffers.HTTP2Window, c.Buffers.WholeRequest = unit.MiB, unit.MiB, unit.GiB
		c.Buffers.Linger = unit.Duration(10 * time.Second)
	})
	p.settle(40 * mib)
	reject := func(n int) map[verdict.Action]int {
		actions := map[verdict.Action]int{}
		for i := range n {
			p.now += 5 * ms
			for w := range 4 { // one to tell, one to hear
				p.workers[w%2].Tick(p.now)
			}
			_, v := p.open(i%2, 190*mib)
			require.Equal(t, verdict.TooLarge, v.Reason)
			actions[v.Action]++
		}
		return actions
	}
	require.Equal(t, map[verdict.Action]int{verdict.Answer: 10, verdict.Close: 10}, reject(20), "2 MiB each of 160")
	p.now += 11 * time.Second
	p.settle(40 * mib)
	require.Equal(t, map[verdict.Action]int{verdict.Answer: 10, verdict.Close: 2}, reject(12))
}

// Clients that are rejected and come straight back, thousands of times before the next reading,
// add what one of them holds, and no more.
func TestTurnedAwayAgainAndAgain(t *testing.T) {
	for name, again := range map[string]func(p *process) Verdict{
		"HTTP/2": func(p *process) Verdict {
			r := &request{connected: &Connection{Context: 1}, http2: true}
			v := p.guards[0].Open(p.now, &r.Stream, r, 190*mib)
			p.guards[0].Close(p.now, &r.Stream)
			return v
		},
		"HTTP/1": func(p *process) Verdict {
			r, v := p.open(0, 190*mib)
			p.guards[0].Close(p.now, &r.Stream)
			p.workers[0].CloseConnection(p.now, r.connected)
			return v
		},
		"hanging up in line": func(p *process) Verdict {
			r, v := p.open(0, 140*mib)
			p.guards[0].Close(p.now, &r.Stream)
			p.workers[0].CloseConnection(p.now, r.connected)
			return v
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcess(t, 1, func(c *Config) { c.Buffers.WholeRequest, c.Buffers.Linger = unit.GiB, 0 })
			p.settle(40 * mib)
			if name == "hanging up in line" {
				p.read(100 * mib)
			}
			before := p.workers[0].Account().Own().Fresh
			for range 1000 {
				require.NotEqual(t, verdict.Admit, again(p).Action)
			}
			require.LessOrEqual(t, p.workers[0].Account().Own().Fresh-before, 128*kib+45*kib)
		})
	}
}

// One who has waited too long and is to be closed sends on until he is: the network filter sees it,
// and it counts.
func TestWhatComesOfOneWhoWaitedAndIsClosedCounts(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) {
		c.Evict, c.Buffers.WholeRequest, c.Buffers.Linger = false, unit.GiB, unit.Duration(10*time.Second)
	})
	p.settle(40 * mib)
	for answered := true; answered; { // until there is no room for what is left unread
		_, v := p.open(0, 190*mib)
		require.Equal(t, verdict.TooLarge, v.Reason)
		answered = v.Action == verdict.Answer
	}
	p.settle(182 * mib)
	r, v := p.open(0, 4*mib)
	require.Equal(t, verdict.Wait, v.Action)
	w := p.workers[0]
	p.settle(182 * mib)
	require.True(t, r.Waiting())
	require.Zero(t, w.Account().Own().Fresh)
	for r.Waiting() {
		p.now += Tick
		a := w.Tick(p.now)
		if a.Ask {
			w.Observe(p.now, memory.Reading{InUse: 182 * mib, Allocated: 182 * mib}, nil)
		}
		if !r.Waiting() {
			require.Equal(t, []*Stream{&r.Stream}, a.Close)
		}
	}
	before := w.Account().Own().Fresh
	w.Data(p.now, r.connected, 100*kib)
	require.Equal(t, before+100*kib, w.Account().Own().Fresh)
}

// While those are to be closed who brought what has no room, whoever comes with an upload as large
// is closed before it is judged: else what a pass of Envoy's event loop reads of all of them is
// there at once.
func TestWhatComesFirstIsRefusedWhileOthersAreToBeClosed(t *testing.T) {
	p := newProcess(t, 1, nobodyWaits)
	p.settle(40 * mib)
	w := p.workers[0]
	config := *p.guards[0].Config()
	from := func(c Config, who peer) *Connection {
		g, _ := New(c, w)
		connection := &Connection{Context: 1}
		require.True(t, g.OpenConnection(p.now, connection, who))
		return connection
	}
	sends := func(n int64) bool { return w.Data(p.now, from(config, "10.0.0.1"), n) }

	require.False(t, sends(mib), "there is room")
	for range 35 {
		p.open(0, 4*mib)
	}
	p.read(200*mib - 512*kib)
	require.False(t, sends(mib), "there is none, but nobody is closed: whose it is decides")
	before := from(config, "10.0.0.1")
	w.Data(p.now, before, 100)
	for w.Counts()[metric.CountClosedConnections] == 0 {
		p.open(0, 4*mib)
	}

	c, counts, own := from(config, "10.0.0.1"), *w.Counts(), w.Account().Own()
	require.True(t, w.Data(p.now, c, mib))
	require.EqualValues(t, 1, w.Counts()[metric.CountClosedConnections]-counts[metric.CountClosedConnections])
	require.EqualValues(t, 1, w.Counts()[metric.CountRejected+int(verdict.Closed)-1]-counts[metric.CountRejected+int(verdict.Closed)-1])
	require.Equal(t, counts[metric.CountRejected+int(verdict.QueueFull)-1], w.Counts()[metric.CountRejected+int(verdict.QueueFull)-1], "each is counted under one reason")
	require.Equal(t, own, w.Account().Own(), "it is gone at once")
	require.False(t, w.Data(p.now, c, mib), "if it could not be closed it goes on")
	w.CloseConnection(p.now, c)
	require.Equal(t, own.Connections.Open-1, w.Account().Own().Connections.Open)

	require.False(t, w.Data(p.now, before, mib), "it has sent something before")
	require.False(t, sends(256*kib-1), "it may be anything")
	require.False(t, w.Data(p.now, from(config, notHTTP), mib))
	observed, exempting, larger := config, config, config
	observed.Mode = Observe
	require.False(t, w.Data(p.now, from(observed, "10.0.0.1"), mib))
	exempting.Exempt = []Exempt{{Cluster: "c"}}
	require.False(t, w.Data(p.now, from(exempting, "10.0.0.1"), mib), "its request may be exempt")
	exempting.Exempt = []Exempt{{PathPrefix: "/healthz"}}
	require.True(t, w.Data(p.now, from(exempting, "10.0.0.1"), mib), "no upload is exempt by its path")

	// Where many are to be closed, a small upload is one too many.
	p.read(200 * mib)
	for before := w.Counts()[metric.CountClosedConnections]; w.Counts()[metric.CountClosedConnections]-before < manyClosing; {
		require.False(t, sends(60*kib))
		p.open(0, 4*mib)
	}
	require.False(t, w.Data(p.now, from(observed, "10.0.0.1"), 60*kib))
	require.False(t, w.Data(p.now, from(exempting, "10.0.0.1"), 60*kib), "one so small may be exempt by its path")
	require.False(t, sends(modest-1), "it may be anything")
	require.True(t, sends(60*kib))

	larger.Budget.Limit.Bytes = 400 * unit.MiB
	require.False(t, w.Data(p.now, from(larger, "10.0.0.1"), mib), "now there is room")
}

// Others are to be closed, and the estimate is at the limit. But by the reading there is room for
// one who waits: whoever may wait is let in, to be judged.
func TestWhatComesFirstIsLetInWhereItMayWait(t *testing.T) {
	for _, waits := range []bool{true, false} {
		p := newProcess(t, 1, func(c *Config) {
			asEnvoy(c)
			c.Budget.Hard = .99
			if !waits {
				nobodyWaits(c)
			}
		})
		p.settle(40 * mib)
		w := p.workers[0]
		for w.Counts()[metric.CountClosedConnections] == 0 { // what is coming fills it
			p.open(0, 4*mib)
		}
		require.NoError(t, w.Account().Change(p.now, func(table *budget.Table) { table.Keeps = 250 })) // and most of it drains
		c := &Connection{Context: 1}
		require.True(t, p.guards[0].OpenConnection(p.now, c, peer("10.0.0.1")))
		require.Equal(t, waits, !w.Data(p.now, c, 3*mib))
	}
}
