package peak

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/reservoir"
)

const mib = 1 << 20

var clock = Clock{Monotonic: 2 * time.Hour, Wall: 1_700_000_000_000_000_000}

// example is a peak of two workers: large uploads of one route, all in the sample, and small
// downloads of another, each of which stands for several.
func example() reservoir.Peak {
	labels := func(route, key string) *reservoir.Labels {
		return &reservoir.Labels{VirtualHost: "all", Route: route, Cluster: "upstream", Key: key, Method: "PUT", Source: "10.0.0.1", Protocol: "HTTP/1.1"}
	}
	p := reservoir.Peak{Number: 3, Highest: true}
	for worker := range 2 {
		s := reservoir.Snapshot{
			Worker: uint32(worker + 1), Episode: 3, Epoch: 7, At: time.Hour + time.Duration(worker)*10*time.Millisecond, Level: 2, Limit: 200 * mib, InUse: 120 * mib, Allocated: 110 * mib, Base: 20 * mib, Gap: mib,
			Totals: reservoir.Totals{Streams: 500, Connections: 500, Likely: 25 * mib, Bound: 40 * mib, Phases: [reservoir.NumPhases]int64{0, 10 * mib, 0, 15 * mib}, PhaseBounds: [reservoir.NumPhases]int64{0, 16 * mib, 0, 24 * mib}},
		}
		for i := range 2 {
			s.Samples = append(s.Samples, reservoir.Sample{
				Labels: labels("upload", "a"), Phase: reservoir.Uploading, Age: time.Duration(i+1) * time.Second, Request: 8 * mib, Likely: 5 * mib, Reach: 100 * mib, Rank: 2 * mib,
			})
		}
		for range 30 {
			s.Samples = append(s.Samples, reservoir.Sample{Labels: labels("all", "b"), Phase: reservoir.Downloading, Response: mib / 16, Likely: mib / 32, Reach: mib / 16, Rank: 2 * mib})
		}
		p.Snapshots = append(p.Snapshots, s)
	}
	return p
}

func TestView(t *testing.T) {
	v := ViewOf(example(), clock, 10)
	require.EqualValues(t, 3, v.Peak)
	require.Equal(t, "hard", v.Level)
	require.EqualValues(t, 1_700_000_000_000-3_600_000, v.AtMS)
	require.EqualValues(t, 3_600_000, v.AgeMS)
	require.EqualValues(t, 10, v.SkewMS)
	require.Equal(t, []int64{0, 10}, []int64{v.Workers[0].AfterMS, v.Workers[1].AfterMS})
	// Side by side: 100 MiB are above the base. 50 are likely held, 80 could be: what is measured
	// beyond is nobody's.
	require.Equal(t, []int64{120 * mib, 110 * mib, 20 * mib, 80 * mib, 80 * mib, 20 * mib, 50 * mib}, []int64{v.InUse, v.Allocated, v.Base, v.Held, v.Bounds, v.Unexplained, v.Likely})
	require.EqualValues(t, 1000, v.Streams)
	require.Equal(t, 64, v.Samples)
	require.EqualValues(t, 32*mib, v.Phases.Uploading)

	require.Len(t, v.Stacks, 2)
	uploads := v.Stacks[1]
	require.Equal(t, []string{"all", "upload", "upstream", "uploading"}, []string{uploads.VirtualHost, uploads.Route, uploads.Cluster, uploads.Phase})
	require.InEpsilon(t, 32*mib, uploads.Held, 1e-6)
	require.InDelta(t, 4, uploads.Requests, 0)
	require.Zero(t, uploads.Error, "all of them are in the sample for certain")
	require.EqualValues(t, 2000, uploads.OldestMS)
	small := v.Stacks[0]
	w := reservoir.Weight(mib/16, mib)
	require.InDelta(t, 60*w, small.Requests, .06)
	require.InEpsilon(t, 60*w*mib/16, small.Held, 1e-6)
	require.InEpsilon(t, 1.6449*mib/16*7.746*16, small.Error, .05)
	require.Equal(t, []string{"b", "a"}, []string{*v.Keys[0].Key, *v.Keys[1].Key})

	require.Len(t, ViewOf(example(), clock, 1).Stacks, 1)
	empty := ViewOf(reservoir.Peak{}, clock, 10)
	require.Zero(t, empty.Held)
	text, err := json.Marshal(empty)
	require.NoError(t, err)
	require.Contains(t, string(text), `"stacks":[]`)
}

