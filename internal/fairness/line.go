// Package fairness says who is next: the waiting line.
package fairness

import "time"

// Waiter is one place in a Line; it is part of what waits, so that waiting allocates nothing. The zero value waits
// nowhere.
type Waiter[T any] struct {
	Value *T
	Size  int64         // bytes that it waits for
	Since time.Duration // when it joined

	prev, next *Waiter[T]
	line       *Line[T]
	small      bool
}

// Waits says whether the waiter is in a line.
func (w *Waiter[T]) Waits() bool { return w.line != nil }

// Line is first come, first served, with two exceptions: small ones go ahead of the large, and behind a large head
// that has been stuck for a while, those of at most a quarter of its size may pass. The zero value is empty and ready.
type Line[T any] struct {
	small, large ring[T]
	since        time.Duration // since when somebody waits without a break
	headSince    time.Duration // since when the large head is at the head
	bytes        int64
}

type ring[T any] struct {
	first, last *Waiter[T]
	n           int
}

// passAfter is how long a large head waits before smaller ones may pass it.
const passAfter = 250 * time.Millisecond

// Len is how many wait.
func (l *Line[T]) Len() int { return l.small.n + l.large.n }

// Bytes is what all of them wait for.
func (l *Line[T]) Bytes() int64 { return l.bytes }

// Since is since when somebody has waited without a break; 0 if nobody waits.
func (l *Line[T]) Since() time.Duration {
	if l.Len() == 0 {
		return 0
	}
	return l.since
}

// Join puts w at the end of the line. It must not wait already.
func (l *Line[T]) Join(now time.Duration, w *Waiter[T], small bool) {
	if l.Len() == 0 {
		l.since = now
	}
	w.line, w.small, w.Since = l, small, now
	l.bytes += w.Size
	r := l.ring(small)
	w.prev, w.next = r.last, nil
	if r.last != nil {
		r.last.next = w
	} else {
		r.first = w
		if !small {
			l.headSince = now
		}
	}
	r.last = w
	r.n++
}

// Leave takes w out of the line. One that does not wait is left alone.
func (l *Line[T]) Leave(now time.Duration, w *Waiter[T]) {
	if w.line != l {
		return
	}
	r := l.ring(w.small)
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		r.first = w.next
		if !w.small {
			l.headSince = now
		}
	}
	if w.next != nil {
		w.next.prev = w.prev
	} else {
		r.last = w.prev
	}
	r.n--
	l.bytes -= w.Size
	w.prev, w.next, w.line = nil, nil, nil
}

func (l *Line[T]) ring(small bool) *ring[T] {
	if small {
		return &l.small
	}
	return &l.large
}

// Next returns the first in turn that fits, or nil: the first small one, else the first large one, else, if that has
// been stuck for 250 ms, the first of at most a quarter of its size. It leaves it in the line.
func (l *Line[T]) Next(now time.Duration, fits func(w *Waiter[T], small bool) bool) *Waiter[T] {
	if w := l.small.first; w != nil && fits(w, true) {
		return w
	}
	head := l.large.first
	if head == nil || fits(head, false) {
		return head
	}
	if now-l.headSince < passAfter {
		return nil
	}
	for w := head.next; w != nil; w = w.next {
		if w.Size <= head.Size/4 && fits(w, false) {
			return w
		}
	}
	return nil
}

// Overdue returns the one that has waited longest, if that is for at least timeout, else nil. It leaves it in the line.
func (l *Line[T]) Overdue(now, timeout time.Duration) *Waiter[T] {
	for _, w := range [...]*Waiter[T]{l.small.first, l.large.first} {
		if w != nil && now-w.Since >= timeout {
			return w
		}
	}
	return nil
}
