// Package retryafter says when a rejected client is to come back.
//
// All who are rejected, on whatever worker, book places in one queue of times. A place is as long
// as its bytes take at the rate at which those who come back are admitted, so that each finds room
// when its place begins. That rate is an eighth of what all workers admit while somebody waits: the
// others come without being told, and take the rest. It is never slower than what traffic can have,
// once in retry_after.max, else an idle start would tell everyone the longest delay.
//
// A place begins behind the requests that wait, which are admitted or rejected within the queue's
// timeout.
//
// Where the next place would end beyond max, the queue of times is full, and nothing can be
// promised. All are told the longest delay then, unless so many at once would come back as one: a
// crowd is spread over the three quarters before it, by half of what its worker admits.
//
// While places are out and still made, the end of the queue is kept free of those who would be
// rejected by its timeout: see Early.
package retryafter

import (
	"math"
	"time"
)

// Figures are what delays are reckoned from. Sizes are bytes.
type Figures struct {
	Others   int64 // what the other workers admit a second
	Room     int64 // what traffic can have below soft
	Waits    bool  // somebody waits, on any worker
	Queued   int64 // what those who wait are expected to bring, on all workers
	Timeout  time.Duration
	Min, Max time.Duration // of the delay
}

// least is the rate that is never gone below, bytes a second.
func (f *Figures) least() float64 { return float64(f.Room) / f.Max.Seconds() }

// told: those who are told to come back get an eighth of what is admitted. The others come without
// being told, and clients that are served come at once: they take it all. The queue can't tell the
// two apart, so that of those who come back with n others for each of them n/(n+1) are admitted.
const told = 8 // TestTheQueueDrainsWithWhatIsAdmitted

// Desk is where one worker's rejects book. The zero value is ready.
type Desk struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	Admitted Rate
	crowd    time.Duration // when those who found no place and more could have been admitted; past = there is no crowd
	drawn    uint64        // how many met a queue that is nearly too long
}

// Place is one that can be booked. Times are from now on.
type Place struct {
	First, Last time.Duration // when it may begin, and when it must have ended
	Span        time.Duration // how long it is
	size        float64
}

// Place is what a request of so many bytes has to book.
func (d *Desk) Place(f *Figures, size int64) Place {
	rate := float64(f.Others + d.Admitted.PerSecond())
	p := Place{First: f.Min, Last: f.Max, size: float64(size)}
	p.Span = seconds(p.size / max(rate/told, f.least(), 1))
	if f.Waits {
		ahead := seconds(float64(f.Queued) / max(rate, 1))
		p.First = max(p.First, min(ahead, f.Timeout, p.Last))
	}
	return p
}

// Crowd is what a client is told who found no place that is free, and counts him. None is told to
// come within the first quarter: the queue would still be full (scenario told_to_come_back).
func (d *Desk) Crowd(now time.Duration, f *Figures, p *Place, random func() float64) time.Duration {
	spread := p.Last - max(p.First, p.Last/4)
	before := max(d.crowd-now, 0)
	if before > spread {
		return p.Last - time.Duration(random()*float64(spread))
	}
	d.crowd = now + before + seconds(p.size/max(float64(d.Admitted.PerSecond())/2, f.least(), 1))
	return p.Last - before
}

// earlyFrom: from this part of the timeout on, which the queue will take, some are rejected at its
// end, and all where it takes all of it. Those who were told the same second come back in one
// instant. Where only a full queue rejected, it was the last of them: a third to a half of those
// who came back, when it was a tenth of all.
const earlyFrom = .75 // TestALineThatIsNearlyTooLongTurnsSomeAway

// Early is the share of those who come that is to be rejected, because this worker's queue is
// nearly too long for its timeout; 0 or less = none. booked is how far from now places are booked.
// Where that is nearly all, whoever comes now does not obey, and an early reject only brings him
// back at once: of the flood upload-h2@100 a third was served without this.
func (d *Desk) Early(f *Figures, booked time.Duration, queued int64) (share float64) {
	if !d.Admitted.Known() || booked <= 0 || booked > f.Max/8*7 {
		return 0
	}
	length := float64(queued) / float64(max(d.Admitted.PerSecond(), 1)) / f.Timeout.Seconds()
	return (length - earlyFrom) / (1 - earlyFrom)
}

// Draw says whether the next is one of such a share. Those are spread evenly over all that come.
func (d *Desk) Draw(share float64) bool {
	if share <= 0 {
		return false
	}
	d.drawn++
	_, golden := math.Modf(float64(d.drawn) * math.Phi)
	return golden < share
}

// seconds is a duration of so many, at most an hour: the longest that retry_after.max may be.
func seconds(s float64) time.Duration { return time.Duration(min(s, 3600) * float64(time.Second)) }
