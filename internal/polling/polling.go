// Package polling says when the allocator is to be asked for a reading.
//
// A reading costs Envoy as much as two requests. It is worth that where what is only bounded, fresh
// and coming, is more than 1/32 of the limit. So there are two intervals: the short one while much
// is uncertain, or somebody is held back for it, and the long one else. Between the two is what is
// uncertain and decides nothing yet: see Figures.Every.
//
// One reading is asked for at a time. An answer that does not come within the timeout is given up.
package polling

import "time"

// Timeout is how long to wait for the answer to a reading.
const Timeout = 900 * time.Millisecond // TestWithoutReadingsTheGuardIsBlind

// A Poll is one worker's part of it. The zero value has never asked.
type Poll struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	asking  time.Duration // when the outstanding reading was asked for; 0 = none is outstanding
	asked   time.Duration // the last one
	every   time.Duration // from one reading to the next
	failure error         // of the last reading; nil = it came
}

// Outstanding says that the answer to the last reading may still come. The host, which keeps the
// timeout, may be a little late to say so: asked again at once, an admin that hangs would never be
// told of, and that word would be taken for the next answer. TestWithoutReadingsTheGuardIsBlind
// fails without it.
func (p *Poll) Outstanding(now time.Duration) bool {
	return p.asking != 0 && now-p.asking < Timeout+100*time.Millisecond
}

// Every is the interval as of the last Ask.
func (p *Poll) Every() time.Duration { return p.every }

// Ask sets the interval, and says whether a reading is to be asked for now.
func (p *Poll) Ask(now, every time.Duration) bool {
	p.every = every
	if p.asked != 0 && now-p.asked < every-every/8 { // a tick that comes a little early is the one
		return false
	}
	p.asked, p.asking = now, now
	return true
}

// Answer says when the reading was asked for that is answered now; 0: it had been given up.
func (p *Poll) Answer() (asked time.Duration) {
	asked, p.asking = p.asking, 0
	return asked
}

// Failed notes why the answer was no reading; nil = it was one.
func (p *Poll) Failed(failure error) { p.failure = failure }

// Failure is what was noted last.
func (p *Poll) Failure() error { return p.failure }

// Unanswered says that the answer to the outstanding reading is overdue. Who has only just begun to
// ask can't say that there is none.
func (p *Poll) Unanswered(now time.Duration) bool { return p.asking != 0 && now-p.asking >= Timeout }

// Figures are what the interval is chosen by. Sizes are bytes, of all workers.
type Figures struct {
	Urgent   bool  // somebody waits, there is no reading yet, or the level is hard
	Stirs    bool  // streams that stay have come or gone, as many as may matter
	Fresh    int64 // passed, and perhaps in no reading yet
	Coming   int64 // expected, without what is reserved for presumed responses: that may never come
	Limit    int64
	Free     int64 // from the last reading to hard
	Presumed bool  // memory is calm, and what is in flight is presumed, but for the one that each worker judges

	Short, Long time.Duration // the intervals
}

const (
	unsureShare   = 32 // scenario forecast
	decidingShare = 8  // TestDownloadsAskForFewReadings
)

// Every is the interval. Where what is uncertain is fresh alone, and less than an eighth of what is
// free under hard, half as many readings do: downloads are so. A burst of uploads is coming first,
// and with half as many readings more of it found no room in the queue. Where all in flight is
// presumed half as many do again: as long as memory is calm those decide nothing.
func (f *Figures) Every() time.Duration {
	unsure, worth, deciding, relaxed := f.Fresh+f.Coming, f.Limit/unsureShare, f.Free/decidingShare, 2*f.Short
	if f.Presumed {
		deciding, relaxed = f.Limit, 2*relaxed
	}
	switch {
	case f.Urgent, f.Stirs, f.Coming > worth, unsure > deciding:
		return f.Short
	case unsure > worth:
		return min(f.Long, relaxed)
	}
	return f.Long
}
