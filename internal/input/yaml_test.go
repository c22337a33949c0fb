package input

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/unit"
)

func TestTree(t *testing.T) {
	want := map[string]any{"a": json.Number("100000"), "b": []any{true, nil, "x", json.Number("1.5")}, "c": map[string]any{}}
	for _, text := range []string{
		`{"a": 100000, "b": [true, null, "x", 1.5], "c": {}}`,
		"a: 100000\nb: [true, null, x, 1.5]\nc: {}\n",
		"# a comment\n---\n{a: 100000, b: [true, ~, 'x', 1.5], c: {}}\n...\n# and another\n",
		"\ufeffx: &x [true, null, \"x\", 1.5]\n",
	} {
		got, err := Tree([]byte(text), unit.MiB)
		require.NoError(t, err, text)
		if strings.Contains(text, "&x") {
			require.Equal(t, map[string]any{"x": want["b"]}, got)
			continue
		}
		require.Equal(t, want, got, text)
		if text[0] == '{' {
			continue
		}
		asJSON, err := JSON([]byte(text), unit.MiB)
		require.NoError(t, err, text)
		require.JSONEq(t, `{"a": 100000, "b": [true, null, "x", 1.5], "c": {}}`, string(asJSON))
	}
	for _, text := range []string{"", "\n", "# nothing\n", "---\n# nothing\n"} {
		asJSON, err := JSON([]byte(text), unit.MiB)
		require.NoError(t, err, text)
		require.Contains(t, []string{"", "null"}, string(asJSON))
		got, err := Tree([]byte(text), unit.MiB)
		require.NoError(t, err, text)
		require.Nil(t, got)
	}
	left := "{ whatever it is"
	asJSON, err := JSON([]byte(left), unit.MiB)
	require.NoError(t, err)
	require.True(t, bytes.Equal([]byte(left), asJSON), "who parses it names the byte")
}

// aliases is levels of n aliases each, of a leaf: n^levels of them.
func aliases(leaf string, n, levels int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "a0: &a0 %s\n", leaf)
	for i := 1; i <= levels; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), n), ", "))
	}
	return b.String()
}

func TestYAMLRefused(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"two documents":             {"a: 1\n---\nb: 1\n", "it has another document from line 2 on"},
		"the second one is empty":   {"a: 1\n---\n", "it has another document from line"},
		"the first one is empty":    {"---\n---\na: 1\n", "it has another document from line"},
		"the second one is JSON":    {"---\na: 1\n---\n{}", "it has another document from line 3 on"},
		"the second one is wrong":   {"a: 1\n---\nb: [\n", "something follows behind the document"},
		"garbage behind":            {"[a]\nb: 1\n", "something follows behind the document"},
		"a brace behind":            {"a: {b: 1}}\n", "it is neither YAML nor JSON: yaml: "},
		"a key twice":               {"a: 1\nb: {c: 1, c: 2}\n", `line 2: key "c" already set in map`},
		"billions by aliases":       {aliases("lol", 10, 9), "it is too large from line 6 on where aliases (*name) are written out"},
		"by aliases of maps":        {aliases("{a: {b: 1}}", 10, 9), "it is too large from line"},
		"long texts by aliases":     {"a: &a " + strings.Repeat("x", 500_000) + "\nb: [*a, *a]\nc: *a\n", "it is too large from line 2 on where aliases"},
		"an alias inside of itself": {"a: &a [*a]\n", "it is nested more than 100 deep at line 1"},
		"an unknown alias":          {"a: *b\n", "unknown anchor 'b' referenced"},
		"deep":                      {"a: " + strings.Repeat("[", 101) + strings.Repeat("]", 101), "it is nested more than 100 deep at line 1"},
		"deeper than can be read":   {strings.Repeat("[", 20_000), "exceeded max depth"},
		"many values":               {strings.Repeat("- a\n", 100_000), "it is too large: no more than 131072 values and lines are read"},
		"many pairs":                {"[" + strings.Repeat("{a},", 100_000) + "]", "it is too large: no more than 131072 values"},
		"more values than signs":    {"x: {" + strings.Repeat("a,", 70_000) + "}", "it is too large from line"},
		"a NUL":                     {"a: \x00\n", "control characters are not allowed"},
		"no UTF-8":                  {"a: \xff\n", "invalid leading UTF-8 octet"},
		"a tab":                     {"a:\n\tb: 1\n", "found character that cannot start any token"},
		"no number of JSON":         {"a: .nan\n", "NaN"},
		"a list as a key":           {"? [a, b]\n: 1\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := JSON([]byte(c.text), unit.MiB)
			require.ErrorContains(t, err, c.want)
			_, again := Tree([]byte(c.text), unit.MiB)
			require.EqualError(t, again, err.Error())
		})
	}
	for text, want := range map[string]string{
		`{"a": 1, "b": {"c": 1, "c": 2}}`:                             `key "c" is set twice, again at byte 26`,
		strings.Repeat("[", 101) + strings.Repeat("]", 101):           "it is nested more than 100 deep at byte 101",
		strings.Repeat(`{"a":`, 101) + "1" + strings.Repeat("}", 101): "it is nested more than 100 deep at byte 501",
		"[" + strings.Repeat("{},", 100_000) + "1]":                   "it is too large: no more than 131072 values",
	} {
		_, err := Tree([]byte(text), unit.MiB)
		require.ErrorContains(t, err, want)
	}
	_, err := Tree([]byte(strings.Repeat("[", 100)+strings.Repeat("]", 100)), unit.MiB)
	require.NoError(t, err)
	_, err = Tree([]byte("a: "+strings.Repeat("[", 98)+strings.Repeat("]", 98)), unit.MiB)
	require.NoError(t, err)
}

// However few bytes a value takes, what is read of a limit takes no more than some hundred times as
// much.
func TestMemoryIsBounded(t *testing.T) {
	allocated := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.TotalAlloc
	}
	const limit = 128 * unit.KiB
	for name, text := range map[string]string{
		"pairs":              "[" + strings.Repeat("{a},", int(limit)/4) + "]",
		"the most pairs":     "[" + strings.Repeat("{a},", int(limit)/33) + "]",
		"aliases":            aliases("{a: {b: 1}}", 100, 5),
		"aliases of a text":  "a: &a " + strings.Repeat("x", int(limit)/2) + "\nb: [" + strings.Repeat("*a,", int(limit)/10) + "]\n",
		"documents":          strings.Repeat("--- a\n", int(limit)/8),
		"documents of a map": strings.Repeat("---\n{a,b,c}\n", int(limit)/64),
	} {
		before := allocated()
		_, _ = JSON([]byte(text), limit)
		_, _ = Tree([]byte(text), limit)
		require.Less(t, allocated()-before, uint64(200*limit), name)
	}
}

func FuzzTree(f *testing.F) {
	for _, seed := range []string{
		`{"a": [1, null, "x"]}`, "a: &a [1, 2]\nb: *a\n", "a: 1\n---\nb: 2\n", "? [a]\n: 1\n", "a: {<<: {b: 1}}\n",
		"%YAML 1.1\n---\na: !!binary aGk=\n", "a: >\n  b\n\n  c\n", "- - - a\n", aliases("x", 5, 3),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		const limit = 4 * unit.KiB
		v, err := Tree(text, limit)
		if err != nil {
			return
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatalf("what was read can't be written: %v", err)
		}
		// In JSON a character may take twelve bytes: \ud83d\ude00 of four, and \u0000 of one.
		if len(text) <= int(limit) && len(again) > 20*int(limit) {
			t.Fatalf("%d bytes became %d", len(text), len(again))
		}
	})
}
