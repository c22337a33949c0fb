package guard

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/forecast"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const (
	kib = int64(unit.KiB)
	mib = int64(unit.MiB)
	ms  = time.Millisecond
)

// process is some workers over one table, with a clock that the test moves.
type process struct {
	t       *testing.T
	now     Time
	store   budget.Store
	workers []*Worker
	guards  []*Guard
	nextID  uint32
}

// request is a client's: what Envoy would tell of it.
type request struct {
	Stream
	http2     bool
	connected *Connection
	path      string
	hostCalls int
	route     string
	cluster   string
	tenant    string
	hides     [2]bool
	untold    bool
}

func (r *request) HTTP2() bool             { r.hostCalls++; return r.http2 }
func (r *request) Connection() *Connection { r.hostCalls++; return r.connected }
func (r *request) Arrived() *Connection {
	if r.connected == nil || r.connected.Context == 0 {
		return nil
	}
	return r.connected
}
func (r *request) Path() string         { r.hostCalls++; return r.path }
func (r *request) Route() string        { r.hostCalls++; return r.route }
func (r *request) Cluster() string      { r.hostCalls++; return r.cluster }
func (r *request) VirtualHost() string  { r.hostCalls++; return "" }
func (r *request) Source() string       { r.hostCalls++; return "" }
func (r *request) Header(string) string { r.hostCalls++; return r.tenant }

func (r *request) Describe(header string) reservoir.Labels {
	r.hostCalls++
	l := reservoir.Labels{VirtualHost: "all", Route: r.route, Cluster: r.cluster, Source: "10.0.0.1", Protocol: "HTTP/1.1"}
	if header != "" {
		l.Key = r.tenant
	}
	return l
}

// example is the configuration of the shipped example: 200 MiB, 64 KiB buffers.
func example() Config {
	c := Default()
	c.Budget.Limit.Bytes = 200 * unit.MiB
	c.Buffers = Buffers{
		Downstream: 64 * unit.KiB, Upstream: 64 * unit.KiB, HTTP2Window: 64 * unit.KiB,
		HTTP2ConnectionWindow: 16 * unit.MiB, Linger: unit.Duration(100 * ms), WholeRequest: 16 * unit.MiB,
	}
	return c
}

func newProcess(t *testing.T, workers int, edit func(*Config)) *process {
	t.Helper()
	return newProcessOn(t, &budget.Memory{}, workers, edit)
}

func newProcessOn(t *testing.T, store budget.Store, workers int, edit func(*Config)) *process {
	t.Helper()
	c := example()
	if edit != nil {
		edit(&c)
	}
	require.NoError(t, c.Validate())
	p := &process{t: t, now: time.Hour, store: store}
	for range workers {
		w, err := NewWorker(p.store, rand.New(rand.NewPCG(1, 2)).Float64)
		require.NoError(t, err)
		g, changed := New(c, w)
		require.Empty(t, changed)
		p.workers, p.guards = append(p.workers, w), append(p.guards, g)
	}
	return p
}

// read gives the process a reading that is asked for and answered now, then ticks all workers, so
// that all know it.
func (p *process) read(inUse int64) {
	p.t.Helper()
	for i := 0; ; i++ {
		p.now += 25 * ms
		for _, w := range p.workers {
			if a := w.Tick(p.now); a.Ask {
				w.Observe(p.now, Reading{InUse: inUse, Allocated: inUse}, nil)
				p.now += ms
				for _, w := range p.workers {
					w.Tick(p.now)
				}
				return
			}
		}
		require.Less(p.t, i, 100, "nobody asks for a reading")
	}
}

// settle gives so many readings that all that has passed is in one.
func (p *process) settle(inUse int64) {
	p.t.Helper()
	for range 3 {
		p.read(inUse)
	}
}

func (p *process) connection(worker int) *Connection {
	p.nextID++
	c := &Connection{Context: p.nextID}
	p.guards[worker].OpenConnection(p.now, c, peer("10.0.0.1"))
	return c
}

func (p *process) open(worker int, length int64) (*request, Verdict) {
	r := &request{connected: p.connection(worker)}
	return r, p.guards[worker].Open(p.now, &r.Stream, r, length)
}

func (p *process) estimate() int64 {
	t := p.workers[0].account.Table()
	var sum int64
	for _, w := range p.workers {
		own := w.account.Own()
		sum += own.Fresh + own.Coming
	}
	return t.Reading + sum
}

func TestAdmitsWhatFitsAndLetsTheRestWait(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g, w := p.guards[0], p.workers[0]
	var admitted, waiting []*request
	for range 100 {
		r, v := p.open(0, 4*mib)
		switch v.Action {
		case Admit:
			admitted = append(admitted, r)
		case Wait:
			waiting = append(waiting, r)
		default:
			t.Fatalf("%v", v)
		}
		require.LessOrEqual(t, p.estimate(), 200*mib)
	}
	// T(hard) = 40 + 0.9 × 160 = 184 MiB: 144 for uploads of 4 MiB, less the connections and
	// streams themselves.
	require.InDelta(t, 35, len(admitted), 1)
	require.Len(t, waiting, 100-len(admitted))

	small, v := p.open(0, 0)
	require.Equal(t, Admit, v.Action, "a GET passes those who wait")
	g.Close(p.now, &small.Stream)

	// As admitted ones end, the first in line go on, one per tick.
	p.settle(40 * mib)
	for i := range 10 {
		g.Close(p.now, &admitted[i].Stream)
	}
	var resumed []*Stream
	for range 20 {
		p.now += 5 * ms
		if a := w.Tick(p.now); a.Resume != nil {
			require.Equal(t, FastTick, a.Next)
			resumed = append(resumed, a.Resume)
		}
	}
	require.InDelta(t, 10, len(resumed), 1)
	all := append(admitted, waiting...)
	for i, s := range resumed {
		if i == 0 { // what was fresh of those who wait is in the readings now, so that the first may have gone already
			for &waiting[0].Stream != s {
				require.False(t, waiting[0].Waiting(), "first come, first served")
				waiting = waiting[1:]
			}
		}
		require.Same(t, &waiting[i].Stream, s, "first come, first served")
	}
	for _, r := range all {
		g.Close(p.now, &r.Stream)
	}
	require.Zero(t, w.account.Own().Coming)
	require.Zero(t, w.account.Own().Streams)
	require.Zero(t, w.line.Len())
}

