package main

// #include "abi.h"
import "C"

import (
	"strconv"
	"strings"
	"unsafe"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/httptext"
)

// connection is one TCP connection, seen by the network filter in front of the HTTP connection
// manager, or of another.
type connection struct {
	guard.Connection // first: connectionOf relies on it
	node
	c      *C.hw_connection // nil = it has ended
	worker *worker
	plugin *plugin
	guard  *guard.Guard
	id     uint64 // Envoy's connection.id
	asked  bool   // for TLS: once, for before the handshake it can't be told
	reading
	meter
}

var _ guard.Peer = (*connection)(nil)

// connectionOf returns the connection that the guard's is part of.
func connectionOf(c *guard.Connection) *connection { return (*connection)(unsafe.Pointer(c)) }

// isOpen says that Envoy can be told to do something with it.
func (c *connection) isOpen() bool {
	return c.c != nil && bool(c.c.open) && C.envoy_dynamic_module_callback_network_filter_get_connection_state(c.c.envoy) == C.HW_CONNECTION_OPEN
}

// close closes it, and drops what it holds. It says whether that could be.
func (c *connection) close() bool {
	if !c.isOpen() {
		return false
	}
	C.envoy_dynamic_module_callback_network_filter_close(c.c.envoy, C.HW_CLOSE_WITHOUT_FLUSH)
	return true
}

//export hwConnection
func hwConnection(c *C.hw_connection, id C.uint64_t) (status C.int) {
	defer survive()
	w, p := workerOf(c.worker), module.plugins.of(uintptr(c.config))
	if w == nil || p == nil {
		return C.HW_CONTINUE
	}
	own := int64(C.envoy_dynamic_module_callback_network_filter_get_buffer_limit(c.envoy))
	limit, admitted := w.openConnection(c, p, uint64(id), own)
	if !admitted {
		C.envoy_dynamic_module_callback_network_filter_close(c.envoy, C.HW_CLOSE_WITHOUT_FLUSH)
		return C.HW_STOP
	}
	if limit > 0 {
		C.envoy_dynamic_module_callback_network_filter_set_buffer_limits(c.envoy, C.uint32_t(limit))
	}
	return C.HW_CONTINUE
}

// openConnection says whether it is admitted, and which buffer limit it gets; 0 = it keeps its own.
func (w *worker) openConnection(c *C.hw_connection, p *plugin, id uint64, own int64) (limit int64, admitted bool) {
	t := now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake(t)
	k := &connection{c: c, worker: w, plugin: p, guard: p.guards[w.index], id: id} // the policy may know it for longer than it is open
	place := w.mu.links.put(k)
	k.Context = place + 1
	if p.config.Mode == guard.Enforce {
		k.Caps = guard.Caps{Read: w.mu.policy.BufferLimit(own), Own: own}
		if own == 0 || k.Read < own {
			limit = k.Read
		}
	}
	c.slot = C.uint32_t(place)
	if !k.guard.OpenConnection(t, &k.Connection, k) {
		k.c = nil
		w.mu.links.give(place)
		return 0, false
	}
	c.open = true
	w.mu.byID[id] = k
	w.begin(&k.node, c.envoy, false)
	return limit, true
}

//export hwRead
func hwRead(c *C.hw_connection, n C.size_t) (status C.int) {
	defer survive()
	w := workerOf(c.worker)
	t := now()
	w.yield(t)
	k, refused, limit := w.read(c, t, int64(n))
	k.follow()
	if limit > 0 {
		C.envoy_dynamic_module_callback_network_filter_set_buffer_limits(c.envoy, C.uint32_t(limit))
	}
	if !refused {
		return C.HW_CONTINUE
	}
	// What came is thrown away.
	C.envoy_dynamic_module_callback_network_filter_drain_read_buffer(c.envoy, n)
	C.envoy_dynamic_module_callback_network_filter_close(c.envoy, C.HW_CLOSE_WITHOUT_FLUSH)
	return C.HW_STOP
}

// read notes what came. It says whether the connection is closed for it, and which buffer limit it
// gets from now on; 0 = it keeps its own.
func (w *worker) read(c *C.hw_connection, t budget.Time, n int64) (k *connection, refused bool, limit int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake(t)
	k = w.mu.links.all[c.slot]
	if !k.asked {
		k.asked = true
		if k.guard.Config().Costs.TellsTLSApart() && bool(C.envoy_dynamic_module_callback_network_filter_is_ssl(c.envoy)) {
			k.guard.TLS(t, &k.Connection)
		}
	}
	if n >= guard.LargeRead && w.mu.policy.Marks() {
		w.mu.policy.Mark(t)
	}
	w.mu.arrived = k
	if w.mu.policy.Data(t, &k.Connection, n) {
		return k, true, 0
	}
	if !k.SpeaksHTTP() {
		w.carry(k, t, budget.Request, n)
	}
	return k, false, w.relimit(k, n)
}

