package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/google/pprof/driver"
	"github.com/google/pprof/profile"

	"github.com/highwater-envoy/highwater/internal/input"
	"github.com/highwater-envoy/highwater/internal/peak"
	"github.com/highwater-envoy/highwater/internal/profiles"
	"github.com/highwater-envoy/highwater/internal/reservoir"
	"github.com/highwater-envoy/highwater/internal/unit"
)

const pprofUsage = `highwater pprof [flags] SOURCE...

Which requests hold the memory of one Envoy, or of several together. A SOURCE is the debug.path of a listener, such as
http://127.0.0.1:10001/highwater, the URL of a profile below it, the http://127.0.0.1:9003/debug/pprof/highwater of
highwater serve, or a file that -o wrote. Prints a table, whose first line says of which peak it is, unless:

  -o FILE        write the profile, for go tool pprof
  -http ADDR     show it on pprof's own web page, at host:port (127.0.0.1: takes any port)
  -no_browser    with -http: don't open it

  -peak N        of peak N (highwater's /peaks has their numbers), "latest", "highest", or "current": as of now.
                 Default: what the URL says (?peak=N), else the highest
  -base SOURCE   subtract this one, such as http://127.0.0.1:10001/highwater/pprof?peak=1; may be repeated
  -n N           lines of each table (10)

Of each source 8MiB are read at most, as they come and unpacked, of all together 32MiB, in 30s each.
`

// What sources may cost: each may be anything, and says what it likes. One of profiles.MaxBytes has
// some 50,000 requests, where a worker keeps 512.
const (
	fetchTimeout = 30 * time.Second
	maxRedirects = 3
	maxProfiles  = 32 * unit.MiB // unpacked, of all together
)

func pprof(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("pprof", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprint(stderr, pprofUsage) }
	output := flags.String("o", "", "")
	web := flags.String("http", "", "")
	noBrowser := flags.Bool("no_browser", false, "")
	which := flags.String("peak", "", "")
	lines := flags.Int("n", 10, "")
	var bases []string
	flags.Func("base", "", func(source string) error {
		bases = append(bases, source)
		return nil
	})
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if flags.NArg() == 0 {
		fmt.Fprint(stderr, pprofUsage)
		return 2
	}
	fail := func(err error) int {
		fmt.Fprintln(stderr, "highwater pprof:", err)
		return 1
	}
	in := fetcher{left: maxProfiles}
	profiles, err := in.fetchAll(flags.Args(), *which)
	base, baseErr := in.fetchAll(bases, "")
	if err = errors.Join(err, baseErr); err != nil {
		return fail(err)
	}
	switch {
	case *output != "" || *web != "":
		merged, err := difference(profiles, base)
		if err != nil {
			return fail(err)
		}
		if *output != "" {
			if err := write(*output, merged); err != nil {
				return fail(err)
			}
		}
		if *web != "" {
			if err := browse(*web, *noBrowser, merged); err != nil {
				return fail(err)
			}
		}
	default:
		printTables(stdout, profiles, base, *lines)
	}
	return 0
}

// fetcher reads profiles from sources.
type fetcher struct {
	left unit.Bytes // of maxProfiles
}

// fetchAll returns the profile of each source, or what is wrong with each that has none.
func (f *fetcher) fetchAll(sources []string, which string) ([]*profile.Profile, error) {
	var all []*profile.Profile
	var errs []error
	for _, source := range sources {
		p, err := f.fetch(source, which)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", source, err))
			continue
		}
		all = append(all, p)
	}
	return all, errors.Join(errs...)
}

func (f *fetcher) fetch(source, which string) (*profile.Profile, error) {
	if f.left <= 0 {
		return nil, fmt.Errorf("the sources before are %v together, and no more is read: ask for fewer at once", maxProfiles)
	}
	data, err := read(context.Background(), source, which)
	if err != nil {
		return nil, err
	}
	if data, err = profiles.Unpack(data); err != nil {
		return nil, err
	}
	f.left -= unit.Bytes(len(data))
	p, err := profiles.Parse(data)
	if err != nil {
		return nil, err
	}
	if len(p.SampleType) != 2 || p.SampleType[0].Type != "requests" || p.SampleType[1].Type != "held" {
		return nil, errors.New("a profile, but not one of requests that hold memory")
	}
	return p, nil
}

