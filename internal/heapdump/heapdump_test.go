package heapdump

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/highwater-envoy/highwater/internal/rtti"
	"github.com/highwater-envoy/highwater/internal/rtti/rttitest"
)

// envoy is a small one. Of its functions, 0 is the C++ library's, and from 6 on they belong to no
// class.
var envoy = rttitest.Binary{
	BuildID:   []byte{0xab, 0xcd},
	Functions: 10,
	Classes: []rttitest.Class{
		{Name: "N5Envoy6BufferE", Virtual: []int{1}},
		{Name: "N5Envoy6StreamE", Virtual: []int{2, 3}},
		{Name: "N5Envoy5Event4LoopE", Virtual: []int{4}},
		{Name: "NSt3__16vectorE", Virtual: []int{5}},
	},
}

const (
	buffer, stream, again, loopFunction, standard = 1, 2, 3, 4, 5
	allocator, helper                             = 6, 7

	moved = 0x5555_0000_0000 // where the process has its code
)

// save writes a binary to a file.
func save(tb testing.TB, b rttitest.Binary) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "envoy")
	require.NoError(tb, os.WriteFile(path, b.Bytes(), 0o600))
	return path
}

// heldBy is a stack of a dump, its innermost function first; -1 is one of another library.
type heldBy struct {
	stack                []int
	size, objects, bytes int64
}

// dump is what Envoy would answer.
func dump(stacks ...heldBy) *profile.Profile {
	code := &profile.Mapping{ID: 1, Start: moved, Limit: moved + 1<<10, Offset: rttitest.CodeOffset, File: "/usr/local/bin/envoy", BuildID: "abcd"}
	libc := &profile.Mapping{ID: 2, Start: 2 * moved, Limit: 2*moved + 1<<20, File: "/lib/libc.so.6"}
	p := &profile.Profile{
		SampleType: []*profile.ValueType{{Type: "objects", Unit: "count"}, {Type: "space", Unit: "bytes"}, {Type: "resident_space", Unit: "bytes"}},
		PeriodType: &profile.ValueType{Type: "space", Unit: "bytes"},
		Mapping:    []*profile.Mapping{code, libc}, TimeNanos: 1_800_000_000_000_000_000,
	}
	locations := map[int]*profile.Location{}
	for i := -1; i < envoy.Functions; i++ {
		l := &profile.Location{ID: uint64(i + 2), Mapping: code, Address: moved + 16*uint64(max(i, 0)) + 7}
		if i < 0 {
			l.Mapping, l.Address = libc, 2*moved+5
		}
		locations[i] = l
		p.Location = append(p.Location, l)
	}
	for _, s := range stacks {
		sample := &profile.Sample{Value: []int64{s.objects, s.bytes, s.bytes}, NumLabel: map[string][]int64{labelBytes: {s.size}, "request": {1}}}
		for _, f := range s.stack {
			sample.Location = append(sample.Location, locations[f])
		}
		p.Sample = append(p.Sample, sample)
	}
	return p
}

func packed(tb testing.TB, p *profile.Profile) []byte {
	tb.Helper()
	var b bytes.Buffer
	require.NoError(tb, p.Write(&b))
	return b.Bytes()
}

// printed are the stacks of a profile, the innermost function first, with what they hold.
func printed(p *profile.Profile) map[string]int64 {
	all := map[string]int64{}
	for _, s := range p.Sample {
		var names []string
		for _, l := range s.Location {
			names = append(names, l.Line[0].Function.Name)
		}
		all[strings.Join(names, " < ")] += s.Value[1]
	}
	return all
}

var loaded = []heldBy{
	{[]int{allocator, standard, helper, buffer, helper, stream, again, loopFunction, -1}, 16384, 100, 1_638_400},
	{[]int{allocator, stream, loopFunction}, 64, 1000, 64_000},
	{[]int{allocator, stream, helper}, 64, 500, 32_000},
	{[]int{allocator, helper, -1}, 64, 10, 640},
	{[]int{allocator, loopFunction}, 64, 5, 320},
	{[]int{allocator}, 32, 1, 32},
}

