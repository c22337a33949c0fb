package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	envoyfile "github.com/highwater-envoy/highwater/internal/check"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/input"
	"github.com/highwater-envoy/highwater/internal/recording"
	"github.com/highwater-envoy/highwater/internal/replay"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/wasmhost"
)

const replayUsage = `highwater replay [flags] LOAD [CONFIG...]

What the guard would have done with a load, and what Envoy would have held: the very policy on a model of Envoy. LOAD is
Envoy's access log as JSON lines, or a load that you describe, a group of clients a line; gzip too; - reads standard
input. Each CONFIG is Highwater's own configuration, or an Envoy bootstrap with Highwater in it, JSON or YAML. They are
shown side by side, and beside no guard. A configuration in mode observe is replayed as one that enforces.

  -limit 200MiB,300MiB   replay under these limits in place of budget.limit; without CONFIG Envoy's defaults hold
  -find-limit            find the smallest limit under which nobody is rejected, evicted or closed
  -back never            clients that were rejected come back never (the default), when told by Retry-After (told), or after
                         a time such as 20ms
  -base 40MiB            what Envoy has in use without traffic, as its /memory says (default: 11MiB, as of a small Envoy)
  -container 300MiB      Envoy's container, where budget.limit is a share of it
  -workers 2             Envoy's --concurrency
  -cores 2               CPU that it has for them (default: as many as workers)
  -speed 1               of a core, against the machine that the model's figures are from
  -wasm FILE             replay the compiled plugin, build/highwater.wasm, in place of the native policy; ten times slower
  -by route              by what requests are told apart in the report where no CONFIG says it, as fairness.by
  -keys 10               how many keys are shown
  -svg FILE              draw memory over time into FILE
  -json                  print the results as JSON

Progress, and what of LOAD was left out, is on standard error. docs/how-to/predict-before-enforcing.md has the format of
the access log; docs/reference/replay.md what the model knows and does not.

Exit status: 0 there are results, 1 LOAD or a CONFIG is wrong or no limit is found, 2 the call is wrong.
`

// replayFlags is what `highwater replay` was asked.
type replayFlags struct {
	load, wasm, svg, by string
	configs             []string
	limits              []unit.Bytes
	container           unit.Bytes
	machine             replay.Machine
	back                replay.Back
	find, asJSON        bool
	keys                int
}

func parseReplay(args []string, stderr io.Writer) (o replayFlags, err error) {
	flags := flag.NewFlagSet("highwater replay", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, replayUsage) }
	flags.StringVar(&o.wasm, "wasm", "", "")
	flags.StringVar(&o.svg, "svg", "", "")
	flags.StringVar(&o.by, "by", config.ByRoute, "")
	flags.BoolVar(&o.find, "find-limit", false, "")
	flags.BoolVar(&o.asJSON, "json", false, "")
	flags.IntVar(&o.keys, "keys", 10, "")
	flags.IntVar(&o.machine.Workers, "workers", 2, "")
	flags.Float64Var(&o.machine.Cores, "cores", 0, "")
	flags.Float64Var(&o.machine.Speed, "speed", 1, "")
	size := func(to *unit.Bytes) func(text string) error {
		return func(text string) (err error) {
			*to, err = unit.ParseBytes(text)
			return err
		}
	}
	flags.Func("base", "", size(&o.machine.Base))
	flags.Func("container", "", size(&o.container))
	flags.Func("limit", "", func(text string) error {
		for part := range strings.SplitSeq(text, ",") {
			limit, err := unit.ParseBytes(strings.TrimSpace(part))
			if err != nil {
				return err
			}
			o.limits = append(o.limits, limit)
		}
		return nil
	})
	flags.Func("back", "", func(text string) (err error) {
		o.back, err = parseBack(text)
		return err
	})
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		o.load, o.configs = flags.Arg(0), flags.Args()[1:]
	}
	if err = o.wrong(); err != nil {
		fmt.Fprintf(stderr, "highwater replay: %v\n", err)
	}
	return o, err
}

