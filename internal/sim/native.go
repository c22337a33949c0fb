package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/highwater-envoy/highwater/internal/budget"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/memory"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/verdict"
)

// Native is the guard, without the plugin around it.
type Native struct {
	// Decided is told each verdict and each action; nil = nobody is. Set it before the load.
	Decided func(format string, args ...any)

	proxy   Proxy
	store   watched
	table   budget.Table
	workers []*nativeWorker
	streams map[*guard.Stream]*Stream
	conns   map[uint32]*Conn // by guard.Connection.Context
}

// watched says when the table has changed.
type watched struct {
	budget.Store
	changed bool
}

// Swap implements budget.Store.
func (s *watched) Swap(value []byte, version uint32) error {
	s.changed = true
	return s.Store.Swap(value, version)
}

type nativeWorker struct {
	*guard.Worker
	guard  *guard.Guard
	timers [2]timer // of its two plugins: the network filter's and the HTTP filter's
	pacer  *timer   // whose ticks count
	ticked Time
	now    Time // as of its last tick or reading, as in the plugin: filter/clock.go
}

// timer ticks as the plugin's does: filter/plugin.go.
type timer struct {
	next, period Time
}

func (t *timer) set(now, period Time) {
	if t.period != period {
		t.period, t.next = period, now+period
	}
}

type nativeStream struct {
	guard.Stream
	s *Stream
	n *Native
}

type nativeConn struct {
	guard.Connection
}

var _ Filter = (*Native)(nil)

// peer is where all connections of the model come from.
type peer struct {
	http2  bool
	source string
}

func peerOf(c *Conn) peer {
	p := peer{http2: c.HTTP2, source: "10.0.0.1"}
	if c.owner.Who != nil {
		p.source = c.owner.Who.Source
	}
	return p
}

// Source implements guard.Peer.
func (p peer) Source() string { return p.source }

// Uploads implements guard.Peer.
func (p peer) Uploads() bool { return !p.http2 }

// Method implements guard.Peer: the model has uploads alone.
func (p peer) Method() string { return "" }

// Place implements guard.Peer.
func (peer) Place() string { return "10.0.0.254:80" }

// ParsedAsHTTP implements guard.Peer: nothing in the model is raw.
func (peer) ParsedAsHTTP() bool { return true }

// NewNative returns the guard on so many workers.
func NewNative(p Proxy, c guard.Config, workers int) (*Native, error) {
	return NewNativeOn(&budget.Memory{}, p, c, workers)
}

// NewNativeOn is NewNative with a store of the caller's.
func NewNativeOn(store budget.Store, p Proxy, c guard.Config, workers int) (*Native, error) {
	n := &Native{proxy: p, store: watched{Store: store}, streams: map[*guard.Stream]*Stream{}, conns: map[uint32]*Conn{}}
	for i := range workers {
		w, err := guard.NewWorker(&n.store, rand.New(rand.NewPCG(1, uint64(i))).Float64)
		if err != nil {
			return nil, err
		}
		g, _ := guard.New(c, w)
		worker := &nativeWorker{Worker: w, guard: g, now: p.Now()}
		for i := range worker.timers {
			worker.pacer = &worker.timers[i] // the one that started last
			worker.pacer.set(p.Now(), guard.Tick)
		}
		n.workers = append(n.workers, worker)
	}
	return n, nil
}

// Workers are the guard's, to look at.
func (n *Native) Workers() []*guard.Worker {
	all := make([]*guard.Worker, len(n.workers))
	for i := range n.workers {
		all[i] = n.workers[i].Worker
	}
	return all
}

// OpenConnection implements Filter.
func (n *Native) OpenConnection(c *Conn) (refused bool) {
	w := n.workers[c.Worker]
	n.wake(c.Worker, connections)
	nc := &nativeConn{Connection: guard.Connection{Context: uint32(c.ID)}}
	if !w.guard.OpenConnection(w.now, &nc.Connection, peerOf(c)) {
		return true
	}
	c.Face = nc
	n.conns[nc.Context] = c
	return false
}

// Data implements Filter.
func (n *Native) Data(c *Conn, bytes int64) (refused bool) {
	w := n.workers[c.Worker]
	n.wake(c.Worker, connections)
	if bytes >= guard.LargeRead {
		n.mark(w)
	}
	if refused = w.Data(w.now, &c.Face.(*nativeConn).Connection, bytes); refused {
		n.proxy.CloseDownstream(c)
	}
	return refused
}

// mark looks at the clock between two ticks, as the plugin does.
func (n *Native) mark(w *nativeWorker) {
	if w.Marks() {
		w.now = n.proxy.Now()
		w.Mark(w.now)
	}
}

