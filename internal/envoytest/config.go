package envoytest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"sigs.k8s.io/yaml"
)

// Config is an Envoy bootstrap as a tree, to be edited before the start. Where the guard is the
// ext_proc server, its own configuration is in there too, under serverKey, until the start.
type Config map[string]any

const serverKey = "highwater server"

// server is the configuration of the ext_proc server; nil where the guard is the plugin, or there
// is none.
func (c Config) server() map[string]any {
	m, _ := c[serverKey].(map[string]any)
	return m
}

func parse(text []byte) (Config, error) {
	c := Config{}
	if err := yaml.Unmarshal(text, &c); err != nil {
		return nil, fmt.Errorf("the Envoy configuration: %w", err)
	}
	return c, nil
}

// walk visits every object of the tree, parents first.
func walk(v any, visit func(map[string]any)) {
	switch v := v.(type) {
	case map[string]any:
		visit(v)
		for _, child := range v {
			walk(child, visit)
		}
	case []any:
		for _, child := range v {
			walk(child, visit)
		}
	}
}

func (c Config) list(name string) []map[string]any {
	resources, _ := c["static_resources"].(map[string]any)
	entries, _ := resources[name].([]any)
	var list []map[string]any
	for _, e := range entries {
		list = append(list, e.(map[string]any))
	}
	return list
}

// Listeners are the static listeners.
func (c Config) Listeners() []map[string]any { return c.list("listeners") }

// Clusters are the static clusters.
func (c Config) Clusters() []map[string]any { return c.list("clusters") }

// Cluster returns the cluster of that name; it panics where there is none, because a test is wrong
// then.
func (c Config) Cluster(name string) map[string]any {
	for _, cluster := range c.Clusters() {
		if cluster["name"] == name {
			return cluster
		}
	}
	panic("no cluster " + name)
}

// AdminAddr is host:port of the admin interface.
func (c Config) AdminAddr() (addr string) {
	walk(c["admin"], func(m map[string]any) {
		if host, ok := m["address"].(string); ok {
			addr = net.JoinHostPort(host, fmt.Sprint(m["port_value"]))
		}
	})
	return addr
}

// SetEndpoint points a cluster at host:port.
func (c Config) SetEndpoint(cluster, addr string) {
	host, text, err := net.SplitHostPort(addr)
	if err != nil {
		panic(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		panic(err)
	}
	setEndpoint(c.Cluster(cluster), host, port)
}

// AddCluster adds one of HTTP/1, at host:port.
func (c Config) AddCluster(name, addr string) {
	resources := c["static_resources"].(map[string]any)
	resources["clusters"] = append(resources["clusters"].([]any), map[string]any{
		"name": name, "type": "STATIC", "connect_timeout": "5s",
		"load_assignment": map[string]any{"cluster_name": name, "endpoints": []any{map[string]any{"lb_endpoints": []any{
			map[string]any{"endpoint": map[string]any{"address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": 1}}}},
		}}}},
	})
	c.SetEndpoint(name, addr)
}

// setEndpoint points every endpoint of a cluster at host:port.
func setEndpoint(cluster map[string]any, host string, port int) {
	walk(cluster["load_assignment"], func(m map[string]any) {
		if a, ok := m["socket_address"].(map[string]any); ok {
			a["address"], a["port_value"] = host, port
		}
	})
}

// plugins visits the PluginConfig of every Highwater plugin.
func (c Config) plugins(visit func(plugin map[string]any)) {
	walk(map[string]any(c), func(m map[string]any) {
		if vm, ok := m["vm_config"].(map[string]any); ok && vm["vm_id"] == "highwater" {
			visit(m)
		}
	})
}

// modules visits what configures each filter of the dynamic module, and its bootstrap extension.
func (c Config) modules(visit func(filter map[string]any)) {
	walk(map[string]any(c), func(m map[string]any) {
		if _, ok := m["dynamic_module_config"].(map[string]any); ok {
			visit(m)
		}
	})
}

// configurations visits what has the guard's own configuration, with the key under which that is.
func (c Config) configurations(visit func(of map[string]any, key string)) {
	c.plugins(func(plugin map[string]any) { visit(plugin, "configuration") })
	c.modules(func(filter map[string]any) {
		if _, ok := filter["filter_config"]; ok {
			visit(filter, "filter_config")
		}
	})
}

