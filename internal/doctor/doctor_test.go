package doctor

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/allocator"
	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/heapdump"
	"github.com/highwater-envoy/highwater/internal/leak"
	"github.com/highwater-envoy/highwater/internal/memorymap"
)

var began = time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)

// healthy is an Envoy without load, bytes as 1.40 has them.
func healthy() Sample {
	return Sample{
		Time:  began,
		Envoy: Envoy{Version: "1.40.0", Workers: 2, PID: 7},
		Allocator: &allocator.Report{
			Kind: allocator.TCMalloc, Application: 7 * mib, FrontEnd: mib, Free: 2 * mib, HeapSize: 10 * mib, Large: 512 << 10,
			Caches:  allocator.Caches{PerCPU: true},
			Classes: []allocator.Class{{Size: 64, Live: 80_000}, {Size: 16384, Live: 85}},
		},
		Status: &memorymap.Status{Resident: 70 * mib, Anonymous: 12 * mib, File: 58 * mib},
		Gauges: &memorymap.Gauges{Clusters: 3, Listeners: 2, Active: map[string]int64{}},
	}
}

// with adds objects to the heap.
func (s Sample) with(size, n int64) Sample {
	a := *s.Allocator
	a.Classes = append([]allocator.Class(nil), a.Classes...)
	a.Application, a.HeapSize = a.Application+size*n, a.HeapSize+size*n
	if size > 256<<10 {
		a.Large += size * n
	} else {
		a.Classes = append(a.Classes, allocator.Class{Size: size, Live: n})
	}
	status := *s.Status
	status.Resident, status.Anonymous = status.Resident+size*n, status.Anonymous+size*n
	s.Allocator, s.Status = &a, &status
	return s
}

func (s Sample) counting(edit func(g *memorymap.Gauges)) Sample {
	g := *s.Gauges
	g.Active = map[string]int64{}
	edit(&g)
	s.Gauges = &g
	return s
}

func examine(s Sample) Report { return Examine(Input{Now: s}) }

func advice(t *testing.T, r Report, id string) Advice {
	t.Helper()
	for _, a := range r.Advice {
		if a.For == id {
			return a
		}
	}
	t.Fatalf("no advice for %s: %+v", id, r)
	return Advice{}
}

func TestHealthy(t *testing.T) {
	r := examine(healthy())
	require.Empty(t, r.Findings)
	require.Empty(t, r.Advice)
	require.Contains(t, r.Verdict, "Envoy's own program")
}

func TestRules(t *testing.T) {
	bodies := healthy().with(16384, 8000) // 125 MiB
	for _, c := range []struct {
		name, id, setting string
		value             string
		sample            Sample
		limit             int64
	}{
		{
			name: "limit", id: LimitBelowBase, setting: "memory limit", value: "320MiB", limit: 250 * mib,
			sample: healthy().with(64, 2_900_000).counting(func(g *memorymap.Gauges) { g.Clusters = 4000 }),
		},
		{
			name: "clusters", id: ManyClusters, setting: "clusters", limit: 1 << 30,
			sample: healthy().with(64, 2_900_000).counting(func(g *memorymap.Gauges) { g.Clusters = 4000 }),
		},
		{
			name: "windows", id: WideWindows, setting: "initial_stream_window_size", value: "65536",
			sample: bodies.counting(func(g *memorymap.Gauges) { g.Requests, g.Connections, g.PendingSend = 8, 1, 120*mib }),
		},
		{
			name: "buffers", id: WideBuffers, setting: "per_connection_buffer_limit_bytes", value: "65536",
			sample: bodies.counting(func(g *memorymap.Gauges) { g.Requests, g.Connections, g.DownstreamTx = 100, 100, 120*mib }),
		},
		{
			name: "retries", id: KeptForRetries, setting: "request_body_buffer_limit", value: "65536",
			sample: bodies.counting(func(g *memorymap.Gauges) { g.Requests, g.Connections, g.Retries = 30, 30, 4 }),
		},
		{
			name: "filters", id: KeptByFilters, setting: "max_request_bytes", value: "65536",
			sample: bodies.counting(func(g *memorymap.Gauges) { g.Requests, g.Connections = 30, 30 }),
		},
		{
			name: "compressors", id: UnexplainedLoad, setting: "memory_level",
			sample: healthy().with(400<<10, 100).counting(func(g *memorymap.Gauges) {
				g.Requests, g.Connections, g.Compressed = 100, 100, 5
				g.Active["http.a.downstream_rq_active"], g.Active["listener.x.downstream_cx_active"] = 100, 100
			}),
		},
	} {
		r := Examine(Input{Now: c.sample, Limit: c.limit})
		require.True(t, r.Has(c.id), "%s: %+v", c.name, r)
		a := advice(t, r, c.id)
		require.Contains(t, a.Setting, c.setting, c.name)
		require.NotEmpty(t, a.Brings, c.name)
		if c.value != "" {
			require.Equal(t, c.value, a.Value, c.name)
		}
		require.LessOrEqual(t, len(r.Advice), maxAdvice)
		for _, a := range r.Advice {
			require.GreaterOrEqual(t, a.Bytes, int64(0))
			require.NotEmpty(t, a.Value)
		}
	}
}

