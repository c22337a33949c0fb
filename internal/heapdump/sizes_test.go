package heapdump

import (
	"context"
	"os"
	"testing"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"

	malloc "github.com/highwater-envoy/highwater/internal/allocator"
	"github.com/highwater-envoy/highwater/internal/profiles"
)

func file(tb testing.TB, name string) []byte {
	tb.Helper()
	data, err := os.ReadFile("testdata/" + name)
	require.NoError(tb, err)
	return data
}

// captures are the allocator's texts of the moments of the dumps in testdata.
var captures = map[string]string{
	"idle": "envoy-1.40-idle", "burst": "envoy-1.40-burst", "after": "envoy-1.40-after", "1.38-load": "envoy-1.38.2-load",
}

// sizesAt are the exact sums of the moment of a dump.
func sizesAt(tb testing.TB, name string) (sizes []Size) {
	tb.Helper()
	text, err := profiles.Unpack(file(tb, "../../allocator/testdata/"+captures[name]+".txt.gz"))
	require.NoError(tb, err)
	report, err := malloc.Parse(text)
	require.NoError(tb, err)
	rest := report.Application
	for _, c := range report.Classes {
		sizes = append(sizes, Size{c.Size, c.LiveBytes()})
		rest -= c.LiveBytes()
	}
	return append(sizes, Size{0, rest})
}

func live(sizes []Size, bytes int64) int64 {
	for _, s := range sizes {
		if s.Bytes == bytes {
			return s.Live
		}
	}
	return 0
}

func total(sizes []Size) (all int64) {
	for _, s := range sizes {
		all += s.Live
	}
	return all
}

// After the correction the stacks of a size hold together what its objects do, each in its share,
// and all together what Envoy has allocated.
func TestWeightsAreCorrected(t *testing.T) {
	for _, name := range []string{"idle", "burst", "after", "1.38-load"} {
		sizes := sizesAt(t, name)
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

// exact tells sizes, as a Source's.
func exact(sizes ...Size) func(context.Context) ([]Size, error) {
	return func(context.Context) ([]Size, error) { return sizes, nil }
}
