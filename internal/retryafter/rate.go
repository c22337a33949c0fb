package retryafter

import (
	"math"
	"time"
)

// Rate is what one worker admits per second while somebody waits: when nobody does, what is
// admitted is what is asked for, and says nothing. It forgets with a time constant of 5 s of such
// time. The zero value is ready.
type Rate struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	bytes, seconds float64
	at             time.Duration // as of when
}

const (
	rateOver  = 5 * time.Second        // TestRateIsOfTheTimeInWhichSomebodyWaits
	rateEvery = 100 * time.Millisecond // TestRateIsOfTheTimeInWhichSomebodyWaits
)

// Add counts what was admitted while somebody waited.
func (r *Rate) Add(n int64) { r.bytes += float64(n) }

// Pass lets the time pass, a tenth of a second at a time: else each tick would have something to
// publish.
func (r *Rate) Pass(now time.Duration, waits bool) {
	if !waits || r.at == 0 {
		r.at = now
		return
	}
	if now-r.at < rateEvery {
		return
	}
	d := (now - r.at).Seconds()
	keep := math.Exp(-d / rateOver.Seconds())
	r.bytes, r.seconds, r.at = r.bytes*keep, r.seconds*keep+d, now
}

// Known says that it is of a second at least.
func (r *Rate) Known() bool { return r.seconds >= 1 }

// PerSecond is of a second at least: what has just begun is no rate yet.
func (r *Rate) PerSecond() int64 { return int64(r.bytes / max(r.seconds, 1)) }