func TestScale(t *testing.T) {
	for _, c := range []struct{ measured, likely, bounds, want float64 }{
		{100, 200, 400, 100}, // less than likely was measured
		{200, 100, 400, 200}, // more was, and they could hold it
		{200, 100, 150, 150}, // more than they could
		{100, 100, 100, 100},
		{-10, 100, 150, 0},
		{200, 0, 150, 150},
		{200, 0, 0, 0},
	} {
		s := scaleTo(c.measured, c.likely, c.bounds)
		// Of two streams, one of which certainly holds all of its bound: it is never told to hold
		// more.
		certain := int64(c.likely / 2)
		a, b := s.of(certain, certain), s.of(int64(c.likely)-certain, int64(c.bounds)-certain)
		require.InDelta(t, c.want, a+b, 1e-9, "%+v", c)
		require.LessOrEqual(t, a, float64(certain))
	}
}

func parsed(t *testing.T, p reservoir.Peak) *profile.Profile {
	t.Helper()
	prof, err := profile.ParseData(Profile(p, clock))
	require.NoError(t, err)
	scrapable(t, prof)
	return prof
}

// scrapable is what those ask for who scrape profiles each few seconds and keep them (Parca's
// normalizer, of them, is strict): a kind, made of the types of what is counted and of what is
// sampled; no duration, for it is of a moment; ids without gaps.
func scrapable(t *testing.T, p *profile.Profile) {
	t.Helper()
	require.NoError(t, p.CheckValid())
	require.Equal(t, &profile.ValueType{Type: "space", Unit: "bytes"}, p.PeriodType)
	require.Equal(t, []*profile.ValueType{{Type: "requests", Unit: "count"}, {Type: "held", Unit: "bytes"}}, p.SampleType)
	require.Zero(t, p.DurationNanos)
	require.Positive(t, p.TimeNanos)
	for i, m := range p.Mapping {
		require.EqualValues(t, i+1, m.ID)
	}
	for i, f := range p.Function {
		require.EqualValues(t, i+1, f.ID)
	}
	for i, l := range p.Location {
		require.EqualValues(t, i+1, l.ID)
	}
}

func TestProfile(t *testing.T) {
	prof := parsed(t, example())
	require.Equal(t, "held", prof.DefaultSampleType)
	require.Equal(t, 1_700_000_000_000_000_000-int64(time.Hour), prof.TimeNanos)
	require.EqualValues(t, mib, prof.Period)
	require.Equal(t, []string{"peak 3, the highest: in use 120.0MiB of 200.0MiB, base 20.0MiB, likely held by requests 80.0MiB (at most 80.0MiB), no request explains 20.0MiB"}, prof.Comments)
	held, requests := map[string]int64{}, map[string]int64{}
	for _, s := range prof.Sample {
		var names []string
		for _, l := range s.Location {
			names = append([]string{l.Line[0].Function.Name}, names...)
		}
		name := strings.Join(names, ";")
		requests[name] += s.Value[0]
		held[name] += s.Value[1]
		require.Equal(t, []string{"PUT"}, s.Label[LabelMethod])
		require.Equal(t, []string{"10.0.0.1"}, s.Label[LabelSource])
		require.Equal(t, []string{"HTTP/1.1"}, s.Label[LabelProtocol])
		require.Len(t, s.Label, 4, "no label but the documented ones")
		for name := range s.NumLabel {
			require.Contains(t, []string{LabelAge, LabelWeight}, name)
		}
	}
	const uploads, small = "virtual host all;route upload;cluster upstream;uploading", "virtual host all;route all;cluster upstream;downloading"
	require.Len(t, held, 2)
	require.EqualValues(t, 4, requests[uploads])
	require.InDelta(t, 60*reservoir.Weight(mib/16, mib), requests[small], 1, "what is rounded of one is made good by the next")
	v := ViewOf(example(), clock, 10)
	require.InDelta(t, v.Stacks[1].Held, held[uploads], 10)
	require.InDelta(t, v.Stacks[0].Held, held[small], 100)
	require.Equal(t, []int64{1000}, prof.Sample[0].NumLabel[LabelAge])
	require.Equal(t, []string{UnitAge}, prof.Sample[0].NumUnit[LabelAge])
	require.Equal(t, []int64{1000}, prof.Sample[0].NumLabel[LabelWeight])

	// A peak keeps its time, though the clocks are read again, and one a little later than the
	// other.
	again := clock
	again.Monotonic += time.Minute
	again.Wall += int64(time.Minute) + 700
	kept, err := profile.ParseData(Profile(example(), again))
	require.NoError(t, err)
	require.Equal(t, prof.TimeNanos, kept.TimeNanos)
}

