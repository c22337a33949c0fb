package guard

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// tcpClient is a client of a listener, which may have HTTP or not.
type tcpClient struct {
	Connection
	guard  *Guard
	place  string
	source string
	http   bool
	calls  int
}

func (c *tcpClient) Source() string     { c.calls++; return c.source }
func (c *tcpClient) Uploads() bool      { c.calls++; return false }
func (c *tcpClient) Method() string     { c.calls++; return "" }
func (c *tcpClient) Place() string      { c.calls++; return c.place }
func (c *tcpClient) ParsedAsHTTP() bool { c.calls++; return c.http }

// asEnvoy has the buffers that Envoy has by default, and nobody told apart by source.
func asEnvoy(c *Config) {
	c.Buffers = Default().Buffers
	c.Trace.Capacity = 0
}

// dial opens a connection to a place; nil = it was refused.
func (p *process) dial(place string) *tcpClient {
	p.nextID++
	c := &tcpClient{guard: p.guards[0], place: place, source: "10.0.0.1"}
	c.Context = p.nextID
	if !c.guard.OpenConnection(p.now, &c.Connection, c) {
		return nil
	}
	return c
}

// send and receive are bytes of its client, and to it.
func (p *process) send(c *tcpClient, n int64) {
	p.workers[0].Data(p.now, &c.Connection, n)
	c.guard.Carry(p.now, &c.Connection, budget.Request, n, c)
}

func (p *process) receive(c *tcpClient, n int64) {
	for ; n > 0; n -= 16 * kib {
		c.guard.Carry(p.now, &c.Connection, budget.Response, min(n, 16*kib), c)
	}
}

func (p *process) hangUp(c *tcpClient) { p.workers[0].CloseConnection(p.now, &c.Connection) }

const postgres = "10.0.0.254:5432"

func TestARawConnectionIsCounted(t *testing.T) {
	p := newProcess(t, 1, asEnvoy)
	p.settle(40 * mib)
	c, a := p.dial(postgres), p.workers[0].Account()
	p.send(c, 1)
	p.receive(c, 16*kib-1)
	require.Zero(t, a.Own().Streams, "so little is no matter")
	require.Zero(t, c.calls, "and nobody is asked")
	p.receive(c, 1)
	require.EqualValues(t, 1, a.Own().Streams)
	require.Equal(t, 16*kib+1, a.Own().Bounds, "what had passed before counts too")
	require.Equal(t, 2, c.calls, "whether it is HTTP, and where it came to")
	p.receive(c, 100*mib)
	p.send(c, 300*kib)
	require.Equal(t, 2*mib+300*kib+1, a.Own().Bounds, "no more than the buffers hold")
	require.Equal(t, 3, c.calls, "whether it is HTTP after all")
	for range 20 {
		p.send(c, mib)
	}
	require.Equal(t, 4*mib, a.Own().Bounds)
	require.Equal(t, 3, c.calls)
	p.hangUp(c)
	p.settle(40 * mib)
	own := a.Own()
	require.Zero(t, own.Streams+own.Bounds+own.Likely+own.Coming+own.Fresh+own.Exposure+own.Small+own.Connections.Open)
	require.Empty(t, p.workers[0].raws.open)
}

func TestHTTPIsNotRaw(t *testing.T) {
	p := newProcess(t, 1, asEnvoy)
	p.settle(40 * mib)
	a := p.workers[0].Account()
	t.Run("headers that are not complete", func(t *testing.T) {
		c := p.dial(postgres)
		p.send(c, 64*kib) // Envoy has not parsed any of it yet
		c.http = true
		p.send(c, 64*kib)
		require.True(t, c.SpeaksHTTP())
		require.Equal(t, 1, c.calls)
	})
	t.Run("headers that are too large", func(t *testing.T) {
		c := p.dial(postgres)
		p.send(c, 64*kib)
		p.receive(c, kib) // within its first read
		require.Zero(t, c.calls)
		p.hangUp(c)
		require.Zero(t, a.Own().Streams, "nor has its address a price")
	})
	t.Run("what Envoy answers itself", func(t *testing.T) {
		c := p.dial(postgres)
		p.send(c, 100)
		p.receive(c, 64*kib) // within its first read
		require.EqualValues(t, 1, a.Own().Streams)
		c.http = true
		p.send(c, 100)
		require.True(t, c.SpeaksHTTP())
	})
	t.Run("a request that comes later", func(t *testing.T) {
		c := p.dial(postgres)
		p.send(c, 100)
		p.receive(c, 64*kib)
		require.EqualValues(t, 1, a.Own().Streams)
		r := &request{connected: &c.Connection}
		c.guard.Open(p.now, &r.Stream, r, 0)
		require.EqualValues(t, 1, a.Own().Streams, "its own alone")
		require.True(t, c.SpeaksHTTP())
		p.receive(c, 64*kib)
		c.guard.Close(p.now, &r.Stream)
		require.Zero(t, a.Own().Streams)
	})
}