func parseBack(text string) (b replay.Back, err error) {
	switch text {
	case "never":
		return b, nil
	case "told":
		return replay.Back{Told: true}, nil
	}
	if b.After, err = time.ParseDuration(text); err != nil || b.After <= 0 {
		return b, errors.New("write never, told, or a time such as 20ms")
	}
	return b, nil
}

const (
	mostConfigs = 16
	mostWorkers = 256
)

func (o *replayFlags) wrong() error {
	stdins := 0
	for _, file := range append([]string{o.load}, o.configs...) {
		if file == "-" {
			stdins++
		}
	}
	switch {
	case o.load == "":
		return errors.New("name a load: Envoy's access log as JSON lines, or - for standard input; highwater help replay says more")
	case stdins > 1:
		return errors.New("standard input (-) can be read once: name files for the others")
	case len(o.configs) > mostConfigs || len(o.limits) > mostConfigs:
		return fmt.Errorf("no more than %d configurations and limits are compared at once", mostConfigs)
	case o.machine.Workers < 1 || o.machine.Workers > mostWorkers:
		return fmt.Errorf("-workers: must be from 1 to %d", mostWorkers)
	case o.machine.Cores < 0 || o.machine.Cores > mostWorkers:
		return fmt.Errorf("-cores: must be from 0 to %d", mostWorkers)
	case o.machine.Speed < .01 || o.machine.Speed > 100:
		return errors.New("-speed: must be from 0.01 to 100")
	case o.find && len(o.limits) > 0:
		return errors.New("-find-limit looks for a limit, and -limit names one: leave one of them out")
	case o.keys < 0:
		return errors.New("-keys: must not be negative")
	}
	c := guard.Default()
	c.Budget.Limit.Bytes, c.Fairness.By = unit.GiB, o.by
	if err := c.Validate(); err != nil {
		return fmt.Errorf("-by: %w", err)
	}
	return nil
}

func replayLoad(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	o, err := parseReplay(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.run(ctx, stdin, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "highwater replay:", err)
		return 1
	}
	return 0
}

// replayed is what -json prints.
type replayed struct {
	Load     string           `json:"load"`
	Requests int64            `json:"requests"`
	Span     unit.Duration    `json:"span"`
	First    *time.Time       `json:"first,omitempty"`
	Skipped  []recording.Note `json:"skipped"`
	Results  []*replay.Result `json:"results"`
	Found    []foundLimit     `json:"found,omitempty"`
}

type foundLimit struct {
	Name string `json:"name"`
	*replay.Found
}

func (o *replayFlags) run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) (err error) {
	show := newProgress(stderr)
	variants, err := o.variants(stdin, stderr)
	if err != nil {
		return err
	}
	options := replay.Options{Machine: o.machine, Back: o.back, Headers: replay.Headers(variants)}
	if o.wasm != "" {
		show.say("compiling %s", o.wasm)
		text, err := input.Read(o.wasm, 64*unit.MiB)
		if err != nil {
			return err
		}
		if options.Module, err = wasmhost.Compile(ctx, text); err != nil {
			return fmt.Errorf("%s: %w", o.wasm, err)
		}
		defer func() { err = errors.Join(err, options.Module.Close(context.Background())) }()
	}
	load, err := o.read(ctx, stdin, options.Headers, show)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, load.Close()) }()
	out := replayed{Load: load.Name, Requests: load.Requests, Span: unit.Duration(load.Span), Skipped: append([]recording.Note{}, load.Skipped...)}
	if !load.First.IsZero() {
		out.First = &load.First
	}
	for _, v := range variants {
		res, err := replay.Run(ctx, load, v, options, func(share float64) { show.now("%s: %.0f %%", v.Name, 100*share) })
		if err != nil {
			return err
		}
		out.Results = append(out.Results, res)
		if !o.find || v.Config == nil {
			continue
		}
		found, err := o.findLimit(ctx, load, v, options, out.Results[0].Peak, show)
		if err != nil {
			return err
		}
		out.Found = append(out.Found, foundLimit{v.Name, found})
		out.Results[len(out.Results)-1] = found.Result
	}
	show.end()
	return o.print(stdout, load, &out)
}

