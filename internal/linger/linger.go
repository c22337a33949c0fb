// Package linger sums bytes that stay for a while after nobody can count them any more: what a
// rejected or evicted request has left unread stays until Envoy closes its connection, which is
// delayed_close_timeout later.
//
// Nothing tells when a single one has gone, so that each is taken to stay for as long as it may.
// That needs no entry for each: what comes within a fifteenth of that time is one sum, and expires
// with the first of it. So 16 sums are enough for any number of rejects, and a flood of them costs
// no memory.
package linger

import "time"

const buckets = 16 // TestAFloodIsOneSumEachFifteenth

// Sum is what lingers. The zero value is ready.
type Sum struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	bytes   int64
	buckets [buckets]bucket // a ring, in the order in which they expire
	next    int             // the one that is filled next
}

type bucket struct {
	until time.Duration
	bytes int64
}

// Bytes is what lingers, as of the last Expire.
func (s *Sum) Bytes() int64 { return s.bytes }

// Add counts n bytes that linger from now on for so long.
func (s *Sum) Add(now, linger time.Duration, n int64) {
	if n == 0 || linger == 0 {
		return
	}
	s.bytes += n
	last := &s.buckets[(s.next+buckets-1)%buckets]
	if last.bytes > 0 && now+linger-last.until < linger/(buckets-1) {
		last.bytes += n
		return
	}
	// The ring is full only of what has not expired if the clock stood still: then the oldest is
	// kept longer.
	if b := &s.buckets[s.next]; b.bytes > 0 {
		last.bytes += n
		last.until = now + linger
		return
	}
	s.buckets[s.next] = bucket{now + linger, n}
	s.next = (s.next + 1) % buckets
}

// Expire takes away what has lingered for long enough.
func (s *Sum) Expire(now time.Duration) {
	for i := range s.buckets {
		if b := &s.buckets[i]; b.bytes > 0 && now >= b.until {
			s.bytes -= b.bytes
			b.bytes = 0
		}
	}
}
