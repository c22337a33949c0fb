package allocator

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// capture is a text that an allocator printed, of testdata.
func capture(tb testing.TB, name string) []byte {
	tb.Helper()
	f, err := os.Open(filepath.Join("testdata", name))
	require.NoError(tb, err)
	defer f.Close()
	var in io.Reader = f
	if strings.HasSuffix(name, ".gz") {
		in, err = gzip.NewReader(f)
		require.NoError(tb, err)
	}
	text, err := io.ReadAll(in)
	require.NoError(tb, err)
	return text
}

func parse(tb testing.TB, name string) *Report {
	tb.Helper()
	r, err := Parse(capture(tb, name))
	require.NoError(tb, err, name)
	return r
}

// of returns the class of a size.
func (r *Report) of(size int64) (c Class) {
	for _, c := range r.Classes {
		if c.Size == size {
			return c
		}
	}
	return c
}

var captures = []string{
	"envoy-1.38.2-idle.txt.gz", "envoy-1.38.2-load.txt.gz", "envoy-1.40-idle.txt.gz", "envoy-1.40-burst.txt.gz", "envoy-1.40-after.txt.gz",
	"envoy-1.40-uploads.txt.gz", "envoy-1.40-per-cpu.txt.gz",
}

// What classes and large spans hold is what the application has, to the byte where no span's size
// is told in MiB alone.
func TestClassesAddUpToTheApplication(t *testing.T) {
	for _, name := range captures {
		r := parse(t, name)
		require.Equal(t, TCMalloc, r.Kind, name)
		require.Empty(t, r.Notes, name)
		var live, waste, free int64
		for _, c := range r.Classes {
			live, waste, free = live+c.LiveBytes(), waste+c.Waste, free+c.Free*c.Size
		}
		require.InDelta(t, r.Application, live+r.Large, 0.002*float64(r.Application), name)
		require.InDelta(t, r.Cached(), free+waste, 0.01*float64(r.Cached())+1, name)
	}
}

// What is live by size is the application too, large spans included.
func TestLive(t *testing.T) {
	for _, name := range captures {
		r := parse(t, name)
		sum := r.Large // of which the spans are a part
		for size, n := range r.Live() {
			require.Positive(t, size)
			sum += size * n
		}
		for size, n := range r.Spans {
			sum -= size * n
		}
		require.InDelta(t, r.Application, sum, 0.002*float64(r.Application), name)
		require.NotEmpty(t, r.Spans, name)
	}
	require.Equal(t, int64(53_337), parse(t, "envoy-1.38.2-load.txt.gz").Live()[16384])
	require.NotEmpty(t, parse(t, "jemalloc-burst.json.gz").Live())
	for _, name := range []string{"gperftools-burst.txt.gz", "envoy-1.40-burst.memory.json"} {
		require.Nil(t, parse(t, name).Live(), name)
	}
	cut, err := Parse(capture(t, "envoy-1.40-burst.txt.gz")[:20_000])
	require.NoError(t, err)
	require.Nil(t, cut.Live(), "without the spans nobody knows of the 16 KiB of buffers")
}

// Envoy's own sum of the same moment, with 16 KiB slices in 95 % of it, which say 0 live pages.
func TestSlicesOfOneObjectASpan(t *testing.T) {
	r, m := parse(t, "envoy-1.40-burst.txt.gz"), parse(t, "envoy-1.40-burst.memory.json")
	slices := r.of(16384)
	require.True(t, slices.Whole)
	require.Equal(t, int64(12_884), slices.Live)
	require.Equal(t, slices, r.Largest(1)[0])
	require.Equal(t, m.Application, r.Application-r.Large, "the text itself takes a span of 512 KiB, and /memory came before it")
	after := parse(t, "envoy-1.40-after.txt.gz")
	require.Less(t, after.of(16384).Live, int64(100))
	require.Equal(t, int64(294), after.of(16384).Free)
}

func TestCaches(t *testing.T) {
	for _, name := range captures {
		c := parse(t, name).Caches
		require.True(t, c.PerCPU, name)
		require.Equal(t, name != "envoy-1.40-per-cpu.txt.gz", c.PerThread, name)
	}
	r := parse(t, "envoy-1.40-per-cpu.txt.gz")
	require.Positive(t, r.Caches.SlabBytes)
	require.Equal(t, int64(32<<20), r.Caches.MaxThread)
}

