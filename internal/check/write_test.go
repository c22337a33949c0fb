package check

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

// What is written guards each listener that sends to an upstream, and is right in the eyes of
// Check.
func TestWrite(t *testing.T) {
	asJSON, err := yaml.YAMLToJSON([]byte(parts{}.text()))
	require.NoError(t, err)
	proxy := `- name: tcp
    filter_chains: [{filters: [{name: tcp, typed_config: {"@type": ` + filters + `network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: upstream}}]}]`
	camel := strings.NewReplacer("static_resources", "staticResources", "filter_chains", "filterChains", "typed_config", "typedConfig", "http_filters", "httpFilters", "route_config", "routeConfig",
		"virtual_hosts", "virtualHosts", "stat_prefix", "statPrefix", "load_assignment", "loadAssignment", "cluster_name", "clusterName", "lb_endpoints", "lbEndpoints", "socket_address", "socketAddress", "port_value", "portValue").Replace(parts{}.text())
	wrapped := strings.Replace(parts{}.text(), `"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: ingress
          
          http`, `"@type": type.googleapis.com/xds.type.v3.TypedStruct
          type_url: type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          value:
           stat_prefix: ingress
           http`, 1)
	wrapped = strings.Replace(wrapped, "          route_config:", "           route_config:", 1)
	require.Contains(t, wrapped, "TypedStruct")
	anchored := parts{listeners: `- name: second
    address: {socket_address: {address: 0.0.0.0, port_value: 10001}}
    filter_chains: *chains`}.text()
	anchored = strings.Replace(anchored, "    filter_chains:\n", "    filter_chains: &chains\n", 1)
	merged := strings.Replace(anchored, "filter_chains: *chains", "<<: {filter_chains: *chains}", 1)
	for name, c := range map[string]struct {
		text  string
		added int // filters
	}{
		"YAML":              {parts{}.text(), 2},
		"JSON":              {string(asJSON), 2},
		"in camelCase":      {camel, 2},
		"a TypedStruct":     {wrapped, 2},
		"raw TCP beside":    {parts{listeners: proxy}.text(), 3},
		"a default chain":   {strings.Replace(parts{}.text(), "filter_chains:\n    - filters:", "default_filter_chain:\n      filters:", 1), 2},
		"an anchor":         {anchored, 2},
		"a merge":           {merged, 2},
		"no admin":          {strings.Replace(parts{}.text(), "admin: {", "header_prefix: x\nbootstrap_extensions: []\nignored: {", 1), 2},
		"allow_paths":       {strings.Replace(parts{}.text(), "admin: {", "admin: {allow_paths: [{exact: /ready}], ", 1), 2},
		"the cluster":       {parts{clusters: "- {name: stats, load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}}]}]}}"}.text(), 2},
		"its name is taken": {parts{clusters: "- {name: envoy_admin}"}.text(), 2},
		"other buffers":     {parts{listener: "per_connection_buffer_limit_bytes: 32768"}.text(), 2},
	} {
		t.Run(name, func(t *testing.T) {
			out, did, err := Write([]byte(c.text), Options{})
			require.NoError(t, err)
			require.NotEmpty(t, did)
			require.Equal(t, c.added, strings.Count(string(out), "root_id:"), "%s", out)
			r := report(t, string(out), Options{})
			require.Contains(t, r.Verdict, "Highwater guards all of")
			for _, f := range r.Findings {
				require.NotEqual(t, Error, f.Severity, "%+v", f)
				require.NotContains(t, f.Name, "buffers-", "it is told what Envoy is set to")
			}
			_, _, err = Write(out, Options{})
			require.ErrorContains(t, err, "there is Highwater in it already")
		})
	}
	for name, c := range map[string]struct{ text, want string }{
		"a dump":        {`{"configs": []}`, "name its bootstrap"},
		"no listener":   {"admin: {}", "there is nothing to add"},
		"it is quiet":   {parts{routes: "{match: {prefix: /}, direct_response: {status: 200}}"}.text(), "there is nothing to add"},
		"can't be read": {strings.Replace(parts{}.text(), "stat_prefix: ingress", "codec_type: NONE", 1), "correct that first"},
	} {
		_, _, err := Write([]byte(c.text), Options{})
		require.ErrorContains(t, err, c.want, name)
	}
}

// The other two faces are added as well, and where it is the module no readings need a cluster.
func TestWriteTheOtherFaces(t *testing.T) {
	proxy := `- name: tcp
    filter_chains: [{filters: [{name: tcp, typed_config: {"@type": ` + filters + `network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: upstream}}]}]`
	text := parts{listeners: proxy}.text()
	for _, c := range []struct {
		face  Face
		types map[string]int // how often each stands there
		guard string
	}{
		{Module, map[string]int{"http.dynamic_modules": 1, "network.dynamic_modules": 2, "listener.dynamic_modules": 2, "envoy_admin": 0}, "dynamic module, observe, limit 200MiB"},
		{ExtProc, map[string]int{"http.ext_proc": 1, "- name: highwater\n": 1, "envoy_admin": 0, "dynamic_modules": 0}, "ext_proc"},
	} {
		t.Run(string(c.face), func(t *testing.T) {
			o := Options{Face: c.face}
			out, did, err := Write([]byte(text), o)
			require.NoError(t, err)
			require.NotEmpty(t, did)
			for kind, n := range c.types {
				require.Equal(t, n, strings.Count(string(out), kind), "%s: %s", kind, out)
			}
			r := report(t, string(out), Options{})
			require.Equal(t, c.guard, r.Listeners[0].Guard)
			for _, f := range r.Findings {
				require.NotEqual(t, Error, f.Severity, "%+v", f)
			}
			before := report(t, text, o)
			var where []string
			for _, p := range before.Paste {
				where = append(where, p.Where)
			}
			require.Contains(t, strings.Join(where, "\n"), "to add Highwater: first of http_filters of listener ingress")
			if c.face == ExtProc {
				last := before.Paste[len(before.Paste)-1]
				require.Equal(t, "to add Highwater: the configuration of highwater serve", last.Where)
				require.Contains(t, last.YAML, "mode: observe")
			}
		})
	}
}

// The limit is two thirds of the container; without one it is a guess, and never below what Envoy
// holds.
func TestWrittenLimit(t *testing.T) {
	out, _, err := Write([]byte(parts{}.text()), Options{Container: 300 * mib, File: "/x/y.wasm"})
	require.NoError(t, err)
	require.Contains(t, string(out), `"budget": {"limit": "200MiB"}`)
	require.Contains(t, string(out), "filename: \"/x/y.wasm\"")
	out, _, err = Write([]byte(parts{}.text()), Options{Container: 600 * mib})
	require.NoError(t, err)
	require.Contains(t, string(out), `"budget": {"limit": "400MiB"}`)
	require.Contains(t, string(out), defaultFiles[Wasm])
}
