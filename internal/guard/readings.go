package guard

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
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
		Stirs:    w.stirs(now, &all),
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
	w.learnPrices(now, r.InUse)
	if blind {
		event = fmt.Sprintf("readings of Envoy's memory are back after %v. ", roughly(age))
	}
	event += w.telling.limit(&w.policy)
	return event + w.telling.level(now, level, r.InUse, w.limits, w.account.Table())
}

// blindAfter: without a reading for so long the guard says that it is blind. A single one that
// fails is counted and not told: an Envoy that is busy, or has only just begun, misses one now and
// then.
const blindAfter = 2 * time.Second // TestWithoutReadingsTheGuardIsBlind

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

// Reading is what an allocator says of itself, and its container, bytes. Figures that nobody told
// are 0.
type Reading struct {
	// InUse is what the process needs of its container: heap_size − pageheap_unmapped −
	// pageheap_free. Where the companion tells of them, what is resident outside of the heap
	// (virtual machines, the allocator's own books, stacks) and the kernel's socket buffers are in
	// it.
	InUse     int64
	Allocated int64 // what the program has asked for
	Free      int64 // pageheap_free: the allocator could give it back to the system
	Mapped    int64 // heap_size − pageheap_unmapped: what may be resident of the heap

	// From the companion alone:
	Limit      int64 // of the container
	Resident   int64 // of the process, without file pages
	WorkingSet int64 // of the container: its usage without file pages that the kernel would take back first
	Sock       int64 // of the container: the kernel's buffers of its sockets
}

// maxReading: more is no memory, and sums of it could overflow into something that looks possible.
const maxReading = budget.Unlimited

// ParseReading reads the answer of Envoy's /memory, or of the companion's, which tells more. All
// numbers are JSON strings. An error is a Failure.
func ParseReading(text []byte) (Reading, error) {
	r, err := parseReading(text)
	if err != nil {
		return r, &Failure{CauseAnswer, err}
	}
	return r, nil
}

// answer is one of /memory.
type answer struct {
	Allocated        *int64 `json:"allocated,string"`
	HeapSize         *int64 `json:"heap_size,string"`
	PageheapUnmapped int64  `json:"pageheap_unmapped,string"`
	PageheapFree     int64  `json:"pageheap_free,string"`

	Limit      *int64 `json:"limit,string"`
	Resident   int64  `json:"resident,string"`
	WorkingSet int64  `json:"working_set,string"`
	Sock       int64  `json:"sock,string"`
}

func parseReading(text []byte) (Reading, error) {
	var m answer
	if err := json.Unmarshal(text, &m); err != nil {
		return Reading{}, fmt.Errorf("not the answer of /memory: %w", err)
	}
	if m.Allocated == nil || m.HeapSize == nil {
		return Reading{}, fmt.Errorf("not the answer of /memory: it has no allocated or no heap_size")
	}
	heap, unmapped, free := *m.HeapSize, m.PageheapUnmapped, m.PageheapFree
	if !m.possibleHeap() {
		return Reading{}, fmt.Errorf("not a possible answer of /memory: heap_size %d, pageheap_unmapped %d, pageheap_free %d, allocated %d",
			heap, unmapped, free, *m.Allocated)
	}
	if m.Limit != nil && *m.Limit <= 0 || !possible(m.Resident) || !possible(m.WorkingSet) || !possible(m.Sock) {
		return Reading{}, fmt.Errorf("not a possible answer of /memory: limit, resident, working_set and sock must be bytes, limit not 0: %s", config.Clip(string(text)))
	}
	r := Reading{
		InUse: heap - unmapped - free, Allocated: *m.Allocated, Free: free, Mapped: heap - unmapped,
		Resident: m.Resident, WorkingSet: m.WorkingSet, Sock: m.Sock,
	}
	if m.Limit != nil && *m.Limit < maxReading { // a container that may have more than any memory has no limit
		r.Limit = *m.Limit
	}
	r.InUse += max(r.Resident-r.Mapped, 0) + r.Sock
	return r, nil
}

// possibleHeap checks each figure of the heap by itself, because differences of nonsense can
// overflow into something that looks possible.
func (m *answer) possibleHeap() bool {
	heap, unmapped, free := *m.HeapSize, m.PageheapUnmapped, m.PageheapFree
	return heap > 0 && heap <= maxReading && unmapped >= 0 && unmapped <= heap && free >= 0 && free < heap-unmapped && possible(*m.Allocated)
}

func possible(n int64) bool { return n >= 0 && n <= maxReading }

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
	g[GaugeStreams], g[GaugeWaiting], g[GaugeConnections] = all.Streams, all.Queue.Waiting, all.Connections.Open
	g[GaugeVM], g[GaugeLeaving] = all.VM, all.Evicted.Leaving
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
