package check

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	yamlnode "go.yaml.in/yaml/v3"
)

// Write makes of a bootstrap a copy that has Highwater in observe mode: its filters on each
// listener that sends to an upstream, and what they need. did says in words what was added. Order
// and anchors stay as they are; of comments most stay, and some may be lost or stand elsewhere.
func Write(text []byte, o Options) (out []byte, did []string, err error) {
	e, err := Read(text)
	switch {
	case err != nil:
		return nil, nil, err
	case e.dump:
		return nil, nil, errors.New("it is a running Envoy's answer, and no file that Envoy starts by: name its bootstrap")
	}
	for _, w := range e.wrong {
		if !w.field {
			return nil, nil, fmt.Errorf("%s: %s: correct that first, for nothing can be added to what can't be read", w.at, w.what)
		}
	}
	c := newChecker(e, o)
	for _, g := range c.guards {
		if by := g.by(); by != nil {
			return nil, nil, fmt.Errorf("there is Highwater in it already (%s): copy its filters to the listeners that lack them, with the same vm_id and code", by.at)
		}
	}
	if !c.canBeGuarded() {
		return nil, nil, errors.New("there is nothing to add: no listener in this file sends anything to an upstream without Highwater. " +
			"Listeners that come by xDS get the filters where they come from")
	}
	p := c.plan()
	var document yamlnode.Node
	if err := yamlnode.Unmarshal(text, &document); err != nil {
		return nil, nil, fmt.Errorf("it can be read, but not be written again: %w", err)
	}
	w := writer{plan: p, done: map[*yamlnode.Node]bool{}}
	if err := w.bootstrap(&document); err != nil {
		return nil, nil, err
	}
	block(&document)
	var b bytes.Buffer
	enc := yamlnode.NewEncoder(&b)
	enc.SetIndent(2)
	if err := errors.Join(enc.Encode(&document), enc.Close()); err != nil {
		return nil, nil, err
	}
	return b.Bytes(), w.did, verify(b.Bytes(), o)
}

// verify reads what was written: no less than what is shipped has to be right.
func verify(text []byte, o Options) error {
	e, err := Read(text)
	if err != nil {
		return fmt.Errorf("what was written cannot be read again: %w", err)
	}
	c := newChecker(e, o)
	if c.canBeGuarded() {
		return errors.New("what was written has no guard everywhere: a filter chain is written in a way that this program does not change. Add the filters by hand")
	}
	c.plugins()
	c.shared()
	c.readings()
	for _, f := range c.Findings {
		if f.Severity == Error {
			return fmt.Errorf("what was written is wrong: %s: %s: %s", f.Name, strings.Join(f.Places, ", "), f.What)
		}
	}
	return nil
}

// writer adds to a document.
type writer struct {
	plan plan
	did  []string
	done map[*yamlnode.Node]bool // lists that have the filter: one may stand in several places
}

func (w *writer) say(format string, args ...any) { w.did = append(w.did, fmt.Sprintf(format, args...)) }

func (w *writer) bootstrap(document *yamlnode.Node) error {
	root := resolve(document.Content[0])
	static := get(root, "static_resources", "staticResources")
	listeners := get(static, "listeners")
	if listeners == nil {
		return errors.New("static_resources.listeners: not found")
	}
	for _, p := range w.plan.chains {
		if err := w.chain(get1(listeners, p.listener), p); err != nil {
			return fmt.Errorf("%s: %w", p.at, err)
		}
	}
	if err := w.admin(root); err != nil {
		return err
	}
	text := w.plan.clusterYAML()
	if text == "" {
		if w.plan.face == Wasm {
			w.say("readings come from the cluster %s, which is the admin interface already", w.plan.cluster)
		}
		return nil
	}
	clusters := get(static, "clusters")
	if clusters == nil {
		clusters = &yamlnode.Node{Kind: yamlnode.SequenceNode}
		set(static, "clusters", clusters)
	}
	added, err := parsed(text)
	if err != nil {
		return err
	}
	clusters.Content = append(clusters.Content, added.Content[0])
	if w.plan.face == ExtProc {
		w.say("cluster %s: highwater serve, at 127.0.0.1:9002. Start it by the configuration above", w.plan.server)
		return nil
	}
	w.say("cluster %s: Envoy's own admin interface, for readings", w.plan.cluster)
	return nil
}

