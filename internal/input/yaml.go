package input

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	yamlnode "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/unit"
)

const (
	// Parsed, a value takes some 500 bytes beside its text, however short that is: so their number
	// is bounded too. Large configurations of Envoy have one in ten bytes, people's in twenty.
	bytesPerValue = 8
	// maxDepth is more than any configuration needs, and little enough to descend.
	maxDepth = 100
)

// JSON makes JSON of a text that is YAML or JSON. JSON is YAML too, but is left as it is: then its
// errors name the byte. It fails where there is more than one document, where a key is set twice,
// and where aliases make more than limit of the text.
func JSON(text []byte, limit unit.Bytes) ([]byte, error) {
	if err := bounded(text, limit); err != nil {
		return nil, err
	}
	if len(text) == 0 || text[0] == '{' {
		return text, nil
	}
	return fromYAML(text, limit)
}

// Tree is what a text that is YAML or JSON says: maps, lists, text, json.Number as it is written,
// true, false and nil. It fails as JSON does.
func Tree(text []byte, limit unit.Bytes) (any, error) {
	if err := bounded(text, limit); err != nil {
		return nil, err
	}
	if !json.Valid(text) { // YAML refuses some of what JSON may hold
		asJSON, err := fromYAML(text, limit)
		if err != nil {
			return nil, err
		}
		if text = asJSON; text == nil {
			return nil, nil
		}
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // as written: 100000 must not come out as 1e+05
	return tree(d, 0)
}

// tree reads one value. json.Decoder's own way would take the last of equal keys in silence.
func tree(d *json.Decoder, depth int) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	if depth == maxDepth {
		return nil, fmt.Errorf("it is nested more than %d deep at byte %d", maxDepth, d.InputOffset())
	}
	if delim == '[' {
		list := []any{}
		for d.More() {
			v, err := tree(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = d.Token()
		return list, err
	}
	object := map[string]any{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, err
		}
		key := token.(string)
		if _, twice := object[key]; twice {
			return nil, fmt.Errorf("key %q is set twice, again at byte %d", key, d.InputOffset())
		}
		if object[key], err = tree(d, depth+1); err != nil {
			return nil, err
		}
	}
	_, err = d.Token()
	return object, err
}

// bounded says whether a text has few enough values, before anything is made of it: each is next to
// one of these signs.
func bounded(text []byte, limit unit.Bytes) error {
	most := int(limit) / bytesPerValue
	n := 0
	for _, sign := range ",:\n[{-?" {
		n += bytes.Count(text, []byte{byte(sign)})
	}
	if n > most {
		return fmt.Errorf("it is %w: no more than %d values and lines are read; leave out what is not needed here", ErrTooLarge, most)
	}
	return nil
}

// fromYAML is JSON of YAML. It is looked at first as it is written, for the parser follows aliases:
// a thousand of one long text are a thousand such texts.
func fromYAML(text []byte, limit unit.Bytes) ([]byte, error) {
	documents := yamlnode.NewDecoder(bytes.NewReader(text))
	var document yamlnode.Node
	switch err := documents.Decode(&document); {
	case errors.Is(err, io.EOF): // there is nothing but comments
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("it is neither YAML nor JSON: %w", err)
	}
	m := measure{most: int(limit)}
	if err := m.add(&document, 0, 0); err != nil {
		return nil, err
	}
	var another yamlnode.Node
	switch err := documents.Decode(&another); {
	case err == nil:
		return nil, fmt.Errorf("it has another document from line %d on: only one is read; leave out the others, and the --- before them",
			another.Line)
	case !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("something follows behind the document: %w", err)
	}
	document = yamlnode.Node{}
	return yaml.YAMLToJSONStrict(text)
}

// measure is how much a document says when each alias stands for what it is of.
type measure struct {
	most, bytes, values int
}

// add adds a node. alias is the line of the outermost one that it is within, 0 = none.
func (m *measure) add(n *yamlnode.Node, depth, alias int) error {
	m.values++
	m.bytes += len(n.Value)
	switch {
	case depth > maxDepth: // an alias inside of what it stands for is too
		return fmt.Errorf("it is nested more than %d deep at line %d", maxDepth, n.Line)
	case m.bytes > m.most || m.values > m.most/bytesPerValue:
		return fmt.Errorf("it is %w from line %d on where aliases (*name) are written out: use fewer", ErrTooLarge, max(alias, 1))
	}
	if n.Alias != nil {
		if alias == 0 {
			alias = n.Line
		}
		return m.add(n.Alias, depth+1, alias)
	}
	for _, child := range n.Content {
		if err := m.add(child, depth+1, alias); err != nil {
			return err
		}
	}
	return nil
}
