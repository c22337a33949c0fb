package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/metric"
)

// prometheus is a real one.
type prometheus struct {
	t   *testing.T
	url string
}

// startPrometheus runs it with the shipped configuration and alerts, on other addresses and with an
// interval that a test can wait for.
func startPrometheus(t *testing.T, targets map[string][]string) *prometheus {
	t.Helper()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "make", "-C", root, "build/prometheus").CombinedOutput()
	require.NoError(t, err, "%s", out)
	dir := t.TempDir()
	var config map[string]any
	text, err := os.ReadFile(filepath.Join(root, "deploy", "observe", "prometheus.yaml"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &config))
	config["global"] = map[string]any{"scrape_interval": "500ms", "evaluation_interval": "500ms"}
	jobs := config["scrape_configs"].([]any)
	require.Len(t, jobs, len(targets))
	for _, j := range jobs {
		job := j.(map[string]any)
		job["static_configs"] = []any{map[string]any{"targets": targets[job["job_name"].(string)]}}
	}
	text, err = yaml.Marshal(config)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "prometheus.yaml"), text, 0o600))
	text, err = os.ReadFile(filepath.Join(root, "deploy", "observe", "alerts.yaml"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "alerts.yaml"), text, 0o600))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	l.Close()
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(root, "build", "prometheus"), //nolint:noctx // it is ended below
		"--config.file", filepath.Join(dir, "prometheus.yaml"), "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", addr)
	cmd.Stdout, cmd.Stderr = &log, &log
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		require.NoError(t, cmd.Process.Signal(os.Interrupt))
		err := cmd.Wait()
		if t.Failed() {
			t.Logf("Prometheus (%v):\n%s", err, log.String())
		}
	})
	return &prometheus{t, "http://" + addr}
}

// get is the data of an answer of its API.
func (p *prometheus) get(path string, into any) error {
	res, err := http.Get(p.url + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	var answer struct {
		Status string          `json:"status"`
		Error  string          `json:"error"`
		Data   json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(body, &answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return errors.New(answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// query is how many series an expression gives now.
func (p *prometheus) query(expr string) (n int, err error) {
	var data struct {
		Result []any `json:"result"`
	}
	err = p.get("/api/v1/query?query="+url.QueryEscape(expr), &data)
	return len(data.Result), err
}

// shippedQueries are the expressions of the alerts and of the dashboard, with its variables filled
// in.
func shippedQueries(t *testing.T) (all []string) {
	t.Helper()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	for file, key := range map[string]string{"alerts.yaml": "expr", "dashboard.json": "expr"} {
		text, err := os.ReadFile(filepath.Join(root, "deploy", "observe", file))
		require.NoError(t, err)
		var tree any
		require.NoError(t, yaml.Unmarshal(text, &tree))
		before := len(all)
		var walk func(v any)
		walk = func(v any) {
			switch v := v.(type) {
			case map[string]any:
				if expr, ok := v[key].(string); ok {
					all = append(all, strings.NewReplacer("$instance", ".*", "$__rate_interval", "5s").Replace(expr))
				}
				for _, child := range v {
					walk(child)
				}
			case []any:
				for _, child := range v {
					walk(child)
				}
			}
		}
		walk(tree)
		require.Greater(t, len(all), before+10, file)
	}
	return all
}

// onlyWhereItIs are metrics that are absent where there is nothing to tell: memory that does not
// grow, a container without a limit. The tests of internal/observer have them.
var onlyWhereItIs = map[string]bool{"highwater_time_to_limit_seconds": true, "highwater_container_limit_bytes": true}

// One Prometheus scrapes a plugin, a module and a server. Every expression of the shipped alerts
// and of the dashboard can be evaluated, and every metric in them comes from a real Envoy or from
// highwater serve; those of the policy from all three.
func TestFleet(t *testing.T) {
	plugin := start(t, setup{fake: 40 * mib, plugin: patient})
	module := start(t, setup{face: envoytest.Module, fake: 40 * mib, plugin: patient})
	server := start(t, setup{face: envoytest.ExtProc, plugin: func(cfg map[string]any) { delete(cfg, "envoy") }})
	for _, s := range []*scene{plugin, module} {
		s.reading(full)
		codes := s.waiters(client(t, false), 1) // Envoy shows a histogram once there is something in it
		s.reading(40 * mib)
		s.allServed(codes)
	}
	res, err := http.Get(server.url("/small"))
	require.NoError(t, err)
	res.Body.Close()

	admin := func(s *scene) string { return strings.TrimPrefix(s.AdminURL(), "http://") }
	p := startPrometheus(t, map[string][]string{"envoy": {admin(plugin), admin(module)}, "highwater": {server.Server().HTTP}})
	require.Eventually(t, func() bool {
		n, err := p.query(`highwater_limit_bytes and count_over_time(highwater_limit_bytes[1m]) > 3`)
		return err == nil && n == 3
	}, 30*time.Second, 200*time.Millisecond, "three targets, scraped several times")

	names := regexp.MustCompile(`\b(highwater|grpc_server)_[a-z_]+\b`)
	used := map[string]bool{}
	for _, expr := range shippedQueries(t) {
		_, err := p.query(expr)
		require.NoError(t, err, expr)
		for _, name := range names.FindAllString(expr, -1) {
			used[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(used)) {
		n, err := p.query(name)
		require.NoError(t, err)
		require.True(t, n > 0 || onlyWhereItIs[name], "nobody exports %s", name)
	}
	every := []string{"highwater_wait_milliseconds_count"}
	for _, m := range metric.Counters() {
		name, _, _ := strings.Cut(m.Name, ".")
		every = append(every, name)
	}
	for _, m := range metric.Gauges() {
		every = append(every, m.Name)
	}
	for _, name := range every {
		n, err := p.query("count by (instance) (" + name + `{job="envoy"})`)
		require.NoError(t, err)
		require.Equal(t, 2, n, "%s is in the plugin and in the module", name)
		n, err = p.query(strings.Replace(name, "_milliseconds", "_seconds", 1) + `{job="highwater"}`)
		require.NoError(t, err)
		require.Positive(t, n, name)
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Name   string `json:"name"`
				Health string `json:"health"`
				Error  string `json:"lastError"`
			} `json:"rules"`
		} `json:"groups"`
	}
	require.NoError(t, p.get("/api/v1/rules", &rules))
	require.Len(t, rules.Groups, 2)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			require.Equal(t, "ok", r.Health, "%s: %s", r.Name, r.Error)
		}
	}
}