func TestTimeoutRejectsManyInOneTick(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	p.settle(196 * mib)
	var waiting int
	for range 20 {
		// Hard is 184: there is room for nothing large, and for some to wait.
		if _, v := p.open(0, 128*kib); v.Action == Wait {
			waiting++
		}
	}
	require.Positive(t, waiting)
	p.now += 1999 * ms
	require.Empty(t, p.workers[0].Tick(p.now).Rejected)
	p.now += ms
	a := p.workers[0].Tick(p.now)
	// There is no reading any more: one or two were resumed on what the live streams can hold.
	require.InDelta(t, waiting, len(a.Rejected), 2)
	for _, d := range a.Rejected {
		require.Equal(t, Timeout, d.Verdict.Reason)
		require.GreaterOrEqual(t, d.Verdict.Waited, unit.Duration(2*time.Second))
		if d.Verdict.Action == Answer {
			require.GreaterOrEqual(t, d.Verdict.RetryAfter, unit.Duration(time.Second))
			require.LessOrEqual(t, d.Verdict.RetryAfter, unit.Duration(30*time.Second))
		}
	}
}

func TestTooLargeIsRejectedAtOnce(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Buffers.WholeRequest = unit.GiB })
	p.settle(40 * mib)
	_, v := p.open(0, 150*mib)
	require.Equal(t, Verdict{Action: Answer, Reason: TooLarge}, v, "no retry-after: it will never fit")
	_, v = p.open(0, 140*mib)
	require.Equal(t, Admit, v.Action)
}

// What Envoy may hold of a message, by its own settings: ENVOY-FACTS measured each.
func TestCaps(t *testing.T) {
	const down, up, window = 256 * kib, 512 * kib, 4 * mib
	for _, c := range []struct {
		name                     string
		http2                    bool
		whole                    int64
		request, pause, response int64
	}{
		{"HTTP/1", false, 0, 2 * down, 2 * down, up + down},
		{"HTTP/1, buffered", false, 16 * mib, 16 * mib, 2 * down, up + down},
		{"HTTP/2", true, 0, 2 * window, 2 * window, up + window},
		{"HTTP/2, buffered", true, 16 * mib, 16 * mib, 2 * window, up + window},
	} {
		for _, length := range []int64{budget.Unknown, 20 * mib} {
			p := newProcess(t, 1, func(g *Config) {
				g.Buffers.Downstream, g.Buffers.Upstream, g.Buffers.HTTP2Window = unit.Bytes(down), unit.Bytes(up), unit.Bytes(window)
				g.Buffers.WholeRequest, g.Budget.Limit.Bytes = unit.Bytes(c.whole), unit.GiB
			})
			p.settle(40 * mib)
			r := &request{connected: p.connection(0), http2: c.http2}
			p.guards[0].Open(p.now, &r.Stream, r, length)
			require.Equal(t, c.request, r.Cap(budget.Request), c.name)
			p.guards[0].Expect(p.now, &r.Stream, length)
			require.Equal(t, c.response, r.Cap(budget.Response), c.name)
			p.settle(925*mib + 500*kib)
			waiting := &request{connected: p.connection(0), http2: c.http2}
			v := p.guards[0].Open(p.now, &waiting.Stream, waiting, length)
			if length == budget.Unknown {
				continue // it is small
			}
			require.Equal(t, Wait, v.Action, c.name)
			require.Equal(t, c.pause, waiting.pauseCost, c.name)
		}
	}
}

// Without the floor a lasting overload locks every bystander out: rejecting what costs nothing
// frees nothing.
func TestFloorIsAStock(t *testing.T) {
	p := newProcess(t, 2, func(c *Config) { c.Throttle.Timeout = 0 })
	p.settle(230 * mib)
	_, v := p.open(0, 0)
	require.Equal(t, Admit, v.Action)
	admitted := 0
	for i := range 6000 {
		if _, v := p.open(i%2, 40*kib); v.Action == Admit {
			admitted++
		}
	}
	// 5 % of 200 MiB are 256 requests of 40 KiB, of all workers together.
	require.InDelta(t, 256, admitted, 1)
	_, v = p.open(1, 0)
	require.Equal(t, Admit, v.Action, "what brings nothing is let in all the same")
}

func TestSmallStreamLeavesTheSmallSumWhenItGrows(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	r, v := p.open(0, 0)
	require.Equal(t, Admit, v.Action)
	require.Equal(t, Admit, p.guards[0].Expect(p.now, &r.Stream, 60*kib).Action)
	require.Equal(t, 60*kib, p.workers[0].account.Own().Small)
	p.workers[0].Tick(p.now) // the first of each is judged
	r2, _ := p.open(0, 0)
	p.guards[0].Expect(p.now, &r2.Stream, 65*kib)
	require.Equal(t, 60*kib, p.workers[0].account.Own().Small, "a response of more than small makes it large")
	p.workers[0].Tick(p.now)
	r3, _ := p.open(0, 0)
	p.guards[0].Expect(p.now, &r3.Stream, budget.Unknown)
	for range 5 {
		p.guards[0].Grow(p.now, &r3.Stream, budget.Response, 16*kib)
	}
	require.False(t, r3.Small())
	require.Equal(t, 60*kib, p.workers[0].account.Own().Small)
}

