// The picture of the README: memory in use over time, under one flood, without a guard, with
// Envoy's overload manager and with Highwater. Each is a real Envoy with the shipped example. It
// writes flood-light.svg and flood-dark.svg.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/highwater-envoy/highwater/bench/internal/apart"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const (
	mib         = 1 << 20
	clients     = 400
	sampleEvery = 20 * time.Millisecond
	before      = time.Second     // of calm, that the picture begins with
	after       = 2 * time.Second // and ends with
)

// loadCommand makes this program the process that floods, when it runs itself: see package apart.
const loadCommand = "load"

func main() {
	if len(os.Args) == 2 && os.Args[1] == loadCommand {
		if err := apart.Serve(os.Stdin, os.Stdout, flood); err != nil {
			fmt.Fprintln(os.Stderr, "picture:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(command(os.Args[1:], os.Stderr))
}

// flood is what runs in a process of its own: 400 clients upload 4 MiB each, again and again, and
// the upstream waits 2 s.
func flood(addr string) []load.Load {
	return []load.Load{&load.Uploads{Addr: addr, Count: clients, Size: 4 * mib}}
}

func command(args []string, stderr io.Writer) int {
	flags := flag.NewFlagSet("picture", flag.ContinueOnError)
	flags.SetOutput(stderr)
	duration := flags.Duration("duration", 9*time.Second, "how long each flood lasts")
	dir := flags.String("dir", filepath.Join("docs", "images"), "where the images go")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var curves []curve
	var limit unit.Bytes
	for _, g := range guards {
		fmt.Fprintf(stderr, "%s ... ", g.name)
		c, budget, err := run(ctx, g, *duration)
		if err != nil {
			fmt.Fprintln(stderr, err)
			return 1
		}
		fmt.Fprintf(stderr, "peak %s, small requests answered %.0f %%\n", unit.Bytes(c.peak()).Human(), 100*c.answered)
		curves, limit = append(curves, *c), budget
	}
	for name, t := range themes {
		if err := os.WriteFile(filepath.Join(*dir, "flood-"+name+".svg"), draw(t, curves, int64(limit), before+*duration+after), 0o644); err != nil {
			fmt.Fprintln(stderr, "picture:", err)
			return 1
		}
	}
	return 0
}

// guard is one of the Envoys that are compared.
type guard struct {
	name string
	edit func(c envoytest.Config, limit unit.Bytes)
}

var guards = []guard{
	{"no guard", func(c envoytest.Config, _ unit.Bytes) { c.RemoveGuard() }},
	{"Envoy's overload manager", func(c envoytest.Config, limit unit.Bytes) {
		c.RemoveGuard()
		c.AddOverloadManager(int64(limit))
	}},
	{"Highwater", func(envoytest.Config, unit.Bytes) {}},
}

// curve is what came of one run.
type curve struct {
	name     string
	at       []time.Duration
	inUse    []int64
	answered float64 // share of the small requests that were answered 200
}

func (c *curve) peak() (peak int64) {
	for _, n := range c.inUse {
		peak = max(peak, n)
	}
	return peak
}

// run floods one Envoy and samples its memory, from a moment before the flood until a moment behind
// it.
func run(ctx context.Context, g guard, duration time.Duration) (_ *curve, limit unit.Bytes, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	uploads, err := apart.Start(loadCommand)
	if err != nil {
		return nil, 0, err
	}
	defer uploads.Close()
	upstream, err := load.NewUpstream() // of the small requests
	if err != nil {
		return nil, 0, err
	}
	defer upstream.Close()
	var edited error
	envoy, err := envoytest.Start(ctx, envoytest.Options{
		Upstream: uploads.Upstream(),
		Edit: func(c envoytest.Config) {
			edited = apart.Route(c, "all", "small", "/small", upstream.Addr())
			c.SetPluginConfig(func(plugin map[string]any) {
				budget, _ := plugin["budget"].(map[string]any)
				var bad error
				limit, bad = unit.ParseBytes(fmt.Sprint(budget["limit"]))
				edited = errors.Join(edited, bad)
			})
			g.edit(c, limit)
		},
	})
	if err != nil {
		return nil, 0, err
	}
	defer envoy.Stop()
	if edited != nil {
		return nil, 0, edited
	}
	if !load.Sleep(ctx, time.Second) { // the starting machine is quiet
		return nil, 0, ctx.Err()
	}

	c := &curve{name: g.name}
	begun := time.Now()
	sampling, stopSampling := context.WithTimeout(ctx, before+duration+after)
	defer stopSampling()
	small := &load.Small{Addr: envoy.Addr("ingress"), Rate: 200, Drain: 2 * time.Second}
	var measuring sync.WaitGroup
	measuring.Go(func() { small.Run(sampling) })
	measuring.Go(func() {
		for sampling.Err() == nil {
			if m, err := envoy.Memory(sampling); err == nil {
				c.at, c.inUse = append(c.at, time.Since(begun)), append(c.inUse, m.InUse())
			}
			load.Sleep(sampling, sampleEvery)
		}
	})
	load.Sleep(sampling, before)
	flooding, stopFlood := context.WithTimeout(sampling, duration)
	defer stopFlood()
	err = uploads.Run(flooding, envoy.Addr("ingress"))
	measuring.Wait()
	select {
	case <-envoy.Done():
		return nil, 0, fmt.Errorf("envoy ended by itself; its log:\n%s", envoy.Logs())
	default:
	}
	if err = errors.Join(err, ctx.Err()); err != nil {
		return nil, 0, err
	}
	c.answered = small.Snapshot().Answered()
	return c, limit, nil
}
