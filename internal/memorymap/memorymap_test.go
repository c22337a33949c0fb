package memorymap

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/allocator"
)

// captured is a text of an Envoy 1.40.0, of testdata: plain without a plugin, wasm-idle with
// Highwater's, wasm-up with 50 uploads.
func captured(tb testing.TB, name string) []byte {
	tb.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	require.NoError(tb, err)
	if !strings.HasSuffix(name, ".gz") {
		return text
	}
	in, err := gzip.NewReader(bytes.NewReader(text))
	require.NoError(tb, err)
	text, err = io.ReadAll(in)
	require.NoError(tb, err)
	return text
}

func inputOf(tb testing.TB, name string) Input {
	tb.Helper()
	mappings, err := ParseSmaps(captured(tb, name+".smaps.gz"))
	require.NoError(tb, err)
	status, err := ParseStatus(captured(tb, name+".status.txt"))
	require.NoError(tb, err)
	report, err := allocator.Parse(captured(tb, name+".tcmalloc.gz"))
	require.NoError(tb, err)
	return Input{Mappings: mappings, Status: &status, Allocator: report}
}

func sumOf(list []Part) (n int64) {
	for _, p := range list {
		n += p.Bytes
	}
	return n
}

// The first level adds up to what the kernel says is resident, within 2 %, and to the byte with
// what is not explained.
func TestAddsUpToResident(t *testing.T) {
	for _, name := range []string{"plain", "wasm-idle", "wasm-up"} {
		m := Build(inputOf(t, name))
		require.Equal(t, m.Resident, sumOf(m.Parts), name)
		require.Less(t, m.Error, 0.02, "%s: %+v", name, m.Parts)
		require.Positive(t, m.Of(Application), name)
		require.Positive(t, m.Of(Stacks), name)
		require.Positive(t, m.Untouched, name)
		wasm := strings.HasPrefix(name, "wasm")
		require.Equal(t, wasm, m.Of(WasmMemory) > 0, name)
		require.Equal(t, wasm, m.Of(WasmCode) > 0, name)
		require.Equal(t, wasm, m.Of(V8) > 0, name)
	}
}

// A mapping that nobody explains is an error, and so is a heap that has more than there is.
func TestErrorIsCounted(t *testing.T) {
	in := inputOf(t, "wasm-idle")
	in.Mappings = append(in.Mappings, Mapping{Start: 0x7fff00000000, End: 0x7fff01000000, Perm: "rw-p", Resident: 16 << 20, Anonymous: 16 << 20})
	in.Status.Resident += 16 << 20
	m := Build(in)
	require.InDelta(t, 16<<20, m.Of(Unexplained), 1<<20)
	require.Greater(t, m.Error, 0.07)

	in = inputOf(t, "wasm-idle")
	in.Status.Resident -= 20 << 20
	m = Build(in)
	require.Greater(t, m.Error, 0.1)
	require.Negative(t, m.Of(Unexplained))

	in = inputOf(t, "wasm-idle")
	in.Allocator.HeapSize += 40 << 20
	in.Allocator.Application += 40 << 20
	require.Greater(t, Build(in).Error, 0.15, "the allocator says more than its blocks have")
}

// Whatever is missing leaves a map of the rest, and is named.
func TestPartial(t *testing.T) {
	whole := inputOf(t, "wasm-idle")
	for name, in := range map[string]Input{
		"no smaps":     {Status: whole.Status, Allocator: whole.Allocator},
		"no status":    {Mappings: whole.Mappings, Allocator: whole.Allocator},
		"no allocator": {Mappings: whole.Mappings, Status: whole.Status},
		"nothing":      {},
		"allocator":    {Allocator: whole.Allocator},
	} {
		m := Build(in)
		require.NotEmpty(t, m.Missing, name)
		require.Equal(t, m.Resident, sumOf(m.Parts), name)
		if name != "nothing" {
			require.Positive(t, m.Of(Application), name)
		}
	}
	m := Build(Input{Status: whole.Status, Allocator: whole.Allocator})
	require.InDelta(t, whole.Status.File, m.Of(Binary), 1)
	require.InDelta(t, 40<<20, m.Of(Application), 8<<20)
}

