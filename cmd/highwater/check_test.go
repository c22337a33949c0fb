package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
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
	require.Contains(t, out.String(), "Exit status: of Highwater's configuration 0 fine")
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
		strings.Repeat("x\n", 1<<22) + "x":                       "standard input is too large: no more than 8MiB is read",
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

// Envoy's configuration beside the server's: the report's own tests are in internal/check.
func TestCheckEnvoy(t *testing.T) {
	example, err := os.ReadFile(envoyExample)
	require.NoError(t, err)
	const at = ": listener ingress: http_filters[0] highwater.requests\n"
	for _, c := range []struct {
		name     string
		from, to string
		code     int
		want     []string
	}{
		{"clean", "", "", 0, []string{"ext_proc, enforce, limit 200MiB", "errors: 0, warnings: 0, notes: 1\n"}},
		{"a warning", "failure_mode_allow: true", "", 1, []string{"warning failure-mode: failure_mode_allow: not true", at, "errors: 0, warnings: 1, notes: 1\n"}},
		{"an error", "message_timeout: 5s", "", 2, []string{"error message-timeout: message_timeout: not set", at, "errors: 1, warnings: 0, notes: 1\n"}},
		{"both", "allow_mode_override: true", "disable_immediate_response: true", 2, []string{"error ", "warning ", "errors: 1, warnings: 1, notes: 1\n"}},
		{"nobody's by name", "highwater", "processor", 0, []string{"ext_proc, enforce, limit 200MiB"}},
		{"no filter of its kind", "ext_proc.v3.ExternalProcessor", "oauth2.v3.OAuth2", 2, []string{"error no-guard: there is no ext_proc filter"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Contains(t, string(example), c.from)
			times := 1
			if c.from == "highwater" {
				times = -1
			}
			envoy := filepath.Join(t.TempDir(), "envoy.yaml")
			require.NoError(t, os.WriteFile(envoy, []byte(strings.Replace(string(example), c.from, c.to, times)), 0o600))
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

// A bootstrap alone is known by what it has; it may come by standard input, and the report as JSON.
func TestCheckBootstrap(t *testing.T) {
	example, err := os.ReadFile("../../examples/envoy.yaml")
	require.NoError(t, err)
	for _, args := range [][]string{{"check", "../../examples/envoy.yaml"}, {"check", "-"}} {
		var out, errs bytes.Buffer
		require.Equal(t, 0, run(args, bytes.NewReader(example), &out, &errs), errs.String())
		require.Contains(t, out.String(), "errors: 0, warnings: 0, notes: 0\n")
	}
	var out, errs bytes.Buffer
	require.Equal(t, 2, run([]string{"check", "-json", "-container", "200MiB", "-"}, bytes.NewReader(example), &out, &errs), errs.String())
	var report struct {
		Findings []struct{ Name, Severity, What, Write string }
		Verdict  string
	}
	require.NoError(t, json.Unmarshal(out.Bytes(), &report))
	require.Equal(t, "limit-over-container", report.Findings[0].Name)
	require.Equal(t, "error", report.Findings[0].Severity)
	for _, args := range [][]string{{"-container", "much"}, {"-envoy-version", "2"}, {"-admin", "9901"}, {"-admin", "http://127.0.0.1:1"}, {"-admin", "http://a", "-envoy", "b"}} {
		out.Reset()
		errs.Reset()
		require.Equal(t, 2, run(append(append([]string{"check"}, args...), "-"), bytes.NewReader(example), &out, &errs), args)
		require.NotEmpty(t, errs.String())
		require.Empty(t, out.String())
	}
}

// A copy is written where there is none yet, as YAML or as JSON, and nothing is written over.
func TestCheckWritesACopy(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain.yaml")
	require.NoError(t, os.WriteFile(plain, []byte(`# mine
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
static_resources:
  listeners:
  - name: a # the gateway
    filter_chains: [{filters: [{name: m, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
      http_filters: [{name: router}], route_config: {virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: c}}]}]}}}]}]
  clusters: [{name: c}]
`), 0o600))
	for _, name := range []string{"copy.yaml", "copy.json"} {
		file := filepath.Join(dir, name)
		var out, errs bytes.Buffer
		require.Equal(t, 1, run([]string{"check", "-write", file, plain}, nil, &out, &errs), errs.String())
		require.Equal(t, "wrote "+file+", with Highwater in observe mode (comments may be lost or stand elsewhere):\n"+
			"  + listener a: highwater.requests\n  + listener a: highwater.connections\n  + cluster envoy_admin: Envoy's own admin interface, for readings\n", errs.String())
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, name == "copy.json", json.Valid(text))
		out.Reset()
		run([]string{"check", file}, nil, &out, &errs)
		require.Contains(t, out.String(), "wasm, observe, limit 200MiB")
		errs.Reset()
		require.Equal(t, 2, run([]string{"check", "-write", file, plain}, nil, &out, &errs))
		require.Contains(t, errs.String(), "is there already")
		after, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, text, after)
	}
	text, err := os.ReadFile(filepath.Join(dir, "copy.yaml"))
	require.NoError(t, err)
	require.Contains(t, string(text), "# the gateway")
}

// A running Envoy is asked for what came by xDS and for endpoints too; what is no Envoy is told.
func TestCheckAdmin(t *testing.T) {
	asked := ""
	answer := `{"configs": [{"bootstrap": {"admin": {"address": {"pipe": {"path": "/a"}}}}}, {"dynamic_listeners": [{"active_state": {"listener": {"name": "by-xds"}}}]}]}`
	admin := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked = r.URL.String(); answer == "" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		_, _ = io.WriteString(w, answer)
	}))
	defer admin.Close()
	var out, errs bytes.Buffer
	require.Equal(t, 0, run([]string{"check", "-admin", admin.URL}, nil, &out, &errs), errs.String())
	require.Equal(t, "/config_dump?include_eds", asked)
	require.Contains(t, out.String(), "by-xds")
	for text, want := range map[string]string{"": "answers 403", "not found": "it must be an object", "{": "neither YAML nor JSON", `{"a": 1}`: "it is no configuration of Envoy"} {
		answer = text
		errs.Reset()
		require.Equal(t, 2, run([]string{"check", "-admin", admin.URL}, nil, &out, &errs))
		require.Contains(t, errs.String(), want)
	}
}
