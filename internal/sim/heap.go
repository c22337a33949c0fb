package sim

// heap is what the allocator gives out. What is freed stays in use up to a bound, in its caches, and is given out first.
type heap struct {
	live, cached, cacheMax int64
	peak                   int64
}

func (h *heap) alloc(n int64) {
	h.live += n
	h.cached = max(h.cached-n, 0)
	h.peak = max(h.peak, h.inUse())
}

func (h *heap) free(n int64) {
	h.live -= n
	h.cached = min(h.cached+n, h.cacheMax)
}

func (h *heap) inUse() int64 { return h.live + h.cached }
