package sim

// check holds the estimate against the truth, but for what clients of rejected requests have sent
// since the reading: no filter sees it come. The guard counts it for a round trip, and closes
// connections where it could be more than an eighth of what traffic can have.
func (e *Envoy) check() {
	truth := e.heap.inUse()
	if e.limit > 0 {
		e.report.Excess = max(e.report.Excess, truth-e.limit)
		if e.report.Readings <= 10 {
			e.report.First = max(truth, e.limit)
		} else {
			e.report.LateExcess = max(e.report.LateExcess, truth-e.report.First)
		}
	}
	estimate, known := e.filter.Estimate()
	if !known {
		return
	}
	e.report.Checks++
	if d := truth - estimate - (e.unseen - e.known); d > e.report.Uncovered {
		e.report.Uncovered, e.report.UncoveredAt = d, e.now-e.start
	}
}

// small: a request that announces no more may be admitted beyond the limit, by the floor.
const small = 64 << 10

// admitted holds the estimate at the admission of a large request against the limit.
func (e *Envoy) admitted(s *Stream) {
	e.stuck = 0
	if e.sourced != nil {
		if !s.over {
			e.tell(s, Admitted)
		}
		return
	}
	if s.over || s.Call.Announce <= small {
		return
	}
	if estimate, known := e.filter.Estimate(); known && e.limit > 0 {
		e.report.Admissions++
		e.report.Overadmitted = max(e.report.Overadmitted, estimate-e.limit)
	}
}

// watch looks for a stretch in which there is room for who has waited longest and nobody is
// admitted.
func (e *Envoy) watch() {
	if len(e.oldest) == 0 || e.limit == 0 {
		e.stuck = 0
		return
	}
	want := e.oldest[0].Call.Announce
	if want == Unknown {
		want = 64 << 10
	}
	var coming int64
	for _, w := range e.workers {
		for _, c := range w.conns {
			for _, s := range c.streams {
				if !s.paused && !s.over && !s.ended[Request] {
					coming += s.Call.Body - s.sent
				}
			}
		}
	}
	free := e.Base + int64(.8*float64(e.limit-e.Base)) - e.limit/10 - e.heap.inUse() - coming - want
	if free < 0 {
		e.stuck = 0
		return
	}
	if e.stuck == 0 {
		e.stuck = e.now
	}
	e.report.Stuck = max(e.report.Stuck, e.now-e.stuck)
}
