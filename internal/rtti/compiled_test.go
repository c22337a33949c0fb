package rtti

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func unpacked(t *testing.T, name string) *bytes.Reader {
	t.Helper()
	f, err := os.Open("testdata/" + name)
	require.NoError(t, err)
	defer f.Close()
	r, err := gzip.NewReader(f)
	require.NoError(t, err)
	data, err := io.ReadAll(r)
	require.NoError(t, err)
	return bytes.NewReader(data)
}

// What is found in a binary that g++ has made and strip has stripped is what its symbols say: each
// function with a class is one of that class. testdata/family.cc is the source.
func TestCompiledBinary(t *testing.T) {
	table, err := Build(unpacked(t, "family.gz"))
	require.NoError(t, err)
	var addresses []uint64
	for _, f := range table.functions {
		if f.class != noClass {
			addresses = append(addresses, f.start)
		}
	}
	symbols, err := table.Symbols(unpacked(t, "family-symbols.gz"), addresses)
	require.NoError(t, err)
	found := map[string]bool{}
	for _, at := range addresses {
		f, ok := table.Lookup(at)
		require.True(t, ok)
		class, name := TypeName(f.Class), FunctionName(symbols[at])
		require.Contains(t, " "+name, " "+class+"::", "thunks are called so too")
		found[strings.TrimPrefix(name, "app::")] = true
	}
	for _, name := range []string{"Middle::run", "Middle::~Middle", "Middle::more", "Both::run", "Both::other", "Both::~Both", "(anonymous namespace)::Hidden::run"} {
		require.True(t, found[name], "%s is not among %v", name, found)
	}
	require.False(t, found["main"])
}
