package main

// #include "abi.h"
import "C"

import (
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/introspect"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/metric"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// worker is one worker thread of Envoy.
type worker struct {
	index   uint32
	yielded budget.Time          // of its own thread alone
	chunks  [maxChunks]C.hw_text // likewise: of what is just read or written
	due     atomic.Int64
	posted  atomic.Bool // a tick is on its way to the thread

	mu struct {
		sync.Mutex
		policy  *guard.Worker
		streams slots[stream]
		links   slots[connection]
		byID    map[uint64]*connection // by Envoy's connection.id
		bare    map[uint64]*bare       // those that no network filter has
		metered []*connection          // with responses that are held
		arrived *connection            // on which bytes came last
		living  ring                   // connections and streams, on whose thread a tick may come
		anchor  anchor                 // the one on which it does
		looking introspect.Waiting[*stream]
		counted [metric.NumCounters]uint64
	}
}

func newWorker(index uint32, policy *guard.Worker) *worker {
	w := &worker{index: index}
	w.mu.policy = policy
	w.mu.byID, w.mu.bare = map[uint64]*connection{}, map[uint64]*bare{}
	w.mu.living.init()
	return w
}

// workerOf is the worker whose thread this is; nil = none of them is, as on Envoy's main thread.
func workerOf(index C.uint32_t) *worker {
	if int(index) < len(module.workers) {
		return module.workers[index]
	}
	return nil
}

// join makes a guard of a configuration.
func (w *worker) join(c guard.Config, changed *string) *guard.Guard {
	w.mu.Lock()
	defer w.mu.Unlock()
	g, text := guard.New(c, w.mu.policy)
	if *changed == "" {
		*changed = text
	}
	w.hurry(now(), guard.Tick)
	return g
}

func (w *worker) retire(g *guard.Guard) {
	w.mu.Lock()
	defer w.mu.Unlock()
	g.Retire()
}

func (w *worker) arm(enforcing bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.policy.SetEnforcing(enforcing)
}

// wake is for hooks of streams and connections: after a long time without either, ticks are rare.
// The caller has the lock, as in all that follows.
func (w *worker) wake(t budget.Time) {
	if w.mu.policy.Sleeps {
		w.mu.policy.Wake(t)
		w.hurry(t, guard.Tick)
	}
}

// lateAfter: a thread that has not come to a tick within so long is busy, and is not asked again
// before.
const lateAfter = guard.Tick

// tickSoon posts a tick to the worker's thread. Where that has no connection and no stream there is
// nothing to be done to any, and the tick is done here.
func (w *worker) tickSoon(t budget.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.due.Store(int64(t + lateAfter)) // the tick sets it, when it has come
	switch {
	case w.mu.living.empty():
		w.tick(t)
	case !w.posted.Swap(true):
		w.mu.anchor.post()
	}
}

// hwTick is a tick on the worker's own thread.
//
//export hwTick
func hwTick(index C.uint32_t) {
	defer survive()
	w := workerOf(index)
	w.posted.Store(false)
	t := now()
	w.yield(t)
	trapTick()
	todo, answers := w.ticks(t)
	todo.carryOut()
	for _, l := range answers {
		l.Stream.tell(l.Question)
	}
}

func (w *worker) ticks(t budget.Time) (todo todo, answers []introspect.Waiter[*stream]) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.tick(t)
}

// tick does what is due, and returns what is to be done without the lock, on the worker's thread.
func (w *worker) tick(t budget.Time) (todo todo, answers []introspect.Waiter[*stream]) {
	w.mu.streams.reuse()
	w.mu.links.reuse()
	for range module.faults.Swap(0) {
		w.mu.policy.HostError()
	}
	a := w.mu.policy.Tick(t)
	if a.Ask {
		module.reader.ask(w, t)
	}
	tellEvent(a.Event, a.Severity)
	todo.of(a)
	if a.Lower {
		todo.lower = w.lower()
	}
	todo.lost = w.doubtMeters()
	if w.mu.looking.Any() {
		answers = w.mu.looking.Ready(func(since budget.Time) bool { return w.mu.policy.Looked(t, since) })
	}
	if w.mu.looking.Any() {
		a.Next = guard.FastTick
	}
	module.metrics.publish(w, t, a.Polls)
	w.due.Store(int64(t + a.Next))
	return todo, answers
}

// todo is what a tick wants done.
type todo struct {
	resume   *stream
	verdict  guard.Verdict // of that
	rejected []rejected
	closes   []*stream // their connections
	cut      []*connection
	lower    []*connection // their buffer limits
	lost     []*connection // to metering
}

type rejected struct {
	stream  *stream
	verdict guard.Verdict
}

func (t *todo) of(a *guard.Actions) {
	if a.Resume != nil {
		t.resume, t.verdict = streamOf(a.Resume), guard.Verdict{Waited: a.Waited}
		module.metrics.waited(a.Waited)
	}
	for _, d := range a.Rejected {
		if d.Verdict.Waited > 0 {
			module.metrics.waited(d.Verdict.Waited)
		}
		t.rejected = append(t.rejected, rejected{streamOf(d.Stream), d.Verdict})
	}
	for _, s := range a.Close {
		t.closes = append(t.closes, streamOf(s))
	}
	for _, list := range [...][]*guard.Connection{a.Cut, a.Idle} {
		for _, c := range list {
			t.cut = append(t.cut, connectionOf(c))
		}
	}
}