// As of now it has the time of now, whatever is in it: also before anything was frozen, and when a
// worker answers late.
func TestProfileOfNow(t *testing.T) {
	p := example()
	p.Number = 0
	p.Snapshots[1].Gap = 3 * mib
	prof := parsed(t, p)
	require.Equal(t, clock.Wall, prof.TimeNanos)
	require.EqualValues(t, 2*mib, prof.Period, "the mean of both workers")
	require.Len(t, prof.Sample, 64)
	later := clock
	later.Wall++
	next, err := profile.ParseData(Profile(p, later))
	require.NoError(t, err)
	require.Equal(t, prof.TimeNanos+1, next.TimeNanos)

	empty := parsed(t, reservoir.Peak{})
	require.Empty(t, empty.Sample)
	require.Equal(t, clock.Wall, empty.TimeNanos)
	require.Zero(t, empty.Period)
	p.Snapshots[0].Gap = math.Inf(1) // shared data may hold anything
	require.Positive(t, parsed(t, p).Period)
}

// Names that come from traffic are shown harmlessly everywhere.
func TestHostileNames(t *testing.T) {
	require.Equal(t, `plain "quoted" \ ü 日本`, Clean(`plain "quoted" \ ü 日本`))
	require.Equal(t, `\x1b[31mred\r\n`, Clean("\x1b[31mred\r\n"))
	require.Equal(t, `\xff\u202e"`, Clean("\xff\u202e\""))
	require.LessOrEqual(t, len(Clean(strings.Repeat("x", mib))), reservoir.MaxLabel)
	for _, name := range []string{"<script>alert(1)</script>", "\x1b]0;title\a", "a\x00b", strings.Repeat("ü", mib), "\xff\xfe", "route\nforged 100MB", `"}],"x":[{"`, "\u202egnirts"} {
		p := example()
		for i := range p.Snapshots {
			for j := range p.Snapshots[i].Samples {
				p.Snapshots[i].Samples[j].Labels = &reservoir.Labels{VirtualHost: name, Route: name, Cluster: name, Method: name, Key: name, Source: name, Protocol: name}
			}
		}
		source := Source{Clock: clock, Peaks: func() []reservoir.Peak { return []reservoir.Peak{p} }, Current: func() reservoir.Peak { return p }}
		for _, question := range []string{"peaks", "current"} {
			a := source.Ask("GET", question)
			require.Equal(t, 200, a.Status)
			require.True(t, json.Valid(a.Body), "%s", a.Body)
			for _, bad := range []string{"<", ">", "\x1b", "\x00", "\a", "\xff", "\u202e"} {
				require.NotContains(t, strings.TrimSuffix(string(a.Body), "\n"), bad)
			}
			require.Less(t, len(a.Body), 64<<10)
		}
		prof := parsed(t, p)
		for _, f := range prof.Function {
			for _, r := range f.Name {
				require.True(t, strconv.IsPrint(r), "%q", f.Name)
			}
			require.Less(t, len(f.Name), 6*reservoir.MaxLabel)
		}
	}
}

func TestQuestions(t *testing.T) {
	for path, want := range map[string]string{
		"/high/status": "status", "/high/pprof?peak=3": "pprof?peak=3", "/high": "", "/high/": "", "/high?x": "", "/high/a/b": "a/b",
	} {
		got, below := Below("/high", path)
		require.True(t, below, path)
		require.Equal(t, want, got)
	}
	for _, path := range []string{"/", "/highwater", "/highwater/status", "/x/high/status", "", "*"} {
		_, below := Below("/high", path)
		require.False(t, below, path)
		_, below = Below("", path)
		require.False(t, below, "without a path nothing is answered")
	}
	for question, want := range map[string]bool{"current": true, "current?x": true, "pprof?peak=current": true, "pprof": true, "pprof?x=1&peak=": true, "pprof?peak=3": false, "pprof?peak=latest": false, "pprof?x&peak=highest": false, "peaks?peak=current": false, "": false} {
		require.Equal(t, want, WantsCurrent(question), question)
	}
}