// What has no class is folded into its caller that has one, and that one holds the memory.
func TestRead(t *testing.T) {
	cache := rtti.Cache{Dir: t.TempDir()}
	source := Source{Dump: packed(t, dump(loaded...)), Binary: save(t, envoy), Cache: cache}
	p, summary, err := Read(t.Context(), source)
	require.NoError(t, err)
	require.NoError(t, p.CheckValid())
	require.Equal(t, map[string]int64{
		"Envoy::Buffer#0 < Envoy::Stream#0 < Envoy::Stream#1 < Envoy::Event::Loop#0": 1_638_400,
		"Envoy::Stream#0 < Envoy::Event::Loop#0":                                     64_000,
		"Envoy::Stream#0":                                                            32_000,
		"libc.so.6 < (no class)":                                                     640,
		"Envoy::Event::Loop#0":                                                       320,
		"(no class)":                                                                 32,
	}, printed(p))
	require.Equal(t, []Class{
		{Name: "Envoy::Buffer", Via: []string{"Envoy::Stream"}, Bytes: 1_638_400, Objects: 100, Samples: 1},
		{Name: "Envoy::Stream", Bytes: 96_000, Objects: 1500, Samples: 1},
	}, summary.Classes)
	require.Equal(t, int64(1_735_392), summary.Bytes)
	require.Equal(t, int64(1_734_400), summary.Named)
	require.InDelta(t, 0.9994, summary.Share(), 0.0001)
	require.False(t, summary.Exact)
	require.Equal(t, "abcd", summary.BuildID)
	require.Equal(t, time.Unix(1_800_000_000, 0).UTC(), summary.At)
	require.Empty(t, summary.Notes)

	// With exact sizes: 64 bytes are half of it, and of 128 there is no sample.
	source.Sizes = func(context.Context) ([]Size, error) {
		return []Size{{32, 64}, {64, 48_480}, {128, 5120}, {16384, 1_638_400}, {0, 700}}, nil
	}
	p, summary, err = Read(t.Context(), source)
	require.NoError(t, err)
	require.True(t, summary.Cached)
	require.True(t, summary.Exact)
	require.Equal(t, int64(5820), summary.Unsampled)
	require.Equal(t, int64(1_638_400+48_480+64+5820), summary.Bytes)
	got := printed(p)
	require.Equal(t, int64(32_000), got["Envoy::Stream#0 < Envoy::Event::Loop#0"])
	require.Equal(t, int64(5120), got["objects of 128 bytes < (no sample)"])
	require.Equal(t, int64(700), got["objects larger than any size class < (no sample)"])
	var table strings.Builder
	require.NoError(t, summary.Write(&table, 1))
	text, last, _ := strings.Cut(table.String(), "\nclasses of ")
	require.Equal(t, `heap: 1.6MiB in use (exact), 99.6% of it with a class, 0.3% of sizes without a sample

    held  share  objects  samples  class
  1.6MiB  96.8%      100        1  Envoy::Buffer
                                     < Envoy::Stream
`, text)
	require.Regexp(t, `^6 of 10 functions of /.*, read from the cache in \d+m?s\n$`, last)
}