func TestInside(t *testing.T) {
	in := inputOf(t, "wasm-up")
	in.Gauges = &Gauges{Connections: 50, Requests: 50, UpstreamConnections: 40, Clusters: 3, WasmVMs: 3}
	m := Build(in)
	require.Less(t, m.InsideError, 0.1, "%+v", m.Inside)
	require.InDelta(t, 6<<20, m.In(Buffers), 2<<20, "50 uploads that wait, with 100 kB of each")
	require.Greater(t, m.In(Plugins), int64(30<<20))
	// With what there was before it is told better.
	in.Base = inputOf(t, "wasm-idle").Allocator
	better := Build(in)
	require.Less(t, better.InsideError, 0.02, "%+v", better.Inside)
	require.Zero(t, better.In(Plugins), "it is part of what was there at the start")
}

func TestStatus(t *testing.T) {
	s, err := ParseStatus(captured(t, "plain.status.txt"))
	require.NoError(t, err)
	require.Equal(t, "envoy", s.Name)
	require.Equal(t, s.Resident, s.Anonymous+s.File+s.Shared)
	require.Positive(t, s.Threads)
	for _, text := range []string{"", "Name:\tenvoy\n", "VmRSS:\t-5 kB\n", "VmRSS:\t12\n", "VmRSS:\t99999999999999999999 kB\n", strings.Repeat("x", 2<<20)} {
		_, err := ParseStatus([]byte(text))
		require.ErrorIs(t, err, ErrParse, "%.30q", text)
	}
}

func TestSockstat(t *testing.T) {
	n, err := ParseSockstat([]byte("sockets: used 12\nTCP: inuse 5 orphan 0 tw 2 alloc 7 mem 3\nUDP: inuse 0 mem 9\n"), 4096)
	require.NoError(t, err)
	require.Equal(t, int64(3*4096), n)
	for _, text := range []string{"", "TCP: inuse 5", "TCP: mem -1", "TCP: mem", "TCP: mem 99999999999999999"} {
		_, err := ParseSockstat([]byte(text), 4096)
		require.ErrorIs(t, err, ErrParse, text)
	}
}

func TestSmapsThatAreWrong(t *testing.T) {
	text := captured(t, "plain.smaps.gz")
	list, err := ParseSmaps(text[:len(text)/2])
	require.ErrorIs(t, err, ErrParse)
	require.NotEmpty(t, list, "what came before is told")
	_, err = ParseSmaps(append(bytes.Clone(text), text...))
	require.ErrorContains(t, err, "two processes")
	_, err = ParseSmaps(bytes.Repeat([]byte("x"), MaxSmaps+1))
	require.ErrorIs(t, err, ErrParse)
	var many strings.Builder
	for i := range maxMappings + 1 {
		fmt.Fprintf(&many, "%x-%x rw-p 0 0:0 0\n", i*2, i*2+1)
	}
	_, err = ParseSmaps([]byte(many.String()))
	require.ErrorContains(t, err, "more than")
	for _, text := range []string{"", "Rss: 1 kB\n", "1000-0 rw-p 0 0:0 0\n", "0-1000 rw-p 0 0:0 0\nRss: 5 kB\n", "0-1000 rw 0 0:0 0\n", "zz\n"} {
		_, err := ParseSmaps([]byte(text))
		require.ErrorIs(t, err, ErrParse, "%q", text)
	}
}