// The smaller name of what is the same fits: a request is told before its connection.
func TestUnexplainedGoesWithAGauge(t *testing.T) {
	now := healthy().with(467<<10, 100).counting(func(g *memorymap.Gauges) {
		g.Active["http.ingress.downstream_rq_active"], g.Active["listener.x.downstream_cx_active"] = 120, 120
		g.Active["cluster.idle.upstream_cx_active"] = 500
	})
	first := healthy().counting(func(g *memorymap.Gauges) {
		g.Active["http.ingress.downstream_rq_active"] = 20
		g.Active["cluster.idle.upstream_cx_active"] = 500
		g.Active["listener.x.downstream_cx_active"] = 20
	})
	r := Examine(Input{Now: now, First: &first})
	require.True(t, r.Has(UnexplainedLoad))
	require.Contains(t, r.Findings[0].Text, "memory grew with http.ingress.downstream_rq_active: 4")
	require.Contains(t, r.Findings[0].Text, "KiB each")
}

func TestThreadCaches(t *testing.T) {
	s := healthy()
	s.Allocator.Caches, s.Allocator.FrontEnd = allocator.Caches{PerCPU: true, PerThread: true, Threads: 6, MaxThread: 32 * mib}, 38*mib
	s.Allocator.HeapSize += 37 * mib
	s.Status.Resident, s.Status.Anonymous = s.Status.Resident+37*mib, s.Status.Anonymous+37*mib
	a := advice(t, examine(s), ThreadCaches)
	require.Equal(t, "glibc.pthread.rseq=0", a.Value)
	require.InDelta(t, 21*mib, a.Bytes, float64(mib))
}

func TestFreePages(t *testing.T) {
	s := healthy()
	s.Allocator.Free, s.Allocator.HeapSize = 170*mib, s.Allocator.HeapSize+168*mib
	s.Status.Resident, s.Status.Anonymous = s.Status.Resident+168*mib, s.Status.Anonymous+168*mib
	a := advice(t, examine(s), WaitingPages)
	require.Contains(t, a.Setting, "soft_memory_limit_bytes")
	require.Greater(t, a.Bytes, 140*mib)
	s.Container = &cgroup.Stats{Limit: 512 * mib, WorkingSet: 180 * mib}
	require.Equal(t, "268435456", advice(t, examine(s), WaitingPages).Value, "half of the container's limit")
}

func TestWasmGrows(t *testing.T) {
	machine := func(bytes int64) []memorymap.Mapping {
		return []memorymap.Mapping{
			{Start: 0x1000, End: 0x2000, Perm: "r-xp", Path: "/usr/bin/envoy", Resident: 4096},
			{Start: 0x7f0000010000, End: 0x7f0000010000 + uint64(bytes), Perm: "rw-p", Resident: bytes, Anonymous: bytes},
			{Start: 0x7f0000010000 + uint64(bytes), End: 0x7f0300000000, Perm: "---p"},
		}
	}
	first, now := healthy(), healthy()
	first.Mappings, now.Mappings, now.Time = machine(8*mib), machine(60*mib), began.Add(time.Minute)
	r := Examine(Input{Now: now, First: &first})
	require.Equal(t, 52*mib, advice(t, r, WasmGrows).Bytes)
	require.Contains(t, r.Verdict, "A Wasm machine grows.")
	now.Time = began.Add(20 * time.Hour)
	slow := Examine(Input{Now: now, First: &first})
	require.False(t, slow.Has(WasmGrows), "less than 2 MiB a minute")
	first.Mappings, now.Mappings, now.Time = machine(50*mib), machine(55*mib), began.Add(time.Minute)
	young := Examine(Input{Now: now, First: &first})
	require.False(t, young.Has(WasmGrows), "a tenth of what they held: they have only just begun")
}

