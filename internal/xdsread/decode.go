// Package xdsread reads Envoy's configuration into its types from a tree, as YAML and JSON give it,
// and tells the place of all that is wrong with it. What is of a type that this program does not
// know is left out, and named.
package xdsread

import (
	"encoding/json"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	_ "github.com/cncf/xds/go/xds/type/v3" // TypedStruct
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

const anyType = "@type" // by which an Any names what it holds

// TypeOf is what an Any holds; empty where it is none.
func TypeOf(v any) string {
	m, _ := v.(map[string]any)
	url, _ := m[anyType].(string)
	return typeName(url)
}

func typeName(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

// known is the type of that name; nil where this program does not know it.
func known(name string) protoreflect.MessageDescriptor {
	t, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName(name))
	if err != nil {
		return nil
	}
	return t.Descriptor()
}

// noise is what protojson says beside the reason: of a line that nobody wrote.
var noise = regexp.MustCompile(`^proto:[\s\x{a0}]*|(syntax error )?\(line \d+:\d+\):? ?`)

// Decode reads a tree into a message, and tells all that is wrong with it; ok = it could be read
// nevertheless. What else it holds is read where its type is known, and else left out.
func Decode(tree map[string]any, into proto.Message) (wrong []string, ok bool) {
	s, failed := shape{}, false
	tree = copyOf(tree).(map[string]any)
	delete(tree, anyType)
	s.message("", tree, into.ProtoReflect().Descriptor())
	if s.broken || read(tree, into) == nil {
		return s.wrong, !s.broken
	}
	// Each field alone: protojson stops at the first mistake, and does not say where it is.
	proto.Reset(into)
	for _, key := range slices.Sorted(maps.Keys(tree)) {
		one := into.ProtoReflect().New().Interface()
		if err := read(map[string]any{key: tree[key]}, one); err != nil {
			s.wrong = append(s.wrong, key+": "+noise.ReplaceAllString(err.Error(), ""))
			failed = true
		}
		proto.Merge(into, one)
	}
	return s.wrong, !s.broken && !failed
}

func read(tree map[string]any, into proto.Message) error {
	text, err := json.Marshal(tree)
	if err != nil {
		return err
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(text, into)
}

// copyOf is a tree of its own, to be changed.
func copyOf(v any) any {
	switch v := v.(type) {
	case map[string]any:
		own := make(map[string]any, len(v))
		for key, child := range v {
			own[key] = copyOf(child)
		}
		return own
	case []any:
		own := make([]any, 0, len(v))
		for _, child := range v {
			own = append(own, copyOf(child))
		}
		return own
	}
	return v
}

// Unwrap puts in the place of each TypedStruct what it stands for: the type that it names, with its
// value. Control planes without the type's code send those.
func Unwrap(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, child := range v {
			v[key] = Unwrap(child)
		}
		switch TypeOf(v) {
		case "xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct":
		default:
			return v
		}
		url, ok := v["type_url"].(string)
		if !ok {
			url, ok = v["typeUrl"].(string)
		}
		value, isMap := v["value"].(map[string]any)
		if !ok || v["value"] != nil && !isMap {
			return v
		}
		whole := map[string]any{}
		maps.Copy(whole, value)
		whole[anyType] = url
		return whole
	case []any:
		for i, child := range v {
			v[i] = Unwrap(child)
		}
	}
	return v
}

// shape holds a tree against what a message looks like, and names the place of each mistake. It
// changes what protojson does not take and Envoy does: names of enums in another case, one value
// for a list of it, and a duration as an object. And what is
// of a type that is not known becomes a TypedStruct that says which it is, and no more.
type shape struct {
	wrong  []string
	broken bool // beyond unknown fields, which can be left out
}

func (s *shape) must(at, be string) {
	s.broken = true
	s.wrong = append(s.wrong, fmt.Sprintf("%s: must be %s", at, be))
}

// message looks at a message, and returns it as it is to be read.
func (s *shape) message(at string, v any, d protoreflect.MessageDescriptor) any {
	switch {
	case v == nil:
		return v
	case d.FullName() == "google.protobuf.Duration":
		return s.duration(at, v)
	case d.FullName() == "google.protobuf.Any":
		return s.any(at, v)
	case d.ParentFile().Package() == "google.protobuf": // written as something else
		return v
	}
	m, ok := v.(map[string]any)
	if !ok {
		s.must(at, "an object: {...}")
		return v
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
			m[key] = s.field(place, m[key], f)
		}
	}
	return m
}

// duration takes one as text, and as Envoy does the two parts that it consists of.
func (s *shape) duration(at string, v any) any {
	switch v := v.(type) {
	case string:
		return v
	case map[string]any:
		seconds, nanos := part(v["seconds"]), part(v["nanos"])
		for key := range v {
			if key != "seconds" && key != "nanos" {
				seconds = -1
			}
		}
		if seconds >= 0 && nanos >= 0 && nanos < 1e9 {
			return fmt.Sprintf("%d.%09ds", seconds, nanos)
		}
	}
	s.must(at, "a duration with its unit, such as 5s")
	return v
}

// part is a figure; less than 0 where it is none.
func part(v any) int64 {
	if v == nil {
		return 0
	}
	n, err := strconv.ParseInt(fmt.Sprint(v), 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// any looks into what an Any holds, where its type is known.
func (s *shape) any(at string, v any) any {
	m, ok := v.(map[string]any)
	if !ok {
		s.must(at, "an object with an @type: {...}")
		return v
	}
	d := known(TypeOf(m))
	switch {
	case d == nil && TypeOf(m) == "":
		return v
	case d == nil:
		return map[string]any{anyType: "type.googleapis.com/xds.type.v3.TypedStruct", "type_url": m[anyType]}
	case d.ParentFile().Package() == "google.protobuf":
		return v
	}
	inner := shape{}
	inner.message("", m, d)
	s.broken = s.broken || inner.broken
	for _, w := range inner.wrong {
		s.wrong = append(s.wrong, at+"."+w)
	}
	return m
}

// field looks at a field, and returns it as it is to be read.
func (s *shape) field(at string, v any, f protoreflect.FieldDescriptor) any {
	switch {
	case v == nil:
	case f.IsMap():
		m, ok := v.(map[string]any)
		if !ok {
			s.must(at, "an object: {...}")
		}
		for _, key := range slices.Sorted(maps.Keys(m)) {
			m[key] = s.value(at+"."+key, m[key], f.MapValue())
		}
	case f.IsList():
		list, ok := v.([]any)
		if !ok {
			list = []any{v} // Envoy takes one value for a list of it
		}
		for i, e := range list {
			list[i] = s.value(fmt.Sprintf("%s[%d]", at, i), e, f)
		}
		return list
	default:
		return s.value(at, v, f)
	}
	return v
}

func (s *shape) value(at string, v any, f protoreflect.FieldDescriptor) any {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return s.message(at, v, f.Message())
	case protoreflect.BoolKind:
		if _, ok := v.(bool); !ok {
			s.must(at, "true or false")
		}
	case protoreflect.EnumKind:
		if name, text := v.(string); text {
			return s.enum(at, name, f.Enum().Values())
		}
	}
	return v
}

func (s *shape) enum(at, name string, values protoreflect.EnumValueDescriptors) string {
	var names []string
	for i := range values.Len() {
		declared := string(values.Get(i).Name())
		if strings.EqualFold(name, declared) {
			return declared
		}
		names = append(names, declared)
	}
	s.must(at, "one of "+strings.Join(names, ", "))
	return name
}
