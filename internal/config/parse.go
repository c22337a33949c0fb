package config

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sort"
	"strings"
	"unicode/utf8"

	"github.com/highwater-envoy/highwater/internal/unit"
)

const (
	maxConfig = 1 << 20 // bytes that Parse reads
	maxList   = 256     // entries of a list
	maxErrors = 50      // told at once: more would be no help
)

// Parse reads a configuration from JSON over the defaults, and validates it. It is strict: unknown
// and repeated keys and values of another kind are errors, and all that is wrong is in the error at
// once, each with its key path.
func Parse(text []byte) (Config, error) { return ParseWith(text) }

// Section is further top-level keys of a configuration, those of one face: a pointer to a struct
// with its defaults.
type Section interface {
	Validate() error // all that is wrong, joined; each error begins with the key
}

// ParseWith is Parse where the configuration has further sections.
func ParseWith(text []byte, more ...Section) (Config, error) {
	c := Default()
	root, err := parseTree(text)
	if err != nil {
		return c, err
	}
	d := decoder{}
	into := []reflect.Value{reflect.ValueOf(&c).Elem()}
	for _, s := range more {
		into = append(into, reflect.ValueOf(s).Elem())
	}
	d.object("", root, into...)
	// What could be read is validated too, but not what already has an error: one mistake, one
	// message.
	wrong := unjoin(c.Validate())
	for _, s := range more {
		wrong = append(wrong, unjoin(s.Validate())...)
	}
	for _, e := range wrong {
		key, _, _ := strings.Cut(e.Error(), ":")
		if !d.failed(key) {
			d.errs = append(d.errs, e)
		}
	}
	if more := len(d.errs) - maxErrors; more > 0 {
		d.errs = append(d.errs[:maxErrors], fmt.Errorf("and %d more", more))
	}
	return c, errors.Join(d.errs...)
}

func unjoin(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return nil
}

// member is a key of a JSON object with its value: json.Number, string, bool, nil, []any or
// []member.
type member struct {
	key   string
	value any
}

func parseTree(text []byte) (any, error) {
	if err := readable(text); err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	root, err := parseValue(d, 0)
	if err == nil {
		if _, extra := d.Token(); !errors.Is(extra, io.EOF) {
			err = errors.New("something follows behind the closing brace")
		}
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("the configuration is not JSON: %w (at byte %d)", err, d.InputOffset())
	}
	if _, ok := root.([]member); !ok {
		return nil, errors.New("the configuration must be a JSON object: {\"budget\": {\"limit\": \"512MiB\"}}")
	}
	return root, nil
}

// readable says what is wrong with a text that nobody need read as JSON.
func readable(text []byte) error {
	switch {
	case len(bytes.TrimSpace(text)) == 0:
		return errors.New("the configuration is empty: it needs at least {\"budget\": {\"limit\": \"512MiB\"}}")
	case len(text) > maxConfig:
		return fmt.Errorf("the configuration has %d bytes, more than %v", len(text), unit.Bytes(maxConfig))
	case looksBinary(text) && !json.Valid(text):
		return errors.New("the configuration is not JSON but bytes, as a google.protobuf.Struct arrives: write it as " +
			"configuration: {\"@type\": type.googleapis.com/google.protobuf.StringValue, value: '{\"budget\": {\"limit\": \"512MiB\"}}'}")
	case !utf8.Valid(text):
		return errors.New("the configuration is not UTF-8: a name in it would match nothing")
	}
	return nil
}

// looksBinary says that it may be a Struct. One begins with the tag of its first field, 0x0a; so
// does JSON behind an empty line.
func looksBinary(text []byte) bool {
	return text[0] == '\n' || text[0] < ' ' && text[0] != '\t' && text[0] != '\r' || !utf8.Valid(text)
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	token, err := d.Token()
	if err != nil {
		return nil, err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return token, nil
	}
	if depth > 16 {
		return nil, errors.New("nested too deeply")
	}
	if delim == '[' {
		list := []any{}
		for d.More() {
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = d.Token()
		return list, err
	}
	object := []member{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, err
		}
		v, err := parseValue(d, depth+1)
		if err != nil {
			return nil, err
		}
		object = append(object, member{key.(string), v})
	}
	_, err = d.Token()
	return object, err
}

// decoder fills a struct from a tree and keeps every error with its path.
type decoder struct {
	errs  []error
	paths []string
}

func (d *decoder) fail(path, format string, args ...any) {
	d.paths = append(d.paths, path)
	d.errs = append(d.errs, fmt.Errorf("%s: %s", path, fmt.Sprintf(format, args...)))
}

// failed says whether the key, what it is part of, or a part of it already has an error.
func (d *decoder) failed(key string) bool {
	for _, p := range d.paths {
		if p == key || strings.HasPrefix(p, key+".") || strings.HasPrefix(key, p+".") || strings.HasPrefix(key, p+"[") {
			return true
		}
	}
	return false
}

