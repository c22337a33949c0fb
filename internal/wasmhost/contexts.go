package wasmhost

import (
	"errors"
	"fmt"
	"time"
)

// Action is what the plugin says at the end of a callback.
type Action uint32

// The actions of Proxy-Wasm.
const (
	Continue Action = iota
	Pause
)

func (a Action) String() string {
	if a == Continue {
		return "continue"
	}
	return "pause"
}

// Plugin is one configuration in one VM.
type Plugin struct {
	guestContext
	rootID        string
	configuration string
	period        time.Duration
	next          time.Duration
	pending       map[uint32]struct{} // tokens of HTTP calls
	headers       [][2]string         // of the answer that is being delivered
	body          []byte
}

// VM is the virtual machine that the plugin is in.
func (p *Plugin) VM() *VM { return p.vm }

// RootID is the root_id that it was started with.
func (p *Plugin) RootID() string { return p.rootID }

// TickPeriod is how often it wants Tick; 0 = never.
func (p *Plugin) TickPeriod() time.Duration { return p.period }

// NextTick is when Envoy's timer for it ends, by the process's clock; ok is false if it wants no
// ticks.
func (p *Plugin) NextTick() (t time.Duration, ok bool) { return p.next, p.period > 0 }

// Tick is on_tick. The error, here and below, says that the VM is dead.
func (p *Plugin) Tick() error {
	if _, err := p.vm.call(onTick, &p.guestContext); err != nil {
		return err
	}
	p.rest()
	return nil
}

func (p *Plugin) rest() { p.next = p.vm.process.options.Clock() + p.period }

// HTTPResponse delivers the answer to an HTTP call. Without headers the call has failed. An unknown
// token, or one that was answered already, is an error.
func (p *Plugin) HTTPResponse(token uint32, headers [][2]string, body []byte) error {
	if _, ok := p.pending[token]; !ok {
		return fmt.Errorf("no HTTP call with token %d is outstanding", token)
	}
	delete(p.pending, token)
	p.headers, p.body = headers, body
	stack := &p.vm.exports[onHTTPCallResponse].stack
	stack[3], stack[4] = uint64(len(body)), 0 // no trailers
	_, err := p.vm.call3(onHTTPCallResponse, &p.guestContext, uint64(token), uint64(len(headers)))
	p.headers, p.body = nil, nil
	return err
}

// Done ends the plugin: its configuration was replaced.
func (p *Plugin) Done() error {
	_, err := p.vm.call(onDone, &p.guestContext)
	if err != nil {
		return err
	}
	p.period = 0
	return p.vm.finish(&p.guestContext)
}

// Downstream is a TCP connection as both filters see it.
type Downstream struct {
	ID         uint64 // connection.id, one for each connection of a process
	TLSVersion string // connection.tls_version: empty without TLS, and before the handshake
	Protocol   string // request.protocol, as the network filter sees it: empty where nothing parses HTTP, and before its first read has been
	Source     string // source.address
	Address    string // destination.address: the listener's
}

// Connection is a connection at the network filter.
type Connection struct {
	guestContext
	Downstream *Downstream
	Owner      any    // the caller's own
	Begins     string // what the client's first bytes are, as far as anybody looks
	done       bool
	unread     int // what has come and was neither passed on nor thrown away
	unwritten  int // what is being written to the client
}

// NewConnection is onNewConnection. Call it on a plugin that is a network filter.
func (p *Plugin) NewConnection(d *Downstream) (*Connection, Action, error) {
	c := &Connection{Downstream: d}
	c.plugin, c.connection = p, c
	if err := p.vm.create(&c.guestContext, p.id); err != nil {
		return nil, Continue, err
	}
	action, err := p.vm.call(onNewConnection, &c.guestContext)
	return c, Action(action), err
}

// Plugin is the network filter that the connection is at.
func (c *Connection) Plugin() *Plugin { return c.plugin }

// Data is onData: n bytes came from the client. If end, none will come any more.
func (c *Connection) Data(n int, end bool) (Action, error) {
	c.unread += n
	action, err := c.vm.call3(onDownstreamData, &c.guestContext, uint64(uint32(n)), flag(end))
	if Action(action) == Continue {
		c.unread = 0
	}
	return Action(action), err
}

// UpstreamData is onWrite: n bytes are on their way to the client. It returns how many go on.
func (c *Connection) UpstreamData(n int) (goOn int, err error) {
	c.unwritten = n
	_, err = c.vm.call3(onUpstreamData, &c.guestContext, uint64(uint32(n)), 0)
	return c.unwritten, err
}

// Unread is how many bytes of the client lie with the network filter.
func (c *Connection) Unread() int { return c.unread }

