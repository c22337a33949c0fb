package main

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/highwater-envoy/highwater/internal/peak"
	"github.com/highwater-envoy/highwater/internal/reservoir"
)

const mib = 1 << 20

// envoy answers as the plugin does: peak 1 is of uploads of a, peak 2 of twice as much and of
// readers of b.
func envoy(t *testing.T) string {
	t.Helper()
	sample := func(route, key string, phase reservoir.Phase, likely, reach int64) reservoir.Sample {
		return reservoir.Sample{
			Labels: &reservoir.Labels{VirtualHost: "all", Route: route, Cluster: "c", Key: key, Protocol: "HTTP/2"}, Phase: phase,
			Age: 1500 * time.Millisecond, Request: reach, Likely: likely, Reach: reach, Rank: 2 * mib,
		}
	}
	made := func(number int64, samples ...reservoir.Sample) reservoir.Peak {
		s := reservoir.Snapshot{Worker: 1, Episode: number, Epoch: number, At: time.Minute, Limit: 200 * mib, InUse: 120 * mib, Base: 20 * mib, Gap: mib, Samples: samples}
		s.Totals = reservoir.Totals{Streams: 9, Likely: 100 * mib, Bound: 100 * mib}
		return reservoir.Peak{Number: number, Highest: number == 2, Snapshots: []reservoir.Snapshot{s}}
	}
	large := func(key string) reservoir.Sample { return sample("upload", key, reservoir.Uploading, 16*mib, 64*mib) }
	reader := sample("all", "\x1b[31mred", reservoir.Downloading, mib/8, mib/8)
	peaks := []reservoir.Peak{made(1, large("a")), made(2, large("a"), large("b"), reader, reader, reader, reader)}
	source := peak.Source{
		Clock: peak.Clock{Monotonic: time.Hour, Wall: 1_700_000_000e9},
		Peaks: func() []reservoir.Peak { return peaks }, Current: func() reservoir.Peak { p := peaks[0]; p.Number = 0; return p },
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		question, below := peak.Below("/highwater", r.URL.RequestURI())
		if r.URL.Path == "/debug/pprof/highwater" {
			question, below = "pprof?"+r.URL.RawQuery, true
		}
		if !below {
			http.NotFound(w, r)
			return
		}
		a := source.Ask(r.Method, question)
		w.WriteHeader(a.Status)
		_, _ = w.Write(a.Body)
	}))
	t.Cleanup(server.Close)
	return server.URL + "/highwater"
}

// rows are the lines of the tables by their names.
func rows(text string) map[string][]string {
	all := map[string][]string{}
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) == 6 {
			all[f[5]] = f
		}
	}
	return all
}

func TestPprofTables(t *testing.T) {
	url := envoy(t)
	var out, errs bytes.Buffer
	require.Equal(t, 0, run([]string{"pprof", url}, nil, &out, &errs), errs.String())
	text := out.String()
	require.True(t, strings.HasPrefix(text, "peak 2, the highest: in use 120.0MiB of 200.0MiB, base 20.0MiB, likely held by requests 100.0MiB (at most 100.0MiB), no request explains 0B (2023-11-14 21:14:20)\n"), text)
	fields := rows(text)
	require.Equal(t, []string{"32.0MiB", "0B", "88.3%", "2", "1.5s", "upload"}, fields["upload"])
	require.Equal(t, []string{"16.0MiB", "0B", "44.1%", "1", "1.5s", "a"}, fields["a"])
	require.Equal(t, "34", fields["downloading"][3], "four samples that stand for 8.5 requests each")
	require.Equal(t, []string{"4.3MiB", "3.3MiB"}, fields["downloading"][:2])
	require.Contains(t, fields, `\x1b[31mred`)
	require.NotContains(t, text, "\x1b")
	require.Equal(t, "36.3MiB", fields["(all)"][0])

	// Which one, by the flag or by the URL; of highwater serve too.
	for want, args := range map[string][]string{
		"now: in use": {"-peak", "current", url},
		"peak 1: in":  {url + "/pprof?peak=1"},
		"peak 2, the": {"-peak", "latest", strings.TrimSuffix(url, "/highwater") + "/debug/pprof/highwater"},
	} {
		out.Reset()
		require.Equal(t, 0, run(append([]string{"pprof"}, args...), nil, &out, &errs), errs.String())
		require.Equal(t, want, out.String()[:len(want)])
	}

	// Of two Envoys together.
	out.Reset()
	require.Equal(t, 0, run([]string{"pprof", "-peak", "1", url, envoy(t) + "/"}, nil, &out, &errs), errs.String())
	require.Equal(t, []string{"32.0MiB", "0B", "100.0%", "2", "1.5s", "upload"}, rows(out.String())["upload"])

	// And what the second peak has more than the first.
	out.Reset()
	require.Equal(t, 0, run([]string{"pprof", "-base", url + "/pprof?peak=1", "-n", "1", url}, nil, &out, &errs), errs.String())
	require.Contains(t, out.String(), "less peak 1: ")
	require.Equal(t, []string{"16.0MiB", "0B", "79.0%", "1", "1.5s", "upload"}, rows(out.String())["upload"])
	require.Equal(t, []string{"20.3MiB", "3.3MiB", "100.0%"}, rows(out.String())["(all)"][:3])
	require.NotContains(t, rows(out.String()), "all", "-n 1")
}

