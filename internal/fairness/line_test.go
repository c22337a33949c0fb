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
func room(bytes int64) func(*Waiter[request], bool) bool {
	return func(w *Waiter[request], _ bool) bool { return w.Size <= bytes }
}

func TestFirstComeSmallAhead(t *testing.T) {
	var l Line[request]
	a, b, small := newRequest("a", 100), newRequest("b", 100), newRequest("small", 1)
	l.Join(1, &a.Waiter, false)
	l.Join(2, &b.Waiter, false)
	l.Join(3, &small.Waiter, true)
	require.Equal(t, 3, l.Len())
	require.Equal(t, int64(201), l.Bytes())
	for _, want := range []*request{small, a, b} {
		got := l.Next(4, room(100))
		require.Same(t, want, got.Value)
		l.Leave(4, got)
	}
	require.Nil(t, l.Next(4, room(100)))
	require.Zero(t, l.Since())
}

func TestSmallerPassAStuckHead(t *testing.T) {
	var l Line[request]
	head, half, quarter := newRequest("head", 100), newRequest("half", 50), newRequest("quarter", 25)
	for _, r := range []*request{head, half, quarter} {
		l.Join(0, &r.Waiter, false)
	}
	require.Nil(t, l.Next(passAfter-1, room(60)), "the head has its 250 ms")
	got := l.Next(passAfter, room(60))
	require.Same(t, quarter, got.Value, "half is more than a quarter of the head")
	l.Leave(passAfter, got)
	require.Nil(t, l.Next(passAfter, room(60)))
	l.Leave(passAfter, &head.Waiter)
	require.Same(t, half, l.Next(passAfter, room(60)).Value)
	require.Nil(t, l.Next(2*passAfter-1, room(10)), "a new head has 250 ms of its own")
}

func TestOverdueAndLeaving(t *testing.T) {
	var l Line[request]
	a, b := newRequest("a", 1), newRequest("b", 1)
	l.Join(10*time.Millisecond, &a.Waiter, false)
	l.Join(20*time.Millisecond, &b.Waiter, false)
	require.Equal(t, 10*time.Millisecond, l.Since())
	require.Nil(t, l.Overdue(1009*time.Millisecond, time.Second))
	require.Same(t, a, l.Overdue(1010*time.Millisecond, time.Second).Value)
	l.Leave(1, &b.Waiter)
	l.Leave(1, &b.Waiter) // twice is once
	l.Leave(1, &a.Waiter)
	require.False(t, a.Waits())
	require.Zero(t, l.Len())
	require.Zero(t, l.Bytes())
	l.Join(50, &b.Waiter, true)
	require.Equal(t, time.Duration(50), l.Since())
}
