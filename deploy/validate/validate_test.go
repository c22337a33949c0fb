package validate

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/api/resmap"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

var loaded = sync.OnceValues(func() (*Kinds, error) { return Load(context.Background()) })

func kinds(t *testing.T) *Kinds {
	t.Helper()
	k, err := loaded()
	require.NoError(t, err)
	return k
}

// manifests are the files that are applied as they are.
func manifests(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"../envoy-gateway/*.yaml", "../istio/*.yaml"} {
		files, err := filepath.Glob(pattern)
		require.NoError(t, err)
		require.NotEmpty(t, files, pattern)
		all = append(all, files...)
	}
	return all
}

func TestManifests(t *testing.T) {
	for _, file := range manifests(t) {
		t.Run(strings.TrimPrefix(file, "../"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, kinds(t).Check(t.Context(), text))
		})
	}
}

// What an EnvoyProxy patches into the Deployment of Envoy Gateway is no part of its schema.
func TestPatchOfTheDeployment(t *testing.T) {
	text, err := os.ReadFile("../envoy-gateway/ext-proc.yaml")
	require.NoError(t, err)
	var patched bool
	require.NoError(t, documents(text, func(doc []byte) error {
		object, err := decode(doc)
		if err != nil || object["kind"] != "EnvoyProxy" {
			return err
		}
		at := object
		for _, key := range []string{"spec", "provider", "kubernetes", "envoyDeployment", "patch", "value"} {
			at = at[key].(map[string]any)
		}
		asYAML, err := yaml.Marshal(at)
		require.NoError(t, err)
		var deployment appsv1.Deployment
		require.NoError(t, yaml.UnmarshalStrict(asYAML, &deployment))
		require.Len(t, deployment.Spec.Template.Spec.Containers, 1)
		patched = true
		return nil
	}))
	require.True(t, patched)
}

func build(t *testing.T, dir string) resmap.ResMap {
	t.Helper()
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	require.NoError(t, err)
	return built
}

// What `kubectl apply -k` applies is right, and what a pod names is there.
func TestKustomizations(t *testing.T) {
	for _, dir := range []string{"../kubernetes/gateway", "../kubernetes/example"} {
		t.Run(strings.TrimPrefix(dir, "../"), func(t *testing.T) {
			built := build(t, dir)
			text, err := built.AsYaml()
			require.NoError(t, err)
			require.NoError(t, kinds(t).Check(t.Context(), text), string(text))
			configMaps := map[string]bool{}
			var deployments []appsv1.Deployment
			for _, r := range built.Resources() {
				asYAML, err := r.AsYAML()
				require.NoError(t, err)
				switch r.GetKind() {
				case "ConfigMap":
					configMaps[r.GetName()] = true
				case "Deployment":
					var d appsv1.Deployment
					require.NoError(t, yaml.UnmarshalStrict(asYAML, &d))
					deployments = append(deployments, d)
				}
			}
			require.Len(t, deployments, 1)
			holdTogether(t, deployments[0], configMaps)
		})
	}
}

// holdTogether checks what no schema knows: names that must be those of something else, and what a
// guard of memory cannot do without.
func holdTogether(t *testing.T, d appsv1.Deployment, configMaps map[string]bool) {
	t.Helper()
	pod := d.Spec.Template.Spec
	for key, value := range d.Spec.Selector.MatchLabels {
		require.Equal(t, value, d.Spec.Template.Labels[key])
	}
	require.NotNil(t, pod.ShareProcessNamespace)
	require.True(t, *pod.ShareProcessNamespace)
	volumes := map[string]bool{}
	for _, v := range pod.Volumes {
		volumes[v.Name] = true
		if v.ConfigMap != nil {
			require.True(t, configMaps[v.ConfigMap.Name], "%s: there is no ConfigMap %s in %v", v.Name, v.ConfigMap.Name, configMaps)
		}
	}
	ports := map[string]bool{}
	users := map[string]int64{}
	all := append(append([]corev1.Container{}, pod.InitContainers...), pod.Containers...)
	for _, c := range all {
		for _, p := range c.Ports {
			ports[p.Name] = true
		}
	}
	for _, c := range all {
		for _, m := range c.VolumeMounts {
			require.True(t, volumes[m.Name], "%s: there is no volume %s", c.Name, m.Name)
		}
		for _, probe := range []*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe} {
			if probe != nil && probe.HTTPGet.Port.StrVal != "" {
				require.True(t, ports[probe.HTTPGet.Port.StrVal], "%s: there is no port %s", c.Name, probe.HTTPGet.Port.StrVal)
			}
		}
		require.False(t, c.Resources.Limits.Memory().IsZero(), "%s has no memory limit", c.Name)
		require.False(t, c.Resources.Requests.Memory().IsZero(), "%s has no memory request", c.Name)
		switch user := pod.SecurityContext; {
		case c.SecurityContext != nil && c.SecurityContext.RunAsUser != nil:
			users[c.Name] = *c.SecurityContext.RunAsUser
		case user != nil && user.RunAsUser != nil:
			users[c.Name] = *user.RunAsUser
		}
	}
	require.NotZero(t, users["envoy"])
	require.Equal(t, users["envoy"], users["highwater"], "only its own user may look at a process")
}

