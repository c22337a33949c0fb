package grpcstream

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
)

const (
	maxStreams = 1 << 17
	// What a client may send ahead. A stream's bytes are taken at once, so this bounds what is under way and holds no memory.
	streamWindow     = 1 << 20
	connectionWindow = 16 << 20
	maxHeaderList    = 64 << 10
	readBuffer       = 32 << 10
)

// conn is one connection.
type conn struct {
	server *Server
	nc     net.Conn
	br     *bufio.Reader
	framer *http2.Framer // reads in one goroutine, writes into mu.out

	last     uint32 // the highest stream id so far; the reading goroutine sets it with the lock held
	consumed int64  // bytes of DATA since the last WINDOW_UPDATE of the connection; of the reading goroutine alone

	mu struct {
		sync.Mutex
		streams  map[uint32]*Stream
		out      bytes.Buffer // to be written
		encoder  *hpack.Encoder
		block    bytes.Buffer // of the encoder
		window   int64        // what may be sent on the connection
		initial  int64        // and on a new stream
		maxFrame int
		blocked  map[*Stream]struct{} // those with something to send that the windows don't allow
		scratch  []byte
		reading  bool // the reading goroutine is at it, and will flush before it waits for more
		writing  bool // somebody writes what was in out
		draining bool
		ended    bool
		idle     []chan struct{} // of flushed
		empty    chan struct{}   // of emptied; nil = nobody waits for that
	}
	wake chan struct{} // there is something in out
	done chan struct{}
}

func newConn(s *Server, nc net.Conn) *conn {
	if s.TLS != nil {
		nc = tls.Server(nc, s.TLS)
	}
	c := &conn{server: s, nc: nc, wake: make(chan struct{}, 1), done: make(chan struct{})}
	c.br = bufio.NewReaderSize(flushing{c}, readBuffer)
	c.framer = http2.NewFramer(&c.mu.out, c.br)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.framer.MaxHeaderListSize = maxHeaderList
	c.framer.SetMaxReadFrameSize(16384) // what a client may send that is not told otherwise
	c.framer.SetReuseFrames()
	c.mu.streams, c.mu.blocked = map[uint32]*Stream{}, map[*Stream]struct{}{}
	c.mu.encoder = hpack.NewEncoder(&c.mu.block)
	c.mu.window, c.mu.initial, c.mu.maxFrame = 65535, 65535, 16384
	return c
}

// flushing reads from the connection, and lets out what there is to say before it waits: what is answered to a bunch of frames
// goes out as one.
type flushing struct{ c *conn }

func (f flushing) Read(p []byte) (int, error) {
	c := f.c
	c.mu.Lock()
	c.mu.reading = false
	c.mu.Unlock()
	if err := c.flush(); err != nil {
		return 0, err
	}
	n, err := c.nc.Read(p)
	c.mu.Lock()
	c.mu.reading = true
	c.mu.Unlock()
	return n, err
}

// read is the life of the connection.
func (c *conn) read() {
	err := c.serve()
	if code, broken := protocolError(err); broken {
		c.server.stats.BrokenConnections.Add(1)
		c.server.log().Warn("a connection broke the protocol", "peer", c.nc.RemoteAddr().String(), "error", err)
		c.mu.Lock()
		_ = c.framer.WriteGoAway(c.last, code, nil)
		c.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		c.flushed(ctx)
		cancel()
	}
	c.close()
	for _, s := range c.streams() {
		s.gone()
	}
}

func protocolError(err error) (http2.ErrCode, bool) {
	if ce := http2.ConnectionError(0); errors.As(err, &ce) {
		return http2.ErrCode(ce), true
	}
	if errors.Is(err, http2.ErrFrameTooLarge) {
		return http2.ErrCodeFrameSize, true
	}
	return 0, false
}

// handshake reads what a client begins with, TLS and the preface of HTTP/2, and answers with our settings.
func (c *conn) handshake() error {
	_ = c.nc.SetDeadline(time.Now().Add(handshakeWithin))
	if t, ok := c.nc.(*tls.Conn); ok {
		if err := t.Handshake(); err != nil {
			c.server.log().Warn("a TLS handshake failed", "peer", c.nc.RemoteAddr().String(), "error", err)
			return err
		}
	}
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.br, preface); err != nil {
		return err
	}
	if string(preface) != http2.ClientPreface {
		return fmt.Errorf("%w: it does not begin as HTTP/2 does", http2.ConnectionError(http2.ErrCodeProtocol))
	}
	_ = c.nc.SetDeadline(time.Time{})
	c.mu.Lock()
	_ = c.framer.WriteSettings(
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: maxStreams},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: maxHeaderList},
	)
	_ = c.framer.WriteWindowUpdate(0, connectionWindow-65535)
	c.mu.Unlock()
	return nil
}

