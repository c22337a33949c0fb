package main

// #include "abi.h"
import "C"

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/events"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/version"
)

const face = "module"

// tellEvent logs what a tick has to tell, if anything.
func tellEvent(event string, severity events.Severity) {
	switch {
	case event == "":
	case severity == events.Error:
		logf(C.HW_LOG_ERROR, "%s", event)
	case severity == events.Info:
		logf(C.HW_LOG_INFO, "%s", event)
	default:
		logf(C.HW_LOG_WARNING, "%s", event)
	}
}

// setup is what has been told of the plugins that are there.
type setup struct {
	mu struct {
		sync.Mutex
		batch   []*plugin   // that have started since it was told which
		batched budget.Time // when the last of them did
		changes []string    // of shared settings, by them
		told    string
		missing string
		nameless,
		lacking bool
	}
}

const (
	// settleAfter: the plugins of all listeners start one after the other, and what there is of
	// them is told when no other has started for so long.
	settleAfter = 300 * time.Millisecond
	// maxSummaries: more configurations that differ are not told.
	maxSummaries = 8
)

// join notes that a plugin has started, and what that changed of shared settings.
func (s *setup) join(p *plugin, changed string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if changed != "" && len(s.mu.changes) < maxSummaries {
		s.mu.changes = append(s.mu.changes, changed)
	}
	s.mu.batch = append(s.mu.batch, p)
	s.mu.batched = now()
}

// leave notes that one has gone.
func (s *setup) leave(p *plugin) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.batch = slices.DeleteFunc(s.mu.batch, func(other *plugin) bool { return other == p })
}

// introduce tells what has started, and what is missing of it, as soon as no other plugin has
// joined for a while.
func (s *setup) introduce(t budget.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.batch) == 0 || t-s.mu.batched < settleAfter {
		return
	}
	var summaries []string
	for _, p := range s.mu.batch {
		if summary := p.config.Summary(); !slices.Contains(summaries, summary) && len(summaries) < maxSummaries {
			summaries = append(summaries, summary)
		}
	}
	if changed := strings.Join(s.mu.changes, "; then "); changed != "" {
		logf(C.HW_LOG_WARNING, "shared settings have changed: %s. All listeners share them, and the configuration that comes last sets them", changed)
	}
	s.mu.batch, s.mu.changes = nil, nil
	if text := strings.Join(summaries, "; and "); text != s.mu.told {
		s.mu.told = text
		logf(C.HW_LOG_INFO, "%s, face %s: %s", version.String(), face, text)
	}
	if text := missing(); text != s.mu.missing {
		s.mu.missing = text
		if text != "" {
			logf(C.HW_LOG_WARNING, "%s", text)
		}
	}
}

// missing tells which of the two filters is not there.
func missing() string {
	network, http := false, false
	for _, p := range module.plugins.all() {
		network = network || p != nil && p.kind == connections
		http = http || p != nil && p.kind == requests && p.config.Debug.Path == ""
	}
	switch {
	case http && !network:
		return "there is no network filter of highwater: connections are neither counted nor closed, and their buffers stay as they are. Add it to each listener"
	case network && !http:
		return "there is no HTTP filter of highwater: no request is judged. Add it to each listener, as the first of http_filters"
	}
	return ""
}

// lacksConnections tells, once for each configuration, that a request came on a connection that the
// network filter does not know.
func (s *setup) lacksConnections(r *stream) {
	if r.plugin.config.Debug.Path != "" || r.plugin.reported.Swap(true) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.missing == "" {
		logf(C.HW_LOG_WARNING, "a request came to %s on a connection that the network filter does not know: that listener has no network filter of highwater. "+
			"What is rejected there can't be closed, and may leave all its buffers hold. Add the filter", r.attribute(C.HW_DESTINATION_ADDRESS))
	}
}

// unnamed tells, once, that a request's route has no name, where that is by what requests are told
// apart. One that has no route at all, and no cluster therefore, is none of those.
func (s *setup) unnamed(r *stream) {
	if !r.plugin.config.TellsRoutesApart() || r.Cluster() == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.mu.nameless {
		s.mu.nameless = true
		logf(C.HW_LOG_WARNING, "%s", guard.UnnamedRoutes)
	}
}
