package main

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/highwater-envoy/highwater/extproc"
	"github.com/highwater-envoy/highwater/internal/allocator"
	"github.com/highwater-envoy/highwater/internal/doctor"
	"github.com/highwater-envoy/highwater/internal/gather"
	"github.com/highwater-envoy/highwater/internal/observer"
)

// reportEvery is how often /report's history is added to. A sample takes Envoy's main thread some
// 20 ms, so that this is 0.2 % of it.
const reportEvery = 30 * time.Second

// reporter answers /report: it examines Envoy once in a while, whether or not anybody asks, and
// keeps the layers of its memory over time.
type reporter struct {
	server   *extproc.Server
	observed func() observer.Status // whose verdicts on growth are shown

	mu struct {
		sync.Mutex
		judged  bool   // the observer gives verdicts on growth
		address string // of Envoy's admin interface
		pid     int    // of Envoy; 0 = it is looked for
		live    *gather.Live
		history doctor.Series
		first   *doctor.Sample
		base    *allocator.Report // the least that it had without requests; nil = not seen
		now     doctor.Sample
	}
}

// follow has another Envoy examined from now on. The history begins again.
func (r *reporter) follow(config served) {
	address, pid := config.guard.Memory.URL, config.observer.Envoy.PID
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.judged = config.observer.Leak.Interval > 0
	if r.mu.live != nil && r.mu.address == address && r.mu.pid == pid {
		return
	}
	live, err := gather.NewLive(address, pid)
	if err != nil {
		return // the observer was made for the same address, and has said what is wrong with it
	}
	r.mu.address, r.mu.pid, r.mu.live = address, pid, live
	r.mu.history, r.mu.first, r.mu.base, r.mu.now = doctor.Series{}, nil, nil, doctor.Sample{}
}

// run samples until the context ends.
func (r *reporter) run(ctx context.Context) {
	var of *gather.Live // whom the sample that comes is of
	w := gather.Watch{Every: reportEvery, Read: func(context.Context) doctor.Sample {
		r.mu.Lock()
		of = r.mu.live
		r.mu.Unlock()
		if of == nil {
			return doctor.Sample{Time: time.Now()}
		}
		return of.Read(ctx) // ends with the server
	}, Seen: func(s doctor.Sample) { r.add(of, s) }}
	w.Run(ctx)
	if of != nil {
		of.Close()
	}
}

func (r *reporter) add(of *gather.Live, s doctor.Sample) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if of != r.mu.live || of == nil {
		return // of the Envoy before
	}
	if r.mu.first == nil {
		r.mu.first = &s
	}
	if a := s.Allocator; a != nil {
		if s.Gauges != nil && s.Gauges.Requests == 0 && (r.mu.base == nil || a.Application < r.mu.base.Application) {
			r.mu.base = a
		}
	}
	r.mu.now = s
	report := doctor.Examine(doctor.Input{Now: s, Base: r.mu.base})
	r.mu.history.Add(&report)
}

// page is what is known now.
func (r *reporter) page() *doctor.Page {
	status, marks := r.server.Status(), r.server.Marks()
	r.mu.Lock()
	defer r.mu.Unlock()
	in := doctor.Input{Now: r.mu.now, First: r.mu.first, Base: r.mu.base}
	if observed := r.observed(); r.mu.first != nil && r.mu.judged {
		in.Growth = &doctor.Growth{Over: r.mu.now.Time.Sub(r.mu.first.Time), Growing: observed.Growing, Leak: observed.Leak}
	}
	for _, k := range status.Keys {
		in.Keys = append(in.Keys, doctor.Key{Name: k.Name, Coming: k.Coming, Likely: k.Likely, Waiting: k.Waiting})
	}
	report := doctor.Examine(in)
	p := &doctor.Page{Report: &report, Limit: r.server.Limit(), History: append([]doctor.Point(nil), r.mu.history.Points()...), Refresh: reportEvery}
	for _, m := range marks {
		p.Peaks = append(p.Peaks, doctor.Peak{
			At: m.At, Label: fmt.Sprintf("peak %d", m.Number), URL: fmt.Sprintf("debug/pprof/highwater?peak=%d", m.Number),
		})
	}
	return p
}

// ServeHTTP implements http.Handler.
func (r *reporter) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	var text bytes.Buffer
	if err := r.page().WriteHTML(&text); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	// It asks nobody for anything, whoever may have got a name into it.
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	_, _ = w.Write(text.Bytes())
}
