package flow

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
)

// peer writes frames as an end of a connection does.
type peer struct {
	bytes.Buffer
	*http2.Framer
}

func newPeer() *peer {
	p := &peer{}
	p.Framer = http2.NewFramer(&p.Buffer, nil)
	return p
}

// take hands over what was written, in pieces of n bytes.
func (p *peer) take(to func([]byte), n int) {
	for p.Len() > 0 {
		to(p.Next(n))
	}
}

func headersOf(id uint32) http2.HeadersFrameParam {
	return http2.HeadersFrameParam{StreamID: id, BlockFragment: make([]byte, 30), EndHeaders: true}
}

// conversation is a client and a codec, with a filter between them.
type conversation struct {
	t             *testing.T
	c             *Connection
	client, codec *peer
	piece         int
}

func converse(t *testing.T, piece int) *conversation {
	t.Helper()
	v := &conversation{t, New(), newPeer(), newPeer(), piece}
	v.client.WriteString(Preface)
	require.NoError(t, v.client.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 14}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000}))
	require.NoError(t, v.codec.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 7}))
	require.NoError(t, v.client.WriteSettingsAck())
	v.read()
	v.write()
	return v
}

func (v *conversation) read()  { v.c.BeginRead(); v.client.take(v.c.Read, v.piece) }
func (v *conversation) write() { v.codec.take(v.c.Wrote, v.piece) }

// request has the client send requests at once, which come to the filter.
func (v *conversation) request(ids ...uint32) (all []*Stream) {
	for _, id := range ids {
		require.NoError(v.t, v.client.WriteHeaders(headersOf(id)))
		require.NoError(v.t, v.client.WriteData(id, true, make([]byte, 100)))
	}
	v.read()
	for range ids {
		s := &Stream{}
		v.c.Open(s)
		all = append(all, s)
	}
	return all
}

// answer has headers of a response pass, and be written.
func (v *conversation) answer(s *Stream, id uint32) {
	v.c.Answer(s)
	require.NoError(v.t, v.codec.WriteHeaders(headersOf(id)))
	v.write()
}

// pass has n bytes of a response pass, of which the codec writes so many.
func (v *conversation) pass(s *Stream, id uint32, n, written int) {
	v.c.Pass(s, int64(n))
	if written > 0 {
		require.NoError(v.t, v.codec.WriteData(id, false, make([]byte, written)))
	}
	v.write()
}

func TestBacklog(t *testing.T) {
	for _, piece := range []int{1, 7, 9, 1 << 20} {
		v := converse(t, piece)
		all := v.request(1, 3)
		v.answer(all[0], 1)
		v.answer(all[1], 3)
		v.pass(all[0], 1, 5000, 1000)
		v.pass(all[1], 3, 300, 300)
		require.Equal(t, int64(4000), v.c.Backlog(all[0]))
		require.False(t, v.c.Takes(all[0]), "its window is used up")
		require.Zero(t, v.c.Backlog(all[1]))
		require.True(t, v.c.Takes(all[1]))

		require.NoError(t, v.client.WriteWindowUpdate(1, 2500))
		v.read()
		require.True(t, v.c.Takes(all[0]))
		v.pass(all[0], 1, 0, 2500)
		require.Equal(t, int64(1500), v.c.Backlog(all[0]))
		require.NoError(t, v.client.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1001}))
		v.read()
		require.True(t, v.c.Takes(all[0]), "the setting counts for streams that are there")

		require.NoError(t, v.codec.WriteHeaders(headersOf(1)), "trailers")
		v.write()
		require.False(t, v.c.Lost())
		v.c.Close(all[0])
		v.c.Close(all[1])
		require.Empty(t, v.c.streams)
		require.Empty(t, v.c.answering)
	}
}

// The connection's own window is shared.
func TestTheConnectionsWindow(t *testing.T) {
	v := converse(t, 100)
	require.NoError(t, v.client.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20}))
	s := v.request(1)[0]
	v.answer(s, 1)
	for range 7 {
		v.pass(s, 1, 10000, 9362)
	}
	require.True(t, v.c.Takes(s), "one byte is left")
	v.pass(s, 1, 1, 1)
	require.False(t, v.c.Takes(s))
	require.NoError(t, v.client.WriteWindowUpdate(0, 1))
	v.read()
	require.True(t, v.c.Takes(s))
}

