package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheck(t *testing.T) {
	for _, text := range []string{`{"budget": {"limit": "200MiB"}}`, "budget:\n  limit: 200MiB\n"} {
		var out, errs bytes.Buffer
		require.Equal(t, 0, run([]string{"check", "-"}, strings.NewReader(text), &out, &errs), errs.String())
		require.Contains(t, out.String(), "limit: 200MiB")
		// What it prints is a configuration.
		require.Equal(t, 0, run([]string{"check", "-"}, &out, &bytes.Buffer{}, &errs), errs.String())
	}
	var out, errs bytes.Buffer
	require.Equal(t, 1, run([]string{"check", "-"}, strings.NewReader(`{"budget": {"limit": "200MiB", "resume": "90%", "x": 1}}`), &out, &errs))
	require.Contains(t, errs.String(), "budget.resume: 90% must be")
	require.Contains(t, errs.String(), "budget.x: unknown key")
	require.Equal(t, 1, run([]string{"check", "-"}, strings.NewReader("a: b: c"), &out, &errs))
	require.Equal(t, 2, run([]string{"check", "no such file"}, nil, &out, &errs))
	require.Equal(t, 2, run([]string{"check"}, nil, &out, &errs))
	require.Equal(t, 2, run([]string{"check", "-none", "-"}, nil, &out, &errs))
	require.Equal(t, 0, run([]string{"check", "-h"}, nil, &out, &errs))
	require.Contains(t, out.String(), "Exit status: 0 fine")
}

// What is no configuration is refused by what it is, and takes no more memory than a large one.
func TestCheckOfAnything(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		f := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(f, []byte(text), 0o600))
		return f
	}
	const good = "budget: {limit: 200MiB}\n"
	large := file("large", strings.Repeat("# a comment\n", 1<<20))
	aliases := "a0: &a0 " + strings.Repeat("x", 1000) + "\n"
	for i := range 9 {
		aliases += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i), 9), ","))
	}
	for _, c := range []struct {
		file string
		code int // with -envoy all are 2
		want string
	}{
		{"/dev/zero", 2, "/dev/zero is too large: no more than "},
		{dir, 2, dir + " is a directory: name a file in it"},
		{filepath.Join(dir, "none"), 2, "no such file or directory"},
		{large, 2, large + " is too large: no more than "},
		{file("empty", ""), 1, "is empty"},
		{file("NUL", "budget: \x00\n"), 1, "yaml: control characters are not allowed"},
		{file("no UTF-8", "budget: \xff\xfe\n"), 1, "yaml: invalid leading UTF-8 octet"},
		{file("binary", "\x7fELF\x02\x01\x01"), 1, "control characters are not allowed"},
		{file("deep", strings.Repeat("{a: ", 200)+strings.Repeat("}", 200)), 1, ""},
		{file("deeper", "a: "+strings.Repeat("[", 50000)), 1, "exceeded max depth"},
		{file("deep YAML", "a: "+strings.Repeat("[", 500)+strings.Repeat("]", 500)), 1, "it is nested more than 100 deep at line 1"},
		{file("aliases", aliases), 1, "where aliases (*name) are written out"},
		{file("documents", good+"---\n"+good), 1, "it has another document from line 2 on"},
		{file("garbage", "[budget]\n"+good), 1, "something follows behind the document"},
		{file("twice", good+good), 1, `key "budget" already set`},
		{file("list", "- a\n"), 1, "must be"},
	} {
		t.Run(filepath.Base(c.file), func(t *testing.T) {
			var out, errs bytes.Buffer
			allocated := totalAlloc()
			require.Equal(t, c.code, run([]string{"check", c.file}, nil, &out, &errs))
			require.Contains(t, errs.String(), c.want)
			require.Contains(t, errs.String(), c.file, "which file it is")
			require.Equal(t, 2, run([]string{"check", "-envoy", c.file, serverExample}, nil, &out, &errs))
			require.Equal(t, 2, run([]string{"check", "-envoy", envoyExample, c.file}, nil, &out, &errs))
			require.Contains(t, errs.String(), "-envoy")
			require.Empty(t, out.String())
			require.Less(t, totalAlloc()-allocated, uint64(100*mib), "all three together")
		})
	}
	for text, want := range map[string]string{
		`{"budget": {"limit": "200MiB"}} {}`:                     "something follows behind the closing brace",
		`{"budget": {"limit": "200MiB"}, "budget": {}}`:          "budget: is there twice",
		`{"budget": {"limit": "200MiB", "x": 1}}`:                "budget.x: unknown key",
		"budget: {limit: 200MiB}\nrelease: {}\n---\nrelease: {}": "it has another document from line 3 on",
		strings.Repeat("x", 1<<20) + "x":                         "standard input is too large: no more than 1MiB is read",
	} {
		var out, errs bytes.Buffer
		require.NotEqual(t, 0, run([]string{"check", "-"}, strings.NewReader(text), &out, &errs))
		require.Contains(t, errs.String(), want)
		require.Contains(t, errs.String(), "standard input")
		require.Empty(t, out.String())
	}
	// A pipe is read to its end, as of check <(...).
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	_, err = write.WriteString(good)
	require.NoError(t, err)
	require.NoError(t, write.Close())
	var out, errs bytes.Buffer
	require.Equal(t, 0, run([]string{"check", fmt.Sprintf("/dev/fd/%d", read.Fd())}, nil, &out, &errs), errs.String())
	require.Contains(t, out.String(), "limit: 200MiB")
}

