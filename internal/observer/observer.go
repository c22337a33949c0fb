// Package observer is the server's eyes and hands: it asks Envoy's admin interface for memory and buffers, reads the container's
// cgroup and the process in /proc, says how long it is to the limit, and drives Envoy's own overload actions by files.
// It decides nothing about requests: that is guard's.
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

	"github.com/highwater-envoy/highwater/internal/guard"
)

// Options say what to observe, and for whom. URL is required.
type Options struct {
	Config

	URL  string // of Envoy's admin interface: http://127.0.0.1:9901, or unix:/run/envoy/admin.sock
	Path string // where it answers as /memory does; empty = /memory

	// Limit is the budget's limit in force, bytes; 0 = not known. nil = there is no budget. It is called from the observer's
	// goroutines.
	Limit func() int64
	Root  fs.FS        // of the machine, with proc and sys in it; nil = this one's
	Log   *slog.Logger // nil = nothing is logged
	// Told says that somebody calls Ask all the time, and tells of failures himself: then the log has nothing of readings that fail.
	Told bool
}

// ErrStopped is the answer to Ask after the end of Run.
var ErrStopped = errors.New("the observer has stopped")

// Observer observes one Envoy. Make it with New, then Run it. It is safe for concurrent use.
type Observer struct {
	options Options
	log     *slog.Logger
	admin   *admin
	stats   *admin // with a pace of its own
	turn    chan struct{}
	target  target
	wake    chan struct{}

	mu struct {
		sync.Mutex
		pending  []func(guard.Reading, error)
		stopped  bool
		reading  guard.Reading
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
	}
}

// New returns an observer that does nothing yet. The error begins with the key that is wrong.
func New(o Options) (*Observer, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if o.Path == "" {
		o.Path = "/memory"
	}
	if o.Root == nil {
		o.Root = os.DirFS("/")
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
	return &Observer{
		options: o, log: o.Log, turn: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		admin:  &admin{client: client, base: base, longest: time.Second},
		stats:  &admin{client: client, base: base, longest: 30 * time.Second},
		target: target{root: o.Root, config: o.Envoy},
	}, nil
}

// idleInterval is how often memory is asked for where nobody calls Ask.
const idleInterval = 250 * time.Millisecond

// Run observes until the context ends, and leaves nothing behind: no goroutine, and no pressure in the files.
func (o *Observer) Run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() { o.poll(ctx) })
	loops.Go(func() { o.pollBuffers(ctx) })
	loops.Go(func() { o.act(ctx) })
	loops.Wait()
	o.mu.Lock()
	o.mu.stopped = true
	pending := o.mu.pending
	o.mu.pending = nil
	o.mu.Unlock()
	for _, answer := range pending {
		answer(guard.Reading{}, ErrStopped)
	}
	o.admin.client.CloseIdleConnections()
}

// Ask asks for a reading and returns at once. answer is called once, soon, with the reading or why there is none; all that had
// passed when Ask was called is in it. Asked again before the answer, both get the next one. After failures Envoy is asked less often, and
// answer is called at once with the last failure.
func (o *Observer) Ask(answer func(guard.Reading, error)) {
	o.mu.Lock()
	stopped := o.mu.stopped
	if !stopped {
		o.mu.pending = append(o.mu.pending, answer)
	}
	o.mu.Unlock()
	if stopped {
		answer(guard.Reading{}, ErrStopped)
		return
	}
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

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
		o.mu.Lock()
		answers := o.mu.pending
		o.mu.pending = nil
		o.mu.Unlock()
		_, r, err := o.read(ctx, len(answers) > 0)
		if ctx.Err() != nil {
			err = ErrStopped
		}
		for _, answer := range answers {
			answer(r, err)
		}
		timer.Reset(idleInterval)
	}
}
