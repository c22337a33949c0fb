// Package memory is what an allocator says of itself and its container, read from the answer of
// Envoy's /memory or of the companion's; and why there is none.
package memory

import (
	"encoding/json"
	"fmt"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/config"
)

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
func CauseOf(err error) Cause {
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

// Cure says what to look at.
func Cure(m *config.Memory, failure error) string {
	at := fmt.Sprintf("the endpoint of cluster %q is the address and port of Envoy's admin interface", m.Cluster)
	if m.URL != "" {
		at = fmt.Sprintf("memory.url (%s) is the address of Envoy's admin interface, and that Envoy runs", m.URL)
	}
	switch CauseOf(failure) {
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

// Parse reads the answer of Envoy's /memory, or of the companion's, which tells more. All
// numbers are JSON strings. An error is a Failure.
func Parse(text []byte) (Reading, error) {
	r, err := parse(text)
	if err != nil {
		return r, &Failure{CauseAnswer, err}
	}
	return r, nil
}

func parse(text []byte) (Reading, error) {
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
