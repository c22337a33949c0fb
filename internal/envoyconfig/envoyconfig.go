// Package envoyconfig holds Envoy's own configuration against that of `highwater serve`: whether
// its ext_proc filters tell the server what it needs, and do what it answers.
package envoyconfig

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	filterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"

	"github.com/highwater-envoy/highwater/internal/guard"
	"github.com/highwater-envoy/highwater/internal/input"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/xdsread"
)

// Finding is one thing to change.
type Finding struct {
	// Error: requests fail, or are not guarded, or Envoy refuses its configuration. Else they are
	// guarded less well than they could be.
	Error bool
	Name  string // of its kind, as docs/reference/check.md has it
	At    string // where it is; empty = nowhere in particular
	What  string // one line: what is wrong, what follows, and what to write
}

func (f Finding) String() string {
	text := strings.TrimPrefix(f.At+": "+f.What, ": ")
	if f.Error {
		return "error: " + text
	}
	return "warning: " + text
}

// Report is what a check has found.
type Report struct {
	Checked    []string // the ext_proc filters that were looked at
	PassedOver []string // those that seem to be of other servers
	Findings   []Finding
}

// Check holds Envoy's bootstrap, YAML or JSON, against the configuration of the server. Its error
// says why the text is no bootstrap.
func Check(text []byte, config guard.Config) (Report, error) {
	root, err := parse(text)
	if err != nil {
		return Report{}, err
	}
	return CheckTree(root, config), nil
}

// CheckTree is Check of a bootstrap that is read already.
func CheckTree(root map[string]any, config guard.Config) Report {
	c := checker{config: config, clusters: clusters(root), seen: map[string]bool{}}
	_, c.cds = get(root, "dynamic_resources", "cds_config")
	found := filters(root)
	if len(found) == 0 {
		c.fail("no-guard", "", "there is no ext_proc filter (envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor): nothing is guarded; "+
			"add one, first of http_filters, as in examples/envoy-extproc.yaml. Listeners that come by xDS are not in this file")
	}
	named := slices.ContainsFunc(found, filter.named)
	for _, f := range found {
		if named && !f.named() {
			c.PassedOver = append(c.PassedOver, f.at)
			continue
		}
		c.Checked = append(c.Checked, f.at)
		c.filter(f)
	}
	return c.Report
}

// MaxBootstrap is how much of a bootstrap is read: some 20,000 clusters. To read it takes up to
// fifty times as much memory.
const MaxBootstrap = 8 * unit.MiB

func parse(text []byte) (map[string]any, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, errors.New("it is empty, and must be an Envoy bootstrap: static_resources with listeners and clusters")
	}
	root, err := input.Tree(text, MaxBootstrap)
	if err != nil {
		return nil, errors.New(oneLine(err.Error()))
	}
	object, ok := root.(map[string]any)
	if !ok {
		return nil, errors.New("it must be an object, an Envoy bootstrap with static_resources, and not a list or a single value")
	}
	return object, nil
}

// get follows keys as Envoy reads them: by_underscores or inCamelCase.
func get(v any, path ...string) (any, bool) {
	for _, key := range path {
		m, _ := v.(map[string]any)
		next, ok := m[key]
		if !ok {
			if next, ok = m[camelCase(key)]; !ok {
				return nil, false
			}
		}
		v = next
	}
	return v, true
}

func camelCase(key string) string {
	head, rest, _ := strings.Cut(key, "_")
	for part := range strings.SplitSeq(rest, "_") {
		if part != "" {
			head += strings.ToUpper(part[:1]) + part[1:]
		}
	}
	return head
}

// clusters are the static ones by name.
func clusters(root any) map[string]any {
	named := map[string]any{}
	list, _ := get(root, "static_resources", "clusters")
	entries, _ := list.([]any)
	for _, e := range entries {
		if name, ok := get(e, "name"); ok {
			named[fmt.Sprint(name)] = e
		}
	}
	return named
}

// filter is an ext_proc filter.
type filter struct {
	at     string // for people: listener ingress: http_filters[0] highwater.requests
	name   string
	config *filterv3.ExternalProcessor // nil where it can't be read
	wrong  []string                    // what is no configuration of such a filter
	hcm    map[string]any              // the HttpConnectionManager that it is in; nil = it is in none
}

// named says whether it is most likely for this server. Its address doesn't: -grpc may be any.
func (f filter) named() bool {
	cluster := f.config.GetGrpcService().GetEnvoyGrpc().GetClusterName()
	return strings.Contains(strings.ToLower(f.name), "highwater") || strings.Contains(strings.ToLower(cluster), "highwater")
}

const kind = "envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"

// filters finds every ext_proc filter, wherever it is: one may be inside of another filter's
// configuration.
func filters(root any) (found []filter) {
	walk(root, place{}, func(in place, m map[string]any) {
		if xdsread.TypeOf(m) != kind {
			return
		}
		f := filter{at: oneLine(strings.Join(in.at, ": ")), name: in.name, config: &filterv3.ExternalProcessor{}, hcm: in.hcm}
		if f.at == "" {
			f.at = "ext_proc filter"
		}
		var ok bool
		if f.wrong, ok = xdsread.Decode(m, f.config); !ok {
			f.config = nil
		}
		found = append(found, f)
	})
	return found
}

const managerKind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"

// place is where something is.
type place struct {
	at   []string       // the places on the way to it
	name string         // the last name there
	hcm  map[string]any // the HttpConnectionManager around it; nil = there is none
}

// walk visits every object with its place.
func walk(v any, in place, visit func(in place, m map[string]any)) {
	m, ok := v.(map[string]any)
	if !ok {
		return
	}
	visit(in, m)
	if xdsread.TypeOf(m) == managerKind {
		in.hcm = m
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		list, ok := m[key].([]any)
		if !ok {
			below := in
			if key == "default_filter_chain" || key == "defaultFilterChain" {
				below.at = append(in.at, key)
			}
			walk(m[key], below, visit)
			continue
		}
		for i, e := range list {
			below := in
			if p, n := placeOf(key, i, len(list), e); p != "" {
				below.at, below.name = append(in.at, p), n
			}
			walk(e, below, visit)
		}
	}
}

// placeOf is what people call an entry of a list, and its name; empty where it helps nobody.
func placeOf(key string, i, n int, entry any) (place, name string) {
	if v, ok := get(entry, "name"); ok {
		name = fmt.Sprint(v)
	}
	place = fmt.Sprintf("%s[%d]", key, i)
	switch {
	case key == "listeners" && name != "":
		place = "listener"
	case key == "clusters" && name != "":
		place = "cluster"
	case n > 1 && (key == "filter_chains" || key == "filterChains"), key == "http_filters", key == "httpFilters", key == "listeners", key == "clusters":
	default:
		return "", name
	}
	return strings.TrimSpace(place + " " + name), name
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
