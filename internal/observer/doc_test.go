package observer

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/cgroup"
	"github.com/highwater-envoy/highwater/internal/docs/reference"
	"github.com/highwater-envoy/highwater/internal/metric"
)

// The reference has each figure of the observer with its kind and the values of its label, and no
// other.
func TestMetricsReference(t *testing.T) {
	told, meaning := map[string]string{}, map[string]string{}
	for _, cells := range reference.Rows(reference.Section(t, "../../docs/reference/metrics.md", "Of the companion, on its `/metrics` alone")) {
		if len(cells) == 3 {
			told[cells[0]], meaning[cells[0]] = cells[1], cells[2]
		}
	}
	all := map[string]string{}
	for _, f := range (Status{PID: 1, Container: &cgroup.Stats{Limit: 1, Pressure: &cgroup.Pressure{}}, TimeToLimit: time.Second}).Figures() {
		name, label, labelled := strings.Cut(f.Name, ".")
		if labelled {
			label, value, _ := strings.Cut(label, ".")
			name += "{" + label + "}"
			if label != "where" { // of Envoy's own gauges
				require.Contains(t, meaning[name], "`"+value+"`", "%s: its values", name)
			}
		}
		all[name] = [...]string{metric.Counter: "counter", metric.Gauge: "gauge"}[f.Kind]
	}
	require.Equal(t, all, told)
}