// read is what a source says, whatever that is.
func read(ctx context.Context, source, which string) ([]byte, error) {
	if !strings.HasPrefix(source, "http://") && !strings.HasPrefix(source, "https://") {
		if which != "" {
			return nil, errors.New("-peak is for URLs: a file is of one peak")
		}
		return input.Read(source, profiles.MaxBytes)
	}
	u, err := url.Parse(source)
	if err != nil {
		return nil, err
	}
	if path.Base(u.Path) != "pprof" && !strings.HasSuffix(u.Path, "/debug/pprof/highwater") {
		u.Path = strings.TrimSuffix(u.Path, "/") + "/pprof"
	}
	query := u.Query()
	switch {
	case which != "":
		query.Set("peak", which)
	case !query.Has("peak"):
		query.Set("peak", "highest") // unasked it would be as of now, for those that ask again and again
	}
	u.RawQuery = query.Encode()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{CheckRedirect: func(_ *http.Request, via []*http.Request) error {
		if len(via) > maxRedirects {
			return fmt.Errorf("it redirects more than %d times", maxRedirects)
		}
		return nil
	}}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10))
		return nil, fmt.Errorf("%s: %s", res.Status, peak.Clean(strings.TrimSpace(string(text))))
	}
	return input.ReadFrom(res.Body, "the answer", profiles.MaxBytes)
}

// difference is the sum of the profiles less that of the base.
func difference(profiles, base []*profile.Profile) (*profile.Profile, error) {
	all := slices.Clone(profiles)
	for _, p := range base {
		negative := p.Copy()
		negative.Scale(-1)
		all = append(all, negative)
	}
	return profile.Merge(all)
}

func write(file string, p *profile.Profile) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(p.Write(f), f.Close())
}

