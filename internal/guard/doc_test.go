package guard

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/docs/reference"
	"github.com/highwater-envoy/highwater/internal/metric"
)

// The reference has each metric of the policy with its kind, and no other.
func TestMetricsReference(t *testing.T) {
	told := map[string]string{}
	for _, cells := range reference.Rows(reference.Section(t, "../../docs/reference/metrics.md", "Of the policy, in all faces")) {
		require.Len(t, cells, 3, "%s", cells)
		require.NotEmpty(t, strings.TrimSpace(cells[2]), "%s: what it means", cells[0])
		told[cells[0]] = cells[1]
	}
	counters, gauges := metric.Counters(), metric.Gauges()
	all := map[string]string{}
	for _, m := range append(append(counters[:], gauges[:]...), metric.WaitHistogram()) {
		all[m.Name] = [...]string{"counter", "gauge", "histogram"}[m.Kind]
	}
	require.Equal(t, all, told)
}

// The reference says of those keys that they are shared which all plugins of a process share.
func TestScopesInReference(t *testing.T) {
	told := []string{"memory.url"} // of the server alone, which is one
	for _, cells := range reference.Rows(reference.Section(t, "../../docs/reference/configuration.md", "All keys")) {
		if cells[2] == "shared" {
			told = append(told, cells[0])
		}
	}
	slices.Sort(told)
	all := keysOf("", reflect.ValueOf(shared{}))
	slices.Sort(all)
	require.Equal(t, all, told)
}

// keysOf are the keys of a part of the configuration.
func keysOf(path string, v reflect.Value) (all []string) {
	for i := range v.NumField() {
		key, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		if _, text := v.Field(i).Interface().(fmt.Stringer); v.Field(i).Kind() == reflect.Struct && !text {
			all = append(all, keysOf(path+key+".", v.Field(i))...)
		} else {
			all = append(all, path+key)
		}
	}
	return all
}
