// Command run is `make run`: a real Envoy with examples/envoy.yaml, an upstream, a flood in front
// of it, and a live view of what the guard makes of it.
//
//	go run ./bench/run [-duration 20s] [-guard on|off] [-face filter|extproc]
//
// It needs no root and no port in particular. Ctrl-C ends it.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/highwater-envoy/highwater/bench/internal/apart"
	"github.com/highwater-envoy/highwater/bench/internal/figures"
	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const mib = 1 << 20

// loadCommand makes this program the process that floods, when it runs itself: see package apart.
const loadCommand = "load"

func main() {
	if len(os.Args) == 2 && os.Args[1] == loadCommand {
		if err := apart.Serve(os.Stdin, os.Stdout, flood); err != nil {
			fmt.Fprintln(os.Stderr, "run:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(command(os.Args[1:], os.Stdout, os.Stderr))
}

// flood is what runs in a process of its own: the first two lines of the view.
func flood(addr string) []load.Load {
	return []load.Load{
		&load.Uploads{Addr: addr, Path: "/upload?delay=2s", Count: 100, Size: 4 * mib},
		&load.SlowReaders{Addr: addr, Count: 50, Size: 2 * mib, Length: true, Rate: 256 << 10},
	}
}

func command(args []string, stdout *os.File, stderr io.Writer) int {
	flags := flag.NewFlagSet("run", flag.ContinueOnError)
	flags.SetOutput(stderr)
	duration := flags.Duration("duration", 0, "how long; 0 = until Ctrl-C")
	guard := flags.String("guard", "on", "on, or off: the same load without Highwater")
	face := flags.String("face", "filter", "filter; extproc: the guard as a server beside Envoy; module: as a dynamic module")
	wasm := flags.String("wasm", "", "the compiled filter (default: what `make build` makes)")
	var save shots
	flags.StringVar(&save.view, "save-view", "", "write the fullest view as an SVG to this file")
	flags.StringVar(&save.profile, "save-profile", "", "write the profile of the highest peak to this file")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if *guard != "on" && *guard != "off" {
		fmt.Fprintf(stderr, "run: -guard %q: write on or off\n", *guard)
		return 2
	}
	faces := map[string]envoytest.Face{"filter": envoytest.Filter, "extproc": envoytest.ExtProc, "module": envoytest.Module}
	if _, ok := faces[*face]; !ok {
		fmt.Fprintf(stderr, "run: -face %q: write filter, extproc or module\n", *face)
		return 2
	}
	if save != (shots{}) && (*guard != "on" || faces[*face] != envoytest.Filter) {
		fmt.Fprintln(stderr, "run: -save-view and -save-profile need -guard on and -face filter")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := demo(ctx, stdout, *duration, *guard == "on", faces[*face], *wasm, save); err != nil {
		if ctx.Err() != nil { // Ctrl-C before there was anything to see
			return 0
		}
		fmt.Fprintln(stderr, "run:", err)
		return 1
	}
	return 0
}

// shots are files to keep for the documents; empty = none.
type shots struct{ view, profile string }

// kind is one of the loads of the demo.
type kind struct {
	name     string
	snapshot func() load.Snapshot
}

func demo(ctx context.Context, out *os.File, duration time.Duration, guarded bool, face envoytest.Face, wasm string, save shots) error {
	say := func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }

	version, err := envoybin.Version()
	if err != nil {
		return err
	}
	if _, err := envoybin.Path(ctx, out); err != nil { // fetches it, the first time
		return err
	}
	hogs, err := apart.Start(loadCommand)
	if err != nil {
		return err
	}
	defer hogs.Close()
	upstream, err := load.NewUpstream() // of the small requests
	if err != nil {
		return err
	}
	defer upstream.Close()

	with := "with the filter (compiling it takes Envoy a few seconds)"
	switch {
	case !guarded:
		with = "without the guard"
	case face == envoytest.ExtProc:
		with = "with the ext_proc server beside it"
	case face == envoytest.Module:
		with = "with the dynamic module"
	}
	say("starting Envoy %s %s ...", version, with)
	var limit unit.Bytes
	var badRoute, badLimit error
	envoy, err := envoytest.Start(ctx, envoytest.Options{
		Face:        face,
		Wasm:        wasm,
		Concurrency: 2,
		Upstream:    hogs.Upstream(),
		Edit: func(c envoytest.Config) {
			badRoute = apart.Route(c, "all", "small", "/small", upstream.Addr())
			c.SetPluginConfig(func(plugin map[string]any) {
				budget, _ := plugin["budget"].(map[string]any)
				limit, badLimit = unit.ParseBytes(fmt.Sprint(budget["limit"]))
			})
			if !guarded {
				c.RemoveGuard()
			}
		},
	})
	if err != nil {
		return err
	}
	defer envoy.Stop()
	if badRoute != nil {
		return badRoute
	}
	if badLimit != nil {
		return fmt.Errorf("budget.limit of the example: %w", badLimit)
	}
	say("Envoy is ready: admin at %s, the listener at http://%s", envoy.AdminURL(), envoy.Addr("ingress"))
	if s := envoy.Server(); s != nil {
		say("highwater serve: http://%s/status and /metrics", s.HTTP)
	}
	say("")
	pause(ctx, time.Second) // the guard has its first readings, the starting machine is quiet

	addr := envoy.Addr("ingress")
	small := &load.Small{Addr: addr, Rate: 200, Drain: 2 * time.Second}
	kinds := []kind{
		{"uploads of 4 MiB", func() load.Snapshot { return hogs.Snapshot(0) }},
		{"slow readers", func() load.Snapshot { return hogs.Snapshot(1) }},
		{"small requests", small.Snapshot},
	}

	running, stop := context.WithCancel(ctx)
	defer stop()
	if duration > 0 {
		running, stop = context.WithTimeout(ctx, duration)
		defer stop()
	}
	var died error
	var all sync.WaitGroup
	watch := &watch{guarded: guarded, limit: int64(limit), kinds: kinds, begun: time.Now(), admin: envoy.AdminURL()}
	all.Go(func() {
		select {
		case <-envoy.Done():
			if running.Err() == nil {
				died = fmt.Errorf("envoy ended by itself; its log:\n%s", envoy.Logs())
			}
			stop()
		case <-running.Done():
		}
	})
	all.Go(func() {
		watch.memory.Run(running, 20*time.Millisecond, func(ctx context.Context) (load.Reading, error) {
			m, err := envoy.Memory(ctx)
			if err == nil {
				watch.history.add(time.Now(), m.InUse())
			}
			return load.Reading{Allocated: m.Allocated, InUse: m.InUse()}, err
		})
	})
	var hogsErr error
	all.Go(func() { hogsErr = hogs.Run(running, addr) })
	all.Go(func() { small.Run(running) })
	all.Go(func() {
		for running.Err() == nil {
			if stats, err := envoy.Stats(running, "highwater"); err == nil {
				watch.setStats(figures.Stats(stats))
			}
			pause(running, 200*time.Millisecond)
		}
	})
	var shot []string
	if save.view != "" {
		all.Go(func() { shot = shoot(running, watch) })
	}
	screen := newScreen(out)
	all.Go(func() { screen.follow(running, watch) })
	all.Wait()
	if died != nil {
		return died
	}
	if hogsErr != nil {
		return hogsErr
	}
	watch.summary(out)
	if save.view != "" {
		if err := os.WriteFile(save.view, image(shot), 0o644); err != nil {
			return err
		}
	}
	if save.profile != "" {
		return saveProfile(context.WithoutCancel(ctx), envoy.Addr("debug"), save.profile)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// screen is where the view goes: refreshed in place on a terminal, a line a second elsewhere.
type screen struct {
	out      *os.File
	terminal bool
	colours  bool
	drawn    int // lines on the terminal that the next view replaces
}

func newScreen(out *os.File) *screen {
	s := &screen{out: out, terminal: term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb"}
	s.colours = s.terminal && os.Getenv("NO_COLOR") == ""
	if runtime.GOOS == "windows" {
		s.terminal, s.colours = false, false
	}
	return s
}

func (s *screen) follow(ctx context.Context, w *watch) {
	every := time.Second
	if s.terminal {
		every = 200 * time.Millisecond
		fmt.Fprint(s.out, "\x1b[?25l")       // the cursor would flicker over it
		defer fmt.Fprint(s.out, "\x1b[?25h") // and is wanted afterwards
	}
	for {
		pause(ctx, every)
		if s.terminal {
			s.draw(w)
		} else if ctx.Err() == nil {
			fmt.Fprintln(s.out, w.line())
		}
		if ctx.Err() != nil {
			return
		}
	}
}

func (s *screen) draw(w *watch) {
	width, _, err := term.GetSize(int(s.out.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	lines := w.view(width, s.colours)
	var frame []byte
	if s.drawn > 0 {
		frame = fmt.Appendf(frame, "\x1b[%dA", s.drawn)
	}
	for _, line := range lines {
		frame = append(frame, "\r"...)
		frame = append(frame, clip(line, width)...)
		frame = append(frame, "\x1b[K\n"...)
	}
	frame = append(frame, "\x1b[J"...)
	s.drawn = len(lines)
	_, _ = s.out.Write(frame)
}
