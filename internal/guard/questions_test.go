package guard

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// What tests ask is what a user of the package sees: verdicts, what a tick wants done, and the
// books that a worker shows.

// queue is who waits on the worker.
func (p *process) queue(worker int) budget.Queue { return p.workers[worker].Account().Own().Queue }

// left is what rejected requests left unread on the worker.
func (p *process) left(worker int) int64 { return p.workers[worker].Account().Own().Left }

// rejects is how many the worker has rejected for the reason.
func (p *process) rejects(worker int, reason verdict.Reason) uint64 {
	return p.workers[worker].Counts()[metric.CountRejected+int(reason)-1]
}

// has is what a key has on the worker.
func (p *process) has(worker int, name string) (use KeyUse) {
	for _, k := range p.workers[worker].Keys() {
		if k.Name == name {
			use = k
		}
	}
	return use
}

// forecast is what a message of the direction is taken for that has no length, of a key that has
// had some. It opens and closes one of that route.
func (p *process) forecast(worker int, route string, d budget.Direction) int64 {
	p.t.Helper()
	g, r := p.guards[worker], &request{connected: &Connection{}, route: route}
	length := budget.Unknown
	if d == budget.Response {
		length = 0
		p.workers[worker].Tick(p.now) // of those between two ticks the first is judged
	}
	require.Equal(p.t, verdict.Admit, g.Open(p.now, &r.Stream, r, length).Action)
	if d == budget.Response {
		require.Equal(p.t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
	}
	n := r.Reserved(d)
	g.Close(p.now, &r.Stream)
	return n
}

// evicted lets time pass with readings, and returns who was evicted meanwhile.
func (p *process) evicted(worker int, d Time, inUse int64) map[*Stream]Verdict {
	p.t.Helper()
	all := map[*Stream]Verdict{}
	for end := p.now + d; p.now < end; {
		p.now += Tick
		a := p.workers[worker].Tick(p.now)
		for _, d := range a.Rejected {
			require.Equal(p.t, verdict.Evicted, d.Verdict.Reason)
			all[d.Stream] = d.Verdict
		}
		if a.Ask {
			p.workers[worker].Observe(p.now, memory.Reading{InUse: inUse, Allocated: inUse}, nil)
		}
	}
	return all
}

// bring has a route have a message without a length that comes to n bytes, and ends.
func (p *process) bring(route string, d budget.Direction, n int64) {
	p.t.Helper()
	p.workers[0].Tick(p.now) // of those between two ticks the first is judged
	g, r := p.guards[0], &request{connected: &Connection{}, route: route}
	length := budget.Unknown
	if d == budget.Response {
		length = 0
	}
	require.Equal(p.t, verdict.Admit, g.Open(p.now, &r.Stream, r, length).Action)
	if d == budget.Response {
		require.Equal(p.t, verdict.Admit, g.Expect(p.now, &r.Stream, budget.Unknown).Action)
	}
	for sent := int64(0); sent < n; sent += 16 * kib {
		require.Equal(p.t, verdict.Admit, g.Grow(p.now, &r.Stream, d, min(n-sent, 16*kib)).Action)
	}
	g.End(p.now, &r.Stream, d)
	g.Close(p.now, &r.Stream)
}

// What is below looks into a worker and its streams, because nothing else shows it.

// isPaused says that the stream waits or is to be closed. Of a shadow, which nobody holds back,
// that is in the books alone, and the proxy's model has it bring no more than one that is held
// back.
func isPaused(s *Stream) bool { return s.state == queued || s.state == closing }

// isExemptWhileSmall says that the stream goes on whatever room there is, until it is large.
func isExemptWhileSmall(s *Stream) bool { return s.exempt == whileSmall && s.state == live }

// requireNothingLeft looks into the worker, for what nobody sees of it until it is missed: what
// ended streams and closed connections left in its lists and sums, and in those of its keys.
func requireNothingLeft(t *testing.T, w *Worker) {
	t.Helper()
	require.Empty(t, w.closing)
	require.Empty(t, w.residual)
	require.False(t, w.futile.taken)
	require.Zero(t, w.probing)
	w.eachKey(func(k *key) {
		require.Zero(t, k.Value.probing+k.Value.unknown, k.Name)
		require.Zero(t, k.Refs, k.Name)
		require.Zero(t, k.Value.queue.Len(), k.Name)
	})
}
