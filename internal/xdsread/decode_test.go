package xdsread

import (
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"github.com/stretchr/testify/require"
)

// What Envoy takes is taken: enums in any case, one value for a list of it, durations in parts.
// Each of them was tried on Envoy 1.40 (--mode validate).
func TestWhatEnvoyTakes(t *testing.T) {
	c := &clusterv3.Cluster{}
	tree := map[string]any{
		"name": "a", "lb_policy": "round_robin", "connectTimeout": map[string]any{"seconds": 1, "nanos": 500000000},
		"health_checks": map[string]any{"timeout": "1s"},
	}
	wrong, ok := Decode(tree, c)
	require.Empty(t, wrong)
	require.True(t, ok)
	require.Equal(t, "1.5s", c.GetConnectTimeout().AsDuration().String())
	require.Len(t, c.GetHealthChecks(), 1)
	require.Equal(t, "round_robin", tree["lb_policy"], "what was given is left as it is")
}

// What is wrong is told with its place, all of it, and what can be read is.
func TestWhatIsWrong(t *testing.T) {
	c := &clusterv3.Cluster{}
	wrong, ok := Decode(map[string]any{
		"name": "a", "lb_policy": "NONE", "connect_timeout": map[string]any{"minutes": 1}, "respect_dns_ttl": "maybe", "load_assignment": "here", "more": 1,
	}, c)
	require.False(t, ok)
	require.Len(t, wrong, 5)
	require.Contains(t, wrong, "connect_timeout: must be a duration with its unit, such as 5s")
	require.Contains(t, wrong, "load_assignment: must be an object: {...}")
	require.Contains(t, wrong, "more: unknown field: it is misspelt, in the wrong place, or newer than this program")
	c = &clusterv3.Cluster{}
	wrong, ok = Decode(map[string]any{"name": "a", "alt_stat_name": 5, "connect_timeout": "5"}, c)
	require.False(t, ok)
	require.Len(t, wrong, 2)
	require.Equal(t, "a", c.GetName())
}

// An extension of a type that is not known is left out, and its name stays.
func TestUnknownTypes(t *testing.T) {
	l := &listenerv3.Listener{}
	filter := func(v any) map[string]any {
		return map[string]any{"filter_chains": []any{map[string]any{"filters": []any{map[string]any{"name": "x", "typed_config": v}}}}}
	}
	wrong, ok := Decode(filter(map[string]any{"@type": "type.googleapis.com/com.example.Filter", "a": 1}), l)
	require.Empty(t, wrong)
	require.True(t, ok)
	typed := l.GetFilterChains()[0].GetFilters()[0].GetTypedConfig()
	require.Equal(t, "type.googleapis.com/xds.type.v3.TypedStruct", typed.GetTypeUrl())
	require.Contains(t, string(typed.GetValue()), "com.example.Filter")
	_, ok = Decode(filter("here"), &listenerv3.Listener{})
	require.False(t, ok)
	wrong, _ = Decode(filter(map[string]any{"@type": "a/envoy.config.core.v3.Node", "ids": 1}), &listenerv3.Listener{})
	require.Equal(t, []string{"filter_chains[0].filters[0].typed_config.ids: unknown field: it is misspelt, in the wrong place, or newer than this program"}, wrong)
}

func TestUnwrap(t *testing.T) {
	tree := Unwrap(map[string]any{"a": []any{map[string]any{"@type": "x/udpa.type.v1.TypedStruct", "typeUrl": "a/envoy.config.core.v3.Node", "value": map[string]any{"id": "b"}}}})
	node := tree.(map[string]any)["a"].([]any)[0].(map[string]any)
	require.Equal(t, "envoy.config.core.v3.Node", TypeOf(node))
	n := &corev3.Node{}
	_, ok := Decode(node, n)
	require.True(t, ok)
	require.Equal(t, "b", n.GetId())
	for _, left := range []map[string]any{{"@type": "xds.type.v3.TypedStruct"}, {"@type": "xds.type.v3.TypedStruct", "type_url": "a", "value": 5}, {}} {
		require.Equal(t, left, Unwrap(left))
	}
}
