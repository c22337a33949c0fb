package main

import (
	"bytes"
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
	require.Contains(t, out.String(), "pulse_file: /tmp/highwater/pulse\n")
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

const serverExample = "../../examples/highwater.yaml"
