//go:build gateway

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/corpus"
	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/load"
)

const (
	gatewayLimit   = 200 * mib
	gatewayAddress = "127.0.0.1:8888" // the port of deploy/envoy-gateway/gateway.yaml
	gatewayAdmin   = "127.0.0.1:19000"
	gatewayServe   = "127.0.0.1:9003"
	insideNetwork  = "HIGHWATER_INSIDE_NETWORK"
)

// Envoy Gateway, run for real and standalone, has our manifests and our Envoy: a request passes,
// the metrics are there, and a flood of uploads that fills an Envoy without a guard is held.
func TestEnvoyGateway(t *testing.T) {
	if os.Getenv(insideNetwork) == "" {
		inNetworkOfItsOwn(t)
		return
	}
	raise(t, "lo")
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	binary := filepath.Join(root, "build", "envoy-gateway")
	project, err := corpus.Named("github.com/envoyproxy/gateway")
	require.NoError(t, err)
	version, err := exec.Command("go", "version", "-m", binary).Output()
	require.NoError(t, err)
	require.Contains(t, string(version), project.Module+"\t"+project.Version, "as the manifests are validated for")
	for _, face := range []string{"none", "ext-proc", "plugin"} {
		t.Run(face, func(t *testing.T) { underGateway(t, root, binary, face) })
	}
}

func underGateway(t *testing.T, root, binary, face string) {
	t.Helper()
	upstream, err := load.NewUpstream()
	require.NoError(t, err)
	defer upstream.Close()
	g := &gateway{t: t, root: root, dir: t.TempDir(), face: face}
	g.adapt(upstream.Addr())
	if face == "ext-proc" {
		g.run(filepath.Join(root, "build", "highwater"), "serve", "-config", filepath.Join(g.dir, "highwater.yaml"), "-grpc", "unix:"+g.socket(), "-http", gatewayServe)
	}
	certificates := exec.Command(binary, "certgen", "--local", "--config-home", filepath.Join(g.dir, "config"))
	out, err := certificates.CombinedOutput()
	require.NoError(t, err, "%s", out)
	logs := g.run(binary, "server", "--config-path", filepath.Join(g.dir, "envoy-gateway.yaml"))
	defer func() {
		if t.Failed() {
			t.Log(logs.String())
		}
	}()
	client := &http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	require.Eventually(t, func() bool { return codeOf(client, "http://"+gatewayAddress+"/small") == http.StatusOK }, 90*time.Second, 100*time.Millisecond, "a request passes")

	if face != "none" {
		require.Eventually(t, func() bool {
			return g.metric("highwater_in_use_bytes") > mib && g.metric("highwater_admitted_total") > 0
		},
			20*time.Second, 50*time.Millisecond, "there are readings by way of the cluster prometheus_stats, and requests are counted")
		require.Zero(t, g.metric("highwater_blind"))
		g.keepsDownloads()
	}
	g.holds()
}

// gateway is an Envoy Gateway on this machine, which runs one Envoy.
type gateway struct {
	t               *testing.T
	root, dir, face string
}

func (g *gateway) socket() string { return filepath.Join(g.dir, "grpc.sock") }

