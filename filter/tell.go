package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/events"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/version"
)

// What is told once, though each plugin runs in the main thread and in every worker.

const face = "filter"

// settleAfter: the plugins of all listeners start one after the other, and what there is of them is
// told when no other has started for so long. Virtual machines that Envoy starts only to try a
// configuration are gone by then, or have no ticks at all.
const settleAfter = 300 * time.Millisecond

// first says whether this is not what the virtual machines of the process have said last of a
// matter, and notes that it is now. Where shared data fails it is said once too often, not never.
func first(matter, text string) bool {
	key := "highwater.said." + matter
	for range 8 {
		value, cas, err := load(key)
		if err != nil {
			return true
		}
		if string(value) == text {
			return false
		}
		if err := swap(key, []byte(text), cas); !errors.Is(err, budget.ErrConflict) {
			return true
		}
	}
	return true
}

// warn says of a matter what nobody has said last; empty: all is well.
func warn(matter, text string) {
	if first(matter, text) && text != "" {
		proxywasm.LogWarn("highwater: " + text)
	}
}

// logEvent logs what a tick has to tell, if anything.
func logEvent(event string, severity events.Severity) {
	switch {
	case event == "":
	case severity == events.Error:
		proxywasm.LogError("highwater: " + event)
	case severity == events.Info:
		proxywasm.LogInfo("highwater: " + event)
	default:
		proxywasm.LogWarn("highwater: " + event)
	}
}

// setup is which plugins run in this virtual machine, and what has been told of that.
type setup struct {
	plugins map[*plugin]struct{} // that are there
	batch   []*plugin            // that have started since it was told which
	batched budget.Time          // when the last of them did
	changes []string             // of shared settings, by them
	late    bool                 // other virtual machines were here long before
	oldest  uint64               // the first connection that the network filter has seen; 0 = none yet
	strange bool                 // a request came on one that it has not: that is told
	unnamed bool                 // a request came whose route has no name: that is told
}

// join notes that a plugin has started, and what that changed of shared settings.
func (s *setup) join(p *plugin, changed string) {
	if changed != "" && len(s.changes) < maxSummaries {
		s.changes = append(s.changes, changed)
	}
	s.plugins[p] = struct{}{}
	s.batch = append(s.batch, p)
	s.batched = machine.now
}

// leave notes that a plugin is going.
func (s *setup) leave(p *plugin) { delete(s.plugins, p) }

// connected notes a connection that the network filter has seen.
func (s *setup) connected(id uint64) {
	if s.oldest == 0 {
		s.oldest = id
	}
}

// mode is enforce where any plugin that is there enforces: an old one goes on for as long as its
// listener drains.
func (s *setup) mode() guard.Mode {
	for p := range s.plugins {
		if p.guard.Config().Mode == guard.Enforce {
			return guard.Enforce
		}
	}
	return guard.Observe
}

// introduce tells what has started, and what is missing of it, as soon as no other plugin has
// joined for a while.
func (s *setup) introduce(t budget.Time) {
	if len(s.batch) == 0 || t-s.batched < settleAfter {
		return
	}
	var summaries []string
	for _, p := range s.batch {
		summary := p.guard.Config().Summary()
		known := false
		for _, other := range summaries {
			known = known || other == summary
		}
		if !known && len(summaries) < maxSummaries {
			summaries = append(summaries, summary)
		}
	}
	if changed := strings.Join(s.changes, "; then "); changed != "" && first("changes", changed) {
		proxywasm.LogWarn("highwater: shared settings have changed: " + changed +
			". All plugins of a vm_id share them, and the one that starts last sets them")
	}
	s.batch, s.changes = nil, nil
	if text := fmt.Sprintf("%s, face %s: %s", version.String(), face, strings.Join(summaries, "; and ")); first("start", text) {
		proxywasm.LogInfo("highwater: " + text)
	}
	s.missing()
}

// maxSummaries: more configurations that differ are not told.
const maxSummaries = 8

// missing tells which of the two filters is not there. Which listeners have it can't be asked:
// those that come to be used without are told at their first request, by unknown.
func (s *setup) missing() {
	network, requests := false, false
	for p := range s.plugins {
		network = network || p.network
		requests = requests || !p.network && p.guard.Config().Debug.Path == ""
	}
	text := ""
	switch {
	case requests && !network:
		text = "there is no network filter with root_id connections: connections are neither counted nor closed. Add it to each listener"
	case network && !requests:
		text = "there is no HTTP filter with root_id requests: no request is judged. Add it to each listener, as the first of http_filters"
	}
	if text != "" {
		text += fmt.Sprintf(". If it is there, it is in another virtual machine than this one, of vm_id %q: "+
			"give both filters the same vm_config", property("plugin_vm_id"))
	}
	warn("missing", text)
}

// lateAfter: a virtual machine that starts so long after the first one has taken the place of one
// that is gone, and does not know the connections of that.
const lateAfter = 30 * time.Second

// unknown tells that a request came on a connection that the network filter does not know. Where
// there is none at all, that was told.
func (p *plugin) unknown(connection uint64) {
	v := &machine.setup
	if v.strange || p.guard.Config().Debug.Path != "" || v.late && (v.oldest == 0 || connection < v.oldest) {
		return
	}
	v.strange = true
	for other := range v.plugins {
		if other.network {
			warn("unknown", fmt.Sprintf("a request came to %s on a connection that the network filter does not know: that listener has no network filter "+
				"with root_id connections, or has it in another virtual machine. What is rejected there can't be closed, and may leave all its buffers hold. "+
				"Add the filter, with the same vm_config as the HTTP filter's", property("destination\x00address")))
			return
		}
	}
}

// unnamed tells that a request's route has no name, where that is by what requests are told apart.
// One that has no route at all, and no cluster therefore, is none of those.
func (p *plugin) unnamed() {
	if machine.setup.unnamed || !p.guard.Config().TellsRoutesApart() {
		return
	}
	if cluster, _ := propertyOf(clusterName); cluster != "" {
		machine.setup.unnamed = true
		warn("routes", guard.UnnamedRoutes)
	}
}
