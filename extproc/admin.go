package extproc

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/highwater-envoy/highwater/internal/adminhttp"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/peak"
)

// Admin answers HTTP for people and machines that watch: /healthz, /readyz, /metrics and /status,
// and which requests hold the memory: /peaks, /current and /debug/pprof/highwater[?peak=N]. It
// changes nothing and shows no header or body of a request, but names of routes, or of what else
// tells requests apart. observer is what /status tells of the one who reads Envoy's memory; nil =
// nothing.
func (s *Server) Admin(registry *prometheus.Registry, observer func() any) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "highwater: /healthz /readyz /metrics /status /memory /report /peaks /current /debug/pprof/highwater /debug/heap\n")
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "ready\n")
	})
	// Who asks costs the policy next to nothing, however many there are.
	mux.Handle("GET /metrics", adminhttp.Share(promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		ErrorHandling: promhttp.ContinueOnError, DisableCompression: true, // it would cost more than the bytes of a local connection
	})))
	mux.Handle("GET /status", adminhttp.Share(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		status := s.Status()
		if observer != nil {
			status.Observer = observer()
		}
		_ = e.Encode(status)
	})))
	about := func(question string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			a := s.explain(r.Context(), question+"?"+r.URL.RawQuery)
			w.Header().Set("content-type", a.ContentType)
			w.WriteHeader(a.Status)
			_, _ = w.Write(a.Body)
		})
	}
	mux.Handle("GET /peaks", adminhttp.Share(about("peaks")))
	mux.Handle("GET /current", adminhttp.Share(about("current")))
	mux.Handle("GET /debug/pprof/highwater", adminhttp.InTurn(about("pprof")))
	return mux
}

// explain answers which requests hold the memory, or held it at a peak, as the filter does under
// its debug.path.
func (s *Server) explain(ctx context.Context, question string) (a peak.Answer) {
	if peak.WantsCurrent(question) {
		s.look(ctx)
	}
	s.do(func(now guard.Time) {
		worker := s.mu.worker
		source := peak.Source{
			Clock:   peak.Clock{Monotonic: now, Wall: time.Now().UnixNano()},
			Peaks:   worker.Peaks,
			Current: worker.Current,
		}
		a = source.Ask(http.MethodGet, question)
	})
	return a
}

// Profile is the profile of requests as of now, with current, or of a peak: latest or highest.
// False: there was no such peak yet.
func (s *Server) Profile(ctx context.Context, which string) (data []byte, is bool) {
	a := s.explain(ctx, "pprof?peak="+which)
	return a.Body, a.Status == http.StatusOK
}

// lookTimeout is how long a tick is waited for. There is none when the server is ending: then what
// there is does.
const lookTimeout = 2 * time.Second

// look has the sample as of now frozen, and waits for that: it takes a tick.
func (s *Server) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var since guard.Time
	s.do(func(now guard.Time) {
		since = now
		s.mu.worker.Look(now)
	})
	s.hurry(guard.FastTick)
	again := time.NewTicker(guard.FastTick)
	defer again.Stop()
	for looked := false; !looked; {
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			s.do(func(now guard.Time) { looked = s.mu.worker.Looked(now, since) })
		}
	}
}