// flood lets so many clients connect that never read, while their upstream sends what Envoy takes,
// and returns those that were not refused. Envoy holds a part of its buffers of each.
func (p *process) flood(n int, every time.Duration, held int64) (open []*tcpClient) {
	for range n {
		if c := p.dial(postgres); c != nil {
			p.send(c, 1)
			open = append(open, c)
		}
		p.step(every, 40*mib+held*int64(len(open)))
		for _, c := range open {
			if c.passed[budget.Response] == 0 {
				p.receive(c, 3*mib)
			}
		}
	}
	return open
}

// step lets time pass, with readings.
func (p *process) step(d time.Duration, inUse int64) (cut []*Connection) {
	for end := p.now + d; p.now < end; {
		p.now += min(25*ms, d)
		w := p.workers[0]
		a := w.Tick(p.now)
		if a.Ask {
			w.Observe(p.now, memory.Reading{InUse: inUse, Allocated: inUse}, nil)
		}
		cut = append(cut, a.Cut...)
	}
	return cut
}

func TestARawFloodIsRefused(t *testing.T) {
	for _, every := range []time.Duration{10 * ms, ms} {
		t.Run(every.String(), func(t *testing.T) {
			p := newProcess(t, 1, asEnvoy)
			p.settle(40 * mib)
			open := p.flood(300, every, 1400*kib)
			t.Logf("%d open", len(open))
			require.Greater(t, len(open), 40)
			require.Less(t, 40*mib+1400*kib*int64(len(open)), 200*mib)
			require.EqualValues(t, 300-len(open), p.workers[0].Counts()[metric.CountRefused])
			// Small requests are let in all the same.
			r, v := p.open(0, 0)
			require.Equal(t, verdict.Admit, v.Action)
			p.guards[0].Close(p.now, &r.Stream)
			for _, c := range open {
				p.hangUp(c)
			}
			p.step(time.Second, 40*mib)
			require.NotNil(t, p.dial(postgres), "there is room again")
		})
	}
}

// A burst that comes before anything is known of its kind is in already when the first bytes come:
// from the first of them it is learnt what the others would hold.
func TestABurstOfRawConnectionsIsRefusedAtItsFirstBytes(t *testing.T) {
	p := newProcess(t, 1, asEnvoy)
	p.settle(40 * mib)
	var all []*tcpClient
	old := p.dial(postgres)
	p.step(3*time.Second, 40*mib)
	for range 300 {
		c := p.dial(postgres)
		p.send(c, 1)
		all = append(all, c)
	}
	open := 0
	for _, c := range all {
		p.receive(c, 3*mib)
		if !c.Ends() {
			open++
		}
	}
	require.Greater(t, open, 40)
	require.Less(t, 40*mib+1400*kib*int64(open), 200*mib)
	require.EqualValues(t, 300-open, p.workers[0].Counts()[metric.CountRefused])
	p.receive(old, 20*kib)
	require.False(t, old.Ends(), "it is none of them")
	require.Len(t, p.step(100*ms, 40*mib+1400*kib*int64(open)), 300-open, "they are closed")
	require.Empty(t, p.workers[0].raws.late)
}

// A burst of new ones reserves what they will likely hold before any has brought it.
func TestTheNextRawConnectionHasAPrice(t *testing.T) {
	p := newProcess(t, 1, asEnvoy)
	p.settle(40 * mib)
	open := p.flood(10, 25*ms, 1400*kib)
	p.step(3*time.Second, 40*mib+10*1400*kib)
	a := p.workers[0].Account()
	require.Zero(t, a.Own().Coming)
	price := p.workers[0].raws.places[postgres].price(p.now)
	require.InDelta(t, 1400*kib, price, float64(500*kib))
	n := 0
	for ; p.dial(postgres) != nil; n++ {
		require.InDelta(t, float64(n+1)*float64(price), float64(a.Own().Coming), float64(16*(n+1)))
	}
	require.InDelta(t, float64(184*mib-54*mib)/float64(price), n, 10)
	require.NotNil(t, p.dial("10.0.0.254:80"), "elsewhere there is none")
	p.step(3*time.Second, 40*mib+10*1400*kib)
	require.Zero(t, a.Own().Coming, "what does not come is not waited for")
	require.Len(t, p.workers[0].raws.open, len(open))
	require.Less(t, p.workers[0].raws.places[postgres].price(p.now), 100*kib, "and they are not expected to bring it any more")
}

