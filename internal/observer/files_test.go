//go:build unix

package observer

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// within a directory of our own, whoever runs the tests.
func ownDir(t *testing.T, mode fs.FileMode, below ...string) string {
	t.Helper()
	dir := filepath.Join(append([]string{t.TempDir()}, below...)...)
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.Chmod(dir, mode))
	return dir
}

// What others left at the file's name or at that of the next one is replaced, and neither followed,
// opened nor waited for.
func TestFileTakesThePlaceOfWhatIsThere(t *testing.T) {
	precious := filepath.Join(t.TempDir(), "precious")
	plant := map[string]func(at string) error{
		"nothing":       func(string) error { return nil },
		"a file":        func(at string) error { return os.WriteFile(at, []byte("0.99 and more"), 0o600) },
		"a link":        func(at string) error { return os.Symlink(precious, at) },
		"a hard link":   func(at string) error { return os.Link(precious, at) },
		"a broken link": func(at string) error { return os.Symlink(precious+".none", at) },
		"a pipe":        func(at string) error { return syscall.Mkfifo(at, 0o666) },
	}
	for name, put := range plant {
		for _, behind := range []string{"", ".new"} {
			t.Run(name+behind, func(t *testing.T) {
				require.NoError(t, os.WriteFile(precious, []byte("precious"), 0o600))
				dir := ownDir(t, 0o755)
				file := filepath.Join(dir, "pressure")
				require.NoError(t, put(file+behind))
				done := make(chan error, 1)
				go func() { done <- replace(file, "0.50") }()
				select {
				case err := <-done:
					require.NoError(t, err)
				case <-time.After(within):
					require.Fail(t, "it waits")
				}
				text, err := os.ReadFile(precious)
				require.NoError(t, err)
				require.Equal(t, "precious", string(text))
				require.NoFileExists(t, precious+".none")
				info, err := os.Lstat(file)
				require.NoError(t, err)
				require.Equal(t, fs.FileMode(0o644), info.Mode(), "a plain file that Envoy's user can read")
				text, err = os.ReadFile(file)
				require.NoError(t, err)
				require.Equal(t, "0.50", string(text))
				entries, err := os.ReadDir(dir)
				require.NoError(t, err)
				require.Len(t, entries, 1, "nothing else is left")
			})
		}
	}
}

// Envoy's user can read the file whatever the umask is.
func TestFileIsReadableUnderAnyMask(t *testing.T) {
	file := filepath.Join(ownDir(t, 0o755), "pressure")
	defer syscall.Umask(syscall.Umask(0o077))
	require.NoError(t, replace(file, "1"))
	info, err := os.Lstat(file)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o644), info.Mode())
}

// A directory at the file's name is no file; what is in one is never removed.
func TestFileIsADirectory(t *testing.T) {
	dir := ownDir(t, 0o755)
	file := filepath.Join(dir, "pressure")
	require.NoError(t, os.MkdirAll(filepath.Join(file, "below"), 0o755))
	config := Default()
	config.Release.PressureFile = file
	_, err := New(Options{Config: config, URL: "http://127.0.0.1:1"})
	require.EqualError(t, err, "release.pressure_file: "+file+" is a directory: name a file in it")
	require.ErrorContains(t, replace(file, "1"), file+" can't be written")
	require.NoFileExists(t, file+".new")
	require.NoError(t, os.Rename(file, file+".new"))
	require.ErrorContains(t, replace(file, "1"), file+" can't be written")
	require.DirExists(t, filepath.Join(file+".new", "below"))
}

