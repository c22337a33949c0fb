package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/highwater-envoy/highwater/internal/adminhttp"
	"github.com/highwater-envoy/highwater/internal/allocator"
	"github.com/highwater-envoy/highwater/internal/gather"
	"github.com/highwater-envoy/highwater/internal/heapdump"
	"github.com/highwater-envoy/highwater/internal/input"
	"github.com/highwater-envoy/highwater/internal/observer"
	"github.com/highwater-envoy/highwater/internal/profiles"
	"github.com/highwater-envoy/highwater/internal/rtti"
)

const heapUsage = `highwater heap [flags] [DUMP]

Which classes of Envoy hold its heap: a release binary without symbols will do. DUMP is a file that Envoy's /heap_dump or
/peak_heap_dump has answered; without one, Envoy is asked. Prints a table, unless -o writes a profile.

  -admin URL     Envoy's admin interface (http://127.0.0.1:9901), or unix:PATH
  -peak          of when the heap was largest, in place of now
  -pid N         Envoy's process, whose binary names the classes. Default: who answers at -admin, else the file that the
                 dump names
  -binary FILE   or its binary
  -symbols FILE  a binary of the same build with symbols, which name each function
  -sizes FILE    what /memory/tcmalloc answered when DUMP was made: its exact sums correct the dump's estimates. Envoy is
                 asked for it where it is asked for the dump, except with -peak
  -o FILE        write the profile, for go tool pprof
  -n N           classes in the table (20)
  -cache DIR     where the classes of a binary are kept, 8 binaries at most, of some 3MiB each; "none" keeps nothing
                 (highwater/classes in the user's cache directory)
`

// heapTimeout is for everything: Envoy's answers, and its binary.
const heapTimeout = 30 * time.Second

func heap(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("heap", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, heapUsage) }
	var o heapOptions
	flags.StringVar(&o.admin, "admin", "", "")
	flags.BoolVar(&o.source.Peak, "peak", false, "")
	flags.IntVar(&o.source.PID, "pid", 0, "")
	flags.StringVar(&o.source.Binary, "binary", "", "")
	flags.StringVar(&o.source.Symbols, "symbols", "", "")
	flags.StringVar(&o.sizes, "sizes", "", "")
	flags.StringVar(&o.output, "o", "", "")
	flags.IntVar(&o.lines, "n", 20, "")
	flags.StringVar(&o.cache, "cache", "", "")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	o.dump = flags.Arg(0)
	if err := o.wrong(flags.NArg()); err != nil {
		fmt.Fprintln(stderr, "highwater heap:", err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, heapTimeout)
	defer cancel()
	if err := o.show(ctx, stdout); err != nil {
		fmt.Fprintln(stderr, "highwater heap:", err)
		return 1
	}
	return 0
}

// heapOptions are the flags of heap.
type heapOptions struct {
	source                            heapdump.Source
	admin, dump, sizes, output, cache string
	lines                             int
}

// wrong says what is wrong with the call, with so many arguments.
func (o *heapOptions) wrong(arguments int) error {
	switch {
	case arguments > 1:
		return errors.New("one dump is read at a time: name one")
	case o.dump != "" && o.admin != "":
		return errors.New("name a dump or -admin, and not both")
	case o.source.PID < 0:
		return fmt.Errorf("-pid %d must be the number of a process", o.source.PID)
	case o.source.PID != 0 && o.source.Binary != "":
		return errors.New("name -pid or -binary, and not both")
	case o.source.Peak && o.sizes != "":
		return errors.New("-sizes are of a moment, and not of the peak: leave one of -sizes and -peak out")
	}
	return nil
}

// show reads the dump and prints its table, or writes its profile.
func (o *heapOptions) show(ctx context.Context, out io.Writer) error {
	o.source.Cache = classCache(o.cache)
	if err := o.open(); err != nil {
		return err
	}
	if o.sizes != "" {
		text, err := input.Read(o.sizes, allocator.MaxText)
		var sizes []heapdump.Size
		if err == nil {
			sizes, err = gather.ParseSizes(text)
		}
		if err != nil {
			return fmt.Errorf("-sizes %s: %w", o.sizes, err)
		}
		o.source.Sizes = func(context.Context) ([]heapdump.Size, error) { return sizes, nil }
	}
	p, summary, err := heapdump.Read(ctx, o.source)
	if err != nil {
		return err
	}
	if o.output != "" {
		return write(o.output, p)
	}
	return summary.Write(out, o.lines)
}

// open sets where the dump comes from.
func (o *heapOptions) open() error {
	if o.dump != "" {
		data, err := input.Read(o.dump, profiles.MaxBytes)
		if err != nil {
			return err
		}
		o.source.Dump = append([]byte{}, data...) // empty is not none
		return nil
	}
	if o.admin == "" {
		o.admin = defaultAdmin
	}
	admin, err := observer.NewAdmin(o.admin)
	if err != nil {
		return fmt.Errorf("-admin: %w", err)
	}
	asked := gather.HeapSource(admin)
	o.source.Get, o.source.Find, o.source.Sizes = asked.Get, asked.Find, asked.Sizes
	return nil
}

// classCache is where the classes of binaries are kept. Where there is no directory for it nothing
// is kept.
func classCache(dir string) rtti.Cache {
	switch dir {
	case "none":
		return rtti.Cache{}
	case "":
		user, err := os.UserCacheDir()
		if err != nil {
			return rtti.Cache{}
		}
		dir = filepath.Join(user, "highwater", "classes")
	}
	return rtti.Cache{Dir: dir}
}

// heapPageTimeout is shorter than the server's own for an answer.
const heapPageTimeout = 5 * time.Second

// heapPage answers /debug/heap: the profile, of the peak with ?peak, or with ?table the table.
func (a *app) heapPage(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), heapPageTimeout)
	defer cancel()
	admin, err := a.watching().Admin()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	defer admin.Close()
	query := r.URL.Query()
	source := gather.HeapSource(admin)
	source.Peak, source.PID, source.Cache = query.Has("peak"), a.watching().Status().PID, classCache("")
	p, summary, err := heapdump.Read(ctx, source)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	if query.Has("table") {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_ = summary.Write(w, 50)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Disposition", `attachment; filename="heap.pb.gz"`)
	_ = p.Write(w)
}

// heapInTurn is heapPage for one request at a time: the binary is read in some hundred MiB/s.
func (a *app) heapInTurn() http.Handler { return adminhttp.InTurn(http.HandlerFunc(a.heapPage)) }
