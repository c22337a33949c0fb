package guard

import (
	"fmt"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/events"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/idle"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/retryafter"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Time is a reading of the host's CLOCK_MONOTONIC, the same for all workers of a process.
type Time = budget.Time

// Worker is what one worker (in Envoy: one virtual machine) keeps: its account, its queue, its keys
// and its connections. The Guards of all plugins in it share it. It is not safe for concurrent use.
//
// Requests are judged as they come, by Guard.Open and what follows it. All else is done by Tick, in
// an order in which each step finds what it goes by:
//
//  1. What passes by itself passes: bytes that lingered, responses that were unread, reservations
//     for what did not come. It is this worker's own, and the others are told of it in step 2.
//  2. The account meets the others. From here on the table is the newest that this worker knows,
//     and all that follows decides by it. It also says who polls.
//  3. What was presumed while memory was calm is judged, if it is calm no more. It has its room
//     already, so that it goes before whoever asks for some now.
//  4. The sample is frozen, if a peak was seen, before anything ends that made it.
//  5. Shares are exchanged, before somebody is evicted or resumed by them.
//  6. Somebody is evicted, or else resumed or rejected after his timeout, never both. What is over
//     the limit has no room to give; and one call of the host that resumes a request must not end
//     another of the same connection, or Envoy crashes.
//  7. Connections are closed: those of rejected requests, to which step 6 may have added, and idle
//     ones. Neither is one on which this tick ended a stream; those wait for the next.
//  8. A reading is asked for last, so that it holds what this tick let in.
//  9. What is left to do says when the next tick is due.
type Worker struct {
	account *budget.Account
	random  func() float64
	policy
	pace

	queue
	rejects
	proofs           // of requests whose responses nothing is known of
	futile    futile // large requests while shedding is futile
	back      retryafter.Desk
	leftovers // of ended requests
	evictions
	keyring
	idle idle.List[Connection]
	trials
	raws raws

	reader
	tracer  tracer
	telling events.Log
	actions Actions
	counts  [metric.NumCounters]uint64
}

// NewWorker returns a worker without a configuration: give it one with Use. random returns numbers
// in [0, 1). The error is the store's.
func NewWorker(store budget.Store, random func() float64) (*Worker, error) {
	account, err := budget.NewAccount(store, budget.Limits{})
	if err != nil {
		return nil, fmt.Errorf("join the other workers: %w", err)
	}
	w := &Worker{account: account, random: random}
	w.limits, w.keys = account.Limits(), fairness.NewKeys[keyed]()
	account.Watch(w.mark)
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

// HostError counts a call of the host that failed.
func (w *Worker) HostError() { w.counts[metric.CountHostErrors]++ }

// Actions is what Tick wants done. It is valid until the next Tick.
type Actions struct {
	Resume   *Stream // continue it; at most one per call of the host: more would crash Envoy
	Waited   unit.Duration
	Rejected []Decision      // or evicted
	Close    []*Stream       // close their connections
	Cut      []*Connection   // close them: what ended responses left there is evicted, or they are raw and hold most
	Idle     []*Connection   // close them: there is no stream on them
	Ask      bool            // ask for a reading now
	Polls    bool            // this worker asks for readings and publishes the gauges
	Next     time.Duration   // tick again after so long: FastTick, SlowTick or one between
	Event    string          // to be logged; empty = nothing
	Severity events.Severity // of that
}

// Decision is a verdict on a stream that had been waiting.
type Decision struct {
	Stream  *Stream
	Verdict Verdict
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
	w.pass(now)
	w.meet(now)
	w.doubtPresumed(now)
	w.sample(now)
	w.share(now)
	if !w.evict(now, a) {
		w.serve(now, a)
	}
	w.close(a)
	w.closeLate(a)
	w.closeIdle(now, a)
	w.ask(now, a)
	w.plan(now, a)
	return a
}

// empty makes room for the actions of the next tick.
func (a *Actions) empty() *Actions {
	*a = Actions{Rejected: a.Rejected[:0], Close: a.Close[:0], Cut: a.Cut[:0], Idle: a.Idle[:0]}
	return a
}

// pass lets pass what does so by itself.
func (w *Worker) pass(now Time) {
	w.left.Expire(now)
	w.leaving.Expire(now)
	w.settle(now)
	w.forgetCold(now)
	w.learnRaws(now)
	w.uncredit(now)
	w.back.Admitted.Pass(now, w.line.Len() > 0 || w.account.Others().Queue.Waiting > 0)
}

// meet tells the others what this worker has, and learns what they have.
func (w *Worker) meet(now Time) {
	w.publish()
	polls, err := w.account.Tick(now)
	if err != nil {
		w.HostError()
	}
	w.polls = polls
	w.learnLapses(now)
}

// publish hands what the line and the rejects hold to the account.
func (w *Worker) publish() {
	w.account.SetWaiting(int64(w.line.Len()), w.held, w.come, w.line.Since())
	w.account.SetRate(w.line.Bytes(), w.back.Admitted.PerSecond())
	w.account.SetLeft(w.left.Bytes())
	w.account.SetLeaving(w.leaving.Bytes())
}

// LargeRead is how much a client has to send at once for its face to call Mark, bytes, where Drains
// says so. A pass of Envoy's event loop in which many do may take a third of a second, and several
// readings come in it.
const LargeRead = 64 << 10

// Drains says that what passes has lately not stayed: what a reading has of it is worth to be told.
func (w *Worker) Drains() bool { return w.account.Table().Drains() }

// Mark has what passes from now on be told from what has passed before. Unlike elsewhere now has to
// be the time, and not that of the last tick.
func (w *Worker) Mark(now Time) { w.account.Mark(now) }

// SetVM notes the memory of this worker's virtual machine, bytes.
func (w *Worker) SetVM(n int64) { w.account.SetVM(n) }

// pace says when a worker's next tick is due.
//
// What the others know of a worker, and it of them, is a tick old, so that ticks must come often
// while there is anything to know. But a tick of an idle machine costs some 0.2 ms of CPU, most of
// it to wake up: 40 a second and worker cost as much as 300 requests. So a worker ticks fast while
// somebody waits, and slower the less there is to do; and a tick may rest, which is to do nothing.
type pace struct {
	_ [0]func() // no two are compared: the function that could would only take room in the .wasm

	ticks  uint64 // those that did not rest
	rested bool   // the last tick was none
	active Time   // when there was last something to do
	judged uint64 // the tick since which one was judged that could be presumed
	Sleeps bool   // the next tick comes late: Wake it, where a connection or a request begins or bytes come
}

// How long it is from one tick to the next.
const (
	FastTick = 2 * time.Millisecond   // while somebody waits or is to be closed: one is resumed per tick
	Tick     = 25 * time.Millisecond  // else
	CalmTick = 50 * time.Millisecond  // where this one has no request: the one who polls, as long as no reading is due before
	SlowTick = 500 * time.Millisecond // and where this one has had none for calmAfter: the others
)

// calmAfter is how long a worker without requests ticks on: between two requests the host is not
// called for the sake of ticks.
const calmAfter = time.Second // TestAnIdleWorkerTicksSeldom

// Wake says that there is work again, where Sleeps is true: the next tick is due after Tick at the
// latest.
func (p *pace) Wake(now Time) { p.Sleeps, p.active = false, now }

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
	return own.Streams > 0 || own.Fresh > 0 || len(w.residual) > 0 || w.left.Bytes() > 0 || w.leaving.Bytes() > 0 || w.account.Table().Level > budget.Normal
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
	add("unexplained_bytes", max(t.InUse-t.Base-likely, 0))
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