// adapt writes our manifests, with what differs on a machine without Kubernetes, and a route that
// holds whole requests: so many of them fill any Envoy.
func (g *gateway) adapt(upstream string) {
	_, port, err := net.SplitHostPort(upstream)
	require.NoError(g.t, err)
	resources := filepath.Join(g.dir, "resources")
	for _, dir := range []string{resources, filepath.Join(g.dir, "data", "envoy-versions", "1.40.0", "bin")} {
		require.NoError(g.t, os.MkdirAll(dir, 0o755))
	}
	envoy, err := envoybin.Find(g.t.Context())
	require.NoError(g.t, err)
	require.NoError(g.t, os.Symlink(envoy, filepath.Join(g.dir, "data", "envoy-versions", "1.40.0", "bin", "envoy")))
	text, err := os.ReadFile(filepath.Join("testdata", "envoy-gateway", "standalone.yaml"))
	require.NoError(g.t, err)
	g.write("envoy-gateway.yaml", strings.ReplaceAll(string(text), "DIR", g.dir))
	text, err = os.ReadFile(filepath.Join("testdata", "envoy-gateway", "route.yaml"))
	require.NoError(g.t, err)
	all := strings.ReplaceAll(string(text), "PORT", port)
	files := []string{"gateway.yaml"}
	if g.face != "none" {
		files = append(files, g.face+".yaml")
	}
	var proxy bool
	for _, file := range files {
		text, err := os.ReadFile(filepath.Join(g.root, "deploy", "envoy-gateway", file))
		require.NoError(g.t, err)
		for _, doc := range strings.Split(g.here(string(text)), "\n---\n") {
			var object map[string]any
			require.NoError(g.t, yaml.Unmarshal([]byte(doc), &object))
			switch object["kind"] {
			case "ConfigMap":
				g.write("highwater.yaml", section(object, "data")["highwater.yaml"].(string))
				continue
			case "EnvoyProxy":
				proxy = true
				doc = g.onHost(object)
			}
			all += "\n---\n" + doc
		}
	}
	if !proxy {
		all += "\n---\n" + g.onHost(map[string]any{"apiVersion": "gateway.envoyproxy.io/v1alpha1", "kind": "EnvoyProxy", "metadata": map[string]any{"name": "highwater", "namespace": "default"}})
	}
	g.write("resources/all.yaml", all)
}

// here changes paths and limits: those of pods to those of the test, which enforces.
func (g *gateway) here(text string) string {
	return strings.NewReplacer(
		"/etc/highwater/plugin.wasm", filepath.Join(g.root, "build", "highwater.wasm"), "/run/highwater/grpc.sock", g.socket(),
		"mode: observe", "mode: enforce", `"mode": "observe"`, `"mode": "enforce"`, "limit: 65%", "limit: 200MiB", `"330MiB"`, `"200MiB"`,
		"http2_connection_window: 16MiB", "http2_connection_window: 16MiB\n      whole_request: 16MiB",
		`"http2_connection_window": "16MiB"`, `"http2_connection_window": "16MiB", "whole_request": "16MiB"`,
	).Replace(text)
}

// onHost is an EnvoyProxy for Envoys on this machine. Only there Envoy Gateway leaves out the
// cluster prometheus_stats, and the port of the admin interface is any.
func (g *gateway) onHost(proxy map[string]any) string {
	spec := section(proxy, "spec")
	spec["concurrency"] = 2
	spec["provider"] = map[string]any{"type": "Host", "host": map[string]any{"envoyVersion": "1.40.0"}}
	host, port, err := net.SplitHostPort(gatewayAdmin)
	require.NoError(g.t, err)
	endpoint := map[string]any{"endpoint": map[string]any{"address": map[string]any{"socket_address": map[string]any{"address": host, "port_value": json.Number(port)}}}}
	spec["bootstrap"] = map[string]any{"type": "JSONPatch", "jsonPatches": []any{
		map[string]any{"op": "replace", "path": "/admin/address/socket_address/port_value", "value": json.Number(port)},
		map[string]any{"op": "add", "path": "/static_resources/clusters/-", "value": map[string]any{
			"name": "prometheus_stats", "type": "STATIC", "connect_timeout": "0.25s",
			"load_assignment": map[string]any{"cluster_name": "prometheus_stats", "endpoints": []any{map[string]any{"lb_endpoints": []any{endpoint}}}},
		}},
	}}
	text, err := yaml.Marshal(proxy)
	require.NoError(g.t, err)
	return string(text)
}

func (g *gateway) write(name, text string) {
	require.NoError(g.t, os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600))
}

// run starts a program, which is ended behind the test.
func (g *gateway) run(name string, args ...string) *bytes.Buffer {
	var out bytes.Buffer
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = &out, &out
	c.Env = append(os.Environ(), "HOME="+g.dir)
	require.NoError(g.t, c.Start())
	g.t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(20*time.Second, func() { _ = c.Process.Kill() })
		_ = c.Wait()
		timer.Stop()
	})
	return &out
}

