package check

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/highwater-envoy/highwater/internal/input"
	"github.com/highwater-envoy/highwater/internal/unit"
	"github.com/highwater-envoy/highwater/internal/xdsread"
)

// What is read of Envoy's configuration at most.
const (
	// MaxBootstrap is of a bootstrap, some 20,000 clusters, and of each resource of a dump. To read
	// it takes up to fifty times as much memory.
	MaxBootstrap = 8 * unit.MiB
	// MaxDump is of what /config_dump answers. It is read resource by resource.
	MaxDump = 64 * unit.MiB
)

// Envoy is what is known of one: its bootstrap, and of a running one what came by xDS too.
type Envoy struct {
	version   Version
	dump      bool // of a running Envoy: what came by xDS is in it
	bootstrap *bootstrapv3.Bootstrap
	listeners []*listenerv3.Listener
	clusters  []*clusterv3.Cluster
	routes    map[string]*routev3.RouteConfiguration
	endpoints map[string]*endpointv3.ClusterLoadAssignment
	filters   map[string]*anypb.Any // HTTP filters by name that came by themselves (ECDS)

	withExtProc []any             // listeners, as trees, that have an ext_proc filter: another package looks at those
	unknown     map[string]string // types that are not known: where one was first
	wrong       []wrong
}

// wrong is what could not be read.
type wrong struct {
	at, what string
	field    bool // an unknown one: the rest could be read
}

// Read reads a bootstrap, YAML or JSON, or what /config_dump answers. Its error says why the text
// is neither, with the line where there is one. What is wrong with one listener or one cluster does
// not keep it from reading the others: that is a finding.
func Read(text []byte) (*Envoy, error) {
	e := &Envoy{
		version: latest, bootstrap: &bootstrapv3.Bootstrap{}, routes: map[string]*routev3.RouteConfiguration{},
		endpoints: map[string]*endpointv3.ClusterLoadAssignment{}, filters: map[string]*anypb.Any{}, unknown: map[string]string{},
	}
	switch {
	case len(bytes.TrimSpace(text)) == 0:
		return nil, errors.New("it is empty, and must be an Envoy bootstrap: static_resources with listeners and clusters")
	case len(text) > int(MaxBootstrap) && bytes.TrimSpace(text)[0] == '{':
		if err := e.stream(text); err != nil {
			return nil, err
		}
		return e, e.found()
	case len(text) > int(MaxBootstrap):
		return nil, fmt.Errorf("it is too large: of a bootstrap %v are read at most; leave out what is not needed here", MaxBootstrap)
	}
	tree, err := input.Tree(text, MaxBootstrap)
	if err != nil {
		return nil, errors.New(oneLine(err.Error()))
	}
	root, ok := tree.(map[string]any)
	if !ok {
		return nil, errors.New("it must be an object, an Envoy bootstrap with static_resources, and not a list or a single value")
	}
	if configs, ok := root["configs"].([]any); ok {
		e.dump = true
		for _, c := range configs {
			m, _ := c.(map[string]any)
			for _, key := range sorted(m) {
				part := m[key]
				if list, ok := part.([]any); ok {
					for _, entry := range list {
						e.add(key, entry)
					}
					continue
				}
				e.add(key, part)
			}
		}
		return e, e.found()
	}
	e.static(xdsread.Unwrap(root).(map[string]any))
	return e, e.found()
}

// found says whether this is a configuration of Envoy at all.
func (e *Envoy) found() error {
	b := e.bootstrap
	unread := slices.ContainsFunc(e.wrong, func(w wrong) bool { return !w.field })
	if !e.dump && !unread && len(e.listeners)+len(e.clusters) == 0 && b.GetAdmin() == nil && b.GetDynamicResources() == nil &&
		b.GetStaticResources() == nil && b.GetNode() == nil && b.GetOverloadManager() == nil {
		return errors.New("it is no configuration of Envoy: neither static_resources, dynamic_resources nor admin is in it, nor configs, as in what /config_dump answers")
	}
	return nil
}

// IsEnvoys says whether a text is most likely Envoy's configuration, and not Highwater's.
func IsEnvoys(tree any) bool {
	m, _ := tree.(map[string]any)
	for _, key := range []string{"static_resources", "staticResources", "dynamic_resources", "dynamicResources", "admin", "node", "configs", "layered_runtime", "overload_manager", "listeners"} {
		if _, ok := m[key]; ok {
			return true
		}
	}
	return false
}