// What is expected of new ones is what readings show of those that are there: who reads fast has
// moved gigabytes, and holds nothing.
func TestFastReadersHaveNoPrice(t *testing.T) {
	p := newProcess(t, 1, asEnvoy)
	p.settle(40 * mib)
	var pool []*tcpClient
	for range 100 {
		c := p.dial(postgres)
		require.NotNil(t, c)
		pool = append(pool, c)
		p.send(c, 100)
		p.step(25*ms, 42*mib)
	}
	for range 40 { // ten seconds
		for _, c := range pool {
			p.send(c, 200*kib)
			p.receive(c, 200*kib)
		}
		require.Empty(t, p.step(250*ms, 42*mib))
	}
	for _, c := range pool {
		p.hangUp(c)
	}
	for range 300 { // all of them come back at once, with friends
		require.NotNil(t, p.dial(postgres))
	}
	require.Zero(t, p.workers[0].Counts()[metric.CountRefused])
}

func TestIdleRawConnectionsCostNothing(t *testing.T) {
	p := newProcess(t, 1, asEnvoy)
	p.settle(40 * mib)
	p.receive(p.dial(postgres), 100*kib)
	for range 1000 {
		c := p.dial(postgres)
		require.NotNil(t, c)
		p.send(c, 100)
		p.step(10*ms, 40*mib)
	}
	p.step(3*time.Second, 40*mib)
	require.EqualValues(t, 1, p.workers[0].Account().Own().Streams)
	require.Less(t, p.workers[0].raws.places[postgres].price(p.now), 64*kib, "the floor is open to them")
}

func TestWhereHTTPComesNobodyIsRefusedForRawOnes(t *testing.T) {
	p := newProcess(t, 1, asEnvoy)
	p.settle(40 * mib)
	p.flood(10, 25*ms, 1400*kib)
	c := p.dial(postgres)
	r := &request{connected: &c.Connection}
	p.workers[0].Data(p.now, &c.Connection, 100)
	c.guard.Open(p.now, &r.Stream, r, 0)
	for range 200 {
		require.NotNil(t, p.dial(postgres))
	}
	require.Zero(t, p.workers[0].raws.places[postgres].price(p.now))
	require.NotZero(t, p.workers[0].raws.places[postgres].price(p.now+httpFor))
}

func TestTheHeaviestRawConnectionsAreClosed(t *testing.T) {
	for _, c := range []struct {
		name string
		edit func(*Config)
		cuts bool
	}{
		{"enforce", func(*Config) {}, true},
		{"tcp observe", func(c *Config) { c.TCP = Observe }, false},
		{"mode observe", func(c *Config) { c.Mode = Observe }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newProcess(t, 1, func(config *Config) { asEnvoy(config); c.edit(config) })
			p.workers[0].SetEnforcing(p.guards[0].Config().Mode == Enforce)
			p.settle(40 * mib)
			var heavy, light []*tcpClient
			for range 80 {
				heavy, light = append(heavy, p.dial(postgres)), append(light, p.dial(postgres))
			}
			p.step(3*time.Second, 40*mib) // they are none of a burst
			for i := range heavy {
				p.receive(heavy[i], 3*mib)
				p.receive(light[i], 40*kib)
			}
			require.Empty(t, p.step(100*ms, 190*mib), "nothing is closed for the estimate alone")
			cut := p.step(time.Second, 230*mib)
			require.Equal(t, c.cuts, len(cut) > 0)
			require.NotZero(t, p.workers[0].Counts()[metric.CountRejected+int(verdict.Evicted)-1], "it is counted in any case")
			seen := map[*Connection]bool{}
			for _, one := range cut {
				require.False(t, seen[one], "once")
				seen[one] = true
				require.True(t, one.Ends())
			}
			for _, one := range light {
				require.False(t, seen[&one.Connection])
			}
		})
	}
}

