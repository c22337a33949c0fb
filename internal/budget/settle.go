package budget

import "time"

// lapseAfter is how long what is reserved for a message is waited for, by its direction and by what
// is told of it: an upload's sender may pause, an upstream that has sent its headers hardly ever
// does (TestComingLapses). Of a message whose bytes nobody tells, what was reserved is in a reading
// after a second, or does not come (TestHiddenMessages): with the times of the others an Envoy that
// is told nothing but headers reached less than half of its throughput.
var lapseAfter = [...][3]Time{
	Request:  {Counted: 2 * time.Second, Announced: time.Second, Silent: time.Second},
	Response: {Counted: 300 * time.Millisecond, Announced: time.Second, Silent: time.Second},
}

const (
	// A response that has room since its request's headers: the upstream may take its time.
	beginsWithin = 2 * time.Second // TestAResponseThatIsReservedForWaitsForItsUpstream
	// From trickleAfter on, a request's coming is bounded by what it has lately shown to bring.
	trickleAfter = 500 * time.Millisecond // TestATricklersReservationIsClamped
	trickleFloor = 64 << 10               // TestATricklersReservationIsClamped

	recent = time.Second // who has moved within it likely still holds all of its bound; TestWhatAStreamLikelyHolds
)

// weight is how much of its bound a stream likely holds: all while bytes moved within the last
// second or announced ones are missing, else half of it for each second, down to a tenth: an idle
// stream has most likely drained.
func weight(idle Time) float64 {
	switch {
	case idle < recent:
		return 1
	case idle < 2*recent:
		return 0.5
	case idle < 3*recent:
		return 0.25
	case idle < 4*recent:
		return 0.125
	}
	return 0.1
}

// settle brings the stream's part in the sums of its account up to date.
func (s *Stream) settle(a *Account, now Time) {
	if s.state == shadow {
		s.settleShadow(a, now)
		return
	}
	req, res := &s.dir[Request], &s.dir[Response]
	bounds := req.bound() + res.bound()
	likely := bounds
	if !req.missing() && !res.missing() {
		if w := weight(now - max(req.moved, res.moved)); w < 1 {
			likely = int64(w * float64(bounds))
		}
	}
	var smallSum int64
	if s.small && !s.Presumed() {
		smallSum = req.coming + res.coming + likely
	}
	bounds, likely = bounds+s.kept, likely+s.kept
	exposure := s.kept + req.open() + res.open()
	a.own.Likely += likely - s.adds.likely
	a.own.Bounds += bounds - s.adds.bounds
	a.own.Exposure += exposure - s.adds.exposure
	a.own.Small += smallSum - s.adds.small
	s.sum.Likely += likely - s.adds.likely
	s.sum.Small += smallSum - s.adds.small
	s.adds.likely, s.adds.bounds, s.adds.exposure, s.adds.small = likely, bounds, exposure, smallSum
}

// settleShadow is settle of a shadow: what it holds is in a sum of its own.
func (s *Stream) settleShadow(a *Account, now Time) {
	req, res := &s.dir[Request], &s.dir[Response]
	bounds := req.bound() + res.bound()
	likely := bounds
	if !req.missing() && !res.missing() {
		likely = int64(weight(now-max(req.moved, res.moved)) * float64(bounds))
	}
	likely += s.kept
	exposure := s.kept + req.open() + res.open()
	a.own.Shadows.Likely += likely - s.adds.likely
	a.own.Exposure += exposure - s.adds.exposure
	s.adds.likely, s.adds.bounds, s.adds.exposure = likely, bounds+s.kept, exposure
}

// uncount takes the stream's part in the sums back, but for its exposure.
func (s *Stream) uncount(a *Account) {
	if s.state == shadow {
		a.own.Shadows.Likely -= s.adds.likely
		return
	}
	a.own.Likely -= s.adds.likely
	a.own.Bounds -= s.adds.bounds
	a.own.Small -= s.adds.small
	s.sum.Likely -= s.adds.likely
	s.sum.Small -= s.adds.small
}

// Lapse is a message without a length that has come to rest, or a response for which room was
// reserved and that has not begun: what was reserved does not come.
type Lapse struct {
	Owner     any // of its stream
	Direction Direction
}

// rests notes that a message has come to rest, once.
func (l *streams) rests(s *Stream, d Direction) {
	m := &s.dir[d]
	if !m.awaited && (!s.Lengthless(d) || m.told) {
		return
	}
	m.told, m.awaited = m.expected, false
	l.lapsed = append(l.lapsed, Lapse{s.owner, d})
}

// Lapses are the messages that have come to rest in the last Tick, each once in its life, and once
// before it has begun. What those that have begun have brought is what the next of their key will.
// It is valid until the next Tick.
func (a *Account) Lapses() []Lapse { return a.streams.lapsed }

// lapse takes back what is reserved and does not come.
func (s *Stream) lapse(a *Account, now Time) {
	if s.pause.cost > 0 || s.Presumed() {
		return
	}
	s.lapseResponse(a, now)
	s.lapseRequest(a, now)
}

func (s *Stream) lapseResponse(a *Account, now Time) {
	m := &s.dir[Response]
	late := lapseAfter[Response][m.visibility]
	if !m.expected {
		late = beginsWithin
	}
	if (m.coming > 0 || m.awaited) && now-m.moved >= late {
		a.unreserve(s, m, m.coming)
		m.lapsed = true
		a.revoke(s)
		a.streams.rests(s, Response)
	}
}

func (s *Stream) lapseRequest(a *Account, now Time) {
	m := &s.dir[Request]
	if m.coming == 0 {
		return
	}
	switch idle := now - m.moved; {
	case idle >= lapseAfter[Request][m.visibility], m.length == Unknown && idle >= trickleAfter:
		a.unreserve(s, m, m.coming)
		m.lapsed = true
		a.streams.rests(s, Request)
		if m.unseen() {
			m.seen = max(m.length, m.reserved) // so that it does not seem to be missing as long as its upstream works
		}
	case !m.unseen() && now-m.begun >= trickleAfter:
		m.roll(now)
		// Neither who announces and never sends nor who trickles may lock the others out.
		if most := 2*(m.burst[0]+m.burst[1]) + trickleFloor; m.coming > most {
			a.unreserve(s, m, m.coming-most)
			m.lapsed = true
		}
	}
}
