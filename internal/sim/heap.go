package sim

// heap is what the allocator gives out. What is freed stays in use up to a bound, in its caches,
// and is given out first.
type heap struct {
	live, cached, cacheMax int64
	cacheShare             float64 // of the most that was ever live; 0 = no such bound
	highest                int64   // ever live
	peak                   int64
	mapped, keep           int64 // by the kernel, and what of it stays when it is free
	fresh                  int64 // ever mapped
}

func (h *heap) alloc(n int64) {
	h.live += n
	h.cached = max(h.cached-n, 0)
	h.highest = max(h.highest, h.live)
	h.peak = max(h.peak, h.inUse())
	if n := h.inUse() - h.mapped; n > 0 {
		h.mapped += n
		h.fresh += n
	}
}

func (h *heap) free(n int64) {
	h.live -= n
	most := h.cacheMax
	if h.cacheShare > 0 {
		most = min(most, int64(h.cacheShare*float64(h.highest)))
	}
	h.cached = max(h.cached, min(h.cached+n, most))
	h.mapped = min(h.mapped, max(h.inUse(), h.keep))
}

func (h *heap) inUse() int64 { return h.live + h.cached }