// With symbols each function has its name, and one without a class holds memory too.
func TestReadWithSymbols(t *testing.T) {
	full := envoy
	full.Symbols = map[int]string{
		buffer: "_ZN5Envoy6Buffer3addEi", stream: "_ZN5Envoy6Stream4readEv", allocator: "_ZN8tcmalloc17tcmalloc_internal3newEv", helper: "nghttp2_session_recv",
		loopFunction: "_ZN5Envoy5Event4Loop3runEv",
	}
	for name, source := range map[string]Source{
		"beside the binary":      {Binary: save(t, envoy), Symbols: save(t, full)},
		"in place of the binary": {Symbols: save(t, full)},
	} {
		source.Dump = packed(t, dump(loaded...))
		p, summary, err := Read(t.Context(), source)
		require.NoError(t, err, name)
		require.Equal(t, map[string]int64{
			"nghttp2_session_recv < Envoy::Buffer::add < nghttp2_session_recv < Envoy::Stream::read < Envoy::Stream#1 < Envoy::Event::Loop::run": 1_638_400,
			"Envoy::Stream::read < Envoy::Event::Loop::run": 64_000,
			"Envoy::Stream::read < nghttp2_session_recv":    32_000,
			"nghttp2_session_recv":                          640,
			"Envoy::Event::Loop::run":                       320,
			"(no class)":                                    32,
		}, printed(p), name)
		require.Equal(t, "nghttp2_session_recv", summary.Classes[0].Name)
		require.Equal(t, []string{"Envoy::Buffer", "Envoy::Stream"}, summary.Classes[0].Via)
	}
	_, _, err := Read(t.Context(), Source{Dump: packed(t, dump(loaded...)), Binary: save(t, envoy), Symbols: save(t, envoy)})
	require.ErrorContains(t, err, "the symbols: ")
	require.ErrorIs(t, err, rtti.ErrNoSymbols)
}

// Each answer of Envoy, and each binary, may be missing or wrong: one line says which, and what to
// do.
func TestReadFails(t *testing.T) {
	good := packed(t, dump(loaded...))
	binary := save(t, envoy)
	other := envoy
	other.BuildID = []byte{1, 2}
	larger, elsewhere := dump(loaded...), dump(loaded...)
	larger.Mapping[0].Limit = larger.Mapping[0].Start + 1<<20
	elsewhere.Mapping[0].File = "/no/such\x1b[2Jfile"
	answers := func(text []byte, err error) func(context.Context, string, int64) ([]byte, error) {
		return func(context.Context, string, int64) ([]byte, error) { return text, err }
	}
	for name, c := range map[string]struct {
		source Source
		want   string
	}{
		"nothing to read":     {Source{Binary: binary}, "there is nothing to read: name a heap dump, or Envoy's admin interface"},
		"no answer":           {Source{Get: answers(nil, errors.New("refused")), Binary: binary}, "no heap dump, which an Envoy with google's TCMalloc gives: refused"},
		"no peak":             {Source{Get: answers(nil, errors.New("404")), Peak: true}, "no heap dump, which an Envoy with google's TCMalloc gives from 1.39 on: 404"},
		"empty":               {Source{Dump: []byte{}, Binary: binary}, "the heap dump: "},
		"text":                {Source{Dump: []byte("not found"), Binary: binary}, "the heap dump: it is no profile: "},
		"cut":                 {Source{Dump: good[:len(good)/2], Binary: binary}, "the heap dump: it can't be unpacked: unexpected EOF"},
		"no such binary":      {Source{Dump: good, Binary: "/no/such/file"}, "the binary: open /no/such/file: no such file or directory"},
		"no binary":           {Source{Dump: good, Binary: "/proc/self/status"}, "the binary: /proc/self/status: not a 64-bit ELF binary of amd64 or arm64"},
		"a vanished process":  {Source{Dump: good, PID: 1 << 22}, "there is no process 4194304: "},
		"a process of Go's":   {Source{Dump: good, PID: os.Getpid()}, "it has no .eh_frame_hdr"},
		"of another build":    {Source{Dump: good, Binary: save(t, other)}, "the dump is of another build (abcd) than the binary (0102)"},
		"of another machine":  {Source{Dump: packed(t, larger), Binary: binary}, "the dump is of another binary: its code has 1048576 bytes from 0x100000 on"},
		"a binary not here":   {Source{Dump: packed(t, elsewhere)}, `name Envoy's process or its binary: open /no/such\x1b[2Jfile: no such file or directory`},
		"nobody finds Envoy":  {Source{Dump: packed(t, elsewhere), Find: func() (int, error) { return 0, errors.New("several") }}, "name Envoy's process or its binary: "},
		"Envoy found is gone": {Source{Dump: good, Find: func() (int, error) { return 1 << 22, nil }}, "there is no process 4194304"},
		"another profile":     {Source{Dump: packed(t, cpuProfile()), Binary: binary}, "the heap dump: it is a profile, but not one of a heap"},
	} {
		_, _, err := Read(t.Context(), c.source)
		require.ErrorContains(t, err, c.want, name)
		require.NotContains(t, err.Error(), "\n", name)
	}
}