//export hwWrite
func hwWrite(c *C.hw_connection, n C.size_t) (status C.int) {
	defer survive()
	if workerOf(c.worker).write(c, int64(n)) {
		// Else there would always be more to be read before Envoy closes it.
		C.envoy_dynamic_module_callback_network_filter_drain_write_buffer(c.envoy, n)
	}
	return C.HW_CONTINUE
}

func (w *worker) write(c *C.hw_connection, n int64) (ends bool) {
	t := now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wake(t)
	k := w.mu.links.all[c.slot]
	if k.SpeaksHTTP() {
		c.http = true // it needs no look from now on
		return false
	}
	return w.carry(k, t, budget.Response, n)
}

// carry counts what passes, and says whether the connection ends.
func (w *worker) carry(k *connection, t budget.Time, d budget.Direction, n int64) (ends bool) {
	before := k.Ends()
	ends = k.guard.Carry(t, &k.Connection, d, n, k)
	if ends && !before {
		w.hurry(t, guard.FastTick)
	}
	return ends
}

// hwConnectionDone comes exactly once for each connection that is open, however it ended.
//
//export hwConnectionDone
func hwConnectionDone(c *C.hw_connection) {
	c.open = false
	defer survive()
	workerOf(c.worker).closeConnection(c)
}

func (w *worker) closeConnection(c *C.hw_connection) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.mu.links.all[c.slot]
	// A fault in the policy must leave nothing here that Envoy has freed.
	w.end(&k.node)
	if k.scheduler != nil {
		C.envoy_dynamic_module_callback_network_filter_scheduler_delete(k.scheduler)
		k.scheduler = nil
	}
	defer func() { k.c = nil }()
	if w.mu.arrived == k {
		w.mu.arrived = nil
	}
	if w.mu.byID[k.id] == k {
		delete(w.mu.byID, k.id)
	}
	w.mu.policy.CloseConnection(now(), &k.Connection)
	w.mu.links.all[c.slot] = nil
	w.mu.links.give(uint32(c.slot))
}

// Uploads implements guard.Peer.
func (c *connection) Uploads() bool { return httptext.IsUpload(c.Method()) }

// Method implements guard.Peer.
func (c *connection) Method() (method string) {
	first := true
	c.eachPiece(readBuffer, func(p []byte) {
		if first {
			first = false
			if m, _, ok := strings.Cut(string(p[:min(len(p), len("OPTIONS "))]), " "); ok {
				method = m
			}
		}
	})
	return method
}

// maxChunks: a read of our limit comes in fewer.
const maxChunks = 64

// buffer is which of a connection's.
type buffer bool

const (
	readBuffer  buffer = false
	writeBuffer buffer = true
)

// eachPiece hands over what is just passing, and says whether that was all. The pieces are Envoy's.
func (c *connection) eachPiece(b buffer, do func(p []byte)) (all bool) {
	chunks := &c.worker.chunks
	n := C.hw_chunks(c.c.envoy, C.bool(b), &chunks[0], maxChunks)
	if n > maxChunks {
		return false
	}
	for _, t := range chunks[:n] {
		if t.length > 0 {
			do(unsafe.Slice((*byte)(unsafe.Pointer(t.ptr)), int(t.length)))
		}
	}
	return true
}

// Source implements guard.Peer.
func (c *connection) Source() string {
	var address C.hw_text
	var port C.uint32_t
	if c.c == nil || !bool(C.envoy_dynamic_module_callback_network_filter_get_remote_address(c.c.envoy, &address, &port)) {
		return ""
	}
	return stringOf(address)
}

// Place implements guard.Peer.
func (c *connection) Place() string {
	var address C.hw_text
	var port C.uint32_t
	if c.c == nil || !bool(C.envoy_dynamic_module_callback_network_filter_get_local_address(c.c.envoy, &address, &port)) {
		return ""
	}
	return stringOf(address) + ":" + strconv.Itoa(int(port))
}

// ParsedAsHTTP implements guard.Peer: Envoy's HTTP connection manager notes the protocol on the
// connection when it has parsed its first bytes.
func (c *connection) ParsedAsHTTP() bool {
	var protocol C.hw_text
	return c.c != nil && bool(C.envoy_dynamic_module_callback_network_filter_get_attribute_string(c.c.envoy, C.HW_REQUEST_PROTOCOL, &protocol)) &&
		protocol.length > 0
}
