package guard

import (
	"strconv"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// Action is what to do with a stream.
type Action uint8

// The actions.
const (
	Admit  Action = iota
	Wait          // pause it at its request headers; Tick says when it goes on
	Answer        // reject it: answer in place of the upstream
	Close         // reject it without an answer: pause it; Tick says when to close its connection
	Reset         // its response has begun: end it
	Pass          // mode observe: let it go, though it would have been held back or turned away; and tick soon
)

// Reason says why a request or a response was not admitted.
type Reason uint8

// The reasons.
const (
	None         Reason = iota
	TooLarge            // it could not fit even alone
	QueueFull           // the waiting line has no room for it
	Timeout             // it waited as long as it may
	Growth              // it brought more than it had announced or was expected to, and that has no room
	ResponseSize        // its response has no room
	NoReading           // memory.on_stale is reject, and there is no reading
	Evicted             // memory was over the limit, and it likely held most
	Closed              // whatever the reason was, even an answer had no room: its connection was closed without one
	numReasons
)

var reasons = [numReasons]string{"none", "too_large", "queue_full", "timeout", "growth", "response", "no_reading", "evicted", "closed"}

// String returns the reason as metrics and headers show it.
func (r Reason) String() string { return reasons[min(r, numReasons-1)] }

// Verdict on a stream.
type Verdict struct {
	Action     Action
	Reason     Reason
	RetryAfter unit.Duration // to tell the client; 0 = nothing
	Waited     unit.Duration // in line, before the verdict
}

// String is what access logs show: "rejected timeout waited=2s retry_after=3s". A plain admit is
// "admitted".
func (v Verdict) String() string {
	b := make([]byte, 0, 64)
	switch v.Action {
	case Admit, Pass:
		b = append(b, "admitted"...)
	case Wait:
		b = append(b, "waiting"...)
	case Answer:
		b = append(append(b, "rejected "...), v.Reason.String()...)
	case Close:
		b = append(append(b, "closed "...), v.Reason.String()...)
	case Reset:
		b = append(append(b, "reset "...), v.Reason.String()...)
	}
	if v.Waited > 0 {
		b = strconv.AppendInt(append(b, " waited="...), v.Waited.Milliseconds(), 10)
		b = append(b, "ms"...)
	}
	if v.RetryAfter > 0 {
		b = append(append(append(b, " retry_after="...), v.RetryAfter.Seconds()...), 's')
	}
	return string(b)
}