// A kustomization of somebody's own names the registry.
func TestImages(t *testing.T) {
	fs := filesys.MakeFsOnDisk()
	dir, err := os.MkdirTemp("..", "test-") // kustomize wants relative paths
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kustomization.yaml"),
		[]byte("resources: [../kubernetes/gateway]\nimages:\n- {name: highwater, newName: mine.example/highwater, newTag: 9.9.9}\n- {name: highwater-wasm, newName: mine.example/wasm, newTag: 9.9.8}\n"), 0o600))
	built, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, dir)
	require.NoError(t, err)
	text, err := built.AsYaml()
	require.NoError(t, err)
	require.Contains(t, string(text), "image: mine.example/highwater:9.9.9\n")
	require.Contains(t, string(text), "reference: mine.example/wasm:9.9.8\n")
}

// Each is a manifest of ours with one mistake in it, and the error names its place.
func TestMistakesAreFound(t *testing.T) {
	for _, c := range []struct{ file, old, new, says string }{
		{"envoy-gateway/ext-proc.yaml", "failOpen: true", "failsOpen: true", "spec.extProc[0].failsOpen: there is no such field"},
		{"envoy-gateway/ext-proc.yaml", "messageTimeout: 5s", "messageTimeout: 5 seconds", "spec.extProc[0].messageTimeout"},
		{"envoy-gateway/ext-proc.yaml", "maxParallelRequests: 100000", "maxParallelRequests: many", "maxParallelRequests"},
		{"envoy-gateway/ext-proc.yaml", "    before: envoy.filters.http.custom_response\n", "", "one of before or after must be specified"},
		{"envoy-gateway/ext-proc.yaml", "writableNamespaces: [highwater]", "writableNamespaces: [envoy.filters.http.x]", "cannot contain well-known"},
		{"envoy-gateway/ext-proc.yaml", "\ndata:\n", "\ndat:\n", `unknown field "dat"`},
		{"envoy-gateway/plugin.yaml", "type: JSONPatch", "type: MergePatch", "spec.type"},
		{"envoy-gateway/plugin.yaml", "      op: add\n      path:", "      op: insert\n      path:", "operation.op"},
		{"envoy-gateway/gateway.yaml", "port: 8888", "port: 88888", "spec.listeners[0].port"},
		{"envoy-gateway/gateway.yaml", "kind: GatewayClass", "kind: GatewayKlass", "no project defines this kind"},
		{"envoy-gateway/gateway.yaml", "protocol: HTTP", "protocol: HTTP\n    protocol: HTTP", "already set in map"},
		{"istio/envoyfilter.yaml", "applyTo: HTTP_FILTER", "applyTo: HTTP_FILTERS", "spec.configPatches[1].applyTo"},
		{"istio/envoyfilter.yaml", "operation: INSERT_FIRST", "op: INSERT_FIRST", "spec.configPatches[1].patch.op: there is no such field"},
		{"istio/wasmplugin.yaml", "failStrategy: FAIL_RELOAD", "failStrategy: RELOAD", "spec.failStrategy"},
		{"istio/wasmplugin.yaml", "url: https", "url: gopher", "url must have schema one of"},
		{"istio/mount.yaml", "image: auto", "images: auto", `unknown field "spec.template.spec.containers[0].images"`},
		{"istio/mount.yaml", "  name: istio-ingressgateway\n", "", "metadata.name"},
		{"kubernetes/gateway/podmonitor.yaml", "port: monitoring, path: /metrics", "ports: monitoring, path: /metrics", "spec.podMetricsEndpoints[1].ports: there is no such field"},
		{"kubernetes/gateway/podmonitor.yaml", "interval: 15s", "interval: 15", "interval"},
		{"kubernetes/gateway/service.yaml", "type: LoadBalancer", "typ: LoadBalancer", `unknown field "spec.typ"`},
	} {
		t.Run(c.file+" "+c.new, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("..", c.file))
			require.NoError(t, err)
			require.Contains(t, string(text), c.old)
			err = kinds(t).Check(t.Context(), []byte(strings.Replace(string(text), c.old, c.new, 1)))
			require.ErrorContains(t, err, c.says)
		})
	}
	require.ErrorContains(t, kinds(t).Check(t.Context(), []byte("# nothing\n---\n")), "there is no manifest in it")
}
