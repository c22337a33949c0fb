package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// What each of these floods tells the guard of fairness and buffers is in its configuration, and in
// no other's.
func TestPayers(t *testing.T) {
	fairness := map[string]any{}
	for _, f := range floods() {
		cfg := map[string]any{"buffers": map[string]any{}}
		if f.envoy.plugin == nil {
			continue
		}
		f.envoy.plugin(cfg)
		fairness[f.name] = cfg["fairness"].(map[string]any)["by"]
		if f.name == "evict-h2" || f.name == "evict-idle" {
			require.Equal(t, "1MiB", cfg["buffers"].(map[string]any)["http2_window"])
			require.Equal(t, 16*mib, f.envoy.streamWindow)
		}
		if w := f.want.weights; w != nil {
			require.Len(t, f.loads("127.0.0.1:1"), len(w))
			require.InDelta(t, 10, cfg["fairness"].(map[string]any)["weights"].(map[string]any)["t10"], 0)
			for i, l := range f.loads("127.0.0.1:1") {
				require.Equal(t, tenant(i), l.(*load.Uploads).Tenant)
			}
		}
	}
	require.Equal(t, map[string]any{
		"noisy-neighbour": "route", "noisy-neighbour-unfair": "none", "tenants": "header:x-tenant", "warm-readers": "route",
		"crowd-40k": "route", "evict-h2": "route", "evict-idle": "route", "healthy-mix-route": "route",
		"healthy-mix-header": "header:x-tenant", "healthy-mix-source": "source", "healthy-mix-none": "none",
	}, fairness)
}

// The flood has the last word on the guard's configuration: it may have it know less than is true.
func TestConfigurePlugin(t *testing.T) {
	plugin := map[string]any{"@type": "x", "value": `{"budget":{"limit":"200MiB"},"buffers":{}}`}
	c := envoytest.Config{"static_resources": map[string]any{"listeners": []any{map[string]any{"http_filters": []any{map[string]any{
		"config": map[string]any{"vm_config": map[string]any{"vm_id": "highwater"}, "configuration": plugin},
	}}}}}}
	configure(c, understated(), highwater, options{limit: 100 * mib})
	seen := false
	c.SetPluginConfig(func(cfg map[string]any) {
		seen = true
		require.Equal(t, "1MiB", cfg["buffers"].(map[string]any)["http2_window"])
		require.Equal(t, map[string]any{"by": "route"}, cfg["fairness"])
	})
	require.True(t, seen)
}

func TestOvers(t *testing.T) {
	begun := time.Unix(100, 0)
	watch := func(inUse ...int64) *over {
		o := overs{limit: 100, hard: 90}
		for i, n := range inUse {
			o.add(begun.Add(time.Duration(i)*time.Second), n)
		}
		return o.found()
	}
	require.Nil(t, watch())
	require.Nil(t, watch(50, 101, 50, 95), "once is nobody's fault")
	require.Nil(t, watch(50, 101, 80, 101, 80), "nor is twice once")
	require.Equal(t, &over{Times: 1, Longest: 2 * time.Second, Hard: 90}, watch(50, 101, 102, 95, 80, 70, 91, 80))
	require.Equal(t, &over{Times: 2, Longest: 2 * time.Second, Hard: 90}, watch(101, 102, 95, 80, 101, 102, 80), "the longer one")
	require.Equal(t, &over{Times: 1, Longest: 3 * time.Second, Hard: 90}, watch(101, 95, 102, 103, 95, 90), "not below hard between")
	require.Equal(t, &over{Times: 1, Longest: 2 * time.Second, Never: true, Hard: 90}, watch(101, 102, 103, 95), "never below again")
}

func TestReadQuiet(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	lines := "200 [-] [-] via_upstream\n200 [admitted waited=12ms] [-] via_upstream\n503 [-] [rejected timeout waited=2000ms retry_after=1s] ext_proc\n" +
		"0 [waiting] [-] -\n503 [closed growth] [-] -\n503 [-] [-] ext_proc_error_highwater{growth}\n"
	require.NoError(t, os.WriteFile(file, []byte(lines), 0o600))
	r := &result{Quiet: load.Snapshot{Served: 2}}
	require.NoError(t, r.readQuiet(file))
	require.Equal(t, 5, r.QuietHeld)
	require.Equal(t, 3, r.QuietWaits)
	r = &result{Quiet: load.Snapshot{Served: 7}}
	require.ErrorContains(t, r.readQuiet(file), "6 lines for 7 requests")
	require.Error(t, r.readQuiet(file+"2"))
}

