package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const uploadsLoad = `{"name":"uploads","clients":60,"stop":"3s","upload":"4MiB","wait":"1s","apart":"200us"}
{"name":"small","clients":10,"stop":"3s","every":"100ms","response":"1000B"}
`

func replays(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, bad bytes.Buffer
	code = run(append([]string{"replay"}, args...), strings.NewReader(stdin), &out, &bad)
	return code, out.String(), bad.String()
}

// The shipped example is a configuration to replay under: what is in it is found by itself.
func TestReplayUnderTheExample(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "memory.svg")
	own := filepath.Join(dir, "small.yaml")
	require.NoError(t, os.WriteFile(own, []byte("mode: observe\nbudget: {limit: 50%}\nbuffers: {downstream: 64KiB, upstream: 64KiB, whole_request: 16MiB}\n"), 0o600))

	code, stdout, stderr := replays(t, uploadsLoad, "-svg", image, "-container", "300MiB", "-back", "told", "-base", "20MiB", "-", "../../examples/envoy.yaml", own)
	require.Zero(t, code, stderr)
	for _, want := range []string{"standard input: 2 groups of clients in 3s", "no guard", "envoy.yaml", "small.yaml", "150.0MiB", "uploads", "─ limit"} {
		require.Contains(t, stdout, want)
	}
	svg, err := os.ReadFile(image)
	require.NoError(t, err)
	require.Contains(t, string(svg), "limit 150.0MiB")

	code, _, stderr = replays(t, uploadsLoad, "-", own)
	require.Equal(t, 1, code)
	require.Contains(t, stderr, "budget.limit is a share of the container's limit: say by -container 300MiB what that is")
}

func TestReplayFindsALimit(t *testing.T) {
	file := filepath.Join(t.TempDir(), "load.jsonl.gz")
	f, err := os.Create(file)
	require.NoError(t, err)
	z := gzip.NewWriter(f)
	_, err = z.Write([]byte(uploadsLoad))
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.NoError(t, f.Close())

	code, stdout, stderr := replays(t, "", "-find-limit", "-json", file)
	require.Zero(t, code, stderr)
	require.Contains(t, stderr, "defaults: limit ")
	var answer struct {
		Results []struct {
			Name  string
			Limit string
			All   struct{ Served, Rejected, Evicted, Closed int64 }
		}
		Found []struct {
			Name, Limit string
			Tried       []struct{ Lost bool }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(stdout), &answer))
	require.Len(t, answer.Results, 2)
	require.Len(t, answer.Found, 1)
	found := answer.Results[1]
	require.Equal(t, answer.Found[0].Limit, found.Limit)
	require.Zero(t, found.All.Rejected+found.All.Evicted+found.All.Closed)
	require.Positive(t, found.All.Served)

	code, stdout, stderr = replays(t, "", "-limit", "100MiB, 200MiB", file)
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "100MiB")
	require.Contains(t, stdout, "200MiB")
}

// What is left out of an access log is told, with its line, and what the log does not say.
func TestReplayTellsWhatIsMissing(t *testing.T) {
	log := `{"start_time":"1000000","duration":5,"bytes_sent":10,"user_agent":"curl"}` + "\nnonsense\n"
	code, stdout, stderr := replays(t, log, "-")
	require.Zero(t, code, stderr)
	require.Contains(t, stdout, "1 requests in 5ms")
	for _, want := range []string{
		"standard input: left out: line 2: it is no JSON object", "not used: the fields user_agent", "no line has request_duration", "no line has connection_id",
		"no line has response_duration", "no line has request_length and response_length",
	} {
		require.Contains(t, stderr, want)
	}
}

func TestReplayErrors(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	require.NoError(t, os.WriteFile(bad, []byte("budget: {limit: 200MiB, sofft: 80%}\n"), 0o600))
	bare := filepath.Join(dir, "bare.yaml")
	require.NoError(t, os.WriteFile(bare, []byte("static_resources: {listeners: [], clusters: []}\nadmin: {}\n"), 0o600))
	load := filepath.Join(dir, "load.jsonl")
	require.NoError(t, os.WriteFile(load, []byte(uploadsLoad), 0o600))
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 2, "name a load"},
		{[]string{"-", "-"}, 2, "standard input (-) can be read once"},
		{[]string{"-workers", "0", load}, 2, "-workers: must be from 1"},
		{[]string{"-speed", "0", load}, 2, "-speed: must be from"},
		{[]string{"-back", "soon", load}, 2, "write never, told, or a time such as 20ms"},
		{[]string{"-limit", "much", load}, 2, "much"},
		{[]string{"-limit", "1GiB", "-find-limit", load}, 2, "leave one of them out"},
		{[]string{"-by", "colour", load}, 2, "-by: fairness.by"},
		{[]string{"-cores", "-1", load}, 2, "-cores: must be"},
		{[]string{"-no-such-flag"}, 2, "flag provided but not defined"},
		{[]string{filepath.Join(dir, "none")}, 1, "no such file"},
		{[]string{dir}, 1, "is a directory"},
		{[]string{load, bad}, 1, "sofft"},
		{[]string{load, bare}, 1, "no listener has Highwater's HTTP filter"},
		{[]string{load, filepath.Join(dir, "none.yaml")}, 1, "no such file"},
		{[]string{"-limit", "1KiB", load}, 1, "budget.limit"},
		{[]string{"-wasm", load, "-limit", "1GiB", load}, 1, "load.jsonl"},
		{[]string{"-svg", filepath.Join(dir, "none", "x.svg"), load}, 1, "no such file"},
		{[]string{"-"}, 1, "standard input: it is empty"},
	} {
		code, stdout, stderr := replays(t, "", c.args...)
		require.Equal(t, c.code, code, "%v: %s", c.args, stderr)
		require.Contains(t, stderr, c.want, fmt.Sprint(c.args))
		require.Empty(t, stdout, c.args)
	}
}