func TestInformationalResponsesAreNotTaken(t *testing.T) {
	v := converse(t, 1<<20)
	all := v.request(1, 3)
	require.NoError(t, v.codec.WriteHeaders(headersOf(1)), "100 Continue, of the codec's own")
	v.write()
	v.answer(all[1], 3)
	v.answer(all[0], 1)
	require.False(t, v.c.Lost())
	v.pass(all[0], 1, 10, 4)
	require.Equal(t, int64(6), v.c.Backlog(all[0]))
}

// One of two requests never came to the filter, and the other was taken for it.
func TestWhoIsTakenForAnotherIsNotBelieved(t *testing.T) {
	v := converse(t, 1<<20)
	require.NoError(t, v.client.WriteHeaders(headersOf(1)))
	s := v.request(3)[0]
	require.Equal(t, uint32(1), s.id)
	require.NoError(t, v.codec.WriteHeaders(headersOf(1)), "a reply that no filter has seen")
	v.write()
	v.answer(s, 3)
	v.pass(s, 3, 1<<20, 0)
	require.Zero(t, v.c.Backlog(s), "it is not confirmed")

	v = converse(t, 1<<20)
	require.NoError(t, v.client.WriteHeaders(headersOf(1)))
	all := v.request(3, 5)
	v.c.Answer(all[0])
	v.c.Answer(all[1])
	require.NoError(t, v.codec.WriteHeaders(headersOf(3)))
	v.write()
	require.True(t, v.c.Lost(), "the first to be written is taken for the second")
	require.Zero(t, v.c.Backlog(all[0]))
}

// What was read before is not of a request that comes later.
func TestARequestThatComesLateHasNoID(t *testing.T) {
	v := converse(t, 1<<20)
	require.NoError(t, v.client.WriteHeaders(headersOf(1)))
	v.read()
	v.read()
	s := &Stream{}
	v.c.Open(s)
	v.c.Answer(s)
	v.c.Pass(s, 1<<20)
	require.Zero(t, v.c.Backlog(s))
	v.c.Close(s)
}

func TestRequestsOfAReadAreBounded(t *testing.T) {
	v := converse(t, 1<<20)
	for i := range uint32(2 * maxComing) {
		require.NoError(t, v.client.WriteHeaders(headersOf(2*i+1)))
	}
	v.read()
	require.Len(t, v.c.coming, maxComing)
	for range 2 * maxComing {
		v.c.Open(&Stream{})
	}
	require.Len(t, v.c.streams, maxComing, "the rest is not followed")
}

// One that ends before its response is written makes no other wait.
func TestAnAnsweredStreamEnds(t *testing.T) {
	v := converse(t, 1<<20)
	all := v.request(1, 3)
	v.c.Answer(all[0])
	v.c.Close(all[0])
	v.answer(all[1], 3)
	require.False(t, v.c.Lost())
	v.pass(all[1], 3, 5, 0)
	require.Equal(t, int64(5), v.c.Backlog(all[1]))
	v.c.Lose()
	require.Zero(t, v.c.Backlog(all[1]))
}

// In whatever pieces bytes come, they are the same frames, and none of them ends in a panic.
func FuzzPieces(f *testing.F) {
	v := converse(&testing.T{}, 1)
	_ = v.client.WriteHeaders(headersOf(1))
	_ = v.client.WriteWindowUpdate(1, 5)
	f.Add(v.client.Bytes(), 3)
	f.Add([]byte{0, 0, 7, settings, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 9, 1}, 2)
	f.Fuzz(func(t *testing.T, p []byte, n int) {
		n = max(n, 1)
		whole, pieces := New(), New()
		whole.in.skip, pieces.in.skip = 0, 0
		for _, c := range []*Connection{whole, pieces} {
			c.coming = []uint32{1, 3}
			c.Open(&Stream{})
			c.Open(&Stream{})
		}
		whole.Read(p)
		whole.Wrote(p)
		for q := p; len(q) > 0; q = q[min(n, len(q)):] {
			pieces.Read(q[:min(n, len(q))])
		}
		for q := p; len(q) > 0; q = q[min(n, len(q)):] {
			pieces.Wrote(q[:min(n, len(q))])
		}
		require.Equal(t, whole.coming, pieces.coming)
		require.Equal(t, [3]int64{whole.initial, whole.window, int64(whole.newest)}, [3]int64{pieces.initial, pieces.window, int64(pieces.newest)})
		require.Equal(t, *whole.streams[1], *pieces.streams[1])
	})
}
