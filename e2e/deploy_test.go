package e2e

import (
	"context"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/corpus"
	"github.com/highwater-envoy/highwater/internal/envoybin"
)

const (
	wasmType = "type.googleapis.com/envoy.extensions.filters."
	hcmType  = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
)

// istiosBootstrap is Istio's own, from its module, with a listener and a cluster as its gateways
// have them from istiod, which is not there.
func istiosBootstrap(t *testing.T) map[string]any {
	t.Helper()
	istio, err := corpus.Named("istio.io/istio")
	require.NoError(t, err)
	all, err := istio.Configurations(t.Context())
	require.NoError(t, err)
	var c map[string]any
	require.NoError(t, json.Unmarshal(all["pkg/bootstrap/testdata/default_golden.json"], &c))
	delete(c, "dynamic_resources")
	static := section(c, "static_resources")
	static["listeners"] = []any{parsed(t, `
name: 0.0.0.0_8080
address: {socket_address: {address: 127.0.0.1, port_value: 0}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      "@type": `+hcmType+`
      stat_prefix: outbound_0.0.0.0_8080
      use_remote_address: true
      normalize_path: true
      http_filters:
      - name: envoy.filters.http.cors
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors}
      - name: envoy.filters.http.router
        typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
      route_config:
        name: http.8080
        virtual_hosts:
        - name: all
          domains: ["*"]
          routes:
          - {name: all, match: {prefix: /}, route: {cluster: outbound, timeout: 0s}}
`)}
	cluster := parsed(t, `
name: outbound
type: STATIC
connect_timeout: 10s
circuit_breakers: {thresholds: [{max_connections: 100000, max_pending_requests: 100000, max_requests: 100000}]}
load_assignment: {cluster_name: outbound, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 1}}}}]}]}
`)
	clusters := []any{cluster}
	for _, c := range static["clusters"].([]any) {
		if c.(map[string]any)["name"] == "prometheus_stats" { // the others are istiod and the agent
			clusters = append(clusters, c)
		}
	}
	require.Len(t, clusters, 2)
	static["clusters"] = clusters
	return c
}

func parsed(t *testing.T, text string) (m map[string]any) {
	t.Helper()
	require.NoError(t, yaml.UnmarshalStrict([]byte(text), &m))
	return m
}

// patch applies an EnvoyFilter as istiod would, as far as ours go.
func patch(t *testing.T, c map[string]any, file string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "deploy", "istio", file))
	require.NoError(t, err)
	static := section(c, "static_resources")
	for _, p := range section(parsed(t, string(text)), "spec")["configPatches"].([]any) {
		p := p.(map[string]any)
		operation, value := section(p, "patch")["operation"], section(p, "patch")["value"].(map[string]any)
		listener := static["listeners"].([]any)[0].(map[string]any)
		chain := listener["filter_chains"].([]any)[0].(map[string]any)
		filters := chain["filters"].([]any)
		manager := slices.IndexFunc(filters, func(f any) bool {
			return f.(map[string]any)["name"] == "envoy.filters.network.http_connection_manager"
		})
		typed := section(filters[manager].(map[string]any), "typed_config")
		switch to := p["applyTo"].(string) + " " + operation.(string); to {
		case "NETWORK_FILTER INSERT_BEFORE":
			chain["filters"] = slices.Insert(filters, manager, any(value))
		case "NETWORK_FILTER MERGE":
			maps.Copy(typed, section(value, "typed_config"))
		case "HTTP_FILTER INSERT_FIRST":
			typed["http_filters"] = slices.Insert(typed["http_filters"].([]any), 0, any(value))
		case "LISTENER MERGE":
			maps.Copy(listener, value)
		case "CLUSTER MERGE":
			for _, c := range static["clusters"].([]any) {
				maps.Copy(c.(map[string]any), value)
			}
		default:
			require.Fail(t, to)
		}
	}
}

// filters applies our EnvoyFilters.
func filters(t *testing.T, c map[string]any) {
	t.Helper()
	patch(t, c, "envoyfilter.yaml")
	patch(t, c, "lower-buffers.yaml")
}

