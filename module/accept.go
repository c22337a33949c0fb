package main

// #include "abi.h"
import "C"

import "github.com/highwater-envoy/highwater/internal/budget"

// hwAccept says whether a connection may go on that has just been accepted, and whether the oldest
// of those without a filter chain on this thread, which came then, goes for it. It sets when it
// came.
//
//export hwAccept
func hwAccept(index C.uint32_t, config C.uintptr_t, oldest C.int64_t, came *C.int64_t) (what C.int) {
	what = C.HW_ACCEPT // whatever happens
	defer survive()
	w, p, t := workerOf(index), module.plugins.of(uintptr(config)), now()
	*came = C.int64_t(t)
	others := module.pending.Add(1) - 1
	if w == nil || p == nil {
		return what
	}
	goesOn, dropsOldest := w.accept(p, t, others, budget.Time(oldest))
	switch {
	case !goesOn:
		module.pending.Add(-1)
		return C.HW_REFUSE
	case dropsOldest:
		return C.HW_ACCEPT_FOR_OLDEST
	}
	return what
}

func (w *worker) accept(p *plugin, t budget.Time, others int64, oldest budget.Time) (goesOn, dropsOldest bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake(t)
	return p.guards[w.index].Accepts(t, others, oldest)
}

// hwHasChain notes that one has its filter chain, or has gone.
//
//export hwHasChain
func hwHasChain() { module.pending.Add(-1) }
