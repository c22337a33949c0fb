package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	extprocv3 "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/process"
)

// hostile is a peer of the gRPC port that speaks frames by hand.
type hostile struct {
	net.Conn
	fr   *http2.Framer
	buf  bytes.Buffer
	enc  *hpack.Encoder
	id   uint32      // of the next stream
	ids  []uint32    // of requests
	deaf atomic.Bool // nothing more is read

	windows struct { // that the server has given
		sync.Mutex
		conn    int
		initial int            // of each stream
		of      map[uint32]int // beyond that; negative = used
	}
}

const processPath = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"

// attack is what a hostile peer does to the server for as long as ctx lasts, or until it is thrown
// out.
type attack struct {
	name    string
	streams int // that there are before, as of so many requests in flight; they give no window for an answer
	do      func(ctx context.Context, h *hostile)
	cpu     time.Duration // that it may cost; 0 = attackCPU
}

func dialHostile(ctx context.Context, address string, settings ...http2.Setting) (*hostile, error) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	h := &hostile{Conn: c, fr: http2.NewFramer(c, c), id: 1}
	h.enc = hpack.NewEncoder(&h.buf)
	_, _ = io.WriteString(c, http2.ClientPreface)
	h.windows.of = map[uint32]int{}
	go h.listen()
	return h, h.fr.WriteSettings(settings...)
}

// listen takes what comes, and keeps the windows.
func (h *hostile) listen() {
	h.windows.Lock()
	h.windows.conn, h.windows.initial = 65535, 65535
	h.windows.Unlock()
	fr := http2.NewFramer(nil, bufio.NewReaderSize(h.Conn, 64<<10))
	for !h.deaf.Load() {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		h.windows.Lock()
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if v, ok := f.Value(http2.SettingInitialWindowSize); ok {
				h.windows.initial = int(v)
			}
		case *http2.WindowUpdateFrame:
			if f.StreamID == 0 {
				h.windows.conn += int(f.Increment)
			} else {
				h.windows.of[f.StreamID] += int(f.Increment)
			}
		}
		h.windows.Unlock()
	}
}

// fits says whether the windows let n bytes through, and takes them.
func (h *hostile) fits(id uint32, n int) bool {
	w := &h.windows
	w.Lock()
	defer w.Unlock()
	if n > w.conn || n > w.initial+w.of[id] {
		return false
	}
	w.conn -= n
	w.of[id] -= n
	return true
}

// send writes as much of the data on each stream as the windows let through, again and again until
// it ends, and returns when the connection is gone or ctx is done. next is the next piece for a
// stream; nil = it has no more.
func (h *hostile) send(ctx context.Context, ids []uint32, next func(i int) []byte) {
	unsent := make([][]byte, len(ids))
	for ctx.Err() == nil {
		some := false
		for i, id := range ids {
			if unsent[i] == nil {
				unsent[i] = next(i)
			}
			if unsent[i] == nil || !h.fits(id, len(unsent[i])) {
				continue
			}
			some = true
			if h.fr.WriteData(id, false, unsent[i]) != nil {
				return
			}
			unsent[i] = nil
		}
		if !some {
			load.Sleep(ctx, 5*time.Millisecond)
		}
	}
}

// request opens a stream as Envoy does for a request, whose body it sends without being asked.
func (h *hostile) request(mode filterv3.ProcessingMode_BodySendMode) error {
	id, err := h.open(processPath, "application/grpc")
	if err == nil {
		h.ids = append(h.ids, id)
		err = h.fr.WriteData(id, false, framed(getOf(mode)))
	}
	return err
}

func (h *hostile) open(path, contentType string, more ...hpack.HeaderField) (id uint32, err error) {
	h.buf.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"},
		{Name: ":scheme", Value: "http"},
		{Name: ":path", Value: path},
		{Name: ":authority", Value: "x"},
		{Name: "te", Value: "trailers"},
	}, more...) {
		_ = h.enc.WriteField(f)
	}
	if contentType != "" {
		_ = h.enc.WriteField(hpack.HeaderField{Name: "content-type", Value: contentType})
	}
	id = h.id
	h.id += 2
	return id, h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: h.buf.Bytes(), EndHeaders: true})
}

func framed(m proto.Message) []byte {
	data, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(data))), data...)
}