// stream reads a dump resource by resource, so that never more than one of them is in memory as a
// tree.
func (e *Envoy) stream(text []byte) error {
	e.dump = true
	d := json.NewDecoder(bytes.NewReader(text))
	fail := func(err error) error {
		line := 1 + bytes.Count(text[:min(int(d.InputOffset()), len(text))], []byte{'\n'})
		return fmt.Errorf("it is no answer of /config_dump, and too large for a bootstrap (%v): line %d: %s", MaxBootstrap, line, oneLine(err.Error()))
	}
	configs, others := false, 0
	err := eachKey(d, func(key string) error {
		if key != "configs" {
			if others++; others > maxOthers {
				return fmt.Errorf("%d keys and no configs", others)
			}
			return skip(d)
		}
		configs = true
		return eachEntry(d, func() error {
			return eachKey(d, func(key string) error {
				return e.part(d, key)
			})
		})
	})
	if err == nil && !configs {
		err = errors.New("there are no configs")
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

// maxOthers is how many keys may stand beside configs: Envoy writes none.
const maxOthers = 16

// part reads what stands behind a key of one of a dump's configs: a list of resources, or one.
func (e *Envoy) part(d *json.Decoder, key string) error {
	one := func() error {
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return err
		}
		if len(raw) > int(MaxBootstrap) {
			return fmt.Errorf("%s has one of %v, more than %v", key, unit.Bytes(len(raw)), MaxBootstrap)
		}
		tree, err := input.Tree(raw, MaxBootstrap)
		if err != nil {
			return err
		}
		e.add(key, tree)
		return nil
	}
	if !lists[key] {
		return one()
	}
	return eachEntry(d, one)
}

// lists are the keys of a dump's configs whose values are lists of resources.
var lists = map[string]bool{
	"static_clusters": true, "dynamic_active_clusters": true, "dynamic_warming_clusters": true, "static_listeners": true, "dynamic_listeners": true,
	"static_route_configs": true, "dynamic_route_configs": true, "static_endpoint_configs": true, "dynamic_endpoint_configs": true, "ecds_filters": true,
	"inline_scoped_route_configs": true, "dynamic_scoped_route_configs": true, "static_secrets": true, "dynamic_active_secrets": true,
}

func eachKey(d *json.Decoder, do func(key string) error) error {
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(err, notIf(err, "an object must be here: {...}"))
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := t.(string)
		if err := do(key); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

func eachEntry(d *json.Decoder, do func() error) error {
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return errors.Join(err, notIf(err, "a list must be here: [...]"))
	}
	for d.More() {
		if err := do(); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

func notIf(err error, text string) error {
	if err != nil {
		return nil
	}
	return errors.New(text)
}

func skip(d *json.Decoder) error {
	var raw json.RawMessage
	return d.Decode(&raw)
}

// add takes a part of a dump.
func (e *Envoy) add(key string, tree any) {
	m, ok := xdsread.Unwrap(tree).(map[string]any)
	if !ok {
		return
	}
	switch key {
	case "bootstrap":
		delete(m, "static_resources") // they come by themselves, as Envoy took them
		e.static(m)
	case "static_clusters", "dynamic_active_clusters", "dynamic_warming_clusters":
		e.cluster(m["cluster"])
	case "static_listeners":
		e.listener(m["listener"])
	case "dynamic_listeners":
		e.dynamic(m)
	case "static_route_configs", "dynamic_route_configs":
		if r := (&routev3.RouteConfiguration{}); e.decode("route_config "+name(m["route_config"]), m["route_config"], r) {
			e.routes[r.GetName()] = r
		}
	case "static_endpoint_configs", "dynamic_endpoint_configs":
		if a := (&endpointv3.ClusterLoadAssignment{}); e.decode("endpoints "+name(m["endpoint_config"]), m["endpoint_config"], a) {
			e.endpoints[a.GetClusterName()] = a
		}
	case "ecds_filters":
		if f := (&corev3.TypedExtensionConfig{}); e.decode("filter "+name(m["ecds_filter"]), m["ecds_filter"], f) {
			e.filters[f.GetName()] = f.GetTypedConfig()
		}
	}
}

// dynamic takes a listener that came by xDS: as it is in force, or as it is to come into force.
func (e *Envoy) dynamic(m map[string]any) {
	for _, key := range []string{"active_state", "warming_state"} {
		if state, ok := m[key].(map[string]any); ok {
			e.listener(state["listener"])
			return
		}
	}
}

// static takes a bootstrap, the listeners and clusters one by one.
func (e *Envoy) static(root map[string]any) {
	for _, key := range []string{"static_resources", "staticResources"} {
		if m, ok := root[key].(map[string]any); ok {
			e.bootstrap.StaticResources = &bootstrapv3.Bootstrap_StaticResources{}
			e.resources(m)
			delete(root, key)
		}
	}
	b := &bootstrapv3.Bootstrap{}
	e.decode("", root, b)
	proto.Merge(e.bootstrap, b)
	if v := b.GetNode().GetUserAgentBuildVersion().GetVersion(); v != nil {
		e.version = Version{int(v.GetMajorNumber()), int(v.GetMinorNumber())}
	}
}

// resources takes those of a bootstrap.
func (e *Envoy) resources(m map[string]any) {
	for _, key := range sorted(m) {
		list, isList := m[key].([]any)
		if !isList && m[key] != nil {
			list = []any{m[key]} // Envoy takes one for a list of one
		}
		for _, entry := range list {
			switch key {
			case "listeners":
				e.listener(entry)
			case "clusters":
				e.cluster(entry)
			}
		}
		if key != "listeners" && key != "clusters" && key != "secrets" {
			e.mistake(wrong{at: "static_resources", what: key + ": unknown field: it is misspelt, in the wrong place, or newer than this program", field: true})
		}
	}
}

func (e *Envoy) listener(tree any) {
	at := "listener " + name(tree)
	if name(tree) == "" {
		at = fmt.Sprintf("listeners[%d]", len(e.listeners))
	}
	l := &listenerv3.Listener{}
	if !e.decode(at, tree, l) {
		return
	}
	if l.GetName() == "" {
		l.Name = addressOf(l.GetAddress())
	}
	e.listeners = append(e.listeners, l)
	if hasType(tree, extProcType) {
		e.withExtProc = append(e.withExtProc, tree)
	}
}

func (e *Envoy) cluster(tree any) {
	if c := (&clusterv3.Cluster{}); e.decode("cluster "+name(tree), tree, c) {
		e.clusters = append(e.clusters, c)
	}
}

// maxWrong is how many mistakes are told: more than that are one, again and again.
const maxWrong = 50

// decode reads a tree into a message; false where it can't be.
func (e *Envoy) decode(at string, tree any, into proto.Message) bool {
	m, ok := tree.(map[string]any)
	if !ok {
		e.mistake(wrong{at: at, what: "must be an object: {...}"})
		return false
	}
	e.note(at, m)
	mistakes, ok := xdsread.Decode(m, into)
	for _, w := range mistakes {
		e.mistake(wrong{at: at, what: oneLine(w), field: strings.Contains(w, ": unknown field: ")})
	}
	return ok
}

func (e *Envoy) mistake(w wrong) {
	if len(e.wrong) < maxWrong {
		e.wrong = append(e.wrong, w)
	}
}

// note keeps which types are there that are not looked into.
func (e *Envoy) note(at string, tree any) {
	each(tree, func(m map[string]any) {
		t := xdsread.TypeOf(m)
		if t == "" || lookedInto(t) {
			return
		}
		if _, seen := e.unknown[t]; !seen && len(e.unknown) < maxWrong {
			e.unknown[oneLine(t)] = at
		}
	})
}

// each visits every object of a tree.
func each(v any, visit func(m map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		visit(v)
		for _, child := range v {
			each(child, visit)
		}
	case []any:
		for _, child := range v {
			each(child, visit)
		}
	}
}

func hasType(tree any, name string) (has bool) {
	each(tree, func(m map[string]any) { has = has || xdsread.TypeOf(m) == name })
	return has
}

func name(tree any) string {
	m, _ := tree.(map[string]any)
	for _, key := range []string{"name", "cluster_name", "clusterName"} {
		if s, ok := m[key].(string); ok {
			return oneLine(s)
		}
	}
	return ""
}

func addressOf(a *corev3.Address) string {
	switch {
	case a.GetSocketAddress() != nil:
		s := a.GetSocketAddress()
		return fmt.Sprintf("%s:%d", s.GetAddress(), s.GetPortValue())
	case a.GetPipe() != nil:
		return "unix:" + a.GetPipe().GetPath()
	}
	return "without a name"
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
