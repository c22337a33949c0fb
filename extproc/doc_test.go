package extproc

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"github.com/highwater-envoy/highwater/internal/docs/reference"
	"github.com/highwater-envoy/highwater/internal/metric"
)

// The reference has each metric of the server with its kind and its labels, and no other.
func TestMetricsReference(t *testing.T) {
	told := map[string]string{}
	for _, cells := range reference.Rows(reference.Section(t, "../docs/reference/metrics.md", "Of the server, on its `/metrics` alone")) {
		if len(cells) == 3 {
			name, labels, _ := strings.Cut(strings.Trim(cells[0], "}"), "{")
			told[withLabels(name, strings.FieldsFunc(labels, func(r rune) bool { return r == ',' }))] = cells[1]
		}
	}
	counters, gauges := metric.Counters(), metric.Gauges()
	ofPolicy := map[string]bool{}
	for _, m := range append(append(counters[:], gauges[:]...), metric.WaitHistogram()) {
		name, _, _ := strings.Cut(m.Name, ".")
		name, _ = inSeconds(name, 0)
		ofPolicy[name] = true
	}
	s, _ := serve(t, 40*mib, nil)
	g := NewGRPC(s, nil)
	g.handled[""][codes.Unimplemented].Add(1) // what has not happened yet is not there
	families, err := s.Registry(g).Gather()
	require.NoError(t, err)
	all := map[string]string{}
	for _, f := range families {
		name := f.GetName()
		if ofPolicy[name] || strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		all[withLabels(name, labels)] = strings.ToLower(f.GetType().String())
	}
	require.Equal(t, all, told)
}

// withLabels is a metric as it is told here: its labels may be in any order.
func withLabels(name string, labels []string) string {
	slices.Sort(labels)
	return name + "{" + strings.Join(labels, ",") + "}"
}