func cpuProfile() *profile.Profile {
	p := dump(loaded...)
	p.SampleType = []*profile.ValueType{{Type: "samples"}, {Type: "cpu"}, {Type: "x"}}
	return p
}

// Where nobody can tell the exact sizes, there is a profile, and a note. They are asked for once
// the dump is there.
func TestReadWithoutSizes(t *testing.T) {
	binary := save(t, envoy)
	var asked []string
	get := func(_ context.Context, path string, most int64) ([]byte, error) {
		require.Positive(t, most)
		asked = append(asked, path)
		return packed(t, dump(loaded...)), nil
	}
	sizes := func(list []Size, err error) func(context.Context) ([]Size, error) {
		return func(context.Context) ([]Size, error) {
			asked = append(asked, "sizes")
			return list, err
		}
	}
	_, summary, err := Read(t.Context(), Source{Get: get, Sizes: sizes(nil, errors.New("403 Forbidden")), Binary: binary})
	require.NoError(t, err)
	require.Equal(t, []string{heapPath, "sizes"}, asked)
	require.False(t, summary.Exact)
	require.Equal(t, []string{"its weights are estimates of few samples, for the exact sizes are not known: 403 Forbidden"}, summary.Notes)
	asked = nil
	_, summary, err = Read(t.Context(), Source{Get: get, Binary: binary, Peak: true})
	require.NoError(t, err)
	require.Equal(t, []string{peakPath}, asked)
	require.True(t, summary.Peak)
	require.Empty(t, summary.Notes)
	_, summary, err = Read(t.Context(), Source{Get: get, Sizes: sizes(sizesAt(t, "burst"), nil), Binary: binary})
	require.NoError(t, err)
	require.True(t, summary.Exact)
}

// An admin interface that never answers is given up when the time is over.
func TestReadGivesUp(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	hangs := func(ctx context.Context, _ string, _ int64) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	_, _, err := Read(ctx, Source{Get: hangs})
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// A dump may say anything: it is refused, or read in little time and memory.
func TestDumpsOfAnySort(t *testing.T) {
	binary := save(t, envoy)
	edited := func(edit func(p *profile.Profile)) []byte {
		p := dump(loaded...)
		edit(p)
		return packed(t, p)
	}
	zeros := func(n int) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		for range n {
			_, _ = w.Write(make([]byte, 1<<20))
		}
		require.NoError(t, w.Close())
		return b.Bytes()
	}
	for name, c := range map[string]struct {
		data []byte
		want string // of the error; empty = there is none
	}{
		"ten MiB of garbage": {bytes.Repeat([]byte("garbage "), 10<<17), "it is no profile: "},
		"a bomb":             {zeros(9), "the profile, unpacked, is too large"},
		"a negative count":   {edited(func(p *profile.Profile) { p.Sample[0].Value[0] = -1 }), "a stack of -1 bytes or objects"},
		"a huge count":       {edited(func(p *profile.Profile) { p.Sample[0].Value[1] = math.MaxInt64 }), "a stack of 9223372036854775807 bytes"},
		"a circle of frames": {edited(func(p *profile.Profile) {
			p.Sample[0].Location = slices.Repeat(p.Sample[0].Location, 10_000)
		}), ""},
		"more frames than are read": {frames(5 << 20), "more than 500000 entries"},
		"huge sizes":                {edited(func(p *profile.Profile) { p.Sample[0].NumLabel[labelBytes] = []int64{math.MaxInt64} }), ""},
		"negative sizes":            {edited(func(p *profile.Profile) { p.Sample[0].NumLabel[labelBytes] = []int64{math.MinInt64} }), ""},
		"several sizes":             {edited(func(p *profile.Profile) { p.Sample[0].NumLabel[labelBytes] = []int64{16, 32} }), ""},
		"addresses at ends":         {edited(func(p *profile.Profile) { p.Location[0].Address, p.Location[1].Address = 0, math.MaxUint64 }), ""},
		"no code there":             {edited(func(p *profile.Profile) { p.Mapping[0].Offset = math.MaxUint64 - 5 }), "the dump is of another binary: "},
		"no mapping":                {edited(func(p *profile.Profile) { p.Location[3].Mapping = nil }), ""},
		"a date before us":          {edited(func(p *profile.Profile) { p.TimeNanos = math.MinInt64 }), ""},
		"no samples":                {edited(func(p *profile.Profile) { p.Sample = nil }), ""},
		"no mappings": {edited(func(p *profile.Profile) {
			p.Mapping = nil
			for _, l := range p.Location {
				l.Mapping = nil
			}
		}), "it does not say which binary it is of"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			began := time.Now()
			p, summary, err := Read(t.Context(), Source{Dump: c.data, Binary: binary, Sizes: exact(Size{64, 1000}, Size{16384, 16384}, Size{0, 5})})
			runtime.ReadMemStats(&after)
			require.Less(t, time.Since(began), 5*time.Second)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(256<<20))
			if c.want != "" {
				require.ErrorContains(t, err, c.want)
				require.NotContains(t, err.Error(), "\n")
				return
			}
			require.NoError(t, err)
			require.NoError(t, p.CheckValid())
			require.NoError(t, summary.Write(&bytes.Buffer{}, 100))
		})
	}
}