// Where others can write there is no file of ours: neither in such a directory, nor below one, nor
// behind a link that they made.
func TestWhoMayWriteThere(t *testing.T) {
	us, stranger := os.Geteuid(), 54321
	for name, c := range map[string]struct {
		mode  fs.FileMode // of the directory
		above fs.FileMode // and of the one above
		want  string
	}{
		"ours":                       {0o755, 0o755, ""},
		"for us alone":               {0o700, 0o700, ""},
		"for all":                    {0o777, 0o755, "chmod go-w DIR"},
		"for the group":              {0o775, 0o755, "chmod go-w DIR"},
		"for others, not to read":    {0o702, 0o755, "chmod go-w DIR"},
		"sticky does not do":         {0o777 | fs.ModeSticky, 0o755, "chmod go-w DIR"},
		"above for all":              {0o755, 0o777, "chmod go-w ABOVE"},
		"above for the group":        {0o755, 0o770, "chmod go-w ABOVE"},
		"above for all, but sticky":  {0o755, 0o777 | fs.ModeSticky, ""},
		"sticky is of the way alone": {0o777 | fs.ModeSticky, 0o777 | fs.ModeSticky, "chmod go-w DIR"},
	} {
		t.Run(name, func(t *testing.T) {
			above := ownDir(t, 0o755)
			dir := filepath.Join(above, "dir")
			require.NoError(t, os.Mkdir(dir, 0o700))
			require.NoError(t, os.Symlink(dir, filepath.Join(above, "link")))
			require.NoError(t, os.Symlink("..", filepath.Join(dir, "up")))
			require.NoError(t, os.Chmod(dir, c.mode))
			require.NoError(t, os.Chmod(above, c.above))
			links := ownDir(t, 0o755)
			require.NoError(t, os.Symlink(dir, filepath.Join(links, "far")))
			want := func(path string) string {
				if c.want == "" {
					return ""
				}
				return map[string]string{"chmod go-w DIR": "chmod go-w " + dir + ",", "chmod go-w ABOVE": "chmod go-w " + above + ","}[c.want]
			}
			for _, path := range []string{dir, filepath.Join(above, "link"), filepath.Join(links, "far"), filepath.Join(dir, "up", "dir")} {
				err := private(path, us)
				if want(path) == "" {
					require.NoError(t, err, path)
				} else {
					require.ErrorIs(t, err, ErrShared, path)
					if path != filepath.Join(dir, "up", "dir") { // dir is on its way first
						require.ErrorContains(t, err, want(path))
					}
				}
				config := Default()
				config.Release.PulseFile = filepath.Join(path, "pulse")
				_, err = New(Options{Config: config, URL: "http://127.0.0.1:1"})
				written := replace(config.Release.PulseFile, "1")
				if c.want == "" {
					require.NoError(t, err)
					require.NoError(t, written)
				} else {
					require.ErrorContains(t, err, "release.pulse_file: others may write there: ")
					require.ErrorIs(t, err, ErrShared)
					require.ErrorIs(t, written, ErrShared)
				}
			}
			_, err := os.Lstat(filepath.Join(dir, "pulse"))
			require.Equal(t, c.want != "", errors.Is(err, fs.ErrNotExist))
		})
	}

	// Only root can give a file away; for anybody else the one who asks is another.
	asker, give := us+1, func(string) {}
	if us == 0 {
		asker, give = 0, func(path string) { require.NoError(t, os.Lchown(path, stranger, -1)) }
	}
	t.Run("another user's", func(t *testing.T) {
		dir := ownDir(t, 0o755)
		require.NoError(t, private(dir, us))
		give(dir)
		require.ErrorIs(t, private(dir, asker), ErrShared)
	})

	t.Run("another user's link", func(t *testing.T) {
		link := filepath.Join(ownDir(t, 0o777|fs.ModeSticky), "link")
		require.NoError(t, os.Symlink("/", link))
		require.NoError(t, private(link, us))
		give(link)
		require.ErrorIs(t, private(link, asker), ErrShared)
	})

	t.Run("links without end", func(t *testing.T) {
		dir := ownDir(t, 0o755)
		require.NoError(t, os.Symlink("loop", filepath.Join(dir, "loop")))
		require.ErrorContains(t, private(filepath.Join(dir, "loop"), os.Geteuid()), "too many links")
	})

	t.Run("no directory", func(t *testing.T) {
		file := filepath.Join(ownDir(t, 0o755), "file")
		require.NoError(t, os.WriteFile(file, nil, 0o600))
		require.ErrorContains(t, private(file, os.Geteuid()), "is no directory")
		require.ErrorIs(t, private(file+".none", os.Geteuid()), fs.ErrNotExist)
	})
}
