package e2e

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/load"
)

// streams opens gRPC streams through Envoy, which stay until the end of the test.
func streams(t *testing.T, addr string, connections, each int) {
	t.Helper()
	for range connections {
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		t.Cleanup(func() { conn.Close() })
		client := healthpb.NewHealthClient(conn)
		for range each {
			watch, err := client.Watch(t.Context(), &healthpb.HealthCheckRequest{})
			require.NoError(t, err)
			_, err = watch.Recv()
			require.NoError(t, err)
		}
	}
}

// command runs build/highwater and returns what it prints.
func command(t *testing.T, args ...string) string {
	t.Helper()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	var out, errs bytes.Buffer
	c := exec.Command(filepath.Join(root, "build", "highwater"), args...)
	c.Stdout, c.Stderr = &out, &errs
	require.NoError(t, c.Run(), "%v: %s", args, errs.String())
	return out.String()
}

const noSample = "(no sample)"

// classes are the bytes of a heap's profile by the class that holds them, those without one by the
// empty name, those of sizes without a sample by noSample, and all together.
func classes(t *testing.T, p *profile.Profile) (by map[string]int64, all int64) {
	t.Helper()
	require.NoError(t, p.CheckValid())
	by = map[string]int64{}
	for _, s := range p.Sample {
		name := ""
		if root := s.Location[len(s.Location)-1]; root.Line[0].Function.Name == noSample {
			name = noSample
		}
		if len(s.Label["class"]) == 1 {
			name = s.Label["class"][0]
		}
		by[name] += s.Value[1]
		all += s.Value[1]
	}
	return by, all
}

// Of a stock Envoy under uploads, slow readers and gRPC streams, at least 95 % of what TCMalloc has
// sampled has a class, and 90 % of the whole heap; and that is what Envoy says that it has
// allocated.
func TestHeapHasClasses(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer()
	healthpb.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) {
		c.RemoveGuard()
		c.SetBuffers(mib, mib)
		c.SetEndpoint("grpc_upstream", listener.Addr().String())
	}})
	streams(t, s.addr, 10, 20)
	ctx, cancel := context.WithCancel(t.Context())
	held := load.Mix{
		&load.Uploads{Addr: s.addr, Count: 100, Size: 4 * mib, Path: "/upload?delay=20s"},
		&load.SlowReaders{Addr: s.addr, Count: 250, Size: 16 * mib, Length: true, Rate: 64 << 10},
	}
	ended := make(chan struct{})
	go func() { defer close(ended); held.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	var last int64
	require.Eventually(t, func() bool { // it is high, and has come to rest
		m, err := s.Memory(t.Context())
		was := last
		last = m.Allocated
		return err == nil && last > 250*mib && max(last-was, was-last) < last/50
	}, 10*time.Second, 500*time.Millisecond)

	cache, file := t.TempDir(), filepath.Join(t.TempDir(), "heap.pb.gz")
	before, err := s.Memory(t.Context())
	require.NoError(t, err)
	began := time.Now()
	command(t, "heap", "-admin", s.AdminURL(), "-cache", cache, "-o", file)
	first := time.Since(began)
	after, err := s.Memory(t.Context())
	require.NoError(t, err)
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	p, err := profile.ParseData(data)
	require.NoError(t, err)
	by, all := classes(t, p)
	// The sums of the sizes are exact, and of a moment between the two.
	require.Greater(t, all, min(before.Allocated, after.Allocated)*8/10)
	require.Less(t, all, max(before.Allocated, after.Allocated)*12/10)
	named := float64(all - by[""] - by[noSample])
	require.GreaterOrEqual(t, named/float64(all-by[noSample]), 0.95, "%v", by)
	require.GreaterOrEqual(t, named/float64(all), 0.9, "%v", by)
	require.Greater(t, by["Envoy::Buffer::WatermarkBuffer"]+by["Envoy::Buffer::OwnedImpl"], all/2, "%v", by)

	began = time.Now()
	table := command(t, "heap", "-admin", s.AdminURL(), "-cache", cache, "-pid", strconv.Itoa(s.PID()))
	second := time.Since(began)
	require.Contains(t, table, "Envoy::Buffer::WatermarkBuffer\n")
	require.Contains(t, table, "in use (exact)")
	t.Logf("%d MiB: %.1f%% of it, and %.1f%% of what is sampled, has a class; %v the first time and %v the second\n%s",
		all/mib, 100*named/float64(all), 100*named/float64(all-by[noSample]), first, second, table)
	require.Less(t, second, 3*time.Second)

	r := s.examine("-heap") // the same, beside the map
	require.Len(t, r.Heaps, 1)
	require.True(t, r.Heaps[0].Exact)
	require.GreaterOrEqual(t, r.Heaps[0].Share(), 0.9)
	require.Contains(t, r.Heaps[0].Classes[0].Name, "Envoy::Buffer::")
	files, err := filepath.Glob(filepath.Join(cache, "*.classes"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	// A table that is damaged is made again, and what it says is the same.
	require.NoError(t, os.Truncate(files[0], 1000))
	command(t, "heap", "-admin", s.AdminURL(), "-cache", cache, "-o", file)
	info, err := os.Stat(files[0])
	require.NoError(t, err)
	require.Greater(t, info.Size(), int64(mib))
	top, err := exec.Command("go", "tool", "pprof", "-top", file).Output()
	require.NoError(t, err)
	require.Contains(t, string(top), "Envoy::Buffer::WatermarkBuffer#")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	companion(t, address, "budget: {limit: 200MiB}\nmemory: {url: \""+s.AdminURL()+"\"}\nenvoy: {pid: "+strconv.Itoa(s.PID())+"}\n")
	require.Eventually(t, func() bool {
		res, err := http.Get("http://" + address + "/debug/heap?table")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		return err == nil && res.StatusCode == http.StatusOK && strings.Contains(string(text), "Envoy::Buffer::WatermarkBuffer\n")
	}, 10*time.Second, 100*time.Millisecond)
}
