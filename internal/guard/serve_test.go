package guard

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// Where there is room again just as others have waited too long, both are served, by turns: Envoy
// crashes if one call of the host resumes a request and rejects others on its HTTP/2 connection.
func TestOneTickDoesNotResumeAndReject(t *testing.T) {
	p := newProcess(t, 1, nil)
	p.settle(40 * mib)
	p.settle(170 * mib)
	w := p.workers[0]
	var first Time
	for i := range 40 {
		_, v := p.open(0, 16*mib)
		require.Equal(t, verdict.Wait, v.Action)
		if i == 0 {
			first = p.now
		}
		p.now += ms
	}
	for p.now < first+2*time.Second-50*ms {
		p.read(170 * mib)
	}
	require.EqualValues(t, 40, p.queue(0).Waiting)
	var resumed, rejected int
	for range 50 {
		p.now += 5 * ms
		a := w.Tick(p.now)
		if a.Resume != nil {
			resumed++
			require.Empty(t, a.Rejected)
		}
		rejected += len(a.Rejected)
		if a.Ask {
			w.Observe(p.now, memory.Reading{InUse: 40 * mib, Allocated: 40 * mib}, nil)
		}
	}
	require.Positive(t, resumed)
	require.Positive(t, rejected)
	require.Zero(t, p.queue(0).Waiting, "%d resumed, %d rejected", resumed, rejected)
}

// What has only been forecast is not told that it can never fit, however large the forecast: it
// waits for what room there may be, and goes on when there is. What announces as much is told at
// once.
func TestForecastIsNeverTooLarge(t *testing.T) {
	p := newProcess(t, 1, nil)
	w := p.workers[0]
	p.bring("", budget.Request, 16*mib)
	p.settle(40 * mib)
	for range 12 { // for ten seconds the reading has not been lower
		p.settle(175 * mib)
		p.now += time.Second
	}
	p.settle(175 * mib)
	_, v := p.open(0, 16*mib)
	require.Equal(t, verdict.TooLarge, v.Reason)
	r, v := p.open(0, budget.Unknown)
	require.NotEqual(t, verdict.Answer, v.Action, "%v", v)
	p.settle(100 * mib)
	for range 10 {
		p.now += 5 * ms
		w.Tick(p.now)
	}
	require.False(t, r.Waiting())
	require.Positive(t, r.Reserved(budget.Request))
}