func TestPprofFile(t *testing.T) {
	url := envoy(t)
	file := filepath.Join(t.TempDir(), "out.pb.gz")
	var out, errs bytes.Buffer
	require.Equal(t, 0, run([]string{"pprof", "-o", file, "-base", url + "/pprof?peak=1", url + "/pprof?peak=2"}, nil, &out, &errs), errs.String())
	require.Empty(t, out.String())
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	p, err := profile.ParseData(data)
	require.NoError(t, err)
	var held int64
	for _, s := range p.Sample {
		held += s.Value[1]
	}
	require.InEpsilon(t, 20.26*mib, held, .01)
	// A file is a source too.
	require.Equal(t, 0, run([]string{"pprof", file}, nil, &out, &errs), errs.String())
	require.Contains(t, out.String(), "downloading")
}

func TestPprofRefuses(t *testing.T) {
	url := envoy(t)
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	require.NoError(t, os.WriteFile(garbage, []byte("no profile"), 0o600))
	other := filepath.Join(dir, "other")
	cpu := &profile.Profile{SampleType: []*profile.ValueType{{Type: "cpu", Unit: "nanoseconds"}}}
	f, err := os.Create(other)
	require.NoError(t, err)
	require.NoError(t, cpu.Write(f))
	require.NoError(t, f.Close())
	for want, args := range map[string][]string{
		"404 Not Found: no such peak; there are 1, 2, latest, highest and current": {"-peak", "7", url},
		"not one of requests that hold memory":                                     {other},
		"garbage: ":                                                                {garbage},
		"no such file":                                                             {filepath.Join(dir, "none")},
		"-peak is for URLs":                                                        {"-peak", "1", other},
		"connection refused":                                                       {"http://127.0.0.1:1/highwater"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, 1, run(append([]string{"pprof"}, args...), nil, &out, &errs), want)
		require.Contains(t, errs.String(), want)
		require.Empty(t, out.String())
	}
	var out, errs bytes.Buffer
	require.Equal(t, 1, run([]string{"pprof", garbage, other}, nil, &out, &errs))
	require.Contains(t, errs.String(), garbage)
	require.Contains(t, errs.String(), other, "all that is wrong at once")
	for _, args := range [][]string{{"pprof"}, {"pprof", "-x", url}} {
		require.Equal(t, 2, run(args, nil, &out, &errs))
	}
	require.Equal(t, 0, run([]string{"pprof", "-h"}, nil, &out, &errs))
}

