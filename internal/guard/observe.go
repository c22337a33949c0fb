package guard

import (
	"fmt"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/polling"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// reader is a worker's part in reading the allocator.
type reader struct {
	polls bool // it is this worker that asks
	poll  polling.Poll
}

// ask asks for a reading, if it is time to, and picks what is to be logged.
func (w *Worker) ask(now Time, a *Actions) {
	if a.Polls = w.polls; w.polls {
		a.Ask, a.Event = w.schedule(now), w.tellBlind(now)
	}
	if a.Event == "" {
		a.Event = w.telling.next()
	}
}

// AskTimeout is how long to wait for the answer to a reading.
func (w *Worker) AskTimeout() unit.Duration { return unit.Duration(polling.Timeout) }

// schedule says whether a reading is to be asked for.
func (w *Worker) schedule(now Time) bool {
	if w.poll.Outstanding(now) {
		return false
	}
	f := w.pollFigures(now)
	return w.poll.Ask(now, f.Every())
}

func (w *Worker) pollFigures(now Time) polling.Figures {
	t := w.account.Table()
	all := t.Sum()
	judged := all.Streams - all.PresumedStreams
	return polling.Figures{
		Urgent:   all.Waiting > 0 || t.Sequence == 0 || t.Level >= budget.Hard,
		Fresh:    all.Fresh,
		Coming:   all.Coming - all.Presumed,
		Limit:    w.limits.Limit,
		Free:     max(w.account.Share(w.limits.Hard)-t.Reading, 0),
		Presumed: all.PresumedStreams > 0 && judged <= int64(len(t.Entries)) && w.account.Calm(now),
		Short:    Time(w.memory.Interval),
		Long:     Time(w.memory.IdleInterval),
	}
}

// Observe takes the answer to what Tick asked for: the reading, or why there is none. It returns
// what is to be logged, if anything.
func (w *Worker) Observe(now Time, r Reading, failure error) (event string) {
	asked := w.poll.Answer()
	if failure != nil {
		w.counts[CountFailedReadings]++
		w.poll.Failed(failure)
		return ""
	}
	if asked == 0 {
		return "" // the answer came after we had given it up
	}
	w.account.SetContainer(r.Limit)
	w.account.SetAllocated(r.Allocated)
	blind, age := w.account.Table().Blind, w.readingAge(now)
	_, level, err := w.account.Observe(now, asked, r.InUse)
	if err != nil {
		w.HostError()
		return ""
	}
	w.poll.Failed(nil)
	if blind {
		event = fmt.Sprintf("readings of Envoy's memory are back after %v. ", roughly(age))
	}
	event += w.telling.limit(&w.policy)
	return event + w.telling.level(now, level, r.InUse, w.limits, w.account.Table())
}