func TestLargeNewcomerJoinsTheLineWhenAnyoneWaitsAnywhere(t *testing.T) {
	p := newProcess(t, 2, nil)
	p.settle(40 * mib)
	var first []*request
	for {
		r, v := p.open(0, 8*mib)
		if v.Action == Wait {
			break
		}
		first = append(first, r)
	}
	p.now += 5 * ms
	p.workers[0].Tick(p.now)
	p.now += ms
	p.workers[1].Tick(p.now)
	// 1 MiB would fit, but it would take what the others wait for.
	_, v := p.open(1, mib)
	require.Equal(t, Wait, v.Action)
	require.NotEmpty(t, first)
}

func TestLineIsBounded(t *testing.T) {
	fill := func(p *process) {
		p.settle(40 * mib)
		for range 100 {
			if _, v := p.open(0, 4*mib); v.Action != Admit {
				return
			}
		}
		t.Fatal("it never fills")
	}
	t.Run("by number, over all workers", func(t *testing.T) {
		p := newProcess(t, 2, func(c *Config) { c.Throttle.Queue = 3 })
		fill(p)
		actions := map[Action]int{}
		for i := range 10 {
			p.now += 5 * ms
			p.workers[0].Tick(p.now)
			p.workers[1].Tick(p.now)
			_, v := p.open(i%2, 4*mib)
			actions[v.Action]++
		}
		require.Equal(t, 2, actions[Wait], "one waited already")
	})
	t.Run("by what waiting holds", func(t *testing.T) {
		p := newProcess(t, 1, func(c *Config) {
			c.Buffers.Downstream, c.Throttle.Queue = unit.MiB, 1000
			c.Buffers.HTTP2Window = unit.MiB
		})
		fill(p)
		waiting := 1
		for range 100 {
			if _, v := p.open(0, 4*mib); v.Action == Wait {
				waiting++
			}
		}
		// Each holds 2 × 1 MiB; a quarter of 160 MiB is 40, but only what lies between hard and the
		// limit has room for what is fresh at once: 16.
		require.InDelta(t, 8, waiting, 1)
	})
	t.Run("by a quarter of the room, over all workers", func(t *testing.T) {
		p := newProcess(t, 2, func(c *Config) {
			c.Buffers.Downstream, c.Buffers.HTTP2Window, c.Buffers.WholeRequest = unit.MiB, unit.MiB, unit.GiB
		})
		p.settle(40 * mib)
		_, v := p.open(0, 100*mib)
		require.Equal(t, Admit, v.Action)
		_, v = p.open(0, 60*mib)
		require.Equal(t, Wait, v.Action, "a head that does not fit, with room beside it")
		waiting := 1
		for i := range 100 {
			p.now += 5 * ms
			p.workers[0].Tick(p.now)
			p.workers[1].Tick(p.now)
			if _, v := p.open(i%2, 40*mib); v.Action == Wait {
				waiting++
			}
		}
		require.Equal(t, 20, waiting, "2 MiB each")
	})
	t.Run("by the room, for small ones too", func(t *testing.T) {
		p := newProcess(t, 1, nil)
		p.settle(230 * mib)
		for range 256 { // the floor
			_, v := p.open(0, 40*kib)
			require.Equal(t, Admit, v.Action)
		}
		_, v := p.open(0, 40*kib)
		require.Equal(t, QueueFull, v.Reason, "6,000 of them would hold half the limit more")
		p.settle(150 * mib)
		_, v = p.open(0, 40*kib)
		require.Equal(t, Admit, v.Action)
	})
	t.Run("by the window of an HTTP/2 connection", func(t *testing.T) {
		p := newProcess(t, 1, func(c *Config) { c.Buffers.HTTP2ConnectionWindow = unit.MiB })
		fill(p)
		c := p.connection(0)
		actions := map[Action]int{}
		for range 20 {
			r := &request{connected: c, http2: true}
			actions[p.guards[0].Open(p.now, &r.Stream, r, 4*mib).Action]++
		}
		// Half of 1 MiB is eight windows of 64 KiB: more would starve the admitted siblings.
		require.Equal(t, map[Action]int{Wait: 8, Answer: 12}, actions)
	})
}

// Behind a large head, smaller ones go on after 250 ms: else one head of half the budget stops
// everyone.
func TestSmallerPassAStuckHead(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Throttle.Timeout = unit.Duration(time.Minute) })
	p.settle(40 * mib)
	var admitted []*request
	for range 35 {
		r, v := p.open(0, 4*mib)
		require.Equal(t, Admit, v.Action)
		admitted = append(admitted, r)
	}
	_, v := p.open(0, 16*mib)
	require.Equal(t, Wait, v.Action)
	little, v := p.open(0, 2*mib)
	require.Equal(t, Wait, v.Action)
	p.guards[0].Close(p.now, &admitted[0].Stream) // 4 MiB are free
	p.now += 100 * ms
	require.Nil(t, p.workers[0].Tick(p.now).Resume)
	p.now += 150 * ms
	require.Same(t, &little.Stream, p.workers[0].Tick(p.now).Resume)
}

// nobodyWaits, and the buffers are Envoy's defaults.
func nobodyWaits(c *Config) {
	c.Throttle.Timeout = 0
	c.Buffers.Downstream, c.Buffers.HTTP2Window, c.Buffers.Linger = unit.MiB, 16*unit.MiB, unit.Duration(time.Second)
	c.Buffers.HTTP2ConnectionWindow = 24 * unit.MiB
}

