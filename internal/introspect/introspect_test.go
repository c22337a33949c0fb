package introspect

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/peak"
)

func newWorker(t *testing.T) *guard.Worker {
	t.Helper()
	w, err := guard.NewWorker(&budget.Memory{}, func() float64 { return 0.5 })
	require.NoError(t, err)
	c := guard.Default()
	c.Budget.Limit.Bytes = 200 << 20
	guard.New(c, w)
	w.Tick(0)
	return w
}

func says(method string) func() string { return func() string { return method } }

func TestQuestions(t *testing.T) {
	for path, current := range map[string]bool{
		"/debug/current": true, "/debug/pprof": true, "/debug/pprof?peak=latest": false, "/debug/status": false,
	} {
		q, below := Of("/debug", path, says("GET"))
		require.True(t, below, path)
		require.Equal(t, current, q.WantsCurrent(), path)
	}
	q, below := Of("/debug", "/debug/current", says("POST"))
	require.True(t, below)
	require.False(t, q.WantsCurrent(), "it is refused at once")
	for _, base := range []string{"", "/other"} {
		_, below = Of(base, "/debug/status", says("GET"))
		require.False(t, below, base)
	}
}

func TestAnswers(t *testing.T) {
	p := Process{
		Worker: newWorker(t), Face: "module", Mode: guard.Enforce, Clock: peak.Clock{Monotonic: time.Second},
		Counters: func(add func(name string, value int64)) { add("highwater_admitted_total", 7) },
	}
	a := p.Ask(Question{"GET", "status"})
	require.Equal(t, 200, a.Status)
	require.Contains(t, string(a.Body), `"face":"module","mode":"enforce"`)
	require.Contains(t, string(a.Body), `"highwater_admitted_total":7`)
	require.NotContains(t, Headers(a), [2]string{"allow", "GET"})
	a = p.Ask(Question{"POST", "status"})
	require.Equal(t, 405, a.Status)
	require.Contains(t, Headers(a), [2]string{"allow", "GET"})
}

// Who waits has its answer once all workers have frozen their samples, and has it once. Who has
// gone is not told.
func TestWaiting(t *testing.T) {
	var list Waiting[string]
	require.False(t, list.Any())
	for i, name := range []string{"a", "gone", "b", "late"} {
		list.Add(Waiter[string]{Stream: name, Question: Question{"GET", "current"}, Since: guard.Time(i)})
	}
	none := func(guard.Time) bool { return false }
	require.Empty(t, list.Ready(none))
	list.Forget("gone")
	ready := list.Ready(func(since guard.Time) bool { return since < 3 })
	require.Len(t, ready, 2)
	require.Equal(t, []string{"a", "b"}, []string{ready[0].Stream, ready[1].Stream})
	require.True(t, list.Any(), "the one that came later waits on")
	list.Forget("late")
	require.False(t, list.Any())
}
