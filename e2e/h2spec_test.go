package e2e

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/highwater-envoy/highwater/internal/envoytest"
)

// h2spec tries a server's HTTP/2 and returns what it failed, and how many cases there were.
func h2spec(
	t *testing.T, address string, timeout time.Duration, groups ...string,
) (failed map[string]bool, cases int) {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	quiet, err := os.Create(filepath.Join(t.TempDir(), "h2spec.log")) // it prints what it does, hundreds of lines
	require.NoError(t, err)
	defer quiet.Close()
	stdout := os.Stdout
	os.Stdout = quiet
	defer func() { os.Stdout = stdout }()
	c := &config.Config{Host: host, Port: n, Path: "/grpc.health.v1.Health/Check", Timeout: timeout, MaxHeaderLen: 4000, Sections: groups}
	failed = map[string]bool{}
	var count func(g *spec.TestGroup)
	count = func(g *spec.TestGroup) {
		for _, tc := range g.Tests {
			if tc.Result == nil {
				continue
			}
			if cases++; tc.Result.Failed {
				failed[g.ID()+" "+tc.Desc] = true
			}
		}
		for _, sub := range g.Groups {
			count(sub)
		}
	}
	for _, g := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		g.Test(c)
		count(g)
	}
	return failed, cases
}

// quick is how long a case waits: some thirty of them wait in vain.
const quick = 500 * time.Millisecond

// What h2spec fails on the gRPC port is what it fails on a bare server of grpc-go.
func TestHTTP2Conformance(t *testing.T) {
	t.Parallel() // it waits for most of its time
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	bare := grpc.NewServer(grpc.MaxConcurrentStreams(100)) // without a limit one case is left out
	healthpb.RegisterHealthServer(bare, health.NewServer())
	var running sync.WaitGroup
	running.Go(func() { _ = bare.Serve(l) })
	defer running.Wait()
	defer bare.Stop()
	theirs, cases := h2spec(t, l.Addr().String(), quick)
	require.Greater(t, cases, 100)

	s := start(t, setup{face: envoytest.ExtProc, workers: 1})
	ours, same := h2spec(t, s.Server().GRPC, quick)
	require.Equal(t, cases, same)
	t.Logf("of %d cases a bare server fails %d, this one %d", cases, len(theirs), len(ours))
	alone := func(all map[string]bool) (names []string) {
		for name := range all {
			if !theirs[name] {
				names = append(names, name)
			}
		}
		return names
	}
	// A busy machine may answer too late, or close before the client has read why: what fails here
	// alone has to do so each time, and the bare server must not once.
	for try := 0; try < 6 && len(alone(ours)) > 0; try++ {
		var groups []string
		for _, name := range alone(ours) {
			group, _, _ := strings.Cut(name, " ")
			groups = append(groups, group)
		}
		again, _ := h2spec(t, s.Server().GRPC, 2*time.Second, groups...)
		too, _ := h2spec(t, l.Addr().String(), 2*time.Second, groups...)
		maps.Copy(theirs, too)
		for _, name := range alone(ours) {
			if !again[name] {
				delete(ours, name)
			}
		}
	}
	require.Empty(t, alone(ours), "what fails here alone")
}
