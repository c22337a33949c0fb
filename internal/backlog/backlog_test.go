package backlog

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// watching is a listener whose connections are watched.
type watching struct {
	net.Listener
	bound *Bound
}

func (l watching) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.bound.Watch(c), nil
}

const echoPath = "/test.Echo/Both"

// serve is a gRPC server of grpc-go that answers each message with itself, but for those that begin
// with '-'.
func serve(t *testing.T, bound *Bound) *grpc.ClientConn {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := grpc.NewServer(grpc.MaxRecvMsgSize(64<<20), grpc.StaticStreamWindowSize(64<<10))
	s.RegisterService(&grpc.ServiceDesc{ServiceName: "test.Echo", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{
		StreamName: "Both", ServerStreams: true, ClientStreams: true, Handler: func(_ any, st grpc.ServerStream) error {
			for {
				var m wrapperspb.BytesValue
				if err := st.RecvMsg(&m); err != nil {
					return nil //nolint:nilerr // it is the end
				}
				if !bytes.HasPrefix(m.Value, []byte("-")) {
					if err := st.SendMsg(&m); err != nil {
						return err
					}
				}
			}
		},
	}}}, nil)
	var running sync.WaitGroup
	running.Go(func() { _ = s.Serve(watching{l, bound}) })
	c, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	require.NoError(t, err)
	t.Cleanup(func() {
		c.Close()
		s.Stop()
		running.Wait()
		require.Zero(t, bound.Held(), "nothing is held where there is no connection")
	})
	return c
}

func open(t *testing.T, c *grpc.ClientConn) grpc.ClientStream {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	s, err := c.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, echoPath)
	require.NoError(t, err)
	return s
}

func until(t *testing.T, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 10*time.Second, time.Millisecond)
}

// Whoever reads its answers holds nothing, however much it sends, and in pieces of whatever size.
func TestAnsweredIsNotHeld(t *testing.T) {
	bound := &Bound{Most: 1 << 40}
	c := serve(t, bound)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			s := open(t, c)
			for _, n := range []int{0, 1, 100, 16379, 16380, 16384, 65_536, 1 << 20, 3 << 20, 5} {
				if s.SendMsg(wrapperspb.Bytes(make([]byte, n))) != nil || s.RecvMsg(&wrapperspb.BytesValue{}) != nil {
					t.Errorf("%d bytes", n)
				}
			}
		})
	}
	all.Wait()
	until(t, func() bool { return bound.Held() == 0 })
}

// What is owed is held until it is answered, and each answer takes away as much.
func TestUnansweredIsHeld(t *testing.T) {
	bound := &Bound{Most: 1 << 40}
	c := serve(t, bound)
	s := open(t, c)
	require.NoError(t, s.SendMsg(wrapperspb.Bytes([]byte("begun"))))
	require.NoError(t, s.RecvMsg(&wrapperspb.BytesValue{}))
	until(t, func() bool { return bound.Held() == 0 })
	for i := range int64(3) {
		require.NoError(t, s.SendMsg(wrapperspb.Bytes(append([]byte("-"), make([]byte, 1000)...))))
		until(t, func() bool { return bound.Held() >= (i+1)*(1000+messageCost+frameCost) })
	}
	held := bound.Held()
	require.LessOrEqual(t, held, int64(3*(1020+messageCost+2*frameCost)))
	require.NoError(t, s.SendMsg(wrapperspb.Bytes([]byte("answered, for one of the others"))))
	require.NoError(t, s.RecvMsg(&wrapperspb.BytesValue{}))
	until(t, func() bool { return bound.Held() < held })
	require.NoError(t, s.CloseSend())
	require.ErrorIs(t, s.RecvMsg(&wrapperspb.BytesValue{}), io.EOF)
	until(t, func() bool { return bound.Held() == 0 })
}

// The connection that holds the most has to go, and nobody else.
func TestTheHeaviestGoes(t *testing.T) {
	closed := make(chan int64, 100)
	bound := &Bound{Most: 10 << 20, Closed: func(_ net.Addr, by int64) { closed <- by }}
	c := serve(t, bound)
	modest := open(t, c)
	require.NoError(t, modest.SendMsg(wrapperspb.Bytes(append([]byte("-"), make([]byte, 3<<20)...))))
	until(t, func() bool { return bound.Held() > 3<<20 })

	target := c.Target()
	other, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	defer other.Close()
	greedy := open(t, other)
	for range 9 {
		if greedy.SendMsg(wrapperspb.Bytes(append([]byte("-"), make([]byte, 1<<20)...))) != nil {
			break
		}
	}
	require.Error(t, greedy.RecvMsg(&wrapperspb.BytesValue{}))
	by := <-closed
	require.Greater(t, by, int64(5<<20))
	require.Empty(t, closed)
	require.NoError(t, modest.SendMsg(wrapperspb.Bytes([]byte("still there"))))
	require.NoError(t, modest.RecvMsg(&wrapperspb.BytesValue{}))
}

