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
	"github.com/highwater-envoy/highwater/internal/unit"
)

const doctorUsage = `highwater doctor [flags]

What the memory of an Envoy is made of, what is wrong with it, and which setting to change to what. It takes nothing but
an admin interface: neither Highwater's plugin nor its server has to run. With Envoy's process on this machine it reads
its /proc too, for which it has to be the same user or root.

  -admin URL     Envoy's admin interface, such as http://127.0.0.1:9901 (the default) or unix:/run/envoy/admin.sock
  -pid N         Envoy's process (default: the one that listens there)
  -dir DIR       read the files of DIR in place of an Envoy: memory.json, tcmalloc.txt, stats.json, smaps.txt, status.txt,
                 sockstat.txt, cgroup.json, server_info.json; any may be missing
  -limit SIZE    the memory that Envoy may have, such as 512MiB (default: its container's limit)
  -watch 5m      sample once a few seconds for so long, and tell what grew; Ctrl-C ends it earlier
  -json          print JSON in place of the page
  -html FILE     write a page for a browser to FILE as well

Envoy's main thread answers: some 20ms a sample, and while it is watched less than 1/100 of its time. What can't be read
is said, and the rest is told nevertheless.
`

type doctorFlags struct {
	admin, dir, html string
	pid              int
	watch            time.Duration
	json             bool
	limit            unit.Bytes
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
	flags.BoolVar(&o.json, "json", false, "")
	flags.Func("limit", "", func(text string) (err error) {
		o.limit, err = unit.ParseBytes(text)
		return err
	})
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		err = fmt.Errorf("it takes no arguments but flags, and got %q; name a directory of files with -dir", flags.Arg(0))
	case o.dir != "" && (o.admin != "" || o.pid != 0 || o.watch != 0):
		err = errors.New("-dir is in place of a running Envoy, and goes with none of -admin, -pid and -watch")
	case o.pid < 0:
		err = fmt.Errorf("-pid: %d is no process", o.pid)
	case o.watch < 0 || o.watch > 24*time.Hour:
		err = fmt.Errorf("-watch: %v must be from 0 to 24h", o.watch)
	}
	if err != nil {
		fmt.Fprintf(stderr, "highwater doctor: %v\n", err)
	}
	return o, err
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
		if in.Now, err = gather.Dir(os.DirFS(o.dir)); err != nil {
			err = fmt.Errorf("-dir %s: %w", o.dir, err)
		}
		return in, err
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
	if s := &in.Now; s.Totals == nil && s.Allocator == nil && s.Status == nil {
		return in, fmt.Errorf("nothing can be read of an Envoy at %s: %s", cmp.Or(o.admin, defaultAdmin), firstOf(s.Missing))
	}
	return in, nil
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return "it has told nothing"
	}
	return list[0]
}

// watching samples for as long as it is asked to, and says once in a while that it does.
func (o *doctorFlags) watching(ctx context.Context, live *gather.Live, stderr io.Writer) doctor.Input {
	ctx, cancel := context.WithTimeout(ctx, o.watch)
	defer cancel()
	began, told := time.Now(), time.Time{}
	growth := &doctor.Growth{}
	w := gather.Watch{Read: live.Read, Sinks: []gather.Sink{growth}, Seen: func(s doctor.Sample) {
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
	return doctor.Input{Now: last, First: &first, Growth: growth}
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
