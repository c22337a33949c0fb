package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"time"
)

// http1 is one HTTP/1 connection of a client. It is written by hand, because what matters here is
// what net/http hides: an answer that comes while the body is still being written must be seen as
// that answer, always, and the socket's receive buffer must be small from the start.
type http1 struct {
	conn   net.Conn
	in     *bufio.Reader
	tenant string // the x-tenant header of its requests; none if empty
}

const tenantHeader = "X-Tenant"

// head is a request's first line and the headers that all requests have; the caller ends it.
func (c *http1) head(method, path string) string {
	head := method + " " + path + " HTTP/1.1\r\nHost: highwater.test\r\n"
	if c.tenant != "" {
		head += tenantHeader + ": " + c.tenant + "\r\n"
	}
	return head
}

// aLongTimeAgo as a deadline makes what is blocked on a connection return.
var aLongTimeAgo = time.Unix(1, 0)

// dialHTTP1 connects. A receiveBuffer > 0 is the size of the kernel's receive buffer; bodies that a
// slow reader leaves there are not Envoy's.
func dialHTTP1(ctx context.Context, addr string, receiveBuffer int) (*http1, error) {
	conn, err := dial(ctx, addr, receiveBuffer)
	if err != nil {
		return nil, err
	}
	size := 4 << 10
	return &http1{conn: conn, in: bufio.NewReaderSize(conn, size)}, nil
}

func (c *http1) close() {
	if c != nil {
		_ = c.conn.Close()
	}
}

// interruptible makes what blocks on c return when ctx is done. The caller calls release when it
// has what it wanted, and does not use c again if that is false.
func (c *http1) interruptible(ctx context.Context) (release func() bool) {
	return context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(aLongTimeAgo) })
}

// get asks for path and returns the response with its body unread.
func (c *http1) get(path string) (*http.Response, error) {
	if _, err := io.WriteString(c.conn, c.head(http.MethodGet, path)+"\r\n"); err != nil {
		// The answer may be there although the request could not be written.
		if resp, rerr := http.ReadResponse(c.in, getRequest); rerr == nil {
			return resp, nil
		}
		return nil, err
	}
	return http.ReadResponse(c.in, getRequest)
}

var (
	getRequest  = &http.Request{Method: http.MethodGet}
	postRequest = &http.Request{Method: http.MethodPost}
)

// post uploads size zeros to path and returns the response with its body unread, as soon as it
// comes. whole says whether all of the request had been written by then; if not, the rest is not
// sent and c can't be used again.
func (c *http1) post(path string, size int64, chunked bool) (resp *http.Response, whole bool, err error) {
	return c.exchange(func() error { return c.writeUpload(path, size, chunked) })
}

// exchange is post for whatever write writes; once the answer is there, its writes fail.
func (c *http1) exchange(write func() error) (resp *http.Response, whole bool, err error) {
	wrote := make(chan error, 1)
	go func() { wrote <- write() }()

	resp, err = http.ReadResponse(c.in, postRequest)
	for err == nil && resp.StatusCode < 200 { // an interim response
		resp, err = http.ReadResponse(c.in, postRequest)
	}
	select {
	case werr := <-wrote:
		if err != nil && werr != nil && isClosed(werr) && !isClosed(err) {
			err = werr
		}
		return resp, werr == nil, err
	default:
		// Answered, or broken, in the middle of the body. One grace: the writer may be about to
		// report that it is done, when the answer was faster than the scheduler.
		if err == nil {
			select {
			case werr := <-wrote:
				return resp, werr == nil, nil
			case <-time.After(time.Millisecond):
			}
		}
		_ = c.conn.SetWriteDeadline(aLongTimeAgo)
		return resp, <-wrote == nil, err
	}
}

func (c *http1) writeUpload(path string, size int64, chunked bool) error {
	framing := "Content-Length: " + strconv.FormatInt(size, 10)
	if chunked {
		framing = "Transfer-Encoding: chunked"
	}
	if _, err := io.WriteString(c.conn, c.head(http.MethodPost, path)+framing+"\r\n\r\n"); err != nil {
		return err
	}
	for size > 0 {
		piece := int(min(size, int64(len(zeros))))
		out := zeros[:piece]
		if chunked {
			out = oneChunk(piece)
		}
		if _, err := c.conn.Write(out); err != nil {
			return err
		}
		size -= int64(piece)
	}
	if chunked {
		_, err := c.conn.Write([]byte("0\r\n\r\n"))
		return err
	}
	return nil
}

// fullChunk is a chunk of all zeros, framed: nearly every write of a chunked upload.
var fullChunk = frame(len(zeros))

func oneChunk(n int) []byte {
	if n == len(zeros) {
		return fullChunk
	}
	return frame(n)
}

func frame(n int) []byte {
	b := append(strconv.AppendInt(nil, int64(n), 16), "\r\n"...)
	b = append(b, zeros[:n]...)
	return append(b, "\r\n"...)
}

// dial connects to addr, a loopback address: it refuses any other, for what is done here to a proxy
// may be done to one's own only. It waits for room in a listener's backlog as long as ctx allows.
func dial(ctx context.Context, addr string, receiveBuffer int) (net.Conn, error) {
	if err := onLoopback(addr); err != nil {
		return nil, err
	}
	d := net.Dialer{Timeout: 10 * time.Second, Control: receiveBufferOf(receiveBuffer)}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		// A dial that is refused is an error, not a connection that was closed under a request.
		return nil, dialError{err}
	}
	return conn, nil
}

// onLoopback is nil for the address and port of the loopback interface. A name is none: it may
// resolve to anything.
func onLoopback(addr string) error {
	target, err := netip.ParseAddrPort(addr)
	if err != nil {
		return fmt.Errorf("%q is no address and port: %w", addr, err)
	}
	if !target.Addr().IsLoopback() {
		return fmt.Errorf("%s is not on the loopback interface: loads go to this machine only", addr)
	}
	return nil
}

// dialError hides the cause from errors.Is: see isClosed.
type dialError struct{ cause error }

func (e dialError) Error() string { return e.cause.Error() }

// errConnectionLost is an HTTP/2 connection that went away under its streams.
var errConnectionLost = errors.New("connection lost")
