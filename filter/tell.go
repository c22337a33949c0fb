package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"

	"github.com/highwater-envoy/highwater/internal/budget"
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

// joined notes that a plugin has started, or is going.
func (v *vm) joined(p *plugin, joins bool) {
	if joins {
		v.plugins[p] = struct{}{}
		v.batch = append(v.batch, p)
		v.batched = v.now
	} else {
		delete(v.plugins, p)
	}
	v.worker.SetEnforcing(v.mode() == guard.Enforce)
}

// mode is enforce where any plugin that is there enforces: an old one goes on for as long as its
// listener drains.
func (v *vm) mode() guard.Mode {
	for p := range v.plugins {
		if p.guard.Config().Mode == guard.Enforce {
			return guard.Enforce
		}
	}
	return guard.Observe
}

// introduce tells what has started, and what is missing of it, as soon as no other plugin has
// joined for a while.
func (v *vm) introduce(t budget.Time) {
	if len(v.batch) == 0 || t-v.batched < settleAfter {
		return
	}
	var summaries []string
	for _, p := range v.batch {
		summary := p.guard.Config().Summary()
		known := false
		for _, s := range summaries {
			known = known || s == summary
		}
		if !known && len(summaries) < maxSummaries {
			summaries = append(summaries, summary)
		}
	}
	if changed := strings.Join(v.changes, "; then "); changed != "" && first("changes", changed) {
		proxywasm.LogWarn("highwater: shared settings have changed: " + changed +
			". All plugins of a vm_id share them, and the one that starts last sets them")
	}
	v.batch, v.changes = nil, nil
	if text := fmt.Sprintf("%s, face %s: %s", version.String(), face, strings.Join(summaries, "; and ")); first("start", text) {
		proxywasm.LogInfo("highwater: " + text)
	}
	v.missing()
}

// maxSummaries: more configurations that differ are not told.
const maxSummaries = 8

// missing tells which of the two filters is not there. Which listeners have it can't be asked:
// those that come to be used without are told at their first request, by unknown.
func (v *vm) missing() {
	network, requests := false, false
	for p := range v.plugins {
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
	v := &machine
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
	if machine.unnamed || !p.guard.Config().TellsRoutesApart() {
		return
	}
	if cluster, _ := propertyOf(clusterName); cluster != "" {
		machine.unnamed = true
		warn("routes", guard.UnnamedRoutes)
	}
}
