package guard

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/linger"
	"github.com/highwater-envoy/highwater/internal/retryafter"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// Time is a reading of the host's CLOCK_MONOTONIC, the same for all workers of a process.
type Time = budget.Time

// Worker is what one worker (in Envoy: one virtual machine) keeps: its account, its waiting line
// and its connections. The Guards of all plugins in it share it. It is not safe for concurrent use.
type Worker struct {
	account *budget.Account
	random  func() float64

	policy
	pace

	queue
	rejects
	leaving   linger.Sum // what was evicted
	hungry    []candidate
	keys      *fairness.Keys[keyed]
	guards    []*Guard // that requests come to
	shares    shares
	stirred   bool // there was something to share out since the last exchange of shares
	sources   int  // connections that are told apart by their source
	largeKeys int  // of them, how many have large responses
	proofs
	residual []*Connection // with an ended response that may be unread
	idle     idle
	settled  Time
	back     retryafter.Desk
	futile   futile

	tracer    tracer
	polls     bool
	asking    Time // when the outstanding reading was asked for; 0 = none is outstanding
	asked     Time
	every     Time         // from one reading to the next
	failure   error        // of the last reading; nil = it came
	enforcing bool         // see SetEnforcing
	unlimited bool         // told that the limit is a share of what is not known
	logged    budget.Level // the last one told
	loggedAt  Time
	actions   Actions
	counts    [NumCounters]uint64
}

// NewWorker returns a worker without a configuration: give it one with Use. random returns numbers
// in [0, 1). The error is the store's.
func NewWorker(store budget.Store, random func() float64) (*Worker, error) {
	account, err := budget.NewAccount(store, budget.Limits{})
	if err != nil {
		return nil, fmt.Errorf("join the other workers: %w", err)
	}
	w := &Worker{account: account, random: random, keys: fairness.NewKeys[keyed]()}
	w.policy.limits = account.Limits()
	account.Watch(w.mark)
	w.idle.ring.before, w.idle.ring.behind = &w.idle.ring, &w.idle.ring
	return w, nil
}

// Account is the worker's part of the books, to look at.
func (w *Worker) Account() *budget.Account { return w.account }

// Counts are the worker's counters, by index of Counters.
func (w *Worker) Counts() *[NumCounters]uint64 {
	w.counts[CountContention] = w.account.Contention
	return &w.counts
}

// HostError counts a call of the host that failed.
func (w *Worker) HostError() { w.counts[CountHostErrors]++ }

// Actions is what Tick wants done. It is valid until the next Tick.
type Actions struct {
	Resume   *Stream // continue it; at most one per call of the host: more would crash Envoy
	Waited   unit.Duration
	Rejected []Decision    // or evicted
	Close    []*Stream     // close their connections
	Cut      []*Connection // close them: what ended responses left there is evicted
	Idle     []*Connection // close them: there is no stream on them
	Ask      bool          // ask for a reading now
	Polls    bool          // this worker asks for readings and publishes the gauges
	Next     time.Duration // tick again after so long: FastTick, SlowTick or one between
	Event    string        // to be logged; empty = nothing
}

// Decision is a verdict on a stream that had been waiting.
type Decision struct {
	Stream  *Stream
	Verdict Verdict
}

// Tick does what is due: call it first Tick after the start, then after Actions.Next, and Tick
// after Wake at the latest.
func (w *Worker) Tick(now Time) *Actions {
	a := &w.actions
	*a = Actions{Rejected: a.Rejected[:0], Close: a.Close[:0], Cut: a.Cut[:0], Idle: a.Idle[:0]}
	if w.rested = w.mayRest(now); w.rested {
		a.Polls, a.Next = w.polls, Tick
		return a
	}
	w.ticks++
	w.left.Expire(now)
	w.leaving.Expire(now)
	w.settle(now)
	w.forgetCold(now)
	if s := w.credited; s != nil {
		w.credited = nil
		w.account.Uncredit(now, &s.Stream)
	}
	w.back.Admitted.Pass(now, w.line.Len() > 0 || w.account.Others().Waiting > 0)
	w.publish()
	polls, err := w.account.Tick(now)
	if err != nil {
		w.HostError()
	}
	w.polls, a.Polls = polls, polls
	w.doubtPresumed(now)
	w.sample(now)
	w.share(now)
	if !w.evict(now, a) {
		w.serve(now, a)
	}
	w.close(a)
	w.closeIdle(now, a)
	if polls {
		a.Ask, a.Event = w.schedule(now), w.tellBlind(now)
	}
	if a.Event == "" {
		a.Event, w.idle.event = w.idle.event, ""
	}
	if w.works() {
		w.active = now
	}
	a.Next = w.due(now)
	w.Sleeps = a.Next > Tick
	return a
}

// publish hands what the line and the rejects hold to the account.
func (w *Worker) publish() {
	w.account.SetWaiting(int64(w.line.Len()), w.held, w.line.Since())
	w.account.SetRate(w.line.Bytes(), w.back.Admitted.PerSecond())
	w.account.SetLeft(w.left.Bytes())
	w.account.SetLeaving(w.leaving.Bytes())
}

// A reading costs Envoy as much as two requests. It is worth that where what is only bounded, fresh
// and coming, is more than 1/32 of the limit. Where it is fresh alone, and less than an eighth of
// what is free under hard, it decides nothing yet, and half as many do: downloads are so. A burst
// of uploads is coming first, and with half as many readings more of it found no room in line. What
// is reserved for presumed responses is left out: it may never come, and what has come is fresh.
// And where those are all that is in flight, but for the one that each worker judges, half as many
// do again: as long as memory is calm they decide nothing.
const (
	unsureShare   = 32
	decidingShare = 8
)

