package check

import (
	"strconv"
	"strings"

	yamlnode "go.yaml.in/yaml/v3"
)

// lines knows at which line of a bootstrap things stand. It is a help to people: where it finds
// nothing, or the text is no YAML that says, there is no line, and the findings are the same.
type lines struct {
	root      *yamlnode.Node
	resources map[string]*yamlnode.Node // by what findings call them: "listener ingress"
}

// linesOf looks through a text that could be read.
func linesOf(text []byte) *lines {
	var document yamlnode.Node
	if yamlnode.Unmarshal(text, &document) != nil || len(document.Content) != 1 {
		return nil
	}
	l := &lines{root: document.Content[0], resources: map[string]*yamlnode.Node{}}
	static := valueOf(l.root, "static_resources")
	for kind, list := range map[string]*yamlnode.Node{"listener ": valueOf(static, "listeners"), "cluster ": valueOf(static, "clusters")} {
		for _, entry := range entriesOf(list) {
			if n := valueOf(entry, "name"); n != nil && l.resources[kind+oneLine(n.Value)] == nil {
				l.resources[kind+oneLine(n.Value)] = entry
			}
		}
	}
	return l
}

// line is where the place of a finding begins, as exactly as that can be told; 0 = not known. what
// is what the finding says, which of a field that is not known begins with the path to it.
func (l *lines) line(place, what string) int {
	if l == nil {
		return 0
	}
	resource, detail, _ := strings.Cut(place, ": ")
	at := l.resources[resource]
	if at == nil {
		if at = valueOf(l.root, strings.TrimSuffix(resource, ":")); at == nil && resource != "" {
			return 0
		}
	}
	if at == nil {
		at = l.root
	}
	if key, index, name, ok := element(detail); ok {
		if n := within(at, key, index, name); n != nil {
			at = n
		}
	}
	if path, _, ok := strings.Cut(what, ": "); ok && !strings.Contains(path, " ") {
		at = walk(at, path)
	}
	return at.Line
}

// element takes "http_filters[2] router" apart.
func element(detail string) (key string, index int, name string, ok bool) {
	list, name, ok := strings.Cut(detail, " ")
	if !ok {
		return "", 0, "", false
	}
	key, rest, ok := strings.Cut(list, "[")
	if !ok {
		return "", 0, "", false
	}
	index, err := strconv.Atoi(strings.TrimSuffix(rest, "]"))
	return key, index, name, err == nil
}

// within is the element of that place and name in the first list of that key; nil = there is none.
func within(n *yamlnode.Node, key string, index int, name string) *yamlnode.Node {
	if n.Kind == yamlnode.MappingNode {
		if list := entriesOf(valueOf(n, key)); index < len(list) {
			if its := valueOf(list[index], "name"); its != nil && oneLine(its.Value) == name {
				return list[index]
			}
		}
	}
	for _, child := range n.Content {
		if found := within(child, key, index, name); found != nil {
			return found
		}
	}
	return nil
}

// walk follows a path such as filter_chains[0].filters[1].typed_config for as far as it goes.
func walk(n *yamlnode.Node, path string) *yamlnode.Node {
	for _, step := range strings.Split(path, ".") {
		key, indices, _ := strings.Cut(step, "[")
		next := valueOf(n, key)
		if next == nil {
			return n
		}
		line := lineOfKey(n, key)
		for _, i := range strings.FieldsFunc(indices, func(r rune) bool { return r == '[' || r == ']' }) {
			list := entriesOf(next)
			place, err := strconv.Atoi(i)
			if err != nil || place >= len(list) {
				return next
			}
			next = list[place]
			line = next.Line
		}
		own := *next
		own.Line = line
		n = &own
	}
	return n
}

// valueOf is what a mapping has for a key of proto, in either of its spellings; nil = nothing.
func valueOf(n *yamlnode.Node, key string) *yamlnode.Node {
	if n == nil || n.Kind != yamlnode.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if sameKey(n.Content[i].Value, key) {
			return n.Content[i+1]
		}
	}
	return nil
}

// lineOfKey is where a mapping has a key that it has.
func lineOfKey(n *yamlnode.Node, key string) int {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if sameKey(n.Content[i].Value, key) {
			return n.Content[i].Line
		}
	}
	return n.Line
}

// sameKey compares names as proto's JSON has them: filter_chains is filterChains.
func sameKey(a, b string) bool {
	return a == b || strings.EqualFold(strings.ReplaceAll(a, "_", ""), strings.ReplaceAll(b, "_", ""))
}

// entriesOf is what a list has, or the one value that stands for a list of it, as Envoy takes it.
func entriesOf(n *yamlnode.Node) []*yamlnode.Node {
	switch {
	case n == nil:
		return nil
	case n.Kind == yamlnode.SequenceNode:
		return n.Content
	}
	return []*yamlnode.Node{n}
}
