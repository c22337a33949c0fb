package guard

import (
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/idle"
	"github.com/highwater-envoy/highwater/internal/linger"
	"github.com/highwater-envoy/highwater/internal/polling"
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
	leaving   linger.Sum  // what was evicted
	evictable []candidate // of one key, while it is decided who goes
	keys      *fairness.Keys[keyed]
	guards    []*Guard // that requests come to
	shares    shares
	sources   int // connections that are told apart by their source
	heavyKeys int // of all keys, how many have large responses
	proofs
	residual []*Connection // with an ended response that may be unread
	idle     idle.List[Connection]
	settled  Time
	back     retryafter.Desk
	futile   futile

	tracer    tracer
	polls     bool
	poll      polling.Poll
	telling   telling
	enforcing bool // see SetEnforcing
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
	w.idle.Init()
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
		a.Event = w.telling.next()
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

// SetVM notes the memory of this worker's virtual machine, bytes.
func (w *Worker) SetVM(n int64) { w.account.SetVM(n) }
