package guard

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/fairness"
	"github.com/highwater-envoy/highwater/internal/linger"
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

	line      fairness.Line[Stream]
	held      int64   // pause cost of those in line
	resumed   bool    // the last tick that served them resumed one
	credited  *Stream // the one resumed since the last tick
	closing   []*Stream
	left      linger.Sum // what rejected requests left unread
	leaving   linger.Sum // what was evicted
	hungry    []candidate
	keys      *fairness.Keys[keyed]
	guards    []*Guard // that requests come to
	shares    shares
	stirred   bool          // there was something to share out since the last exchange of shares
	sources   int           // connections that are told apart by their source
	largeKeys int           // of them, how many have large responses
	cold      []*Stream     // cold requests that went as probes or when nothing was known, and some that were answered since
	probing   int64         // what their responses may hold and is not reserved
	residual  []*Connection // with an ended response that may be unread
	idle      idle
	settled   Time
	drain     rate
	early     uint64  // requests that met a line that is nearly too long
	crowd     Time    // when those who were told the longest delay and more could have been admitted; past = there is no crowd
	alone     *Stream // while shedding is futile: the one large request that is let in
	letIn     Time    // when the last that was let in for it ended: the next one needs a reading asked for after that

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

// rate is what this worker admits per second while somebody waits: when nobody does, what is
// admitted is what is asked for, and says nothing. It forgets with a time constant of 5 s of such
// time.
type rate struct {
	bytes, seconds float64
	at             Time // as of when
}

func (r *rate) add(n int64) { r.bytes += float64(n) }

// pass lets the time pass, a tenth of a second at a time: else each tick would have something to
// publish.
func (r *rate) pass(now Time, waiting bool) {
	if !waiting || r.at == 0 {
		r.at = now
		return
	}
	if now-r.at < rateEvery {
		return
	}
	d := (now - r.at).Seconds()
	keep := math.Exp(-d / rateOver.Seconds())
	r.bytes, r.seconds, r.at = r.bytes*keep, r.seconds*keep+d, now
}

// known says that it is of a second at least.
func (r *rate) known() bool { return r.seconds >= 1 }

// perSecond is of a second at least: what has just begun is no rate yet.
func (r *rate) perSecond() int64 { return int64(r.bytes / max(r.seconds, 1)) }

const (
	rateOver  = 5 * time.Second
	rateEvery = 100 * time.Millisecond
)

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
	w.drain.pass(now, w.line.Len() > 0 || w.account.Others().Waiting > 0)
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
	w.account.SetRate(w.line.Bytes(), w.drain.perSecond())
	w.account.SetLeft(w.left.Bytes())
	w.account.SetLeaving(w.leaving.Bytes())
}

// serve resumes one of those who wait, or rejects those who have waited too long, by turns where
// both is due. One call of the host must not do both: Envoy, which runs what the resumed request
// has sent nested in that call, crashed where it rejected others of the same HTTP/2 connection.
func (w *Worker) serve(now Time, a *Actions) {
	if w.line.Len() == 0 {
		return
	}
	if !w.resumed || w.line.Overdue(now, Time(w.throttle.Timeout)) == nil {
		if a.Resume, a.Waited = w.Resume(now); a.Resume != nil {
			w.resumed = true
			return
		}
	}
	w.resumed = false
	for {
		next := w.line.Overdue(now, Time(w.throttle.Timeout))
		if next == nil {
			break
		}
		s := next.Value
		waited := unit.Duration(now - next.Since)
		v := s.guard.turnAway(now, s, Timeout)
		if s.shadow {
			continue
		}
		v.Waited = waited
		if v.Action == Answer {
			w.end(s.connection)
		}
		a.Rejected = append(a.Rejected, Decision{s, v}) // if it is to be closed, close does that
	}
	w.publish()
}

// Resume takes the next who fits out of the line, and tells what it has waited; nil = there is
// none. Tick does it once; where more than one may be resumed in a call of the host, and nothing is
// seen of what comes while they wait, it may be called again after that.
func (w *Worker) Resume(now Time) (s *Stream, waited unit.Duration) {
	for {
		next := w.line.Next(now, rank, func(c *fairness.Waiter[Stream]) bool { return w.fits(now, c.Value) })
		if next == nil {
			return nil, 0
		}
		s = next.Value
		shadow := s.shadow
		w.leaveLine(s)
		s.guard.resume(now, s)
		w.publish()
		if !shadow {
			w.credited = s
			return s, unit.Duration(now - next.Since)
		}
	}
}

// end and mayCut keep the rules by which Envoy survives (ENVOY-FACTS: it crashes otherwise): in one
// call of the host, a stream is ended once, and who closes a connection has done nothing else to
// it. Whatever a tick ends goes through one of them. A stream that was ended is no longer live, and
// a connection that was closed is gone.
func (w *Worker) end(c *Connection) {
	if c != nil {
		c.endedIn = w.ticks
	}
}

// mayCut says that the connection may be closed in this tick, and notes that it will be.
func (w *Worker) mayCut(c *Connection) bool {
	if c.IsClosed || c.endedIn == w.ticks || c.cut == w.ticks {
		return false
	}
	c.cut = w.ticks
	return true
}

// close has the connections of those closed that get no answer. What may not be closed now is for
// the next tick.
func (w *Worker) close(a *Actions) {
	kept := w.closing[:0]
	for _, s := range w.closing {
		if s.shadow {
			w.vanish(s)
		} else if w.mayCut(s.connection) {
			a.Close = append(a.Close, s)
		} else if !s.connection.IsClosed {
			kept = append(kept, s)
		}
	}
	clear(w.closing[len(kept):])
	w.closing = kept
}