// CloseConnection implements Filter.
func (n *Native) CloseConnection(c *Conn) {
	w := n.workers[c.Worker]
	nc := c.Face.(*nativeConn)
	w.CloseConnection(w.now, &nc.Connection)
	delete(n.conns, nc.Context)
}

// Headers implements Filter.
func (n *Native) Headers(s *Stream, d Direction, length int64) (pause bool) {
	w := n.workers[s.Conn.Worker]
	if d == Response {
		return n.do(s, w.guard.Expect(w.now, &s.Face.(*nativeStream).Stream, length))
	}
	n.wake(s.Conn.Worker, requests)
	if length != 0 {
		n.mark(w)
	}
	ns := &nativeStream{s: s, n: n}
	s.Face = ns
	n.streams[&ns.Stream] = s
	return n.do(s, w.guard.Open(w.now, &ns.Stream, ns, length))
}

// Body implements Filter.
func (n *Native) Body(s *Stream, d Direction, bytes int64, end bool) {
	w := n.workers[s.Conn.Worker]
	ns := s.Face.(*nativeStream)
	v := w.guard.Grow(w.now, &ns.Stream, budget.Direction(d), bytes)
	if end {
		w.guard.End(w.now, &ns.Stream, budget.Direction(d))
	}
	n.do(s, v)
}

// Done implements Filter.
func (n *Native) Done(s *Stream) {
	ns := s.Face.(*nativeStream)
	w := n.workers[s.Conn.Worker]
	w.guard.Close(w.now, &ns.Stream)
	delete(n.streams, &ns.Stream)
}

const (
	connections = 0 // its timer
	requests    = 1
)

func (n *Native) hurry(worker, plugin int, period Time) {
	w := n.workers[worker]
	if period < w.pacer.period {
		w.pacer = &w.timers[plugin]
		w.pacer.set(n.proxy.Now(), period)
		n.proxy.Hurry(worker, period)
	}
}

func (n *Native) wake(worker, plugin int) {
	if w := n.workers[worker]; w.Sleeps {
		w.now = n.proxy.Now()
		w.Wake(w.now)
		n.hurry(worker, plugin, guard.Tick)
	}
}

func (n *Native) do(s *Stream, v verdict.Verdict) (pause bool) {
	if n.Decided != nil && v != (verdict.Verdict{}) {
		n.Decided("%v stream %d: action %d, %v, retry after %d", n.proxy.Now(), s.ID, v.Action, v.Reason, v.RetryAfter)
	}
	switch v.Action {
	case verdict.Wait, verdict.Close:
		n.hurry(s.Conn.Worker, requests, guard.FastTick)
		return true
	case verdict.Answer, verdict.Reset:
		n.answer(s, v)
	case verdict.Pass:
		n.hurry(s.Conn.Worker, requests, guard.FastTick)
	case verdict.Admit:
	}
	return false
}

// answer rejects a stream, with a retry-after header as the plugin's.
func (n *Native) answer(s *Stream, v verdict.Verdict) {
	s.Reason = v.Reason.String()
	s.RetryAfter = (Time(v.RetryAfter) + time.Second - 1).Truncate(time.Second)
	n.proxy.Answer(s)
}

// Tick implements Filter.
func (n *Native) Tick(worker int) Time {
	w, now := n.workers[worker], n.proxy.Now()
	for i := range w.timers {
		if t := &w.timers[i]; t.next <= now {
			t.next = now + t.period
			n.tick(worker, t)
		}
	}
	return min(w.timers[0].next, w.timers[1].next)
}

func (n *Native) tick(worker int, t *timer) {
	w, now := n.workers[worker], n.proxy.Now()
	w.now = now
	if w.pacer != t && now-w.ticked < guard.SlowTick {
		t.set(now, guard.SlowTick)
		return
	}
	w.pacer, w.ticked = t, now
	a := w.Tick(now)
	n.tell(worker, a)
	if a.Ask {
		n.proxy.Ask(worker)
	}
	if a.Resume != nil {
		n.proxy.Resume(n.streams[a.Resume])
	}
	for _, d := range a.Rejected {
		if d.Verdict.Action != verdict.Close {
			n.answer(n.streams[d.Stream], d.Verdict)
		}
	}
	for _, s := range a.Close {
		n.proxy.CloseDownstream(n.streams[s].Conn)
	}
	for _, list := range [...][]*guard.Connection{a.Cut, a.Idle} {
		for _, c := range list {
			n.proxy.CloseDownstream(n.conns[c.Context])
		}
	}
	t.set(now, a.Next)
}