// SetPluginConfig edits the configuration of every Highwater plugin, or of the server.
func (c Config) SetPluginConfig(edit func(cfg map[string]any)) {
	if m := c.server(); m != nil {
		edit(m)
	}
	c.configurations(func(plugin map[string]any, key string) {
		value := plugin[key].(map[string]any)
		cfg := map[string]any{}
		if err := json.Unmarshal([]byte(value["value"].(string)), &cfg); err != nil {
			panic(err)
		}
		edit(cfg)
		text, err := json.Marshal(cfg)
		if err != nil {
			panic(err)
		}
		plugin[key] = map[string]any{"@type": value["@type"], "value": string(text)}
	})
}

// SetWholePluginConfig replaces what Envoy hands to every Highwater plugin: a StringValue of a
// string, else the value itself.
func (c Config) SetWholePluginConfig(v any) {
	c.configurations(func(plugin map[string]any, key string) {
		if text, ok := v.(string); ok {
			plugin[key] = map[string]any{"@type": "type.googleapis.com/google.protobuf.StringValue", "value": text}
			return
		}
		plugin[key] = v
	})
}

// SetRootID gives every Highwater plugin that has the root_id another one.
func (c Config) SetRootID(from, to string) {
	c.plugins(func(plugin map[string]any) {
		if plugin["root_id"] == from {
			plugin["root_id"] = to
		}
	})
}

// SetVMID gives every Highwater plugin that has the root_id a virtual machine of another vm_id.
func (c Config) SetVMID(rootID, vmID string) {
	c.plugins(func(plugin map[string]any) {
		if plugin["root_id"] == rootID {
			vm := maps.Clone(plugin["vm_config"].(map[string]any))
			vm["vm_id"] = vmID
			plugin["vm_config"] = vm
		}
	})
}

// setModule sets the file of the dynamic module.
func (c Config) setModule(file string) {
	c.modules(func(filter map[string]any) {
		filter["dynamic_module_config"].(map[string]any)["module"] = map[string]any{"local": map[string]any{"filename": file}}
	})
}

// SetModuleName has Envoy look for the dynamic module by its name, in place of its file.
func (c Config) SetModuleName(name string) {
	c.modules(func(filter map[string]any) {
		module := filter["dynamic_module_config"].(map[string]any)
		delete(module, "module")
		module["name"] = name
	})
}

// setWasm sets the file of every Highwater plugin.
func (c Config) setWasm(file string) {
	c.SetCode(map[string]any{"local": map[string]any{"filename": file}})
}

// SetCode sets where every Highwater plugin has its code from, as in vm_config.code.
func (c Config) SetCode(code map[string]any) { c.SetVM("code", code) }

// SetVM sets a key of the vm_config of every Highwater plugin.
func (c Config) SetVM(key string, value any) {
	c.plugins(func(plugin map[string]any) { plugin["vm_config"].(map[string]any)[key] = value })
}

// without removes from every list named key the entries that drop says.
func (c Config) without(key string, drop func(entry map[string]any) bool) {
	walk(map[string]any(c), func(m map[string]any) {
		list, ok := m[key].([]any)
		if !ok {
			return
		}
		kept := []any{}
		for _, e := range list {
			if entry, ok := e.(map[string]any); !ok || !drop(entry) {
				kept = append(kept, e)
			}
		}
		m[key] = kept
	})
}

// RemoveGuard takes both Highwater filters out, or the one of ext_proc with its server.
func (c Config) RemoveGuard() {
	delete(c, serverKey)
	delete(c, "bootstrap_extensions")
	c.RemoveNetworkFilter()
	c.RemoveListenerFilter()
	c.without("http_filters", func(e map[string]any) bool { return e["name"] == "highwater.requests" })
}

// RemoveNetworkFilter takes the filter that counts connections out.
func (c Config) RemoveNetworkFilter() {
	c.without("filters", func(e map[string]any) bool { return e["name"] == "highwater.connections" })
}

// RemoveListenerFilter takes the filter that refuses connections as they are accepted out.
func (c Config) RemoveListenerFilter() {
	c.without("listener_filters", func(e map[string]any) bool { return e["name"] == "highwater.accepts" })
}

// SetBuffers sets the buffer limits of all listeners and clusters, in bytes.
func (c Config) SetBuffers(listener, cluster int) {
	for _, l := range c.Listeners() {
		l["per_connection_buffer_limit_bytes"] = listener
	}
	for _, l := range c.Clusters() {
		l["per_connection_buffer_limit_bytes"] = cluster
	}
}

// RemoveServer has no ext_proc server started: the filter's is another one, at an address.
func (c Config) RemoveServer(other string) {
	delete(c, serverKey)
	c.SetEndpoint("highwater", other)
}