// What a rejected HTTP/1 upload leaves unread lingers. It may hold 1/8 of what traffic can have;
// beyond that there is no answer, and the connection is closed: with answers only, 100 clients held
// 4.5 times the budget.
func TestRejectsCostMemory(t *testing.T) {
	p := newProcess(t, 1, nobodyWaits)
	p.settle(40 * mib)
	for range 35 {
		p.open(0, 4*mib)
	}
	actions := map[Action]int{}
	var closed []*request
	for range 30 {
		r, v := p.open(0, 4*mib)
		actions[v.Action]++
		if v.Action == Close {
			closed = append(closed, r)
		}
	}
	// Each leaves 2 MiB; between the estimate and the limit there is room for some 8 of the 20 MiB.
	require.InDelta(t, 8, actions[Answer], 2)
	require.Equal(t, 30, actions[Answer]+actions[Close])
	require.LessOrEqual(t, p.workers[0].left.Bytes(), 20*mib)

	// A client that hangs up before it is closed, and the others at the next tick.
	p.guards[0].Close(p.now, &closed[0].Stream)
	p.now += 5 * ms
	require.Len(t, p.workers[0].Tick(p.now).Close, len(closed)-1)
	require.Empty(t, p.workers[0].Tick(p.now).Close)

	// HTTP/2, and who has sent all, always get the answer.
	r := &request{connected: p.connection(0), http2: true}
	require.Equal(t, Answer, p.guards[0].Open(p.now, &r.Stream, r, 4*mib).Action)

	p.now += 1100 * ms
	p.workers[0].Tick(p.now)
	require.Zero(t, p.workers[0].left.Bytes(), "what lingers is gone after the linger")
}

// What rejects leave may hold an eighth of the room, of all workers together, for as long as it
// lingers.
func TestLeftoversOfAllWorkers(t *testing.T) {
	p := newProcess(t, 2, func(c *Config) {
		c.Buffers.Downstream, c.Buffers.HTTP2Window, c.Buffers.WholeRequest = unit.MiB, unit.MiB, unit.GiB
		c.Buffers.Linger = unit.Duration(10 * time.Second)
	})
	p.settle(40 * mib)
	reject := func(n int) map[Action]int {
		actions := map[Action]int{}
		for i := range n {
			p.now += 5 * ms
			for w := range 4 { // one to tell, one to hear
				p.workers[w%2].Tick(p.now)
			}
			_, v := p.open(i%2, 190*mib)
			require.Equal(t, TooLarge, v.Reason)
			actions[v.Action]++
		}
		return actions
	}
	require.Equal(t, map[Action]int{Answer: 10, Close: 10}, reject(20), "2 MiB each of 160")
	p.now += 11 * time.Second
	p.settle(40 * mib)
	require.Equal(t, map[Action]int{Answer: 10, Close: 2}, reject(12))
}

// Clients that are turned away and come straight back, thousands of times before the next reading,
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
			p.workers[0].CloseConnection(r.connected)
			return v
		},
		"hanging up in line": func(p *process) Verdict {
			r, v := p.open(0, 140*mib)
			p.guards[0].Close(p.now, &r.Stream)
			p.workers[0].CloseConnection(r.connected)
			return v
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcess(t, 1, func(c *Config) { c.Buffers.WholeRequest, c.Buffers.Linger = unit.GiB, 0 })
			p.settle(40 * mib)
			if name == "hanging up in line" {
				p.read(100 * mib)
			}
			before := p.workers[0].account.Own().Fresh
			for range 1000 {
				require.NotEqual(t, Admit, again(p).Action)
			}
			require.LessOrEqual(t, p.workers[0].account.Own().Fresh-before, 128*kib+45*kib)
		})
	}
}

// Who waits is tested without what its waiting holds.
func TestWaitingHoldsPartOfWhatItWants(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Memory.IdleInterval = c.Memory.Interval }) // before anything lapses
	p.settle(40 * mib)
	hard := p.workers[0].account.Share(.9)
	big, v := p.open(0, 16*mib)
	require.Equal(t, Admit, v.Action)
	p.settle(hard - 16*mib - 64*kib)
	r, v := p.open(0, 128*kib)
	require.Equal(t, Wait, v.Action)
	p.workers[0].Data(p.now, r.connected, 128*kib)
	p.guards[0].End(p.now, &big.Stream, budget.Request) // 16 MiB less are coming, and 128 KiB fresh
	require.Equal(t, 128*kib, r.credit())
	p.settle(hard - 100*kib)
	require.False(t, r.Waiting(), "what it holds is in the reading already")
}

// Over HTTP/2 it can't be told of whom what comes is: it counts for those who wait, however late it
// comes.
func TestWhatComesOnAConnectionCountsForThoseWhoWait(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	p.settle(182 * mib)
	own := func() budget.Entry { return p.workers[0].account.Own() }
	c := p.connection(0)
	r := &request{connected: c, http2: true}
	require.Equal(t, Wait, p.guards[0].Open(p.now, &r.Stream, r, 4*mib).Action)
	p.settle(182 * mib)
	require.Zero(t, own().Fresh)
	for range 20 {
		p.workers[0].Data(p.now, c, 10*kib)
	}
	require.Equal(t, 128*kib, own().Fresh, "no more than it can leave unread")
	p.settle(182 * mib)
	require.Zero(t, own().Fresh)
	p.workers[0].Data(p.now, c, 10*kib)
	require.Equal(t, 10*kib, own().Fresh, "and as much again in the next generation: the upstream may have taken the other")
	p.settle(40 * mib)
	require.False(t, r.Waiting())
	p.workers[0].Data(p.now, c, 10*kib)
	require.Zero(t, own().Fresh, "nobody waits")
}