// metric is of the plugin in Envoy, or of the server; -1 where there is none.
func (g *gateway) metric(name string) float64 {
	if g.face == "ext-proc" {
		return metricIn(g.get("http://"+gatewayServe+"/metrics"), name+" ")
	}
	return metricIn(g.get("http://"+gatewayAdmin+"/stats?filter=highwater"), "wasmcustom."+name+": ")
}

func metricIn(text, prefix string) float64 {
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, prefix); ok {
			var v float64
			_, _ = fmt.Sscan(value, &v)
			return v
		}
	}
	return -1
}

func (g *gateway) get(url string) string {
	ctx, cancel := context.WithTimeout(g.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	require.NoError(g.t, err)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 16<<20))
	return string(text)
}

func codeOf(c *http.Client, url string) int {
	res, err := c.Get(url)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, res.Body)
	res.Body.Close()
	return res.StatusCode
}

// keepsDownloads: a response whose reader stalls counts until it is gone, though Envoy Gateway sets
// response_trailer_mode: SKIP.
func (g *gateway) keepsDownloads() {
	c, err := net.Dial("tcp", gatewayAddress)
	require.NoError(g.t, err)
	defer c.Close()
	_, err = io.WriteString(c, "GET /bytes?n=16000000 HTTP/1.1\r\nHost: x\r\n\r\n")
	require.NoError(g.t, err)
	_, err = io.ReadFull(c, make([]byte, 1000))
	require.NoError(g.t, err)
	time.Sleep(time.Second)
	require.Positive(g.t, g.metric("highwater_streams"), "the response has begun and is not done")
	require.NoError(g.t, c.Close())
	require.Eventually(g.t, func() bool { return g.metric("highwater_streams") == 0 }, 10*time.Second, 50*time.Millisecond)
}

// holds floods the gateway with uploads, and has others ask beside them.
func (g *gateway) holds() {
	ctx, cancel := context.WithTimeout(g.t.Context(), 8*time.Second)
	defer cancel()
	flood := &load.Uploads{Addr: gatewayAddress, Path: "/upload?delay=2s", Count: 100, Size: 4 * mib}
	beside := &load.Small{Addr: gatewayAddress, Rate: 50}
	var peak atomic.Int64
	go func() {
		for ctx.Err() == nil {
			var m struct{ Allocated json.Number }
			if json.Unmarshal([]byte(g.get("http://"+gatewayAdmin+"/memory")), &m) == nil {
				n, _ := m.Allocated.Int64()
				peak.Store(max(peak.Load(), n))
			}
			time.Sleep(20 * time.Millisecond)
		}
	}()
	load.Mix{flood, beside}.Run(ctx)
	up, small := flood.Snapshot(), beside.Snapshot()
	share := float64(peak.Load()) / gatewayLimit
	g.t.Logf("peak allocated %.2f of the limit; uploads %d served, %d rejected; small ones %d served, %d rejected; waited or held back %.0f",
		share, up.Served, up.Rejected, small.Served, small.Rejected, g.metric("highwater_throttled_total"))
	require.Positive(g.t, up.Served)
	require.Greater(g.t, small.Served, 20*small.Rejected)
	if g.face == "none" {
		require.Greater(g.t, share, 1.2, "else the flood shows nothing")
		return
	}
	require.Less(g.t, share, 1.0)
	require.Positive(g.t, g.metric("highwater_throttled_total"))
}

// inNetworkOfItsOwn runs the test once more, where nothing but loopback is: Envoy Gateway listens
// on fixed ports of all interfaces.
func inNetworkOfItsOwn(t *testing.T) {
	t.Helper()
	c := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", "8m")
	c.Env = append(os.Environ(), insideNetwork+"=yes")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if uid, gid := os.Getuid(), os.Getgid(); uid != 0 {
		c.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: uid, Size: 1}}
		c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: gid, Size: 1}}
	}
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	require.NoError(t, c.Run())
}

// raise has an interface carry what is sent.
func raise(t *testing.T, name string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	request, err := unix.NewIfreq(name)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request))
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	require.NoError(t, unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request))
}
