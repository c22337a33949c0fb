package forecast

// Prediction is what the response of a request will come to, as far as that is to be reserved when
// the request is admitted.
//
// Where bodies are told, little has to be foreseen. A response can be refused when its headers
// come, before it has filled anything, so that only a request of a key all of whose responses are
// large reserves room for one: it is better to reject it before its upstream has done the work.
//
// Where an external processor is told headers alone, Envoy holds a response at its headers until
// they are answered. It fills its buffers meanwhile, and a burst of requests for large responses is
// there before any of them can be refused: 300 slow readers behind 1 MiB buffers made 2.2 times the
// limit. So there each request expects as much as may lie ahead of that answer, by the evidence:
//
//	nothing is told of responses   the buffers' limits
//	all of its key's are large     their forecast
//	nothing is known of its key    the buffers' limits
//	its key has had large ones     the largest of late
//
// By the last two the request is cold: its response is most likely small, and whether it is can be
// found out. It may go as a probe, without what it expects being reserved: see unproven.
type Prediction struct {
	Bytes    int64
	Ahead    int64 // of a response that Envoy holds at its headers, so much may be there before those are answered
	Evidence Evidence
}

// Evidence is by what a prediction was made.
type Evidence uint8

// The evidence.
const (
	NoEvidence Evidence = iota // nothing is to be expected
	Learned                    // all responses of its key are large
	Guessed                    // its key may have large ones
	Untold                     // nothing will be told of the response
)

// Cold is what the response may hold, where that is guessed.
func (p *Prediction) Cold() int64 {
	if p.Evidence != Guessed {
		return 0
	}
	return p.Ahead
}
