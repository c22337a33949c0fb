package guard

import (
	"fmt"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/events"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/polling"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// NewWorker returns a worker without a configuration: give it one with Use. random returns numbers
// in [0, 1). The error is the store's.
func NewWorker(store budget.Store, random func() float64) (*Worker, error) {
	account, err := budget.NewAccount(store, budget.Limits{})
	if err != nil {
		return nil, fmt.Errorf("join the other workers: %w", err)
	}
	w := &Worker{account: account, random: random}
	w.limits, w.keys = account.Limits(), fairness.NewKeys[keyed]()
	account.Watch(w.noteHighWater)
	w.idle.Init()
	return w, nil
}

// Account is the worker's part of the books, to look at.
func (w *Worker) Account() *budget.Account { return w.account }

// InForce is the limit by which is decided, bytes; 0 = it is a share of what is not known yet.
func (w *Worker) InForce() int64 {
	if w.limits.Known() == 0 {
		return 0
	}
	return w.account.InForce()
}

// Counts are the worker's counters, by index of Counters.
func (w *Worker) Counts() *[metric.NumCounters]uint64 {
	w.counts[metric.CountContention] = w.account.Contention
	return &w.counts
}

// Tick does what is due: call it first Tick after the start, then after Actions.Next, and Tick
// after Wake at the latest.
func (w *Worker) Tick(now Time) *Actions {
	a := w.actions.empty()
	if w.rested = w.mayRest(now); w.rested {
		a.Polls, a.Next = w.polls, Tick
		return a
	}
	w.ticks++
	w.expire(now)
	w.exchange(now)
	w.doubtPresumed(now)
	w.sample(now)
	w.share(now)
	if !w.evict(now, a) {
		w.serve(now, a)
	}
	w.close(a)
	w.closeLate(a)
	w.closeIdle(now, a)
	w.lower(a)
	w.ask(now, a)
	w.plan(now, a)
	return a
}

// empty makes room for the actions of the next tick.
func (a *Actions) empty() *Actions {
	*a = Actions{Rejected: a.Rejected[:0], Close: a.Close[:0], Cut: a.Cut[:0], Idle: a.Idle[:0]}
	return a
}

// expire drops what time alone ends: bytes that lingered, unread responses, credit.
func (w *Worker) expire(now Time) {
	w.rejectedUnread.Expire(now)
	w.leaving.Expire(now)
	w.settle(now)
	w.learnRaws(now)
	w.learnOpenEnded(now)
	w.uncredit(now)
	w.back.Admitted.Pass(now, w.line.Len() > 0 || w.account.Others().Queue.Waiting > 0)
}

// exchange tells the others what this worker has, and learns what they have.
func (w *Worker) exchange(now Time) {
	w.publish()
	polls, err := w.account.Tick(now)
	if err != nil {
		w.HostError()
	}
	w.polls = polls
	w.exchangePrices(now)
	w.learnLapses(now)
}

// LargeRead is how much a client has to send at once for its face to call Mark, bytes, where Marks
// says so. A pass of Envoy's event loop in which many do may take a third of a second, and several
// readings come in it.
const LargeRead = 64 << 10

// Marks says whether Mark is worth a look at the clock.
func (w *Worker) Marks() bool { return w.account.Marks() }

// Mark has what passes from now on be told from what has passed before. Unlike elsewhere now has to
// be the time, and not that of the last tick.
func (w *Worker) Mark(now Time) { w.account.Mark(now) }

// SetVM notes the memory of this worker's virtual machine, bytes.
func (w *Worker) SetVM(n int64) { w.account.SetVM(n) }

// calmAfter is how long a worker without requests ticks on: between two requests the host is not
// called for the sake of ticks.
const calmAfter = time.Second // TestAnIdleWorkerTicksSeldom

// mayRest says that this tick may pass: every other may while memory is calm and all in flight are
// presumed. Nothing is known of those, and nobody has to know more than what they have leased.
func (w *Worker) mayRest(now Time) bool {
	own := w.account.Own()
	return !w.rested && own.Presumed.Streams > 0 && own.Presumed.Streams == own.Streams && w.account.Calm(now)
}

// plan sets when the next tick is due.
func (w *Worker) plan(now Time, a *Actions) {
	if w.works() {
		w.active = now
	}
	a.Next = w.due(now)
	w.Sleeps = a.Next > Tick
}

// works says that there is something on this worker that has to be watched.
func (w *Worker) works() bool {
	own := w.account.Own()
	return own.Streams > 0 || own.Fresh > 0 || len(w.residual) > 0 || w.rejectedUnread.Bytes() > 0 || w.leaving.Bytes() > 0 || w.account.Table().Level > budget.Normal
}

// due is how long it is to the next tick.
func (w *Worker) due(now Time) time.Duration {
	switch {
	case w.line.Len() > 0 || len(w.closing) > 0 || len(w.raws.late) > 0:
		return FastTick
	case now-w.active < calmAfter, w.polls && w.poll.Every() < CalmTick && w.account.Others().Streams > 0:
		return Tick
	case w.polls:
		return CalmTick
	}
	return SlowTick
}

// Status are the figures of the process, beginning with who likely holds its memory. They are the
// same whichever worker tells them.
func (w *Worker) Status(now Time, add func(name string, value int64)) {
	if w.account.Refresh(now) != nil {
		w.HostError() // what it knows is half a second old at most
	}
	t := w.account.Table()
	all, m := t.Sum(), w.marks(t)
	likely := all.Likely + all.Queue.Held
	if !w.enforcing { // nobody is paused, and those who would be are shadows
		likely = all.Likely + all.Shadows.Likely
	}
	add("likely_held_bytes", likely)
	add("bounds_bytes", max(all.Bounds+all.Queue.Held, likely))
	priced := w.priced()
	add("priced_bytes", priced)
	add("unexplained_bytes", max(t.InUse-t.Base-likely-priced, 0))
	add("workers", int64(len(t.Entries)))
	add("peaks", m.Episode)
	gauges := w.Gauges(now)
	for i, g := range metric.Gauges() {
		if i == metric.GaugeLevel {
			continue // it has a name
		}
		add(strings.TrimPrefix(g.Name, "highwater_"), gauges[i])
	}
}

// ask asks for a reading, if it is time to, and picks what is to be logged. One worker asks for all
// (budget/tick.go, refreshAll says which); how often package polling says.
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
	notExempt := all.Streams - all.Presumed.Streams
	return polling.Figures{
		Urgent:   all.Queue.Waiting > 0 || t.Sequence == 0 || t.Level >= budget.Hard,
		Fresh:    all.Fresh,
		Coming:   all.Coming - all.Presumed.Bytes,
		Limit:    w.limits.Limit,
		Free:     max(w.account.Share(w.limits.Hard)-t.Reading, 0),
		Presumed: all.Presumed.Streams > 0 && notExempt <= int64(len(t.Entries)) && w.account.Calm(now),
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
	w.learnPrices(now, r.InUse)
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