// Without a network filter nobody sees what comes of one who waits: it is coming until he is
// resumed.
func TestWhatComesUnseenIsCountedForAsLongAsItsRequestWaits(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	p.settle(182 * mib)
	own := func() budget.Entry { return p.workers[0].account.Own() }
	r := &request{connected: &Connection{}, http2: true}
	require.Equal(t, Wait, p.guards[0].Open(p.now, &r.Stream, r, 4*mib).Action)
	p.settle(182 * mib)
	require.Zero(t, own().Fresh)
	require.Equal(t, 128*kib, own().Coming)
	require.Zero(t, r.credit())

	p.settle(40 * mib)
	require.False(t, r.Waiting())
	require.Equal(t, 4*mib, own().Coming, "and then it passes, and is counted as it does")
	p.guards[0].Close(p.now, &r.Stream)
	require.Zero(t, own().Coming)

	p.settle(182 * mib)
	r = &request{connected: &Connection{}, http2: true}
	require.Equal(t, Wait, p.guards[0].Open(p.now, &r.Stream, r, 4*mib).Action)
	p.guards[0].Close(p.now, &r.Stream)
	require.Zero(t, own().Coming)
}

func TestLapsedRequestNeedsRoom(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	r, v := p.open(0, 4*mib)
	require.Equal(t, Admit, v.Action)
	p.now += 3 * time.Second
	p.settle(210 * mib)
	require.Zero(t, r.Reserved(budget.Request))
	require.Equal(t, Growth, p.guards[0].Grow(p.now, &r.Stream, budget.Request, mib).Reason)
}

func TestForecastsLearn(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Throttle.Timeout, c.Evict = 0, false })
	p.settle(40 * mib)
	forecast := &theKey(p.workers[0]).Bodies[budget.Request]
	r, _ := p.open(0, budget.Unknown)
	p.guards[0].Grow(p.now, &r.Stream, budget.Request, 20*kib)
	before := forecast.Bytes()
	p.guards[0].End(p.now, &r.Stream, budget.Request)
	require.NotEqual(t, before, forecast.Bytes(), "from who has ended")

	r, _ = p.open(0, budget.Unknown)
	p.guards[0].Grow(p.now, &r.Stream, budget.Request, 60*kib)
	p.settle(210 * mib)
	before = forecast.Bytes()
	for p.guards[0].Grow(p.now, &r.Stream, budget.Request, 16*kib).Reason != Growth {
		before = forecast.Bytes()
	}
	require.NotEqual(t, before, forecast.Bytes(), "and from who is rejected")
}

// What a large response left unread stays in the books with its connection, until the next request
// comes there.
func TestUnreadResponseStaysWithItsConnection(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	r, _ := p.open(0, 0)
	p.guards[0].Expect(p.now, &r.Stream, mib)
	p.guards[0].Grow(p.now, &r.Stream, budget.Response, mib)
	p.guards[0].End(p.now, &r.Stream, budget.Response)
	p.guards[0].Close(p.now, &r.Stream)
	require.Equal(t, 128*kib, p.workers[0].account.Own().Bounds)
	p.workers[0].Data(p.now, r.connected, 100)
	require.Zero(t, p.workers[0].account.Own().Bounds)
}

func TestRequestGrowth(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	g := p.guards[0]
	r, v := p.open(0, budget.Unknown)
	require.Equal(t, Admit, v.Action, "64 KiB are forecast at first: that is small")
	require.Equal(t, 64*kib, r.Reserved(budget.Request))
	// It passes its forecast, reserves twice what it has sent, and teaches the next one.
	require.Equal(t, Admit, g.Grow(p.now, &r.Stream, budget.Request, 100*kib).Action)
	require.Equal(t, 100*kib, r.Reserved(budget.Request))
	require.Greater(t, theKey(p.workers[0]).Bodies[budget.Request].Bytes(), 100*kib)
	p.settle(199 * mib)
	v = g.Grow(p.now, &r.Stream, budget.Request, 4*mib)
	require.Equal(t, Growth, v.Reason)
	require.Equal(t, Admit, g.Grow(p.now, &r.Stream, budget.Request, 4*mib).Action, "one verdict, not two")
	g.Close(p.now, &r.Stream)
	require.Zero(t, p.workers[0].account.Own().Coming)
}

func TestResponses(t *testing.T) {
	big := func(c *Config) { c.Buffers.Upstream, c.Buffers.Downstream = unit.MiB, unit.MiB }
	t.Run("a large one without room is rejected at its headers, a small one passes", func(t *testing.T) {
		p := newProcess(t, 1, big)
		p.settle(40 * mib)
		r, _ := p.open(0, 0)
		p.settle(199 * mib)
		v := p.guards[0].Expect(p.now, &r.Stream, 16*mib)
		require.Equal(t, Answer, v.Action)
		require.Equal(t, ResponseSize, v.Reason)
		require.Equal(t, uint64(1), p.workers[0].Counts()[CountRejectedResponses])
		r, _ = p.open(0, 0)
		require.Equal(t, Admit, p.guards[0].Expect(p.now, &r.Stream, 64*kib).Action)
	})
	t.Run("one that outgrows its forecast is reset only when large and without room", func(t *testing.T) {
		p := newProcess(t, 1, big)
		p.settle(40 * mib)
		r, _ := p.open(0, 0)
		require.Equal(t, Admit, p.guards[0].Expect(p.now, &r.Stream, budget.Unknown).Action)
		p.settle(201 * mib)
		theKey(p.workers[0]).Bodies[budget.Response] = forecast.Forecast{}
		require.Equal(t, Admit, p.guards[0].Grow(p.now, &r.Stream, budget.Response, 64*kib).Action)
		v := p.guards[0].Grow(p.now, &r.Stream, budget.Response, 64*kib)
		require.Equal(t, Verdict{Action: Reset, Reason: Growth}, v)
	})
	// Testing a lapsed response's bytes against the estimate cut 994 of 1,000 slow readers at 0.8
	// of the budget.
	t.Run("what was once reserved is never a reason to cut it", func(t *testing.T) {
		p := newProcess(t, 1, big)
		p.settle(40 * mib)
		r, _ := p.open(0, 0)
		require.Equal(t, Admit, p.guards[0].Expect(p.now, &r.Stream, 16*mib).Action)
		p.settle(230 * mib)
		p.now += time.Second
		p.workers[0].Tick(p.now)
		require.Zero(t, r.Reserved(budget.Response), "it lapsed")
		for range 64 {
			require.Equal(t, Admit, p.guards[0].Grow(p.now, &r.Stream, budget.Response, 64*kib).Action)
		}
	})
	t.Run("slow readers teach the forecast though they never complete", func(t *testing.T) {
		p := newProcess(t, 1, big)
		p.settle(40 * mib)
		r, _ := p.open(0, 0)
		p.guards[0].Expect(p.now, &r.Stream, budget.Unknown)
		for range 20 {
			p.guards[0].Grow(p.now, &r.Stream, budget.Response, 64*kib)
		}
		r2, _ := p.open(0, 0)
		p.guards[0].Expect(p.now, &r2.Stream, budget.Unknown)
		require.Greater(t, r2.Reserved(budget.Response), mib)
	})
}

