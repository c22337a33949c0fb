package e2e

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
)

func envoytestRoot() (string, error) { return envoybin.ModuleRoot() }

// A configuration that is wrong stops the start, and says all that is wrong with it.
func TestWrongConfigurationStopsTheStart(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(c envoytest.Config)
		want []string
	}{
		"several at once": {func(c envoytest.Config) {
			c.SetWholePluginConfig(`{"budget": {"limit": "200MiB", "resume": "90%", "sofd": 1}, "mode": 7, "reject": {"status": 200}}`)
		}, []string{`budget\.resume: 90% must be`, `budget\.sofd: unknown key`, `mode: 7 must be text`, `reject\.status: 200 must be from 400`}},
		"no limit": {func(c envoytest.Config) { c.SetWholePluginConfig(`{}`) }, []string{`budget\.limit: required`}},
		"not JSON": {func(c envoytest.Config) { c.SetWholePluginConfig(`budget: {limit: 200MiB}`) }, []string{`not JSON`}},
		"empty":    {func(c envoytest.Config) { c.SetWholePluginConfig(``) }, []string{`it needs at least`}},
		"of a Struct": {func(c envoytest.Config) {
			c.SetWholePluginConfig(map[string]any{"@type": "type.googleapis.com/google.protobuf.Struct", "value": map[string]any{"budget": map[string]any{"limit": "200MiB"}}})
		}, []string{`google\.protobuf\.Struct.*StringValue`}},
		"root_id": {func(c envoytest.Config) { c.SetRootID("requests", "request") }, []string{`root_id: "request" must be requests .* or connections`}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each is Envoy starting, and no load
			e, err := envoytest.Start(t.Context(), envoytest.Options{Edit: c.edit, Concurrency: 1})
			if err == nil {
				require.NoError(t, e.Stop())
			}
			require.Error(t, err, "Envoy must not start")
			for _, want := range c.want {
				require.Regexp(t, want, err.Error())
			}
		})
	}
}

// A wrong configuration that comes while Envoy runs is refused, and the old one goes on; a right
// one is taken over while requests wait.
func TestConfigurationChangesWhileRunning(t *testing.T) {
	forPlugins(t, 2, func(t *testing.T, b base) {
		t.Helper()
		file := filepath.Join(t.TempDir(), "listeners.yaml")
		var listener map[string]any
		write := func(plugin func(cfg map[string]any)) {
			c := envoytest.Config{"static_resources": map[string]any{"listeners": []any{listener}}}
			c.SetPluginConfig(plugin)
			listener["@type"] = "type.googleapis.com/envoy.config.listener.v3.Listener"
			text, err := yaml.Marshal(map[string]any{"resources": []any{listener}})
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(file+".new", text, 0o600))
			require.NoError(t, os.Rename(file+".new", file)) // Envoy sees renames only
		}
		s := b.start(t, setup{fake: 40 * mib, edit: func(c envoytest.Config) {
			listener = c.Listeners()[0]
			c["static_resources"].(map[string]any)["listeners"] = []any{}
			c["node"] = map[string]any{"id": "test", "cluster": "test"}
			c["dynamic_resources"] = map[string]any{"lds_config": map[string]any{
				"resource_api_version": "V3", "path_config_source": map[string]any{"path": file},
			}}
			write(func(cfg map[string]any) { section(cfg, "throttle")["timeout"] = "20s" })
		}})
		s.reading(full)
		c := client(t, false)
		codes := make(chan int, 1)
		go func() {
			code := 0
			if res, err := c.Post(s.url("/upload?delay=0s"), "text/plain", known(zeros(large))); err == nil {
				code = res.StatusCode
				res.Body.Close()
			}
			codes <- code
		}()
		s.waiting(1)

		write(func(cfg map[string]any) { section(cfg, "budget")["limit"] = "much" })
		require.Eventually(t, func() bool { return s.LogMatches(`budget\.limit: not understood: "much"`) }, 10*time.Second, 50*time.Millisecond)
		require.Equal(t, 200, do(t, c, "GET", s.url("/small"), nil, 0).StatusCode)
		s.waiting(1)

		write(func(cfg map[string]any) { section(cfg, "budget")["limit"] = "400MiB" })
		_, err := s.Until(t.Context(), "highwater_limit", func(m map[string]float64) bool {
			return m["wasmcustom.highwater_limit_bytes"] == 400*mib
		})
		require.NoError(t, err)
		require.Equal(t, 200, <-codes, "what waited has room now, and nothing was lost")
		s.drained(c.CloseIdleConnections)
	})
}
