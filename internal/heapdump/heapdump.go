// Package heapdump makes a heap dump of Envoy's readable.
//
// Envoy's /heap_dump and /peak_heap_dump are pprof profiles that TCMalloc makes: of each 2 MiB that
// are allocated it keeps one stack, of addresses alone. A release binary has no symbols that would
// name them. So frames are named by the classes of virtual functions (package rtti), and this is
// the rule for all others:
//
//   - a function that is not known to belong to a class is folded into its nearest caller that is:
//     what it holds is that class's. So are functions of std and absl, and the allocator's.
//   - The innermost class of a stack is the one that holds the memory. The event loop is none: all
//     stacks of a worker have it.
//
// How much a stack holds is an estimate from few samples. How much memory the objects of each size
// take together is known exactly, by the allocator's own statistics: so the weights of all stacks
// of a size are multiplied by what makes their sum right, and sizes of which there is no sample get
// a frame of their own.
package heapdump

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/google/pprof/profile"

	"github.com/highwater-envoy/highwater/internal/profiles"
	"github.com/highwater-envoy/highwater/internal/rtti"
)

// Source says which dump is read, and by which binary. One of Dump and Get is required.
type Source struct {
	// Dump is a dump as Envoy answered it, packed or not; nil = Envoy is asked.
	Dump []byte
	// Get asks Envoy's admin interface for a path and returns at most so many bytes.
	Get func(ctx context.Context, path string, most int64) ([]byte, error)
	// Peak asks for the dump of when the heap was largest, in place of now.
	Peak bool
	// Sizes says what the dump is corrected by. It is asked once the dump is there, so that both
	// are of the same moment; nil = the dump is not corrected. Neither is that of a peak, of which
	// nobody knows them.
	Sizes func(ctx context.Context) ([]Size, error)

	Binary string // Envoy's file; empty = PID's, or else the one that the dump names
	PID    int    // Envoy's process on this machine; 0 = as Find says
	// Find finds the process of the Envoy that Get has asked; nil = nobody can.
	Find    func() (pid int, err error)
	Symbols string // a file of the same build with symbols; empty = none
	Cache   rtti.Cache
}

// Paths of Envoy's admin interface, and how much of an answer is read. With 50 GiB in use a dump
// has some 2 MiB.
const (
	heapPath = "/heap_dump"
	peakPath = "/peak_heap_dump"

	maxDump = int64(profiles.MaxBytes)
)

// Read returns the profile of a dump with names, and what is in it in short. Where the error is
// nil, Summary.Notes say what could not be done.
func Read(ctx context.Context, source Source) (*profile.Profile, Summary, error) {
	summary := Summary{Peak: source.Peak}
	raw, err := source.dump(ctx)
	if err != nil {
		return nil, summary, err
	}
	var sizes []Size
	if source.Sizes != nil && !source.Peak {
		if sizes, err = source.Sizes(ctx); err != nil {
			summary.note("its weights are estimates of few samples, for the exact sizes are not known: %v", err)
			sizes = nil
		}
	}
	began := time.Now()
	path := source.path(raw, &summary)
	table, opened, err := source.Cache.Open(path)
	if err != nil {
		return nil, summary, source.explain(err)
	}
	summary.Binary, summary.BuildID, summary.Cached, summary.Took = path, table.BuildID, opened.Cached, time.Since(began)
	summary.Functions, summary.WithClass = table.Functions()
	if opened.Kept != nil {
		summary.note("the table of classes is made again each time: %v", opened.Kept)
	}
	n, err := newNames(raw, table, source.Symbols)
	if err != nil {
		return nil, summary, err
	}
	if err := ctx.Err(); err != nil {
		return nil, summary, err
	}
	held := weigh(raw, sizes)
	return build(raw, held, n, &summary), summary, nil
}

// dump is the dump, as it comes.
func (s *Source) dump(ctx context.Context) (*profile.Profile, error) {
	data := s.Dump
	if data == nil {
		if s.Get == nil {
			return nil, errors.New("there is nothing to read: name a heap dump, or Envoy's admin interface")
		}
		path, since := heapPath, ""
		if s.Peak {
			path, since = peakPath, " from 1.39 on"
		}
		var err error
		if data, err = s.Get(ctx, path, maxDump); err != nil {
			return nil, fmt.Errorf("no heap dump, which an Envoy with google's TCMalloc gives%s: %w", since, err)
		}
	}
	data, err := profiles.Unpack(data)
	if err == nil {
		var p *profile.Profile
		if p, err = profiles.Parse(data); err == nil {
			if err = check(p); err == nil {
				return p, nil
			}
		}
	}
	return nil, fmt.Errorf("the heap dump: %w", err)
}

// most is more than any process holds. Sums of so many values as are read don't overflow.
const most = 1 << 43

// check says whether a profile is a heap dump.
func check(p *profile.Profile) error {
	if p.SampleType == nil || index(p, "objects") < 0 || index(p, "space") < 0 {
		return errors.New("it is a profile, but not one of a heap: name what Envoy's /heap_dump answered")
	}
	if len(p.Mapping) == 0 && len(p.Sample) > 0 {
		return errors.New("it does not say which binary it is of")
	}
	for _, s := range p.Sample {
		for _, v := range s.Value {
			if v < 0 || v > most {
				return fmt.Errorf("a stack of %d bytes or objects is none that there can be", v)
			}
		}
	}
	return nil
}

func index(p *profile.Profile, name string) int {
	for i, t := range p.SampleType {
		if t.Type == name {
			return i
		}
	}
	return -1
}

// path is the binary's.
func (s *Source) path(p *profile.Profile, summary *Summary) string {
	if s.Binary == "" && s.PID == 0 && s.Find != nil {
		pid, err := s.Find()
		if err == nil {
			s.PID = pid
		} else {
			summary.note("Envoy's process is not found, so that its binary is the one that the dump names: %v", err)
		}
	}
	switch {
	case s.Binary != "":
		return s.Binary
	case s.PID != 0:
		return filepath.Join("/proc", strconv.Itoa(s.PID), "exe")
	case s.Symbols != "":
		return s.Symbols
	case len(p.Mapping) > 0:
		return p.Mapping[0].File
	}
	return ""
}

// explain says what is to be done where a binary can't be read.
func (s *Source) explain(err error) error {
	named := s.Binary != ""
	switch {
	case !named && s.PID != 0 && errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("there is no process %d: %w", s.PID, err)
	case !named && s.PID != 0 && errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the binary of process %d can't be read: run this as its user or root, or name its binary: %w", s.PID, err)
	case !named && s.PID == 0 && s.Symbols == "":
		return fmt.Errorf("the binary that the dump names can't be read: name Envoy's process or its binary: %s", clean(err.Error()))
	}
	return fmt.Errorf("the binary: %w", err)
}
