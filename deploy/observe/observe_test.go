// Package observe tests the alerts and the configuration of Prometheus beside it with promtool.
package observe

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/envoybin"
)

// promtool runs the real one, which make builds if need be.
func promtool(t *testing.T, args ...string) string {
	t.Helper()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "make", "-C", root, "build/promtool").CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.CommandContext(t.Context(), filepath.Join(root, "build", "promtool"), args...).CombinedOutput()
	require.NoError(t, err, "promtool %v:\n%s", args, out)
	return string(out)
}

func TestPromtoolAgrees(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "rules", "--lint=all", "--lint-fatal", "alerts.yaml")
	promtool(t, "check", "config", "--lint=all", "--lint-fatal", "prometheus.yaml")
	promtool(t, "test", "rules", "alerts_test.yaml")
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, into))
}

// Each alert has a load at which it fires, and one at which it does not.
func TestEveryAlertIsTested(t *testing.T) {
	t.Parallel()
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert  string `json:"alert"`
				Labels struct {
					Severity string `json:"severity"`
				} `json:"labels"`
			} `json:"rules"`
		} `json:"groups"`
	}
	read(t, "alerts.yaml", &rules)
	var tests struct {
		Tests []struct {
			Alerts []struct {
				Name string `json:"alertname"`
				Want []any  `json:"exp_alerts"`
			} `json:"alert_rule_test"`
		} `json:"tests"`
	}
	read(t, "alerts_test.yaml", &tests)
	fires, silent := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, a := range test.Alerts {
			if len(a.Want) > 0 {
				fires[a.Name] = true
			} else {
				silent[a.Name] = true
			}
		}
	}
	page, err := os.ReadFile("../../docs/how-to/read-and-alert-on-metrics.md")
	require.NoError(t, err)
	n := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			n++
			require.True(t, fires[r.Alert], "no load at which %s fires", r.Alert)
			require.True(t, silent[r.Alert], "no load at which %s is silent", r.Alert)
			require.Contains(t, string(page), "| `"+r.Alert+"` | "+r.Labels.Severity+" |")
		}
	}
	require.Greater(t, n, 10)
	require.Equal(t, n, strings.Count(string(page), "| `Highwater"), "the page names no other")
}

// Every metric in the alerts and in the dashboard is one of the reference, which is held against
// the code.
func TestEveryMetricExists(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/reference/metrics.md")
	require.NoError(t, err)
	known := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)").FindAllStringSubmatch(string(page), -1) {
		known[m[1]] = true
		known[strings.Replace(m[1], "_milliseconds", "_seconds", 1)] = true // as highwater serve has it
	}
	names := regexp.MustCompile(`\b(?:highwater|grpc_server)_[a-z_]+\b`)
	for _, file := range []string{"alerts.yaml", "alerts_test.yaml", "dashboard.json"} {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		found := names.FindAllString(string(text), -1)
		require.Greater(t, len(found), 15, file)
		for _, name := range found {
			require.True(t, known[strings.TrimSuffix(name, "_bucket")], "%s: there is no metric %s", file, name)
		}
	}
}