const askTimeout = 900 * time.Millisecond

// schedule says whether a reading is to be asked for.
func (w *Worker) schedule(now Time) bool {
	if w.asking != 0 && now-w.asking < askTimeout+100*time.Millisecond {
		return false
	}
	t := w.account.Table()
	all := t.Sum()
	every := Time(w.memory.IdleInterval)
	coming, deciding, often := all.Coming-all.Presumed, max(w.account.Share(w.limits.Hard)-t.Reading, 0)/decidingShare, 2*Time(w.memory.Interval)
	if judged := all.Streams - all.PresumedStreams; all.PresumedStreams > 0 && judged <= int64(len(t.Entries)) && w.account.Calm(now) {
		deciding, often = w.limits.Limit, 2*often
	}
	switch unsure := all.Fresh + coming; {
	case all.Waiting > 0, t.Sequence == 0, t.Level >= budget.Hard, coming > w.limits.Limit/unsureShare, unsure > deciding:
		every = Time(w.memory.Interval)
	case unsure > w.limits.Limit/unsureShare:
		every = min(every, often)
	}
	w.every = every
	if w.asked != 0 && now-w.asked < every-every/8 { // a tick that comes a little early is the one
		return false
	}
	w.asked, w.asking = now, now
	return true
}

// AskTimeout is how long to wait for the answer to a reading.
func (w *Worker) AskTimeout() unit.Duration { return unit.Duration(askTimeout) }

// logEvery: a level that swings with a flood is told once a second at most.
const logEvery = time.Second

// Observe takes the answer to what Tick asked for: the reading, or why there is none. It returns
// what is to be logged, if anything.
func (w *Worker) Observe(now Time, r Reading, failure error) (event string) {
	asked := w.asking
	w.asking = 0
	if failure != nil {
		w.counts[CountFailedReadings]++
		w.failure = failure
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
	w.failure = nil
	if blind {
		event = fmt.Sprintf("readings of Envoy's memory are back after %v. ", roughly(age))
	}
	switch known := w.limits.Known() > 0; {
	case !known && !w.unlimited:
		w.unlimited = true
		event += fmt.Sprintf("budget.limit is %v of the container's limit, which the answer of %s does not tell: until it does everything is admitted. Let highwater serve answer it, and beside an Envoy with a limit; or write a size. ",
			w.budget.Limit, w.memory.Path)
	case known && w.unlimited:
		w.unlimited = false
		event += fmt.Sprintf("budget.limit is %v: %s. ", w.budget.Limit, unit.Bytes(w.limits.Limit).Human())
	}
	if level != w.logged && now-w.loggedAt >= logEvery {
		t := w.account.Table()
		all := t.Sum()
		event += fmt.Sprintf("level %v, was %v: in use %s + fresh %s + coming %s of %s; base %s, %d requests in flight, %d waiting",
			level, w.logged, unit.Bytes(r.InUse).Human(), unit.Bytes(all.Fresh).Human(), unit.Bytes(all.Coming).Human(),
			unit.Bytes(w.limits.Limit), unit.Bytes(t.Base).Human(), all.Streams, all.Waiting)
		w.logged, w.loggedAt = level, now
	}
	return event
}

// SetVM notes the memory of this worker's virtual machine, bytes.
func (w *Worker) SetVM(n int64) { w.account.SetVM(n) }

// Gauges are the figures of the process, by index of Gauges.
func (w *Worker) Gauges(now Time) (g [NumGauges]int64) {
	t := w.account.Table()
	all := t.Sum()
	g[GaugeEstimate] = t.Reading + all.Fresh + all.Coming
	g[GaugeInUse], g[GaugeAllocated], g[GaugePeak] = t.InUse, t.Allocated, t.Peak
	g[GaugeFresh], g[GaugeComing] = all.Fresh, all.Coming
	g[GaugeLimit], g[GaugeBase], g[GaugeSurprise], g[GaugeExposure] = w.limits.Known(), t.Base, t.Surprise, all.Exposure
	g[GaugeLevel] = int64(t.Level)
	if t.Futile {
		g[GaugeFutile] = 1
	}
	g[GaugeStreams], g[GaugeWaiting], g[GaugeConnections] = all.Streams, all.Waiting, all.Connections
	g[GaugeVM], g[GaugeLeaving] = all.VM, all.Leaving
	age := w.readingAge(now)
	g[GaugeReadingAge] = age.Milliseconds()
	if age >= blindAfter {
		g[GaugeBlind] = 1
	}
	if w.enforcing {
		g[GaugeEnforcing] = 1
	}
	return g
}

// KeyUse is what a key has on this worker, bytes.
type KeyUse struct {
	Name    string  `json:"name"`
	Weight  float64 `json:"weight"`
	Coming  int64   `json:"coming"`
	Likely  int64   `json:"likely"`
	Waiting int64   `json:"waiting"` // what those in line are expected to bring
}

// OtherKey is the name of all that are not told apart.
const OtherKey = "(other)"

// Keys are the worker's keys as of now; all that are not told apart are one, and first.
func (w *Worker) Keys() []KeyUse {
	var all []KeyUse
	w.eachKey(func(k *key) {
		name := k.Name.Value
		if k == &w.keys.Other {
			name = OtherKey
		}
		all = append(all, KeyUse{Name: name, Weight: k.Weight, Coming: k.Value.Coming, Likely: k.Value.Likely, Waiting: k.Value.queue.Bytes()})
	})
	return all
}
