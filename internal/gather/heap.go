package gather

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"github.com/highwater-envoy/highwater/internal/allocator"
	"github.com/highwater-envoy/highwater/internal/heapdump"
	"github.com/highwater-envoy/highwater/internal/observer"
)

var errNoSizes = errors.New("the allocator's text does not tell how many objects there are of each size")

// Sizes is what a heap dump of the same moment is corrected by.
func Sizes(r *allocator.Report) ([]heapdump.Size, error) {
	if r == nil || !r.Counted {
		return nil, errNoSizes
	}
	rest := r.Application
	var list []heapdump.Size
	for _, c := range r.Classes {
		if c.Size <= 0 {
			continue
		}
		// The lists were read one after the other: no more is told than there is in all.
		live := min(c.Live, rest/c.Size) * c.Size
		rest -= live
		list = append(list, heapdump.Size{Bytes: c.Size, Live: live})
	}
	return append(list, heapdump.Size{Live: rest}), nil
}

// ParseSizes reads Sizes from the answer of /memory/tcmalloc.
func ParseSizes(text []byte) ([]heapdump.Size, error) {
	r, err := allocator.Parse(text)
	if err != nil {
		return nil, err
	}
	return Sizes(r)
}

// HeapSource is a heap dump of the Envoy that an Admin asks, with the exact sizes of its moment.
func HeapSource(admin *observer.Admin) heapdump.Source {
	return heapdump.Source{Get: admin.Get, Find: admin.Process, Sizes: func(ctx context.Context) ([]heapdump.Size, error) {
		text, err := admin.Get(ctx, "/memory/tcmalloc", allocator.MaxText)
		if err != nil {
			return nil, err
		}
		return ParseSizes(text)
	}}
}

// The heap dumps of a directory of evidence.
const (
	HeapDump     = "heap_dump.pb.gz"
	PeakHeapDump = "peak_heap_dump.pb.gz"
)

// Heaps reads the heap dumps of a directory, by the binary that the source names. What can't be
// read is said in missing.
func Heaps(ctx context.Context, dir fs.FS, report *allocator.Report, source heapdump.Source) (list []heapdump.Summary, missing []string) {
	m, _ := readManifest(dir)
	for _, name := range []string{HeapDump, PeakHeapDump} {
		text, err := readFile(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("not in the directory")
			if why := m.why(name); why != "" {
				err = errors.New(why)
			}
		}
		if err == nil {
			s := source
			s.Dump, s.Peak = append([]byte{}, text...), name == PeakHeapDump // empty is not none
			if !s.Peak {
				s.Sizes = func(context.Context) ([]heapdump.Size, error) { return Sizes(report) }
			}
			var summary heapdump.Summary
			if _, summary, err = heapdump.Read(ctx, s); err == nil {
				list = append(list, summary)
			}
		}
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %s", name, brief(err.Error())))
		}
	}
	return list, missing
}

// More is what else a directory has, as commands that open it. name is the directory's, as the
// caller knows it; heaps says that its heap dumps are read already.
func More(dir fs.FS, name string, heaps bool) (commands []string) {
	const maxProfiles = 16
	files, err := fs.Glob(dir, "requests-*.pb.gz")
	if err != nil {
		return nil
	}
	slices.Sort(files)
	for _, f := range files[:min(len(files), maxProfiles)] {
		commands = append(commands, "highwater pprof "+brief(path.Join(name, f)))
	}
	if heaps {
		return commands
	}
	for _, f := range []string{HeapDump, PeakHeapDump} {
		if info, err := fs.Stat(dir, f); err == nil && info.Mode().IsRegular() {
			return append(commands, "highwater doctor -dir "+brief(name)+" -heap -binary ENVOY")
		}
	}
	return commands
}
