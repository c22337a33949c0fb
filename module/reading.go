package main

// #include "abi.h"
import "C"

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/memory"
)

// reader reads Envoy's memory. Envoy's allocator tells it at once, by mallinfo(), where the release
// binaries export it. Another Envoy is asked for /memory, as the plugin asks: by the main thread,
// on a configuration of the HTTP filter. So is one whose configuration names memory.cluster: that
// may be the companion, which sees the container.
type reader struct {
	direct bool // mallinfo() is that of Envoy

	mu struct {
		sync.Mutex
		named     bool // the last configuration names memory.cluster
		told      string
		asker     *plugin
		asking    map[uint64]*worker // by callout; of the main thread
		container int64              // bytes; 0 = it has no limit, or none that is known
		looked    budget.Time        // when that was
	}
}

func (r *reader) init() {
	r.direct = bool(C.hw_find_mallinfo())
	r.mu.asking = map[uint64]*worker{}
}

// configure notes where a configuration wants readings to come from, and tells where they do.
func (r *reader) configure(p *plugin, text []byte) {
	var c struct {
		Memory struct {
			Cluster *string `json:"cluster"`
		} `json:"memory"`
	}
	_ = json.Unmarshal(text, &c) // it has been parsed already
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.named = c.Memory.Cluster != nil
	if p.kind == requests {
		p.asks = C.envoy_dynamic_module_callback_http_filter_config_scheduler_new(p.envoy)
		r.mu.asker = p
	}
	from := "readings come from mallinfo() of Envoy's allocator"
	switch {
	case r.mu.named:
		from = "readings come from " + p.config.Memory.From() + ", for the configuration names it"
	case !r.direct:
		from = "this Envoy exports no mallinfo() of its allocator: readings come from " + p.config.Memory.From()
	}
	if from != r.mu.told {
		r.mu.told = from
		logf(C.HW_LOG_INFO, "%s", from)
	}
}

// leave has another plugin's configuration be asked on.
func (r *reader) leave(p *plugin) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p.asks == nil {
		return
	}
	C.envoy_dynamic_module_callback_http_filter_config_scheduler_delete(p.asks)
	p.asks = nil
	if r.mu.asker != p {
		return
	}
	r.mu.asker = nil
	for _, other := range module.plugins.all() {
		if other != nil && other.asks != nil {
			r.mu.asker = other
		}
	}
}

// ask has the worker get a reading, at once or by the main thread. The caller has its lock.
func (r *reader) ask(w *worker, t budget.Time) {
	r.mu.Lock()
	if r.direct && !r.mu.named {
		reading, err := r.read(t)
		r.mu.Unlock()
		w.observe(t, reading, err)
		return
	}
	asker, source := r.mu.asker, w.mu.policy.Memory()
	if asker != nil {
		C.envoy_dynamic_module_callback_http_filter_config_scheduler_commit(asker.asks, C.uint64_t(w.index))
	}
	r.mu.Unlock()
	if asker == nil {
		w.observe(t, memory.Reading{}, &memory.Failure{
			Cause: memory.CauseNoCluster, Err: fmt.Errorf("there is no HTTP filter of highwater on which %s could be asked", source.From()),
		})
	}
}

// read asks the allocator.
func (r *reader) read(t budget.Time) (memory.Reading, error) {
	m := C.hw_read()
	resident, err := resident()
	if err != nil {
		return memory.Reading{}, err
	}
	reading := unwrap(uint32(m.heap), uint32(m.allocated), uint32(m.free), resident)
	reading.Limit = r.limit(t)
	return reading, nil
}

// unwrap is the reading of which mallinfo() has told the lower 32 bits: arena is heap_size,
// uordblks allocated, and fordblks what is free, mapped or not (tcmalloc's and gperftools'
// mallinfo). What the heap has in use is resident but for what was never touched, so that it is the
// one of all that are possible that is next to what is resident.
func unwrap(heap, allocated, free uint32, resident int64) memory.Reading {
	const wrap = 1 << 32
	inUse := int64(heap - free)
	if above := resident - inUse; above > wrap/2 {
		inUse += (above + wrap/2) / wrap * wrap
	}
	all := int64(allocated)
	if above := inUse - all; above > wrap/2 {
		all += (above + wrap/2) / wrap * wrap
	}
	return memory.Reading{InUse: inUse, Allocated: all, Mapped: inUse}
}