// loose is a connection whose peer is a test: what is written to peer comes, what is written to it
// goes nowhere.
type loose struct {
	net.Conn
	in io.Reader
}

func (l loose) Read(p []byte) (int, error)  { return l.in.Read(p) }
func (l loose) Write(p []byte) (int, error) { return len(p), nil }
func (l loose) Close() error                { return nil }
func (l loose) RemoteAddr() net.Addr        { return &net.TCPAddr{} }

// sliver reads at most a few bytes at once.
type sliver struct {
	io.Reader
	random *rand.Rand
}

func (s sliver) Read(p []byte) (int, error) {
	return s.Reader.Read(p[:min(len(p), 1+s.random.IntN(40))])
}

func headers(fr *http2.Framer, id uint32) {
	var block bytes.Buffer
	_ = hpack.NewEncoder(&block).WriteField(hpack.HeaderField{Name: ":path", Value: echoPath})
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
}

// Frames and messages are found wherever reads and frames cut them, with padding and between frames
// of other kinds.
func TestFramesInPieces(t *testing.T) {
	message := func(n int) []byte {
		return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(n)), make([]byte, n)...)
	}
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		wire := bytes.NewBufferString(http2.ClientPreface)
		fr := http2.NewFramer(wire, nil)
		_ = fr.WriteSettings()
		headers(fr, 1)
		sizes := []int{random.IntN(100), 0, 16 << 10, random.IntN(70_000)}
		var data []byte
		for _, n := range sizes {
			data = append(data, message(n)...)
		}
		data = append(data, message(1000)[:500]...)
		frames := 0
		for rest := data; len(rest) > 0; frames++ {
			n := min(1+random.IntN(9000), len(rest))
			if random.IntN(2) == 0 {
				_ = fr.WriteData(1, false, rest[:n])
			} else {
				_ = fr.WriteDataPadded(1, false, rest[:n], make([]byte, random.IntN(200)))
			}
			rest = rest[n:]
			_ = fr.WritePing(false, [8]byte{})
		}
		bound := &Bound{Most: 1 << 40}
		c := bound.Watch(loose{in: sliver{wire, random}})
		_, err := io.Copy(io.Discard, c)
		require.NoError(t, err)
		require.Equal(t, int64(len(data)+frames*frameCost+len(sizes)*messageCost), bound.Held(), "seed %d", seed)

		answers := bytes.NewBuffer(nil)
		out := http2.NewFramer(answers, nil)
		for range sizes {
			_ = out.WriteData(1, false, message(3))
		}
		for answers.Len() > 0 {
			_, err := c.Write(answers.Next(1 + random.IntN(20)))
			require.NoError(t, err)
		}
		st := c.mu.streams[1]
		require.Zero(t, st.owed)
		require.Zero(t, st.whole)
		require.Equal(t, st.partial, bound.Held(), "of the message that has not all come")
		_ = out.WriteRSTStream(1, http2.ErrCodeNo)
		_, _ = c.Write(answers.Bytes())
		require.Zero(t, bound.Held())
		_ = c.Close()
	}
}

// A stream that has said nothing costs what it is.
func TestSilentStreams(t *testing.T) {
	wire := bytes.NewBufferString(http2.ClientPreface)
	fr := http2.NewFramer(wire, nil)
	for i := range uint32(100) {
		headers(fr, 2*i+1)
	}
	bound := &Bound{Most: 1 << 40}
	c := bound.Watch(loose{in: wire})
	_, _ = io.Copy(io.Discard, c)
	require.Equal(t, int64(100*streamCost), bound.Held())
	streams, ever := c.Uses()
	require.Zero(t, streams)
	require.False(t, ever)
	_ = fr.WriteRSTStream(1, http2.ErrCodeCancel)
	_ = fr.WriteData(3, false, []byte{0, 0, 0, 0, 0})
	_, _ = io.Copy(io.Discard, c)
	require.Equal(t, int64(98*streamCost+5+frameCost+messageCost), bound.Held())
	streams, ever = c.Uses()
	require.Equal(t, 1, streams)
	require.True(t, ever)
	require.NoError(t, c.Close())
	require.Zero(t, bound.Held())
}

