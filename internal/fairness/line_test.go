package fairness

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

type request struct {
	name string
	Waiter[request]
}

func newRequest(name string, size int64) *request {
	r := &request{name: name}
	r.Value, r.Size = r, size
	return r
}

// room returns a test of what fits, as the guard's would.
func room(bytes int64) func(*Waiter[request]) bool {
	return func(w *Waiter[request]) bool { return w.Size <= bytes }
}

// none ranks nobody: there is one key.
func none(*Waiter[request]) float64 { return 0 }

func TestFirstComeSmallAhead(t *testing.T) {
	var l Line[request]
	var q Queue[request]
	a, b, small := newRequest("a", 100), newRequest("b", 100), newRequest("small", 1)
	l.Join(1, &q, &a.Waiter, false)
	l.Join(2, &q, &b.Waiter, false)
	l.Join(3, &q, &small.Waiter, true)
	require.Equal(t, 3, l.Len())
	require.Equal(t, int64(201), l.Bytes())
	for _, want := range []*request{small, a, b} {
		got := l.Next(4, none, room(100))
		require.Same(t, want, got.Value)
		l.Leave(got)
	}
	require.Nil(t, l.Next(4, none, room(100)))
	require.Zero(t, l.Since())
}

func TestSmallerPassAStuckHead(t *testing.T) {
	var l Line[request]
	var q Queue[request]
	head, half, quarter := newRequest("head", 100), newRequest("half", 50), newRequest("quarter", 25)
	for _, r := range []*request{head, half, quarter} {
		l.Join(1, &q, &r.Waiter, false)
	}
	require.Nil(t, l.Next(1, none, room(60)))
	require.Nil(t, l.Next(passAfter, none, room(60)), "the head has its 250 ms")
	got := l.Next(passAfter+1, none, room(60))
	require.Same(t, quarter, got.Value, "half is more than a quarter of the head")
	l.Leave(got)
	require.Nil(t, l.Next(passAfter+1, none, room(60)))
	l.Leave(&head.Waiter)
	require.Same(t, half, l.Next(passAfter+1, none, room(60)).Value)
	require.Nil(t, l.Next(passAfter+1, none, room(10)))
	third := newRequest("third", 10)
	l.Join(passAfter+1, &q, &third.Waiter, false)
	require.Nil(t, l.Next(2*passAfter, none, room(10)), "a new head has 250 ms of its own")
	require.Same(t, third, l.Next(2*passAfter+1, none, room(10)).Value)
}

func TestOverdueAndLeaving(t *testing.T) {
	var l Line[request]
	var q Queue[request]
	a, b := newRequest("a", 1), newRequest("b", 1)
	l.Join(10*time.Millisecond, &q, &a.Waiter, false)
	l.Join(20*time.Millisecond, &q, &b.Waiter, false)
	require.Equal(t, 10*time.Millisecond, l.Since())
	require.Nil(t, l.Overdue(1009*time.Millisecond, time.Second))
	require.Same(t, a, l.Overdue(1010*time.Millisecond, time.Second).Value)
	l.Leave(&b.Waiter)
	l.Leave(&b.Waiter) // twice is once
	l.Leave(&a.Waiter)
	require.False(t, a.Waits())
	require.Zero(t, l.Len())
	require.Zero(t, l.Bytes())
	l.Join(50, &q, &b.Waiter, true)
	require.Equal(t, time.Duration(50), l.Since())
}

// Who has least of its weight is served first, and within a key who came first.
func TestKeysInTurn(t *testing.T) {
	var l Line[request]
	var noisy, quiet Queue[request]
	has := map[*Queue[request]]float64{&noisy: 0, &quiet: 0}
	rank := func(w *Waiter[request]) float64 { return has[w.queue] }
	for i := range 5 {
		l.Join(time.Duration(i+1), &noisy, &newRequest("noisy", 100).Waiter, false)
	}
	first, second := newRequest("quiet 1", 100), newRequest("quiet 2", 100)
	l.Join(10, &quiet, &first.Waiter, false)
	l.Join(11, &quiet, &second.Waiter, false)
	require.Len(t, l.queues, 2)
	var got []string
	for range 4 {
		w := l.Next(12, rank, room(100))
		has[w.queue] += float64(100 + len(got))
		got = append(got, w.Value.name)
		l.Leave(w)
	}
	require.Equal(t, []string{"noisy", "quiet 1", "noisy", "quiet 2"}, got)
	require.Len(t, l.queues, 1)
}

// One key's head may be held back by its share while that of another fits.
func TestAHeadThatDoesNotFitLetsSmallOnesOfOthersPass(t *testing.T) {
	var l Line[request]
	var a, b Queue[request]
	stuck, small := newRequest("stuck", 10), newRequest("small", 1)
	l.Join(1, &a, &stuck.Waiter, true)
	l.Join(2, &b, &small.Waiter, true)
	require.Same(t, small, l.Next(3, none, room(5)).Value)
}