func TestAnswers(t *testing.T) {
	peaks := []reservoir.Peak{example(), example(), example()}
	peaks[0].Number, peaks[0].Highest = 1, false
	peaks[2].Number, peaks[2].Highest = 4, false
	s := Source{
		Clock: clock, Level: "hard", Peaks: func() []reservoir.Peak { return peaks }, Current: func() reservoir.Peak { p := example(); p.Number = 0; return p },
		Figures:  func(add func(string, int64)) { add("in_use_bytes", 5); add("workers", 2) },
		Counters: func(add func(string, int64)) { add("a_total", 1); add("b_total.reason.c", 0) },
		About:    [][2]string{{"version", `(devel) "x"`}, {"mode", "observe"}},
	}
	ask := func(question string) string {
		t.Helper()
		a := s.Ask("GET", question)
		require.Equal(t, 200, a.Status, "%s", a.Body)
		return string(a.Body)
	}
	require.JSONEq(t, `{"version": "(devel) \"x\"", "mode": "observe", "level": "hard", "in_use_bytes": 5, "workers": 2, "counters": {"a_total": 1, "b_total.reason.c": 0}}`, ask("status"))
	var all struct{ Peaks []View }
	require.NoError(t, json.Unmarshal([]byte(ask("peaks")), &all))
	require.Len(t, all.Peaks, 3)
	require.Equal(t, ViewOf(peaks[1], clock, 10), all.Peaks[1])
	require.Contains(t, ask("current"), `"peak":0`)

	number := func(body string) string {
		p, err := profile.ParseData([]byte(body))
		require.NoError(t, err)
		name, _, _ := strings.Cut(p.Comments[0], ":")
		return name
	}
	require.Equal(t, "now", number(ask("pprof")), "what is scraped is as of now")
	require.Equal(t, "peak 3, the highest", number(ask("pprof?peak=highest")))
	require.Equal(t, "peak 4", number(ask("pprof?peak=latest")))
	require.Equal(t, "peak 1", number(ask("pprof?peak=1")))
	require.Equal(t, "now", number(ask("pprof?peak=current")))

	for _, question := range []string{"pprof?peak=2", "pprof?peak=-1", "pprof?peak=x", "pprof?peak=99999999999999999999"} {
		a := s.Ask("GET", question)
		require.Equal(t, 404, a.Status)
		require.Equal(t, "no such peak; there are 1, 3, 4, latest, highest and current\n", string(a.Body))
	}
	for _, question := range []string{"", "peak", "status/", "../status", "debug/pprof"} {
		require.Equal(t, 404, s.Ask("GET", question).Status, question)
	}
	for _, method := range []string{"POST", "HEAD", "DELETE", ""} {
		require.Equal(t, 405, s.Ask(method, "status").Status)
	}
	peaks = nil
	for _, which := range []string{"highest", "latest", "1"} {
		a := s.Ask("GET", "pprof?peak="+which)
		require.Equal(t, 404, a.Status)
		require.Contains(t, string(a.Body), "no peak yet")
	}
	require.Equal(t, "now", number(ask("pprof")), "before the first peak too")
	require.JSONEq(t, `{"peaks": []}`, ask("peaks"))
}

// Whatever is in shared data, the profile of it is one that pprof reads, and the JSON is JSON.
func FuzzProfile(f *testing.F) {
	for _, s := range example().Snapshots {
		f.Add(s.Append(nil), "upload")
		for _, most := range []int64{1 << 50, -1 << 50} { // all that a snapshot may tell
			s.Limit, s.InUse, s.Allocated, s.Base, s.At = most, most, most, -most, time.Duration(most<<10)
			s.Totals.Streams, s.Totals.Likely, s.Totals.Bound = most, most, -most
			for i := range s.Samples {
				x := &s.Samples[i]
				x.Age, x.Request, x.Response, x.Likely, x.Reach = 1<<60, 1<<50, 1<<50, 0, 1<<50
			}
			f.Add(s.Append(nil), "upload")
			s.Gap = 1 << 100
			f.Add(s.Append(nil), "upload")
		}
	}
	f.Fuzz(func(t *testing.T, value []byte, name string) {
		s, err := reservoir.Decode(value)
		if err != nil {
			return
		}
		if len(s.Samples) > 0 {
			s.Samples[0].Labels.Route = name
		}
		p := reservoir.Peak{Number: s.Episode, Snapshots: []reservoir.Snapshot{s}}
		prof, err := profile.ParseData(Profile(p, clock))
		if err != nil {
			t.Fatal(err)
		}
		if err := prof.CheckValid(); err != nil {
			t.Fatal(err)
		}
		source := Source{Clock: clock, Current: func() reservoir.Peak { return p }}
		if a := source.Ask("GET", "current"); a.Status != 200 || !json.Valid(a.Body) {
			t.Fatalf("%d: %s", a.Status, a.Body)
		}
	})
}

func ExampleClean() {
	fmt.Println(Clean("tenant\x1b[2J"))
	// Output: tenant\x1b[2J
}
