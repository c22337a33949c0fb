package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/highwater-envoy/highwater/internal/doctor"
	"github.com/highwater-envoy/highwater/internal/gather"
	"github.com/highwater-envoy/highwater/internal/heapdump"
	"github.com/highwater-envoy/highwater/internal/observer"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const doctorUsage = `highwater doctor [flags]

What the memory of an Envoy is made of, what is wrong with it, and which setting to change to what. It takes nothing but
an admin interface: neither Highwater's plugin nor its server has to run. With Envoy's process on this machine it reads
its /proc too, for which it has to be the same user or root.

  -admin URL     Envoy's admin interface, such as http://127.0.0.1:9901 (the default) or unix:/run/envoy/admin.sock
  -pid N         Envoy's process (default: the one that listens there)
  -dir DIR       read the files of DIR in place of an Envoy: memory.json, tcmalloc.txt, stats.json, smaps.txt, status.txt,
                 sockstat.txt, cgroup.json, server_info.json; any may be missing. A bundle of evidence is such a directory
  -limit SIZE    the memory that Envoy may have, such as 512MiB (default: its container's limit)
  -watch 5m      sample once a few seconds for so long, and tell growth that load does not explain, and leaks; two minutes
                 at least. Ctrl-C ends it earlier
  -heap          tell which classes of Envoy hold its heap as well, as highwater heap does; with -dir by heap_dump.pb.gz
                 and peak_heap_dump.pb.gz
  -binary FILE   with -heap, Envoy's binary (default: that of its process, or with -dir the one that the dump names; -pid
                 names a process that has it)
  -json          print JSON in place of the page
  -html FILE     write a page for a browser to FILE as well

Envoy's main thread answers: some 20ms a sample, and while it is watched less than 1/100 of its time. What can't be read
is said, and the rest is told nevertheless.
`

type doctorFlags struct {
	admin, dir, html, binary string
	pid                      int
	watch                    time.Duration
	json, heap               bool
	limit                    unit.Bytes
}

func parseDoctor(args []string, stderr io.Writer) (o doctorFlags, err error) {
	flags := flag.NewFlagSet("highwater doctor", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, doctorUsage) }
	flags.StringVar(&o.admin, "admin", "", "")
	flags.StringVar(&o.dir, "dir", "", "")
	flags.StringVar(&o.html, "html", "", "")
	flags.IntVar(&o.pid, "pid", 0, "")
	flags.DurationVar(&o.watch, "watch", 0, "")
	flags.StringVar(&o.binary, "binary", "", "")
	flags.BoolVar(&o.json, "json", false, "")
	flags.BoolVar(&o.heap, "heap", false, "")
	flags.Func("limit", "", func(text string) (err error) {
		o.limit, err = unit.ParseBytes(text)
		return err
	})
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if err = o.wrong(flags.Args()); err != nil {
		fmt.Fprintf(stderr, "highwater doctor: %v\n", err)
	}
	return o, err
}

// wrong says what is wrong with the call.
func (o *doctorFlags) wrong(args []string) (err error) {
	switch {
	case len(args) > 0:
		err = fmt.Errorf("it takes no arguments but flags, and got %q; name a directory of files with -dir", args[0])
	case o.dir != "" && (o.admin != "" || o.pid != 0 && !o.heap || o.watch != 0):
		err = errors.New("-dir is in place of a running Envoy, and goes with none of -admin, -watch, and without -heap -pid")
	case o.binary != "" && !o.heap:
		err = errors.New("-binary is of -heap: name both")
	case o.pid < 0:
		err = fmt.Errorf("-pid: %d is no process", o.pid)
	case o.watch < 0 || o.watch > 24*time.Hour:
		err = fmt.Errorf("-watch: %v must be from 0 to 24h", o.watch)
	}
	return err
}

