// Package idle keeps the connections that have had requests and have none now, so that those that
// have been idle for longest can be closed where memory is short.
//
// Closing must not hit a connection whose next request is under way. Two things tell that from an
// idle one. Who asks for something every now and then is not idle between: to be closed he must
// have paused for four times as long as he did before, or for 10 s. And a worker that is behind may
// have bytes of a connection that it has not read yet: where its ticks come late, idle is who has
// been so for ten ticks.
//
// Which connection a request is on is taken for the one whose bytes came last, since to ask costs a
// call of the host. That can be wrong. On a listener without the network filter it is a connection
// of another one, and where a filter before ours held the request back, it is the one whose bytes
// came meanwhile. So a connection is asked for before it counts as one of HTTP, and now and then.
// Once it was wrong nothing is idle any more: who is can't be told.
package idle

import "time"

const (
	// pauses times the longest pause of a connection's requests must have passed, or maxPause.
	pauses   = 4                // TestIdleConnectionsAreClosed
	maxPause = 10 * time.Second // TestIdleConnectionsAreClosed
	// lateTicks: a worker whose ticks come late is behind with what it reads too.
	lateTicks = 10 // TestIdleConnectionsAreClosed
	// VerifyEvery: of so many requests one is asked for its connection.
	VerifyEvery = 256 // TestSomeAreVerified
)

// Use is what is known of the requests on one connection. T is what holds it, which List hands
// back. The zero value is a connection that has had none: a raw one is never idle.
type Use[T any] struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	of             *T
	requests       int
	http           bool          // there has been a request
	since          time.Duration // without a request and without bytes of its client
	ended          time.Duration // its last request
	pause          time.Duration // the longest without a request, which fades with each shorter one
	before, behind *Use[T]       // in the list; nil = it is not there
}

// Requests is how many there are now.
func (u *Use[T]) Requests() int { return u.requests }

// Leave takes it out of the list, if it is there.
func (u *Use[T]) Leave() {
	if u.behind != nil {
		u.before.behind, u.behind.before = u.behind, u.before
		u.before, u.behind = nil, nil
	}
}

// List is a worker's connections without requests: those without for longest first, but for those
// that were passed over. Make it ready with Init.
type List[T any] struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	ring     Use[T] // no connection: the ends of the list
	counted  uint   // requests, to verify some
	ticked   time.Duration
	mistaken bool
}

// Init makes it ready.
func (l *List[T]) Init() { l.ring.before, l.ring.behind = &l.ring, &l.ring }

// Mistaken says that a connection was taken for another one once.
func (l *List[T]) Mistaken() bool { return l.mistaken }

// Mistake notes that a connection was taken for another one.
func (l *List[T]) Mistake() { l.mistaken = true }

// Verifies counts a request, and says whether its connection is to be asked for.
func (l *List[T]) Verifies(u *Use[T]) bool {
	l.counted++
	return !u.http || l.counted%VerifyEvery == 0
}

// Begin counts a request on the connection, which is t's.
func (u *Use[T]) Begin(now time.Duration, t *T) {
	if u.http && u.requests == 0 {
		u.pause = max(now-u.ended, u.pause-u.pause/8)
	}
	u.of, u.http = t, true
	u.requests++
	u.Leave()
}

// End takes a request away again. Idle says that the connection can be once it has none.
func (l *List[T]) End(now time.Duration, u *Use[T], idle bool) {
	u.ended = now
	if u.requests--; u.requests == 0 && idle {
		u.since = now
		l.join(u)
	}
}

// Touch notes bytes of a connection: if it is idle, it is so from now on.
func (l *List[T]) Touch(now time.Duration, u *Use[T]) {
	if u.behind != nil {
		u.since = now
		l.Postpone(u)
	}
}

// Postpone puts one that is idle behind all others.
func (l *List[T]) Postpone(u *Use[T]) {
	u.Leave()
	l.join(u)
}

func (l *List[T]) join(u *Use[T]) {
	u.before, u.behind = l.ring.before, &l.ring
	u.before.behind, u.behind.before = u, u
}

// Tick is called with each tick, and returns how long a connection must have been idle at least to
// be closed in it, where that is to be so long on a worker that is not behind.
func (l *List[T]) Tick(now, least time.Duration) time.Duration {
	late := now - l.ticked
	l.ticked = now
	return max(least, lateTicks*late)
}

// First is the first that has been idle for so long; nil = none has.
func (l *List[T]) First(now, least time.Duration) *T {
	if u := l.ring.behind; u != &l.ring && now-u.since >= least {
		return u.of
	}
	return nil
}

// Pauses says that a connection which is idle may well be in use: it has paused for so long before.
func (u *Use[T]) Pauses(now time.Duration) bool { return now-u.since < min(pauses*u.pause, maxPause) }
