package load

import (
	"context"
	"sync"
	"time"
)

// Reading is what Envoy's /memory says, as far as it matters here.
type Reading struct {
	Allocated int64 // what Envoy asked for
	InUse     int64 // heap_size − pageheap_unmapped − pageheap_free: what the allocator took for it
}

// Sampler asks for readings and keeps the highest.
type Sampler struct {
	mu struct {
		sync.Mutex
		last, peak Reading
		samples    int
		longest    time.Duration
	}
}

// Run asks every so often until ctx is done. A reading that fails is left out.
func (s *Sampler) Run(ctx context.Context, every time.Duration, ask func(context.Context) (Reading, error)) {
	var previous time.Time
	for {
		if r, err := ask(ctx); err == nil {
			now := time.Now()
			s.mu.Lock()
			s.mu.last = r
			s.mu.peak.Allocated = max(s.mu.peak.Allocated, r.Allocated)
			s.mu.peak.InUse = max(s.mu.peak.InUse, r.InUse)
			s.mu.samples++
			if !previous.IsZero() {
				s.mu.longest = max(s.mu.longest, now.Sub(previous))
			}
			s.mu.Unlock()
			previous = now
		}
		if !Sleep(ctx, every) {
			return
		}
	}
}

// Last is the latest reading.
func (s *Sampler) Last() Reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.last
}

// Peak is the highest of each figure, how many readings there were, and the longest time between
// two of them: what rose and fell within that was not seen.
func (s *Sampler) Peak() (peak Reading, samples int, blind time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.peak, s.mu.samples, s.mu.longest
}
