package main

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRun(t *testing.T) {
	var out, errs bytes.Buffer
	require.Equal(t, 2, run(nil, nil, &out, &errs))
	require.Equal(t, 0, run([]string{"version"}, nil, &out, &errs))
	require.Contains(t, out.String(), "highwater")
	errs.Reset()
	require.Equal(t, 0, run([]string{"-h"}, nil, &out, &errs))
	require.Contains(t, errs.String(), "highwater check FILE")
}
