package sim

import (
	"fmt"
	"strconv"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/wasmhost"
)

// Compiled is the compiled plugin on workers of a Proxy-Wasm host.
type Compiled struct {
	proxy   Proxy
	process *wasmhost.Process
	workers []*compiledWorker
	asking  *asking
	table   budget.Table
	seen    uint32 // cas of the table
	streams int
	err     error // the first that a virtual machine had; nothing is called after it
}

type compiledWorker struct {
	index       int
	vm          *wasmhost.VM
	connections *wasmhost.Plugin
	requests    *wasmhost.Plugin
}

type asking struct {
	plugin *wasmhost.Plugin
	token  uint32
}

type compiledConn struct {
	wasmhost.Downstream
	filter *wasmhost.Connection // nil = there is no network filter
}

type compiledStream struct {
	*wasmhost.Stream
}

var (
	_ Filter           = (*Compiled)(nil)
	_ wasmhost.Handler = (*Compiled)(nil)
)

// NewCompiled starts the plugin on so many workers. Close frees them.
func NewCompiled(p Proxy, m *wasmhost.Module, configuration string, workers int) (*Compiled, error) {
	c := &Compiled{proxy: p}
	var err error
	if c.process, err = m.NewProcess(wasmhost.Options{Clock: p.Now, Handler: c}); err != nil {
		return nil, err
	}
	for i := range workers {
		w := &compiledWorker{index: i}
		c.workers = append(c.workers, w)
		if w.vm, err = c.process.NewVM(); err != nil {
			return nil, err
		}
		if w.connections, err = w.vm.Start("connections", configuration); err != nil {
			return nil, err
		}
		if w.requests, err = w.vm.Start("requests", configuration); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Close frees the virtual machines.
func (c *Compiled) Close() {
	for _, w := range c.workers {
		_ = w.vm.Close()
	}
}

// Process is what the workers share, to look at.
func (c *Compiled) Process() *wasmhost.Process { return c.process }

// Err is the first fault of a virtual machine; nil if there was none.
func (c *Compiled) Err() error { return c.err }

func (c *Compiled) failed(err error) bool {
	if err != nil && c.err == nil {
		c.err = err
	}
	return c.err != nil
}

// OpenConnection implements Filter.
func (c *Compiled) OpenConnection(conn *Conn) (refused bool) {
	face := downstream(conn)
	defer c.timers(conn.Worker)
	if c.err != nil {
		return false
	}
	filter, action, err := c.workers[conn.Worker].connections.NewConnection(&face.Downstream)
	if c.failed(err) {
		return false
	}
	if action == wasmhost.Pause {
		c.failed(filter.Close(false))
		return true
	}
	filter.Owner = conn
	if !conn.HTTP2 {
		filter.Begins = "POST / HTTP/1.1"
	}
	face.filter = filter
	return false
}

func downstream(conn *Conn) *compiledConn {
	face, ok := conn.Face.(*compiledConn)
	if !ok {
		face = &compiledConn{Downstream: wasmhost.Downstream{ID: uint64(conn.ID), Protocol: "HTTP/1.1"}}
		if conn.owner.Who != nil {
			face.Source = conn.owner.Who.Source
		}
		conn.Face = face
	}
	return face
}

// Data implements Filter.
func (c *Compiled) Data(conn *Conn, n int64) (refused bool) {
	if c.err != nil {
		return false
	}
	action, err := downstream(conn).filter.Data(int(n), false)
	c.failed(err)
	c.timers(conn.Worker)
	return action == wasmhost.Pause
}

// CloseConnection implements Filter.
func (c *Compiled) CloseConnection(conn *Conn) {
	if c.err == nil {
		c.failed(downstream(conn).filter.Close(false))
	}
}

var (
	noBody  = [][2]string{{":method", "GET"}, {":path", "/"}, {":authority", "model"}}
	chunked = [][2]string{{":method", "POST"}, {":path", "/"}, {":authority", "model"}}
	ok      = [][2]string{{":status", "200"}}
)

func withLength(headers [][2]string, length int64) [][2]string {
	if length <= 0 {
		return headers
	}
	return append(headers[:len(headers):len(headers)], [2]string{"content-length", strconv.FormatInt(length, 10)})
}

// headers are those of a request, with what is known of whose it is.
func (w *Who) headers(of [][2]string) [][2]string {
	if w == nil {
		return of
	}
	own := make([][2]string, 0, len(of)+len(w.Names))
	for _, h := range of {
		if h[0] == ":path" && w.Path != "" {
			h[1] = w.Path
		}
		own = append(own, h)
	}
	for _, name := range w.Names {
		if value := w.Header(name); value != "" {
			own = append(own, [2]string{name, value})
		}
	}
	return own
}

// Headers implements Filter.
func (c *Compiled) Headers(s *Stream, d Direction, length int64) (pause bool) {
	if c.err != nil {
		return false
	}
	defer c.timers(s.Conn.Worker)
	if d == Response {
		_, err := s.Face.(*compiledStream).ResponseHeaders(withLength(ok, length), length == 0)
		c.failed(err)
		return false
	}
	protocol := "HTTP/1.1"
	if s.Conn.HTTP2 {
		protocol = "HTTP/2"
	}
	info := wasmhost.StreamInfo{Downstream: &downstream(s.Conn).Downstream, Protocol: protocol, Route: s.client.Class, Cluster: "upstream"}
	if w := s.client.Who; w != nil {
		info.Route, info.Cluster, info.VirtualHost = w.Route, w.Cluster, w.VirtualHost
	}
	stream, err := c.workers[s.Conn.Worker].requests.NewStream(info)
	if c.failed(err) {
		return false
	}
	stream.Owner = s
	s.Face = &compiledStream{Stream: stream}
	c.streams++
	headers := noBody
	if length != 0 {
		headers = withLength(chunked, length)
	}
	action, err := stream.RequestHeaders(s.client.Who.headers(headers), length == 0)
	c.failed(err)
	return action == wasmhost.Pause && !s.over
}

// Body implements Filter.
func (c *Compiled) Body(s *Stream, d Direction, n int64, end bool) {
	face, opened := s.Face.(*compiledStream)
	if c.err != nil || !opened {
		return
	}
	body := face.RequestBody
	if d == Response {
		body = face.ResponseBody
	}
	_, err := body(int(n), end)
	c.failed(err)
	c.timers(s.Conn.Worker)
}

// Done implements Filter.
func (c *Compiled) Done(s *Stream) {
	if face, opened := s.Face.(*compiledStream); opened && c.err == nil {
		c.streams--
		c.failed(face.Done())
	}
}

// timers tells the proxy when the worker's next tick is due, which a callback may have changed.
func (c *Compiled) timers(worker int) {
	c.proxy.Hurry(worker, c.next(worker)-c.proxy.Now())
}

func (c *Compiled) next(worker int) Time {
	w := c.workers[worker]
	connections, _ := w.connections.NextTick()
	requests, _ := w.requests.NextTick()
	return min(connections, requests)
}

// Tick implements Filter.
func (c *Compiled) Tick(worker int) Time {
	if c.err != nil {
		return c.proxy.Now() + time.Hour
	}
	w, now := c.workers[worker], c.proxy.Now()
	for _, p := range [...]*wasmhost.Plugin{w.connections, w.requests} {
		if t, wanted := p.NextTick(); wanted && t <= now && c.failed(p.Tick()) {
			return now + time.Hour
		}
	}
	return c.next(worker)
}

// Resume implements wasmhost.Handler.
func (c *Compiled) Resume(s *wasmhost.Stream) { c.proxy.Resume(s.Owner.(*Stream)) }

// Answer implements wasmhost.Handler.
func (c *Compiled) Answer(s *wasmhost.Stream, r wasmhost.LocalResponse) {
	stream := s.Owner.(*Stream)
	stream.Reason = r.Header("x-highwater-reason")
	if told, err := strconv.Atoi(r.Header("retry-after")); err == nil {
		stream.RetryAfter = Time(told) * time.Second
	}
	c.proxy.Answer(stream)
}

// CloseDownstream implements wasmhost.Handler.
func (c *Compiled) CloseDownstream(conn *wasmhost.Connection) {
	if owner, opened := conn.Owner.(*Conn); opened { // else it is refused
		c.proxy.CloseDownstream(owner)
	}
}

// HTTPCall implements wasmhost.Handler.
func (c *Compiled) HTTPCall(p *wasmhost.Plugin, token uint32, _ string, _ [][2]string, _ time.Duration) {
	c.asking = &asking{p, token}
	for _, w := range c.workers {
		if w.connections == p || w.requests == p {
			c.proxy.Ask(w.index)
		}
	}
}

// Reading implements Filter.
func (c *Compiled) Reading(_ int, m Memory, failed bool) {
	a := c.asking
	if a == nil || c.err != nil {
		return
	}
	c.asking = nil
	var headers [][2]string
	var body []byte
	if !failed {
		headers = ok
		body = fmt.Appendf(nil, `{"allocated":"%d","heap_size":"%d","pageheap_unmapped":"0","pageheap_free":"0"}`, m.Allocated, m.InUse)
	}
	c.failed(a.plugin.HTTPResponse(a.token, headers, body))
}

func (c *Compiled) shared() *budget.Table {
	value, cas, stored := c.process.Shared().Get("highwater.table")
	if stored && cas != c.seen {
		c.seen = cas
		if err := c.table.Decode(value); err != nil {
			c.failed(err)
		}
	}
	return &c.table
}

// Estimate implements Filter. The virtual machines tell the table what they lease, not what they
// have used of it.
func (c *Compiled) Estimate() (int64, bool) {
	t := c.shared()
	if t.Sequence == 0 || c.proxy.Now()-t.Asked > time.Second {
		return 0, false
	}
	sum := t.Reading
	for i := range t.Entries {
		e := &t.Entries[i]
		sum += max(e.Lease, e.Fresh+e.Coming)
	}
	return sum, true
}

// Left implements Filter.
func (c *Compiled) Left() string {
	if c.err != nil {
		return c.err.Error()
	}
	for _, own := range c.shared().Entries {
		own.ID, own.Beat, own.Lease, own.Passed, own.Paused, own.VM, own.Queue.Rate, own.Evicted.Sequence, own.Connections.Lease = 0, 0, 0, 0, 0, 0, 0, 0, 0
		if own != (budget.Entry{}) {
			return fmt.Sprintf("a worker: %+v", own)
		}
	}
	if c.streams > 0 {
		return fmt.Sprintf("%d streams", c.streams)
	}
	return ""
}