// admin adds the admin interface, or lets /memory through.
func (w *writer) admin(root *yamlnode.Node) error {
	if w.plan.noAdmin {
		added, err := parsed("address: " + defaultAdmin)
		if err != nil {
			return err
		}
		set(root, "admin", added)
		w.say("admin: the admin interface, at 127.0.0.1:9901")
	}
	if list := get(get(root, "admin"), "allow_paths", "allowPaths"); w.plan.path && list != nil {
		added, err := parsed("exact: /memory")
		if err != nil {
			return err
		}
		list.Content = append(list.Content, added)
		w.say("admin.allow_paths: /memory")
	}
	return nil
}

func (w *writer) chain(listener *yamlnode.Node, p planned) error {
	chains := get(listener, "filter_chains", "filterChains")
	n := 0
	if chains != nil {
		n = len(chains.Content)
	}
	chain := get1(chains, p.chain)
	if p.chain == n {
		chain = get(listener, "default_filter_chain", "defaultFilterChain")
	}
	filters := get(chain, "filters")
	if filters == nil {
		return errors.New("its filters are not found")
	}
	for _, l := range w.plan.lists() {
		into := filters
		switch {
		case l.kind == "http" && !p.http:
			continue
		case l.kind == "http":
			if into = managerFilters(filters); into == nil {
				return errors.New("http_filters: not found")
			}
		case l.kind == "listener":
			if into = get(listener, "listener_filters", "listenerFilters"); into == nil {
				into = &yamlnode.Node{Kind: yamlnode.SequenceNode}
				set(resolve(listener), "listener_filters", into)
			}
		}
		if err := w.insert(into, l, p); err != nil {
			return err
		}
	}
	return nil
}

// insert puts a filter first.
func (w *writer) insert(into *yamlnode.Node, l list, p planned) error {
	if w.done[into] {
		return nil
	}
	w.done[into] = true
	added, err := parsed(w.plan.filterYAML(l, p))
	if err != nil {
		return err
	}
	into.Content = append([]*yamlnode.Node{added.Content[0]}, into.Content...)
	w.say("%s: highwater.%s", p.at, l.root)
	return nil
}

// managerFilters is the list of HTTP filters of a chain.
func managerFilters(filters *yamlnode.Node) *yamlnode.Node {
	for _, f := range filters.Content {
		typed := get(resolve(f), "typed_config", "typedConfig")
		if list := get(typed, "http_filters", "httpFilters"); list != nil {
			return list
		}
		if list := get(get(typed, "value"), "http_filters", "httpFilters"); list != nil { // a TypedStruct
			return list
		}
	}
	return nil
}

func resolve(n *yamlnode.Node) *yamlnode.Node {
	for n != nil && n.Kind == yamlnode.AliasNode {
		n = n.Alias
	}
	return n
}

// get is what stands at one of the keys of an object, behind an alias or a merge too; nil where it
// is not there.
func get(n *yamlnode.Node, keys ...string) *yamlnode.Node {
	n = resolve(n)
	if n == nil || n.Kind != yamlnode.MappingNode {
		return nil
	}
	for _, key := range keys {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == key {
				return resolve(n.Content[i+1])
			}
		}
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Tag != "!!merge" {
			continue
		}
		from := resolve(n.Content[i+1])
		if from.Kind == yamlnode.MappingNode {
			if v := get(from, keys...); v != nil {
				return v
			}
			continue
		}
		for _, one := range from.Content {
			if v := get(one, keys...); v != nil {
				return v
			}
		}
	}
	return nil
}

func get1(n *yamlnode.Node, i int) *yamlnode.Node {
	if n == nil || n.Kind != yamlnode.SequenceNode || i >= len(n.Content) {
		return nil
	}
	return resolve(n.Content[i])
}

func set(n *yamlnode.Node, key string, v *yamlnode.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			n.Content[i+1] = v
			return
		}
	}
	n.Content = append(n.Content, &yamlnode.Node{Kind: yamlnode.ScalarNode, Tag: "!!str", Value: key}, v)
}

func parsed(text string) (*yamlnode.Node, error) {
	var d yamlnode.Node
	if err := yamlnode.Unmarshal([]byte(text), &d); err != nil {
		return nil, err
	}
	return d.Content[0], nil
}

// block makes objects and lists that hold others be written over several lines: a file that was
// JSON would be one long line otherwise.
func block(n *yamlnode.Node) (height int) {
	for _, child := range n.Content {
		height = max(height, 1+block(child))
	}
	if height > 2 {
		n.Style &^= yamlnode.FlowStyle
	}
	return height
}
