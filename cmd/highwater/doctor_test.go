package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/doctor"
)

func doctorOf(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(append([]string{"doctor"}, args...), strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

// evidence is a directory with what /memory says and nothing else.
func savedEvidence(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "memory.json"),
		[]byte(`{"allocated":"14729304","heap_size":"230686720","pageheap_unmapped":"23068672","pageheap_free":"177184768","total_thread_cache":"10326000"}`), 0o600))
	return dir
}

func TestDoctorOfADirectory(t *testing.T) {
	dir := savedEvidence(t)
	page := filepath.Join(dir, "page.html")
	code, text, errs := doctorOf(t, "-dir", dir, "-html", page)
	require.Zero(t, code, errs)
	require.Contains(t, text, "free pages that were not given back")
	require.Contains(t, text, "soft_memory_limit_bytes")
	require.Contains(t, text, "smaps.txt")
	html, err := os.ReadFile(page)
	require.NoError(t, err)
	require.Contains(t, string(html), "soft_memory_limit_bytes")

	code, text, errs = doctorOf(t, "-dir", dir, "-json", "-limit", "300MiB")
	require.Zero(t, code, errs)
	var r doctor.Report
	require.NoError(t, json.Unmarshal([]byte(text), &r))
	require.Equal(t, int64(300<<20), r.Limit)
	require.True(t, r.Has(doctor.WaitingPages))
}

func TestDoctorSaysWhatIsWrong(t *testing.T) {
	empty := t.TempDir()
	for want, c := range map[string]struct {
		code int
		args []string
	}{
		"goes with none of -admin":       {2, []string{"-dir", empty, "-pid", "7"}},
		"takes no arguments but flags":   {2, []string{"bundle"}},
		"-pid: -3 is no process":         {2, []string{"-pid", "-3"}},
		"-watch: -1s must be":            {2, []string{"-watch", "-1s"}},
		"not a size":                     {2, []string{"-limit", "much"}},
		"there is none of memory.json":   {1, []string{"-dir", empty}},
		"no such file":                   {1, []string{"-dir", filepath.Join(empty, "none")}},
		"must be the address of Envoy's": {1, []string{"-admin", "127.0.0.1:9901"}},
		"nothing can be read of an":      {1, []string{"-admin", "http://127.0.0.1:1"}},
		"-html:":                         {1, []string{"-dir", savedEvidence(t), "-html", filepath.Join(empty, "none", "x.html")}},
	} {
		code, _, errs := doctorOf(t, c.args...)
		require.Equal(t, c.code, code, want)
		require.Contains(t, errs, want)
	}
	code, out, _ := doctorOf(t, "-h")
	require.Zero(t, code)
	require.Contains(t, out, "-watch 5m")
}