func TestBudgetAndSockets(t *testing.T) {
	s := healthy().with(64, 2_900_000).counting(func(g *memorymap.Gauges) { g.Clusters, g.GuardLimit = 4000, 200*mib })
	require.Equal(t, "384MiB", advice(t, examine(s), BudgetBelowBase).Value)
	n := 200 * mib
	s = healthy()
	s.Sockets = &n
	require.Contains(t, advice(t, examine(s), KernelSockets).Setting, "SO_SNDBUF")
}

// Growth and leaks are told in package leak's own words, and where there are none that is said too.
func TestGrowth(t *testing.T) {
	shown := func(in Input) (Report, string, string) {
		r := Examine(in)
		var text, page strings.Builder
		r.WriteText(&text)
		require.NoError(t, (&Page{Report: &r}).WriteHTML(&page))
		return r, text.String(), page.String()
	}
	now := healthy()
	now.Allocator.Counted = true
	g := &Growth{Over: 5 * time.Minute, Growing: leak.Growth{Samples: 30, PerMinute: 2.1 * float64(mib), Size: 896, Objects: 2450, Requests: 2400}}
	const words = "2.1 MiB a minute: 896-byte objects, about one a request"
	r, text, page := shown(Input{Now: now, Growth: g})
	require.True(t, r.Has(Grows))
	require.False(t, r.Has(Leaks))
	require.Equal(t, "Memory grows, and load does not explain it: "+words+".", r.Findings[0].Text)
	require.Contains(t, text, "Growth, watched for 5m0s\n  "+words)
	require.Contains(t, page, words)

	g = &Growth{Over: time.Hour, Growing: leak.Growth{Samples: 30}, Leak: leak.Leak{PerMinute: float64(mib), Window: time.Hour}}
	r, text, page = shown(Input{Now: now, Growth: g})
	require.True(t, r.Has(Leaks))
	require.False(t, r.Has(Grows))
	for _, shown := range []string{text, page} {
		require.Contains(t, shown, "none that load does not explain")
		require.Contains(t, shown, "Envoy leaks memory: 1 MiB a minute over the last 1h.")
	}
	_, text, _ = shown(Input{Now: now, Growth: &Growth{Over: 20 * time.Second}})
	require.Contains(t, text, "not known yet: samples are too few")
	r, _, _ = shown(Input{Now: healthy(), Growth: &Growth{}})
	require.Contains(t, strings.Join(r.Missing, "\n"), "does not tell its size classes")
}

// What heap dumps have is in the report, in each of its forms, and whoever named a class does no
// harm.
func TestHeaps(t *testing.T) {
	heaps := []heapdump.Summary{{
		Bytes: 10 * mib, Named: 9 * mib, Exact: true, Notes: []string{"a note"},
		Classes: []heapdump.Class{{Name: "Envoy::Buffer", Via: []string{"<script>x"}, Bytes: 9 * mib, Objects: 7, Samples: 4}},
	}, {Peak: true, Bytes: 20 * mib}}
	r := Examine(Input{Now: healthy(), Heaps: heaps, More: []string{"highwater pprof dir/requests-current.pb.gz"}})
	var text, page strings.Builder
	r.WriteText(&text)
	require.NoError(t, (&Page{Report: &r}).WriteHTML(&page))
	for _, shown := range []string{text.String(), page.String()} {
		for _, want := range []string{"Who holds the heap", "heap at its peak", "Envoy::Buffer", "9.0MiB", "a note", "highwater pprof dir/requests-current.pb.gz"} {
			require.Contains(t, shown, want)
		}
	}
	require.NotContains(t, page.String(), "<script")
	out, err := json.Marshal(r)
	require.NoError(t, err)
	require.Contains(t, string(out), `"name":"Envoy::Buffer"`)
}

