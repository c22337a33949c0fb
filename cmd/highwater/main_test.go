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
	require.Equal(t, 2, run([]string{"check", "no such file"}, nil, &out, &errs))
	require.Equal(t, 2, run(nil, nil, &out, &errs))
	require.Equal(t, 0, run([]string{"version"}, nil, &out, &errs))
}