func getOf(mode filterv3.ProcessingMode_BodySendMode) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{
		Request: &extprocv3.ProcessingRequest_RequestHeaders{RequestHeaders: &extprocv3.HttpHeaders{Headers: &corev3.HeaderMap{Headers: []*corev3.HeaderValue{
			{Key: ":method", RawValue: []byte("POST")}, {Key: ":path", RawValue: []byte("/")},
		}}}},
		ProtocolConfig: &extprocv3.ProtocolConfiguration{RequestBodyMode: mode},
	}
}

func pieceOf(n int) *extprocv3.ProcessingRequest {
	return &extprocv3.ProcessingRequest{Request: &extprocv3.ProcessingRequest_RequestBody{RequestBody: &extprocv3.HttpBody{Body: make([]byte, n)}}}
}

// begun opens streams that begin a message of so many bytes, and sends all but the end of it, in
// frames of that size.
func begun(ctx context.Context, h *hostile, streams, message, frame int) {
	var ids []uint32
	for range streams {
		id, err := h.open(processPath, "application/grpc")
		if err != nil || h.fr.WriteData(id, false, binary.BigEndian.AppendUint32([]byte{0}, uint32(message))) != nil {
			return
		}
		ids = append(ids, id)
	}
	piece, left := make([]byte, frame), make([]int, streams)
	for i := range left {
		left[i] = message - 1
	}
	h.send(ctx, ids, func(i int) []byte {
		if left[i] < frame {
			return nil
		}
		left[i] -= frame
		return piece
	})
}

// unread sends bodies of that size on all of its streams, and never takes an answer.
func unread(ctx context.Context, h *hostile, size int) {
	body := framed(pieceOf(size))
	h.send(ctx, h.ids, func(int) []byte { return body })
}

// flood writes the same frames over and over, up to so many bytes.
func (h *hostile) flood(ctx context.Context, most int, frames func(fr *http2.Framer)) {
	var block bytes.Buffer
	for fr := http2.NewFramer(&block, nil); block.Len() < 64<<10; {
		frames(fr)
	}
	for ; most > 0 && ctx.Err() == nil; most -= block.Len() {
		if _, err := h.Write(block.Bytes()[:min(block.Len(), most)]); err != nil {
			return
		}
	}
}

