package apart

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "load" { // this is the child
		if err := Serve(os.Stdin, os.Stdout, loads); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func loads(addr string) []load.Load {
	return []load.Load{
		&load.Downloads{Addr: addr, Clients: 2, Size: 1000},
		&load.Uploads{Addr: addr, Path: "/upload", Count: 2, Size: 1000, Drain: time.Second},
	}
}

func TestChild(t *testing.T) {
	c, err := Start("load")
	require.NoError(t, err)
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx, c.Upstream()) }()
	require.Eventually(t, func() bool { return c.Snapshot(0).Served > 10 && c.Snapshot(1).Served > 10 }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
	for i := range 2 {
		s := c.Snapshot(i)
		require.Zero(t, s.InFlight+s.Errors+s.Closed+s.Rejected+s.Cut, s.Problem)
		require.Positive(t, s.P99)
	}
	require.Zero(t, c.Snapshot(2))
	require.Equal(t, []load.Snapshot{c.Snapshot(0), c.Snapshot(1)}, c.Loads())
	require.GreaterOrEqual(t, c.Requests(), c.Snapshot(0).Served+c.Snapshot(1).Served)

	// The upstream is still there.
	var after load.Downloads
	after.Addr, after.Clients, after.Size = c.Upstream(), 1, 10
	ctx, cancel = context.WithCancel(t.Context())
	go func() { after.Run(ctx); done <- nil }()
	require.Eventually(t, func() bool { return after.Snapshot().Served > 0 }, 10*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}

// A route of its own is like the one it copies, comes before it, and leads to an upstream of its
// name.
func TestRoute(t *testing.T) {
	buffer := map[string]any{"buffer": "on"}
	routes := map[string]any{"virtual_hosts": []any{map[string]any{"routes": []any{
		map[string]any{"name": "upload", "match": map[string]any{"prefix": "/upload"}, "route": map[string]any{"cluster": "upstream"}, "typed_per_filter_config": buffer},
	}}}}
	c := envoytest.Config{"static_resources": map[string]any{
		"listeners": []any{map[string]any{"http_filters": []any{}, "route_config": routes}},
		"clusters":  []any{map[string]any{"name": "upstream", "per_connection_buffer_limit_bytes": 5}},
	}}
	require.NoError(t, Route(c, "upload", "quiet", "/quiet", "127.0.0.1:99"))
	require.EqualValues(t, 5, c.Cluster("quiet")["per_connection_buffer_limit_bytes"])
	require.NotEqual(t, c.Cluster("upstream")["load_assignment"], c.Cluster("quiet")["load_assignment"])
	list := routes["virtual_hosts"].([]any)[0].(map[string]any)["routes"].([]any)
	require.Len(t, list, 2)
	require.Equal(t, map[string]any{
		"name": "quiet", "match": map[string]any{"prefix": "/quiet"}, "typed_per_filter_config": buffer,
		"route": map[string]any{"cluster": "quiet", "timeout": "0s"},
	}, list[0])
	require.Error(t, Route(c, "nothing", "quiet2", "/quiet", "127.0.0.1:99"))
	require.Error(t, Route(c, "upload", "quiet2", "/quiet", "nowhere"))
}

// A parent that changes its mind, at any time, leaves no child behind.
func TestChildClosed(t *testing.T) {
	c, err := Start("load")
	require.NoError(t, err)
	c.Close()
	c.Close()
	require.Error(t, c.Run(t.Context(), c.Upstream()))

	c, err = Start("load")
	require.NoError(t, err)
	done := make(chan error)
	go func() { done <- c.Run(t.Context(), c.Upstream()) }()
	require.Eventually(t, func() bool { return c.Snapshot(0).Served > 0 }, 10*time.Second, time.Millisecond)
	c.Close()
	require.Error(t, <-done)
}