func TestParticulars(t *testing.T) {
	r := ran(highwater, 1, 0.9, 100, 0, 1)
	weights := []float64{1, 3}
	r.SecondHalf = []int64{100 * mib, 300 * mib}
	require.Zero(t, r.deviation(weights))
	r.SecondHalf = []int64{80 * mib, 320 * mib}
	require.InDelta(t, 0.2, r.deviation(weights), 1e-9)
	require.InDelta(t, 1, (&result{}).deviation(weights), 0, "nothing was served: nobody has his share")

	r.Verdicts = map[string]float64{"rejected response": 2, "rejected timeout": 38, "rejected responses": 2, "throttled": 100}
	require.InDelta(t, 0.05, r.late(), 1e-9)
	require.Zero(t, (&result{}).late())
	r.Upstream = 110
	require.InDelta(t, 0.1, r.wasted(), 1e-9)

	f := flood{name: "f", want: want{weights: weights, late: 0.1, back: time.Second, spared: 5}}
	r.Each = []load.Snapshot{{Served: 5, Cut: 1}, {Started: 7, Cut: 3}}
	require.Equal(t, []string{
		"second half: MiB served per weight 80.0 106.7; the farthest is 20% off its share",
		"5.0% of the rejects came late; 110 requests reached the upstream, 10.0% of the served beyond those",
		"never over the limit twice",
		"5 of 5 idle ones came to be, 1 were cut; of the others 3",
	}, particulars(f, r))
}

func TestJudgePayers(t *testing.T) {
	misses := func(w want, edit func(r *result)) []string {
		unguarded, mine := ran(none, 1, 2, 100, 0, 1), ran(highwater, 1, 0.9, 100, 0, 1)
		for _, r := range []*result{unguarded, mine} {
			r.Quiet = load.Snapshot{Served: 1000, P99: 100 * time.Millisecond}
			r.Upstream, r.SecondHalf = 100, []int64{100, 200}
			r.Each = []load.Snapshot{{Served: 5}, {Started: 1}}
		}
		edit(mine)
		return judge(flood{name: "f", want: w}, highwater, []*result{unguarded, mine})
	}
	for _, c := range []struct {
		what string
		want want
		miss func(r *result)
		keep func(r *result)
	}{
		{
			"small",
			want{small: 99},
			func(r *result) { r.Small.Rejected = 20 },
			func(r *result) { r.Small.Rejected = 5 },
		},
		{
			"quiet",
			want{quiet: 99},
			func(r *result) { r.Quiet.Rejected = 20 },
			func(r *result) { r.Quiet.Rejected = 5 },
		},
		{
			"waits",
			want{noneWaits: true},
			func(r *result) { r.QuietHeld = 1 },
			func(*result) {},
		},
		{
			"tail",
			want{quietTail: 1.5},
			func(r *result) { r.Quiet.P99 = 160 * time.Millisecond },
			func(r *result) { r.Quiet.P99 = 140 * time.Millisecond },
		},
		{
			"shares",
			want{weights: []float64{1, 2}, deviation: 0.1},
			func(r *result) { r.SecondHalf = []int64{120, 180} },
			func(r *result) { r.SecondHalf = []int64{105, 195} },
		},
		{
			"late",
			want{late: 0.05},
			func(r *result) { r.Verdicts = map[string]float64{"rejected response": 10, "rejected responses": 10} },
			func(r *result) { r.Verdicts = map[string]float64{"rejected timeout": 10} },
		},
		{
			"wasted",
			want{wasted: 0.05},
			func(r *result) { r.Upstream = 106 },
			func(r *result) { r.Upstream = 105 },
		},
		{
			"back",
			want{back: time.Second},
			func(r *result) { r.Over = &over{Longest: 2 * time.Second} },
			func(r *result) { r.Over = &over{Longest: time.Second} },
		},
		{
			"never back",
			want{back: time.Second},
			func(r *result) { r.Over = &over{Never: true} },
			func(*result) {},
		},
		{
			"idle cut",
			want{spared: 5},
			func(r *result) { r.Each[0].Cut = 1 },
			func(r *result) { r.Each[1].Cut = 1 },
		},
		{
			"idle missing",
			want{spared: 5},
			func(r *result) { r.Each[0].Served = 4 },
			func(*result) {},
		},
		{
			"nobody stalled",
			want{spared: 5},
			func(r *result) { r.Each[1].Started = 0 },
			func(*result) {},
		},
	} {
		require.Len(t, misses(c.want, c.miss), 1, c.what)
		require.Empty(t, misses(c.want, c.keep), c.what)
	}
}
