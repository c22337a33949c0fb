package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/highwater-envoy/highwater/internal/envoybin"
	"github.com/highwater-envoy/highwater/internal/envoytest"
	"github.com/highwater-envoy/highwater/internal/observer"
)

// companion runs `highwater serve` for readings alone, at an address of its HTTP, and returns what
// it logs, and its process.
func companion(t *testing.T, address, config string) (log *strings.Builder, pid int) {
	t.Helper()
	root, err := envoybin.ModuleRoot()
	require.NoError(t, err)
	file := filepath.Join(t.TempDir(), "highwater.yaml")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o600))
	log = &strings.Builder{}
	c := exec.Command(filepath.Join(root, "build", "highwater"), "serve", "-config", file, "-grpc", "127.0.0.1:0", "-http", address)
	c.Stderr = log
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		require.NoError(t, c.Wait())
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return log, c.Process.Pid
}

// A filter takes its readings from the companion, and 300 others ask there as fast as they can:
// Envoy is asked once in memory.interval, and the filter has its readings in time.
func TestCompanionIsAskedByMany(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	require.NoError(t, l.Close())
	s := start(t, setup{workers: 2, edit: func(c envoytest.Config) { c.SetEndpoint("envoy_admin", address) }})
	companion(t, address, fmt.Sprintf("budget: {limit: 200MiB}\nmemory: {url: %q}\nenvoy: {pid: %d}\n", s.AdminURL(), s.PID()))
	_, err = s.Until(t.Context(), "highwater", func(m map[string]float64) bool { return m["wasmcustom.highwater_in_use_bytes"] > mib })
	require.NoError(t, err, "under the host that the plugin asks for")

	const clients, d = 300, 4 * time.Second
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	defer client.CloseIdleConnections()
	asked := func() float64 {
		m, err := s.Stats(t.Context(), "http.admin.downstream_rq_total")
		require.NoError(t, err)
		return m["http.admin.downstream_rq_total"]
	}
	before, began := asked(), time.Now()
	var answers, failed atomic.Int64
	var running sync.WaitGroup
	for range clients {
		running.Go(func() {
			for time.Since(began) < d {
				res, err := client.Get("http://" + address + "/memory")
				if err != nil {
					failed.Add(1)
					continue
				}
				_, _ = io.Copy(io.Discard, res.Body)
				res.Body.Close()
				if res.StatusCode == http.StatusOK {
					answers.Add(1)
				} else {
					failed.Add(1)
				}
			}
		})
	}
	var oldest float64
	for time.Since(began) < d-200*time.Millisecond {
		m, err := s.Stats(t.Context(), "reading_age")
		require.NoError(t, err)
		oldest = max(oldest, m["wasmcustom.highwater_reading_age_milliseconds"])
		time.Sleep(200 * time.Millisecond)
	}
	running.Wait()
	n, took := asked()-before, time.Since(began)
	t.Logf("%d answers and %d failures in %v; Envoy was asked %.0f times, %.0f a second; the filter's reading was %v ms old at most",
		answers.Load(), failed.Load(), took.Round(time.Millisecond), n, n/took.Seconds(), oldest)
	own := took.Seconds()/0.2 + took.Seconds() + 5 // the test's, and those for buffers
	require.LessOrEqual(t, n-own, took.Seconds()/0.025+1)
	require.Greater(t, answers.Load(), int64(10*n))
	require.Zero(t, failed.Load())
	require.Less(t, oldest, 1000.0)
	s.quiet()
}

// Of several Envoys the one that answers at memory.url is observed, and in a hot restart its
// successor.
func TestObserverFindsItsEnvoy(t *testing.T) {
	edit := func(c envoytest.Config) { c.RemoveGuard() }
	a, b := start(t, setup{workers: 1, edit: edit}), start(t, setup{workers: 1, edit: edit})
	watch := func(s *scene) *observer.Observer {
		w, _ := observe(t, observer.Options{Config: observer.Default(), URL: s.AdminURL()})
		return w
	}
	is := func(w *observer.Observer, pid int) {
		t.Helper()
		require.Eventually(t, func() bool { return w.Status().PID == pid }, 20*time.Second, 10*time.Millisecond, "%d, not %+v", pid, w.Status())
	}
	ofA, ofB := watch(a), watch(b)
	is(ofA, a.PID())
	is(ofB, b.PID())

	// The old one goes on for a while, on the connections that it has.
	next, err := envoytest.Start(t.Context(), envoytest.Options{
		After: a.Envoy, Concurrency: 1, Upstream: a.upstream.Addr(), Edit: edit, Args: []string{"--parent-shutdown-time-s", "15", "--drain-time-s", "5"},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, next.Stop()) })
	began := time.Now()
	is(ofA, next.PID())
	t.Logf("its successor is observed after %v", time.Since(began).Round(time.Millisecond))
	require.Less(t, time.Since(began), 12*time.Second)
	select {
	case <-a.Done():
		require.Fail(t, "the old one is gone already: nothing was to be told apart")
	default:
	}
	is(ofB, b.PID())
	require.True(t, ofA.Status().Fresh)
}