// tell tells what a tick wants done.
func (n *Native) tell(worker int, a *guard.Actions) {
	if n.Decided == nil {
		return
	}
	n.Decided("%v tick of %d: ask %v, polls %v, next %v %s", n.proxy.Now(), worker, a.Ask, a.Polls, a.Next, a.Event)
	if a.Resume != nil {
		n.Decided("resume stream %d, waited %d", n.streams[a.Resume].ID, a.Waited)
	}
	for _, d := range a.Rejected {
		n.Decided("stream %d: action %d, %v, retry after %d, waited %d", n.streams[d.Stream].ID, d.Verdict.Action, d.Verdict.Reason, d.Verdict.RetryAfter, d.Verdict.Waited)
	}
	for _, s := range a.Close {
		n.Decided("close for stream %d", n.streams[s].ID)
	}
	for _, list := range [...][]*guard.Connection{a.Cut, a.Idle} {
		for _, c := range list {
			n.Decided("close connection %d", c.Context)
		}
	}
}

// Reading implements Filter.
func (n *Native) Reading(worker int, m Memory, failed bool) {
	var err error
	if failed {
		err = errors.New("no answer")
	}
	w := n.workers[worker]
	w.now = n.proxy.Now()
	w.Observe(w.now, memory.Reading{InUse: m.InUse, Allocated: m.Allocated}, err)
}

func (n *Native) shared() *budget.Table {
	if !n.store.changed {
		return &n.table
	}
	n.store.changed = false
	value, _, _ := n.store.Load()
	if n.table.Decode(value) != nil {
		n.table = budget.Table{}
	}
	return &n.table
}

// Estimate implements Filter.
func (n *Native) Estimate() (int64, bool) {
	t := n.shared()
	if t.Sequence == 0 || n.proxy.Now()-t.Asked > time.Second {
		return 0, false
	}
	sum := t.Reading
	for _, w := range n.workers {
		own := w.Account().Own()
		sum += own.Fresh + own.Coming
	}
	return sum, true
}

// Left implements Filter.
func (n *Native) Left() string {
	for i, w := range n.workers {
		own := w.Account().Own()
		own.ID, own.Beat, own.Lease, own.Passed, own.Paused, own.VM, own.Queue.Rate, own.Evicted.Sequence, own.Connections.Lease = 0, 0, 0, 0, 0, 0, 0, 0, 0
		if own != (budget.Entry{}) {
			return fmt.Sprintf("worker %d: %+v", i, own)
		}
	}
	if len(n.streams) > 0 {
		return fmt.Sprintf("%d streams", len(n.streams))
	}
	return ""
}

// HTTP2 implements guard.Host.
func (s *nativeStream) HTTP2() bool { return s.s.Conn.HTTP2 }

// Arrived implements guard.Host.
func (s *nativeStream) Arrived() *guard.Connection {
	if c, ok := s.s.Conn.Face.(*nativeConn); ok && c.Context != 0 {
		return &c.Connection
	}
	return nil
}

// Connection implements guard.Host.
func (s *nativeStream) Connection() *guard.Connection {
	if c, ok := s.s.Conn.Face.(*nativeConn); ok {
		return &c.Connection
	}
	c := &nativeConn{} // there is no network filter
	s.s.Conn.Face = c
	return &c.Connection
}

// VirtualHost implements guard.Host.
func (s *nativeStream) VirtualHost() string {
	if w := s.s.client.Who; w != nil {
		return w.VirtualHost
	}
	return "all"
}

// Source implements guard.Host.
func (s *nativeStream) Source() string {
	if w := s.s.client.Who; w != nil {
		return w.Source
	}
	return strconv.Itoa(s.s.Conn.ID)
}

// Header implements guard.Host.
func (s *nativeStream) Header(name string) string {
	if w := s.s.client.Who; w != nil {
		return w.Header(name)
	}
	return s.s.client.Class
}

// Visibility implements guard.Host.
func (s *nativeStream) Visibility(budget.Direction) budget.Visibility { return budget.Counted }

// HeaderBytes implements guard.Host: those of the model are small.
func (s *nativeStream) HeaderBytes() int64 { return 0 }

// BodyLimit implements guard.Host: that model has no caps.
func (s *nativeStream) BodyLimit() int64 { return 0 }

// Path implements guard.Host.
func (s *nativeStream) Path() string {
	if w := s.s.client.Who; w != nil {
		return w.Path
	}
	return "/"
}

// Route implements guard.Host.
func (s *nativeStream) Route() string {
	if w := s.s.client.Who; w != nil {
		return w.Route
	}
	return s.s.client.Class
}

// Describe implements guard.Host.
func (s *nativeStream) Describe(string) reservoir.Labels {
	protocol := "HTTP/1.1"
	if s.s.Conn.HTTP2 {
		protocol = "HTTP/2"
	}
	return reservoir.Labels{VirtualHost: s.VirtualHost(), Route: s.Route(), Cluster: s.Cluster(), Source: s.Source(), Protocol: protocol}
}

// Cluster implements guard.Host.
func (s *nativeStream) Cluster() string {
	if w := s.s.client.Who; w != nil {
		return w.Cluster
	}
	return "upstream"
}
