// Package extproc is Highwater's face beside Envoy: a gRPC server for Envoy's ext_proc filter. All
// policy is in internal/guard; here it is asked, and what it says is done. A stream of gRPC is one
// request of HTTP: it stays open, and mostly silent, for as long as that lives.
//
// Where is what:
//
//	server.go   Server: workers, ticks, configuration, and what to do once where Envoy does not
//	            send bodies that it was asked for, or tell of responses (package coverage shows it)
//	grpc.go     the gRPC server and its bounds; codec.go decodes within bounds
//	stream.go   a request: what is kept of it, how it is held, answered and ended, panics
//	judge.go    which message may come when, what the guard is asked at each, what its verdict does
//	answers.go  the answers as they are sent; traits.go attributes and headers of a request
//	host.go     what the guard asks about a request
//	metrics.go, admin.go  what is told over HTTP
package extproc

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/coverage"
	"github.com/highwater-envoy/highwater/internal/events"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// Reader asks for what Envoy's memory is. Ask returns at once and calls answer once, with what is
// asked for from then on, or why there is none.
type Reader interface {
	Ask(answer func(memory.Reading, error))
}

// Server answers the ext_proc filters of one Envoy. Make it with New.
type Server struct {
	log             *slog.Logger
	origin, started time.Time
	wake            chan time.Duration // have the next tick come after so long at the latest
	counts          counts
	coverage        coverage.Coverage // what the filter tells of requests
	once            onces
	orders          sync.WaitGroup // that are being carried out

	mu struct { // guards the policy: neither worker nor guards are safe for concurrent use
		sync.Mutex
		worker      *guard.Worker
		guard       *guard.Guard
		observing   *guard.Guard // for filters in observability mode, which can't carry a verdict out
		connections map[uint64]*guard.Connection
		streams     map[*stream]struct{} // all that there are
		reader      Reader
		draining    bool
		asked       time.Time // when the last reading came
	}
}

// New returns a server with a valid configuration. Nothing happens until Run.
func New(c guard.Config, reader Reader, log *slog.Logger) (*Server, error) {
	s := &Server{
		log: log, started: time.Now(),
		origin: time.Now().Add(-time.Hour), // far from 0, which means never
		wake:   make(chan time.Duration, 1),
	}
	s.counts.init()
	worker, err := guard.NewWorker(&budget.Memory{}, rand.Float64)
	if err != nil {
		return nil, err
	}
	s.mu.worker, s.mu.reader, s.mu.connections, s.mu.streams = worker, reader, map[uint64]*guard.Connection{}, map[*stream]struct{}{}
	s.use(c)
	return s, nil
}

// now is the time since an origin, by the monotonic clock.
func (s *Server) now() guard.Time { return time.Since(s.origin) }

// do lets f look at the policy, or change it.
func (s *Server) do(f func(now guard.Time)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s.now())
}

// Reload puts another valid configuration in force, for streams that begin from now on; what
// budget, throttle and memory say is for all, and so is mode observe: from then on nothing is done
// to any. It returns what that changes of them, in words.
func (s *Server) Reload(c guard.Config, reader Reader) (changed string) {
	var held []*stream
	s.do(func(now guard.Time) {
		changed = s.use(c)
		s.mu.reader = reader
		if c.Mode == guard.Observe {
			held = s.disarm(now)
		}
	})
	for _, st := range held {
		s.orders.Go(func() {
			defer s.survive("an order")
			st.resume(verdict.Verdict{})
		})
	}
	return changed
}

// disarm has nothing done any more to the streams that there are, with the server's lock held. It
// returns those that were held.
func (s *Server) disarm(now guard.Time) (held []*stream) {
	for st := range s.mu.streams {
		if st.standing != standingOpen {
			continue
		}
		st.guard.Disarm()
		if st.Waiting() {
			st.guard.Release(now, &st.Stream)
			held = append(held, st)
		}
	}
	return held
}

// Limit is the limit in force, bytes; 0 = it is not known.
func (s *Server) Limit() (limit int64) {
	s.do(func(guard.Time) { limit = s.mu.worker.InForce() })
	return limit
}

func (s *Server) use(c guard.Config) (changed string) {
	observing := c
	observing.Mode = guard.Observe
	for _, old := range [...]*guard.Guard{s.mu.guard, s.mu.observing} {
		if old != nil {
			old.Retire()
		}
	}
	s.mu.guard, changed = guard.New(c, s.mu.worker)
	s.mu.observing, _ = guard.New(observing, s.mu.worker)
	s.mu.worker.SetEnforcing(c.Mode == guard.Enforce)
	return changed
}

// Run lets the policy's time pass until ctx is done. The streams must have ended by then: an order
// may wait for one that does not.
func (s *Server) Run(ctx context.Context) {
	defer s.orders.Wait()
	timer := time.NewTimer(guard.Tick)
	defer timer.Stop()
	due := time.Now().Add(guard.Tick)
	var orders []order
	for {
		select {
		case <-ctx.Done():
			return
		case after := <-s.wake:
			if sooner := time.Now().Add(after); sooner.Before(due) {
				due = sooner
				timer.Reset(after)
			}
		case <-timer.C:
			var next time.Duration
			var ask Reader
			orders, ask, next = s.ticked(orders[:0])
			if ask != nil {
				ask.Ask(s.observe)
			}
			for _, o := range orders {
				s.orders.Go(o.carryOut) // it may have to wait for the peer
			}
			clear(orders)
			due = time.Now().Add(next)
			timer.Reset(next)
		}
	}
}

