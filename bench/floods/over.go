package main

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// overs watches memory in use go over the limit, and come back.
type overs struct {
	limit, hard int64
	over

	n     int       // readings over the limit since it was last below hard
	since time.Time // of the second of them: a first one no guard can have known of
	last  time.Time
}

// over is how often, and how long it took.
type over struct {
	Times   int           `json:"times"`      // of two readings over the limit, with none below hard between
	Longest time.Duration `json:"longest_ns"` // from the second of them to the first below hard, or to the end
	Never   bool          `json:"never"`      // it was not below hard in the end
	Hard    int64         `json:"hard_bytes"`
}

func (o *overs) add(at time.Time, inUse int64) {
	o.last = at
	switch {
	case inUse > o.limit:
		if o.n++; o.n == 2 {
			o.since = at
			o.Times++
		}
	case inUse <= o.hard:
		if o.n >= 2 {
			o.Longest = max(o.Longest, at.Sub(o.since))
		}
		o.n = 0
	}
}

// found is nil if memory was never over the limit twice.
func (o *overs) found() *over {
	if o.Times == 0 {
		return nil
	}
	f := o.over
	f.Hard = o.hard
	if o.n >= 2 {
		f.Longest, f.Never = max(f.Longest, o.last.Sub(o.since)), true
	}
	return &f
}

// logQuiet has Envoy write what the guard did to each request on the quiet route. Nothing else says
// it exactly: the guard's metrics know no routes, and who waited a moment is answered 200.
func logQuiet(c envoytest.Config, file string) {
	c.SetConnectionManager(func(hcm map[string]any) {
		hcm["access_log"] = []any{map[string]any{
			"name": "quiet",
			"filter": map[string]any{"header_filter": map[string]any{"header": map[string]any{
				"name": ":path", "string_match": map[string]any{"prefix": "/quiet"},
			}}},
			"typed_config": map[string]any{
				"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog", "path": file,
				"log_format": map[string]any{"text_format_source": map[string]any{
					"inline_string": "%RESPONSE_CODE% [%FILTER_STATE(wasm.highwater.verdict:PLAIN)%] [%DYNAMIC_METADATA(highwater:verdict)%] %RESPONSE_CODE_DETAILS%\n",
				}},
			},
		}}
	})
}

// readQuiet counts the verdicts in the log, and those among them that tell of waiting. A plain
// admit leaves "-" in the fields of both faces, and details that are Envoy's own.
func (r *result) readQuiet(file string) error {
	log, err := os.Open(file)
	if err != nil {
		return err
	}
	defer log.Close()
	var n int64
	lines := bufio.NewScanner(log)
	for ; lines.Scan(); n++ {
		_, verdict, _ := strings.Cut(lines.Text(), " ")
		if !strings.HasPrefix(verdict, "[-] [-]") || strings.Contains(verdict, "highwater{") {
			r.QuietHeld++
		}
		if strings.Contains(verdict, "wait") {
			r.QuietWaits++
		}
	}
	if lines.Err() == nil && n < r.Quiet.Served {
		return fmt.Errorf("the access log of the quiet route has %d lines for %d requests", n, r.Quiet.Served)
	}
	return lines.Err()
}
