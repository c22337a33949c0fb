package guard

import (
	"fmt"
	"time"

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

// blindAfter: without a reading for so long the guard says that it is blind. A single one that
// fails is counted and not told: an Envoy that is busy, or has only just begun, misses one now and
// then.
const blindAfter = 2 * time.Second

// Cause says why a reading failed, as far as that tells what to change.
type Cause uint8

// The causes.
const (
	CauseOther       Cause = iota
	CauseNoCluster         // Envoy has no cluster of that name
	CauseUnreachable       // nobody listens there
	CauseSlow              // no answer in time
	CauseForbidden         // admin.allow_paths has not the path
	CauseAnswer            // it is answered, but not by /memory of Envoy's admin interface
)

// Failure is why there is no reading.
type Failure struct {
	Cause Cause
	Err   error
}

// Error implements error.
func (f *Failure) Error() string { return f.Err.Error() }

// Unwrap implements error.
func (f *Failure) Unwrap() error { return f.Err }

// because is what a Failure is to causeOf: errors.As would make the plugin larger by 25 KB.
type because interface{ because() Cause }

func (f *Failure) because() Cause { return f.Cause }

// causeOf is that of a failure, or of what it wraps.
func causeOf(err error) Cause {
	for err != nil {
		if f, ok := err.(because); ok {
			return f.because()
		}
		wraps, ok := err.(interface{ Unwrap() error })
		if !ok {
			break
		}
		err = wraps.Unwrap()
	}
	return CauseOther
}

// StatusFailure is a failure by the status of an HTTP answer that is not 200. text is the beginning
// of its body. Where Envoy can't reach the cluster's endpoint it answers 503 in its place, and 504
// where that takes too long.
func StatusFailure(status int, text string) *Failure {
	f := &Failure{Cause: CauseAnswer, Err: fmt.Errorf("the answer is status %d, not 200", status)}
	switch status {
	case 403:
		f.Cause = CauseForbidden
	case 503:
		f.Cause = CauseUnreachable
	case 504:
		f.Cause = CauseSlow
	}
	if text != "" {
		f.Err = fmt.Errorf("%w: %q", f.Err, text)
	}
	return f
}

// cure says what to look at.
func cure(m *Memory, failure error) string {
	at := fmt.Sprintf("the endpoint of cluster %q is the address and port of Envoy's admin interface", m.Cluster)
	if m.URL != "" {
		at = fmt.Sprintf("memory.url (%s) is the address of Envoy's admin interface, and that Envoy runs", m.URL)
	}
	switch causeOf(failure) {
	case CauseNoCluster:
		return fmt.Sprintf("Add a cluster %q that points at Envoy's admin interface, or name the right one in memory.cluster.", m.Cluster)
	case CauseForbidden:
		return fmt.Sprintf("Add {exact: %s} to allow_paths of Envoy's admin.", m.Path)
	case CauseSlow:
		return "Envoy's main thread answers it, and may be busy: look for frequent scrapes of /stats or large updates of the configuration. Else check that " + at + "."
	case CauseAnswer:
		return fmt.Sprintf("Check that memory.path (%s) is the one that tells Envoy's memory, and that %s.", m.Path, at)
	}
	return "Check that " + at + "."
}

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
		failure = &Failure{CauseSlow, fmt.Errorf("no answer within %v", polling.Timeout)}
	}
	if w.account.Change(now, func(t *budget.Table) { t.Blind = true }) != nil {
		w.HostError() // the next tick tries again
		return ""
	}
	return fmt.Sprintf("no reading of Envoy's memory for %v from %s: %v. %s %s",
		roughly(age), w.memory.From(), failure, w.memory.Meanwhile(), cure(&w.memory, failure))
}

// roughly is a duration for people: whole seconds, or tenths of a short one.
func roughly(d Time) unit.Duration {
	if d < 10*time.Second {
		return unit.Duration(d.Round(100 * time.Millisecond))
	}
	return unit.Duration(d.Round(time.Second))
}

// telling is what was logged of what changes seldom, so that each change is told once. A worker
// tells with a reading or a tick, one text at a time.
type telling struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	unlimited bool         // that the limit is a share of what is not known
	told      budget.Level // the last level
	toldAt    Time
	pending   string // for the next tick that has nothing else to tell; empty = nothing
}

// toldEvery: a level that swings with a flood is told once a second at most.
const toldEvery = time.Second

// later keeps a text for a tick.
func (l *telling) later(event string) { l.pending = event }

// next is the text that was kept.
func (l *telling) next() (event string) {
	event, l.pending = l.pending, ""
	return event
}

// limit tells when it is not known what the budget is a share of, and when it is known again.
func (l *telling) limit(p *policy) (event string) {
	known := p.limits.Known() > 0
	if known != l.unlimited {
		return ""
	}
	l.unlimited = !known
	if !known {
		return fmt.Sprintf("budget.limit is %v of the container's limit, which the answer of %s does not tell: until it does everything is admitted. Let highwater serve answer it, and beside an Envoy with a limit; or write a size. ",
			p.budget.Limit, p.memory.Path)
	}
	return fmt.Sprintf("budget.limit is %v: %s. ", p.budget.Limit, unit.Bytes(p.limits.Limit).Human())
}

// level tells of a change of the level, and what it is made of.
func (l *telling) level(now Time, level budget.Level, inUse int64, limits *budget.Limits, t *budget.Table) (event string) {
	if level == l.told || now-l.toldAt < toldEvery {
		return ""
	}
	all := t.Sum()
	event = fmt.Sprintf("level %v, was %v: in use %s + fresh %s + coming %s of %s; base %s, %d requests in flight, %d waiting",
		level, l.told, unit.Bytes(inUse).Human(), unit.Bytes(all.Fresh).Human(), unit.Bytes(all.Coming).Human(),
		unit.Bytes(limits.Limit), unit.Bytes(t.Base).Human(), all.Streams, all.Queue.Waiting)
	l.told, l.toldAt = level, now
	return event
}