// order is what a tick decided on a stream.
type order struct {
	stream  *stream
	verdict verdict.Verdict // Admit: it goes on, after Waited
}

func (o order) carryOut() {
	defer o.stream.server.survive("an order")
	if o.verdict.Waited > 0 {
		o.stream.server.counts.wait.Observe(float64(o.verdict.Waited.Milliseconds()))
	}
	if o.verdict.Action == verdict.Admit {
		o.stream.resume(o.verdict)
		return
	}
	o.stream.reject(o.verdict)
}

// ticked lets the policy tick. What it decides is done when the lock is gone.
// ask is who is to be asked for a reading now, if anybody.
func (s *Server) ticked(orders []order) (_ []order, ask Reader, next time.Duration) {
	next = guard.Tick // of the next, where this one fails
	func() {
		defer s.survive("a tick")
		orders, ask, next = s.decide(orders)
	}()
	return orders, ask, next
}

// resumeFor is how long one tick lets in those who fit. Behind a large one that does not each looks
// through the whole line.
const resumeFor = time.Millisecond

func (s *Server) decide(orders []order) (_ []order, ask Reader, next time.Duration) {
	s.do(func(now guard.Time) {
		a := s.mu.worker.Tick(now)
		next = a.Next
		for r, waited := a.Resume, a.Waited; r != nil; r, waited = s.mu.worker.Resume(now) {
			orders = append(orders, order{streamOf(r), verdict.Verdict{Waited: waited}})
			if s.now()-now > resumeFor {
				break // the next tick goes on: nobody else is judged meanwhile
			}
		}
		for _, d := range a.Rejected {
			orders = append(orders, order{streamOf(d.Stream), d.Verdict})
		}
		for _, c := range a.Close { // there are no connections to close here, and so none of these
			orders = append(orders, order{streamOf(c), verdict.Verdict{Action: verdict.Answer, Reason: verdict.Closed}})
		}
		if a.Event != "" {
			s.log.Log(context.Background(), levels[a.Severity], a.Event)
		}
		if a.Ask {
			ask = s.mu.reader
		}
	})
	return orders, ask, next
}

// levels are those of what a tick has to tell.
var levels = [...]slog.Level{events.Warning: slog.LevelWarn, events.Error: slog.LevelError, events.Info: slog.LevelInfo}

func streamOf(s *guard.Stream) *stream { return s.Host().(*stream) }

// hurry has the next tick come after so long at the latest.
func (s *Server) hurry(after time.Duration) {
	for {
		select {
		case s.wake <- after:
			return
		case other := <-s.wake: // not taken yet: the sooner of the two
			after = min(after, other)
		}
	}
}

// observe takes the answer to what a tick asked for.
func (s *Server) observe(r memory.Reading, err error) {
	defer s.survive("a reading")
	s.do(func(now guard.Time) {
		if err == nil {
			s.mu.asked = time.Now()
		}
		if event := s.mu.worker.Observe(now, r, err); event != "" {
			s.log.Warn(event)
		}
	})
}

// Ready says whether there is a recent reading, and if not why.
func (s *Server) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch age := time.Since(s.mu.asked); {
	case s.mu.draining:
		return fmt.Errorf("it is being stopped")
	case s.mu.asked.IsZero():
		return fmt.Errorf("there has been no reading of Envoy's memory yet")
	case age > time.Second:
		return fmt.Errorf("the last reading of Envoy's memory is %v old", age.Round(time.Millisecond))
	}
	return nil
}

// Drain lets in everyone who waits, and whoever still comes, and has each stream end with OK as
// soon as that does no harm: the requests go on without us.
func (s *Server) Drain() {
	var all []*stream
	s.do(func(now guard.Time) {
		s.mu.draining = true
		s.disarm(now) // what goes on without us is not rejected or evicted while it ends
		for st := range s.mu.streams {
			all = append(all, st)
		}
	})
	for _, st := range all {
		s.orders.Go(func() {
			defer s.survive("the end of a stream")
			st.resume(verdict.Verdict{})
			st.leave()
		})
	}
}

// join notes a stream that begins.
func (s *Server) join(st *stream) {
	s.do(func(guard.Time) {
		s.mu.streams[st] = struct{}{}
		st.leaving = s.mu.draining
	})
}

// survive ends a fault of ours where it began: it is logged and counted, and the traffic goes on.
func (s *Server) survive(in string) {
	if fault := recover(); fault != nil {
		s.faulted(in, fault)
	}
}

// faulted counts and logs a fault of ours that was survived.
func (s *Server) faulted(in string, fault any) {
	s.counts.faults.Add(1)
	s.log.Error("a fault of ours; traffic goes on", "in", in, "fault", fmt.Sprint(fault), "stack", string(debug.Stack()))
}

// onces say what is told once.
type onces struct{ silent, buffered, observability, attribute, unnamed sync.Once }

// responseMissed notes that a request has ended without a word of its response.
func (s *Server) responseMissed() {
	if !s.coverage.ResponseMissed(s.now()) {
		return
	}
	s.once.silent.Do(func() {
		s.log.Warn("nothing is told of responses: set response_header_mode: SEND in the ext_proc filter; until then each is taken for as large as buffers allow", "requests", coverage.EnoughSilent)
	})
}

// bodyMissed notes that a body that was asked for has not come.
func (s *Server) bodyMissed() {
	if s.coverage.BodyMissed() {
		s.log.Warn("bodies without a length are not seen, and only forecast: set allow_mode_override in the ext_proc filter to have them counted as they pass")
	}
}
