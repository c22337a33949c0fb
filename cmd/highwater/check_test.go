package main

import (
	"bytes"
	"os"
	"path/filepath"
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
	require.Contains(t, errs.String(), "Exit status: 0 fine")
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
