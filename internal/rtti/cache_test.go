package rtti

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/rtti/rttitest"
)

// sealed is what a file of the cache has in front of what it says.
func sealed(text []byte) []byte {
	sum := sha256.Sum256(text)
	return slices.Concat([]byte(format), sum[:], text)
}

func save(t *testing.T, b rttitest.Binary) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "envoy")
	require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
	return path
}

func kept(t *testing.T, c Cache) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.Dir, "*"))
	require.NoError(t, err)
	return files
}

func TestCache(t *testing.T) {
	c := Cache{Dir: filepath.Join(t.TempDir(), "a", "b")}
	path := save(t, house)
	first, opened, err := c.Open(path)
	require.NoError(t, err)
	require.Equal(t, Opened{}, opened)
	second, opened, err := c.Open(path)
	require.NoError(t, err)
	require.Equal(t, Opened{Cached: true}, opened)
	require.Equal(t, whose(t, first), whose(t, second))
	files := kept(t, c)
	require.Len(t, files, 1)
	require.Regexp(t, `/abcdef-[0-9a-f]{16}\.classes$`, files[0])

	// One that is damaged, whatever the damage, is made again.
	whole, err := os.ReadFile(files[0])
	require.NoError(t, err)
	for name, text := range map[string][]byte{
		"empty": {}, "cut": whole[:len(whole)/2], "longer": append(slices.Clone(whole), 0), "another format": append([]byte("x"), whole...),
		"one bit": func() []byte { b := slices.Clone(whole); b[len(b)-1] ^= 1; return b }(),
		"garbage": bytes.Repeat([]byte("garbage"), 1000), "sealed garbage": sealed([]byte("garbage")), "sealed and cut": sealed(whole[len(format)+32 : len(whole)-3]),
	} {
		require.NoError(t, os.WriteFile(files[0], text, 0o600), name)
		again, opened, err := c.Open(path)
		require.NoError(t, err, name)
		require.False(t, opened.Cached, name)
		require.Equal(t, whose(t, first), whose(t, again), name)
		now, err := os.ReadFile(files[0])
		require.NoError(t, err)
		require.Equal(t, whole, now, name)
	}

	// Other machines' and builds' binaries of the same id are others: Envoy's id is a commit.
	arm := house
	arm.Machine = elf.EM_AARCH64
	longer := house
	longer.Functions++
	for _, b := range []rttitest.Binary{arm, longer} {
		table, opened, err := c.Open(save(t, b))
		require.NoError(t, err)
		require.False(t, opened.Cached)
		require.Equal(t, "abcdef", table.BuildID)
	}
	require.Len(t, kept(t, c), 3)
}

// Many processes make the same table at once, and none sees half of one.
func TestCacheOfMany(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	path := save(t, house)
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for range 20 {
				table, _, err := c.Open(path)
				if err != nil || table.BuildID != "abcdef" {
					t.Errorf("%v", err)
				}
			}
		})
	}
	all.Wait()
	require.Len(t, kept(t, c), 1, "nothing is left behind")
}

func TestCacheIsBounded(t *testing.T) {
	c := Cache{Dir: t.TempDir()}
	long := time.Now().Add(-time.Hour)
	left := filepath.Join(c.Dir, ".new-1.classes") // of a process that was killed
	stranger := filepath.Join(c.Dir, "README")
	for _, file := range []string{left, stranger} {
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.NoError(t, os.Chtimes(file, long, long))
	}
	var first string
	for i := range maxFiles + 3 {
		b := house
		b.Functions += i
		_, _, err := c.Open(save(t, b))
		require.NoError(t, err)
		for _, file := range kept(t, c) {
			if file != left && file != stranger && first == "" {
				first = file
			}
		}
		at := long.Add(time.Duration(i+1) * time.Minute)
		for _, file := range kept(t, c) {
			if info, err := os.Stat(file); err == nil && info.ModTime().After(time.Now().Add(-time.Minute)) {
				require.NoError(t, os.Chtimes(file, at, at))
			}
		}
	}
	files := kept(t, c)
	require.Len(t, files, maxFiles+1, "and what is not ours stays")
	require.Contains(t, files, stranger)
	require.NotContains(t, files, first)
	require.NoFileExists(t, left)
}

// Where nothing can be kept, the table is made all the same, and why is said.
func TestCacheThatCannotBeWritten(t *testing.T) {
	path := save(t, house)
	for _, dir := range []string{filepath.Join(path, "below-a-file"), "/proc/none"} {
		table, opened, err := Cache{Dir: dir}.Open(path)
		require.NoError(t, err)
		require.Error(t, opened.Kept)
		require.Equal(t, "abcdef", table.BuildID)
	}
	_, opened, err := Cache{}.Open(path)
	require.NoError(t, err)
	require.Equal(t, Opened{}, opened)
}

// What is no file is refused at once, and a pipe is not waited for.
func TestNoFiles(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	for path, want := range map[string]string{
		pipe: "is no regular file", dir: "is no regular file", "/dev/zero": "is no regular file", filepath.Join(dir, "none"): "no such file",
		"/proc/" + strconv.Itoa(1<<22) + "/exe": "no such file", "/proc/self/status": "not a 64-bit ELF binary",
	} {
		_, _, err := Cache{}.Open(path)
		require.ErrorContains(t, err, want, path)
		require.NotContains(t, err.Error(), "\n")
	}
}
