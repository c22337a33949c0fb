package observer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// valueFile is a file of one of Envoy's injected_resource monitors. Envoy sees it change only when
// another file is renamed to it.
type valueFile struct {
	path  string
	text  string    // what is in it; empty = nothing of ours
	tried time.Time // when writing last failed; zero = it did not
}

const tryAgain = time.Second

func (f *valueFile) due(now time.Time, text string) bool {
	return f.text != text && (f.tried.IsZero() || now.Sub(f.tried) >= tryAgain)
}

func (f *valueFile) set(now time.Time, text string) error {
	if err := replace(f.path, text); err != nil {
		f.tried = now
		return err
	}
	f.text, f.tried = text, time.Time{}
	return nil
}

// next is what is behind the name of a file that is going to take the place of another.
const next = ".new"

// replace puts a file with the text in the place of whatever has that name: a link, a pipe or a
// socket there is replaced, and neither followed nor opened.
func replace(file, text string) error {
	dir, name := filepath.Split(file)
	if err := private(filepath.Clean(dir), os.Geteuid()); errors.Is(err, ErrShared) {
		return err
	} else if err != nil {
		return unwritable(file, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return unwritable(file, err)
	}
	defer root.Close()
	// One name, so that a crash leaves one file behind, which goes here. What has the name now is
	// unlinked, and the file is ours alone.
	temporary := name + next
	if err := root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return unwritable(file, err)
	}
	f, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return unwritable(file, err)
	}
	_, err = f.WriteString(text)
	if err == nil {
		err = f.Chmod(0o644) // whatever the umask: Envoy may run as another user, who must be able to read it
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = root.Rename(temporary, name)
	}
	if err != nil {
		_ = root.Remove(temporary)
		return unwritable(file, err)
	}
	return nil
}

func unwritable(file string, err error) error {
	return fmt.Errorf("%s can't be written, its directory must exist and be writable: %w", file, err)
}

// writable says whether the files of a configuration may be written, as far as that can be said: a
// directory that is not there yet may come. The error begins with the key.
func (r *Release) writable() error {
	var errs []error
	for _, f := range r.files() {
		if f.path == "" {
			continue
		}
		if err := private(filepath.Dir(f.path), os.Geteuid()); errors.Is(err, ErrShared) {
			errs = append(errs, fmt.Errorf("release.%s: %w", f.key, err))
		} else if info, err := os.Lstat(f.path); err == nil && info.IsDir() {
			errs = append(errs, fmt.Errorf("release.%s: %s is a directory: name a file in it", f.key, f.path))
		}
	}
	return errors.Join(errs...)
}

// ErrShared: others than root and this process's user may put files where a file is to be written.
var ErrShared = errors.New("others may write there")

// maxLinks is how many links of a path are followed, as the kernel does.
const maxLinks = 40

// private says whether a directory is that of a user or of root alone, and so is each on the way to
// it: who can write to one of them decides which file is written. As for ssh, a directory on the
// way may be open to all if it is sticky, as /tmp is: there nobody can rename or remove what
// belongs to another. Each is looked at before those below it, so that none can change behind the
// look. The error wraps ErrShared, or is the file system's.
func private(dir string, uid int) error {
	at, rest, links := "/", strings.TrimPrefix(dir, "/"), 0
	if err := ownDirectory(at, uid, false); err != nil {
		return err
	}
	for rest != "" {
		name, below, _ := strings.Cut(rest, "/")
		rest = strings.Trim(below, "/")
		switch name {
		case "", ".":
			continue
		case "..": // only a link has that
			at = filepath.Dir(at)
			continue
		}
		path := filepath.Join(at, name)
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if info.Mode().Type() != fs.ModeSymlink {
			at = path
			if err := ownDirectory(at, uid, false); err != nil {
				return err
			}
			continue
		}
		if links++; links > maxLinks {
			return fmt.Errorf("%s: too many links", dir)
		}
		if err := own(path, uid, info); err != nil {
			return err
		}
		target, err := os.Readlink(path)
		if err != nil {
			return err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = strings.Trim(target+"/"+rest, "/")
	}
	return ownDirectory(at, uid, true)
}

// ownDirectory says whether only root and the user can write to a directory, the last one of a path
// or one on the way to it.
func ownDirectory(path string, uid int, last bool) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is no directory", path)
	}
	if err := own(path, uid, info); err != nil {
		return err
	}
	if info.Mode().Perm()&0o022 == 0 || !last && info.Mode()&fs.ModeSticky != 0 {
		return nil
	}
	return fmt.Errorf("%w: %s has the mode %v, and who can write there could have another file overwritten. Run chmod go-w %s, or name a file in "+
		"a directory that only this user can write to, such as /run/highwater", ErrShared, path, info.Mode(), path)
}

// own says whether root or the user owns what is there.
func own(path string, uid int, info fs.FileInfo) error {
	other, known := owner(info)
	if !known || other == 0 || other == uid {
		return nil
	}
	return fmt.Errorf("%w: user %d owns %s, and could have another file overwritten; this is user %d. Run chown %d %s, or name a file in a "+
		"directory that only this user can write to, such as /run/highwater", ErrShared, other, path, uid, uid, path)
}
