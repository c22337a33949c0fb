package extproc

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Admin answers HTTP for people and machines that watch: /healthz, /readyz, /metrics and /status. It changes nothing and shows no
// header or body of a request, but names of routes, or of what else tells requests apart. observer is what /status tells of the one
// who reads Envoy's memory; nil = nothing.
func (s *Server) Admin(registry *prometheus.Registry, observer func() any) *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "highwater: /healthz /readyz /metrics /status /memory\n")
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok\n") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, "ready\n")
	})
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