func attacks() []attack {
	const application = "application/grpc"
	return []attack{
		{name: "a path that is not UTF-8, without a content-type", cpu: time.Second, do: func(ctx context.Context, h *hostile) {
			_, _ = h.open("/\xff", "")
			_, _ = h.open("/\xff", application)
			<-ctx.Done()
		}},
		{name: "20,000 made-up paths", cpu: 8 * time.Second, do: func(_ context.Context, h *hostile) {
			for i := range 20_000 {
				id, err := h.open(fmt.Sprintf("/made.up%d/Method%d", i, i), application)
				if err != nil || h.fr.WriteData(id, true, []byte{0, 0, 0, 0, 0}) != nil {
					return
				}
			}
		}},
		{name: "no window for echoed bodies", streams: 4000, do: func(ctx context.Context, h *hostile) { unread(ctx, h, 16<<10) }},
		{name: "no window for answers to tiny bodies", streams: 4000, do: func(ctx context.Context, h *hostile) { unread(ctx, h, 1) }},
		{name: "60 streams with an unfinished message", do: func(ctx context.Context, h *hostile) { begun(ctx, h, 60, 7<<20, 16<<10) }},
		{name: "8,000 streams with an unfinished message", do: func(ctx context.Context, h *hostile) { begun(ctx, h, 8000, 100<<10, 16<<10) }},
		{name: "60 unfinished messages in frames of 16 bytes", do: func(ctx context.Context, h *hostile) { begun(ctx, h, 60, 1<<20, 16) }},
		{name: "328 kB of SETTINGS beside 8,000 streams", streams: 8000, cpu: 4 * time.Second, do: func(ctx context.Context, h *hostile) {
			size := uint32(0)
			h.flood(ctx, 328_000, func(fr *http2.Framer) {
				size = 1 - size
				_ = fr.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: size})
			})
			<-ctx.Done()
		}},
		{name: "65 kB of WINDOW_UPDATE beside 5,000 blocked streams", streams: 5000, cpu: 4 * time.Second, do: func(ctx context.Context, h *hostile) {
			h.flood(ctx, 65_000, func(fr *http2.Framer) { _ = fr.WriteWindowUpdate(0, 1) })
			<-ctx.Done()
		}},
		{name: "400 MB of PINGs, and nothing is read", do: func(ctx context.Context, h *hostile) {
			h.deaf.Store(true)
			h.flood(ctx, 400_000_000, func(fr *http2.Framer) { _ = fr.WritePing(false, [8]byte{}) })
		}},
		{name: "40,000 streams that are reset at once", do: func(_ context.Context, h *hostile) {
			for range 40_000 {
				id, err := h.open(processPath, application)
				if err != nil || h.fr.WriteRSTStream(id, http2.ErrCodeCancel) != nil {
					return
				}
			}
		}},
		{name: "CONTINUATION without end", do: func(ctx context.Context, h *hostile) {
			h.buf.Reset()
			_ = h.enc.WriteField(hpack.HeaderField{Name: "x", Value: strings.Repeat("y", 10_000)})
			block := bytes.Clone(h.buf.Bytes())
			_ = h.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: h.id, BlockFragment: block})
			for ctx.Err() == nil && h.fr.WriteContinuation(h.id, false, block) == nil {
				continue
			}
		}},
		{name: "2,000 connections that say nothing", do: func(ctx context.Context, h *hostile) {
			for range 2000 {
				if c, err := (&net.Dialer{}).DialContext(ctx, "tcp", h.RemoteAddr().String()); err == nil {
					context.AfterFunc(ctx, func() { c.Close() })
				}
			}
			<-ctx.Done()
		}},
		{name: "1,000 connections that say nothing more than hello", do: func(ctx context.Context, h *hostile) {
			for range 1000 {
				_, _ = dialHostile(ctx, h.RemoteAddr().String())
			}
			<-ctx.Done()
		}},
		{name: "420 connections that hold 60 kB each", do: func(ctx context.Context, h *hostile) {
			for range 420 {
				each, err := dialHostile(ctx, h.RemoteAddr().String())
				if err != nil {
					return
				}
				if id, err := each.open(processPath, application); err == nil {
					_ = each.fr.WriteData(id, false, binary.BigEndian.AppendUint32([]byte{0}, 64<<10))
					for range 3 {
						_ = each.fr.WriteData(id, false, make([]byte, 16<<10))
					}
				}
			}
			<-ctx.Done()
		}},
		{name: "8,000 streams with 15 kB of headers each", do: func(ctx context.Context, h *hostile) {
			get := framed(getOf(filterv3.ProcessingMode_NONE))
			for i := range 8000 {
				own := hpack.HeaderField{Name: "own", Value: fmt.Sprint(i, strings.Repeat("a", 15_000)), Sensitive: true} // in no table
				id, err := h.open(processPath, application, own)
				if err != nil || h.fr.WriteData(id, false, get) != nil {
					return
				}
			}
			<-ctx.Done()
		}},
		{name: "300 who watch the health of what is no service", do: func(ctx context.Context, h *hostile) {
			message := framed(&healthpb.HealthCheckRequest{Service: strings.Repeat("x", 1<<20)})
			for range 300 {
				id, err := h.open("/grpc.health.v1.Health/Watch", application)
				if err != nil {
					return
				}
				all, cancel := context.WithCancel(ctx)
				rest := message
				h.send(all, []uint32{id}, func(int) []byte {
					piece := rest[:min(16<<10, len(rest))]
					if rest = rest[len(piece):]; len(piece) == 0 {
						cancel()
						return nil
					}
					return piece
				})
				cancel()
			}
			<-ctx.Done()
		}},
		{name: "messages that are bombs of headers", do: func(ctx context.Context, h *hostile) {
			m := getOf(filterv3.ProcessingMode_NONE)
			for range 500_000 {
				of := m.GetRequestHeaders().GetHeaders()
				of.Headers = append(of.Headers, &corev3.HeaderValue{})
			}
			bombs(ctx, h, framed(m))
		}},
		{name: "messages that are bombs of attributes", do: func(ctx context.Context, h *hostile) {
			list := &structpb.ListValue{}
			for range 500_000 {
				list.Values = append(list.Values, &structpb.Value{})
			}
			m := pieceOf(1)
			m.Attributes = map[string]*structpb.Struct{"x": {Fields: map[string]*structpb.Value{"y": structpb.NewListValue(list)}}}
			bombs(ctx, h, framed(m))
		}},
	}
}

