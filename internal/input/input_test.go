package input

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestReadUpToTheLimit(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	for _, read := range []func(string, unit.Bytes) ([]byte, error){Read, ReadRegular} {
		require.NoError(t, os.WriteFile(file, []byte(strings.Repeat("x", 1000)), 0o600))
		text, err := read(file, 1000)
		require.NoError(t, err)
		require.Len(t, text, 1000)
		_, err = read(file, 999)
		require.ErrorIs(t, err, ErrTooLarge)
		require.EqualError(t, err, file+" is too large: no more than 999 is read; name the one that you mean, or leave out what is not needed here")
		_, err = read(filepath.Join(dir, "none"), 999)
		require.ErrorIs(t, err, os.ErrNotExist)
		_, err = read(dir, 999)
		require.ErrorContains(t, err, dir+" is a directory")
		// It says that it has no bytes, and has some.
		text, err = read("/proc/self/status", unit.MiB)
		require.NoError(t, err)
		require.Contains(t, string(text), "Name:")
		_, err = read("/proc/self/status", 10)
		require.ErrorIs(t, err, ErrTooLarge)
	}
	_, err := Read("/dev/zero", unit.MiB)
	require.ErrorIs(t, err, ErrTooLarge)
	require.ErrorContains(t, err, "/dev/zero is too large: no more than 1MiB is read")
	_, err = ReadFrom(strings.NewReader("four"), "standard input", 3)
	require.ErrorContains(t, err, "standard input is too large")
	text, err := ReadFrom(strings.NewReader("four"), "standard input", 4)
	require.NoError(t, err)
	require.Equal(t, "four", string(text))
	_, err = ReadFrom(io.MultiReader(strings.NewReader("a"), failing{}), "standard input", 4)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// A pipe is read to its end, whoever writes into it takes his time; but not where a file is to be
// read again and again.
func TestPipes(t *testing.T) {
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	require.NoError(t, syscall.Mkfifo(pipe, 0o600))
	go func() {
		w, err := os.OpenFile(pipe, os.O_WRONLY, 0)
		if err == nil {
			_, _ = w.WriteString("one ")
			time.Sleep(10 * time.Millisecond)
			_, _ = w.WriteString("two")
			w.Close()
		}
	}()
	text, err := Read(pipe, 1000)
	require.NoError(t, err)
	require.Equal(t, "one two", string(text))

	// Nobody writes into it any more: to wait would be for ever.
	_, err = ReadRegular(pipe, 1000)
	require.ErrorContains(t, err, pipe+" is a pipe, and must be a regular file")
	_, err = ReadRegular(os.DevNull, 1000)
	require.ErrorContains(t, err, os.DevNull+" is a device, and must be a regular file")
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	require.NoError(t, err)
	defer l.Close()
	_, err = ReadRegular(filepath.Join(dir, "socket"), 1000)
	require.Error(t, err)
	// A link to one is one, as Kubernetes mounts configurations.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte("text"), 0o600))
	require.NoError(t, os.Symlink("file", filepath.Join(dir, "link")))
	text, err = ReadRegular(filepath.Join(dir, "link"), 1000)
	require.NoError(t, err)
	require.Equal(t, "text", string(text))
}