// browse shows the profile on pprof's web page, until it is interrupted.
func browse(addr string, noBrowser bool, p *profile.Profile) error {
	dir, err := os.MkdirTemp("", "highwater-pprof-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	file := filepath.Join(dir, "requests.pb.gz")
	if err := write(file, p); err != nil {
		return err
	}
	args := []string{"-http=" + addr, "-symbolize=none"} //nolint:misspell // its name
	if noBrowser {
		args = append(args, "-no_browser")
	}
	return driver.PProf(&driver.Options{Flagset: &driverFlags{flag.NewFlagSet("pprof", flag.ContinueOnError), append(args, file)}})
}

// driverFlags are the driver's flags, with arguments of ours.
type driverFlags struct {
	*flag.FlagSet
	args []string
}

// StringList implements driver.FlagSet.
func (f *driverFlags) StringList(name, value, usage string) *[]*string {
	return &[]*string{f.String(name, value, usage)}
}

// ExtraUsage implements driver.FlagSet.
func (f *driverFlags) ExtraUsage() string { return "" }

// AddExtraUsage implements driver.FlagSet.
func (f *driverFlags) AddExtraUsage(string) {}

// Parse implements driver.FlagSet.
func (f *driverFlags) Parse(func()) []string {
	_ = f.FlagSet.Parse(f.args) // they are ours
	return f.Args()
}

// row is a line of a table.
type row struct {
	name     string
	held     float64
	variance float64
	requests int64
	oldest   time.Duration
}

// tables are the rows by what they are told apart by, and the sum.
type tables struct {
	routes, keys, phases map[string]*row
	all                  row
}

func (t *tables) add(p *profile.Profile, sign int64) {
	for _, s := range p.Sample {
		held, requests := float64(sign*s.Value[1]), sign*s.Value[0]
		// The same as reservoir.Estimate.Add: v² w (w − 1) of what one holds, and held is v w.
		variance := 0.
		if w := s.NumLabel[peak.LabelWeight]; len(w) == 1 && w[0] > 1000 {
			variance = held * held * (1 - 1000/float64(w[0]))
		}
		var oldest time.Duration
		if age := s.NumLabel[peak.LabelAge]; len(age) == 1 {
			oldest = time.Duration(age[0]) * time.Millisecond
		}
		key := "(none)"
		if k := s.Label[peak.LabelKey]; len(k) == 1 {
			key = k[0]
		}
		for _, at := range [...]struct {
			rows map[string]*row
			name string
		}{{t.routes, frame(s, "route ", "no route")}, {t.keys, key}, {t.phases, phaseOf(s)}, {nil, ""}} {
			r := &t.all
			if at.rows != nil {
				if r = at.rows[at.name]; r == nil {
					r = &row{name: peak.Clean(at.name)}
					at.rows[at.name] = r
				}
			}
			r.held += held
			r.requests += requests
			r.variance += variance
			if sign > 0 {
				r.oldest = max(r.oldest, oldest)
			}
		}
	}
}

// frame is the name of the frame of a kind, without the kind.
func frame(s *profile.Sample, kind, none string) string {
	for _, l := range s.Location {
		for _, line := range l.Line {
			if name, ok := strings.CutPrefix(line.Function.Name, kind); ok {
				return name
			}
		}
	}
	return "(" + none + ")"
}

func phaseOf(s *profile.Sample) string {
	if len(s.Location) > 0 && len(s.Location[0].Line) > 0 {
		return s.Location[0].Line[0].Function.Name // the leaf
	}
	return "(none)"
}

func printTables(out io.Writer, profiles, base []*profile.Profile, lines int) {
	t := tables{routes: map[string]*row{}, keys: map[string]*row{}, phases: map[string]*row{}}
	for sign, list := range map[int64][]*profile.Profile{1: profiles, -1: base} {
		for _, p := range list {
			t.add(p, sign)
		}
	}
	tell := func(prefix string, list []*profile.Profile) {
		for _, p := range list {
			for _, comment := range p.Comments[:min(len(p.Comments), maxComments)] {
				fmt.Fprintf(out, "%s%s (%s)\n", prefix, cleanLine(comment), time.Unix(0, p.TimeNanos).UTC().Format(time.DateTime))
			}
		}
	}
	tell("", profiles)
	tell("less ", base)
	for _, table := range []struct {
		name string
		rows map[string]*row
	}{{"route", t.routes}, {"key", t.keys}, {"phase", t.phases}} {
		fmt.Fprintln(out)
		printTable(out, table.name, table.rows, &t.all, lines)
	}
}

// No more of a profile's comments is shown: there is one of 200 bytes for each Envoy.
const maxComments, maxComment = 100, 1 << 10

// cleanLine is a comment of a profile as it may be shown: it may come from anywhere.
func cleanLine(text string) string {
	text = text[:min(len(text), maxComment)]
	var b strings.Builder
	for len(text) > 0 {
		n := min(len(text), reservoir.MaxLabel)
		b.WriteString(peak.Clean(text[:n]))
		text = text[n:]
	}
	return b.String()
}

func printTable(out io.Writer, name string, rows map[string]*row, all *row, lines int) {
	list := make([]*row, 0, len(rows))
	for _, r := range rows {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b *row) int {
		if d := math.Abs(b.held) - math.Abs(a.held); d != 0 {
			return int(math.Copysign(1, d))
		}
		return strings.Compare(a.name, b.name)
	})
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', tabwriter.AlignRight|tabwriter.DiscardEmptyColumns)
	fmt.Fprintf(w, "likely held\t±\tshare\trequests\toldest\t  %s\n", name)
	for i, r := range append(list[:min(len(list), lines)], all) {
		label := r.name
		if i == min(len(list), lines) {
			label = "(all)"
		}
		share := "-"
		if all.held != 0 {
			share = fmt.Sprintf("%.1f%%", 100*r.held/all.held)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t  %s\n", unit.Bytes(r.held).Human(), unit.Bytes(1.6449*math.Sqrt(r.variance)).Human(), share, r.requests, r.oldest.Round(time.Millisecond), label)
	}
	_ = w.Flush()
}
