package load

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// frames is an HTTP/2 connection that sends whatever frames it is told to: a client that keeps to
// the protocol would not let itself be told.
type frames struct {
	conn    net.Conn
	decoder *http2.Framer

	mu struct { // what is written, by the reader too: it acknowledges
		sync.Mutex
		*http2.Framer
		encoder *hpack.Encoder
		block   bytes.Buffer
		next    uint32
	}
}

func (a *attempt) dialHTTP2(settings ...http2.Setting) (*frames, error) {
	conn, err := dial(a.ctx, a.addr, 0)
	if err != nil {
		return nil, err
	}
	abort(conn)
	c := &frames{conn: conn, decoder: http2.NewFramer(io.Discard, conn)}
	c.decoder.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	c.mu.Framer, c.mu.next = http2.NewFramer(conn, nil), 1
	c.mu.encoder = hpack.NewEncoder(&c.mu.block)
	if _, err = io.WriteString(conn, http2.ClientPreface); err == nil {
		err = c.mu.WriteSettings(settings...)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func (c *frames) close() { _ = c.conn.Close() }

// do has the wire to itself.
func (c *frames) do(write func(f *http2.Framer) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return write(c.mu.Framer)
}

// open sends the headers of a request, in as many frames as it takes. If it is not ended, its body
// may follow.
func (c *frames) open(method, path string, ended bool, fields ...hpack.HeaderField) (stream uint32, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.block.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: method},
		{Name: ":scheme", Value: "http"},
		{Name: ":authority", Value: "highwater.test"},
		{Name: ":path", Value: path},
	}, fields...) {
		if err := c.mu.encoder.WriteField(f); err != nil {
			return 0, err
		}
	}
	stream = c.mu.next
	c.mu.next += 2
	const most = 16 << 10
	first := c.mu.block.Next(most)
	err = c.mu.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: first, EndStream: ended, EndHeaders: c.mu.block.Len() == 0,
	})
	for err == nil && c.mu.block.Len() > 0 {
		next := c.mu.block.Next(most)
		err = c.mu.WriteContinuation(stream, c.mu.block.Len() == 0, next)
	}
	return stream, err
}

func (c *frames) reset(stream uint32) error {
	return c.do(func(f *http2.Framer) error { return f.WriteRSTStream(stream, http2.ErrCodeCancel) })
}

// listen reads until the connection ends or heard says false. It hears the status of each answer,
// and 0 for each stream that was reset.
func (c *frames) listen(heard func(stream uint32, status int) bool) error {
	for {
		frame, err := c.decoder.ReadFrame()
		if err != nil {
			return err
		}
		going := true
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = c.do((*http2.Framer).WriteSettingsAck)
			}
		case *http2.PingFrame:
			if !frame.IsAck() {
				err = c.do(func(f *http2.Framer) error { return f.WritePing(true, frame.Data) })
			}
		case *http2.MetaHeadersFrame:
			if status, _ := strconv.Atoi(frame.PseudoValue("status")); status >= http.StatusOK {
				going = heard(frame.StreamID, status)
			}
		case *http2.RSTStreamFrame:
			going = heard(frame.StreamID, 0)
		case *http2.GoAwayFrame:
			err = fmt.Errorf("%w: %v", errConnectionLost, frame.ErrCode)
		}
		if err != nil || !going {
			return err
		}
	}
}

// interruptible makes what blocks on c return when ctx is done.
func (c *frames) interruptible(ctx context.Context) (release func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(aLongTimeAgo) })
}

// stream makes one request by frames: its headers, then n bytes of its body and its end. It returns
// the status of the answer; a reset stands for 400.
func (a *attempt) stream(method, path string, n int, fields ...hpack.HeaderField) (status int, err error) {
	c, err := a.dialHTTP2()
	if err != nil {
		return 0, err
	}
	defer c.close()
	defer c.interruptible(a.ctx)()
	stream, err := c.open(method, path, n == 0, fields...)
	for left := n; left > 0 && err == nil; {
		piece := min(left, 16<<10)
		left -= piece
		err = c.do(func(f *http2.Framer) error { return f.WriteData(stream, left == 0, zeros[:piece]) })
	}
	if err != nil {
		return 0, err
	}
	err = c.listen(func(_ uint32, s int) bool {
		if status = s; s == 0 {
			status = http.StatusBadRequest
		}
		return false
	})
	return status, err
}

