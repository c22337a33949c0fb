package main

// #include "abi.h"
import "C"

// hwAccept says whether a connection may go on that has just been accepted.
//
//export hwAccept
func hwAccept(index C.uint32_t, config C.uintptr_t) (goesOn C.bool) {
	goesOn = true // whatever happens
	defer survive()
	w, p := workerOf(index), module.plugins.of(uintptr(config))
	if w == nil || p == nil {
		return true
	}
	return C.bool(w.accept(p))
}

func (w *worker) accept(p *plugin) bool {
	t := now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake(t)
	if !p.guards[w.index].Accepts(t, w.mu.pending) {
		return false
	}
	w.mu.pending++
	return true
}

// hwHasChain notes that one has its filter chain, or has gone.
//
//export hwHasChain
func hwHasChain(index C.uint32_t) {
	defer survive()
	if w := workerOf(index); w != nil {
		w.hasChain()
	}
}

func (w *worker) hasChain() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.pending = max(w.mu.pending-1, 0)
}
