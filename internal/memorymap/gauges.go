package memorymap

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net/url"
	"slices"
	"strings"
)

const (
	// MaxStats is the longest answer of StatsPath that is read, bytes: some 40,000 gauges.
	MaxStats    = 4 << 20
	maxGauges   = 50_000
	maxKept     = 512 // gauges that memory may go with
	maxNameSize = 512
)

// StatsPath is what Envoy is asked for: the gauges that memory goes with, a few counters, and the
// versions of its configuration, of those that were ever used. Envoy's main thread answers, so that
// the names are few and the format is the cheap one.
var StatsPath = "/stats?format=json&usedonly&filter=" + url.QueryEscape(`(`+strings.Join([]string{
	`downstream_(cx|rq|pre_cx)_active`, `downstream_cx_ssl_active`, `upstream_(cx|rq|rq_pending)_active`, `_cx_[rt]x_bytes_buffered`, `pending_send_bytes`,
	`cluster_manager\.active_clusters`, `total_listeners_active`, `wasm\..*\.active`, `upstream_rq_retry`, `upstream_rq_retry_overflow`, `\.compressed`,
	`highwater_limit_bytes`, `downstream_rq_completed`, `(cluster_manager\.cds|listener_manager\.lds|rds\..*)\.version`,
	`(cluster_manager\.cluster|listener_manager\.listener)_(added|modified|removed)`,
}, `|`)+`)$`)

// Gauges are what Envoy counts, as far as memory goes with it. The admin interface's own
// connections are left out.
type Gauges struct {
	Connections int64 `json:"connections"` // downstream
	TLS         int64 `json:"tls"`         // of these
	PreFilter   int64 `json:"pre_filter"`  // connections that have no filter chain yet
	Requests    int64 `json:"requests"`    // downstream, active

	UpstreamConnections int64 `json:"upstream_connections"`
	UpstreamRequests    int64 `json:"upstream_requests"`
	Pending             int64 `json:"pending"` // requests that wait for an upstream connection

	// Bytes in buffers, as their own gauges tell. What filters, retries and codecs keep is in none
	// of them, and what is on its way from one to the other may be in two.
	DownstreamRx int64 `json:"downstream_rx"`
	DownstreamTx int64 `json:"downstream_tx"`
	UpstreamRx   int64 `json:"upstream_rx"`
	UpstreamTx   int64 `json:"upstream_tx"`
	PendingSend  int64 `json:"pending_send"` // HTTP/2 data that waits for a window

	Clusters  int64 `json:"clusters"`
	Listeners int64 `json:"listeners"`
	WasmVMs   int64 `json:"wasm_vms"`

	Retries    int64 `json:"retries"`     // that there were, or would have been but for their limit
	Compressed int64 `json:"compressed"`  // responses that compressors have compressed
	GuardLimit int64 `json:"guard_limit"` // the budget of Highwater's plugin, bytes; 0 = it does not run

	// Finished are the downstream requests that have ended. Config is another number where
	// clusters, listeners or routes have changed.
	Finished int64  `json:"finished"`
	Config   uint64 `json:"config"`

	// Active are the gauges by name that count connections, requests and streams.
	Active map[string]int64 `json:"active,omitempty"`
}

// Buffered is what the gauges of buffers come to.
func (g *Gauges) Buffered() int64 {
	return g.DownstreamRx + g.DownstreamTx + g.UpstreamRx + g.UpstreamTx + g.PendingSend
}

