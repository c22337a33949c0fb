package main

import (
	"encoding/binary"
	"strings"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/httptext"
)

// connection is one TCP connection, seen by the network filter in front of the HTTP connection
// manager.
type connection struct {
	types.DefaultTcpContext
	guard.Connection
	plugin *plugin
	id     uint32
	key    uint64 // Envoy's connection.id
	open   bool
	asked  bool // for TLS
}

var _ types.TcpContext = (*connection)(nil)

// OnNewConnection implements types.TcpContext.
func (c *connection) OnNewConnection() types.Action {
	defer survive()
	if c.plugin.guard == nil {
		return types.ActionContinue
	}
	c.plugin.wake()
	c.Context = c.id
	if !c.plugin.guard.OpenConnection(machine.now, &c.Connection, c) {
		if proxywasm.CloseDownstream() == nil {
			return types.ActionPause
		}
		machine.hostError()
		return types.ActionContinue // it can't be refused, and goes on uncounted
	}
	c.open = true
	if key, ok := connectionID(); ok {
		c.key = key
		machine.setup.connected(key)
		machine.connections[key] = &c.Connection
	}
	return types.ActionContinue
}

// OnDownstreamData implements types.TcpContext.
func (c *connection) OnDownstreamData(n int, _ bool) types.Action {
	defer survive()
	if !c.open {
		return types.ActionContinue
	}
	c.plugin.wake()
	if !c.asked {
		c.asked = true // once: before the handshake it can't be told
		if c.plugin.guard.Config().Costs.TellsTLSApart() && property("connection\x00tls_version") != "" {
			c.plugin.guard.TLS(machine.now, &c.Connection)
		}
	}
	if n >= guard.LargeRead {
		machine.mark()
	}
	machine.arrived = &c.Connection
	if machine.worker.Data(machine.now, &c.Connection, int64(n)) {
		// What came is thrown away: Envoy would keep it until the pass of its event loop has ended.
		// It closes when this call has returned.
		if proxywasm.CloseDownstream() == nil {
			if proxywasm.ReplaceDownstreamData(nil) != nil {
				machine.hostError()
			}
			return types.ActionPause
		}
		machine.hostError() // it goes on to be judged
	}
	if !c.SpeaksHTTP() {
		c.carry(budget.Request, n)
	}
	return types.ActionContinue
}

// OnUpstreamData implements types.TcpContext: what goes to the client, responses of HTTP too.
func (c *connection) OnUpstreamData(n int, _ bool) types.Action {
	if c.SpeaksHTTP() || !c.open {
		return types.ActionContinue
	}
	return c.carryBack(n)
}

func (c *connection) carryBack(n int) types.Action {
	defer survive()
	c.plugin.wake()
	// Else there would always be more to be read before Envoy closes it.
	if c.carry(budget.Response, n) && proxywasm.ReplaceUpstreamData(nil) != nil {
		machine.hostError()
	}
	return types.ActionContinue
}

// carry counts what passes, and says whether the connection ends.
func (c *connection) carry(d budget.Direction, n int) (ends bool) {
	before := c.Ends()
	ends = c.plugin.guard.Carry(machine.now, &c.Connection, d, int64(n), c)
	if ends && !before {
		c.plugin.hurry(guard.FastTick)
	}
	return ends
}

// OnStreamDone implements types.TcpContext. It comes exactly once, however the connection ended.
func (c *connection) OnStreamDone() {
	defer survive()
	if !c.open {
		return
	}
	c.open = false
	machine.worker.CloseConnection(machine.now, &c.Connection)
	if machine.arrived == &c.Connection {
		machine.arrived = nil
	}
	if machine.connections[c.key] == &c.Connection {
		delete(machine.connections, c.key)
	}
}

// Uploads implements guard.Peer.
func (c *connection) Uploads() bool {
	return httptext.IsUpload(c.Method())
}

// Method implements guard.Peer.
func (c *connection) Method() string {
	first, err := proxywasm.GetDownstreamData(0, len("OPTIONS "))
	method, _, ok := strings.Cut(string(first), " ")
	if err != nil || !ok {
		return ""
	}
	return method
}

// Source implements guard.Peer, in a tick too.
func (c *connection) Source() (address string) {
	if p := machine.ticking; p == nil || p.on(c.id) {
		address, _ = propertyOf(sourceAddress)
		leave()
	}
	return httptext.WithoutPort(address)
}

// Place implements guard.Peer.
func (c *connection) Place() string {
	address, _ := propertyOf("destination\x00address")
	return address
}

// ParsedAsHTTP implements guard.Peer: Envoy's HTTP connection manager notes the protocol on the
// connection when it has parsed its first bytes.
func (c *connection) ParsedAsHTTP() bool {
	protocol, _ := propertyOf("request\x00protocol")
	return protocol != ""
}

// connectionID is Envoy's id of the connection that the current context is on: the same in both
// filters.
func connectionID() (uint64, bool) {
	text, ok := propertyOf("connection\x00id")
	if !ok || len(text) != 8 {
		machine.hostError()
		return 0, false
	}
	return binary.LittleEndian.Uint64([]byte(text)), true
}