func diagnose(args []string, stdout, stderr io.Writer) int {
	o, err := parseDoctor(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	fail := func(err error) int {
		fmt.Fprintln(stderr, "highwater doctor:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	in, err := o.gather(ctx, stderr)
	if err != nil {
		return fail(err)
	}
	in.Limit = int64(o.limit)
	report := doctor.Examine(in)
	if o.html != "" {
		if err := writePage(o.html, &report); err != nil {
			return fail(err)
		}
	}
	if o.json {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "  ")
		if err := e.Encode(report); err != nil {
			return fail(err)
		}
	} else {
		report.WriteText(stdout)
	}
	return 0
}

// gather reads what there is. The error says that it is nothing.
func (o *doctorFlags) gather(ctx context.Context, stderr io.Writer) (in doctor.Input, err error) {
	if o.dir != "" {
		dir := os.DirFS(o.dir)
		if in.Now, err = gather.Dir(dir); err != nil {
			return in, fmt.Errorf("-dir %s: %w", o.dir, err)
		}
		in.More = gather.More(dir, o.dir, o.heap)
		if o.heap {
			ctx, cancel := context.WithTimeout(ctx, heapTimeout)
			defer cancel()
			var missing []string
			in.Heaps, missing = gather.Heaps(ctx, dir, in.Now.Allocator, o.heapSource(heapdump.Source{}))
			in.Now.Missing = append(in.Now.Missing, missing...)
		}
		return in, nil
	}
	live, err := gather.NewLive(cmp.Or(o.admin, defaultAdmin), o.pid)
	if err != nil {
		return in, fmt.Errorf("-admin: %w", err)
	}
	defer live.Close()
	if o.watch == 0 {
		in.Now = live.Read(ctx)
	} else {
		in = o.watching(ctx, live, stderr)
	}
	if o.heap {
		o.addHeap(ctx, &in)
	}
	if s := &in.Now; s.Totals == nil && s.Allocator == nil && s.Status == nil {
		return in, fmt.Errorf("nothing can be read of an Envoy at %s: %s", cmp.Or(o.admin, defaultAdmin), firstOf(s.Missing))
	}
	return in, nil
}

// heapSource adds whose binary it is, and where its classes are kept.
func (o *doctorFlags) heapSource(s heapdump.Source) heapdump.Source {
	s.PID, s.Binary, s.Cache = o.pid, o.binary, classCache("")
	return s
}

// addHeap asks for a heap dump. What can't be had is missing, and the rest is there.
func (o *doctorFlags) addHeap(ctx context.Context, in *doctor.Input) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), heapTimeout) // Ctrl-C ends watching alone
	defer cancel()
	admin, err := observer.NewAdmin(cmp.Or(o.admin, defaultAdmin))
	if err == nil {
		defer admin.Close()
		var summary heapdump.Summary
		if _, summary, err = heapdump.Read(ctx, o.heapSource(gather.HeapSource(admin))); err == nil {
			in.Heaps = append(in.Heaps, summary)
			return
		}
	}
	in.Now.Missing = append(in.Now.Missing, "classes of the heap: "+err.Error())
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return "it has told nothing"
	}
	return list[0]
}

// watchEvery is how often -watch samples, where Envoy is not slow.
const watchEvery = 5 * time.Second

// watching samples for as long as it is asked to, and says once in a while that it does.
func (o *doctorFlags) watching(ctx context.Context, live *gather.Live, stderr io.Writer) doctor.Input {
	ctx, cancel := context.WithTimeout(ctx, o.watch)
	defer cancel()
	began, told := time.Now(), time.Time{}
	growth := gather.NewGrowth(watchEvery)
	w := gather.Watch{Every: watchEvery, Read: live.Read, Seen: func(s doctor.Sample) {
		growth.Add(s)
		if time.Since(told) < 15*time.Second {
			return
		}
		told = time.Now()
		resident := "not known"
		if s.Status != nil {
			resident = unit.Bytes(s.Status.Resident).Human()
		}
		fmt.Fprintf(stderr, "watching: %v of %v, resident %s\n", time.Since(began).Round(time.Second), o.watch, resident)
	}}
	first, last := w.Run(ctx)
	return doctor.Input{Now: last, First: &first, Growth: growth.Verdict()}
}

// writePage writes the page beside the file and renames it, so that nobody reads half of it.
func writePage(file string, r *doctor.Report) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".highwater-*")
	if err != nil {
		return fmt.Errorf("-html: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is gone once it was renamed
	page := doctor.Page{Report: r}
	err = page.WriteHTML(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("-html: %w", err)
	}
	return nil
}
