package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/highwater-envoy/highwater/bench/internal/figures"
	envoyfile "github.com/highwater-envoy/highwater/internal/check"
	"github.com/highwater-envoy/highwater/internal/config"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/recording"
	"github.com/highwater-envoy/highwater/internal/replay"
	"github.com/highwater-envoy/highwater/internal/unit"
)

// widen is how far outside the range of the runs a prediction may be.
const widen = 0.2

// accessLog are the fields that docs/reference/replay.md tells operators to write.
var accessLog = map[string]any{
	"start_time": "%START_TIME(%s.%6f)%", "duration": "%DURATION%", "protocol": "%PROTOCOL%", "connection_id": "%CONNECTION_ID%",
	"request_duration": "%REQUEST_DURATION%", "request_tx_duration": "%REQUEST_TX_DURATION%",
	"response_duration": "%RESPONSE_DURATION%", "response_tx_duration": "%RESPONSE_TX_DURATION%",
	"request_length": "%REQ(CONTENT-LENGTH)%", "bytes_received": "%BYTES_RECEIVED%",
	"response_length": "%RESP(CONTENT-LENGTH)%", "bytes_sent": "%BYTES_SENT%", "response_flags": "%RESPONSE_FLAGS%",
	"route_name": "%ROUTE_NAME%", "upstream_cluster": "%UPSTREAM_CLUSTER%", "authority": "%REQ(:AUTHORITY)%", "path": "%REQ(:PATH)%",
	"downstream_remote_address": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
	"headers":                   map[string]any{"x-tenant": "%REQ(X-TENANT)%"},
}

// logAll has Envoy write its access log for a replay.
func logAll(c envoytest.Config, file string) {
	c.SetConnectionManager(func(hcm map[string]any) {
		logs, _ := hcm["access_log"].([]any)
		hcm["access_log"] = append(logs, map[string]any{
			"name": "replay",
			"typed_config": map[string]any{
				"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": file,
				"log_format": map[string]any{"json_format": accessLog},
			},
		})
	})
}

// predict records a flood on an Envoy without a guard, replays that, and holds what the replay says
// against what real Envoys with the guard did, so many times. It says whether all is within.
func predict(ctx context.Context, f flood, o options, runs int, record string, stdout, stderr io.Writer) (within bool, err error) {
	dir, err := os.MkdirTemp("", "highwater-predict-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	o.log = filepath.Join(dir, f.name+".jsonl")
	if record != "" {
		o.log = filepath.Join(record, f.name+".jsonl")
	}
	kept := filepath.Join(filepath.Dir(o.log), f.name+".json")
	m, err := readKept(kept)
	if err != nil {
		_ = os.Remove(o.log) // Envoy appends
		fmt.Fprintf(stderr, "%s: recording ... ", f.name)
		if m.Plain, err = run(ctx, f, none, o); err != nil {
			return false, err
		}
		fmt.Fprintln(stderr, oneLine(m.Plain))
	}
	log := o.log
	o.log = ""
	for i := len(m.Guarded); i < runs; i++ {
		fmt.Fprintf(stderr, "%s: run %d of %d ... ", f.name, i+1, runs)
		r, err := run(ctx, f, highwater, o)
		if err != nil {
			return false, err
		}
		fmt.Fprintln(stderr, oneLine(r))
		m.Guarded = append(m.Guarded, r)
		text, err := json.Marshal(m)
		if err == nil {
			err = os.WriteFile(kept, text, 0o644)
		}
		if err != nil {
			return false, err
		}
	}
	return compare(ctx, f, o.speed, m, log, stdout)
}

// measured is what real Envoys did.
type measured struct {
	Plain   *result   `json:"plain"`
	Guarded []*result `json:"guarded"`
}

func readKept(file string) (m measured, err error) {
	text, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(text, &m)
	}
	return m, err
}