// ParseStats reads the answer of /stats?format=json. Unknown names are left out.
func ParseStats(text []byte) (*Gauges, error) {
	if len(text) > MaxStats {
		return nil, fmt.Errorf("%w: /stats has %d bytes, and no more than %d are read", ErrParse, len(text), MaxStats)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	for _, want := range []json.Token{json.Delim('{'), "stats", json.Delim('[')} {
		if got, err := d.Token(); err != nil || got != want {
			return nil, fmt.Errorf("%w: /stats is not {\"stats\": [...]}", ErrParse)
		}
	}
	g := &Gauges{Active: map[string]int64{}}
	for n := 0; d.More(); n++ {
		if n == maxGauges {
			return nil, fmt.Errorf("%w: /stats has more than %d entries", ErrParse, maxGauges)
		}
		if err := g.decode(d); err != nil {
			return nil, fmt.Errorf("%w: entry %d of /stats: %w", ErrParse, n, err)
		}
	}
	for range 2 {
		if _, err := d.Token(); err != nil {
			return nil, fmt.Errorf("%w: /stats breaks off", ErrParse)
		}
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: behind /stats there is something else", ErrParse)
	}
	return g, nil
}

// decode reads one entry. A text, a histogram and what else is no number of anything is left out.
func (g *Gauges) decode(d *json.Decoder) error {
	var s struct {
		Name  string          `json:"name"`
		Value json.RawMessage `json:"value"`
	}
	if err := d.Decode(&s); err != nil {
		return err
	}
	if slices.ContainsFunc(configEnds, func(end string) bool { return strings.HasSuffix(s.Name, end) }) {
		h := fnv.New64a()
		fmt.Fprintf(h, "%s %s", s.Name, s.Value) // a version is of 64 bits
		g.Config += h.Sum64()                    // in any order
		return nil
	}
	var v int64
	if len(s.Value) > 0 && json.Unmarshal(s.Value, &v) == nil && v > 0 && v <= maxBytes && len(s.Name) <= maxNameSize {
		g.add(s.Name, v)
	}
	return nil
}

// configEnds are the ends of what counts changes of the configuration. Endpoints come and go all
// the time, and are none.
var configEnds = []string{
	".version", "cluster_added", "cluster_modified", "cluster_removed", "listener_added", "listener_modified", "listener_removed",
}

// sums are the gauges by the end of their names. The longest ends come first.
var sums = []struct {
	end string
	at  func(*Gauges) *int64
}{
	{".downstream_pre_cx_active", func(g *Gauges) *int64 { return &g.PreFilter }},
	{".downstream_cx_ssl_active", func(g *Gauges) *int64 { return &g.TLS }},
	{".downstream_rq_active", func(g *Gauges) *int64 { return &g.Requests }},
	{".upstream_cx_active", func(g *Gauges) *int64 { return &g.UpstreamConnections }},
	{".upstream_rq_active", func(g *Gauges) *int64 { return &g.UpstreamRequests }},
	{".upstream_rq_pending_active", func(g *Gauges) *int64 { return &g.Pending }},
	{".downstream_cx_rx_bytes_buffered", func(g *Gauges) *int64 { return &g.DownstreamRx }},
	{".downstream_cx_tx_bytes_buffered", func(g *Gauges) *int64 { return &g.DownstreamTx }},
	{".upstream_cx_rx_bytes_buffered", func(g *Gauges) *int64 { return &g.UpstreamRx }},
	{".upstream_cx_tx_bytes_buffered", func(g *Gauges) *int64 { return &g.UpstreamTx }},
	{"pending_send_bytes", func(g *Gauges) *int64 { return &g.PendingSend }},
	{"cluster_manager.active_clusters", func(g *Gauges) *int64 { return &g.Clusters }},
	{".total_listeners_active", func(g *Gauges) *int64 { return &g.Listeners }},
	{".upstream_rq_retry", func(g *Gauges) *int64 { return &g.Retries }},
	{".upstream_rq_retry_overflow", func(g *Gauges) *int64 { return &g.Retries }},
	{".compressed", func(g *Gauges) *int64 { return &g.Compressed }},
}

func (g *Gauges) add(name string, v int64) {
	switch {
	case strings.HasPrefix(name, "http.admin."), strings.HasPrefix(name, "listener.admin."), strings.Contains(name, ".worker_"):
		return // the questions' own, and what is in a sum already
	case strings.HasSuffix(name, "highwater_limit_bytes"):
		g.GuardLimit = v
		return
	}
	if at := g.sumOf(name); at != nil {
		*at = min(*at+v, maxBytes)
	}
	if strings.HasSuffix(name, "_active") {
		g.keep(name, v)
	}
}

// sumOf is what a gauge counts for; nil = nothing.
func (g *Gauges) sumOf(name string) *int64 {
	switch {
	case strings.HasPrefix(name, "wasm.") && strings.HasSuffix(name, ".active"):
		return &g.WasmVMs
	case strings.HasPrefix(name, "listener.") && strings.HasSuffix(name, ".downstream_cx_active"):
		return &g.Connections
	case strings.HasPrefix(name, "http.") && strings.HasSuffix(name, ".downstream_rq_completed"):
		return &g.Finished // each listener counts the same requests again
	}
	for _, s := range sums {
		if strings.HasSuffix(name, s.end) {
			return s.at(g)
		}
	}
	return nil
}

func (g *Gauges) keep(name string, v int64) {
	if len(g.Active) < maxKept {
		g.Active[name] = v
	}
}
