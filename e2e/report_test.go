package e2e

import (
	"flag"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

var saveReport = flag.String("save-report", "", "a file for the page of TestReport, which then lasts 70 s, so that its chart has something to show")

// serve's /report is one page that asks nobody for anything, of the Envoy beside it.
func TestReport(t *testing.T) {
	s := start(t, setup{face: envoytest.ExtProc, workers: 2, edit: func(c envoytest.Config) {
		c.SetPluginConfig(func(cfg map[string]any) { section(cfg, "envoy")["pid"] = 0 })
	}})
	page := func() string {
		res, err := http.Get("http://" + s.Server().HTTP + "/report")
		require.NoError(t, err)
		defer res.Body.Close()
		require.Equal(t, http.StatusOK, res.StatusCode)
		require.Contains(t, res.Header.Get("Content-Security-Policy"), "default-src 'none'")
		text, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return string(text)
	}
	var text string
	require.Eventually(t, func() bool {
		text = page()
		return strings.Contains(text, "Envoy&#39;s binary")
	}, 10*time.Second, 100*time.Millisecond)
	for _, want := range []string{"Envoy's binary", "GLIBC_TUNABLES", "Who holds it, as the guard counts", "<svg", "Growth, watched for"} {
		require.Contains(t, strings.ReplaceAll(text, "&#39;", "'"), want)
	}
	for _, never := range []string{"<script", "src=", `href="http`, "@import", "url("} {
		require.NotContains(t, text, never)
	}
	if *saveReport == "" {
		return
	}
	time.Sleep(15 * time.Second)
	s.under(&load.Uploads{Addr: s.addr, Count: 60, Size: 4 * mib, Path: "/upload?delay=3s", Drain: 5 * time.Second}, inFlight(20), func() { time.Sleep(22 * time.Second) })
	time.Sleep(12 * time.Second)
	s.under(&load.SlowReaders{Addr: s.addr, Count: 300, Size: 16 * mib}, inFlight(100), func() { time.Sleep(12 * time.Second) })
	require.NoError(t, os.WriteFile(*saveReport, []byte(page()), 0o600))
}