func lengthField(n int) hpack.HeaderField {
	return hpack.HeaderField{Name: "content-length", Value: strconv.Itoa(n)}
}

func (a *attempt) tooLong2() (int, error) {
	return a.stream(http.MethodPost, a.path(), a.upTo(48<<10), lengthField(announced)) // no more than any window takes
}

func (a *attempt) tooShort2() (int, error) {
	return a.stream(http.MethodPost, a.path(), 48<<10, lengthField(1000))
}

// upload is one by a client that keeps to the protocol, with a body that may not come.
func (a *attempt) upload(length int64, body io.Reader) (status int, err error) {
	conn := newHTTP2(a.addr, 0, 0)
	defer conn.close()
	ctx, cancel := context.WithCancel(a.ctx)
	defer cancel() // ends a body that still waits
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+a.addr+a.path(), body)
	if err != nil {
		return 0, err
	}
	req.ContentLength = length
	resp, err := conn.do(req)
	if err != nil {
		return 0, err
	}
	_ = resp.Body.Close()
	return resp.StatusCode, nil
}

func (a *attempt) missing2() (int, error) { return a.upload(-1, &zeroReader{left: 1 << 20}) }

func (a *attempt) announce2() (int, error) {
	c, err := a.dialHTTP2()
	if err != nil {
		return 0, err
	}
	defer c.close()
	defer c.interruptible(a.ctx)()
	if _, err := c.open(http.MethodPost, a.path(), false, lengthField(announced)); err != nil {
		return 0, err
	}
	status := 0
	err = c.listen(func(_ uint32, s int) bool { status = s; return false })
	return status, err
}

// byByte reads one byte at a time: each becomes a DATA frame.
type byByte struct{ io.Reader }

func (b byByte) Read(p []byte) (int, error) { return b.Reader.Read(p[:min(len(p), 1)]) }

func (a *attempt) byteChunks2() (int, error) {
	return a.upload(-1, byByte{&zeroReader{left: 256 << 10}})
}

func (a *attempt) endless2() (int, error) { return a.upload(-1, endless{}) }

type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, zeros), nil }

func (a *attempt) trickle2() (int, error) {
	c, err := a.dialHTTP2()
	if err != nil {
		return 0, err
	}
	defer c.close()
	defer c.interruptible(a.ctx)()
	stream, err := c.open(http.MethodPost, a.path(), false, lengthField(announced))
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(a.ctx)
	var sending sync.WaitGroup
	defer sending.Wait()
	defer cancel()
	sending.Go(func() {
		for Sleep(ctx, slowly) {
			if c.do(func(f *http2.Framer) error { return f.WriteData(stream, false, zeros[:1]) }) != nil {
				return
			}
		}
	})
	status := 0
	err = c.listen(func(_ uint32, s int) bool { status = s; return false })
	return status, err
}

// headers2 is one of four: close to Envoy's limit, above it, too many, or a few bytes that
// decompress to a megabyte.
func (a *attempt) headers2() (int, error) {
	n, size := headersLimit/2, headerLimit/(headersLimit/2)-40
	same := false
	switch a.random.IntN(4) {
	case 1:
		size *= 2
	case 2:
		n, size = 10*headersLimit, 10
	case 3:
		n, size, same = 300, 3500, true // what fits the dynamic table is sent once
	}
	var fields []hpack.HeaderField
	for i := range n {
		name := fmt.Sprintf("x-%d", i)
		if same {
			name = "x"
		}
		fields = append(fields, hpack.HeaderField{Name: name, Value: strings.Repeat("x", size)})
	}
	return a.stream(http.MethodGet, "/small", 0, fields...)
}