// compare replays the log under the configuration that the real Envoys had.
func compare(ctx context.Context, f flood, speed float64, m measured, log string, stdout io.Writer) (within bool, err error) {
	plain, guarded := m.Plain, m.Guarded
	in, err := os.Open(log)
	if err != nil {
		return false, err
	}
	defer in.Close()
	e, err := envoyfile.Read(guarded[0].Dump)
	if err != nil {
		return false, err
	}
	guards, err := envoyfile.Guards(e, envoyfile.Options{})
	if err != nil {
		return false, err
	}
	g := guards[0]
	v := replay.Variant{Name: highwater, Config: &g.Config, Envoy: replay.Envoy{Buffers: g.Buffers, SendBuffer: g.SendBuffer}}
	v.Config.Memory, v.Config.Debug = guard.Default().Memory, config.Debug{}
	bare := replay.Variant{Name: none, Envoy: v.Envoy, By: v.Config.Fairness.By}
	options := replay.Options{Headers: replay.Headers([]replay.Variant{v})}
	load, err := recording.Read(ctx, in, log, recording.Options{Headers: options.Headers})
	if err != nil {
		return false, err
	}
	defer load.Close()
	options.Back = replay.Back{Told: f.obeys, After: 20 * time.Millisecond}
	if f.never {
		options.Back = replay.Back{}
	}
	options.Machine.Base, options.Machine.Speed = unit.Bytes(plain.Idle), speed
	before, err := replay.Run(ctx, load, bare, options, nil)
	if err != nil {
		return false, err
	}
	// Highwater's own virtual machines are in what its Envoy holds.
	options.Machine.Base = unit.Bytes(guarded[0].Idle)
	after, err := replay.Run(ctx, load, v, options, nil)
	if err != nil {
		return false, err
	}
	fmt.Fprintf(stdout, "\n%s: %s\n", f.name, f.about)
	fmt.Fprintf(stdout, "recorded without a guard: %d requests, peak %s in use, %s allocated; replayed: %s and %s\n",
		load.Requests, figures.Size(float64(plain.PeakInUse)), figures.Size(float64(plain.PeakAllocated)), before.Peak.Human(), before.Allocated.Human())
	for _, note := range load.Skipped {
		fmt.Fprintln(stdout, "left out:", note)
	}
	return table(stdout, guarded, after), nil
}

// table prints a row for each figure, and says whether all are within the range of the runs,
// widened.
func table(stdout io.Writer, guarded []*result, after *replay.Result) bool {
	of := func(figure func(r *result) float64) (s figures.Spread) {
		for _, r := range guarded {
			s = append(s, figure(r))
		}
		return s
	}
	whole := func(n float64) string { return fmt.Sprintf("%.0f", n) }
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\treal, median (range)\twidened\treplay\t")
	all := true
	for _, row := range []struct {
		name     string
		real     figures.Spread
		replayed float64
		text     func(float64) string
	}{
		{"admitted", of(func(r *result) float64 { return r.Admitted }), float64(after.All.Admitted), whole},
		{"served, of the flood", of(func(r *result) float64 { return float64(r.Hogs.Served) }), float64(served(after)), whole},
		{"waited", of(func(r *result) float64 { return r.Verdicts["throttled"] }), float64(after.All.Waited), whole},
		{"rejected", of((*result).rejected), float64(after.All.Rejected), whole},
		{"evicted", of(func(r *result) float64 { return r.Verdicts["evicted"] }), float64(after.All.Evicted), whole},
		{"closed", of(func(r *result) float64 { return r.Verdicts["closed connections"] }), float64(after.All.Closed), whole},
		{"peak in use", of(func(r *result) float64 { return float64(r.PeakInUse) }), float64(after.Peak), figures.Size},
		{"peak allocated", of(func(r *result) float64 { return float64(r.PeakAllocated) }), float64(after.Allocated), figures.Size},
	} {
		low, high := row.real.Min()*(1-widen), row.real.Max()*(1+widen)
		verdict := "within"
		if row.replayed < low || row.replayed > high {
			verdict = "OUTSIDE"
			all = false
		}
		fmt.Fprintf(w, "%s\t%s\t%s..%s\t%s\t%s\n", row.name, row.real.Print(row.text), row.text(low), row.text(high), row.text(row.replayed), verdict)
	}
	_ = w.Flush()
	return all
}

// served are requests that are none of the bystanders.
func served(r *replay.Result) (n int64) {
	for _, k := range r.Keys {
		if k.Key != "small" && k.Key != "quiet" {
			n += k.Served
		}
	}
	return n
}

// rejected are all rejects of the guard, by whatever reason but evicted and closed.
func (r *result) rejected() (n float64) {
	for _, name := range rejects {
		n += r.Verdicts["rejected "+name]
	}
	return n
}

var rejects = []string{"too_large", "queue_full", "timeout", "growth", "response", "no_reading"}

// predictAll predicts floods. Its result is the exit status.
func predictAll(ctx context.Context, chosen []flood, o options, runs int, record string, stdout, stderr io.Writer) int {
	var outside []string
	for _, f := range chosen {
		within, err := predict(ctx, f, o, runs, record, stdout, stderr)
		if err != nil {
			fmt.Fprintf(stderr, "floods: %s: %v\n", f.name, err)
			return 1
		}
		if !within {
			outside = append(outside, f.name)
		}
	}
	if len(outside) > 0 {
		slices.Sort(outside)
		fmt.Fprintln(stdout, "\nnot all within:", outside)
	}
	return 0
}