func TestFragmentation(t *testing.T) {
	r := parse(t, "envoy-1.40-after.txt.gz")
	require.InDelta(t, float64(r.FrontEnd+r.MiddleEnd+r.Free)/float64(r.HeapSize-r.Unmapped), r.ExternalFragmentation(), 1e-9)
	require.InDelta(t, 0.927, r.ExternalFragmentation(), 0.001)
	part, known := r.InternalFragmentation()
	require.True(t, known)
	require.InDelta(t, 0.077, part, 0.001)
	_, known = parse(t, "gperftools-after.txt.gz").InternalFragmentation()
	require.False(t, known)
}

func TestMemory(t *testing.T) {
	for _, name := range []string{"idle", "burst", "after", "uploads"} {
		m, r := parse(t, "envoy-1.40-"+name+".memory.json"), parse(t, "envoy-1.40-"+name+".txt.gz")
		require.Equal(t, Memory, m.Kind)
		require.InDelta(t, r.Application, m.Application, 530_000, name)
		require.InDelta(t, r.Cached(), m.Cached(), 100_000, name)
		require.Equal(t, r.Unmapped, m.Unmapped, name)
	}
}

func TestGPerfTools(t *testing.T) {
	burst, after, released := parse(t, "gperftools-burst.txt.gz"), parse(t, "gperftools-after.txt.gz"), parse(t, "gperftools-after-released.txt.gz")
	require.Equal(t, GPerfTools, burst.Kind)
	require.Equal(t, int64(175_052_184), burst.Application)
	require.Equal(t, burst.HeapSize, after.HeapSize)
	require.Equal(t, after.Free, released.Unmapped)
	require.True(t, after.Caches.PerThread)
	require.False(t, after.Caches.PerCPU)
	require.Positive(t, after.of(64).Free)
	require.Empty(t, after.Notes)
}

func TestJEMalloc(t *testing.T) {
	burst, after := parse(t, "jemalloc-burst.json.gz"), parse(t, "jemalloc-after.json.gz")
	require.Equal(t, JEMalloc, burst.Kind)
	require.Empty(t, burst.Notes)
	require.Equal(t, int64(175_171_520), burst.Application+burst.FrontEnd)
	require.Equal(t, int64(20), burst.of(4<<20).Live)
	require.Greater(t, after.Free, int64(130<<20))
	var live int64
	for _, c := range burst.Classes {
		live += c.LiveBytes()
	}
	require.Equal(t, int64(175_171_520), live)
}

// A text that broke off tells what it has, and that it broke off.
func TestTruncated(t *testing.T) {
	text := capture(t, "envoy-1.40-burst.txt.gz")
	for _, part := range []int{4_000, 20_000, 150_000, len(text) * 3 / 4} {
		r, err := Parse(text[:part])
		require.NoError(t, err)
		require.Contains(t, strings.Join(r.Notes.Problems, "\n"), "breaks off", "%d bytes", part)
		require.Equal(t, int64(223_825_328), r.Application)
	}
	for _, part := range []int{0, 10, 150} {
		_, err := Parse(text[:part])
		require.ErrorIs(t, err, ErrParse)
	}
	_, err := Parse(capture(t, "jemalloc-burst.json.gz")[:9_000])
	require.ErrorIs(t, err, ErrParse)
}

// Of two texts that were mixed up the first one counts, and it is said.
func TestInterleaved(t *testing.T) {
	a, b := bytes.Split(capture(t, "envoy-1.40-burst.txt.gz"), []byte("\n")), bytes.Split(capture(t, "envoy-1.40-after.txt.gz"), []byte("\n"))
	var mixed [][]byte
	for i := range min(len(a), len(b)) {
		mixed = append(mixed, a[i], b[i])
	}
	r, err := Parse(bytes.Join(mixed, []byte("\n")))
	require.NoError(t, err)
	require.Equal(t, int64(223_825_328), r.Application)
	require.Contains(t, strings.Join(r.Notes.Problems, "\n"), "is there twice")
	require.LessOrEqual(t, len(r.Notes.Problems), maxProblems)
}