var pageSize = int64(os.Getpagesize())

// resident is what the process has resident, bytes.
func resident() (int64, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, fmt.Errorf("what is resident: %w", err)
	}
	fields := strings.Fields(string(text))
	if len(fields) < 2 {
		return 0, fmt.Errorf("what is resident: /proc/self/statm has %q", text)
	}
	pages, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("what is resident: /proc/self/statm: %w", err)
	}
	return pages * pageSize, nil
}

// containerEvery: a limit that is changed while the process runs is known within so long.
const containerEvery = 5 * time.Second

// limit is that of the container; 0 = it has none, or none that is known.
func (r *reader) limit(t budget.Time) int64 {
	if r.mu.looked != 0 && t-r.mu.looked < containerEvery {
		return r.mu.container
	}
	r.mu.looked, r.mu.container = t, 0
	group, err := cgroup.Find(os.DirFS("/"), 0)
	if err != nil {
		return 0
	}
	if stats, err := group.Read(); err == nil && stats.Limit != cgroup.NoLimit {
		r.mu.container = min(stats.Limit, stats.High)
	}
	return r.mu.container
}

// hwAsk makes the call that a worker has asked for, on the main thread.
//
//export hwAsk
func hwAsk(config C.uintptr_t, index C.uint64_t) {
	defer survive()
	w := workerOf(C.uint32_t(index))
	if p := module.plugins.of(uintptr(config)); p != nil && w != nil {
		module.reader.call(p, w)
	}
}

func (r *reader) call(p *plugin, w *worker) {
	source, timeout := w.asks()
	var pin runtime.Pinner
	defer pin.Unpin()
	headers := headersOf(&pin, [][2]string{{":method", "GET"}, {":path", source.Path}, {":authority", "highwater"}, {"host", "highwater"}})
	var id C.uint64_t
	failed := C.envoy_dynamic_module_callback_http_filter_config_http_callout(p.envoy, &id, textOf(source.Cluster), unsafe.SliceData(headers), C.size_t(len(headers)),
		textOf(""), C.uint64_t(timeout.Milliseconds()))
	if failed != 0 {
		w.answer(memory.Reading{}, &memory.Failure{
			Cause: memory.CauseNoCluster, Err: fmt.Errorf("the call is refused, most likely because there is no such cluster (result %d)", failed),
		})
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.asking[uint64(id)] = w
}

func (w *worker) asks() (guard.Memory, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.policy.Memory(), time.Duration(w.mu.policy.AskTimeout())
}

func (w *worker) answer(r memory.Reading, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.observe(now(), r, err)
}

// hwAnswer takes the answer.
//
//export hwAnswer
func hwAnswer(id C.uint64_t, result C.int, h *C.hw_header, n C.size_t, body *C.hw_text, chunks C.size_t) {
	defer survive()
	w := module.reader.answered(uint64(id))
	if w == nil {
		return
	}
	w.answer(parseAnswer(result, unsafe.Slice(h, int(n)), unsafe.Slice(body, int(chunks))))
}

func (r *reader) answered(id uint64) *worker {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := r.mu.asking[id]
	delete(r.mu.asking, id)
	return w
}

const (
	maxAnswer = 64 << 10
	maxShown  = 160 // bytes of an answer that is another
)

func parseAnswer(result C.int, headers []C.hw_header, chunks []C.hw_text) (memory.Reading, error) {
	if result != 0 || len(headers) == 0 {
		return memory.Reading{}, &memory.Failure{Cause: memory.CauseSlow, Err: fmt.Errorf("no answer in time (result %d)", result)}
	}
	var body []byte
	for _, c := range chunks {
		if body = append(body, viewOf(c)...); len(body) > maxAnswer {
			return memory.Reading{}, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
		}
	}
	for _, h := range headers {
		name := viewOf(C.hw_text{ptr: h.key, length: h.key_length})
		value := viewOf(C.hw_text{ptr: h.value, length: h.value_length})
		if name == ":status" && value != "200" {
			status, _ := strconv.Atoi(value)
			return memory.Reading{}, memory.StatusFailure(status, string(body[:min(len(body), maxShown)]))
		}
	}
	return memory.Parse(body)
}