// carryOut does it. What is done to one may end others of them: those are passed over, for they are
// not open any more.
func (t *todo) carryOut() {
	if s := t.resume; s != nil && s.open() {
		s.mark(t.verdict)
		s.letOn()
		C.envoy_dynamic_module_callback_http_filter_continue_decoding(s.c.envoy)
	}
	for _, r := range t.rejected {
		if r.stream.open() {
			r.stream.carryOut(r.verdict)
		}
	}
	for _, s := range t.closes {
		if s.open() && (s.known == nil || !s.known.close()) {
			s.carryOut(guard.Verdict{Action: verdict.Answer, Reason: verdict.Closed}) // it must not hang for ever
		}
	}
	for _, c := range t.cut {
		c.close()
	}
	t.carryOutBuffers()
}

func (t *todo) carryOutBuffers() {
	for _, c := range t.lower {
		if c.isOpen() {
			c.setLimit(c.Read)
		}
	}
	for _, c := range t.lost {
		if c.isOpen() {
			c.lose()
		}
	}
}

// observe hands over a reading, or why there is none.
func (w *worker) observe(t budget.Time, r memory.Reading, err error) {
	if event := w.mu.policy.Observe(t, r, err); event != "" {
		logf(C.HW_LOG_WARNING, "%s", event)
	}
}

// anchor is what a tick comes to a thread by: a scheduler of a filter that lives there.
type anchor struct {
	at        *node
	scheduler unsafe.Pointer
	ofStream  bool
}

func (a *anchor) post() {
	if a.ofStream {
		C.envoy_dynamic_module_callback_http_filter_scheduler_commit(a.scheduler, 0)
	} else {
		C.envoy_dynamic_module_callback_network_filter_scheduler_commit(a.scheduler, 0)
	}
}

// drop lets a filter end that the anchor is at.
func (a *anchor) drop() {
	if a.ofStream {
		C.envoy_dynamic_module_callback_http_filter_scheduler_delete(a.scheduler)
	} else {
		C.envoy_dynamic_module_callback_network_filter_scheduler_delete(a.scheduler)
	}
	*a = anchor{}
}

// node is a place in the ring of those that live on a thread.
type node struct {
	before, behind *node
	filter         unsafe.Pointer // in Envoy
	ofStream       bool
}

// ring has connections first, for they live longer.
type ring struct{ node }

func (r *ring) init()       { r.before, r.behind = &r.node, &r.node }
func (r *ring) empty() bool { return r.behind == &r.node }

// begin adds one whose filter has begun to live, on its own thread.
func (w *worker) begin(n *node, filter unsafe.Pointer, ofStream bool) {
	n.filter, n.ofStream = filter, ofStream
	after := &w.mu.living.node
	if ofStream {
		after = after.before
	}
	n.before, n.behind = after, after.behind
	n.before.behind, n.behind.before = n, n
	if w.mu.anchor.at == nil {
		w.anchorAt(n)
	}
}

// end removes it again. Where a tick was on its way by its filter, another is posted: Envoy drops
// that of a filter that has gone.
func (w *worker) end(n *node) {
	n.before.behind, n.behind.before = n.behind, n.before
	n.before, n.behind = nil, nil
	if w.mu.anchor.at != n {
		return
	}
	w.mu.anchor.drop()
	posted := w.posted.Swap(false)
	if w.mu.living.empty() {
		return
	}
	w.anchorAt(w.mu.living.behind)
	if posted {
		w.posted.Store(true)
		w.mu.anchor.post()
	}
}

func (w *worker) anchorAt(n *node) {
	w.mu.anchor = anchor{at: n, ofStream: n.ofStream}
	if n.ofStream {
		w.mu.anchor.scheduler = C.envoy_dynamic_module_callback_http_filter_scheduler_new(n.filter)
	} else {
		w.mu.anchor.scheduler = C.envoy_dynamic_module_callback_network_filter_scheduler_new(n.filter)
	}
}

// slots are the parts in Go of what C has. C names them by their place, so that it keeps no pointer
// into Go's memory. A place is free again after the next tick: until then what has ended may be in
// that one's hands.
type slots[T any] struct {
	all  []*T
	free []uint32
	done []uint32
}

// put gives v a place.
func (s *slots[T]) put(v *T) (place uint32) {
	if n := len(s.free); n > 0 {
		place = s.free[n-1]
		s.free = s.free[:n-1]
		s.all[place] = v
		return place
	}
	s.all = append(s.all, v)
	return uint32(len(s.all) - 1)
}

// take is what was in a free place, to be used again, or a new one.
func (s *slots[T]) take() (place uint32, v *T) {
	if n := len(s.free); n > 0 {
		v = s.all[s.free[n-1]]
	} else {
		v = new(T)
	}
	return s.put(v), v
}

func (s *slots[T]) give(place uint32) { s.done = append(s.done, place) }

func (s *slots[T]) reuse() {
	s.free = append(s.free, s.done...)
	s.done = s.done[:0]
}