// bombs sends the message on four connections, on one stream after the other.
func bombs(ctx context.Context, h *hostile, message []byte) {
	address := h.RemoteAddr().String()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 25 {
				h, err := dialHostile(ctx, address)
				if err != nil {
					return
				}
				id, err := h.open(processPath, "application/grpc")
				for rest := message; len(rest) > 0 && err == nil; {
					n := min(16<<10, len(rest))
					err = h.fr.WriteData(id, false, rest[:n])
					rest = rest[n:]
				}
			}
		})
	}
	all.Wait()
	<-ctx.Done()
}

// attackFor is how long an attack goes on: it has done by then what it can, or has been thrown out.
// attackCPU is what it may cost where it has no bound of its own: a core for as long.
const (
	attackFor = 2 * time.Second
	attackCPU = attackFor
)

// Whatever a peer of the gRPC port does, the server lives, holds little more than before, and
// guards Envoy's requests meanwhile.
func TestAttacksOnTheGRPCPort(t *testing.T) {
	s := start(t, setup{face: envoytest.ExtProc, workers: 1})
	server := s.Server()
	metrics := func() string {
		res, err := http.Get("http://" + server.HTTP + "/metrics")
		require.NoError(t, err)
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return string(text)
	}
	admitted := func() float64 {
		m, err := s.Stats(t.Context(), "highwater_admitted_total")
		require.NoError(t, err)
		return m["wasmcustom.highwater_admitted_total"]
	}
	series := strings.Count(metrics(), "\n")
	for _, a := range attacks() {
		t.Run(a.name, func(t *testing.T) {
			require.NoError(t, server.Stop()) // each attack meets a server that has seen none
			require.NoError(t, server.Restart(t.Context()))
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			var settings []http2.Setting
			if a.streams > 0 {
				settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			}
			h, err := dialHostile(ctx, server.GRPC, settings...)
			require.NoError(t, err)
			for range a.streams {
				require.NoError(t, h.request(filterv3.ProcessingMode_FULL_DUPLEX_STREAMED))
			}
			require.Eventually(t, func() bool { return strings.Contains(metrics(), fmt.Sprintf("grpc_server_streams %d\n", a.streams)) }, 10*time.Second, 50*time.Millisecond)
			before, err := process.Resident(server.PID)
			require.NoError(t, err)
			cpu, err := process.CPU(server.PID)
			require.NoError(t, err)
			guarded := admitted()
			small := &load.Small{Addr: s.addr, Rate: 50, Drain: 2 * time.Second}
			var running sync.WaitGroup
			running.Go(func() { a.do(ctx, h) })
			running.Go(func() { small.Run(ctx) })
			var most int64
			for end := time.Now().Add(attackFor); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				now, err := process.Resident(server.PID)
				require.NoError(t, err, "the server is gone:\n%s", server.Logs())
				most = max(most, now)
			}
			cancel()
			running.Wait()
			after, err := process.CPU(server.PID)
			require.NoError(t, err)
			got := small.Snapshot()
			t.Logf("%d MiB before, %d at most; %.1f s of CPU; %d of %d served", before/mib, most/mib, (after - cpu).Seconds(), got.Served, got.Started)
			require.LessOrEqual(t, most-before, int64(64*mib))
			require.LessOrEqual(t, after-cpu, cmp.Or(a.cpu, attackCPU))
			require.Zero(t, got.Errors+got.Cut+got.Closed+got.Rejected, "%+v", got)
			require.GreaterOrEqual(t, got.Served, got.Started-1)
			require.GreaterOrEqual(t, admitted()-guarded, float64(got.Served), "Envoy's requests went on unguarded")
			settled, err := process.CPU(server.PID)
			require.NoError(t, err)
			time.Sleep(500 * time.Millisecond)
			idle, err := process.CPU(server.PID)
			require.NoError(t, err)
			require.Less(t, idle-settled, 150*time.Millisecond, "it is over")
		})
	}
	require.LessOrEqual(t, strings.Count(metrics(), "\n"), series+40, "no series is made of what a peer says")
	require.Contains(t, metrics(), "highwater_ext_proc_faults_total 0\n")
}
