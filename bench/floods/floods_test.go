package main

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Every flood that the issue names can be run by name, and has something to be judged by.
func TestFloods(t *testing.T) {
	names := map[string]bool{}
	for _, f := range floods() {
		require.False(t, names[f.name], f.name)
		names[f.name] = true
		require.NotEmpty(t, f.about, f.name)
		require.NotZero(t, f.want, f.name)
		require.Positive(t, f.clients, f.name)
		require.NotNil(t, f.hogs("127.0.0.1:1"), f.name)
	}
	for _, name := range []string{
		"upload-h1", "upload-chunked", "upload-h2", "upload-400", "upload-default-100", "upload-default-200", "slow-1000",
		"healthy-download", "healthy-small", "healthy-idle-h2", "healthy-grpc", "healthy-40", "retry-100", "retry-1000", "obey-300", "obey-600",
		"upload-h1@100", "upload-h1@400", "upload-chunked@100", "upload-chunked@400", "upload-h2@100", "upload-h2@400",
		"mixed-h1@100", "mixed-h1@200", "mixed-h1@400", "mixed-h2@100", "mixed-h2@200", "mixed-h2@400",
	} {
		require.True(t, names[name], name)
	}
	slow := regexp.MustCompile(`^slow-(1m|64k)-(16m|4m|1m)-(len|nolen)-(h1|h2)$`)
	n := 0
	for name := range names {
		if slow.MatchString(name) {
			n++
		}
	}
	require.Equal(t, 2*3*2*2, n)
	for _, kind := range load.Kinds() {
		require.True(t, names["hostile-"+string(kind)], kind)
	}
	require.True(t, names["hostile-all"])
}

// What Envoy logs of a plugin that trapped or survived is found, and what it logs else is not.
func TestFaults(t *testing.T) {
	require.Len(t, envoytest.Faults(`[2026-01-01][critical][wasm] wasm log highwater: highwater: a fault, and the traffic goes on: index out of range`), 1)
	require.Len(t, envoytest.Faults("[info] x\n[error][wasm] Function: proxy_on_tick failed: Uncaught RuntimeError: unreachable\nProxy-Wasm plugin in-VM backtrace:\n  0: f"), 2)
	require.Empty(t, envoytest.Faults("[warning][wasm] wasm log highwater: highwater: level hard, was soft"))
}

func TestChoose(t *testing.T) {
	names := func(patterns string) (names []string) {
		chosen, err := choose(floods(), patterns)
		require.NoError(t, err)
		for _, f := range chosen {
			names = append(names, f.name)
		}
		return names
	}
	require.Equal(t, []string{"upload-h2", "upload-h1"}, names("upload-h2, upload-h1,upload-h2"))
	require.Len(t, names("all"), len(floods()))
	require.Len(t, names("slow-64k-*"), 12)
	for _, wrong := range []string{"", "upload", "upload-h1,nothing-*", "[", "upload-h1,"} {
		_, err := choose(floods(), wrong)
		require.Error(t, err, wrong)
	}
}

func TestFlags(t *testing.T) {
	var out, errs bytes.Buffer
	require.Zero(t, command([]string{"-list"}, &out, &errs))
	require.Contains(t, out.String(), "slow-64k-4m-nolen-h2")
	for _, args := range [][]string{{"-guard", "some"}, {"-flood", "x"}, {"-limit", "many"}, {"-cgroup", "-1"}} {
		errs.Reset()
		require.Equal(t, 1, command(args, &out, &errs))
		require.Contains(t, errs.String(), args[0], "the message names the flag")
	}
}

// What a flood sets in Envoy, it says in the guard's configuration.
func TestConfigure(t *testing.T) {
	for _, guard := range []string{none, overload, highwater} {
		plugin := map[string]any{"@type": "x", "value": `{"budget":{"limit":"200MiB"},"buffers":{"downstream":"64KiB","whole_request":"16MiB"}}`}
		c := envoytest.Config{"memory_allocator_manager": map[string]any{}, "static_resources": map[string]any{
			"listeners": []any{map[string]any{"socket_options": []any{}, "filter_chains": []any{map[string]any{"filters": []any{map[string]any{
				"name": "manager", "typed_config": map[string]any{"http_filters": []any{map[string]any{
					"name": "highwater.requests", "config": map[string]any{"vm_config": map[string]any{"vm_id": "highwater"}, "configuration": plugin},
				}}},
			}}}}}},
			"clusters": []any{map[string]any{"name": "upstream"}},
		}}
		var text string
		configure(c, envoyDefaults, guard, options{limit: 100 * mib})
		c.SetPluginConfig(func(cfg map[string]any) {
			require.Equal(t, map[string]any{"limit": "100MiB"}, cfg["budget"])
			require.Equal(t, map[string]any{
				"downstream": "1MiB", "upstream": "1MiB", "http2_window": "16MiB", "http2_connection_window": "24MiB",
				"linger": "1s", "whole_request": "16MiB",
			}, cfg["buffers"])
			text = "seen"
		})
		require.Equal(t, guard == highwater, text == "seen", "only its own run has the guard")
		require.Equal(t, guard == overload, c["overload_manager"] != nil)
		require.EqualValues(t, mib, c.Listeners()[0]["per_connection_buffer_limit_bytes"])
		require.EqualValues(t, mib, c.Cluster("upstream")["per_connection_buffer_limit_bytes"])
		require.NotContains(t, c.Listeners()[0], "socket_options")
		require.NotContains(t, c, "memory_allocator_manager")
	}
}

