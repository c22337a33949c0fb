package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/peak"
	"github.com/highwater-envoy/highwater/internal/reservoir"
)

const mib = 1 << 20

// envoy answers as the plugin does: peak 1 is of uploads of a, peak 2 of twice as much and of readers of b.
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
	require.True(t, strings.HasPrefix(text, "peak 2: in use 120.0MiB of 200.0MiB, base 20.0MiB, likely held by requests 100.0MiB (at most 100.0MiB), no request explains 0B (2023-11-14 21:14:20)\n"), text)
	fields := rows(text)
	require.Equal(t, []string{"32.0MiB", "0B", "88.3%", "2", "1.5s", "upload"}, fields["upload"])
	require.Equal(t, []string{"16.0MiB", "0B", "44.1%", "1", "1.5s", "a"}, fields["a"])
	require.Equal(t, "34", fields["downloading"][3], "four samples that stand for 8.5 requests each")
	require.Equal(t, []string{"4.3MiB", "3.3MiB"}, fields["downloading"][:2])
	require.Contains(t, fields, `\x1b[31mred`)
	require.NotContains(t, text, "\x1b")
	require.Equal(t, "36.3MiB", fields["(all)"][0])

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
		"404 Not Found: no such peak; there are 1, 2 and current": {"-peak", "7", url},
		"not one of requests that hold memory":                    {other},
		"garbage: ":                                               {garbage},
		"no such file":                                            {filepath.Join(dir, "none")},
		"-peak is for URLs":                                       {"-peak", "1", other},
		"connection refused":                                      {"http://127.0.0.1:1/highwater"},
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
