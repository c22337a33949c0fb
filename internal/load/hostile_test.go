package load

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wire is a server that looks at what comes on each connection, and answers nothing of itself. What
// look returns is what it saw; an error ends the test.
type wire struct {
	net.Conn
	in     *bufio.Reader
	framer *http2.Framer // nil on HTTP/1
}

// quietly is how long nothing has to come, to be taken for nothing.
const quietly = 200 * time.Millisecond

func (w *wire) accept() error {
	w.in = bufio.NewReaderSize(w.Conn, 1<<20)
	start, err := w.in.Peek(3)
	if err != nil || string(start) != "PRI" {
		return err
	}
	if _, err := io.CopyN(io.Discard, w.in, int64(len(http2.ClientPreface))); err != nil {
		return err
	}
	w.framer = http2.NewFramer(w, w.in)
	w.framer.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return errors.Join(w.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 30}), w.framer.WriteWindowUpdate(0, 1<<30))
}

// next is the next frame that is about streams.
func (w *wire) next() (http2.Frame, error) {
	for {
		f, err := w.framer.ReadFrame()
		if err != nil || f.Header().StreamID != 0 {
			return f, err
		}
	}
}

func (w *wire) headers() (*http2.MetaHeadersFrame, error) {
	f, err := w.next()
	if err != nil {
		return nil, err
	}
	if h, ok := f.(*http2.MetaHeadersFrame); ok {
		return h, nil
	}
	return nil, fmt.Errorf("headers were to come, not %v", f)
}

// upload is the announced length (-1: none) and the bytes of a body until its end, or until most
// have come.
func (w *wire) upload(most int64) (length, got int64, err error) {
	if w.framer == nil {
		r, err := http.ReadRequest(w.in)
		if err != nil {
			return 0, 0, err
		}
		got, err := io.Copy(io.Discard, io.LimitReader(r.Body, most))
		return r.ContentLength, got, err
	}
	h, err := w.headers()
	if err != nil {
		return 0, 0, err
	}
	length = -1
	for _, f := range h.RegularFields() {
		if f.Name == "content-length" {
			length, _ = strconv.ParseInt(f.Value, 10, 64)
		}
	}
	for ended := h.StreamEnded(); !ended && got < most; {
		f, err := w.next()
		if err != nil {
			return length, got, err
		}
		if data, ok := f.(*http2.DataFrame); ok {
			got += int64(len(data.Data()))
			ended = data.StreamEnded()
		}
	}
	return length, got, nil
}

// timedOut says whether err is that nothing came.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func (w *wire) within(d time.Duration) { _ = w.SetReadDeadline(time.Now().Add(d)) }

func want(ok bool, format string, args ...any) error {
	if ok {
		return nil
	}
	return fmt.Errorf(format, args...)
}

// look is what a kind does, and how many different things of it there are to be seen.
type look struct {
	saw  func(w *wire) (what string, err error)
	want []string
}

func (w *wire) protocol() string {
	if w.framer != nil {
		return "h2"
	}
	return "h1"
}

