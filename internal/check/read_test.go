package check

import (
	"bytes"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/unit"
)

// What is no configuration of Envoy is refused, with the line where there is one.
func TestBadInput(t *testing.T) {
	bomb := "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
	for i := range 9 {
		bomb += fmt.Sprintf("a%d: &a%d [%s]\n", i+1, i+1, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i), 10), ","))
	}
	example := example(t, "envoy.yaml")
	for name, c := range map[string]struct{ text, want string }{
		"empty":             {" \n", "it is empty"},
		"a list":            {"- a\n", "it must be an object"},
		"a word":            {"not found", "it must be an object"},
		"truncated YAML":    {example[:strings.Index(example, "{socket_address: {address: 127.0.0.1, port_value: 10000")+30], "line 8"},
		"truncated JSON":    {"{\n\"admin\": {\n\"address\": [", "line 3"},
		"truncated dump":    {`{"configs": [` + strings.Repeat(" ", 9<<20), "line 1"},
		"a broken dump":     {"{\"configs\": [\n" + strings.Repeat(" ", 9<<20) + "\n{\"bootstrap\": 5,}]}", "line 3"},
		"a dump of numbers": {`{"configs": [` + strings.Repeat("1,", 5<<20) + "1]}", "an object must be here"},
		"a list of nothing": {`{"configs": [{"static_clusters": {"a": "` + strings.Repeat("x", 9<<20) + `"}}]}`, "a list must be here"},
		"one large cluster": {`{"configs": [{"static_clusters": [{"a": "` + strings.Repeat("x", 9<<20) + `"}]}]}`, "more than 8MiB"},
		"many small values": {`{"configs": [{"static_clusters": [{"a": [` + strings.Repeat("1,", 4<<20-100) + `1]}, 5` + strings.Repeat(" ", 1<<20) + `]}]}`, "too large"},
		"50 MB":             {"# a comment\n" + strings.Repeat("a: 1\n", 10<<20), "it is too large: of a bootstrap 8MiB are read"},
		"50 MB of JSON":     {"{" + strings.Repeat(`"a": 1, `, 6<<20) + `"b": 2}`, "17 keys and no configs"},
		"billion laughs":    {bomb, "it is too large from line 6 on where aliases (*name) are written out"},
		"cyclic":            {"admin: &a\n  address: *a\n", "line 2"},
		"cyclic list":       {"a: &a [*a]", "nested more than 100 deep at line 1"},
		"two documents":     {"admin: {}\n---\nadmin: {}\n", "it has another document from line 2 on"},
		"another's":         {"a: 1\n", "it is no configuration of Envoy"},
		"Highwater's":       {"budget: {limit: 200MiB}\n", "it is no configuration of Envoy"},
		"twice":             {"admin: {}\nadmin: {}\n", "line 2"},
		"deep":              {"admin: " + strings.Repeat("[", 500), "line 1"},
	} {
		t.Run(name, func(t *testing.T) {
			before := allocated()
			_, err := Read([]byte(c.text))
			require.ErrorContains(t, err, c.want)
			require.NotContains(t, err.Error(), "\n")
			require.Less(t, len(err.Error()), 400)
			require.Less(t, allocated()-before, uint64(600*unit.MiB))
		})
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// A listener that can't be read keeps nobody from reading the other one, and what is not known is
// named.
func TestPartsThatCannotBeRead(t *testing.T) {
	r := report(t, `
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}
statsd: {}
static_resources:
  listeners:
  - {name: bad, address: here}
  - 5
  - {name: odd, filter_chains: [{filters: [{name: x, typed_config: {"@type": type.googleapis.com/com.example.Filter, a: 1}}]}]}
  clusters: {name: one} # Envoy takes one for a list of one
`, Options{})
	require.Equal(t, []string{"error unreadable", "error unreadable", "warning unknown-field"}, short(r)[:3])
	require.Equal(t, "address: must be an object: {...}: this part could not be looked at", r.Findings[0].What)
	require.Equal(t, []string{"listener bad"}, r.Findings[0].Places)
	require.Contains(t, short(r), "note skipped")
	for _, f := range r.Findings {
		if f.Name == "skipped" {
			require.Contains(t, f.What, "com.example.Filter is not known here")
			require.Equal(t, []string{"listener odd"}, f.Places)
		}
	}
	require.Equal(t, 1, r.Clusters.Count)
	var b bytes.Buffer
	r.Print(&b)
	require.Contains(t, b.String(), "errors: 2,")
}

// A large dump is read resource by resource: what it takes is a small multiple of its size.
func TestALargeDump(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"configs": [{"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "version_info": "1", "static_clusters": [`)
	for i := range 6000 {
		fmt.Fprintf(&b, `%s{"cluster": {"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "outbound|8080||service-%d.namespace.svc.cluster.local", "type": "EDS", "connect_timeout": "5s", "alt_stat_name": "%s", `+
			`"circuit_breakers": {"thresholds": [{"max_connections": 4294967295, "max_pending_requests": 4294967295, "max_requests": 4294967295}]}}, "last_updated": "2026-01-01T00:00:00Z"}`, map[bool]string{true: ",\n"}[i > 0], i, strings.Repeat("x", 1200))
	}
	b.WriteString(`]}, {"bootstrap": {"admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}}, "node": {"user_agent_build_version": {"version": {"major_number": 1, "minor_number": 38}}}}},` +
		`{"dynamic_listeners": [{"name": "x", "active_state": {"listener": {"name": "x"}}}, {"error_state": {}}]}]}`)
	require.Greater(t, b.Len(), int(MaxBootstrap))
	e, err := Read([]byte(b.String()))
	require.NoError(t, err)
	r := Check(e, Options{Container: 300 * mib})
	require.Equal(t, 6000, r.Clusters.Count)
	require.Equal(t, "1.38", r.Envoy, "as the running Envoy says")
	require.Equal(t, "x", r.Listeners[0].Name)
	require.Equal(t, []string{"error base"}, short(r), "%d bytes", b.Len())
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"configs": [{"dynamic_listeners": [{"active_state": {"listener": {"name": "x", "filter_chains": [null, {"filters": [null]}]}}}]}]}`))
	f.Add([]byte(parts{}.text()))
	f.Add([]byte(`{"static_resources": {"listeners": [{"filter_chains": [{"filters": [{"typed_config": {"@type": "xds.type.v3.TypedStruct", "type_url": "a/b", "value": {"@type": 5}}}]}]}]}}`))
	f.Add([]byte("admin: {allow_paths: [{}]}\nlayered_runtime: {layers: [{static_layer: {a.b: {c: 1}}}]}\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := Read(text)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		r := Check(e, Options{Container: 300 * mib})
		for _, finding := range r.Findings {
			require.Contains(t, severities(finding.Name), string(finding.Severity), finding.Name)
		}
		r.Print(&bytes.Buffer{})
		_, _, _ = Write(text, Options{})
	})
}
