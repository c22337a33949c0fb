// Package observer is the server's eyes and hands: it asks Envoy's admin interface for memory and
// buffers, reads the container's cgroup and the process in /proc, says how long it is to the limit,
// and drives Envoy's own overload actions by files. It decides nothing about requests: that is
// guard's.
package observer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/highwater-envoy/highwater/internal/evidence"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/memory"
)

// Options say what to observe, and for whom. URL is required.
type Options struct {
	Config

	URL  string // of Envoy's admin interface: http://127.0.0.1:9901, or unix:/run/envoy/admin.sock
	Path string // where it answers as /memory does; empty = /memory

	// Interval is the least time between two questions for memory, whoever asks how often; 0 = as
	// the guard's default.
	Interval time.Duration
	// Limit is the budget's limit in force, bytes; 0 = not known. nil = there is no budget. It is
	// called from the observer's goroutines.
	Limit func() int64
	Root  fs.FS        // of the machine, with proc and sys in it; nil = this one's
	Log   *slog.Logger // nil = nothing is logged
	// Told says that somebody calls Ask all the time, and tells of failures himself: then the log
	// has nothing of readings that fail.
	Told bool
	// Requests are the profiles of requests that go into evidence, the one of now first; nil =
	// none.
	Requests func(ctx context.Context) ([]evidence.Profile, error)
}

// ErrStopped is the answer to Ask after the end of Run.
var ErrStopped = errors.New("the observer has stopped")

// Observer observes one Envoy. Make it with New, then Run it. It is safe for concurrent use.
type Observer struct {
	options Options
	log     *slog.Logger
	admin   *admin
	stats   *admin // with a pace of its own
	growth  *admin // the same
	kept    *admin // the same
	target  target
	wake    chan struct{}

	connected time.Time // when connections to admin were last made again, of the one goroutine that asks

	mu struct {
		sync.Mutex
		next     *round // the question that has not been asked yet
		stopped  bool
		reading  memory.Reading
		asked    time.Time // when the reading was; zero = there was none yet
		took     time.Duration
		limit    int64 // the budget's, bytes; 0 = not known
		figures  figures
		buffered Buffered
		trend    trend
		near     nearness
		faults   [numFaults]fault
		pressure float64
		pulse    bool
		releaser releaser
		verdicts verdicts
		evidence Evidence
	}
}

// New returns an observer that does nothing yet. The error begins with the key that is wrong.
func New(o Options) (*Observer, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if err := o.Release.writable(); err != nil {
		return nil, err
	}
	if o.Path == "" {
		o.Path = "/memory"
	}
	if o.Root == nil {
		o.Root = os.DirFS("/")
	}
	if o.Interval == 0 {
		o.Interval = time.Duration(guard.Default().Memory.Interval)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Limit == nil {
		o.Limit = func() int64 { return 0 }
	}
	client, base, err := newClient(o.URL)
	if err != nil {
		return nil, fmt.Errorf("memory.url: %w", err)
	}
	// Connections of its own, so that no reading waits for a heap dump's.
	aside, _, err := newClient(o.URL)
	if err != nil {
		return nil, fmt.Errorf("memory.url: %w", err)
	}
	w := &Observer{
		options: o, log: o.Log, wake: make(chan struct{}, 1),
		admin:  &admin{client: client, base: base, least: o.Interval, longest: time.Second},
		stats:  &admin{client: client, base: base, longest: 30 * time.Second},
		growth: &admin{client: aside, base: base, longest: time.Minute},
		kept:   &admin{client: aside, base: base},
		target: target{root: o.Root, config: o.Envoy},
	}
	w.mu.next = newRound()
	return w, nil
}

// idleInterval is how often memory is asked for where nobody calls Ask.
const idleInterval = 250 * time.Millisecond

// Run observes until the context ends, and leaves nothing behind: no goroutine, and no pressure in
// the files.
func (o *Observer) Run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() { o.poll(ctx) })
	loops.Go(func() { o.pollBuffers(ctx) })
	loops.Go(func() { o.act(ctx) })
	loops.Go(func() { o.pollGrowth(ctx) })
	loops.Go(func() { o.keepEvidence(ctx) })
	loops.Wait()
	o.mu.Lock()
	o.mu.stopped = true
	last := o.mu.next
	o.mu.Unlock()
	last.end(nil, memory.Reading{}, ErrStopped)
	o.admin.client.CloseIdleConnections()
	o.growth.client.CloseIdleConnections()
}

// round is one question for memory, and all who wait for its answer. Whoever comes while a question
// is under way joins the next one: the answer that is on its way may have been made before they
// came, and would not have in it what had passed by then. So however many ask, Envoy's main thread
// is asked once in an interval, and who only waits for done costs the round nothing.
type round struct {
	done chan struct{} // closed when what follows is there

	text    []byte
	reading memory.Reading
	err     error

	answers []func(memory.Reading, error) // guarded by Observer.mu until the question is asked
}

func newRound() *round { return &round{done: make(chan struct{})} }

func (r *round) end(text []byte, reading memory.Reading, err error) {
	r.text, r.reading, r.err = text, reading, err
	close(r.done)
	for _, answer := range r.answers {
		answer(reading, err)
	}
}

// join returns the next question, which is asked soon, and adds an answer to it, if it is not nil.
// After the end of Run it is one that was answered with ErrStopped.
func (o *Observer) join(answer func(memory.Reading, error)) *round {
	o.mu.Lock()
	r, stopped := o.mu.next, o.mu.stopped
	if !stopped {
		if answer != nil {
			r.answers = append(r.answers, answer)
		}
		select {
		case o.wake <- struct{}{}:
		default:
		}
	}
	o.mu.Unlock()
	if stopped && answer != nil {
		<-r.done
		answer(r.reading, r.err)
	}
	return r
}

// Ask asks for a reading and returns at once. answer is called once, soon, with the reading or why
// there is none; all that had passed when Ask was called is in it. Asked again before the answer,
// both get the next one. After failures Envoy is asked less often, and answer is called at once
// with the last failure.
func (o *Observer) Ask(answer func(memory.Reading, error)) { o.join(answer) }

// poll asks the questions, one after the other, with the pause between them that admin is to have.
func (o *Observer) poll(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		case <-timer.C:
		}
		failing := o.admin.rests(time.Now()) > 0 && o.admin.failure != nil // who asks is told at once
		if !failing && !sleep(ctx, o.admin.rests(time.Now())) {
			return
		}
		o.mu.Lock()
		r := o.mu.next
		o.mu.next = newRound()
		select { // who woke us since is in the round
		case <-o.wake:
		default:
		}
		o.mu.Unlock()
		if failing {
			r.end(nil, memory.Reading{}, o.admin.failure)
		} else {
			text, reading, err := o.read(ctx, len(r.answers) > 0)
			if ctx.Err() != nil {
				text, reading, err = nil, memory.Reading{}, ErrStopped
			}
			r.end(text, reading, err)
		}
		timer.Reset(idleInterval)
	}
}

// sleep returns false if the context ends before.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