// SetExtProc edits the ext_proc filter of every listener.
func (c Config) SetExtProc(edit func(filter map[string]any)) {
	walk(map[string]any(c), func(m map[string]any) {
		if kind, _ := m["@type"].(string); strings.HasSuffix(kind, ".ExternalProcessor") {
			edit(m)
		}
	})
}

// SetSendBuffer bounds what the kernel takes of what goes to a cluster, bytes (it doubles them):
// the rest stays with Envoy.
func (c Config) SetSendBuffer(cluster string, n int) {
	c.Cluster(cluster)["upstream_bind_config"] = map[string]any{"socket_options": []any{map[string]any{
		"description": "SO_SNDBUF", "level": syscall.SOL_SOCKET, "name": syscall.SO_SNDBUF, "int_value": n, "state": "STATE_PREBIND",
	}}}
}

// walkTraffic visits every object of the listeners that traffic comes through: not of the one that
// answers questions.
func (c Config) walkTraffic(visit func(map[string]any)) {
	for _, l := range c.Listeners() {
		if l["name"] != "debug" {
			walk(l, visit)
		}
	}
}

// SetConnectionManager edits the HTTP connection manager of every listener that traffic comes
// through.
func (c Config) SetConnectionManager(edit func(hcm map[string]any)) {
	c.walkTraffic(func(m map[string]any) {
		if _, ok := m["http_filters"]; ok {
			edit(m)
		}
	})
}

// AddRoute puts a route before all others, on every virtual host of those listeners.
func (c Config) AddRoute(route map[string]any) {
	c.walkTraffic(func(m map[string]any) {
		if routes, ok := m["routes"].([]any); ok {
			m["routes"] = append([]any{route}, routes...)
		}
	})
}

// SetHTTP2 sets the windows in bytes and the streams per connection, of all listeners.
func (c Config) SetHTTP2(streamWindow, connectionWindow, maxStreams int) {
	c.SetConnectionManager(func(hcm map[string]any) {
		hcm["http2_protocol_options"] = map[string]any{
			"initial_stream_window_size":     streamWindow,
			"initial_connection_window_size": connectionWindow,
			"max_concurrent_streams":         maxStreams,
		}
	})
}

// SetTLS makes all listeners speak TLS, with HTTP/2 for those who ask for it, a certificate and its
// key in PEM.
func (c Config) SetTLS(certificate, key string) {
	walk(map[string]any(c), func(m map[string]any) {
		if _, ok := m["filters"].([]any); ok {
			m["transport_socket"] = map[string]any{
				"name": "envoy.transport_sockets.tls",
				"typed_config": map[string]any{
					"@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
					"common_tls_context": map[string]any{
						"alpn_protocols": []any{"h2", "http/1.1"},
						"tls_certificates": []any{map[string]any{
							"certificate_chain": map[string]any{"inline_string": certificate},
							"private_key":       map[string]any{"inline_string": key},
						}},
					},
				},
			}
		}
	})
}

// SetLinger sets the delayed_close_timeout of all listeners.
func (c Config) SetLinger(d time.Duration) {
	c.SetConnectionManager(func(hcm map[string]any) {
		hcm["delayed_close_timeout"] = fmt.Sprintf("%.3fs", d.Seconds())
	})
}

// AddOverloadManager gives Envoy its own overload manager with the limit in bytes, as its
// documentation advises.
func (c Config) AddOverloadManager(limit int64) {
	const heap = "envoy.resource_monitors.fixed_heap"
	threshold := func(v float64) map[string]any {
		return map[string]any{"name": heap, "threshold": map[string]any{"value": v}}
	}
	action := func(name string, trigger map[string]any) any {
		return map[string]any{"name": "envoy.overload_actions." + name, "triggers": []any{trigger}}
	}
	c["overload_manager"] = map[string]any{
		"refresh_interval": "0.25s",
		"buffer_factory_config": map[string]any{
			"minimum_account_to_track_power_of_two": 20,
		},
		"resource_monitors": []any{map[string]any{
			"name": heap,
			"typed_config": map[string]any{
				"@type":               "type.googleapis.com/envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
				"max_heap_size_bytes": limit,
			},
		}},
		"actions": []any{
			action("shrink_heap", threshold(0.90)),
			action("stop_accepting_requests", threshold(0.95)),
			action("reset_high_memory_stream", map[string]any{
				"name":   heap,
				"scaled": map[string]any{"scaling_threshold": 0.85, "saturation_threshold": 0.98},
			}),
		},
	}
}
