package worst

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/unit"
)

const (
	kib = unit.KiB
	mib = unit.MiB
)

func stock() Connection {
	return Connection{
		Downstream: mib, Upstream: mib, HTTP1: true, HTTP2: true, Window: 16 * mib, Connection: 24 * mib, Streams: 1024,
		Held: Held{Headers: 60 * kib},
	}
}

// The figures that the documents give for a stock Envoy come out of the model.
func TestStock(t *testing.T) {
	c := stock()
	require.Equal(t, 2*mib, c.Request(false), "a paused HTTP/1 upload: 1.4 to 1.8 MB measured")
	require.Equal(t, 32*mib, c.Request(true), "a paused HTTP/2 upload: 26 to 34 MB measured")
	require.Equal(t, 2*mib, c.Response(false))
	require.Equal(t, 17*mib, c.Response(true), "a stalled download: 17 to 18 MB measured")
	require.Equal(t, 2*mib+2*mib+30*kib+180*kib+8*kib, c.OverHTTP1())
	require.Equal(t, 48*mib+1024*(17*mib+30*kib+180*kib)+8*kib, c.OverHTTP2())
	require.Equal(t, c.OverHTTP2(), c.Most())
	c.HTTP1, c.HTTP2 = false, false
	require.Equal(t, 4*mib+8*kib, c.Most(), "raw TCP")
}

func TestLowBuffersAreFarLess(t *testing.T) {
	c := Connection{Downstream: 64 * kib, Upstream: 64 * kib, HTTP1: true, HTTP2: true, Window: 64 * kib, Connection: 16 * mib, Streams: 1024, SendBuffer: 64 * kib}
	require.Equal(t, 128*kib, c.Response(true), "1,000 stalled downloads: 128 MiB in the documents")
	require.Equal(t, 128*kib+KernelReceive, c.Kernel())
	require.Equal(t, KernelSend+KernelReceive, (&Connection{}).Kernel())
}

// What is held beside the buffers counts once for each request.
func TestHeld(t *testing.T) {
	for _, edit := range []func(h *Held, n unit.Bytes){
		func(h *Held, n unit.Bytes) { h.Whole = n },
		func(h *Held, n unit.Bytes) { h.Copies = n },
		func(h *Held, n unit.Bytes) { h.Out = n },
		func(h *Held, n unit.Bytes) { h.State = n },
	} {
		c, more := stock(), stock()
		edit(&more.Held, 8*mib)
		require.Equal(t, 8*mib, more.OverHTTP1()-c.OverHTTP1())
		require.Equal(t, 1024*8*mib, more.OverHTTP2()-c.OverHTTP2())
	}
	c, tls := stock(), stock()
	tls.TLS = true
	require.Equal(t, 5*kib, tls.OverHTTP1()-c.OverHTTP1())
}

func TestNothingOverflows(t *testing.T) {
	c := stock()
	c.Streams, c.Window, c.Held.Copies = 1<<31-1, 2*unit.GiB, Unbounded
	require.Equal(t, Unbounded, c.OverHTTP2())
	require.Equal(t, Unbounded, c.Most())
	require.Equal(t, Unbounded, Times(1<<62, 4))
	require.Equal(t, unit.Bytes(0), Times(0, Unbounded))
	require.Equal(t, Unbounded, Sum(Unbounded, 1))
}

func TestCluster(t *testing.T) {
	c := Cluster{Buffer: mib, Window: 256 * mib, Most: 1024}
	require.Equal(t, mib, c.Response(), "HTTP/1 has no windows")
	require.Equal(t, 2*unit.GiB, c.All())
	c.HTTP2 = true
	require.Equal(t, 256*mib, c.Response())
	require.Equal(t, 1024*257*mib, c.All())
}

// The line goes through what was measured.
func TestBase(t *testing.T) {
	require.InDelta(t, float64(220*mib), float64(Base(4000, false)), float64(3*mib))
	require.InDelta(t, float64(434*mib), float64(Base(8000, false)), float64(4*mib))
	require.InDelta(t, float64(482*mib), float64(LeastLimit(434*mib)), float64(mib))
	require.Equal(t, Plugin, Base(1, true)-Base(1, false))
}

func TestCompressors(t *testing.T) {
	require.InDelta(t, float64(467*kib), float64(Gzip(15, 9, 4096)), float64(90*kib), "measured, with what Envoy keeps beside")
	require.Equal(t, 32*kib+4096, Gzip(12, 5, 4096), "Envoy's defaults")
	require.Equal(t, 512*kib+4096, Brotli(3, 18, 24, 4096), "Envoy's defaults")
	require.Equal(t, 32*mib+4096, Brotli(11, 18, 24, 4096))
}