// value fills one field, by its kind.
func (d *decoder) value(path string, v any, into reflect.Value) {
	switch into.Interface().(type) {
	case unit.Bytes, unit.Ratio, unit.Limit, unit.Duration:
		d.quantity(path, v, into)
		return
	}
	switch into.Kind() {
	case reflect.Struct:
		d.object(path, v, into)
	case reflect.Slice:
		d.list(path, v, into)
	case reflect.Map:
		d.dictionary(path, v, into)
	case reflect.Int, reflect.Float64:
		d.number(path, v, into)
	case reflect.String:
		if text, ok := v.(string); ok {
			into.SetString(text)
		} else {
			d.fail(path, "%s must be text in quotes", show(v))
		}
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			into.SetBool(b)
		} else {
			d.fail(path, "%s must be true or false, without quotes", show(v))
		}
	default:
		panic("no rule for " + into.Type().String()) // a field of a new kind, found by any test that parses
	}
}

// quantity fills a size, a share or a duration.
func (d *decoder) quantity(path string, v any, into reflect.Value) {
	text, ok := scalar(v)
	if !ok {
		d.fail(path, "%s must be a size, a share or a duration in quotes, such as \"64KiB\", \"85%%\" or \"25ms\"", show(v))
		return
	}
	parsed := reflect.New(into.Type())
	if err := parsed.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(text)); err != nil {
		d.fail(path, "%v", err) // and the default stays, so that nothing else looks wrong beside it
		return
	}
	into.Set(parsed.Elem())
}

func (d *decoder) number(path string, v any, into reflect.Value) {
	number, ok := v.(json.Number)
	if into.Kind() == reflect.Int {
		if n, err := number.Int64(); ok && err == nil {
			into.SetInt(n)
		} else {
			d.fail(path, "%s must be a whole number", show(v))
		}
		return
	}
	if n, err := number.Float64(); ok && err == nil {
		into.SetFloat(n)
	} else {
		d.fail(path, "%s must be a number", show(v))
	}
}

func (d *decoder) list(path string, v any, into reflect.Value) {
	list, ok := v.([]any)
	if !ok {
		d.fail(path, "%s must be a list: [...]", show(v))
		return
	}
	if len(list) > maxList {
		d.fail(path, "%d entries are more than %d", len(list), maxList)
		return
	}
	into.Set(reflect.MakeSlice(into.Type(), len(list), len(list)))
	for i, e := range list {
		d.value(fmt.Sprintf("%s[%d]", path, i), e, into.Index(i))
	}
}

// object fills one struct, or several that share the keys among them.
func (d *decoder) object(path string, v any, into ...reflect.Value) {
	object, ok := v.([]member)
	if !ok {
		d.fail(path, "%s must be an object: {...}", show(v))
		return
	}
	fields := map[string]reflect.Value{}
	for _, s := range into {
		for i := range s.NumField() {
			key, _, _ := strings.Cut(s.Type().Field(i).Tag.Get("json"), ",")
			fields[key] = s.Field(i)
		}
	}
	seen := map[string]bool{}
	for _, m := range object {
		at := m.key
		if path != "" {
			at = path + "." + m.key
		}
		field, known := fields[m.key]
		switch {
		case !known:
			d.fail(Clip(at), "unknown key; known here: %s", strings.Join(keys(fields), ", "))
		case seen[m.key]:
			d.fail(at, "is there twice")
		default:
			d.value(at, m.value, field)
		}
		seen[m.key] = true
	}
}

// dictionary fills a map whose keys are the user's.
func (d *decoder) dictionary(path string, v any, into reflect.Value) {
	object, ok := v.([]member)
	if !ok {
		d.fail(path, "%s must be an object: {...}", show(v))
		return
	}
	if len(object) > maxList {
		d.fail(path, "%d entries are more than %d", len(object), maxList)
		return
	}
	into.Set(reflect.MakeMapWithSize(into.Type(), len(object)))
	for _, m := range object {
		key, at := reflect.ValueOf(m.key), path+"."+Clip(m.key)
		if into.MapIndex(key).IsValid() {
			d.fail(at, "is there twice")
			continue
		}
		value := reflect.New(into.Type().Elem()).Elem()
		d.value(at, m.value, value)
		into.SetMapIndex(key, value)
	}
}

// keys are in their order.
func keys[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	sort.Slice(list, func(i, j int) bool { return list[i] < list[j] }) // sort.Strings would be larger in the plugin by 20 kB
	return list
}

func scalar(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	}
	return "", false
}

// show prints a value as the user wrote it, cut to what fits a line.
func show(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case []member:
		return "{...}"
	case []any:
		return "[...]"
	case string:
		return fmt.Sprintf("%q", Clip(v))
	default:
		return Clip(fmt.Sprint(v))
	}
}

// Clip cuts what a message repeats to what fits a line.
func Clip(s string) string {
	if len(s) > 64 {
		return strings.ToValidUTF8(s[:64], "") + "..."
	}
	return s
}