func (o *replayFlags) findLimit(ctx context.Context, load *recording.Recording, v replay.Variant, options replay.Options, peak unit.Bytes, show *progress) (*replay.Found, error) {
	found, err := replay.FindLimit(ctx, load, v, options, peak,
		func(limit unit.Bytes, share float64) { show.now("%s: limit %s: %.0f %%", v.Name, limit, 100*share) },
		func(t replay.Tried) {
			show.say("%s: limit %s: %s", v.Name, t.Limit, map[bool]string{true: "somebody is rejected, evicted or closed", false: "nobody is"}[t.Lost])
		})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", v.Name, err)
	}
	return found, nil
}

func (o *replayFlags) read(ctx context.Context, stdin io.Reader, headers []string, show *progress) (*recording.Recording, error) {
	in, name := stdin, "standard input"
	if o.load != "-" {
		f, err := os.Open(o.load)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in, name = f, o.load
	}
	load, err := recording.Read(ctx, in, name, recording.Options{
		Headers: headers, Progress: func(lines, requests int64) { show.now("reading %s: %d lines, %d requests", name, lines, requests) },
	})
	if err != nil {
		return nil, err
	}
	for _, note := range load.Skipped {
		show.say("%s: left out: %s", name, note)
	}
	if len(load.Unused) > 0 {
		show.say("%s: not used: the fields %s", name, strings.Join(load.Unused, ", "))
	}
	if load.Groups == nil {
		for what, has := range map[string]bool{
			"request_duration: how fast clients send is not known; all are taken to send at once":       load.Has.RequestTimes,
			"response_duration: how long upstreams think is not known; responses are taken to be quick": load.Has.ResponseTimes,
			"connection_id: each request is taken to have a connection of its own":                      load.Has.Connections,
			"request_length and response_length: no message is taken to announce its length":            load.Has.Lengths,
		} {
			if !has {
				show.say("%s: no line has %s", name, what)
			}
		}
	}
	return load, nil
}

// variants are no guard, and each configuration under each limit.
func (o *replayFlags) variants(stdin io.Reader, stderr io.Writer) ([]replay.Variant, error) {
	var guarded []replay.Variant
	for _, file := range o.configs {
		v, err := o.readConfig(file, stdin, stderr)
		if err != nil {
			return nil, err
		}
		guarded = append(guarded, v)
	}
	if len(o.configs) == 0 && (o.find || len(o.limits) > 0) {
		c := guard.Default()
		c.Budget.Limit.Bytes, c.Fairness.By = unit.GiB, o.by
		guarded = append(guarded, replay.Variant{Name: "defaults", Config: &c, Envoy: replay.Envoy{Buffers: c.Buffers}})
	}
	if len(o.limits) > 0 {
		guarded = underLimits(guarded, o.limits)
	}
	none := replay.Variant{Name: "no guard", Envoy: replay.Envoy{Buffers: guard.Default().Buffers}, By: o.by}
	if len(guarded) > 0 {
		none.Envoy, none.By = guarded[0].Envoy, guarded[0].Config.Fairness.By
	}
	for _, v := range guarded {
		if err := v.Config.Validate(); err != nil {
			return nil, fmt.Errorf("%s: %w", v.Name, err)
		}
	}
	return append([]replay.Variant{none}, guarded...), nil
}

func underLimits(variants []replay.Variant, limits []unit.Bytes) (all []replay.Variant) {
	for _, v := range variants {
		for _, limit := range limits {
			c := *v.Config
			c.Budget.Limit = unit.Limit{Bytes: limit}
			w := v
			w.Config = &c
			if w.Name = limit.String(); len(variants) > 1 {
				w.Name = v.Name + " " + w.Name
			}
			all = append(all, w)
		}
	}
	return all
}