var looks = map[Kind]look{
	LengthTooLong: {func(w *wire) (string, error) {
		length, got, err := w.upload(announced)
		if errors.Is(err, io.ErrUnexpectedEOF) && w.framer == nil {
			err = nil
		}
		return w.protocol(), errors.Join(err, want(length == announced && got > 0 && got <= 64<<10, "announced %d, sent %d", length, got))
	}, []string{"h1", "h2"}},
	LengthTooShort: {func(w *wire) (string, error) {
		length, got, err := w.upload(1 << 20)
		if w.framer == nil && err == nil {
			_, err = w.in.ReadByte()
			got++
		}
		return w.protocol(), errors.Join(err, want(length == 1000 && got > 1000, "announced %d, sent %d", length, got))
	}, []string{"h1", "h2"}},
	LengthMissing: {func(w *wire) (string, error) {
		length, got, err := w.upload(2 << 20)
		if w.framer == nil && err == nil {
			got, err = io.Copy(io.Discard, io.LimitReader(w.in, 1<<20))
			return "h1", errors.Join(err, want(length == 0 && got == 1<<20, "announced %d, sent %d", length, got))
		}
		return "h2", errors.Join(err, want(length == -1 && got == 1<<20, "announced %d, sent %d", length, got))
	}, []string{"h1", "h2"}},
	Announce: {func(w *wire) (string, error) {
		w.within(quietly)
		length, got, err := w.upload(1)
		return w.protocol(), want(timedOut(err) && length == announced && got == 0, "announced %d, sent %d, then %w", length, got, err)
	}, []string{"h1", "h2"}},
	Trickle: {func(w *wire) (string, error) {
		w.within(10 * slowly)
		length, got, err := w.upload(100)
		return w.protocol(), want(timedOut(err) && length == announced && got > 0 && got < 100, "announced %d, sent %d, then %w", length, got, err)
	}, []string{"h1", "h2"}},
	ByteChunks: {func(w *wire) (string, error) {
		if w.framer == nil {
			r, err := http.ReadRequest(w.in)
			if err != nil {
				return "", err
			}
			first, err := w.in.Peek(12) // the size of the first one may be read already
			n, cerr := io.Copy(io.Discard, r.Body)
			return "h1", errors.Join(err, cerr, want(strings.Contains(string(first), "\r\n\x00\r\n1\r\n") && n == 256<<10, "%q, %d bytes", first, n))
		}
		if _, err := w.headers(); err != nil {
			return "", err
		}
		for range 1000 {
			if f, err := w.next(); err != nil {
				return "", err
			} else if data, ok := f.(*http2.DataFrame); !ok || len(data.Data()) != 1 {
				return "", fmt.Errorf("%v", f)
			}
		}
		return "h2", nil
	}, []string{"h1", "h2"}},
	EndlessChunks: {func(w *wire) (string, error) {
		const many = 2 * announced
		length, got, err := w.upload(many)
		return w.protocol(), errors.Join(err, want(length == -1 && got >= many, "announced %d, sent %d", length, got))
	}, []string{"h1", "h2"}},
	HugeHeaders: {func(w *wire) (string, error) {
		w.within(quietly)
		var n, size int
		if w.framer == nil {
			r, err := http.ReadRequest(w.in)
			if timedOut(err) || errors.Is(err, io.ErrUnexpectedEOF) {
				return "h1 never ended", nil
			} else if err != nil {
				return "", err
			}
			for name, values := range r.Header {
				n++
				size += len(name) + len(values[0]) + 4
			}
		} else {
			h, err := w.headers()
			if err != nil {
				return "", err
			}
			for _, f := range h.RegularFields() {
				n++
				size += int(f.Size())
			}
		}
		switch {
		case n >= 10*headersLimit:
			return w.protocol() + " too many", nil
		case size > 1<<20:
			return w.protocol() + " a megabyte", nil
		case size > headerLimit:
			return w.protocol() + " too large", nil
		default:
			return w.protocol() + " large", want(size > headerLimit*9/10, "%d headers of %d bytes", n, size)
		}
	}, []string{
		"h1 large", "h1 too large", "h1 too many", "h1 never ended", "h2 large", "h2 too large", "h2 too many", "h2 a megabyte",
	}},
	Resets: {func(w *wire) (string, error) {
		w.within(2 * soonAfter)
		if w.framer == nil {
			_, err := io.Copy(io.Discard, w.in)
			return "h1", want(errors.Is(err, syscall.ECONNRESET), "no reset: %w", err)
		}
		for {
			f, err := w.framer.ReadFrame()
			if errors.Is(err, syscall.ECONNRESET) {
				return "h2 connection", nil
			} else if err != nil {
				return "", err
			}
			if f.Header().Type == http2.FrameRSTStream {
				return "h2 stream", nil
			}
		}
	}, []string{"h1", "h2 connection", "h2 stream"}},
	ByteReaders: {func(w *wire) (string, error) {
		if w.framer == nil {
			if _, err := http.ReadRequest(w.in); err != nil {
				return "", err
			}
			_ = w.SetWriteDeadline(time.Now().Add(quietly))
			_, err := fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", announced, make([]byte, announced))
			return "h1", want(timedOut(err), "it was all taken: %w", err)
		}
		if _, err := w.headers(); err != nil {
			return "", err
		}
		f, err := w.next()
		if err != nil {
			return "", err
		}
		update, ok := f.(*http2.WindowUpdateFrame)
		return "h2", want(ok && update.Increment == 1, "%v", f)
	}, []string{"h1", "h2"}},
	ShutWindows: {func(w *wire) (string, error) {
		f, err := w.framer.ReadFrame()
		if err != nil {
			return "", err
		}
		if s, ok := f.(*http2.SettingsFrame); !ok || s.NumSettings() != 1 || s.Setting(0) != (http2.Setting{ID: http2.SettingInitialWindowSize}) {
			return "", fmt.Errorf("%v", f)
		}
		var h *http2.MetaHeadersFrame
		for range shutStreams {
			if h, err = w.headers(); err != nil {
				return "", err
			}
		}
		// One is refused: another is asked for, and no window is opened.
		block := []byte{0x08, 3, '5', '0', '3'} // :status, by its index in the static table
		if err := w.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: h.StreamID, BlockFragment: block, EndHeaders: true, EndStream: true}); err != nil {
			return "", err
		}
		for {
			f, err := w.framer.ReadFrame()
			if err != nil {
				return "", err
			}
			switch f.Header().Type {
			case http2.FrameWindowUpdate:
				return "", fmt.Errorf("%v", f)
			case http2.FrameHeaders:
				return "h2", nil
			default:
			}
		}
	}, []string{"h2"}},
	RapidReset: {func(w *wire) (string, error) {
		for range 1000 {
			h, err := w.headers()
			if err != nil {
				return "", err
			}
			f, err := w.next()
			if err != nil {
				return "", err
			}
			if f.Header().Type != http2.FrameRSTStream || f.Header().StreamID != h.StreamID {
				return "", fmt.Errorf("%v", f)
			}
		}
		return "h2", nil
	}, []string{"h2"}},
}

