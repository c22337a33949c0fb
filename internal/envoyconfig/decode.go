package envoyconfig

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const anyType = "@type" // by which an Any names what it holds

// noise is what protojson says beside the reason: of a line that nobody wrote.
var noise = regexp.MustCompile(`^proto:[\s\x{a0}]*|(syntax error )?\(line \d+:\d+\):? ?`)

// decode reads a tree into a message, and tells all that is wrong with it; ok = it could be read
// nevertheless. What other extensions are set to is left out: their types need not be known here.
func decode(tree map[string]any, into proto.Message) (wrong []string, ok bool) {
	s, failed := shape{}, false
	s.message("", tree, into.ProtoReflect().Descriptor())
	for _, key := range slices.Sorted(maps.Keys(tree)) {
		if key == anyType || s.broken {
			continue
		}
		// Each field alone: protojson stops at the first mistake, and does not say where it is.
		text, err := json.Marshal(withoutAny(map[string]any{key: tree[key]}))
		if err == nil {
			one := into.ProtoReflect().New().Interface()
			err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(text, one)
			proto.Merge(into, one)
		}
		if err != nil {
			s.wrong = append(s.wrong, key+": "+noise.ReplaceAllString(err.Error(), ""))
			failed = true
		}
	}
	return s.wrong, !s.broken && !failed
}

func withoutAny(v any) any {
	switch v := v.(type) {
	case map[string]any:
		kept := map[string]any{}
		for key, child := range v {
			if !isAny(child) {
				kept[key] = withoutAny(child)
			}
		}
		return kept
	case []any:
		kept := []any{}
		for _, child := range v {
			kept = append(kept, withoutAny(child))
		}
		return kept
	}
	return v
}

func isAny(v any) bool {
	m, _ := v.(map[string]any)
	_, ok := m[anyType]
	return ok
}

// shape holds a tree against what a message looks like, and names the place of each mistake.
type shape struct {
	wrong  []string
	broken bool // beyond unknown fields, which can be left out
}

func (s *shape) must(at, be string) {
	s.broken = true
	s.wrong = append(s.wrong, fmt.Sprintf("%s: must be %s", at, be))
}

func (s *shape) message(at string, v any, d protoreflect.MessageDescriptor) {
	switch {
	case v == nil:
		return
	case d.FullName() == "google.protobuf.Duration":
		if _, ok := v.(string); !ok {
			s.must(at, "a duration with its unit, such as 5s")
		}
		return
	case d.ParentFile().Package() == "google.protobuf": // written as something else
		return
	}
	m, ok := v.(map[string]any)
	if !ok {
		s.must(at, "an object: {...}")
		return
	}
	for _, key := range slices.Sorted(maps.Keys(m)) {
		place := strings.TrimPrefix(at+"."+key, ".")
		f := d.Fields().ByJSONName(key)
		if f == nil {
			f = d.Fields().ByTextName(key)
		}
		switch {
		case key == anyType && at == "":
		case f == nil:
			s.wrong = append(s.wrong, place+": unknown field: it is misspelt, in the wrong place, or newer than this program")
		default:
			s.field(place, m[key], f)
		}
	}
}

func (s *shape) field(at string, v any, f protoreflect.FieldDescriptor) {
	switch {
	case v == nil:
	case f.IsMap():
		m, ok := v.(map[string]any)
		if !ok {
			s.must(at, "an object: {...}")
		}
		for _, key := range slices.Sorted(maps.Keys(m)) {
			s.value(at+"."+key, m[key], f.MapValue())
		}
	case f.IsList():
		list, ok := v.([]any)
		if !ok {
			s.must(at, "a list: [...]")
		}
		for i, e := range list {
			s.value(fmt.Sprintf("%s[%d]", at, i), e, f)
		}
	default:
		s.value(at, v, f)
	}
}

func (s *shape) value(at string, v any, f protoreflect.FieldDescriptor) {
	switch f.Kind() {
	case protoreflect.MessageKind:
		s.message(at, v, f.Message())
	case protoreflect.BoolKind:
		if _, ok := v.(bool); !ok {
			s.must(at, "true or false")
		}
	case protoreflect.EnumKind:
		name, text := v.(string)
		if values := f.Enum().Values(); text && values.ByName(protoreflect.Name(name)) == nil {
			var names []string
			for i := range values.Len() {
				names = append(names, string(values.Get(i).Name()))
			}
			s.must(at, "one of "+strings.Join(names, ", "))
		}
	}
}
