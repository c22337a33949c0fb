package observer

import (
	"compress/gzip"
	"io"
	"os"
	"regexp"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

func tcmalloc(tb testing.TB, name string) []byte {
	tb.Helper()
	f, err := os.Open("testdata/tcmalloc-" + name + ".txt.gz")
	require.NoError(tb, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(tb, err)
	text, err := io.ReadAll(z)
	require.NoError(tb, err)
	return text
}

// Live objects times their size are what TCMalloc says that the application has, which is exact:
// Envoy 1.40's own text at idle, in a burst of uploads and after it.
func TestClassesAddUp(t *testing.T) {
	inUse := regexp.MustCompile(`MALLOC: +(\d+) .* Bytes in use by application`)
	for _, name := range []string{"idle", "burst", "after"} {
		text := tcmalloc(t, name)
		want, err := strconv.ParseInt(string(inUse.FindSubmatch(text)[1]), 10, 64)
		require.NoError(t, err)
		classes, err := parseClasses(text)
		require.NoError(t, err)
		var sum int64
		seen := map[int64]int64{}
		for _, c := range classes {
			require.NotContains(t, seen, c.Size)
			seen[c.Size] = c.Live
			sum += c.Size * c.Live
		}
		t.Logf("%s: %d classes, %d bytes, and the text says %d: %d of 16 KiB, %d of 896", name, len(classes), sum, want, seen[16<<10], seen[896])
		require.Equal(t, want, sum, name)
		if name == "burst" {
			require.Greater(t, seen[16<<10], int64(12_000), "uploads are in Envoy's slices")
		}
	}
}

func BenchmarkClasses(b *testing.B) {
	text := tcmalloc(b, "burst")
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		_, _ = parseClasses(text)
	}
}
