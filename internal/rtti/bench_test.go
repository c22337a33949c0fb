package rtti

import (
	"flag"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoybin"
)

var ofBinary = flag.String("binary", "", "a binary that the benchmarks read; empty = the Envoy of the tests")

// path is a binary's.
func path(b *testing.B) string {
	b.Helper()
	if *ofBinary != "" {
		return *ofBinary
	}
	found, err := envoybin.Path(b.Context(), io.Discard)
	require.NoError(b, err)
	return found
}

// How long it takes to find the classes of a binary, and of how many functions there is one.
func BenchmarkBuild(b *testing.B) {
	file, err := os.Open(path(b))
	require.NoError(b, err)
	defer file.Close()
	for b.Loop() {
		table, err := Build(file)
		require.NoError(b, err)
		all, named := table.Functions()
		b.ReportMetric(float64(all), "functions")
		b.ReportMetric(float64(named), "named")
	}
}

// How long it takes to read them from the cache.
func BenchmarkCached(b *testing.B) {
	cache, file := Cache{Dir: b.TempDir()}, path(b)
	_, _, err := cache.Open(file)
	require.NoError(b, err)
	for b.Loop() {
		_, opened, err := cache.Open(file)
		require.NoError(b, err)
		require.True(b, opened.Cached)
	}
}