// Each kind does on the wire what it says, and has nothing left when it is told to end.
func TestHostile(t *testing.T) {
	require.Len(t, looks, len(Kinds()))
	for _, kind := range Kinds() {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			require.NotEmpty(t, kind.About())
			l := looks[kind]
			var mu sync.Mutex
			seen, unseen := map[string]bool{}, slices.Clone(l.want)
			var wrong error
			addr := onWire(t, func(w *wire) {
				err := w.accept()
				if errors.Is(err, syscall.ECONNRESET) {
					return // before it had begun
				}
				what := ""
				if err == nil {
					what, err = l.saw(w)
				}
				mu.Lock()
				defer mu.Unlock()
				if err == nil && !slices.Contains(l.want, what) {
					err = fmt.Errorf("not expected: %q", what)
				}
				if len(unseen) > 0 && wrong == nil && err != nil {
					wrong = fmt.Errorf("%s: %w", w.protocol(), err)
				}
				seen[what] = true
				unseen = slices.DeleteFunc(unseen, func(s string) bool { return seen[s] })
			})
			run(t, &Hostile{Addr: addr, Kind: kind, Count: 8, Seed: 1}, func(Snapshot) bool {
				mu.Lock()
				defer mu.Unlock()
				return len(unseen) == 0 || wrong != nil
			})
			mu.Lock()
			defer mu.Unlock()
			require.NoError(t, wrong)
			require.Empty(t, unseen)
		})
	}
}

// onWire hands each connection to look, then closes it.
func onWire(t *testing.T, look func(*wire)) (addr string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var looking sync.WaitGroup
	looking.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			looking.Go(func() {
				defer conn.Close()
				look(&wire{Conn: conn})
			})
		}
	})
	t.Cleanup(func() { _ = listener.Close(); looking.Wait() })
	return listener.Addr().String()
}

// What these clients do may be done to this machine only.
func TestLoopbackOnly(t *testing.T) {
	for _, addr := range []string{"192.0.2.1:80", "[2001:db8::1]:80", "example.com:80", "localhost:80", "0.0.0.0:80", "", "127.0.0.1"} {
		for _, l := range []Load{&Hostile{Addr: addr, Kind: Announce, Count: 1}, &Uploads{Addr: addr, Count: 1}, &Small{Addr: addr, Rate: 100}} {
			s := run(t, l, func(s Snapshot) bool { return s.Errors > 0 })
			require.Zero(t, s.Served+s.Closed)
			require.Regexp(t, "not on the loopback interface|no address and port", s.Problem)
		}
	}
}

func TestHostileIsBounded(t *testing.T) {
	for _, h := range []*Hostile{{Kind: Announce, Count: mostHostile + 1}, {Kind: "nuisance", Count: 1}} {
		h.Addr = "127.0.0.1:1"
		h.Run(t.Context()) // ends by itself
		require.Zero(t, h.Snapshot().Started)
		require.NotEmpty(t, h.Snapshot().Problem)
	}
}