// Whatever is missing, there is a report.
func TestPartialReports(t *testing.T) {
	for name, edit := range map[string]func(s *Sample){
		"no allocator": func(s *Sample) { s.Allocator = nil },
		"no gauges":    func(s *Sample) { s.Gauges = nil },
		"no status":    func(s *Sample) { s.Status = nil },
		"nothing":      func(s *Sample) { *s = Sample{} },
		"totals alone": func(s *Sample) {
			s.Totals, s.Allocator = &allocator.Report{Kind: allocator.Memory, Application: mib, HeapSize: mib}, nil
		},
	} {
		s := healthy()
		edit(&s)
		r := examine(s)
		require.NotEmpty(t, r.Missing, name)
		require.NotEmpty(t, r.Verdict, name)
		var text, page bytes.Buffer
		r.WriteText(&text)
		require.Contains(t, text.String(), "Not known", name)
		require.NoError(t, (&Page{Report: &r}).WriteHTML(&page), name)
		_, err := json.Marshal(r)
		require.NoError(t, err, name)
	}
}

// Names come from others: a terminal and a browser obey none of them.
func TestNamesAreHarmless(t *testing.T) {
	evil := "\x1b[31m<script>alert(1)</script>\u202e.downstream_rq_active"
	s := healthy().with(467<<10, 100).counting(func(g *memorymap.Gauges) { g.Active[evil] = 100 })
	s.Missing, s.Envoy.Version = []string{evil}, evil
	r := Examine(Input{Now: s, Keys: []Key{{Name: evil}}})
	var text, page bytes.Buffer
	r.WriteText(&text)
	require.NotContains(t, text.String(), "\x1b")
	require.NotContains(t, text.String(), "\u202e")
	require.NoError(t, (&Page{Report: &r}).WriteHTML(&page))
	require.NotContains(t, page.String(), "<script")
	require.NotContains(t, page.String(), "\x1b")
}

func TestTextIsNarrow(t *testing.T) {
	r := Examine(Input{Now: healthy().with(64, 2_900_000).counting(func(g *memorymap.Gauges) { g.Clusters = 4000 }), Limit: 250 * mib})
	var text bytes.Buffer
	r.WriteText(&text)
	for line := range strings.Lines(text.String()) {
		require.LessOrEqual(t, len([]rune(strings.TrimRight(line, "\n"))), textWidth+10, line)
	}
	require.Contains(t, text.String(), "What to change")
}

func TestSeries(t *testing.T) {
	var s Series
	high := int64(0)
	for i := range 5 * maxPoints {
		sample := healthy()
		if i == 1234 {
			sample = sample.with(16384, 20_000)
		}
		r := examine(sample)
		r.Time = began.Add(time.Duration(i) * 10 * time.Second)
		high = max(high, r.Map.Resident)
		s.Add(&r)
	}
	points := s.Points()
	require.LessOrEqual(t, len(points), maxPoints)
	require.Greater(t, len(points), maxPoints/4)
	top := int64(0)
	for i := range points {
		top = max(top, points[i].Resident())
		if i > 0 {
			require.True(t, points[i].At.After(points[i-1].At))
		}
	}
	require.Equal(t, high, top, "a peak is never thinned out")
	require.Equal(t, began, points[0].At)
	require.Less(t, began.Add(5*maxPoints*10*time.Second).Sub(points[len(points)-1].At), 2*time.Minute)
}

func TestPage(t *testing.T) {
	r := Examine(Input{Now: healthy(), Limit: 100 * mib, Keys: []Key{{Name: "route-a", Likely: mib}}})
	var s Series
	for i := range 10 {
		at := r
		at.Time = began.Add(time.Duration(i) * time.Second)
		s.Add(&at)
	}
	var out strings.Builder
	page := Page{Report: &r, History: s.Points(), Refresh: 10 * time.Second, Peaks: []Peak{
		{At: began.Add(5 * time.Second), Label: "peak 3", URL: "debug/pprof/highwater?peak=3"}, {At: began.Add(time.Hour), Label: "peak 9"},
	}}
	require.NoError(t, page.WriteHTML(&out))
	text := out.String()
	for _, want := range []string{"Over time", "<path class=\"f0\"", "peak 3", "debug/pprof/highwater?peak=3", "limit 100.0MiB", "route-a", "prefers-color-scheme", "highest 70.0MiB", `content="10"`} {
		require.Contains(t, text, want)
	}
	require.NotContains(t, text, "peak 9", "it is not on the chart")
	require.NotContains(t, text, "<script")
	require.NotContains(t, text, "://")
}