func TestHostileText(t *testing.T) {
	head := string(capture(t, "envoy-1.40-idle.txt.gz")[:3_000])
	for name, text := range map[string]string{
		"too long":       strings.Repeat("x", MaxText+1),
		"no allocator":   "<html>not found</html>",
		"a negative sum": "MALLOC:   -5 (  0.0 MiB) Bytes in use by application\n",
		"no size":        "MALLOC:   99999999999999999999 (  0.0 MiB) Bytes in use by application\n",
		"json":           `{"allocated": "-1", "heap_size": "5"}`,
		"json of a list": `{"jemalloc": []}`,
		"json overflow":  `{"jemalloc":{"stats":{"allocated":9223372036854775807,"active":1}}}`,
	} {
		_, err := Parse([]byte(text))
		require.ErrorIs(t, err, ErrParse, name)
	}
	many := head + strings.Repeat("what \x1b[31mis\xff this\n", 100_000) + strings.Repeat("MALLOC: 1 (1 MiB) new\n", 1000)
	r, err := Parse([]byte(many))
	require.NoError(t, err)
	require.Equal(t, 100_000, r.Notes.Unread)
	require.Len(t, r.Notes.Unknown, maxUnknown)
	require.NotContains(t, r.Notes.Unknown[0], "\x1b")
}

// A new line of a total is kept as such, and does no harm.
func TestUnknownLines(t *testing.T) {
	text := append(capture(t, "envoy-1.40-idle.txt.gz"), "a line of tomorrow\nclass   1 [        8 bytes ] hotness 3\n"...)
	r, err := Parse(text)
	require.NoError(t, err)
	require.Equal(t, []string{"a line of tomorrow", "class   1 [        8 bytes ] hotness 3"}, r.Notes.Unknown)
}

func FuzzParse(f *testing.F) {
	f.Add(capture(f, captures[0])[:3_500])
	f.Add([]byte(`{"jemalloc":{"arenas":{"page":4096,"bin":[{"size":8,"nregs":512,"slab_size":4096}],"lextent":[{"size":16384}]},"stats":{"allocated":9,"active":9},` +
		`"stats.arenas":{"0":{"bins":[{"curregs":7,"curslabs":1}],"lextents":[{"curlextents":2}],"tcache_bytes":3,"pdirty":1}}}}`))
	f.Add(capture(f, "gperftools-burst.txt.gz"))
	f.Add(capture(f, "envoy-1.40-burst.memory.json"))
	f.Add([]byte("MALLOC: 1 Bytes in use by application\nMALLOC: 8192 Tcmalloc page size\nclass 1 [ 8 bytes ] : 9 objs; 0 MiB; 0 cum MiB; 3 live pages; spans: 1 ret / 2 req = 1;\n" +
		"HugePageAware:  2 page info:  1 /  0 a/f,  9 (  1.0 MiB) live\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Parse(text)
		if err != nil {
			require.ErrorIs(t, err, ErrParse)
			return
		}
		for _, n := range []int64{r.Application, r.FrontEnd, r.MiddleEnd, r.Free, r.Unmapped, r.Metadata, r.Large, r.Internal.Bytes, r.Cached(), r.Physical()} {
			require.GreaterOrEqual(t, n, int64(0))
		}
		require.Positive(t, r.HeapSize)
		require.LessOrEqual(t, len(r.Classes), 2*maxClasses)
		require.LessOrEqual(t, len(r.Notes.Unknown), maxUnknown)
		for _, c := range r.Classes {
			require.Positive(t, c.Size+1)
			require.GreaterOrEqual(t, c.Live, int64(0))
			require.GreaterOrEqual(t, c.LiveBytes(), int64(0))
			require.GreaterOrEqual(t, c.Waste, int64(0))
		}
		require.GreaterOrEqual(t, r.ExternalFragmentation(), 0.0)
		require.LessOrEqual(t, len(r.Largest(5)), 5)
	})
}

func BenchmarkParse(b *testing.B) {
	text := capture(b, "envoy-1.40-uploads.txt.gz")
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		if _, err := Parse(text); err != nil {
			b.Fatal(err)
		}
	}
}
