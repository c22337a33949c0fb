package adminhttp

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"
)

const (
	// shareEvery is how often at most an answer is made that all who ask share.
	shareEvery = 25 * time.Millisecond
	// patience is how long a request waits for its turn.
	patience = 2 * time.Second
	// restShare is how long there is none after one, times what it took: so much of a processor is
	// the rest of the process's at least.
	restShare = 3
)

// Share returns a handler that gives all who ask while an answer is made the next one, which is
// made at most each shareEvery: so that however many ask, it costs the same. h sees nothing of
// their requests.
func Share(h http.Handler) http.Handler { return &share{next: h} }

type share struct {
	next http.Handler

	mu struct {
		sync.Mutex
		waits   *answer // the answer that has not been begun yet, with somebody who waits for it; nil = nobody does
		running bool
		begun   time.Time // when one last was
	}
}

func (s *share) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if s.mu.waits == nil {
		s.mu.waits = newAnswer()
	}
	a := s.mu.waits
	if !s.mu.running {
		s.mu.running = true
		go s.run()
	}
	s.mu.Unlock()
	select {
	case <-a.done:
		a.send(w)
	case <-r.Context().Done():
	}
}

// run makes answers until nobody waits for one.
func (s *share) run() {
	for {
		s.mu.Lock()
		rest := shareEvery - time.Since(s.mu.begun)
		s.mu.Unlock()
		if rest > 0 {
			time.Sleep(rest)
		}
		s.mu.Lock()
		a := s.mu.waits
		s.mu.waits, s.mu.begun = nil, time.Now()
		if a == nil {
			s.mu.running = false
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		a.make(s.next)
	}
}

// InTurn returns a handler that works for one request at a time, and not all the time. Others wait
// for a while, and are told to come again. What h answers is sent when the turn is over, so that a
// peer that does not read keeps nobody waiting.
func InTurn(h http.Handler) http.Handler {
	turn := make(chan struct{}, 1)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		enough := time.NewTimer(patience)
		defer enough.Stop()
		select {
		case turn <- struct{}{}:
		case <-r.Context().Done():
			return
		case <-enough.C:
			w.Header().Set("Retry-After", "1")
			http.Error(w, "Too many ask for this at once: try again in a second.", http.StatusServiceUnavailable)
			return
		}
		a := newAnswer()
		func() {
			began := time.Now()
			defer func() { time.AfterFunc(restShare*time.Since(began), func() { <-turn }) }()
			h.ServeHTTP(a, r)
		}()
		a.send(w)
	})
}

// answer is one that has not been sent yet, and may be sent to many.
type answer struct {
	header http.Header
	status int
	body   bytes.Buffer
	done   chan struct{} // closed when it is whole
}

func newAnswer() *answer {
	return &answer{header: http.Header{}, status: http.StatusOK, done: make(chan struct{})}
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

// make has h make it. A fault of h is one for who waits, and not the end of the process.
func (a *answer) make(h http.Handler) {
	defer close(a.done)
	defer func() {
		if fault := recover(); fault != nil {
			a.header, a.status = http.Header{}, http.StatusInternalServerError
			a.body.Reset()
			fmt.Fprintf(a, "a fault of highwater: %v\n", fault)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/", nil)
	if err != nil {
		panic(err)
	}
	h.ServeHTTP(a, r)
}

func (a *answer) send(w http.ResponseWriter) {
	for name, values := range a.header {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", strconv.Itoa(a.body.Len()))
	w.WriteHeader(a.status)
	_, _ = w.Write(a.body.Bytes())
}