// frames is a profile with one sample of so many frames.
func frames(n int) []byte {
	stack := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), make([]byte, n))
	return protowire.AppendBytes(protowire.AppendTag(nil, 2, protowire.BytesType), stack)
}

// What is shown has no escape sequences of terminals, wherever they come from.
func TestShownIsClean(t *testing.T) {
	evil := "\x1b[2Jgone\nand a line"
	p := dump(loaded...)
	p.Mapping[1].File = "/lib/" + evil
	p.Mapping[0].File = "/bin/" + evil
	out, summary, err := Read(t.Context(), Source{
		Dump: packed(t, p), Binary: save(t, envoy), Find: func() (int, error) { return 0, errors.New(evil) },
		Cache: rtti.Cache{Dir: "/proc/none" + evil},
	})
	require.NoError(t, err)
	var text strings.Builder
	require.NoError(t, summary.Write(&text, 10))
	for _, f := range out.Function {
		text.WriteString(f.Name)
	}
	text.WriteString(out.Mapping[0].File)
	require.NotContains(t, text.String(), "\x1b")
	require.Contains(t, text.String(), `\x1b[2Jgone\nand a line`)
}

func FuzzRead(f *testing.F) {
	binary := save(f, envoy)
	f.Add(packed(f, dump(loaded...)))
	for _, name := range []string{"idle.heap.pb.gz", "burst.peak.pb.gz", "1.38-load.heap.pb.gz"} {
		r, err := gzip.NewReader(bytes.NewReader(file(f, name)))
		require.NoError(f, err)
		var raw bytes.Buffer
		_, err = raw.ReadFrom(r)
		require.NoError(f, err)
		f.Add(raw.Bytes())
	}
	cache := rtti.Cache{Dir: f.TempDir()}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, summary, err := Read(t.Context(), Source{Dump: data, Binary: binary, Cache: cache, Sizes: exact(Size{64, 1000}, Size{16384, 16384}, Size{0, 5})})
		if err != nil {
			return
		}
		if err := p.CheckValid(); err != nil {
			t.Fatal(err)
		}
		if err := p.Write(&bytes.Buffer{}); err != nil {
			t.Fatal(err)
		}
		if summary.Named > summary.Bytes || summary.Write(&bytes.Buffer{}, 10) != nil {
			t.Fatalf("%+v", summary)
		}
	})
}