// Close is the end of the connection, by the client (remote) or by Envoy:
// on_downstream_connection_close, on_done, on_log and on_delete at once, as Envoy does. A second
// call does nothing.
func (c *Connection) Close(remote bool) error {
	if c.done {
		return nil
	}
	c.done = true
	by := uint64(1)
	if remote {
		by = 2
	}
	_, err := c.vm.call2(onDownstreamClose, &c.guestContext, by)
	if err != nil {
		return err
	}
	return errors.Join(c.vm.end(&c.guestContext, onDone), c.vm.end(&c.guestContext, onLog), c.vm.finish(&c.guestContext))
}

// IsDone says whether Close was called.
func (c *Connection) IsDone() bool { return c.done }

// StreamInfo is what the plugin can ask of a stream besides its headers.
type StreamInfo struct {
	Downstream  *Downstream // must not be nil
	Protocol    string      // request.protocol: HTTP/1.1 or HTTP/2
	Route       string      // xds.route_name
	Cluster     string      // xds.cluster_name
	VirtualHost string      // xds.virtual_host_name
}

// Stream is a request and its response at the HTTP filter.
type Stream struct {
	guestContext
	Info       StreamInfo
	Owner      any // the caller's own
	all        [][2]string
	request    [][2]string // what the plugin can read now; nil = no map
	response   [][2]string
	properties [][2]string
	done       bool
}

// NewStream makes the stream's context. A stream that Envoy itself refuses has Done called and
// nothing else.
func (p *Plugin) NewStream(info StreamInfo) (*Stream, error) {
	s := &Stream{Info: info}
	s.plugin, s.stream = p, s
	return s, p.vm.create(&s.guestContext, p.id)
}

// Plugin is the HTTP filter that the stream is at.
func (s *Stream) Plugin() *Plugin { return s.plugin }

// RequestHeaders is on_request_headers. The headers must not be changed before Done. If end, there
// is no body.
func (s *Stream) RequestHeaders(headers [][2]string, end bool) (Action, error) {
	s.all, s.request = headers, headers
	action, err := s.vm.call3(onRequestHeaders, &s.guestContext, uint64(len(headers)), flag(end))
	if Action(action) == Continue {
		s.request = nil
	}
	return Action(action), err
}

// RequestBody is on_request_body: n bytes came, or, after a pause, are waiting. If end, they are
// the last of the request: without trailers.
func (s *Stream) RequestBody(n int, end bool) (Action, error) { return s.body(onRequestBody, n, end) }

// RequestTrailers is on_request_trailers: they end the body.
func (s *Stream) RequestTrailers() (Action, error) { return s.trailers(onRequestTrailers) }

// ResponseHeaders is on_response_headers, of the upstream's response or of a LocalResponse.
func (s *Stream) ResponseHeaders(headers [][2]string, end bool) (Action, error) {
	s.response = headers
	action, err := s.vm.call3(onResponseHeaders, &s.guestContext, uint64(len(headers)), flag(end))
	if Action(action) == Continue {
		s.response = nil
	}
	return Action(action), err
}

// ResponseBody is on_response_body: n bytes came from the upstream.
func (s *Stream) ResponseBody(n int, end bool) (Action, error) { return s.body(onResponseBody, n, end) }

// ResponseTrailers is on_response_trailers: they end the body.
func (s *Stream) ResponseTrailers() (Action, error) { return s.trailers(onResponseTrailers) }

func (s *Stream) body(export, n int, end bool) (Action, error) {
	action, err := s.vm.call3(export, &s.guestContext, uint64(uint32(n)), flag(end))
	return Action(action), err
}

func (s *Stream) trailers(export int) (Action, error) {
	action, err := s.vm.call2(export, &s.guestContext, 1)
	return Action(action), err
}

// Done is the end of the stream, however it came to that: on_log, on_done and on_delete, as Envoy
// does. A second call does nothing.
func (s *Stream) Done() error {
	if s.done {
		return nil
	}
	s.done = true
	s.request = s.all
	return errors.Join(s.vm.end(&s.guestContext, onLog), s.vm.end(&s.guestContext, onDone), s.vm.finish(&s.guestContext))
}

// IsDone says whether Done was called. Envoy crashes where the plugin resumes or answers a stream
// that is done.
func (s *Stream) IsDone() bool { return s.done }

// Property returns what the plugin has set on the stream, for access logs; ok is false if it has
// not.
func (s *Stream) Property(name string) (value string, ok bool) { return lookup(s.properties, name) }

func (vm *VM) end(c *guestContext, export int) error {
	_, err := vm.call(export, c)
	return err
}

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
