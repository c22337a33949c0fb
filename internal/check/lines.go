package check

import (
	"regexp"
	"strconv"
	"strings"

	yamlnode "go.yaml.in/yaml/v3"
)

// Locate adds the lines of the file, from 1, at which the places of the findings are: of a filter,
// a route, a listener or a cluster, whatever is the nearest that stands there. 0 = it is not in the
// text, as what is missing or came by xDS. The text is what Read has read, and no answer of a
// running Envoy: nobody looks for lines there.
func (r *Report) Locate(text []byte) {
	var document yamlnode.Node
	if r.Running || yamlnode.Unmarshal(text, &document) != nil || len(document.Content) == 0 {
		return
	}
	l := newLocator(resolve(document.Content[0]))
	for i := range r.Findings {
		f := &r.Findings[i]
		f.Lines = make([]int, len(f.Places))
		for j, place := range f.Places {
			n, rest := l.resource(place)
			n = within(n, rest)
			if f.Name == "unknown-field" || f.Name == "unreadable" { // these begin with a path
				path, _, _ := strings.Cut(f.What, ": ")
				n = walk(n, path)
			}
			if n != nil {
				f.Lines[j] = n.Line
			}
		}
	}
}

// locator finds what a place begins with.
type locator struct {
	root  *yamlnode.Node
	named map[string]*yamlnode.Node // listeners and clusters, as they are called in places
}

func newLocator(root *yamlnode.Node) locator {
	l := locator{root, map[string]*yamlnode.Node{}}
	static := get(root, "static_resources", "staticResources")
	for kind, list := range map[string]string{"listener ": "listeners", "cluster ": "clusters"} {
		for i, entry := range entries(get(static, list)) {
			if name := scalar(get(entry, "name")); name != "" {
				l.named[kind+oneLine(name)] = entry
			}
			l.named[list+"["+strconv.Itoa(i)+"]"] = entry
		}
	}
	return l
}

// resource is the listener, the cluster or the part of the bootstrap that a place begins with, and
// what of the place is behind it.
func (l locator) resource(place string) (n *yamlnode.Node, rest string) {
	for at := len(place); at >= 0; at = strings.LastIndex(place[:at], ": ") { // names may have it too
		if n, ok := l.named[place[:at]]; ok {
			return n, place[at:]
		}
	}
	key, rest, _ := strings.Cut(place, ": ")
	return keyed(l.root, key), rest
}

var index = regexp.MustCompile(`^([a-z_]+)\[(\d+)\]`)

// within is what the rest of a place says, as far as it can be found below a node.
func within(n *yamlnode.Node, rest string) *yamlnode.Node {
	for part := range strings.SplitSeq(strings.TrimPrefix(rest, ": "), ": ") {
		next := (*yamlnode.Node)(nil)
		name := strings.TrimPrefix(part, "route ")
		switch m := index.FindStringSubmatch(part); {
		case part == "default_filter_chain":
			next = get(n, part)
		case m != nil && m[1] == "filter_chains":
			next = get1(get(n, m[1]), number(m[2]))
		case m != nil: // filters and http_filters: by their name, for here some are left out of the count
			next = find(n, func(entry *yamlnode.Node) bool {
				return get(entry, "typed_config", "typedConfig", "name") != nil && part == m[0]+" "+oneLine(scalar(get(entry, "name")))
			})
		case name != part:
			next = find(n, func(entry *yamlnode.Node) bool {
				match := get(entry, "match")
				return match != nil && (scalar(get(entry, "name")) == name || get(entry, "name") == nil && scalar(get(match, "prefix", "path", "path_separated_prefix")) == name)
			})
		}
		if next != nil {
			n = next
		}
	}
	return n
}

// find is the first object below a node of which a condition is true, aliases not followed: where
// something is said once for several places, its line is where it is said.
func find(n *yamlnode.Node, is func(n *yamlnode.Node) bool) *yamlnode.Node {
	if n == nil {
		return nil
	}
	if n.Kind == yamlnode.MappingNode && is(n) {
		return n
	}
	for _, child := range n.Content {
		if f := find(child, is); f != nil {
			return f
		}
	}
	return nil
}

// walk follows a path such as filter_chains[0].filters as far as it goes.
func walk(n *yamlnode.Node, path string) *yamlnode.Node {
	for part := range strings.SplitSeq(path, ".") {
		key, rest, _ := strings.Cut(part, "[")
		next := keyed(n, key)
		for next != nil && rest != "" {
			var i string
			i, rest, _ = strings.Cut(rest, "]")
			rest = strings.TrimPrefix(rest, "[")
			list := get(n, key)
			next = get1(list, number(i))
		}
		if next == nil {
			return n
		}
		if n = next; next.Kind == yamlnode.ScalarNode {
			return n
		}
	}
	return n
}

// keyed is what stands at a key, with the line of the key.
func keyed(n *yamlnode.Node, key string) *yamlnode.Node {
	n = resolve(n)
	if n == nil || n.Kind != yamlnode.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			v := *resolve(n.Content[i+1])
			v.Line = n.Content[i].Line
			return &v
		}
	}
	return nil
}

func entries(n *yamlnode.Node) (all []*yamlnode.Node) {
	if n == nil {
		return nil
	}
	if n.Kind != yamlnode.SequenceNode {
		return []*yamlnode.Node{n} // Envoy takes one for a list of one
	}
	for _, c := range n.Content {
		all = append(all, resolve(c))
	}
	return all
}

func scalar(n *yamlnode.Node) string {
	if n == nil || n.Kind != yamlnode.ScalarNode {
		return ""
	}
	return n.Value
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		return -1
	}
	return n
}