// Mode observe lets everybody go, and counts what mode enforce does with the same requests: here
// who has no room, who waits, and who is admitted afterwards.
func TestObserveDecidesAndDoesNothing(t *testing.T) {
	const uploads = 100
	run := func(mode Mode) (counts [NumCounters]uint64, let int) {
		p := newProcess(t, 1, func(c *Config) {
			c.Mode, c.Buffers.WholeRequest = mode, 0
			c.Buffers.Downstream, c.Buffers.Upstream, c.Buffers.Linger = unit.MiB, unit.MiB, unit.Duration(time.Second)
		})
		p.settle(40 * mib)
		w, g := p.workers[0], p.guards[0]
		var all []*request
		for range uploads {
			r, v := p.open(0, 4*mib)
			all = append(all, r)
			if v.Action != Admit && v.Action != Pass {
				continue
			}
			let++
			require.Equal(t, Admit, g.Grow(p.now, &r.Stream, budget.Request, mib).Action)
		}
		tick := func(n int, inUse int64) {
			for range n {
				p.now += 2 * ms
				a := w.Tick(p.now)
				if mode == Observe {
					require.Nil(t, a.Resume)
					require.Empty(t, a.Rejected)
					require.Empty(t, a.Close)
				}
				for _, s := range a.Close {
					g.Close(p.now, s)
				}
				if a.Ask {
					w.Observe(p.now, Reading{InUse: inUse}, nil)
				}
			}
		}
		tick(100, 190*mib)
		for _, r := range all[:20] { // they were admitted, and have ended
			g.Close(p.now, &r.Stream)
		}
		tick(100, 60*mib)
		return *w.Counts(), let
	}
	enforced, _ := run(Enforce)
	observed, let := run(Observe)
	require.Equal(t, uploads, let, "nobody is held back")
	require.Greater(t, enforced[CountRejected+int(Closed)-1], uint64(20))
	require.Greater(t, enforced[CountThrottled], uint64(3))
	for _, i := range []int{CountThrottled, CountClosedConnections, CountRejected + int(Closed) - 1, CountRejected + int(QueueFull) - 1, CountAdmitted} {
		require.Equal(t, enforced[i], observed[i], Counters()[i].Name)
	}
}

// Where another listener enforces, what this one lets go is memory that the other's requests can't
// have.
func TestObserveBesideEnforceCountsWhatItLetsGo(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Mode = Observe })
	w := p.workers[0]
	w.SetEnforcing(true)
	p.settle(40 * mib)
	for range 100 {
		r, v := p.open(0, 4*mib)
		require.Equal(t, Admit, v.Action)
		require.False(t, r.Shadow())
	}
	require.Greater(t, w.account.Own().Coming, 300*mib)
	require.EqualValues(t, 100, w.Counts()[CountAdmitted])
	require.Greater(t, w.Counts()[CountThrottled], uint64(50))
}

func TestStale(t *testing.T) {
	for _, c := range []struct {
		on    string
		large Action
	}{{"estimate", Admit}, {"admit", Admit}, {"reject", Answer}} {
		t.Run(c.on, func(t *testing.T) {
			p := newProcess(t, 1, func(cfg *Config) { cfg.Memory.OnStale, cfg.Throttle.Timeout = c.on, 0 })
			p.settle(40 * mib)
			p.settle(199 * mib)
			_, v := p.open(0, 4*mib)
			require.NotEqual(t, Admit, v.Action, "with a reading of 199 there is no room")
			p.now += 1100 * ms
			p.workers[0].Tick(p.now)
			// A frozen reading of 199 must not lock everyone out for as long as the admin is down.
			r, v := p.open(0, 4*mib)
			require.Equal(t, c.large, v.Action)
			if c.on == "reject" {
				require.Equal(t, NoReading, v.Reason)
				_, v = p.open(0, 0)
				require.Equal(t, Answer, v.Action)
			}
			if c.on == "estimate" {
				p.guards[0].Grow(p.now, &r.Stream, budget.Request, 4*mib)
				n := 1
				for range 100 {
					if _, v := p.open(0, 4*mib); v.Action == Admit {
						n++
					}
				}
				require.InDelta(t, 35, n, 1, "base 40 + what live streams can hold stays under 184")
			}
		})
	}
}

func TestBeforeTheFirstReadingItEstimatesFromZero(t *testing.T) {
	p := newProcess(t, 1, nil)
	n := 0
	for range 100 {
		if _, v := p.open(0, 4*mib); v.Action == Admit {
			n++
		}
	}
	require.InDelta(t, 45, n, 1)
}