// earlyFrom: from this part of the timeout on, which the line will take, some are turned away at
// its end, and all where it takes all of it. Those who were told the same second come back in one
// instant. Where only a full line turned requests away, it was the last of them: a third to a half
// of those who came back, when it was a tenth of all.
const earlyFrom = .75

// turnsAwayEarly says whether the line is so long that the next is not to join it. It spreads those
// evenly over all that come, and only while promises are out and still made: where the queue of
// those told to come back is nearly full, whoever comes now does not obey, and an early reject only
// brings him back at once.
func (w *Worker) turnsAwayEarly(now Time) bool {
	out := w.account.Table().Booked - now
	if !w.drain.known() || out <= 0 || out > Time(w.reject.Max)/8*7 {
		return false
	}
	length := float64(w.line.Bytes()) / float64(max(w.drain.perSecond(), 1)) / Time(w.throttle.Timeout).Seconds()
	share := (length - earlyFrom) / (1 - earlyFrom)
	if share <= 0 {
		return false
	}
	w.early++
	_, golden := math.Modf(float64(w.early) * math.Phi)
	return golden < share
}

// fits tests a waiting request. One that is cold may be none any more, by what is known of its key
// now, or go as a probe.
func (w *Worker) fits(now Time, s *Stream) bool {
	if s.cold == 0 {
		return w.fitsWhole(now, s)
	}
	before := s.expects // as much as could fit alone
	s.guard.foresee(now, s, true)
	s.expects = min(s.expects, before)
	if s.cold == 0 || !w.mayProbe(now, s) {
		return w.fitsWhole(now, s)
	}
	expects := s.expects
	s.expects = 0
	if !w.fitsWhole(now, s) {
		s.expects = expects
		return false
	}
	w.probe(now, s)
	return true
}

// fitsWhole tests it without what is counted of it already: what was seen to come of it, or may
// come unseen.
func (w *Worker) fitsWhole(now Time, s *Stream) bool {
	n := s.total() - s.credit()
	if s.total() <= int64(w.budget.Small) {
		return w.claimSmall(now, s.key, n) != budget.Denied // what is awaited is not in the floor
	}
	n = max(n-s.Awaited(), 0)
	switch w.claim(now, s.key, n) {
	case budget.Granted:
		return true
	case budget.Denied:
		return w.futile(now, s, n)
	default:
		return false
	}
}

const (
	probeShare = 4               // probes may bring 1/4 of what traffic can have, all together
	coldFor    = 2 * time.Second // as long as what is reserved for a response that does not come
)

// mayProbe says whether a cold request may go to its upstream without room for what may come of it.
// Of a key with small responses and large ones nobody can tell whose this is; while large ones fill
// the memory, small ones get through by this. Each is over when its response's headers have come,
// so that few are enough for many. Where none was small yet, one goes now and then: most likely its
// upstream does the work for nothing. By turns it is one in line and one that has just come: behind
// a burst of large ones, who comes now may well be small, and in line would be found last, at its
// timeout.
func (w *Worker) mayProbe(now Time, s *Stream) bool {
	k, comes := &s.key.Value, s.phase != waiting
	switch {
	case k.heavy != 0 && k.lastSmall == 0:
		every := Tick
		if k.cameProbed == comes {
			every *= 2
		}
		if k.probing > 0 || now-k.probed < every {
			return false
		}
	case comes && k.queue.Len() > 0:
		return false
	}
	return w.probing == 0 || k.probing+s.cold <= w.account.Floor() && w.probing+s.cold <= w.account.Room()/probeShare
}

func (w *Worker) probe(now Time, s *Stream) {
	s.probing, s.expects = s.cold, 0
	s.key.Value.probed, s.key.Value.cameProbed = now, s.phase != waiting
	s.key.Value.probing += s.cold
	w.probing += s.cold
}

// admitCold notes that a cold request goes to its upstream.
func (w *Worker) admitCold(now Time, s *Stream) {
	if k := &s.key.Value; !k.responses.Learned() {
		s.unknown = s.cold
		k.unknown += s.cold
	}
	if s.unknown+s.probing > 0 {
		s.admitted = now
		w.cold = append(w.cold, s)
	}
}

// answered notes that the response of a request has come, or will not.
func (w *Worker) answered(s *Stream) {
	k := &s.key.Value
	k.unknown -= s.unknown
	k.probing -= s.probing
	w.probing -= s.probing
	s.unknown, s.probing = 0, 0
}

// forgetCold takes those whose upstream is slow for answered: they are no burst.
func (w *Worker) forgetCold(now Time) {
	w.cold = slices.DeleteFunc(w.cold, func(s *Stream) bool {
		if now-s.admitted >= coldFor {
			w.answered(s)
		}
		return s.unknown+s.probing == 0
	})
}

// futile lets large requests in while traffic is not what fills the memory: into the floor, and one
// at a time beside.
func (w *Worker) futile(now Time, s *Stream, n int64) bool {
	// What it left, unread in the codec, must be in the reading first: else one after the other
	// fills the memory.
	if t := w.account.Table(); !t.Futile || t.Asked <= w.letIn {
		return false
	}
	if w.account.Ask(now, n, budget.Floor) == budget.Granted {
		s.inFloor = true
		return true
	}
	if w.alone != nil {
		return false
	}
	w.alone = s
	w.account.Ask(now, n, budget.Forced)
	return true
}

func (w *Worker) leaveLine(s *Stream) {
	w.line.Leave(&s.waiter)
	w.held -= s.pauseCost
	if c := s.connection; c != nil {
		c.Waiting--
		c.window -= s.window
		if s.http2 {
			c.costs -= s.pauseCost
		}
		if c.paused == s {
			c.paused = nil
		}
	}
	s.phase = live
	w.publish()
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
