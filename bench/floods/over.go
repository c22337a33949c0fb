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

	n     int       // readings over the limit so far
	since time.Time // of the second of them: a first one no guard can have known of
	below time.Time // the first below hard since then
	above time.Time // the last above hard since then
}

// over is how long it took.
type over struct {
	First time.Duration `json:"first_ns"` // from the second reading over the limit to the first below hard; 0: never
	Last  time.Duration `json:"last_ns"`  // and to the last above hard: from there on memory stayed below
	Hard  int64         `json:"hard_bytes"`
}

func (o *overs) add(at time.Time, inUse int64) {
	if inUse > o.limit {
		if o.n++; o.n == 2 {
			o.since = at
		}
	}
	switch {
	case o.n < 2:
	case inUse > o.hard:
		o.above = at
	case o.below.IsZero():
		o.below = at
	}
}

// found is nil if memory was not over the limit twice.
func (o *overs) found() *over {
	if o.n < 2 {
		return nil
	}
	f := &over{Last: o.above.Sub(o.since), Hard: o.hard}
	if !o.below.IsZero() {
		f.First = o.below.Sub(o.since)
	}
	return f
}

// logQuiet has Envoy write what the guard did to each request on the quiet route. Nothing else says it exactly: the
// guard's metrics know no routes, and who waited a moment is answered 200.
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

// readQuiet counts the verdicts in the log, and those among them that tell of waiting. A plain admit leaves "-" in the fields of both
// faces, and details that are Envoy's own.
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