// When memory is full and traffic is not the cause, to lock everybody out would help nobody.
func TestFutile(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	for range 250 {
		p.read(215 * mib)
	}
	require.True(t, p.workers[0].account.Table().Futile)
	first, v := p.open(0, 8*mib)
	require.Equal(t, Admit, v.Action, "the floor is open to all")
	_, v = p.open(0, 8*mib)
	require.Equal(t, Admit, v.Action, "and one larger beside it")
	_, v = p.open(0, 8*mib)
	require.NotEqual(t, Admit, v.Action)
	p.guards[0].Close(p.now, &first.Stream)
	require.Equal(t, int64(1), p.workers[0].Gauges(p.now)[GaugeFutile])
	_, v = p.open(0, 8*mib)
	require.NotEqual(t, Admit, v.Action, "what the one that ended left must be in the reading first")
	p.read(215 * mib)
	_, v = p.open(0, 8*mib)
	require.Equal(t, Admit, v.Action)
}

func TestCloseInEveryPhaseReturnsAllToZero(t *testing.T) {
	for name, edit := range map[string]func(*Config){
		"waiting": nil,
		"rejected": func(c *Config) {
			c.Throttle.Timeout = 0
		},
		"closed": func(c *Config) {
			c.Throttle.Timeout, c.Buffers.Downstream, c.Buffers.HTTP2Window = 0, 4*unit.MiB, 4*unit.MiB
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProcess(t, 2, edit)
			p.settle(40 * mib)
			var all []*request
			for i := range 200 {
				r, _ := p.open(i%2, []int64{0, 4 * mib, budget.Unknown, 10 * kib}[i%4])
				r.http2 = i%3 == 0
				p.guards[i%2].Grow(p.now, &r.Stream, budget.Request, 5*kib)
				p.guards[i%2].Expect(p.now, &r.Stream, []int64{0, mib, budget.Unknown}[i%3])
				p.guards[i%2].Grow(p.now, &r.Stream, budget.Response, 200*kib)
				p.workers[i%2].Data(p.now, r.connected, 10*kib)
				all = append(all, r)
			}
			for i, r := range all {
				if i%2 == 0 {
					p.workers[i%2].CloseConnection(r.connected)
				}
				p.guards[i%2].Close(p.now, &r.Stream)
				p.guards[i%2].Close(p.now, &r.Stream)
				if i%2 == 1 {
					p.workers[i%2].CloseConnection(r.connected)
				}
			}
			p.now += 11 * time.Second
			p.settle(40 * mib)
			for _, w := range p.workers {
				e := w.account.Own()
				e.ID, e.Beat, e.Lease, e.Passed, e.Queue.Rate, e.Evicted.Sequence, e.Connections.Lease = 0, 0, 0, 0, 0, 0, 0
				require.Equal(t, budget.Entry{}, e)
				require.Zero(t, w.held)
				require.Zero(t, w.line.Bytes())
				require.Empty(t, w.closing)
			}
		})
	}
}

// The hot path is every request of every user.
func TestNoAllocationAndFewHostCalls(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	r := &request{connected: p.connection(0)}
	g := p.guards[0]
	exchange := func() {
		g.Open(p.now, &r.Stream, r, 32*kib)
		g.Grow(p.now, &r.Stream, budget.Request, 32*kib)
		g.End(p.now, &r.Stream, budget.Request)
		g.Expect(p.now, &r.Stream, 5*kib)
		g.Grow(p.now, &r.Stream, budget.Response, 5*kib)
		g.End(p.now, &r.Stream, budget.Response)
		g.Close(p.now, &r.Stream)
	}
	exchange()
	require.Equal(t, 2, r.hostCalls, "the first request of a connection is asked on which it is, and each one by whom")
	r.hostCalls = 0
	before := p.workers[0].account.Exchanges
	require.Zero(t, testing.AllocsPerRun(20, exchange))
	require.Equal(t, 21, r.hostCalls)
	require.Equal(t, before, p.workers[0].account.Exchanges, "the lease is enough for twenty")

	c := *g.Config()
	c.Fairness.By = config.ByNone
	g, _ = New(c, p.workers[0])
	require.Zero(t, testing.AllocsPerRun(20, exchange))
	require.Equal(t, 21, r.hostCalls)
}

// BenchmarkRequest prints what a request costs without tracing, with it, and where memory is so
// high that a mark may come; and what a chunk of an upload does.
func BenchmarkRequest(b *testing.B) {
	for _, c := range []struct {
		name     string
		capacity int
		inUse    int64
	}{{"cold-untraced", 0, 40 * mib}, {"cold-traced", 512, 40 * mib}, {"warm-untraced", 0, 60 * mib}, {"warm-traced", 512, 60 * mib}} {
		b.Run(c.name, func(b *testing.B) {
			w, err := NewWorker(&budget.Memory{}, rand.New(rand.NewPCG(1, 2)).Float64)
			if err != nil {
				b.Fatal(err)
			}
			config := example()
			config.Trace.Capacity = c.capacity
			g, _ := New(config, w)
			r := &request{connected: &Connection{}}
			now, inUse := time.Hour, 40*mib
			read := func() {
				for {
					now += 25 * ms
					if w.Tick(now).Ask {
						w.Observe(now, Reading{InUse: inUse}, nil)
						inUse = c.inUse
						return
					}
				}
			}
			read()
			read()
			b.Run("request", func(b *testing.B) {
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					if i%500 == 0 {
						read() // 20,000 requests per second
					}
					g.Open(now, &r.Stream, r, 32*kib)
					g.Grow(now, &r.Stream, budget.Request, 32*kib)
					g.End(now, &r.Stream, budget.Request)
					g.Expect(now, &r.Stream, 5*kib)
					g.Grow(now, &r.Stream, budget.Response, 5*kib)
					g.End(now, &r.Stream, budget.Response)
					g.Close(now, &r.Stream)
				}
			})
			b.Run("chunk", func(b *testing.B) {
				b.ReportAllocs()
				g.Open(now, &r.Stream, r, budget.Unknown)
				g.Grow(now, &r.Stream, budget.Request, 16*kib)
				for b.Loop() {
					g.Grow(now, &r.Stream, budget.Request, 1)
				}
				g.Close(now, &r.Stream)
			})
		})
	}
}

