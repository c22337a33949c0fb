package e2e

import (
	"context"
	"encoding/json"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3" // the example's, to be read into types
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/dynamic_modules/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/dynamic_modules/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/dynamic_modules/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// controlPlane serves one listener by ADS.
type controlPlane struct {
	t       *testing.T
	addr    string
	cache   cache.SnapshotCache
	ingress map[string]any
	version int
	refused atomic.Value // string: why Envoy refused the last one
}

func newControlPlane(t *testing.T) *controlPlane {
	t.Helper()
	p := &controlPlane{t: t, cache: cache.NewSnapshotCache(true, cache.IDHash{}, nil)}
	p.refused.Store("")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p.addr = l.Addr().String()
	g := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(g, server.NewServer(t.Context(), p.cache, server.CallbackFuncs{
		StreamRequestFunc: func(_ int64, r *discovery.DiscoveryRequest) error {
			if e := r.GetErrorDetail(); e != nil {
				p.refused.Store(e.GetMessage())
			}
			return nil
		},
	}))
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	return p
}

// edit makes a bootstrap ask the control plane for its listener.
func (p *controlPlane) edit(c envoytest.Config) {
	p.ingress = c.Listeners()[0]
	resources := c["static_resources"].(map[string]any)
	resources["listeners"] = []any{}
	resources["clusters"] = append(resources["clusters"].([]any), map[string]any{
		"name": "xds", "type": "STATIC", "connect_timeout": "5s",
		"typed_extension_protocol_options": map[string]any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": map[string]any{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": map[string]any{"http2_protocol_options": map[string]any{}},
		}},
		"load_assignment": map[string]any{"cluster_name": "xds", "endpoints": []any{map[string]any{"lb_endpoints": []any{
			map[string]any{"endpoint": map[string]any{"address": map[string]any{"socket_address": map[string]any{"address": "127.0.0.1", "port_value": 1}}}},
		}}}},
	})
	c.SetEndpoint("xds", p.addr)
	c["node"] = map[string]any{"id": "test", "cluster": "test"}
	c["dynamic_resources"] = map[string]any{
		"lds_config": map[string]any{"resource_api_version": "V3", "ads": map[string]any{}},
		"ads_config": map[string]any{"api_type": "GRPC", "transport_api_version": "V3", "grpc_services": []any{
			map[string]any{"envoy_grpc": map[string]any{"cluster_name": "xds"}},
		}},
	}
	p.set(func(map[string]any) {})
}

// set serves the listener with another configuration of the plugin.
func (p *controlPlane) set(plugin func(cfg map[string]any)) {
	p.t.Helper()
	p.change(func(c envoytest.Config) { c.SetPluginConfig(plugin) })
}

// change serves the listener with something else in it.
func (p *controlPlane) change(edit func(c envoytest.Config)) {
	p.t.Helper()
	edit(envoytest.Config{"static_resources": map[string]any{"listeners": []any{p.ingress}}})
	text, err := json.Marshal(p.ingress)
	require.NoError(p.t, err)
	var l listener.Listener
	require.NoError(p.t, protojson.Unmarshal(text, &l))
	p.version++
	snapshot, err := cache.NewSnapshot(strconv.Itoa(p.version), map[resource.Type][]types.Resource{resource.ListenerType: {&l}})
	require.NoError(p.t, err)
	require.NoError(p.t, p.cache.SetSnapshot(context.Background(), "test", snapshot))
}

// Under a flood the configuration changes, twice in a way that is right and once in one that is
// wrong: nobody who waits or uploads is lost by it, the budget holds, and what is wrong is refused
// with its reason.
func TestXDSInAFlood(t *testing.T) {
	forPlugins(t, 2, func(t *testing.T, b base) {
		t.Helper()
		p := newControlPlane(t)
		s := b.start(t, setup{edit: p.edit})
		flood := &load.Uploads{Addr: s.addr, Count: 60, Size: 4 * mib, Path: "/upload?delay=500ms", Drain: 20 * time.Second}
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		flooded := make(chan struct{})
		go func() {
			defer close(flooded)
			flood.Run(ctx)
		}()
		served := func(n int64) {
			t.Helper()
			require.Eventually(t, func() bool { return flood.Snapshot().Served >= n }, 20*time.Second, 10*time.Millisecond)
		}
		served(30)
		p.set(func(cfg map[string]any) {
			section(cfg, "budget")["limit"] = "120MiB"
			section(cfg, "throttle")["timeout"] = "20s"
		})
		s.gauge("highwater_limit_bytes", 120*mib)
		s.waiting(1)
		served(flood.Snapshot().Served + 60)

		p.set(func(cfg map[string]any) { section(cfg, "budget")["resume"] = "90%" })
		require.Eventually(t, func() bool { return p.refused.Load() != "" }, 20*time.Second, 10*time.Millisecond)
		require.Eventually(t, func() bool {
			return s.LogMatches(`budget\.resume: 90% must be above 0% and below budget\.soft \(80%\)`)
		}, 20*time.Second, 10*time.Millisecond, "%v", p.refused.Load())
		s.gauge("highwater_limit_bytes", 120*mib)
		served(flood.Snapshot().Served + 60)

		p.set(func(cfg map[string]any) {
			delete(section(cfg, "budget"), "resume")
			section(cfg, "budget")["limit"] = "180MiB"
			cfg["mode"] = "observe"
		})
		s.gauge("highwater_limit_bytes", 180*mib)
		served(flood.Snapshot().Served + 60)
		stop()
		<-flooded
		stats, err := s.Stats(t.Context(), "highwater_closed")
		require.NoError(t, err)
		all := flood.Snapshot()
		require.Zero(t, all.Cut+all.Errors, "%+v", all)
		require.LessOrEqual(t, float64(all.Closed), stats["wasmcustom.highwater_closed_connections_total"], "none but by the guard: %+v", all)
		s.drained()
	})
}
