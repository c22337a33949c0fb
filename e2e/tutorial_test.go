package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// What the tutorial says works: its commands run one after the other, in a clone of the last
// commit. Only the ports are others, so that it collides with nobody.
func TestTutorial(t *testing.T) {
	t.Parallel() // it waits for most of its time
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "docs", "tutorial.md"))
	require.NoError(t, err)
	script := "set -euo pipefail\n"
	for _, block := range regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllStringSubmatch(string(text), -1) {
		script += block[1]
	}
	for _, port := range []string{"9901", "10000", "10001", "8080"} {
		word := regexp.MustCompile(`\b` + port + `\b`)
		require.Regexp(t, word, script, "the tutorial uses other ports than this test changes")
		script = word.ReplaceAllString(script, unusedPort(t))
	}

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	bash := exec.CommandContext(ctx, "bash", "-c", script)
	bash.Dir = t.TempDir()
	bash.Env = append(os.Environ(),
		"GIT_CONFIG_COUNT=2",
		"GIT_CONFIG_KEY_0=url.file://"+root+".insteadOf", "GIT_CONFIG_VALUE_0=https://github.com/highwater-envoy/highwater",
		"GIT_CONFIG_KEY_1=safe.directory", "GIT_CONFIG_VALUE_1=*")
	bash.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // what it leaves running is ended with it
	bash.Cancel = func() error { return syscall.Kill(-bash.Process.Pid, syscall.SIGKILL) }
	bash.WaitDelay = 5 * time.Second
	printed, err := bash.CombinedOutput()
	if bash.Process != nil {
		_ = syscall.Kill(-bash.Process.Pid, syscall.SIGKILL)
	}
	out := string(printed)
	require.NoError(t, err, "%s", out)

	served := regexp.MustCompile(`(?m)^ *(\d+) 200$`).FindAllStringSubmatch(out, -1)
	require.Len(t, served, 2, "two floods: %s", out)
	for _, s := range served {
		require.Equal(t, "60", s[1], "all uploads are served: %s", out)
	}
	peaks := regexp.MustCompile(`(?m)^wasmcustom\.highwater_peak_bytes: (\d+)$`).FindAllStringSubmatch(out, -1)
	require.Len(t, peaks, 2, "%s", out)
	observed, err := strconv.Atoi(peaks[0][1])
	require.NoError(t, err)
	enforced, err := strconv.Atoi(peaks[1][1])
	require.NoError(t, err)
	require.Less(t, enforced, observed, "enforce does less than observe: %s", out)
	require.Less(t, enforced, 128*mib*11/10, "the flood is not held: %s", out)
	require.Regexp(t, `(?m)^ +[\d.]+MiB .* upload$`, out, "the peak is not told to be the uploads'")
	t.Logf("peak %.2f of the budget observed, %.2f enforced", float64(observed)/(128*mib), float64(enforced)/(128*mib))
}

// The lines that README gives guard an Envoy with its default buffers, as they are and in both
// places.
func TestReadmeConfiguration(t *testing.T) {
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	require.NoError(t, err)
	block := regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$").FindSubmatch(text)
	require.NotNil(t, block, "README has no configuration")
	filter := func(edit func(typed, config map[string]any)) map[string]any {
		f := map[string]any{}
		require.NoError(t, yaml.Unmarshal(block[1], &f))
		typed := f["typed_config"].(map[string]any)
		config := typed["config"].(map[string]any)
		config["vm_config"].(map[string]any)["code"] = map[string]any{"local": map[string]any{"filename": filepath.Join(root, "build", "highwater.wasm")}}
		edit(typed, config)
		return f
	}
	s := start(t, setup{workers: 1, edit: func(c envoytest.Config) {
		c.RemoveGuard()
		c.SetBuffers(mib, mib)
		c.SetConnectionManager(func(hcm map[string]any) {
			delete(hcm, "http2_protocol_options")
			delete(hcm, "delayed_close_timeout")
			requests := filter(func(_, _ map[string]any) {})
			hcm["http_filters"] = append([]any{requests}, hcm["http_filters"].([]any)...)
		})
		ingress := c.Listeners()[0]["filter_chains"].([]any)[0].(map[string]any)
		connections := filter(func(typed, config map[string]any) {
			typed["@type"] = "type.googleapis.com/envoy.extensions.filters.network.wasm.v3.Wasm"
			config["root_id"] = "connections"
		})
		ingress["filters"] = append([]any{connections}, ingress["filters"].([]any)...)
	}})
	res, err := http.Get("http://" + s.addr + "/small")
	require.NoError(t, err)
	defer res.Body.Close()
	require.Equal(t, http.StatusOK, res.StatusCode)
	_, err = io.Copy(io.Discard, res.Body) // so that the connection stays
	require.NoError(t, err)
	_, err = s.Until(t.Context(), "highwater", func(m map[string]float64) bool {
		return m["wasmcustom.highwater_admitted_total"] == 1 && m["wasmcustom.highwater_limit_bytes"] == 200*mib &&
			m["wasmcustom.highwater_in_use_bytes"] > 0 && m["wasmcustom.highwater_connections"] == 1
	})
	require.NoError(t, err)
	require.NotRegexp(t, `\[(error|critical)\]|shared by all plugins`, s.Logs())
}

// unusedPort is one that nobody listens on right now.
func unusedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
}
