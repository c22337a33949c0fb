// Package input reads what people write, configurations and the like, of which nobody knows
// beforehand how large it is or what it says: no more than so many bytes, and of YAML no more than
// these bytes say without aliases that multiply them.
package input

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// Read reads a file, a pipe or a device to its end, and fails where that is more than limit.
func Read(path string, limit unit.Bytes) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readFile(f, limit)
}

// ReadRegular is Read for a file that is read again and again: it refuses what is no regular file,
// and waits for nobody who might write into it.
func ReadRegular(path string, limit unit.Bytes) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is %s, and must be a regular file, which can be read again: write the configuration into one",
			path, kind(info.Mode()))
	}
	return readFile(f, limit)
}

func readFile(f *os.File, limit unit.Bytes) ([]byte, error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case info.IsDir():
		return nil, fmt.Errorf("%s is a directory: name a file in it", f.Name())
	case info.Mode().IsRegular() && info.Size() > int64(limit):
		return nil, tooLarge(f.Name(), limit)
	}
	return ReadFrom(f, f.Name(), limit)
}

// ReadFrom reads to the end, and fails where that is more than limit.
func ReadFrom(r io.Reader, name string, limit unit.Bytes) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, int64(limit)+1))
	switch {
	case err != nil:
		return nil, err
	case len(text) > int(limit):
		return nil, tooLarge(name, limit)
	}
	return text, nil
}

// ErrTooLarge is that there is more to read than the limit.
var ErrTooLarge = errors.New("too large")

func tooLarge(name string, limit unit.Bytes) error {
	return fmt.Errorf("%s is %w: no more than %s is read; name the one that you mean, or leave out what is not needed here",
		name, ErrTooLarge, limit)
}

// kind is what people call a file that is not regular.
func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "no regular file"
}