func totalAlloc() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// A file of the server is one, by what it has and no plugin's.
func TestCheckOfTheServers(t *testing.T) {
	var out, errs bytes.Buffer
	require.Equal(t, 0, run([]string{"check", serverExample}, nil, &out, &errs), errs.String())
	require.Contains(t, out.String(), "url: http://127.0.0.1:9901\n")
	require.Contains(t, out.String(), "pulse_file: /run/highwater/pulse\n")
	printed := out.String()
	out.Reset()
	require.Equal(t, 0, run([]string{"check", "-"}, strings.NewReader(printed), &out, &errs), errs.String())
	require.Equal(t, printed, out.String(), "what it prints is a configuration, the same")

	const plugins = "budget: {limit: 200MiB, connections: 5}\n"
	require.Equal(t, 0, run([]string{"check", "-"}, strings.NewReader(plugins), &out, &errs), errs.String())
	for _, own := range []string{"release: {}\n", "envoy: {pid: 5}\n", "memory: {url: \"http://127.0.0.1:9901\"}\n"} {
		errs.Reset()
		require.Equal(t, 1, run([]string{"check", "-"}, strings.NewReader(plugins+own), &out, &errs))
		require.Contains(t, errs.String(), "budget.connections: 5 must be 0 here", own)
	}
}

const (
	serverExample = "../../examples/highwater.yaml"
	envoyExample  = "../../examples/envoy-extproc.yaml"
)

func TestCheckEnvoy(t *testing.T) {
	example, err := os.ReadFile(envoyExample)
	require.NoError(t, err)
	const at = "listener ingress: http_filters[0] highwater.requests"
	for _, c := range []struct {
		name     string
		from, to string
		code     int
		want     []string
	}{
		{"clean", "", "", 0, []string{"checked: " + at + "\n", "errors: 0, warnings: 0\n"}},
		{"a warning", "failure_mode_allow: true", "", 1, []string{"warning: " + at + ": failure_mode_allow: not true", "errors: 0, warnings: 1\n"}},
		{"an error", "message_timeout: 5s", "", 2, []string{"error: " + at + ": message_timeout: not set", "errors: 1, warnings: 0\n"}},
		{"both", "allow_mode_override: true", "request_header_mode: SKIP", 2, []string{"error: ", "warning: ", "errors: 1, warnings: 1\n"}},
		{"another's", "  - name: ingress\n", "  - {name: other, http_filters: [{name: auth, typed_config: {\"@type\": a/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor}}]}\n  - name: ingress\n", 0, []string{
			"checked: " + at + "\n", "passed over: listener other: http_filters[0] auth: neither it nor its cluster is called highwater\n",
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Contains(t, string(example), c.from)
			envoy := filepath.Join(t.TempDir(), "envoy.yaml")
			require.NoError(t, os.WriteFile(envoy, []byte(strings.Replace(string(example), c.from, c.to, 1)), 0o600))
			var out, errs bytes.Buffer
			require.Equal(t, c.code, run([]string{"check", "-envoy", envoy, serverExample}, nil, &out, &errs), out.String())
			require.Empty(t, errs.String())
			for _, want := range c.want {
				require.Contains(t, out.String(), want)
			}
		})
	}

	// What can't be checked is an error, in whichever file it is.
	for _, c := range []struct{ envoy, file, want string }{
		{envoyExample, envoyExample, "static_resources: unknown key"},
		{envoyExample, "no such file", "no such file"},
		{"no such file", serverExample, "-envoy"},
		{os.DevNull, serverExample, "-envoy " + os.DevNull + ": it is empty"},
	} {
		var out, errs bytes.Buffer
		require.Equal(t, 2, run([]string{"check", "-envoy", c.envoy, c.file}, nil, &out, &errs), "%v", c)
		require.Contains(t, errs.String(), c.want)
		require.Empty(t, out.String())
	}
}
