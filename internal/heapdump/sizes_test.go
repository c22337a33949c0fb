package heapdump

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/profiles"
)

func file(tb testing.TB, name string) []byte {
	tb.Helper()
	data, err := os.ReadFile("testdata/" + name)
	require.NoError(tb, err)
	return data
}

func unpacked(tb testing.TB, name string) []byte {
	tb.Helper()
	r, err := gzip.NewReader(bytes.NewReader(file(tb, name)))
	require.NoError(tb, err)
	text, err := io.ReadAll(r)
	require.NoError(tb, err)
	return text
}

func live(sizes []Size, bytes int64) int64 {
	for _, s := range sizes {
		if s.Bytes == bytes {
			return s.Live
		}
	}
	return -1
}

func total(sizes []Size) (all int64) {
	for _, s := range sizes {
		all += s.Live
	}
	return all
}

// The objects of all sizes are what Envoy has allocated, but for less than a mebibyte of larger
// ones, such as one span of 64 pages.
func TestSizesAddUp(t *testing.T) {
	for name, want := range map[string]struct {
		application, buffers int64 // "Bytes in use by application", and objects of 16 KiB
	}{
		"idle": {6_911_888, 0}, "burst": {223_825_328, 12_884}, "after": {15_253_592, 0}, "1.38-load": {965_651_768, 53_337},
	} {
		sizes, err := ParseSizes(unpacked(t, name+".tcmalloc.txt.gz"))
		require.NoError(t, err)
		require.Equal(t, want.application, total(sizes), name)
		require.Less(t, live(sizes, 0), int64(1<<20), name)
		require.GreaterOrEqual(t, live(sizes, 0), int64(64*8192), name)
		if want.buffers > 0 {
			require.Equal(t, want.buffers, live(sizes, 16384)/16384, name)
		}
		require.Len(t, sizes, 48, name)
	}
}

func TestSizesOfAnySort(t *testing.T) {
	whole := string(unpacked(t, "burst.tcmalloc.txt.gz"))
	for name, text := range map[string]string{
		"nothing":             "",
		"another allocator":   "------------------------------------------------\nMALLOC:     5 (    0.0 MiB) Bytes in use by application\n",
		"garbage":             strings.Repeat("garbage\n", 10<<17),
		"no total":            strings.Replace(whole, "Bytes in use by application", "x", 1),
		"no page size":        strings.Replace(whole, "Tcmalloc page size", "x", 1),
		"pages of a terabyte": strings.Replace(whole, "8192               Tcmalloc page size", "1099511627776 Tcmalloc page size", 1),
		"cut":                 whole[:3000],
		"in the middle":       whole[10:],
	} {
		_, err := ParseSizes([]byte(text))
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "\n")
	}
	for name, text := range map[string]string{
		"cut behind the classes": whole[:40_000],
		"huge counts":            strings.ReplaceAll(whole, "live pages; spans:          0 ret /", "live pages; spans:          0 ret / 9999999999"),
		"huge pages":             strings.ReplaceAll(whole, " live pages", "99999999 live pages"),
		"huge caches":            strings.ReplaceAll(whole, " objs;", "9999999 objs;"),
		"twice":                  whole + whole,
	} {
		sizes, err := ParseSizes([]byte(text))
		require.NoError(t, err, name)
		require.Equal(t, int64(223_825_328), total(sizes), name)
		for _, s := range sizes {
			require.GreaterOrEqual(t, s.Live, int64(0), name)
		}
	}
}

// After the correction the stacks of a size hold together what its objects do, each in its share,
// and all together what Envoy has allocated.
func TestWeightsAreCorrected(t *testing.T) {
	for _, name := range []string{"idle", "burst", "after", "1.38-load"} {
		sizes, err := ParseSizes(unpacked(t, name+".tcmalloc.txt.gz"))
		require.NoError(t, err)
		text, err := profiles.Unpack(file(t, name+".heap.pb.gz"))
		require.NoError(t, err)
		p, err := profiles.Parse(text)
		require.NoError(t, err)
		require.NoError(t, check(p))
		w := weigh(p, sizes)
		require.True(t, w.corrected)
		sum, bySize := total(w.unsampled), map[int64]int64{}
		for i, s := range p.Sample {
			size := s.NumLabel[labelBytes][0]
			bySize[size] += w.stacks[i].bytes
			sum += w.stacks[i].bytes
			require.InDelta(t, w.stacks[i].bytes/size, w.stacks[i].objects, 1+0.05*float64(w.stacks[i].objects))
		}
		require.InDelta(t, total(sizes), sum, 64, name)
		for size, bytes := range bySize {
			require.InDelta(t, live(sizes, size), bytes, 16, "%s: objects of %d", name, size)
		}

		alone := weigh(p, nil)
		require.False(t, alone.corrected)
		require.Equal(t, alone.sampled, alone.stacks)
		require.Empty(t, alone.unsampled)
	}
}

// Stacks of a size share it out as they were sampled; a size without any stack has one of its own;
// and what is larger than any size is one of them.
func TestWeights(t *testing.T) {
	sample := func(size, objects, bytes int64) *profile.Sample {
		return &profile.Sample{Value: []int64{objects, bytes}, NumLabel: map[string][]int64{labelBytes: {size}}}
	}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "objects"}, {Type: "space"}},
		Sample: []*profile.Sample{
			sample(64, 30_000, 3000), sample(64, 10_000, 1000), sample(4096, 1, 4096), sample(1<<20, 1, 1<<20), {Value: []int64{1, 5}},
		},
	}
	w := weigh(p, []Size{{64, 400}, {128, 100}, {256, 700}, {4096, 8192}, {0, 2 << 20}, {512, -3}})
	require.Equal(t, []held{{3000, 300}, {1000, 100}, {2, 8192}, {2, 2097142}, {2, 10}}, w.stacks)
	require.Equal(t, []Size{{256, 700}, {128, 100}}, w.unsampled)
}

func FuzzParseSizes(f *testing.F) {
	f.Add(unpacked(f, "burst.tcmalloc.txt.gz")[:60_000])
	f.Add([]byte("See https://github.com/google/tcmalloc\nMALLOC: 5 ( 0.0 MiB) Bytes in use by application\nMALLOC: 8192 Tcmalloc page size\n" +
		"class 1 [ 8 bytes ] : 3 objs; 0.0 MiB; 0.0 cum MiB; 1 live pages; spans: 0 ret / 1 req = 0.0;\nHugePageAware: 1 page info: 1 / 1 a/f, 1 ("))
	f.Fuzz(func(t *testing.T, text []byte) {
		sizes, err := ParseSizes(text)
		if err != nil {
			return
		}
		for _, s := range sizes {
			if s.Live < 0 || s.Bytes < 0 {
				t.Fatalf("%+v", s)
			}
		}
	})
}
