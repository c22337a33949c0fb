package load

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// request sends one over HTTP/1: head is its request line and headers, without Host; then body
// writes what it likes. It returns the status of the answer, however much had been written by then.
func (a *attempt) request(head string, body func(io.Writer) error) (status int, err error) {
	conn, err := a.dialHTTP1(0)
	if err != nil {
		return 0, err
	}
	defer conn.close()
	defer conn.interruptible(a.ctx)()
	resp, _, err := conn.exchange(func() error {
		if _, err := io.WriteString(conn.conn, head+"Host: highwater.test\r\n\r\n"); err != nil || body == nil {
			return err
		}
		return body(conn.conn)
	})
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, nil
}

func (a *attempt) dialHTTP1(receiveBuffer int) (*http1, error) {
	conn, err := dialHTTP1(a.ctx, a.addr, receiveBuffer)
	if err != nil {
		return nil, err
	}
	abort(conn.conn)
	return conn, nil
}

func (a *attempt) post(framing string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\n%s", a.path(), framing)
}

func contentLength(n int) string { return fmt.Sprintf("Content-Length: %d\r\n", n) }

const chunkedFraming = "Transfer-Encoding: chunked\r\n"

func send(n int) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.CopyN(w, &zeroReader{left: int64(n)}, int64(n))
		return err
	}
}

func (a *attempt) tooLong1() (int, error) {
	n := a.upTo(len(zeros))
	return a.request(a.post(contentLength(announced)), func(w io.Writer) error {
		if err := send(n)(w); err != nil {
			return err
		}
		return w.(*net.TCPConn).CloseWrite()
	})
}

func (a *attempt) tooShort1() (int, error) {
	return a.request(a.post(contentLength(1000)), send(1<<20))
}

// missing1 has no body by the rules of HTTP/1: what comes is taken for the next request.
func (a *attempt) missing1() (int, error) { return a.request(a.post(""), send(1<<20)) }

func (a *attempt) announce1() (int, error) { return a.request(a.post(contentLength(announced)), nil) }

var oneByteChunks = bytes.Repeat([]byte("1\r\n\x00\r\n"), 4096)

func (a *attempt) byteChunks1() (int, error) {
	return a.request(a.post(chunkedFraming), func(w io.Writer) error {
		for range 64 {
			if _, err := w.Write(oneByteChunks); err != nil {
				return err
			}
		}
		_, err := io.WriteString(w, "0\r\n\r\n")
		return err
	})
}

func (a *attempt) endless1() (int, error) {
	return a.request(a.post(chunkedFraming), func(w io.Writer) error {
		for {
			if _, err := w.Write(fullChunk); err != nil {
				return err
			}
		}
	})
}

func (a *attempt) trickle1() (int, error) {
	return a.request(a.post(contentLength(announced)), func(w io.Writer) error {
		for Sleep(a.ctx, slowly) {
			if _, err := w.Write(zeros[:1]); err != nil {
				return err
			}
		}
		return a.ctx.Err()
	})
}

// headers1 is one of four: close to Envoy's limit, above it, too many, never ended.
func (a *attempt) headers1() (int, error) {
	field := func(i, size int) string { return fmt.Sprintf("x-%d: %s\r\n", i, strings.Repeat("x", size)) }
	n, size := headersLimit/2, headerLimit/(headersLimit/2)-20
	shape := a.random.IntN(4)
	switch shape {
	case 1:
		size *= 2
	case 2:
		n, size = 10*headersLimit, 10
	}
	var head strings.Builder
	head.WriteString("GET /small HTTP/1.1\r\n")
	for i := range n {
		head.WriteString(field(i, size))
	}
	if shape != 3 {
		return a.request(head.String(), nil)
	}
	conn, err := a.dialHTTP1(0)
	if err != nil {
		return 0, err
	}
	defer conn.close()
	defer conn.interruptible(a.ctx)()
	resp, _, err := conn.exchange(func() error {
		_, err := io.WriteString(conn.conn, head.String())
		return err
	})
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, nil
}

// resets1 resets its connection at any moment of a request or its response.
func (a *attempt) resets1() (int, error) {
	conn, err := a.dialHTTP1(0)
	if err != nil {
		return 0, err
	}
	upload, framing := a.random.IntN(2) == 0, contentLength(4<<20)
	reset := time.AfterFunc(time.Duration(a.upTo(int(soonAfter))), conn.close)
	defer conn.close()
	defer reset.Stop()
	defer conn.interruptible(a.ctx)()
	status := 0
	if upload {
		resp, _, err := conn.exchange(func() error {
			if _, err := io.WriteString(conn.conn, a.post(framing)+"Host: highwater.test\r\n\r\n"); err != nil {
				return err
			}
			return send(4 << 20)(conn.conn)
		})
		if err == nil {
			status = resp.StatusCode
		}
	} else if resp, err := conn.get(withSize("/bytes", 4<<20)); err == nil {
		status = resp.StatusCode
		_ = discard(a.ctx, resp.Body, -1, nil)
	}
	return status, nil // what it did not live to see it did not want
}

func (a *attempt) byteReader1() (int, error) {
	conn, err := a.dialHTTP1(4 << 10)
	if err != nil {
		return 0, err
	}
	defer conn.close()
	defer conn.interruptible(a.ctx)()
	resp, err := conn.get(a.download())
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return resp.StatusCode, nil
	}
	for one := make([]byte, 1); Sleep(a.ctx, time.Second); {
		n, err := resp.Body.Read(one)
		if err != nil || hungUp(conn.conn) {
			return 0, io.ErrUnexpectedEOF
		}
		a.bytes.Add(int64(n))
	}
	return 0, nil
}

// download is what readers ask for, with or without a length.
func (a *attempt) download() string {
	path := withSize("/bytes", announced)
	if a.random.IntN(2) == 0 {
		path += "&length=0"
	}
	return path
}