// theKey is the only one of requests that name no route.
func theKey(w *Worker) *keyed {
	return &w.keys.Get(0, fairness.Name{By: config.ByRoute}, func(fairness.Name) float64 { return 1 }).Value
}

// Ticks cost most where nothing happens: a worker without requests makes few, and the one who polls
// a few more.
func TestAnIdleWorkerTicksSeldom(t *testing.T) {
	p := newProcess(t, 2, nil)
	next := func() (all []time.Duration) {
		for _, w := range p.workers {
			a := w.Tick(p.now)
			if a.Ask {
				w.Observe(p.now, Reading{InUse: 40 * mib, Allocated: 40 * mib}, nil)
			}
			all = append(all, a.Next)
		}
		return all
	}
	run := func(d time.Duration) (last []time.Duration) {
		for until := p.now + d; p.now < until; p.now += Tick {
			last = next()
		}
		return last
	}
	idle := []time.Duration{CalmTick, SlowTick}
	require.Equal(t, idle, run(2*time.Second))
	require.True(t, p.workers[1].Sleeps)

	p.workers[1].Wake(p.now)
	r, v := p.open(1, 0)
	require.Equal(t, Admit, v.Action)
	require.False(t, p.workers[1].Sleeps)
	require.Equal(t, []time.Duration{CalmTick, Tick}, run(2*time.Second), "no reading is due that soon")
	upload, v := p.open(1, 10*mib)
	require.Equal(t, Admit, v.Action)
	require.Equal(t, []time.Duration{Tick, Tick}, run(2*CalmTick), "one is due each 25 ms")
	p.guards[1].Close(p.now, &upload.Stream)
	p.guards[1].Close(p.now, &r.Stream)
	require.Equal(t, []time.Duration{CalmTick, Tick}, run(900*ms), "the next may come soon")
	require.Equal(t, idle, run(time.Second))

	p.workers[1].Wake(p.now)
	p.settle(181 * mib)
	require.Equal(t, []time.Duration{Tick, Tick}, run(25*ms), "memory is short")
}

// One who has waited too long and is to be closed sends on until he is: the network filter sees it,
// and it counts.
func TestWhatComesOfOneWhoWaitedAndIsClosedCounts(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Evict = false })
	p.settle(40 * mib)
	p.settle(182 * mib)
	r, v := p.open(0, 4*mib)
	require.Equal(t, Wait, v.Action)
	w := p.workers[0]
	w.left.Add(p.now, time.Hour, 160*mib) // there is no room for what it would leave unread
	p.settle(182 * mib)
	require.True(t, r.Waiting())
	require.Zero(t, w.account.Own().Fresh)
	for r.Waiting() {
		p.now += Tick
		if a := w.Tick(p.now); a.Ask {
			w.Observe(p.now, Reading{InUse: 182 * mib, Allocated: 182 * mib}, nil)
		}
	}
	require.Equal(t, closing, r.state)
	before := w.account.Own().Fresh
	w.Data(p.now, r.connected, 100*kib)
	require.Equal(t, before+100*kib, w.account.Own().Fresh)
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
	p.read(195 * mib)
	require.False(t, sends(mib), "there is none, but nobody is closed: whose it is decides")
	before := from(config, "10.0.0.1")
	w.Data(p.now, before, 100)
	for len(w.closing) == 0 {
		p.open(0, 4*mib)
	}

	c, counts, own := from(config, "10.0.0.1"), *w.Counts(), w.account.Own()
	require.True(t, w.Data(p.now, c, mib))
	require.EqualValues(t, 1, w.Counts()[CountClosedConnections]-counts[CountClosedConnections])
	require.EqualValues(t, 1, w.Counts()[CountRejected+int(Closed)-1]-counts[CountRejected+int(Closed)-1])
	require.Equal(t, counts[CountRejected+int(QueueFull)-1], w.Counts()[CountRejected+int(QueueFull)-1], "each is counted under one reason")
	require.Equal(t, own, w.account.Own(), "it is gone at once")
	require.False(t, w.Data(p.now, c, mib), "if it could not be closed it goes on")
	w.CloseConnection(c)
	require.Equal(t, own.Connections.Open-1, w.account.Own().Connections.Open)

	require.False(t, w.Data(p.now, before, mib), "it has sent something before")
	require.False(t, sends(burden-1), "it may be anything")
	require.False(t, w.Data(p.now, from(config, notHTTP), mib))
	observed, exempting, larger := config, config, config
	observed.Mode = Observe
	require.False(t, w.Data(p.now, from(observed, "10.0.0.1"), mib))
	exempting.Exempt = []Exempt{{Cluster: "c"}}
	require.False(t, w.Data(p.now, from(exempting, "10.0.0.1"), mib), "its request may be exempt")
	exempting.Exempt = []Exempt{{PathPrefix: "/healthz"}}
	require.True(t, w.Data(p.now, from(exempting, "10.0.0.1"), mib), "no upload is exempt by its path")
	larger.Budget.Limit.Bytes = 400 * unit.MiB
	require.False(t, w.Data(p.now, from(larger, "10.0.0.1"), mib), "now there is room")
}

func (r *request) Visibility(d budget.Direction) budget.Visibility {
	switch {
	case !r.hides[d]:
		return budget.Counted
	case d == budget.Response && r.untold:
		return budget.Silent
	}
	return budget.Announced
}