// Whatever bytes pass, in whatever pieces, nothing panics, nothing is negative, and nothing stays.
func FuzzWire(f *testing.F) {
	good := bytes.NewBufferString(http2.ClientPreface)
	fr := http2.NewFramer(good, nil)
	headers(fr, 1)
	_ = fr.WriteDataPadded(1, false, []byte{0, 0, 0, 0, 3, 1, 2, 3, 0, 0}, make([]byte, 9))
	_ = fr.WriteRSTStream(1, http2.ErrCodeCancel)
	f.Add(good.Bytes(), good.Bytes()[len(http2.ClientPreface):], uint8(7))
	f.Fuzz(func(t *testing.T, in, out []byte, step uint8) {
		bound := &Bound{Most: 1 << 40}
		c := bound.Watch(loose{in: bytes.NewReader(in)})
		piece := make([]byte, int(step)+1)
		for {
			n, err := c.Read(piece)
			m := min(n, len(out))
			_, _ = c.Write(out[:m])
			out = out[m:]
			require.GreaterOrEqual(t, bound.Held(), int64(0))
			var sum int64
			for _, st := range c.mu.streams {
				require.GreaterOrEqual(t, st.whole, int64(0))
				require.GreaterOrEqual(t, st.owed, int64(0))
				sum += st.holds()
			}
			require.Equal(t, sum, bound.Held())
			if err != nil {
				break
			}
		}
		_ = c.Close()
		require.Zero(t, bound.Held())
	})
}

// fake is a peer whose frames come in memory.
type fake struct {
	*Conn
	wire *bytes.Buffer
	fr   *http2.Framer
}

func peer(bound *Bound, preface string) *fake {
	wire := bytes.NewBufferString(preface)
	return &fake{bound.Watch(loose{in: wire}), wire, http2.NewFramer(wire, nil)}
}

// comes has all that was written come.
func (f *fake) comes() { _, _ = io.Copy(io.Discard, f.Conn) }

// sends has a message of so many bytes come on a stream, all of it or all but the end.
func (f *fake) sends(id uint32, n int, whole bool) {
	headers(f.fr, id)
	data := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(n)), make([]byte, n)...)
	if !whole {
		data = data[:len(data)-1]
	}
	_ = f.fr.WriteData(id, false, data)
	f.comes()
}

// answers has the first message of a stream answered.
func (f *fake) answers(id uint32) {
	var out bytes.Buffer
	_ = http2.NewFramer(&out, nil).WriteData(id, false, []byte{0, 0, 0, 0, 1, 0})
	_, _ = f.Write(out.Bytes())
}

// Who spreads what he holds over many connections, a little on each, has none of the others closed:
// neither one that works, with more in flight than he has on any, nor one that has only just come.
func TestWhatIsSpreadOverManyConnections(t *testing.T) {
	closed := map[int64]int{}
	bound := &Bound{Most: 4 << 20, Closed: func(_ net.Addr, by int64) { closed[by]++ }}
	var spread []*fake
	for range 139 {
		f := peer(bound, http2.ClientPreface)
		f.sends(1, 15<<10, false)
		spread = append(spread, f)
	}
	each := spread[0].held.Load()
	require.Empty(t, closed)
	time.Sleep(2 * window)
	working, young := peer(bound, http2.ClientPreface), peer(bound, http2.ClientPreface)
	for id := uint32(1); id < 400; id += 2 {
		working.sends(id, 40<<10, true)
		young.sends(id, 500, true)
		if id > 8 {
			working.answers(id - 8) // four are in flight
		}
	}
	require.Len(t, closed, 1, "%v", closed)
	require.Positive(t, closed[each])
	require.Greater(t, working.held.Load(), 4*each)
	require.Greater(t, young.held.Load(), 4*each)
	for _, f := range append(spread, working, young) {
		_ = f.Close()
	}
	require.Zero(t, bound.Held())
}

// The headers of a stream are kept as long as it is open, answered or not.
func TestLargeHeadersAreHeld(t *testing.T) {
	bound := &Bound{Most: 1 << 40}
	f := peer(bound, http2.ClientPreface)
	_ = f.fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 6000)})
	_ = f.fr.WriteContinuation(1, true, make([]byte, 5000))
	_ = f.fr.WriteData(1, false, []byte{0, 0, 0, 0, 0})
	f.comes()
	f.answers(1)
	require.EqualValues(t, headersCost*(11_000-plainHeaders), bound.Held())
	_ = f.fr.WriteRSTStream(1, http2.ErrCodeCancel)
	f.comes()
	require.Zero(t, bound.Held())
}
