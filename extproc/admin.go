package extproc

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/peak"
)

// Admin answers HTTP for people and machines that watch: /healthz, /readyz, /metrics, /status, and, of
// the requests that hold the memory or made its peaks, /peaks, /current and /debug/pprof/highwater. It changes nothing and shows no
// header or body of a request, but names of routes, or of what else tells requests apart. observer is what /status tells of the one
// who reads Envoy's memory; nil = nothing.
func (s *Server) Admin(registry *prometheus.Registry, observer func() any) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "highwater: /healthz /readyz /metrics /status /memory /peaks /current /debug/pprof/highwater\n")
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "ready\n")
	})
	mux.HandleFunc("GET /peaks", s.answerPeaks("peaks"))
	mux.HandleFunc("GET /current", s.answerPeaks("current"))
	mux.HandleFunc("GET /debug/pprof/highwater", s.answerPeaks("pprof"))
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("content-type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		status := s.Status()
		if observer != nil {
			status.Observer = observer()
		}
		_ = e.Encode(status)
	})
	return mux
}

// answerPeaks answers what a filter answers below its debug.path.
func (s *Server) answerPeaks(what string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		question := what
		if r.URL.RawQuery != "" {
			question += "?" + r.URL.RawQuery
		}
		if peak.WantsCurrent(question) && !s.look(r.Context()) {
			http.Error(w, "the requests in flight could not be looked at in time: ask again", http.StatusServiceUnavailable)
			return
		}
		var a peak.Answer
		s.do(func(now guard.Time) {
			worker := s.mu.worker
			source := peak.Source{
				Clock:   peak.Clock{Monotonic: now, Wall: time.Now().UnixNano()},
				Level:   worker.Account().Table().Level.String(),
				Figures: func(add func(name string, value int64)) { worker.Status(now, add) },
				Peaks:   worker.Peaks,
				Current: worker.Current,
			}
			a = source.Ask(r.Method, question)
		})
		w.Header().Set("content-type", a.ContentType)
		w.Header().Set("cache-control", "no-store")
		w.Header().Set("x-content-type-options", "nosniff")
		w.WriteHeader(a.Status)
		_, _ = w.Write(a.Body)
	}
}

// look has the requests in flight looked at, which a tick does.
func (s *Server) look(ctx context.Context) (looked bool) {
	var since guard.Time
	s.do(func(now guard.Time) {
		since = now
		s.mu.worker.Look(now)
	})
	wait := time.NewTicker(guard.FastTick)
	defer wait.Stop()
	for range 500 {
		s.do(func(now guard.Time) { looked = s.mu.worker.Looked(now, since) })
		if looked {
			return true
		}
		s.hurry(guard.FastTick)
		select {
		case <-wait.C:
		case <-ctx.Done():
			return false
		}
	}
	return false
}
