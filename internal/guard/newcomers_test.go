package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/unit"
)

func (p *process) comes(worker, n int) (silent []*Connection) {
	p.t.Helper()
	silent = p.admit(worker, n)
	require.Len(p.t, silent, n)
	return silent
}

func coming(w *Worker) int64 { return w.account.Own().Coming }

// Whoever connects is expected to send as much as Envoy reads before it asks: until he has sent something, or was silent for long.
func TestNewcomersAreExpectedToBringABuffer(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Buffers.Downstream = unit.MiB })
	p.settle(40 * mib)
	w := p.workers[0]

	few := p.comes(0, 10)
	require.EqualValues(t, 10*mib, coming(w))
	w.Data(p.now, few[0], 100)
	require.EqualValues(t, 9*mib, coming(w), "it has sent something")
	w.Data(p.now, few[0], 100)
	require.EqualValues(t, 9*mib, coming(w), "once")
	w.CloseConnection(few[1])
	require.EqualValues(t, 8*mib, coming(w), "it has gone")
	p.tick(0, newFor-25*ms, 40*mib)
	require.EqualValues(t, 8*mib, coming(w), "whenever it came, it is new for a while")
	p.tick(0, newFor+25*ms, 40*mib)
	require.Zero(t, coming(w), "they are silent")

	many := p.comes(0, 100)
	require.EqualValues(t, w.account.Room()/newShare, coming(w), "no more than a share of the room")
	admitted := 0
	for range 60 {
		if _, v := p.open(0, 4*mib); v.Action == Admit {
			admitted++
		}
	}
	require.InDelta(t, 25, admitted, 1, "of 35 that would fit were it not for the newcomers: see TestAdmitsWhatFitsAndLetsTheRestWait")
	for _, c := range many {
		w.Data(p.now, c, 100)
	}
	require.EqualValues(t, int64(admitted)*4*mib, coming(w))
}

// Of a crowd that always comes, as much is in the reading as comes anew.
func TestNewcomersThatAreUsualAreInTheReading(t *testing.T) {
	p := newProcess(t, 1, func(c *Config) { c.Buffers.Downstream = unit.MiB })
	p.settle(40 * mib)
	w := p.workers[0]
	var last int64
	for range 40 { // a second of it
		crowd := p.comes(0, 10)
		last = coming(w)
		p.tick(0, 25*ms, 40*mib)
		for _, c := range crowd {
			w.Data(p.now, c, 100)
			w.CloseConnection(c)
		}
		p.tick(0, 25*ms, 40*mib) // and now and then nobody is new
	}
	require.Zero(t, last)
	burst := p.comes(0, 30)
	require.EqualValues(t, 20*mib, coming(w), "beyond the ten that come always")
	for _, c := range burst {
		w.CloseConnection(c)
	}
	p.tick(0, 40*newFor, 40*mib)
	p.comes(0, 30)
	require.Greater(t, coming(w), 29*mib, "what was usual is forgotten")
}
