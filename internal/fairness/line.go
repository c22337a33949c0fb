// Package fairness says who is next and who has how much: keys, their weighted max-min shares, and
// the queue.
package fairness

import (
	"cmp"
	"slices"
	"time"
)

// Waiter is one place in a Line; it is part of what waits, so that waiting allocates nothing. The
// zero value waits nowhere.
type Waiter[T any] struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	Value *T
	Size  int64         // bytes that it waits for
	Since time.Duration // when it joined

	prev, next *Waiter[T]
	queue      *Queue[T]
	small      bool
	head       time.Duration // since when it has been the head of the large ones; 0 = it has not
}

// Waits says whether the waiter is in a line.
func (w *Waiter[T]) Waits() bool { return w.queue != nil }

// Queue is what waits of one key, first come, first served. The zero value is empty and ready.
type Queue[T any] struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	small, large ring[T]
	bytes        int64
	rank         float64 // in Line.Next
}

// Len is how many wait.
func (q *Queue[T]) Len() int { return q.small.n + q.large.n }

// Bytes is what they wait for.
func (q *Queue[T]) Bytes() int64 { return q.bytes }

func (q *Queue[T]) ring(small bool) *ring[T] {
	if small {
		return &q.small
	}
	return &q.large
}

// Line serves the queues of the keys in turn, the one first that has least, and each queue first
// come, first served. There are two exceptions: small ones go ahead of the large, and behind a
// large head that has been stuck for a while, those of at most a quarter of its size may pass. The
// zero value is empty and ready.
type Line[T any] struct {
	queues []*Queue[T] // that have somebody waiting
	since  time.Duration
	n      int
	bytes  int64
}

type ring[T any] struct {
	first, last *Waiter[T]
	n           int
}

// passAfter is how long a large head waits before smaller ones may pass it.
const passAfter = 250 * time.Millisecond // TestSmallerPassAStuckHead

// Len is how many wait.
func (l *Line[T]) Len() int { return l.n }

// Bytes is what all of them wait for.
func (l *Line[T]) Bytes() int64 { return l.bytes }

// Since is since when somebody has waited without a break; 0 if nobody waits.
func (l *Line[T]) Since() time.Duration {
	if l.n == 0 {
		return 0
	}
	return l.since
}

// Join puts w at the end of its key's queue. It must not wait already.
func (l *Line[T]) Join(now time.Duration, q *Queue[T], w *Waiter[T], small bool) {
	if l.n == 0 {
		l.since = now
	}
	if q.Len() == 0 {
		l.queues = append(l.queues, q)
	}
	w.queue, w.small, w.Since, w.head = q, small, now, 0
	if l.n == 0 {
		w.head = now
	}
	l.n++
	l.bytes += w.Size
	q.bytes += w.Size
	r := q.ring(small)
	w.prev, w.next = r.last, nil
	if r.last != nil {
		r.last.next = w
	} else {
		r.first = w
	}
	r.last = w
	r.n++
}

// Leave takes w out of the line. One that does not wait is left alone.
func (l *Line[T]) Leave(w *Waiter[T]) {
	q := w.queue
	if q == nil {
		return
	}
	r := q.ring(w.small)
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		r.first = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		r.last = w.prev
	}
	r.n--
	l.n--
	l.bytes -= w.Size
	q.bytes -= w.Size
	w.prev, w.next, w.queue = nil, nil, nil
	if q.Len() == 0 {
		i := slices.Index(l.queues, q)
		l.queues = slices.Delete(l.queues, i, i+1)
	}
}

// Next returns the first in turn that fits, or nil: of the heads of the queues in the order of
// their rank, lowest first, the small ones, then the large ones. Where the first of the large has
// not fitted for 250 ms, any of at most a quarter of its size may pass it. It leaves it in the
// line. rank is what the key of a waiter has, however measured.
func (l *Line[T]) Next(now time.Duration, rank func(w *Waiter[T]) float64, fits func(w *Waiter[T]) bool) *Waiter[T] {
	for _, small := range [...]bool{true, false} {
		l.sort(small, rank)
		var head *Waiter[T]
		for _, q := range l.queues {
			w := q.ring(small).first
			switch {
			case w == nil:
				continue
			case small:
				if fits(w) {
					return w
				}
				continue
			case head == nil:
				if fits(w) {
					return w
				}
				head = w
				if head.head == 0 {
					head.head = now
				}
				if now-head.head < passAfter {
					return nil
				}
				w = w.next
			}
			for ; w != nil; w = w.next {
				if w.Size <= head.Size/4 && fits(w) {
					return w
				}
			}
		}
	}
	return nil
}

// Last returns the large one that came last and is meant, or nil: of the queues in the order of
// their rank, highest first. It leaves it in the line.
func (l *Line[T]) Last(rank func(w *Waiter[T]) float64, meant func(w *Waiter[T]) bool) *Waiter[T] {
	l.sort(false, rank)
	for i := len(l.queues) - 1; i >= 0; i-- {
		for w := l.queues[i].large.last; w != nil; w = w.prev {
			if meant(w) {
				return w
			}
		}
	}
	return nil
}

func (l *Line[T]) sort(small bool, rank func(w *Waiter[T]) float64) {
	if len(l.queues) < 2 {
		return
	}
	for _, q := range l.queues {
		if w := q.ring(small).first; w != nil {
			q.rank = rank(w)
		}
	}
	// An insertion sort: the queues are few, and mostly in the order of the last time.
	for i := range l.queues {
		for j := i; j > 0 && cmp.Less(l.queues[j].rank, l.queues[j-1].rank); j-- {
			l.queues[j], l.queues[j-1] = l.queues[j-1], l.queues[j]
		}
	}
}

// Overdue returns the one that has waited longest, if that is for at least timeout, else nil. It
// leaves it in the line.
func (l *Line[T]) Overdue(now, timeout time.Duration) *Waiter[T] {
	var oldest *Waiter[T]
	for _, q := range l.queues {
		for _, w := range [...]*Waiter[T]{q.small.first, q.large.first} {
			if w != nil && now-w.Since >= timeout && (oldest == nil || w.Since < oldest.Since) {
				oldest = w
			}
		}
	}
	return oldest
}
