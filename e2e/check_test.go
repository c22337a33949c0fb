package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/corpus"
	"github.com/highwater-envoy/highwater/internal/envoybin"
)

// An operator's ten minutes: `highwater check -write` alone takes the Envoy of somebody else's
// project to observe mode, and check -admin then finds the guard in the running one. Of the foreign
// file nothing is changed but addresses, so that it collides with nobody and has an upstream.
func TestCheckWrites(t *testing.T) {
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	envoy, err := envoybin.Find(t.Context())
	require.NoError(t, err)
	for _, c := range []struct{ face, file, guard string }{
		{"wasm", "highwater.wasm", "wasm, observe, limit 200MiB"},
		{"module", "libhighwater.so", "dynamic module, observe, limit 200MiB"},
	} {
		t.Run(c.face, func(t *testing.T) {
			port, admin := unusedPort(t), unusedPort(t)
			written, out := writeGuard(t, root, foreignProxy(t, port, admin), "-face", c.face, "-file", filepath.Join(root, "build", c.file))
			require.Contains(t, out, "wrote "+written+", with Highwater in observe mode")
			watches(t, envoy, written, port, admin)
			out, code := highwater(t, root, "check", "-admin", "http://127.0.0.1:"+admin)
			require.Contains(t, out, "Highwater guards all of 1 listener(s) with traffic.")
			require.Contains(t, out, c.guard)
			require.Equal(t, 1, code, out)
			require.NotContains(t, out, "error ", "what was written is right, in the eyes of a running Envoy too")
		})
	}
	t.Run("extproc", func(t *testing.T) {
		written, out := writeGuard(t, root, foreignProxy(t, unusedPort(t), unusedPort(t)), "-face", "extproc")
		text, err := exec.CommandContext(t.Context(), envoy, "--mode", "validate", "-c", written, "--service-cluster", "proxy", "--service-node", "proxy").CombinedOutput()
		require.NoError(t, err, "%s", text)
		_, config, found := strings.Cut(out, "the configuration of highwater serve\n")
		require.True(t, found, out)
		config, _, _ = strings.Cut(config, "\n\n")
		file := filepath.Join(t.TempDir(), "highwater.yaml")
		require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
		out, code := highwater(t, root, "check", "-envoy", written, file)
		require.Contains(t, out, "ext_proc, observe, limit 200MiB")
		require.Equal(t, 1, code, out)
		require.NotContains(t, out, "error ", out)
	})
}

// highwater runs the program.
func highwater(t *testing.T, root string, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "build", "highwater"), args...)
	text, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil {
		require.ErrorAs(t, err, &exit, "%s", text)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// writeGuard has a copy of a configuration written with Highwater in it.
func writeGuard(t *testing.T, root, foreign string, flags ...string) (written, out string) {
	t.Helper()
	dir := t.TempDir()
	from := filepath.Join(dir, "foreign.yaml")
	require.NoError(t, os.WriteFile(from, []byte(foreign), 0o600))
	written = filepath.Join(dir, "envoy.yaml")
	out, code := highwater(t, root, append(append([]string{"check", "-write", written}, flags...), from)...)
	require.Equal(t, 1, code, "warnings: it has Envoy's defaults: %s", out)
	return written, out
}

// watches says that an Envoy runs by the file, and that Highwater watches its requests.
func watches(t *testing.T, envoy, written, port, admin string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	log := startEnvoy(ctx, t, envoy, written)
	stats := func() map[string]float64 {
		all := map[string]float64{}
		text, err := get(ctx, "http://127.0.0.1:"+admin+"/stats?filter=highwater")
		if err != nil {
			return all
		}
		for _, m := range regexp.MustCompile(`(?m)^wasmcustom\.(highwater_\w+): (\d+)$`).FindAllStringSubmatch(text, -1) {
			all[m[1]], _ = strconv.ParseFloat(m[2], 64)
		}
		return all
	}
	require.Eventually(t, func() bool { return stats()["highwater_in_use_bytes"] > 5*mib }, 50*time.Second, 100*time.Millisecond, "no readings: %s", log)
	body, err := get(ctx, "http://127.0.0.1:"+port+"/test")
	require.NoError(t, err, "%s", log)
	require.Equal(t, "the upstream", body)
	require.Eventually(t, func() bool { return stats()["highwater_admitted_total"] == 1 }, 5*time.Second, 50*time.Millisecond, "%v", stats())
	now := stats()
	require.Zero(t, now["highwater_enforcing"], "observe mode")
	require.Zero(t, now["highwater_blind"])
	require.InDelta(t, 200*mib, now["highwater_limit_bytes"], 0)
	require.Eventually(t, func() bool { return stats()["highwater_connections"] == 1 }, 5*time.Second, 50*time.Millisecond, "%v", stats())
}

// foreignProxy is the example of envoyproxy/ratelimit: a gateway with a rate limit, as its authors
// wrote it.
func foreignProxy(t *testing.T, port, admin string) string {
	t.Helper()
	upstream := unusedPort(t)
	server := &http.Server{Addr: "127.0.0.1:" + upstream, ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "the upstream")
	})}
	go func() { _ = server.ListenAndServe() }()
	t.Cleanup(func() { server.Close() })
	for _, p := range corpus.Projects {
		if p.Module != "github.com/envoyproxy/ratelimit" {
			continue
		}
		all, err := p.Configurations(t.Context())
		require.NoError(t, err)
		text := string(all["examples/envoy/proxy.yaml"])
		for from, to := range map[string]string{
			"port_value: 8888": "port_value: " + port, "port_value: 8001": "port_value: " + admin, "address: envoy-mock": "address: 127.0.0.1", "address: ratelimit": "address: 127.0.0.1", "port_value: 9999": "port_value: " + upstream,
			"address: 0.0.0.0": "address: 127.0.0.1",
		} {
			require.Contains(t, text, from)
			text = strings.ReplaceAll(text, from, to)
		}
		return text
	}
	t.Fatal("the project is not in the corpus")
	return ""
}

// startEnvoy starts Envoy on a file as it is, and returns what it prints.
func startEnvoy(ctx context.Context, t *testing.T, envoy, file string) *strings.Builder {
	t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	log := &strings.Builder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // Envoy ends with the thread that started it
		cmd := exec.CommandContext(ctx, envoy, "-c", file, "--concurrency", "1", "-l", "warning", "--use-dynamic-base-id", "--service-cluster", "proxy", "--service-node", "proxy")
		cmd.Stdout, cmd.Stderr = io.Discard, log
		cmd.WaitDelay = 5 * time.Second
		_ = cmd.Run()
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		if t.Failed() {
			t.Logf("Envoy's log:\n%s", log)
		}
	})
	return log
}

func get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, mib))
	return string(text), err
}
