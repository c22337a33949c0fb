// Package verdict says what the guard decides of a request or a response, and how a client is told
// of it.
package verdict

import (
	"strconv"

	"github.com/highwater-envoy/highwater/internal/config"
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
	Pass          // mode observe: let it go, though it would have been held back or rejected; and tick soon
)

// Reason says why a request or a response was not admitted.
type Reason uint8

// The reasons.
const (
	None         Reason = iota
	TooLarge            // it could not fit even alone
	QueueFull           // the queue has no room for it
	Timeout             // it waited as long as it may
	Growth              // it brought more than it had announced or was expected to, and that has no room
	ResponseSize        // its response has no room
	NoReading           // memory.on_stale is reject, and there is no reading
	Evicted             // memory was over the limit, and it likely held most
	Closed              // whatever the reason was, even an answer had no room: its connection was closed without one
	NumReasons
)

var reasons = [NumReasons]string{"none", "too_large", "queue_full", "timeout", "growth", "response", "no_reading", "evicted", "closed"}

// String returns the reason as metrics and headers show it.
func (r Reason) String() string { return reasons[min(r, NumReasons-1)] }

// Verdict on a stream.
type Verdict struct {
	Action     Action
	Reason     Reason
	RetryAfter unit.Duration // to tell the client; 0 = nothing
	Waited     unit.Duration // in the queue, before the verdict
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

// GRPCResourceExhausted is the gRPC status of a reject (RESOURCE_EXHAUSTED). Envoy ignores it for
// plain HTTP; without it gRPC clients would be told 14 for a 503.
const GRPCResourceExhausted = 8

// Answer is what a client is told of the verdict in place of a response: headers, and the body.
// grpc says that it speaks gRPC.
func (v Verdict) Answer(r *config.Reject, grpc bool) (headers [][2]string, body string) {
	headers = append(make([][2]string, 0, 3), [2]string{"x-highwater-reason", v.Reason.String()})
	if v.RetryAfter > 0 {
		headers = append(headers, [2]string{"retry-after", v.RetryAfter.Seconds()})
	}
	if !grpc {
		return headers, r.Body
	}
	pushback := int64(-1) // do not retry: it could not fit even alone
	if v.RetryAfter > 0 {
		pushback = v.RetryAfter.Milliseconds()
	}
	headers = append(headers, [2]string{"grpc-retry-pushback-ms", strconv.FormatInt(pushback, 10)})
	if r.Body == "" {
		return headers, "highwater: " + v.Reason.String()
	}
	return headers, r.Body
}
