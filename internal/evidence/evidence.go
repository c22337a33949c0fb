// Package evidence keeps what can be seen of an Envoy that may soon be gone: which requests hold
// its memory, what its allocator, its cgroup and the kernel say, and its heap dumps. A bundle is a
// directory that is there as a whole or not at all. What can't be had is named in its manifest.
//
// It must not bring about what it is to explain. Everything is streamed to the disk, within bounds
// and deadlines; what costs Envoy's main thread time or Envoy memory is asked for once, last, and
// not at all where the room that is left is small.
package evidence

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Format is the number of the bundle's form.
const Format = 1

// Manifest says what a bundle has. It is the file manifest.json.
type Manifest struct {
	Format       int       `json:"format"`
	Time         time.Time `json:"time"`
	EnvoyVersion string    `json:"envoy_version"` // empty = not known
	BuildID      string    `json:"build_id"`      // of Envoy's binary, hex; empty = not known
	Trigger      Trigger   `json:"trigger"`
	Files        []File    `json:"files"`
}

// File is a file of a bundle, or one that would have been.
type File struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
	Error string `json:"error,omitempty"` // why it is not there
}

// Keeper keeps the bundles of one directory. It is not safe for concurrent use.
type Keeper struct {
	config Config
	watch  watch
	total  int64 // bytes of the bundles that there are
	count  int
	looked bool
	root   *os.Root
}

// NewKeeper returns one that has seen nothing yet.
func NewKeeper(c Config) *Keeper { return &Keeper{config: c} }

// See takes in what is known now, and returns why a bundle is to be taken, if one is: then Take is
// to be called, and where that fails it is as if one had been taken.
func (k *Keeper) See(now time.Time, s State) (Trigger, bool) {
	if k.config.Directory == "" {
		return "", false
	}
	return k.watch.see(now, k.config, s)
}

// Totals are how many bundles there are, and what they take, bytes; as of the last Take or Tidy.
func (k *Keeper) Totals() (bundles int, bytes int64) { return k.count, k.total }

// partial is before the name of a bundle that is not complete.
const partial = ".partial-"

// Tidy makes the directory if need be, completes what a server left behind that ended while it took
// a bundle, and removes what is too much.
func (k *Keeper) Tidy() error {
	if k.config.Directory == "" {
		return nil
	}
	if err := k.open(); err != nil {
		return err
	}
	defer k.root.Close()
	if !k.looked {
		k.looked = true
		if err := k.adopt(); err != nil {
			return k.fails(err)
		}
	}
	return k.fails(k.trim(""))
}

// Take takes a bundle and returns its directory. The error says why there is none; a bundle of
// which parts are missing is none.
func (k *Keeper) Take(ctx context.Context, now time.Time, t Trigger, s Source) (dir string, m Manifest, err error) {
	k.watch.waiting = t
	defer k.watch.took(now)
	if err := k.open(); err != nil {
		return "", m, err
	}
	defer k.root.Close()
	name := now.UTC().Format("20060102T150405.000Z") + "-" + string(t)
	if err := k.root.Mkdir(partial+name, 0o700); err != nil {
		return "", m, k.fails(err)
	}
	b := &bundle{root: k.root, dir: partial + name, left: int64(k.config.Quota), manifest: Manifest{Format: Format, Time: now.UTC(), Trigger: t}}
	b.collect(ctx, s)
	if err := b.finish(); err != nil {
		_ = k.root.RemoveAll(b.dir)
		return "", m, k.fails(err)
	}
	if err := k.root.Rename(b.dir, name); err != nil {
		_ = k.root.RemoveAll(b.dir)
		return "", m, k.fails(err)
	}
	if err := syncDir(k.root, "."); err != nil {
		return "", m, k.fails(err)
	}
	return filepath.Join(k.config.Directory, name), b.manifest, k.fails(k.trim(name))
}

// open opens the directory, which is made if only its last part is missing.
func (k *Keeper) open() error {
	dir := k.config.Directory
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return k.fails(err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return k.fails(err)
	}
	if !info.IsDir() {
		return fmt.Errorf("evidence.directory: %s is no directory", dir)
	}
	if info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("evidence.directory: %s has the mode %v: others could put files there. Run chmod go-w %s", dir, info.Mode(), dir)
	}
	k.root, err = os.OpenRoot(dir)
	return k.fails(err)
}

func (k *Keeper) fails(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("evidence.directory: %s: %w", k.config.Directory, err)
}