func ran(guard string, round int, peak float64, served, rejected int64, p99 time.Duration) *result {
	return &result{
		Guard: guard, Run: round, LimitBytes: 100 * mib, PeakAllocated: int64(peak * 100 * mib), PeakInUse: int64(peak * 100 * mib),
		Hogs:  load.Snapshot{Served: served, Rejected: rejected, Bytes: served * 4 * mib, Elapsed: 10 * time.Second},
		Small: load.Snapshot{Served: 1000, P50: time.Millisecond, P99: p99},
	}
}

func TestJudge(t *testing.T) {
	f := flood{name: "f", clients: 100, want: want{peak: 1, smallTail: 1.5, goodput: 0.95, rejected: 0.01}}
	good := []*result{ran(none, 1, 2, 1000, 0, 100*time.Millisecond), ran(highwater, 1, 0.9, 990, 9, 140*time.Millisecond)}
	require.Empty(t, judge(f, highwater, good))
	require.Len(t, judge(f, highwater, good[1:]), 2, "two thresholds are ratios")
	require.Len(t, judge(f, highwater, good[:1]), 1, "no run of the guard is no pass")

	bad := []*result{good[0], ran(highwater, 1, 1.1, 900, 100, 160*time.Millisecond)}
	bad[1].Small.Errors = 1
	bad[1].NotDrained = map[string]float64{"streams": 1}
	require.Len(t, judge(f, highwater, bad), 6, "peak, bystanders, tail, goodput, rejects, accounts")

	// A median hides one bad peak of three, but not one lost bystander, and not a killed Envoy.
	three := []*result{ran(highwater, 1, 0.9, 1, 0, 1), ran(highwater, 2, 5, 1, 0, 1), ran(highwater, 3, 0.8, 1, 0, 1)}
	f.want = want{peak: 1}
	require.Empty(t, judge(f, highwater, three))
	three[1].Small.Rejected = 1
	require.Len(t, judge(f, highwater, three), 1)
	three[2].DiedAfter = time.Second
	require.Len(t, judge(f, highwater, three), 2)
	three[0].Faults = []string{"fault"}
	require.Len(t, judge(f, highwater, three), 3)

	f.want = want{noVerdicts: true, noneCut: true, served: 0.9, rejected: -1}
	healthy := ran(highwater, 1, 0.1, 90, 0, 1)
	require.Empty(t, judge(f, highwater, []*result{healthy}))
	healthy.Verdicts = map[string]float64{"throttled": 1}
	healthy.Hogs.Cut, healthy.Hogs.Rejected, healthy.Hogs.Served = 1, 1, 89
	require.Len(t, judge(f, highwater, []*result{healthy}), 4)

	kept := []*result{ran(none, 1, 3, 1, 0, 5), ran(highwater, 1, 0.9, 1, 0, 5)}
	kept[1].LimitBytes = 200 * mib
	kept[0].After, kept[1].After = 15*mib, 24*mib
	f.want = want{}
	require.Empty(t, judge(f, highwater, kept))
	kept[0].After = 0
	require.Equal(t, []string{"f, highwater: round 1: 24.0MiB more allocated than before, 0B without a guard"}, judge(f, highwater, kept))

	obeying := ran(highwater, 1, 0.9, 1, 0, 5)
	obeying.Hogs.Kept, obeying.Hogs.Broken = 80, 20
	f.want = want{truth: 0.8}
	require.Empty(t, judge(f, highwater, []*result{obeying}))
	obeying.Hogs.Broken++
	require.Len(t, judge(f, highwater, []*result{obeying}), 1)
}

func TestReport(t *testing.T) {
	var out bytes.Buffer
	results := []*result{
		ran(none, 1, 2, 1000, 0, 100*time.Millisecond), ran(highwater, 1, 0.9, 990, 9, 140*time.Millisecond),
		ran(none, 2, 2, 1000, 0, 100*time.Millisecond), ran(highwater, 2, 0.7, 990, 9, 50*time.Millisecond),
	}
	results[1].Verdicts = map[string]float64{"throttled": 12}
	results[3].NotDrained = map[string]float64{"waiting": 3}
	report(&out, flood{name: "f", about: "a flood"}, []string{none, overload, highwater}, results)
	text := out.String()
	require.Contains(t, text, "0.80 (0.70..0.90)")
	require.Contains(t, text, "0.95 (0.50..1.40)")
	require.Contains(t, text, "throttled 12 · drained")
	require.Contains(t, text, "not drained after -: waiting 3")
	require.NotContains(t, text, "overload")
	require.Equal(t, 1, strings.Count(text, "\nnone"))
}