// One that comes where others are heavy has their price, but is none of those before it is.
func TestARawConnectionThatSaysLittleIsNotEvicted(t *testing.T) {
	p := newProcess(t, 1, asEnvoy)
	p.settle(40 * mib)
	heavy := p.dial(postgres)
	p.receive(heavy, 3*mib)
	for range 10 {
		p.send(p.dial(postgres), 100)
	}
	require.Len(t, p.workers[0].raws.open, 11)
	p.hangUp(heavy)
	require.Empty(t, p.step(time.Second, 230*mib), "memory is over the limit, but not for them")
	require.Zero(t, p.workers[0].Counts()[metric.CountRejected+int(verdict.Evicted)-1])
}

func TestObservedRawConnectionsAreNotRefused(t *testing.T) {
	for _, edit := range []func(*Config){func(c *Config) { c.TCP = Observe }, func(c *Config) { c.Mode = Observe }} {
		p := newProcess(t, 1, func(c *Config) { asEnvoy(c); edit(c) })
		p.settle(40 * mib)
		require.Len(t, p.flood(120, 10*ms, 1300*kib), 120)
		require.NotZero(t, p.workers[0].Counts()[metric.CountRefused])
	}
}

// One that has room neither as a connection nor for what it will hold is refused once.
func TestARefusedRawConnectionIsCountedOnce(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { asEnvoy(c); c.TCP, c.Costs.Connection = Observe, 64*unit.KiB })
	p.settle(40 * mib)
	p.flood(30, 10*ms, 1300*kib)
	for range 160 {
		p.dial("10.0.0.254:80")
	}
	p.step(50*ms, 230*mib)
	w := p.workers[0]
	before := w.Counts()[metric.CountRefused]
	require.Nil(t, p.dial(postgres))
	require.Equal(t, before+1, w.Counts()[metric.CountRefused])
}

func TestRawConnectionsAreOneOfTheirSource(t *testing.T) {
	for by, key := range map[string]string{config.BySource: "10.0.0.1", config.ByRoute: postgres, config.ByNone: OtherKey} {
		t.Run(by, func(t *testing.T) {
			p := newProcess(t, 1, func(c *Config) { asEnvoy(c); c.Fairness.By = by })
			p.settle(40 * mib)
			p.receive(p.dial(postgres), 3*mib)
			for _, k := range p.workers[0].Keys() {
				if k.Name == key {
					require.Equal(t, 2*mib, k.Likely)
				} else {
					require.Zero(t, k.Likely)
				}
			}
		})
	}
}

func TestARawConnectionIsInTheSample(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { asEnvoy(c); c.Trace = Default().Trace })
	p.settle(40 * mib)
	for range 10 {
		p.receive(p.dial(postgres), 3*mib)
	}
	p.step(time.Second, 60*mib)
	peaks := p.workers[0].Peaks()
	require.NotEmpty(t, peaks)
	require.NotEmpty(t, peaks[0].Snapshots[0].Samples)
	require.Equal(t, "TCP", peaks[0].Snapshots[0].Samples[0].Labels.Protocol)
	require.Equal(t, "10.0.0.1", peaks[0].Snapshots[0].Samples[0].Labels.Source)
	require.Equal(t, postgres, peaks[0].Snapshots[0].Samples[0].Labels.Key)
}

func TestPlacesAreBounded(t *testing.T) {
	p := newProcess(t, 1, asEnvoy)
	p.settle(40 * mib)
	for i := range 10 * maxPlaces {
		p.now += ms
		p.receive(p.dial(fmt.Sprintf("10.0.0.254:%d", i)), 100*kib)
		p.workers[0].placeOf(p.now, "10.0.0.254:0", false)
	}
	require.Len(t, p.workers[0].raws.places, maxPlaces)
	require.Contains(t, p.workers[0].raws.places, "10.0.0.254:0", "the ones that are in use stay")
	require.NotContains(t, p.workers[0].raws.places, "10.0.0.254:1")
}

// Bytes of a raw connection that has come to all that it may cost neither an object nor a call of
// the host.
func TestRawBytesAllocateNothing(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { asEnvoy(c); c.Budget.Limit.Bytes = unit.GiB })
	p.settle(40 * mib)
	c := p.dial(postgres)
	p.send(c, 100)
	p.send(c, 100)
	p.receive(c, 3*mib)
	calls := c.calls
	require.Zero(t, testing.AllocsPerRun(100, func() {
		p.send(c, kib)
		p.receive(c, 16*kib)
	}))
	require.Equal(t, calls, c.calls)
}