// A source may be anything: what is read of it, what that is unpacked, and what is made of it is
// bounded.
func TestPprofOfAnything(t *testing.T) {
	dir := t.TempDir()
	packed := func(text string, times int) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		for range times {
			_, err := w.Write([]byte(text))
			require.NoError(t, err)
		}
		require.NoError(t, w.Close())
		return b.Bytes()
	}
	megabyte := strings.Repeat("\x12\x00", mib/2) // samples with nothing in them
	within := func(tag byte, text string) string {
		return string(protowire.AppendString([]byte{tag}, text))
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"bomb":             {packed(megabyte, 20), "the profile, unpacked, is too large: no more than 8MiB is read"},
		"two members":      {append(packed(megabyte, 6), packed(megabyte, 6)...), "unpacked, is too large"},
		"bomb in a bomb":   {packed(string(packed(megabyte, 20)), 1), "it is no profile"},
		"empty samples":    {packed(megabyte, 7), "more than 500000 entries"},
		"empty labels":     {packed(within(0x12, strings.Repeat("\x1a\x00", 3*mib)), 1), "more than 500000 entries"},
		"empty lines":      {packed(within(0x22, strings.Repeat("\x22\x00", 3*mib)), 1), "more than 500000 entries"},
		"strings":          {packed("\x32\x00", 500_001), "more than 500000 entries"},
		"large as it is":   {bytes.Repeat([]byte("\x12\x00"), 5*mib), "is too large: no more than 8MiB is read"},
		"cut":              {packed(megabyte, 1)[:500], "it can't be unpacked: unexpected EOF"},
		"no gzip":          {[]byte("\x1f\x8b is not enough"), "it can't be unpacked: gzip: invalid header"},
		"empty":            {nil, "it is no profile: empty input file"},
		"text":             {[]byte("no profile"), "it is no profile"},
		"an end too early": {[]byte("\x12\x7f"), "it is no profile: unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(dir, "source")
			require.NoError(t, os.WriteFile(file, c.data, 0o600))
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(c.data) }))
			defer server.Close()
			for _, source := range []string{file, server.URL} {
				allocated := totalAlloc()
				var out, errs bytes.Buffer
				require.Equal(t, 1, run([]string{"pprof", source}, nil, &out, &errs))
				require.Contains(t, errs.String(), c.want)
				require.Contains(t, errs.String(), source)
				require.Empty(t, out.String())
				require.Less(t, totalAlloc()-allocated, uint64(100*mib))
			}
		})
	}
	var out, errs bytes.Buffer
	require.Equal(t, 1, run([]string{"pprof", "/dev/zero"}, nil, &out, &errs))
	require.Contains(t, errs.String(), "/dev/zero is too large")

	// Together they are bounded too.
	p := &profile.Profile{SampleType: []*profile.ValueType{{Type: "requests", Unit: "count"}, {Type: "held", Unit: "bytes"}}}
	p.Comments = append(make([]string, 1000), strings.Repeat("x", 7*mib))
	slices.Reverse(p.Comments)
	file := filepath.Join(dir, "large")
	require.NoError(t, write(file, p))
	out.Reset()
	require.Equal(t, 0, run([]string{"pprof", file, file, file, file, file}, nil, &out, &errs), errs.String())
	require.Less(t, out.Len(), 32<<10, "of comments so much as is useful is shown")
	errs.Reset()
	require.Equal(t, 1, run([]string{"pprof", file, file, file, file, file, file}, nil, &out, &errs))
	require.Contains(t, errs.String(), "the sources before are 32MiB together, and no more is read: ask for fewer at once")
}

// A source that answers with another address, and that with another, is not followed for ever.
func TestPprofRedirects(t *testing.T) {
	url := envoy(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		if n == 0 {
			http.Redirect(w, r, url+"/pprof", http.StatusFound)
			return
		}
		http.Redirect(w, r, "/pprof?n="+strconv.Itoa(n-1), http.StatusFound)
	}))
	defer server.Close()
	var out, errs bytes.Buffer
	require.Equal(t, 0, run([]string{"pprof", server.URL + "/pprof?n=2"}, nil, &out, &errs), errs.String())
	require.Equal(t, 1, run([]string{"pprof", server.URL + "/pprof?n=3"}, nil, &out, &errs))
	require.Contains(t, errs.String(), "it redirects more than 3 times")
}
