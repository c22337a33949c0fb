package guard

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The reference has each metric of the policy with its kind, and no other.
func TestMetricsReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/metrics.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(text), "\n## Of the policy, in both faces\n")
	require.True(t, found)
	section, _, _ := strings.Cut(rest, "\n## ")
	told := map[string]string{}
	for row := range strings.Lines(section) {
		cells := strings.Split(strings.Trim(row, "| \n"), " | ")
		if name, isMetric := strings.CutPrefix(cells[0], "`"); isMetric {
			require.Len(t, cells, 3, "%s", row)
			require.NotEmpty(t, strings.TrimSpace(cells[2]), "%s: what it means", name)
			told[strings.TrimSuffix(name, "`")] = cells[1]
		}
	}
	counters, gauges := Counters(), Gauges()
	all := map[string]string{}
	for _, m := range append(append(counters[:], gauges[:]...), WaitHistogram()) {
		all[m.Name] = [...]string{"counter", "gauge", "histogram"}[m.Kind]
	}
	require.Equal(t, all, told)
}

// The reference says of those keys that they are shared which all plugins of a process share.
func TestScopesInReference(t *testing.T) {
	text, err := os.ReadFile("../../docs/reference/configuration.md")
	require.NoError(t, err)
	_, tables, found := strings.Cut(string(text), "\n## All keys\n")
	require.True(t, found)
	tables, _, _ = strings.Cut(tables, "\n## ")
	told := []string{"memory.url"} // of the server alone, which is one
	for row := range strings.Lines(tables) {
		cells := strings.Split(row, " | ")
		if key, isKey := strings.CutPrefix(cells[0], "| `"); isKey && cells[2] == "shared" {
			told = append(told, strings.TrimSuffix(key, "`"))
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