// plugins adds what istiod makes of our WasmPlugins: pilot/pkg/model/extensions.go of Istio. Each
// has no vm_id, and the version of its resource among its virtual machine's variables.
func plugins(t *testing.T, c map[string]any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "deploy", "istio", "wasmplugin.yaml"))
	require.NoError(t, err)
	listener := section(c, "static_resources")["listeners"].([]any)[0].(map[string]any)
	chain := listener["filter_chains"].([]any)[0].(map[string]any)
	for i, doc := range strings.Split(string(text), "\n---\n") {
		resource := parsed(t, doc)
		spec := section(resource, "spec")
		config, err := json.Marshal(spec["pluginConfig"])
		require.NoError(t, err)
		name := "istio-system." + section(resource, "metadata")["name"].(string)
		filter := func(kind string) any {
			return map[string]any{"name": name, "typed_config": map[string]any{"@type": wasmType + kind + ".wasm.v3.Wasm", "config": map[string]any{
				"name": name, "root_id": spec["pluginName"], "failure_policy": spec["failStrategy"],
				"configuration": map[string]any{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": string(config)},
				"vm_config": map[string]any{
					"runtime": "envoy.wasm.runtime.v8", "code": map[string]any{"local": map[string]any{"filename": pluginFile(t)}},
					"environment_variables": map[string]any{"key_values": map[string]any{"ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION": []string{"101", "102"}[i]}},
				},
			}}}
		}
		filters := chain["filters"].([]any)
		if spec["type"] == "NETWORK" {
			chain["filters"] = slices.Insert(filters, 0, filter("network"))
			continue
		}
		typed := section(filters[len(filters)-1].(map[string]any), "typed_config")
		typed["http_filters"] = slices.Insert(typed["http_filters"].([]any), 0, filter("http"))
	}
}

func pluginFile(t *testing.T) string {
	t.Helper()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	return filepath.Join(root, "build", "highwater.wasm")
}

// Of what our manifests make, `highwater check` says no more than this, and why.
func TestDeployIsChecked(t *testing.T) {
	istio := []string{"soft-memory-limit"} // a matter of the bootstrap, which is Istio's
	for _, c := range []struct {
		name string
		with func(t *testing.T, c map[string]any)
		want []string
	}{
		{"Istio, EnvoyFilter", filters, istio},
		{"Istio, WasmPlugin", plugins, append([]string{"send-buffer"}, istio...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := istiosBootstrap(t)
			c.with(t, config)
			text, err := yaml.Marshal(config)
			require.NoError(t, err)
			file := filepath.Join(t.TempDir(), "envoy.yaml")
			require.NoError(t, os.WriteFile(file, text, 0o600))
			require.ElementsMatch(t, c.want, findings(t, file))
		})
	}
	// The listener for kubelet and Prometheus has no guard, and its clusters need no large breaker.
	kubernetes := []string{"unguarded-listener", "circuit-breakers"}
	gateway, sidecar := filepath.Join("..", "deploy", "kubernetes", "gateway"), filepath.Join("..", "deploy", "kubernetes", "sidecar")
	require.ElementsMatch(t, append([]string{"readings-elsewhere"}, kubernetes...), findings(t, filepath.Join(gateway, "envoy.yaml")), "the companion's")
	require.ElementsMatch(t, kubernetes, findings(t, "-envoy", filepath.Join(sidecar, "envoy.yaml"), filepath.Join(sidecar, "highwater.yaml")))
}

// findings are the names of what `highwater check` warns of, or worse.
func findings(t *testing.T, args ...string) (names []string) {
	t.Helper()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, _ := exec.CommandContext(ctx, filepath.Join(root, "build", "highwater"), append([]string{"check", "-json"}, args...)...).Output() // its status is that of the findings
	var report struct {
		Findings []struct{ Name, Severity, What string }
	}
	require.NoError(t, json.Unmarshal(out, &report), "%s", out)
	for _, f := range report.Findings {
		if f.Severity != "note" {
			t.Logf("%s %s: %s", f.Severity, f.Name, f.What)
			names = append(names, f.Name)
		}
	}
	return names
}
