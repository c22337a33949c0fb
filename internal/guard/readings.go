package guard

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/events"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
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
	switch {
	case a.Event != "":
	case w.telling.Turned:
		w.telling.Turned = false
		a.Event, a.Severity = events.Impossible(w.budget.Limit, w.limits, w.account.Table())
	default:
		a.Event = w.telling.Next()
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
	judged := all.Streams - all.Presumed.Streams
	return polling.Figures{
		Urgent:   all.Queue.Waiting > 0 || t.Sequence == 0 || t.Level >= budget.Hard,
		Fresh:    all.Fresh,
		Coming:   all.Coming - all.Presumed.Bytes,
		Limit:    w.limits.Limit,
		Free:     max(w.account.Share(w.limits.Hard)-t.Reading, 0),
		Presumed: all.Presumed.Streams > 0 && judged <= int64(len(t.Entries)) && w.account.Calm(now),
		Short:    Time(w.memory.Interval),
		Long:     Time(w.memory.IdleInterval),
	}
}

// Observe takes the answer to what Tick asked for: the reading, or why there is none. It returns
// what is to be logged, if anything.
func (w *Worker) Observe(now Time, r memory.Reading, failure error) (event string) {
	asked := w.poll.Answer()
	if failure != nil {
		w.counts[metric.CountFailedReadings]++
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
	w.telling.Turned = w.account.Turned() || w.telling.Turned
	if blind {
		event = fmt.Sprintf("readings of Envoy's memory are back after %v. ", roughly(age))
	}
	event += w.telling.Limit(w.budget.Limit, w.limits, w.memory.Path)
	return event + w.telling.Level(now, level, r.InUse, w.limits, w.account.Table())
}

// blindAfter: without a reading for so long the guard says that it is blind. A single one that
// fails is counted and not told: an Envoy that is busy, or has only just begun, misses one now and
// then.
const blindAfter = 2 * time.Second // TestWithoutReadingsTheGuardIsBlind

// readingAge is the time since the last reading was asked for, or since the start if there was
// none.
func (w *Worker) readingAge(now Time) Time {
	switch t := w.account.Table(); {
	case t.Sequence > 0:
		return max(now-t.Asked, 0)
	case t.Begun > 0:
		return max(now-t.Begun, 0)
	}
	return 0 // nobody has looked at the table yet
}

// tellBlind tells once, in the whole process, when readings no longer come though they are asked
// for. An admin that hangs gives no answer at all.
func (w *Worker) tellBlind(now Time) (event string) {
	age := w.readingAge(now)
	if age < blindAfter || w.account.Table().Blind {
		return ""
	}
	failure := w.poll.Failure()
	if failure == nil {
		if !w.poll.Unanswered(now) {
			return ""
		}
		failure = &memory.Failure{Cause: memory.CauseSlow, Err: fmt.Errorf("no answer within %v", polling.Timeout)}
	}
	if w.account.Change(now, func(t *budget.Table) { t.Blind = true }) != nil {
		w.HostError() // the next tick tries again
		return ""
	}
	return fmt.Sprintf("no reading of Envoy's memory for %v from %s: %v. %s %s",
		roughly(age), w.memory.From(), failure, w.memory.Meanwhile(), memory.Cure(&w.memory, failure))
}

// roughly is a duration for people: whole seconds, or tenths of a short one.
func roughly(d Time) unit.Duration {
	if d < 10*time.Second {
		return unit.Duration(d.Round(100 * time.Millisecond))
	}
	return unit.Duration(d.Round(time.Second))
}

// Gauges are the figures of the process, by index of Gauges.
func (w *Worker) Gauges(now Time) (g [metric.NumGauges]int64) {
	t := w.account.Table()
	all := t.Sum()
	g[metric.GaugeEstimate] = t.Reading + all.Fresh + all.Coming
	g[metric.GaugeInUse], g[metric.GaugeAllocated], g[metric.GaugePeak] = t.InUse, t.Allocated, t.Peak
	g[metric.GaugeFresh], g[metric.GaugeComing] = all.Fresh, all.Coming
	g[metric.GaugeLimit], g[metric.GaugeBase], g[metric.GaugeSurprise], g[metric.GaugeExposure] = w.limits.Known(), t.Base, t.Surprise, all.Exposure
	g[metric.GaugeLevel] = int64(t.Level)
	if t.Futile {
		g[metric.GaugeFutile] = 1
	}
	if t.Impossible {
		g[metric.GaugeImpossible] = 1
	}
	g[metric.GaugeStreams], g[metric.GaugeWaiting], g[metric.GaugeConnections] = all.Streams, all.Queue.Waiting, all.Connections.Open
	g[metric.GaugeVM], g[metric.GaugeLeaving] = all.VM, all.Evicted.Leaving
	age := w.readingAge(now)
	g[metric.GaugeReadingAge] = age.Milliseconds()
	if age >= blindAfter {
		g[metric.GaugeBlind] = 1
	}
	if w.enforcing {
		g[metric.GaugeEnforcing] = 1
	}
	return g
}