func (c *conn) serve() error {
	if err := c.handshake(); err != nil {
		return err
	}
	for {
		f, err := c.framer.ReadFrame()
		if se := (http2.StreamError{}); errors.As(err, &se) {
			c.mu.Lock()
			c.last = max(c.last, se.StreamID) // headers that could not be read begin a stream too
			c.mu.Unlock()
			c.reset(se.StreamID, se.Code)
			err = nil
		} else if err == nil {
			err = c.frame(f)
		}
		if err != nil {
			return err
		}
	}
}

func (c *conn) frame(f http2.Frame) error {
	switch f := f.(type) {
	case *http2.MetaHeadersFrame:
		return c.headers(f)
	case *http2.DataFrame:
		return c.data(f)
	case *http2.RSTStreamFrame:
		if f.StreamID > c.last {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		if s := c.take(f.StreamID); s != nil {
			s.closed(codes.Canceled)
		}
	case *http2.WindowUpdateFrame:
		return c.windowUpdate(f)
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			c.mu.Lock()
			_ = c.framer.WritePing(true, f.Data)
			c.mu.Unlock()
		}
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil // GOAWAY, PRIORITY and what we don't know need no answer
}

// headers begin a stream, or are trailers that end what its client sends.
func (c *conn) headers(f *http2.MetaHeadersFrame) error {
	if f.StreamID <= c.last {
		s := c.stream(f.StreamID)
		switch {
		case s == nil: // it was finished, and the client did not know yet
		case !f.StreamEnded():
			c.reset(f.StreamID, http2.ErrCodeProtocol)
		default:
			s.end()
		}
		return nil
	}
	if f.StreamID%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	path := f.PseudoValue("path")
	s := &Stream{conn: c, id: f.StreamID, path: path}
	c.mu.Lock()
	c.last = f.StreamID
	if c.mu.ended || c.mu.draining || len(c.mu.streams) >= maxStreams {
		_ = c.framer.WriteRSTStream(f.StreamID, http2.ErrCodeRefusedStream)
		c.mu.Unlock()
		return nil
	}
	s.send = c.mu.initial
	c.mu.streams[f.StreamID] = s
	c.mu.Unlock()
	c.server.stats.Started.Add(1)
	c.server.stats.Streams.Add(1)
	method, contentType := c.server.Methods[path], ""
	for _, h := range f.RegularFields() {
		if h.Name == "content-type" {
			contentType = h.Value
		}
	}
	switch {
	case f.Truncated:
		s.Finish(codes.ResourceExhausted, fmt.Sprintf("the headers are more than %d bytes", maxHeaderList))
	case !strings.HasPrefix(contentType, "application/grpc"):
		s.Finish(codes.InvalidArgument, "the content-type is not application/grpc")
	case method == nil:
		c.server.stats.Refused.Add(1)
		s.path = "" // a label of metrics is no value of traffic
		s.Finish(codes.Unimplemented, "there is no such method here")
	default:
		s.begin(method(s))
		if f.StreamEnded() {
			s.end()
		}
	}
	return nil
}

func (c *conn) data(f *http2.DataFrame) error {
	if f.StreamID > c.last {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	n := int64(f.Length) // padding counts too
	// All is taken as it comes, and what was taken is given back long before a window is used up: there is none to overrun.
	c.consumed += n
	if c.consumed >= connectionWindow/4 {
		c.mu.Lock()
		_ = c.framer.WriteWindowUpdate(0, uint32(c.consumed))
		c.mu.Unlock()
		c.consumed = 0
	}
	s := c.stream(f.StreamID)
	if s == nil {
		return nil
	}
	s.receive(f.Data())
	if s.consumed += n; f.StreamEnded() {
		s.end()
	} else if s.consumed > streamWindow/2 {
		c.mu.Lock()
		if !s.over {
			_ = c.framer.WriteWindowUpdate(s.id, uint32(s.consumed))
		}
		c.mu.Unlock()
		s.consumed = 0
	}
	return nil
}

func (c *conn) windowUpdate(f *http2.WindowUpdateFrame) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.StreamID == 0 {
		if c.mu.window += int64(f.Increment); c.mu.window > 1<<31-1 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		for s := range c.mu.blocked {
			s.unblock()
		}
		return nil
	}
	s := c.mu.streams[f.StreamID]
	if s == nil {
		if f.StreamID > c.last {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		return nil
	}
	if s.send += int64(f.Increment); s.send > 1<<31-1 {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	s.unblock()
	return nil
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	err := f.ForeachSetting(func(v http2.Setting) error {
		if err := v.Valid(); err != nil {
			return err
		}
		switch v.ID {
		case http2.SettingInitialWindowSize:
			d := int64(v.Val) - c.mu.initial
			c.mu.initial = int64(v.Val)
			for _, s := range c.mu.streams {
				if s.send += d; s.send > 1<<31-1 {
					return http2.ConnectionError(http2.ErrCodeFlowControl)
				}
			}
			for s := range c.mu.blocked {
				s.unblock()
			}
		case http2.SettingMaxFrameSize:
			c.mu.maxFrame = int(min(v.Val, 1<<20))
		case http2.SettingHeaderTableSize:
			c.mu.encoder.SetMaxDynamicTableSize(min(v.Val, 4096))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.framer.WriteSettingsAck()
}

func (c *conn) stream(id uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.streams[id]
}

// take removes a stream: nothing more is sent on it.
func (c *conn) take(id uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.mu.streams[id]
	if s != nil {
		c.forget(s)
	}
	return s
}

// forget is take with the lock held.
func (c *conn) forget(s *Stream) {
	s.over = true
	s.queue = nil
	delete(c.mu.streams, s.id)
	delete(c.mu.blocked, s)
	if c.mu.empty != nil && len(c.mu.streams) == 0 {
		close(c.mu.empty)
		c.mu.empty = nil
	}
}

// emptied waits until there is no stream any more, the connection is closed, or ctx ends.
func (c *conn) emptied(ctx context.Context) {
	c.mu.Lock()
	if len(c.mu.streams) == 0 || c.mu.ended {
		c.mu.Unlock()
		return
	}
	empty := make(chan struct{})
	c.mu.empty = empty
	c.mu.Unlock()
	select {
	case <-empty:
	case <-c.done:
	case <-ctx.Done():
	}
}

func (c *conn) streams() []*Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*Stream, 0, len(c.mu.streams))
	for _, s := range c.mu.streams {
		all = append(all, s)
	}
	return all
}

// reset ends a stream whose client broke the protocol on it.
func (c *conn) reset(id uint32, code http2.ErrCode) {
	s := c.take(id)
	c.mu.Lock()
	_ = c.framer.WriteRSTStream(id, code)
	c.mu.Unlock()
	if s != nil {
		s.closed(codes.Internal)
	}
}

func (c *conn) goAway() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.draining = true
	_ = c.framer.WriteGoAway(c.last, http2.ErrCodeNo, nil)
	c.signal()
}

// signal wakes the writing goroutine.
func (c *conn) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// write writes what others than the reading goroutine have to say.
func (c *conn) write() {
	for {
		select {
		case <-c.wake:
			if c.flush() != nil {
				c.close()
			}
		case <-c.done:
			return
		}
	}
}

// flush writes what there is to be written, unless somebody is at it already, who then writes this too.
func (c *conn) flush() error {
	c.mu.Lock()
	if c.mu.writing {
		c.mu.Unlock()
		return nil
	}
	c.mu.writing = true
	var spare []byte
	var err error
	for err == nil && c.mu.out.Len() > 0 {
		taken := c.mu.out
		c.mu.out = *bytes.NewBuffer(spare[:0])
		c.mu.Unlock()
		_ = c.nc.SetWriteDeadline(time.Now().Add(writeWithin))
		_, err = c.nc.Write(taken.Bytes())
		if spare = nil; taken.Cap() <= readBuffer {
			spare = taken.Bytes()
		}
		c.mu.Lock()
	}
	if c.mu.out.Len() == 0 && c.mu.out.Cap() == 0 && spare != nil {
		c.mu.out = *bytes.NewBuffer(spare[:0])
	}
	c.mu.writing = false
	if c.mu.out.Len() == 0 || err != nil {
		for _, idle := range c.mu.idle {
			close(idle)
		}
		c.mu.idle = nil
	}
	c.mu.Unlock()
	return err
}

// flushed waits until all that is queued has been written, the connection is closed, or ctx ends.
func (c *conn) flushed(ctx context.Context) {
	c.mu.Lock()
	if c.mu.ended || c.mu.out.Len() == 0 && !c.mu.writing {
		c.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	c.mu.idle = append(c.mu.idle, idle)
	c.signal()
	c.mu.Unlock()
	select {
	case <-idle:
	case <-c.done:
	case <-ctx.Done():
	}
}

func (c *conn) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end()
}

// end is close with the lock held.
func (c *conn) end() {
	if !c.mu.ended {
		c.mu.ended = true
		close(c.done)
		_ = c.nc.Close()
	}
}

// frames writes data as DATA frames, with the lock held.
func (c *conn) frames(id uint32, data []byte) {
	for len(data) > 0 {
		n := min(len(data), c.mu.maxFrame)
		_ = c.framer.WriteData(id, false, data[:n])
		data = data[n:]
	}
}

// fields writes a HEADERS frame, with the lock held.
func (c *conn) fields(id uint32, end bool, fields ...hpack.HeaderField) {
	c.mu.block.Reset()
	for _, f := range fields {
		_ = c.mu.encoder.WriteField(f)
	}
	// All of it is ours and far below the least that a frame may have.
	_ = c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.mu.block.Bytes(), EndHeaders: true, EndStream: end})
}

// prefix is what goes before each message.
func prefix(n int) [5]byte {
	var p [5]byte
	binary.BigEndian.PutUint32(p[1:], uint32(n))
	return p
}