// readConfig reads Highwater's configuration, or that of an Envoy with Highwater in it.
func (o *replayFlags) readConfig(file string, stdin io.Reader, stderr io.Writer) (v replay.Variant, err error) {
	name := file
	text, err := readArg(&name, stdin)
	if err != nil {
		return v, err
	}
	v.Name = filepath.Base(name)
	var c guard.Config
	if aboutEnvoy(text) {
		e, err := envoyfile.Read(text)
		if err != nil {
			return v, fmt.Errorf("%s: %w", name, err)
		}
		guards, err := envoyfile.Guards(e, envoyfile.Options{})
		if err != nil {
			return v, fmt.Errorf("%s: %w", name, err)
		}
		g := guards[0]
		if len(guards) > 1 {
			fmt.Fprintf(stderr, "%s: %d filter chains are guarded; the model has one, and that is %s\n", name, len(guards), g.At)
		}
		c, v.Envoy = g.Config, replay.Envoy{Buffers: g.Buffers, SendBuffer: g.SendBuffer}
	} else {
		if c, err = parseGuard(text); err != nil {
			return v, fmt.Errorf("%s is wrong:\n%w", name, err)
		}
		v.Envoy.Buffers = c.Buffers
	}
	if share := float64(c.Budget.Limit.Share); share > 0 && len(o.limits) == 0 && !o.find {
		if o.container == 0 {
			return v, fmt.Errorf("%s: budget.limit is a share of the container's limit: say by -container 300MiB what that is", name)
		}
		c.Budget.Limit = unit.Limit{Bytes: unit.Bytes(share * float64(o.container))}
	}
	c.Mode, c.Memory, c.Debug = config.Enforce, guard.Default().Memory, config.Debug{}
	v.Config = &c
	return v, nil
}

// parseGuard reads the policy's part of a configuration, of a plugin or of the server.
func parseGuard(text []byte) (guard.Config, error) {
	parts, err := parseAny(text)
	if err != nil {
		return guard.Config{}, err
	}
	return parts[0].(guard.Config), nil
}

func (o *replayFlags) print(stdout io.Writer, load *recording.Recording, out *replayed) error {
	caption := fmt.Sprintf("memory in use, MiB, as the model has it: %s", filepath.Base(load.Name))
	if o.svg != "" {
		if err := os.WriteFile(o.svg, replay.SVG(out.Results, caption), 0o644); err != nil {
			return err
		}
	}
	if o.asJSON {
		text, err := json.MarshalIndent(out, "", "  ")
		if err == nil {
			_, err = stdout.Write(append(text, '\n'))
		}
		return err
	}
	of := fmt.Sprintf("%d requests", load.Requests)
	if load.Groups != nil {
		of = fmt.Sprintf("%d groups of clients", len(load.Groups))
	}
	fmt.Fprintf(stdout, "%s: %s in %v\n\n", load.Name, of, load.Span.Round(time.Millisecond))
	replay.Text(stdout, out.Results, o.keys)
	replay.Charts(stdout, out.Results)
	for _, f := range out.Found {
		fmt.Fprintf(stdout, "\n%s: nobody is rejected from a limit of %s on\n", f.Name, f.Limit)
	}
	return nil
}

// progress tells how far something is, on a terminal in one line, else now and then.
type progress struct {
	w        io.Writer
	terminal bool
	told     time.Time
	open     bool // the line on the terminal
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, told: time.Now()}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// now tells it if it is time to.
func (p *progress) now(format string, args ...any) {
	every := 10 * time.Second
	if p.terminal {
		every = time.Second / 5
	}
	if time.Since(p.told) < every {
		return
	}
	p.told = time.Now()
	if !p.terminal {
		fmt.Fprintf(p.w, format+"\n", args...)
		return
	}
	fmt.Fprintf(p.w, "\r\x1b[K"+format, args...)
	p.open = true
}

// say tells it in any case.
func (p *progress) say(format string, args ...any) {
	p.end()
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *progress) end() {
	if p.open {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.open = false
	}
}
