package main

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/docs/reference"
)

// The reference has each key of the configuration, with its default, and no other.
func TestConfigurationReference(t *testing.T) {
	config, err := parseServed([]byte(`{"budget": {"limit": "200MiB"}}`))
	require.NoError(t, err)
	defaults := map[string]string{}
	flatten(t, "", config.guard, defaults)
	flatten(t, "", config.observer, defaults)
	defaults["budget.limit"] = "required"
	observed := map[string]string{"memory.url": ""}
	flatten(t, "", config.observer, observed)

	told := map[string]string{}
	for _, cells := range reference.Rows(reference.Section(t, "../../docs/reference/configuration.md", "All keys")) {
		require.Len(t, cells, 5, "%s", cells)
		key := cells[0]
		require.NotContains(t, told, key, "the reference has it twice")
		require.Contains(t, []string{"shared", "own", "server"}, cells[2], "%s: its scope", key)
		_, ofServer := observed[key]
		require.Equal(t, ofServer, cells[2] == "server", "%s: whether it is of the server alone", key)
		require.Regexp(t, `^\d+\.\d+\.\d+$`, cells[3], "%s: since when", key)
		told[key] = strings.Trim(cells[1], "`")
	}
	require.Equal(t, defaults, told)
}

// flatten takes a configuration apart into keys with dots and their values as they are written.
func flatten(t *testing.T, prefix string, v any, into map[string]string) {
	t.Helper()
	text, err := json.Marshal(v)
	require.NoError(t, err)
	var tree map[string]json.RawMessage
	if json.Unmarshal(text, &tree) != nil || len(tree) == 0 {
		value := string(text)
		if value != `""` {
			value = strings.Trim(value, `"`)
		}
		into[strings.TrimSuffix(prefix, ".")] = value
		return
	}
	for key, child := range tree {
		flatten(t, prefix+key+".", child, into)
	}
}

// The reference has each flag of each subcommand that has any, and no other.
func TestCommandLineReference(t *testing.T) {
	for name, usage := range map[string]func(w io.Writer) int{
		"serve":  func(w io.Writer) int { return serve([]string{"-h"}, w) },
		"pprof":  func(w io.Writer) int { return pprof([]string{"-h"}, io.Discard, w) },
		"heap":   func(w io.Writer) int { return heap([]string{"-h"}, io.Discard, w) },
		"doctor": func(w io.Writer) int { return diagnose([]string{"-h"}, io.Discard, w) },
		"replay": func(w io.Writer) int { return replayLoad([]string{"-h"}, nil, io.Discard, w) },
	} {
		var printed bytes.Buffer
		require.Zero(t, usage(&printed), name)
		section := reference.Section(t, "../../docs/reference/command-line.md", "highwater "+name)
		told := ""
		for row := range strings.Lines(section) {
			if strings.HasPrefix(row, "| `-") {
				told += strings.Split(row, " | ")[0]
			}
		}
		require.Equal(t, flagsIn(printed.String(), `(?m)^  (-[a-z_-]+)`), flagsIn(told, "`(-[a-z_-]+)`"), name)
	}
}

func flagsIn(text, pattern string) (names []string) {
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(text, -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// The reference has each flag of check, and no other.
func TestCheckReference(t *testing.T) {
	section := reference.Section(t, "../../docs/reference/command-line.md", "highwater check")
	var printed bytes.Buffer
	require.Zero(t, check([]string{"-h"}, nil, io.Discard, &printed))
	require.Equal(t, flagsIn(printed.String(), `(?m)^  (-[a-z_-]+)`), flagsIn(section, "(?m)^\\| `(-[a-z_-]+)`"))
}