// bundles are the names of those that there are, the ones that go first before the others: what a
// high-water mark left is worth less than what there was before an end.
func (k *Keeper) bundles() (names []string, err error) {
	all, err := fs.ReadDir(k.root.FS(), ".")
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if _, _, is := strings.Cut(e.Name(), "Z-"); is && e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	marks := func(name string) int {
		if strings.HasSuffix(name, string(HighWater)) {
			return 0
		}
		return 1
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := marks(a) - marks(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	return names, nil
}

// trim removes bundles until there are no more than may be kept, and never the one that was taken
// last.
func (k *Keeper) trim(newest string) error {
	names, err := k.bundles()
	if err != nil {
		return err
	}
	sizes := map[string]int64{}
	k.count, k.total = len(names), 0
	for _, name := range names {
		n, err := size(k.root, name)
		if err != nil {
			return err
		}
		sizes[name] = n
		k.total += n
	}
	for _, name := range names {
		if k.count <= k.config.Keep && k.total <= int64(k.config.Quota) {
			break
		}
		if name == newest {
			continue
		}
		if err := k.root.RemoveAll(name); err != nil {
			return err
		}
		k.count--
		k.total -= sizes[name]
	}
	return nil
}

// block is what a file takes of a disk at least.
const block = 4096

func size(root *os.Root, dir string) (sum int64, err error) {
	all, err := fs.ReadDir(root.FS(), dir)
	if err != nil {
		return 0, err
	}
	for _, e := range all {
		info, err := e.Info()
		if err != nil {
			return 0, err
		}
		sum += (info.Size() + block - 1) / block * block
	}
	return sum, nil
}

// adopt makes bundles of what was left behind: what was written before an end may be all that there
// is.
func (k *Keeper) adopt() error {
	all, err := fs.ReadDir(k.root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range all {
		name, left := strings.CutPrefix(e.Name(), partial)
		if !left || !e.IsDir() {
			continue
		}
		at, _ := time.Parse("20060102T150405.000Z", strings.SplitN(name, "-", 2)[0])
		b := &bundle{root: k.root, dir: e.Name(), manifest: Manifest{Format: Format, Time: at, Trigger: Unknown}}
		files, err := fs.ReadDir(k.root.FS(), e.Name())
		if err != nil {
			return err
		}
		if len(files) == 0 {
			if err := k.root.RemoveAll(e.Name()); err != nil {
				return err
			}
			continue
		}
		for _, f := range files {
			if info, err := f.Info(); err == nil && f.Name() != manifestName {
				b.manifest.Files = append(b.manifest.Files, File{Name: f.Name(), Bytes: info.Size(), Error: "it may be cut off: highwater ended while the bundle was taken"})
			}
		}
		if err := b.finish(); err != nil {
			return err
		}
		if err := k.root.Rename(e.Name(), name); err != nil {
			return err
		}
	}
	return nil
}

const manifestName = "manifest.json"

// bundle is one that is being written.
type bundle struct {
	root     *os.Root
	dir      string
	left     int64 // bytes that it may still take
	manifest Manifest
}

// write has a file written by a function, within a bound, and notes it in the manifest. It is not
// there if that fails.
func (b *bundle) write(name string, most int64, fill func(w io.Writer) error) {
	f := File{Name: name}
	bounded := &boundedWriter{most: min(most, b.left)}
	err := b.file(name, func(w io.Writer) error {
		bounded.to = w
		return fill(bounded)
	})
	f.Bytes = bounded.n
	if err != nil {
		_ = b.root.Remove(path.Join(b.dir, name))
		f.Bytes, f.Error = 0, brief(err)
	}
	b.left -= f.Bytes
	b.manifest.Files = append(b.manifest.Files, f)
}

// missing notes a file that is not even tried.
func (b *bundle) missing(name, why string) {
	b.manifest.Files = append(b.manifest.Files, File{Name: name, Error: why})
}

func (b *bundle) file(name string, fill func(w io.Writer) error) error {
	f, err := b.root.OpenFile(path.Join(b.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err = fill(f); err == nil {
		err = f.Sync()
	}
	forget(f)
	if closed := f.Close(); err == nil {
		err = closed
	}
	return err
}

// finish writes the manifest, and has the directory on the disk.
func (b *bundle) finish() error {
	text, err := json.MarshalIndent(b.manifest, "", "  ")
	if err != nil {
		return err
	}
	_ = b.root.Remove(path.Join(b.dir, manifestName))
	if err := b.file(manifestName, func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	}); err != nil {
		return err
	}
	return syncDir(b.root, b.dir)
}

func syncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

type boundedWriter struct {
	to      io.Writer
	n, most int64
}

var errTooLarge = errors.New("it is larger than it may be")

func (w *boundedWriter) Write(p []byte) (int, error) {
	if int64(len(p)) > w.most-w.n {
		return 0, fmt.Errorf("%w: %d bytes", errTooLarge, w.most)
	}
	n, err := w.to.Write(p)
	w.n += int64(n)
	return n, err
}

// brief is an error's text that is not too long, in UTF-8.
func brief(err error) string {
	text := err.Error()
	if len(text) > maxError {
		text = text[:maxError] + "..."
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

const maxError = 400