func TestStats(t *testing.T) {
	g, err := ParseStats([]byte(`{"stats":[{"name":"http.ingress.downstream_rq_active","value":7},{"name":"http.admin.downstream_rq_active","value":9},` +
		`{"name":"listener.0.0.0.0_80.downstream_cx_active","value":5},{"name":"listener.0.0.0.0_80.worker_0.downstream_cx_active","value":5},` +
		`{"name":"cluster.a.upstream_cx_rx_bytes_buffered","value":100},{"name":"http2.pending_send_bytes","value":11},` +
		`{"name":"wasm.envoy.wasm.runtime.v8.active","value":3},{"name":"a.text","value":"x"},{"name":"cluster.a.upstream_rq_retry","value":2},` +
		`{"histograms":{"supported_quantiles":[1]}}]}`))
	require.NoError(t, err)
	require.Equal(t, int64(7), g.Requests)
	require.Equal(t, int64(5), g.Connections)
	require.Equal(t, int64(111), g.Buffered())
	require.Equal(t, int64(3), g.WasmVMs)
	require.Equal(t, int64(2), g.Retries)
	require.Equal(t, map[string]int64{"http.ingress.downstream_rq_active": 7, "listener.0.0.0.0_80.downstream_cx_active": 5}, g.Active)
	of := func(version, completed string) *Gauges {
		g, err := ParseStats([]byte(`{"stats":[{"name":"cluster_manager.cds.version","value":` + version + `},{"name":"listener_manager.listener_added","value":2},` +
			`{"name":"http.a.downstream_rq_completed","value":` + completed + `},{"name":"http.admin.downstream_rq_completed","value":9},` +
			`{"name":"listener.0.0.0.0_80.http.a.downstream_rq_completed","value":12}]}`))
		require.NoError(t, err)
		return g
	}
	require.Equal(t, int64(12), of("1", "12").Finished)
	require.Equal(t, of("18446744073709551615", "1").Config, of("18446744073709551615", "2").Config)
	require.NotEqual(t, of("18446744073709551615", "1").Config, of("18446744073709551614", "1").Config, "a version is of 64 bits")
	for _, text := range []string{"", "[]", `{"stats":7}`, `{"stats":[{"name":"a"`, `{"stats":[]}x`, `{"stats":[` + strings.Repeat(`{},`, maxGauges+1) + `{}]}`, strings.Repeat(" ", MaxStats+1)} {
		_, err := ParseStats([]byte(text))
		require.ErrorIs(t, err, ErrParse, "%.40q", text)
	}
}

func FuzzSmaps(f *testing.F) {
	f.Add([]byte("10000000000-1003fe00000 ---p 0 00:00 0\nRss: 0 kB\nVmFlags: mr\n1003fe00000-10040000000 rw-p 0 00:00 0\nRss: 1024 kB\nVmFlags: rd\n"))
	f.Add([]byte("0-1000 r-xp 0 0:0 7 /usr/bin/envoy\nRss: 4 kB\nLocked: 0 kB\n1000-2000 rw-p 0 0:0 0\nRss: 4 kB\nLocked: 0 kB\n"))
	f.Add([]byte("ffffffffff600000-ffffffffffffffff rw-p 0 0:0 0\nRss: 4 kB\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseSmaps(text)
		if err != nil {
			require.ErrorIs(t, err, ErrParse)
		}
		m := Build(Input{Mappings: list, Allocator: &allocator.Report{Kind: allocator.TCMalloc, Application: 5 << 20, Free: 1 << 20, HeapSize: 6 << 20}})
		require.Equal(t, m.Resident, sumOf(m.Parts))
	})
}

func FuzzStats(f *testing.F) {
	f.Add([]byte(`{"stats":[{"name":"http.a.downstream_rq_active","value":7},{"histograms":{}}]}`))
	f.Add([]byte(`{"stats":[{"name":"x","value":1e3}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		g, err := ParseStats(text)
		if err != nil {
			require.ErrorIs(t, err, ErrParse)
			return
		}
		require.GreaterOrEqual(t, g.Buffered(), int64(0))
		require.LessOrEqual(t, len(g.Active), maxKept)
	})
}