// resets2 resets a stream or its connection at any moment of a request or its response.
func (a *attempt) resets2() (int, error) {
	c, err := a.dialHTTP2()
	if err != nil {
		return 0, err
	}
	defer c.close()
	defer c.interruptible(a.ctx)()
	upload, whole := a.random.IntN(2) == 0, a.random.IntN(2) == 0
	var stream uint32
	if upload {
		if stream, err = c.open(http.MethodPost, a.path(), false, lengthField(4<<20)); err == nil {
			err = c.do(func(f *http2.Framer) error { return f.WriteData(stream, false, zeros[:16<<10]) })
		}
	} else {
		stream, err = c.open(http.MethodGet, withSize("/bytes", 4<<20), true)
	}
	if err != nil {
		return 0, err
	}
	reset := time.AfterFunc(time.Duration(a.upTo(int(soonAfter))), func() {
		if !whole {
			_ = c.reset(stream)
			_ = c.do(func(f *http2.Framer) error { return f.WriteGoAway(0, http2.ErrCodeNo, nil) })
		}
		c.close()
	})
	defer reset.Stop()
	answered := 0
	_ = c.listen(func(_ uint32, s int) bool {
		answered = max(answered, s)
		return s == http.StatusOK
	})
	return answered, nil // what it did not live to see it did not want
}

const shutStreams = 50

// shutWindows asks for more than it ever lets come, and asks again for what is refused.
func (a *attempt) shutWindows() (int, error) {
	c, err := a.dialHTTP2(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	if err != nil {
		return 0, err
	}
	defer c.close()
	defer c.interruptible(a.ctx)()
	for range shutStreams {
		if _, err := c.open(http.MethodGet, a.download(), true); err != nil {
			return 0, err
		}
	}
	again := make(chan struct{}, shutStreams)
	ctx, cancel := context.WithCancel(a.ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	path := a.download()
	asking.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-again:
			}
			if !Sleep(ctx, comeBack) {
				return
			}
			if _, err := c.open(http.MethodGet, path, true); err != nil {
				return
			}
		}
	})
	return 0, c.listen(func(stream uint32, status int) bool {
		if status == http.StatusOK {
			return true
		}
		if status > 0 {
			a.rejected.Add(1)
		} else {
			a.cut.Add(1)
		}
		_ = c.reset(stream)
		select {
		case again <- struct{}{}:
		default:
		}
		return true
	})
}

func (a *attempt) byteReader2() (int, error) {
	c, err := a.dialHTTP2(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1})
	if err != nil {
		return 0, err
	}
	defer c.close()
	defer c.interruptible(a.ctx)()
	stream, err := c.open(http.MethodGet, a.download(), true)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithCancel(a.ctx)
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	reading.Go(func() {
		for Sleep(ctx, time.Second) {
			if c.do(func(f *http2.Framer) error { return f.WriteWindowUpdate(stream, 1) }) != nil {
				return
			}
			a.bytes.Add(1)
		}
	})
	status := 0
	err = c.listen(func(_ uint32, s int) bool {
		if s == 0 {
			a.cut.Add(1)
		} else if status = s; s == http.StatusOK {
			return true
		}
		return false
	})
	if err == nil && status == 0 {
		err = errors.New("reset before its answer")
	}
	return status, err
}

// rapidReset opens and resets until its peer has had enough of it.
func (a *attempt) rapidReset() (int, error) {
	c, err := a.dialHTTP2()
	if err != nil {
		return 0, err
	}
	defer c.close()
	defer c.interruptible(a.ctx)()
	var opening sync.WaitGroup
	defer opening.Wait()
	defer c.close()
	opening.Go(func() {
		for a.ctx.Err() == nil {
			stream, err := c.open(http.MethodGet, withSize("/bytes", 1<<20), true)
			if err == nil {
				err = c.reset(stream)
			}
			if err != nil {
				return
			}
			a.started.Add(1)
		}
	})
	return 0, c.listen(func(uint32, int) bool { return true })
}
